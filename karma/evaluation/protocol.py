"""The paper's protocol: one prompt for every multiple-choice benchmark, one way to read the answer.

The prompt is our reconstruction of Figure 8 (after MMLU-Pro and FLAN), zero-shot. The answer is read in MMLU-Pro's
way, from the most to the least explicit form; what cannot be read is wrong, and counted (MMLU-Pro's script guesses).

Paper: section 4.1 and Appendix B.
"""

import re

LETTERS = "ABCDEFGHIJ"

CHOICE_PROMPT = """The following is a multiple choice question about {subject}. \
Answer by ending with: the answer is (X).

Question: {question}
Options:
{options}"""

_STATED = (  # most explicit first; the last match of a form counts, since a model may correct itself
    r"answer\s*(?:is|:)\s*:?\s*\**\(?\**\$?\\?(?:boxed\{{|text\{{)*([{letters}])\b",
    r"\\boxed\{{\s*(?:\\text\{{)?\(?([{letters}])\b",
    r"(?:option|choice)\s*\(?\**([{letters}])\b",
)
_SHOWN = (  # no statement, only a letter: read if it is the only one, for a model may just list the options
    r"^\W*([{letters}])\W*$",
    r"^\W*([{letters}])[\.\):]",
    r"\(([{letters}])\)",
)


def write_choice_prompt(item: dict) -> str:
    """Write a choice item as the model sees it (one user turn).

    Example:
        >>> item = {"subject": "science", "question": "What melts?", "options": ["ice", "fire"]}
        >>> print(write_choice_prompt(item).splitlines()[-1])
        B. fire
    """
    options = "\n".join(f"{LETTERS[k]}. {option}" for k, option in enumerate(item["options"]))
    return CHOICE_PROMPT.format(subject=item["subject"], question=item["question"], options=options)


def strip_thinking(answer: str) -> str:
    """Remove a thinking block; one that never ends leaves no answer.

    Example:
        >>> strip_thinking("<think>A or B?</think> The answer is (B).")
        'The answer is (B).'
    """
    answer = re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL)
    return answer.split("<think>")[0].rpartition("</think>")[2].strip()


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
    answer, letters = strip_thinking(answer), LETTERS[: len(options)]
    for form in (*_STATED, *_SHOWN):
        found = re.findall(form.format(letters=letters), answer, flags=re.IGNORECASE | re.MULTILINE)
        if found and (form in _STATED or len({letter.upper() for letter in found}) == 1):
            return found[-1].upper()
    stated = [k for k, option in enumerate(options) if option and answer.rstrip(".").lower() == option.rstrip(".").lower()]
    return letters[stated[0]] if len(stated) == 1 else None


def score_choice(item: dict, results: list[str]) -> dict[str, float]:
    """Score one answer, as lm-evaluation-harness's `process_results`."""
    return {"correct": float(extract_choice(results[0], item["options"]) == LETTERS[item["answer"]])}
