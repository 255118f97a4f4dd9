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
    answer = re.sub(rf"<({_THINKING})>.*?</\1>", "", answer, flags=re.DOTALL | re.IGNORECASE)
    answer = re.split(rf"<{_THINKING}>", answer, flags=re.IGNORECASE)[0]
    return re.split(rf"</{_THINKING}>", answer, flags=re.IGNORECASE)[-1].strip()


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
