"""The paper's protocol: one prompt for every multiple-choice benchmark, and what a right answer is.

The prompt is our reconstruction of Figure 8 (after MMLU-Pro and FLAN), zero-shot. `karma.evaluation.extraction` reads
the answer. Two variants compare log-probabilities; they never fail to give an answer, but say what a model ranks
first, not what it says, and the paper asks the model to say it. `logprob` compares the same statement with each
option's letter. `cloze` shows no options and no chat format, and compares each option's text as what goes on from the
question, per character: models below about 1B parameters, which guess at letters, mostly do not guess at texts.
Limit: a question that means nothing without its options ("Which of these ...") is asked all the same by `cloze`.

Paper: section 4.1 and Appendix B; cloze: OLMES (Gu et al. 2024, arXiv 2406.08446), lm-evaluation-harness's `acc_norm`.
"""

from karma.evaluation.extraction import LETTERS, extract_choice

CHOICE_PROMPT = """The following is a multiple choice question about {subject}. \
Answer by ending with: the answer is (X).

Question: {question}
Options:
{options}"""

STATEMENT = "The answer is ({letter}"  # options differ in their last letter only, so one forward pass serves them all

CLOZE_CONTEXT = "Question: {question}\nAnswer:"
CLOZE_OPTION = " {option}"  # the space is part of what is scored, not of its length
ENDING_QUESTION = "\nWhich ending fits best?"  # what an item of HellaSwag asks after its context


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


def write_cloze_context(item: dict) -> str:
    """Write what an option goes on from, without chat format.

    Example:
        >>> write_cloze_context({"question": "What melts?"})
        'Question: What melts?\\nAnswer:'
    """
    return CLOZE_CONTEXT.format(question=item["question"])


def write_bare_context(item: dict) -> str:
    """Write what an ending of HellaSwag goes on from: the context alone.

    Example:
        >>> write_bare_context({"question": "A man sits on a roof. He\\nWhich ending fits best?"})
        'A man sits on a roof. He'
    """
    return item["question"].removesuffix(ENDING_QUESTION)


def normalize_logps(item: dict, logps: list[float]) -> list[float]:
    """Divide each option's log-probability (nats) by its number of characters, without the space before it.

    Example:
        >>> normalize_logps({"options": ["ice", "fire"]}, [-6.0, -4.0])
        [-2.0, -1.0]
    """
    return [logp / max(len(option), 1) for logp, option in zip(logps, item["options"], strict=True)]


def score_cloze(item: dict, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Score one item by the log-probabilities (nats) of its options per character, as `process_results`.

    Example:
        >>> score_cloze({"options": ["ice", "fire"], "answer": 0}, [(-6.0, False), (-4.0, True)])
        {'correct': 0.0}
    """
    per_character = normalize_logps(item, [logp for logp, _ in results])
    return {"correct": float(per_character.index(max(per_character)) == item["answer"])}
