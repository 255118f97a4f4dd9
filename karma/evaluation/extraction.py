r"""Read the letter out of a written answer.

In MMLU-Pro's way. A statement ("the answer is (X)", else "X is correct", else "I choose X") counts before an option's
own text, and that before a letter that is only shown ("B. granite", "the closest is (G)"); letters only shown must
agree. Of several statements the first counts, unless the model takes it back ("no wait, the answer is ..."): so does
the official reading. Of a list ("(A) and (C)") the first letter counts, again as there; "A or B" decides nothing. A
letter must stand for an option: not inside a word, formula or function call, no article, pronoun or numeral, not after
"vitamin" or "statement"; and it must be meant: not after "if", not in "(H), but this is not accurate".

Decision: what is no part of the answer, and dress, come off before anything is looked for (`answer_text`), so that the
forms stay readable. MMLU-Pro's own script guesses at random where it reads nothing and takes the last letter standing
anywhere, also an article "A": its scores are higher. Limit: English, and names of one letter ("the answer is B cells").

Paper: section 4.1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from karma.evaluation.answer_text import cut_at_next_question, shorten_runs, strip_dress, strip_thinking

LETTERS = "ABCDEFGHIJ"

_NOUN = r"(?:(?:the|an?) )?(?:(?:correct|right|best|final) )?(?:(?:option|choice|letter|answer)\b[ :]*)?"
_IS = r"(?:\b(?:is|was|would be|should be|must be)\b\s*:?|[:=]| [-–—] )"
_ADVERB = r"(?:therefore |thus |likely |probably |definitely |clearly |most likely |indeed )?"
_X = r"\(?([A-Ja-j])(?![\w'’+])"  # what an option's letter may look like; `_is_option` judges
_GAP = r"(?:(?! is |\b(?-i:[A-J])\b)[^.\n()]){0,60}?"  # within a sentence, without another letter or verdict
_GOOD = r"(?:correct|right|best|(?:correct |right |best |closest )?(?:answer|choice|option|one))"
_END = r"(?=\W*$|\W*\n| ?[.,;:!?)]| [-–—] | (?:because|since|as|for|and|but|so)\b)"
_CHOOSE = r"(?:choose|chose|pick|select|go with|going with|opt for|choice is|option is|choice:|option:)"
_STATED = (
    rf"\banswer\b[^.\n:=]{{0,60}}?{_IS}\s*(?:not \(?[A-J]\)?[ ,]*but )?{_ADVERB}{_NOUN}{_X}",
    rf"{_X}\)?[.:]?{_GAP} is (?:the |most |definitely |indeed )*(?:{_GOOD}{_END}|true\b)",
    rf"(?<!\bto )\b{_CHOOSE} ?{_NOUN}{_X}\)?{_END}",
)
_ALONE = r"(?:\A|\n\s*\n|:\s*\n|[Aa]nswer\s*\n)[\s>(-]*([A-J])[\s).:]*$|\A\W*([a-j])\W*\Z"
_OPENING = r"\A\W*([A-J])\)?[.):](?! ?[A-Z]\.|\s+[a-z]+ (?:is|are|was|were|has|have|can)\b)"  # but not "E. coli is"
_BE = r"\b(?:is|are|was|which|(?<!may )(?<!might )(?<!could )(?<!cannot )(?<!not )be)\b"
_NAMED = rf"{_BE}[\s:]*{_NOUN}\(([A-Ja-j])\)|\b(?:is|be)\s*:\s*([A-J])[.)]\s"
_SO = r"(?i:so|thus|therefore|hence|think|believe|say|option|choice|answer|(?:it|this|that) (?:is|\w+ be))"
_CLOSING = rf"(?:(?<!\))[,:;→]|\b{_SO})\s+\(?([A-J]|(?<=\()[a-j])(?!\w)[^\w?:]*\Z"
_SHOWN = (_ALONE, _OPENING, _NAMED, _CLOSING)
_LISTED = r"^[\s(]*([A-J])(?:[.):]\s|[.)\s]*$)|(?<=[.):] )([A-J])[.)]|\(([A-J])\)"  # one option among others

_THING = (
    r"\b(?:statement|premise|claim|equation|eq\.|case|part|step|figure|point|angle|section|condition|property|item|"
    r"assumption|hypothesis|table|line|row|column|reaction|type|class|group|clause|article|vitamin|hepatitis)s? \Z"
)
_VERB = r"(?:is|are|was|can|does|has|would|think|believe|am)\b"
_LINKED = rf"\)?(\s*,? ?(?:and|or|&|/)|\s*,)\s*{_NOUN}{_X}\)?(?! {_VERB})"
_CLAUSE = r"\s+(?:because|since|as|for|and|or|but|so|is|was|which|due|with|in|on|if|when|according|based|given|by)\b"
_OPENERS = {
    "option", "choice", "answer", "letter", "that", "so", "thus", "therefore", "hence", "only", "and", "but", "think",
    "believe", "because", "since", "then",
}  # fmt: skip

_KNOW = r"(?:think|believe|say|sure|certain|clear|know)"
_FILLER = rf"(?:{_KNOW}|mean|true|that|if|whether|the|my|to|be|correct|right|best|final|actual|option|choice)"
_UNSAID = rf"\b(?:not|n't|cannot|nor|if|whether|unless|suppose|assum(?:e|ing)|thought)\s(?:{_FILLER}\s)*\Z"
_DOUBTFUL = rf"(?:\b(?:if|whether|unless|suppos\w+|assum\w+)|(?:\bnot|n't) {_KNOW})\b[^.,;:\n]*\Z"
_FALSE = r"(?:wrong|incorrect|inaccurate|false)\b"
_TRUE = r"(?:(?:accurate|correct|right|exact|precise|true|match|fit)\b|an? (?:option|answer|match))"
_DENIED = rf"\A\)?(?:[^.\n]{{0,20}} (?:is|are|was) (?:not\b|{_FALSE})|\s*\?)"
_BUT = r"(?:but|although|though|however),? (?:even )?(?:this|it|that|none)(?: (?:answer|option|one))?"
_DOUBTED = (
    rf"\A(?:(?:(?!\b(?:because|since|as)\b)[^.\n]){{0,60}}?[.,;]? {_BUT}|\)?,? which)[^.,;\n]{{0,20}}?"
    rf"(?:(?:\bnot|n['’]t) (?:\w+ ){{0,3}}?{_TRUE}|\b(?:is|was|seems) {_FALSE}(?! to\b))"
)
_TAKEN_BACK = (
    r"\b(?:wait|actually|correction|mistaken?|sorry|apologi[sz]e|i was wrong|second thoughts?|scratch that|"
    r"let me re\w+|re-?(?:check|evaluat|consider|examin)\w*)\b"
)


@dataclass(frozen=True)
class Reading:
    """What one answer says.

    Attributes:
        first: the letter, None where there is none. last: the letter if the last statement counted, for comparison.
        runs_on: whether the answer goes on into another question. lists: whether it names several letters as right.
    """

    first: str | None
    last: str | None
    runs_on: bool = False
    lists: bool = False


def extract_choice(answer: str, options: list[str]) -> str | None:
    """Read the letter of an answer, or None; letters beyond the options are not read.

    Example:
        >>> extract_choice("So the answer is **(b)**.", ["ice", "fire"])
        'B'
        >>> extract_choice("I cannot tell.", ["ice", "fire"]) is None
        True
    """
    return read_answer(answer, options).first


def read_answer(answer: str, options: list[str]) -> Reading:
    """Read an answer by its first and by its last statement.

    Args:
        answer: what the model wrote.
        options: the item's options.

    Example:
        >>> text = "The answer is (A). Hence the answer is (B). Question: Why? The answer is (C)."
        >>> read_answer(text, ["ice", "fire", "mud"])
        Reading(first='A', last='B', runs_on=True, lists=False)
    """
    said = strip_thinking(shorten_runs(answer))
    whole = cut_at_next_question(said)
    text, runs_on = strip_dress(whole), whole != said
    text = re.sub(r"^\s*A:\s*(?=\S)", "Answer: ", text)  # "Q: ... A: ..." is a habit of base models
    for form in _STATED:
        found = _find(form, text, options, re.IGNORECASE)
        places = [at for start, at in found if _is_said(text, start, at, form)]
        if places:
            ends = [*places[1:], places[-1]]  # nothing takes the last one back
            standing = [at for at, end in zip(places, ends, strict=True) if not _matches(_TAKEN_BACK, text[at:end])]
            first, last = _settle(text, standing[0], options), _settle(text, places[-1], options)
            return Reading(first, last, runs_on, any(_list_more(text, at, options) for at in places))
    letter = _read_text(text, options) or _read_shown(text, options)
    return Reading(letter, letter, runs_on)


def _matches(pattern: str, text: str) -> bool:
    return bool(re.search(pattern, text, re.IGNORECASE))


def _find(form: str, text: str, options: list[str], flags: int) -> Iterator[tuple[int, int]]:
    """Yield where a form starts and where its letter stands."""
    for match in re.finditer(form, text, flags):
        at = match.start(match.lastindex or 0)
        if _is_option(text, at, options):
            yield match.start(), at


def _is_option(text: str, at: int, options: list[str]) -> bool:
    """Tell whether the letter at this place may stand for an option."""
    bracketed = text[:at].endswith("(")
    before, rest = text[max(0, at - 40) : at - bracketed], text[at + 1 : at + 150]
    if (
        re.search(r"(?:[\w\\^{}_)'’]|\w-)\Z", before)
        or re.match(r"[\w'’+^{(/]|\)?-\w", rest)
        or _matches(_THING, before)
    ):
        return False
    if text[at] in "Ii" and re.match(r"\)?[,/&\s]+(?:and |or )?\(?(?:i{2,3}|iv|v)\b", rest, re.IGNORECASE):
        return False  # a roman numeral
    if bracketed or re.match(r"\s*[=^*+<>≤≥∈~\\|×·→]|\s*[-–−] ?[A-J]\b", rest):
        return bracketed
    if text[at] not in "AaIi" or not re.match(r"\s+[a-z]", rest) or re.match(_CLAUSE, rest):
        return True
    return text[at] == "A" and _plain(rest).startswith(_plain(options[0])[:20])  # else an article or a pronoun


def _is_said(text: str, start: int, at: int, form: str) -> bool:
    """Tell whether a statement is made: not after "if", not denied; bare, the X of "X is correct" opens a clause."""
    bare = not text[:at].endswith("(")
    if form == _STATED[1] and bare:
        before = re.search(r"(?:^|[.,;:!?\n—–(]\s*|\b(\w+) )$", text[max(0, at - 30) : at])
        if not before or (before[1] and before[1].lower() not in _OPENERS):
            return False
        if re.match(rf"{_GAP} is true", text[at + 1 :]) and (before[1] or "").lower() not in ("option", "choice"):
            return False  # of variables in logic
    if form != _STATED[0] and bare and text[at].islower():
        return False  # a variable
    unsaid = _matches(_UNSAID, text[max(0, start - 60) : start])
    return not unsaid and not _matches(_DOUBTED, text[at + 1 : at + 150])


def _list_more(text: str, at: int, options: list[str]) -> list[str]:
    """Return what links the letters that follow a stated one ("and", "or", ","), one each."""
    links = []
    while more := re.match(_LINKED, text[at + 1 :], re.IGNORECASE):
        one, at = text[at], at + 1 + more.start(2)
        if text[at] == one or text[at].upper() not in LETTERS[: len(options)] or not _is_option(text, at, options):
            break
        links.append(more[1].strip(" ,"))
    return links


def _read_shown(text: str, options: list[str]) -> str | None:
    for form in _SHOWN:
        found = _find(form, text, options, re.MULTILINE)
        places = [at for start, at in found if not _is_denied(text, start, at)]
        seen = {text[at].upper() for at in places}
        if seen and form in (_ALONE, _OPENING) and min(places) < 5:
            seen |= {text[at] for _, at in _find(_LISTED, text, options, re.MULTILINE)}
        if seen:
            return seen.pop() if len(seen) == 1 and seen <= set(LETTERS[: len(options)]) else None
    return None


def _is_denied(text: str, start: int, at: int) -> bool:
    before, rest = text[max(0, start - 80) : start], text[at + 1 : at + 150]
    return _matches(_DOUBTFUL, before) or _matches(_DENIED, rest) or _matches(_DOUBTED, rest)


def _settle(text: str, at: int, options: list[str]) -> str | None:
    undecided = {"or", "/"} & set(_list_more(text, at, options))
    letter = text[at].upper()
    return letter if letter in LETTERS[: len(options)] and not undecided else None


def _read_text(text: str, options: list[str]) -> str | None:
    """Return the letter of the one option whose text the answer, or its statement "the answer is ...", consists of."""
    stated = re.findall(rf"\banswer\b[^.\n:=]{{0,60}}?{_IS}\s*{_ADVERB}([^\n]+)", text, re.IGNORECASE)
    wanted = {_plain(part) for part in (text, *stated)}
    found = {
        letter
        for letter, option in zip(LETTERS, map(_plain, options), strict=False)
        if option and wanted & {option, *(f"{letter.lower()}{mark} {option}" for mark in ").:")}
    }
    return found.pop() if len(found) == 1 else None


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", strip_dress(text)).strip(" .()").lower()
