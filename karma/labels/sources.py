"""Where a study's explicit margins come from, beside the pairs' own scores (`potential.explicit`).

Paper: ours; what margins are for is arXiv 2503.01864.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from karma.errors import InputError
from karma.labels.texts import load_truth
from karma.pool.annotations import AnnotationTable, load_annotations
from karma.pool.pool import ResponsePool
from karma.potential.objectives import Objectives, Source, gather_objectives, list_sources
from karma.scores.normalise import compute_normalized, compute_s_pref
from karma.scores.read import load_score_table
from karma.scores.table import ScoreTable

KINSHIP = "kinship"  # alone: S_pref on all benchmarks; kinship:CAPABILITY on those of one


def load_objectives(
    pairs: pa.Table, settings: Any, pool: ResponsePool, annotations: AnnotationTable, outputs: Path, root: Path
) -> Objectives:
    """Return what the study's explicit margins are made of.

    Args:
        pairs: the pair set's table. settings: those of stage 07. pool, annotations: the study's.
        outputs: the study's folder. root: for relative paths.

    Raises:
        InputError: a capability that no benchmark of the score table has, or a file that is no table of scores.
    """
    weights = list_sources(settings.potential.explicit)
    table = load_score_table(outputs / "kinship" / "scores.csv") if any(map(is_kinship, weights)) else None
    sources: dict[str, Source] = {}
    for name in weights:
        if name == "annotation":
            sources[name] = annotations
        elif name == "truth":
            sources[name] = load_truth(root / settings.pool.instructions, pool)
        elif table is not None and is_kinship(name):
            sources[name] = compute_capability(table, name)
        elif name.endswith(".parquet"):
            sources[name] = load_annotations(root / name)
    return gather_objectives(pairs, weights, settings.potential.combine, sources)


def is_kinship(source: str) -> bool:
    """Tell whether a source is S_pref, of all benchmarks or of one capability's."""
    return source.partition(":")[0] == KINSHIP


def compute_capability(table: ScoreTable, source: str) -> Mapping[str, float]:
    """Return S_pref of each origin model on all benchmarks, or on those of one capability.

    Args:
        table: origin models x benchmarks. source: "kinship", or "kinship:" and a capability.

    Raises:
        InputError: no benchmark of the table has that capability.

    Example:
        >>> table = load_score_table("paper")
        >>> {name: round(compute_capability(table, name)["GPT-4"], 3) for name in ("kinship", "kinship:knowledge")}
        {'kinship': 0.99, 'kinship:knowledge': 1.0}
    """
    capability = source.partition(":")[2]
    if not capability:
        return {str(name): float(value) for name, value in compute_s_pref(table).items()}
    known = table.benchmarks["capability"].reindex(table.scores.columns)
    own = [name for name in table.scores.columns if known[name] == capability]
    if not own:
        raise InputError(
            f"potential.explicit: no benchmark of the score table has the capability '{capability}': "
            f"choose from {', '.join(sorted(set(known)))}"
        )
    means = compute_normalized(table)[own].mean(axis=1).round(12)
    return {str(name): float(value) for name, value in means.items()}
