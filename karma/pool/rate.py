"""The stage `annotation`: a study's pool, every response rated by its judge (`karma.models.judge`)."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from karma.files import atomic_path, save_json
from karma.models.judge import annotate
from karma.pool.responses import compute_response_id, compute_row_id


def list_responses(pool: Path) -> list[dict[str, str]]:
    """Return the responses of a pool's parquet file, blank ones left out.

    Returns:
        Dictionaries with row_id, response_id, model, instruction, response; those of a prompt follow each other.
    """
    return [
        {"row_id": compute_row_id(row), "response_id": compute_response_id(c["model"], c["response"]),
         "model": c["model"], "instruction": row["instruction"], "response": c["response"]}
        for row in pq.read_table(pool).to_pylist() for c in row["completions"] if c["response"]
    ]  # fmt: skip


def run(job: Any) -> None:
    """Annotate an experiment's pool with its judge."""
    todo = list_responses(job.experiment.outputs / "pool" / "pool.parquet")
    settings = job.settings.annotation
    table, cost = annotate(todo, job.models, settings.judge, job.settings.compute, settings.batch_size)
    with atomic_path(job.folder / "annotations.parquet") as temporary:
        pq.write_table(table, temporary)
    save_json(cost, job.folder / "annotation_cost.json")
