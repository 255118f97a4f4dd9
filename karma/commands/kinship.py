"""What `karma kinship` does: load a table, analyse it, and say what was found."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from karma.kinship.study import analyse, summarize
from karma.scores.read import load_score_table, merge_score_tables


def run_kinship(scores: str, out: Path, with_paper: bool, columns: str | None, **settings: Any) -> Iterator[str]:
    """Load a table, analyse it, and yield what to tell the user: the `karma kinship` command."""
    shipped = files("karma") / "data" / "column_maps" / f"{columns}.yaml"
    mine = load_score_table(scores, columns=str(shipped) if columns and shipped.is_file() else columns)
    table = merge_score_tables(mine, load_score_table("paper")) if with_paper else mine
    yield f"{len(table.scores):,} origin models x {table.scores.shape[1]} benchmarks from {table.source}"
    study = analyse(table, out, **settings)
    yield from summarize(study)
    if with_paper:
        kin = study.nearest.loc[mine.scores.index].join(table.facts["family"], on="nearest_kin")
        for model, row in kin.iterrows():
            kinship = f"kinship {row['kinship']:.3f}, family {row['family']}"
            yield f"{model}: nearest kin {row['nearest_kin']} ({kinship})"
    yield f"written to {out}"
