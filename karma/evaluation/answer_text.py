r"""The text of a written answer that is read: thinking, later questions and dress taken off.

An answer ends where a new question or another turn begins: base models, and chat models off their format, go on with
the next item of a test, whose answer is not this one's. Decision: it is cut before it is read, and not only stopped at
generation, so that recorded answers are read alike. Limit: a restated question is told from a new one only where it
opens the answer, or follows a colon ("Let me restate it:").
"""

import re
import unicodedata

STOPS = ["\nQuestion:", "\n\nQ:"]  # where generation ends

_THINKING = r"(?:think|thinking|thought|reasoning)"
_NEXT = re.compile(
    r"(?<![:\s])[ *_`\"]{0,9}(?:\n\s*|(?<=[.!?)\]*`\"$]) +)[*#> ]{0,9}Question(?: ?\d{1,4})?[* ]{0,4}:"
    r"|(?<![:\s])[ \t]*\n\s*(?:\n[*#> ]{0,9}(?:Q ?\d*|User|Human)\*{0,2}:|Q ?\d*: (?=[^\n]*\?))"
    r"|(?<=\S)\s+The following (?:is|are) (?:a )?multiple choice"
    r"|<\|(?:im_start|start_header_id|user|endoftext)\|>|\[INST\]"
)  # fmt: skip


def strip_thinking(answer: str) -> str:
    """Remove a thinking block; one that never ends leaves no answer.

    Example:
        >>> strip_thinking("<think>A or B?</think> The answer is (B).")
        'The answer is (B).'
    """
    answer = _drop_blocks(answer)
    answer = re.split(rf"<{_THINKING}>", answer, flags=re.IGNORECASE)[0]
    return re.split(rf"</{_THINKING}>", answer, flags=re.IGNORECASE)[-1].strip()


def _drop_blocks(answer: str) -> str:
    """Remove what stands between an opening and its closing; each closing is looked for once, however many open."""
    parts, at, open_ended = [], 0, set()
    for opening in re.finditer(rf"<({_THINKING})>", answer, re.IGNORECASE):
        kind = opening[1].lower()
        if opening.start() < at or kind in open_ended:
            continue
        closing = re.compile(f"</{kind}>", re.IGNORECASE).search(answer, opening.end())
        if closing is None:
            open_ended.add(kind)
            continue
        parts.append(answer[at : opening.start()])
        at = closing.end()
    return "".join([*parts, answer[at:]])


def shorten_runs(answer: str) -> str:
    r"""Shorten white space and repeated signs beyond 40 characters: reading takes the square of a run's length.

    Example:
        >>> shorten_runs("So" + "\n" * 16_000 + "B." + "*" * 99) == "So\n\nB." + "*" * 40
        True
    """
    answer = re.sub(r"\s{41,}", lambda run: "\n" * min(run[0].count("\n"), 2) or " ", answer)
    return re.sub(r"([^\w\s])\1{40,}", lambda run: run[0][:40], answer)


def cut_at_next_question(answer: str) -> str:
    r"""Cut an answer where another question or turn begins; a question that opens it is the one that was asked.

    Example:
        >>> cut_at_next_question("The answer is (I).\n\nQuestion: What next?\nThe answer is (A).")
        'The answer is (I).'
    """
    found = _NEXT.search(answer)
    return answer[: found.start()].rstrip() if found and re.search(r"\w", answer[: found.start()]) else answer


def strip_dress(answer: str) -> str:
    r"""Take off markdown, LaTeX and odd brackets; \boxed{X} becomes "answer: X"; braces of a formula stay.

    Example:
        >>> strip_dress(r"So **B** is it: $\boxed{\text{B}}$, [B], $R_{H}$")
        'So B is it: answer: B, (B), R_{H}'
    """
    answer = unicodedata.normalize("NFKC", answer.replace("（", " ("))
    answer = re.sub(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit)\{([^{}]*)\}", r"\1", answer)
    answer = re.sub(r"\\boxed\{([^{}]*)\}", r"answer: \1", answer)
    answer = re.sub(r"'([A-Ja-j])'", r"\1", answer)
    answer = re.sub(r"\\[()\[\]]|[*`$\"“”#]|(?<!\w)_+(?![_{])|_+(?![\w{])|<[^<>\n]{1,20}>", "", answer)
    answer = re.sub(r"(?<![\w\\^}])\{([^{}]*)\}", r"(\1)", answer)
    answer = re.sub(r"\n\s*\n", "\n\n", answer.replace("[", "(").replace("]", ")"))
    return re.sub(r"\(\s*([A-Ja-j])\s*\)", r"(\1)", answer)
