"""From scored answers to pairs: the best against the worst, and the books of what gave none.

Of equally good answers the one drawn first is taken, as of equally bad ones. A prompt with an empty answer, with
all-identical answers or with equal scores gives no pair; each is counted once, for the first reason that applies.
The pairs have the kit's own format (`karma.pairs`), with two columns more: `evolution`, the strategy that made the
prompt ("" for one of the file), and `parent`, the prompt it was made from.

Paper: arXiv 2503.01864 (chosen = argmax, rejected = argmin).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from karma.evaluation.prompts import Prompt
from karma.pairs.accounting import Accounting
from karma.pairs.pairs import PAIR_SCHEMA, PairSet
from karma.pool.responses import compute_response_id, compute_row_id

SCHEMA = PAIR_SCHEMA.append(pa.field("evolution", pa.string())).append(pa.field("parent", pa.string()))


def choose_pair(answers: Sequence[str], scores: Sequence[float]) -> tuple[int, int] | str:
    """Return the places of the best and the worst answer, or why there is no pair.

    Args:
        answers: N texts. scores: of each, higher is better.

    Returns:
        (chosen, rejected), or "empty_answer", "identical_answers", "equal_scores", "identical_responses".

    Example:
        >>> choose_pair(["a", "b", "c", "d", "e"], [0.5, 1.0, 0.0, 1.0, 0.0])
        (1, 2)
        >>> choose_pair(["a", " ", "c"], [0.5, 1.0, 0.0]), choose_pair(["a", "a"], [1.0, 1.0])
        ('empty_answer', 'identical_answers')
    """
    if not all(answer.strip() for answer in answers):
        return "empty_answer"
    if len(set(answers)) == 1:
        return "identical_answers"
    if min(scores) == max(scores):
        return "equal_scores"
    places = range(len(scores))
    best, worst = max(places, key=lambda k: scores[k]), min(places, key=lambda k: scores[k])
    return (best, worst) if answers[best] != answers[worst] else "identical_responses"  # a model's rounding


def build_self_play_pairs(
    prompts: list[Prompt], answers: list[list[str]], scores: list[list[float]], policy: str, source: str
) -> PairSet:
    """Pair each prompt's best answer with its worst.

    Args:
        prompts: n prompts. answers, scores: N of each prompt.
        policy: the model that wrote all answers; chosen and rejected model of every pair.
        source: where the prompts come from, for the column `source`.

    Returns:
        The pairs in the order of the prompts, with their books.
    """
    books, rows = Accounting("self_play", rows_in=len(prompts)), []
    for prompt, texts, own in zip(prompts, answers, scores, strict=True):
        n_empty = sum(not text.strip() for text in texts)
        books.responses_in += len(texts)
        books.responses_usable += len(texts) - n_empty
        books.responses_unused["empty_response"] += n_empty
        found = choose_pair(texts, own)
        if isinstance(found, str):
            books.dropped[found] += 1
        else:
            rows.append(_build_row(prompt, texts, own, found, policy, source))
    books.pairs_out, books.dropped = len(rows), +books.dropped
    books.check()
    return PairSet(pa.Table.from_pylist(rows, schema=SCHEMA), books)


def _build_row(
    prompt: Prompt, texts: list[str], scores: list[float], found: tuple[int, int], policy: str, source: str
) -> dict[str, Any]:
    played = {
        "source": source,
        "instruction": prompt.text,
        "completions": [{"model": policy, "response": t} for t in texts],
    }
    row: dict[str, Any] = {
        "row_id": compute_row_id(played), "source": source, "prompt": [{"role": "user", "content": prompt.text}],
        "kinship": None, "strategy": "self_play", "evolution": prompt.evolution, "parent": prompt.parent,
    }  # fmt: skip
    for side, place in zip(("chosen", "rejected"), found, strict=True):
        row |= {side: [{"role": "assistant", "content": texts[place]}], f"{side}_model": policy,
                f"{side}_score": scores[place], f"{side}_id": compute_response_id(policy, texts[place])}  # fmt: skip
    return row


def join_books(parts: Sequence[PairSet], strategy: str = "self_play") -> Accounting:
    """Add the books of several sets of pairs, so that every prompt asked is counted once."""
    whole = Accounting(strategy, dropped=Counter())
    for part in parts:
        whole.add(part.accounting)
    whole.check()
    return whole
