"""The paper's protocol: one prompt for every multiple-choice benchmark, and what a right answer is.

The prompt is our reconstruction of Figure 8 (after MMLU-Pro and FLAN), zero-shot. `karma.evaluation.extraction` reads
the answer. The log-probability variant compares how likely the same statement is with each option's letter: it never
fails to give one, but says what a model ranks first, not what it says, and the paper asks the model to say it.

Paper: section 4.1 and Appendix B.
"""

from karma.evaluation.extraction import LETTERS, extract_choice

CHOICE_PROMPT = """The following is a multiple choice question about {subject}. \
Answer by ending with: the answer is (X).

Question: {question}
Options:
{options}"""

STATEMENT = "The answer is ({letter}"  # options differ in their last letter only, so one forward pass serves them all


def write_choice_prompt(item: dict) -> str:
    """Write a choice item as the model sees it (one user turn).

    Example:
        >>> item = {"subject": "science", "question": "What melts?", "options": ["ice", "fire"]}
        >>> print(write_choice_prompt(item).splitlines()[-1])
        B. fire
    """
    options = "\n".join(f"{LETTERS[k]}. {option}" for k, option in enumerate(item["options"]))
    return CHOICE_PROMPT.format(subject=item["subject"], question=item["question"], options=options)


def write_statements(item: dict) -> list[str]:
    """Write what each option's log-probability is taken of.

    Example:
        >>> write_statements({"options": ["ice", "fire"]})
        ['The answer is (A', 'The answer is (B']
    """
    return [STATEMENT.format(letter=letter) for letter in LETTERS[: len(item["options"])]]


def score_choice(item: dict, results: list[str]) -> dict[str, float]:
    """Score one answer, as lm-evaluation-harness's `process_results`."""
    return {"correct": float(extract_choice(results[0], item["options"]) == LETTERS[item["answer"]])}


def score_logprobs(item: dict, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Score one item by the log-probabilities (nats) of its options' statements, as `process_results`.

    Example:
        >>> score_logprobs({"answer": 1}, [(-3.0, False), (-1.0, True)])
        {'correct': 1.0}
    """
    logps = [logp for logp, _ in results]
    return {"correct": float(logps.index(max(logps)) == item["answer"])}
