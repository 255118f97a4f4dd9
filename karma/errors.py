"""The two ways a command can end badly, and their exit codes.

A message is one line: what was wrong, where, and what to do about it. `karma.cli` prints it without a traceback.
"""


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
