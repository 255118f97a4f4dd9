r"""Read the letter out of a written answer.

In MMLU-Pro's way: "the answer is (X)" first, then less explicit forms; the last statement of a form counts, since a
model may correct itself. Decision: dress (markdown, LaTeX, brackets) comes off before anything is looked for, so that
the forms stay readable; an answer that names several letters as right has none. MMLU-Pro's own script guesses at
random where it reads nothing and takes the last letter standing anywhere, also an article "A": its scores are higher.
Limit: English.

Paper: section 4.1.
"""

import re
import unicodedata

LETTERS = "ABCDEFGHIJ"

_THINKING = r"(?:think|thinking|thought|reasoning)"
_LETTER = r"\(?([A-Ja-j])(?![\w'’+])\)?"
_NOUN = r"(?:(?:the|an?) )?(?:(?:correct|right|best|final) )?(?:(?:option|choice|letter|answer)\b[ :]*)?"
_IS = r"(?:\b(?:is|was|would be|should be|must be)\b|[:=]| [-–—] )"
_ADVERB = r"(?:therefore |thus |likely |probably |definitely |clearly |most likely |indeed )?"
_NOT = rf"(?:not {_LETTER}[ ,]*but )?".replace("([A-Ja-j])", "[A-Ja-j]")
_GAP = r"(?:(?! is |\b(?-i:[A-J])\b)[^.\n()]){0,60}?"  # within a sentence, without another letter or verdict
_STATED = (
    rf"\banswer\b[^.\n:=]{{0,60}}?{_IS}\s*{_NOT}{_ADVERB}{_NOUN}{_LETTER}",
    rf"{_LETTER}{_GAP} is (?:the |most |definitely |indeed )*(?:correct|right|best|true|answer)\b",
    rf"\b(?:choose|chose|pick|select|go with|going with|opt for|choice is|option is|choice:|option:) ?{_NOUN}{_LETTER}",
)
_SHOWN = (
    r"^\W*([A-Ja-j])(?=\W*$|\)?[.):]\s+(?!\([A-J]\)|[A-J][.):]))",  # alone on a line, or opening one
    r"\b(?:option|choice) \(?([A-Ja-j])\b",
    r"\(([A-Ja-j])\)",
)
_ALONE = r"(?<![\w'’])([A-J])(?![\w'’+])"
_SEVERAL = rf"\s*(?:,|,? ?(?:and|or)|&|/)\s*{_NOUN}{_LETTER}(?! (?:is|are|was|can|does|has|would|think|believe|am)\b)"


def strip_thinking(answer: str) -> str:
    """Remove a thinking block; one that never ends leaves no answer.

    Example:
        >>> strip_thinking("<think>A or B?</think> The answer is (B).")
        'The answer is (B).'
    """
    answer = re.sub(rf"<({_THINKING})>.*?</\1>", "", answer, flags=re.DOTALL | re.IGNORECASE)
    answer = re.split(rf"<{_THINKING}>", answer, flags=re.IGNORECASE)[0]
    return re.split(rf"</{_THINKING}>", answer, flags=re.IGNORECASE)[-1].strip()


def strip_dress(answer: str) -> str:
    r"""Take off markdown, LaTeX and odd brackets; \boxed{X} becomes "answer: X".

    Example:
        >>> strip_dress(r"So **B** is it: $\boxed{\text{B}}$, [B]")
        'So B is it: answer: B, (B)'
    """
    answer = unicodedata.normalize("NFKC", answer)
    answer = re.sub(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit)\{([^{}]*)\}", r"\1", answer)
    answer = re.sub(r"\\boxed\{([^{}]*)\}", r"answer: \1", answer)
    answer = re.sub(r"'([A-Ja-j])'", r"\1", answer)
    answer = re.sub(r"\\[()\[\]]|[*`$\"“”#]|(?<!\w)_+|_+(?!\w)|<[^<>\n]{1,20}>", "", answer)
    return answer.replace("[", "(").replace("]", ")").replace("{", "(").replace("}", ")")


def extract_choice(answer: str, options: list[str]) -> str | None:
    """Read the letter of an answer, or None.

    Args:
        answer: what the model wrote.
        options: the item's options; letters beyond them are not read.

    Example:
        >>> extract_choice("So the answer is **(b)**.", ["ice", "fire"])
        'B'
        >>> extract_choice("I cannot tell.", ["ice", "fire"]) is None
        True
    """
    text, letters = strip_dress(strip_thinking(answer)), LETTERS[: len(options)]
    text = re.sub(r"^\s*A:\s*(?=\S)", "Answer: ", text)  # "Q: ... A: ..." is a habit of base models
    for form in _STATED:
        found = [m for m in re.finditer(form, text, re.IGNORECASE) if not _is_word(m, text)]
        if found:
            return _settle(found[-1], text, letters)
    if (letter := _read_text(text, options)) is not None:
        return letter
    for form in _SHOWN:
        if seen := _find_letters(form, text):
            return seen.pop() if len(seen) == 1 and seen <= set(letters) else None
    return _read_last(text, letters)


def _find_letters(form: str, text: str) -> set[str]:
    found = re.finditer(form, text, re.MULTILINE)
    return {m[1].upper() for m in found if not _is_word(m, text) and not _is_denied(m, text)}


def _read_last(text: str, letters: str) -> str | None:
    """Return the letter that ends the answer ("So it must be C."), if no other one stands in it."""
    last = re.search(rf"(?<!not ){_ALONE}\W*$", text)
    return last[1] if last and _find_letters(_ALONE, text) == {last[1]} and last[1] in letters else None


def _is_word(match: re.Match, text: str) -> bool:
    """Tell whether the letter is the article "a" or the pronoun "I" of a sentence."""
    rest, before = text[match.end(1) :], text[: match.start(1)]
    if match[1].upper() not in ("A", "I") or before.endswith("(") or not re.match(r"\s+[a-z]", rest):
        return False
    if re.match(r"\s+(?:because|since|as|for|and|or|is|was|which|due|with)\b", rest):
        return False
    return match[1] != "A" or not before.strip() or before.rstrip(" ").endswith((".", "\n"))


def _is_denied(match: re.Match, text: str) -> bool:
    return bool(re.match(r"\)?[^.\n]{0,20} (?:is|are|was) (?:not|wrong|incorrect|false)\b", text[match.end(1) :]))


def _settle(match: re.Match, text: str, letters: str) -> str | None:
    letter = match[1].upper()
    more = re.match(_SEVERAL, text[match.end() :], re.IGNORECASE)
    several = (
        more and more[1].upper() in letters and more[1].upper() != letter and not _is_word(more, text[match.end() :])
    )
    return letter if letter in letters and not several else None


def _read_text(text: str, options: list[str]) -> str | None:
    """Return the letter of the one option whose text the answer, or its statement "the answer is ...", consists of."""
    stated = [
        text,
        *re.findall(rf"\banswer\b[^.\n:=]{{0,60}}?{_IS}\s*{_ADVERB}([^\n]+)", text, re.IGNORECASE),
    ]
    wanted = {_plain(part) for part in stated}
    found = [LETTERS[k] for k, option in enumerate(options) if _plain(option) and _plain(option) in wanted]
    return found[0] if len(found) == 1 else None


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", strip_dress(text)).strip(" .()").lower()
