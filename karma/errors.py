"""The two ways a command can end badly, their exit codes, and how a message is made one line.

A message is one line: what was wrong, where, and what to do about it. `karma.cli` prints it without a traceback.
Decision: what an error says of a name or a value goes through `show_line` where it is printed, once for all messages,
so that a name which holds a line end or a terminal's control sequence cannot make two lines or a coloured one of it.
"""

import re

_LONGEST_LINE, _LONGEST_WORD = 1000, 200  # characters


class KarmaError(Exception):
    """Something failed while running (exit code 1).

    Example:
        >>> KarmaError.exit_code, InputError.exit_code, issubclass(InputError, KarmaError)
        (1, 2, True)
    """

    exit_code = 1


class InputError(KarmaError, ValueError):
    """The user's input cannot be used as it is (exit code 2).

    Example:
        >>> from karma.scores.read import load_score_table
        >>> load_score_table("nowhere.csv")
        Traceback (most recent call last):
        karma.errors.InputError: score table nowhere.csv does not exist: give a CSV file, 'paper' or 'paper_four_digit'
    """

    exit_code = 2


class InterruptedSweep(KarmaError):
    """A sweep was stopped: by the user (exit code 130, as a shell's), or by a signal (128 + its number)."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def show_line(message: object) -> str:
    """Return a message as one line: what cannot be printed made visible, names and lines of any length cut.

    Example:
        >>> show_line("no model 'a" + chr(10) + chr(27) + "[31mb'")
        "no model 'a\\\\n\\\\x1b[31mb'"
        >>> len(show_line("x" * 5000))
        123
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(message).strip())
    text = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: f"{word[0][:80]}...{word[0][-40:]}", text)
    return text if len(text) <= _LONGEST_LINE else f"{text[:700]} ... {text[-250:]}"


def quote(value: object, length: int = 80) -> str:
    """Return a value as an error names it: as Python writes it, of at most so many characters.

    Example:
        >>> quote({"a": 1}), quote("x" * 5000, 20)
        ("{'a': 1}", "'xxxxxxxxxxxxxxxx...")
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a value within itself
        text = f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= length else f"{text[: length - 3]}..."
