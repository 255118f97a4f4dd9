"""What a study's settings ask of the pool's texts: which are left out, and what the strategy affinity compares.

Paper: ours.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from karma.evaluation.prompts import load_prompts
from karma.labels.audit import compute_truth
from karma.pool.annotations import AnnotationTable, load_annotations
from karma.pool.benchmarks import load_benchmark_texts
from karma.pool.pool import ResponsePool


def find_text_rules(settings: Any, pool: ResponsePool, root: Path) -> dict[str, Any]:
    """Return it as fields of `karma.pairs.rules.Rules`.

    Args:
        settings: those of stage 03. pool: the study's. root: for relative paths.

    Raises:
        InputError: a file that is no table of scores, prompts that no program can check, or items that cannot be read.
    """
    asked, folder = settings.pool.decontaminate, settings.benchmarks.folder
    return {
        "decontaminate": load_benchmark_texts(asked.benchmarks, folder, root, ngram=asked.ngram, share=asked.share),
        "near_duplicates": settings.pool.near_duplicates,
        "quality": _load_quality(settings, pool, root),
        "quality_weight": settings.affinity.weight,
    }


def _load_quality(settings: Any, pool: ResponsePool, root: Path) -> AnnotationTable | str:
    named: str = settings.affinity.quality
    if named.endswith(".parquet"):
        return load_annotations(root / named)
    return named if named != "truth" else load_truth(root / settings.pool.instructions, pool)


def load_truth(instructions: Path, pool: ResponsePool) -> AnnotationTable:
    """Return the share of its prompt's instructions that each response of the pool follows, as programs check them.

    Args:
        instructions: file of the pool's verifiable prompts. pool: the study's.
    """
    truth = compute_truth(load_prompts(instructions, verifiable=True), pool)
    columns = {name: truth[name].tolist() for name in ("row_id", "response_id")}
    table = load_annotations(pa.table({**columns, "score": pa.array(truth["truth"], pa.float64())}))
    return AnnotationTable("share of instructions followed", table.keys, table.scores)
