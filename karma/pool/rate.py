"""The stage `annotation`: a study's pool, every response rated by its judge.

A judge that is loaded here gives an expectation over its next token (`karma.models.judge`). One behind an API tells no
probabilities: it writes a digit, which is read. Either way what was rated is kept in the study's `answers/` as it
comes, so that a killed job asks only for the rest. Decision: a reply without a rating is no rating: that response is
left out of annotations.parquet and counted, and its pair is dropped as unannotated.
Limit: written digits tie often, and rlaif makes no pair of equal ones.
"""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.api.instance import Instance

from karma.errors import KarmaError
from karma.evaluation.answer_text import strip_thinking
from karma.files.writing import atomic_path, save_json
from karma.models.ask import CachedModel
from karma.models.judge import annotate, write_question
from karma.models.load import Specs
from karma.models.shards import Share
from karma.pool.responses import list_responses
from karma.study.sections import Compute

REPLY_TOKENS = 64  # new tokens of a judge that writes; it is asked for one


def annotate_by_asking(
    rows: list[dict[str, str]], models: Specs, judge: str, compute: Compute, batch_size: int,
    cache: Path | None = None, share: Share | None = None,
) -> tuple[pa.Table, dict[str, Any]]:  # fmt: skip
    """Rate each response with a judge behind an API, by the digit that it writes.

    Args:
        rows, models, judge, compute, cache, share: as `karma.models.judge.annotate`. batch_size: requests at a time.

    Returns:
        As there, without the responses whose rating cannot be read: they are counted in the cost as `unread`.

    Raises:
        KarmaError: no reply holds a rating.
    """
    asked = CachedModel(models, judge, compute, batch_size, cache, share)
    how = {"until": [], "max_gen_toks": REPLY_TOKENS, "do_sample": False}
    texts = [asked.apply_chat_template([{"role": "user", "content": write_question(row)}]) for row in rows]
    requests = [Instance("generate_until", {}, (text, how), i, metadata=("rate", i, 1)) for i, text in enumerate(texts)]
    scores = [read_rating(reply) for reply in asked.generate_until(requests)]
    read = [(row, score) for row, score in zip(rows, scores, strict=True) if score is not None]
    if rows and not read and not share:
        raise KarmaError(f"{judge}: none of its {len(rows)} replies holds a rating from 1 to 5: take another judge")
    columns = {k: pa.array([row[k] for row, _ in read], pa.string()) for k in ("row_id", "response_id", "model")}
    table = pa.table({**columns, "score": pa.array([score for _, score in read], pa.float64())})
    spent = asked.cost
    cost = {"annotator": judge, "calls": spent.calls, "prompt_tokens": spent.prompt_tokens,
            "new_tokens": spent.new_tokens, "device": asked.model_device, "seconds": spent.seconds,
            "unread": len(rows) - len(read)}  # fmt: skip
    return table, cost


def read_rating(reply: str) -> float | None:
    """Return the first rating that a reply states, None where it states none.

    Example:
        >>> [read_rating(text) for text in ("4", "Rating: 3/5", "<think>1?</think> **5**", "10 out of 10", "Good.")]
        [4.0, 3.0, 5.0, None, None]
    """
    found = re.search(r"(?<![\d.])[1-5](?![\d.]*\d)", strip_thinking(reply))
    return float(found[0]) if found else None


def run(job: Any) -> None:
    """Annotate an experiment's pool with its judge."""
    table, cost = _rate_pool(job)
    with atomic_path(job.folder / "annotations.parquet") as temporary:
        pq.write_table(table, temporary)
    save_json(cost, job.folder / "annotation_cost.json")


def answer_share(job: Any, number: int, n: int) -> None:
    """Rate share `number` (from 0) of `n` of the pool's responses, into `answers/`."""
    _rate_pool(job, Share(number, n))


def _rate_pool(job: Any, share: Share | None = None) -> tuple[pa.Table, dict[str, Any]]:
    todo = list_responses(job.experiment.outputs / "pool" / "pool.parquet")
    settings, compute, cache = job.settings.annotation, job.settings.compute, job.experiment.outputs / "answers"
    rate = annotate_by_asking if job.models[settings.judge].get("api") else annotate
    return rate(todo, job.models, settings.judge, compute, settings.batch_size, cache, share)
