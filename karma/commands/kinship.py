"""What `karma kinship` does: load a table, analyse it, and say what was found."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from karma.commands.next_step import tell_next
from karma.commands.options import (
    LAST_SEED,
    Columns,
    Measure,
    Missing,
    Out,
    Weight,
    check_out,
    default,
    load_scores,
    replace_options,
)
from karma.kinship.clusters import check_cut
from karma.kinship.similarity import check_tau
from karma.kinship.study import KinshipStudy, build_study, save_study, summarize
from karma.scores.read import load_score_table, merge_score_tables
from karma.scores.table import ScoreTable
from karma.study.experiment import load_base


def kinship(
    scores: Annotated[str, typer.Option(help="Score table (CSV), `paper` or `paper_four_digit`.")],
    out: Out,
    with_paper: Annotated[bool, typer.Option("--with-paper", help="Add the rows of the paper's Table 3.")] = False,
    columns: Columns = None,
    missing: Missing = default("scores", "missing"),
    measure: Measure = None,
    weight: Weight = None,
    tau: Annotated[float, typer.Option(help="Least kinship of an eligible pair, cosine.")] = default("kinship", "tau"),
    distance: Annotated[str, typer.Option(help="Of the dendrograms: rmsd or cosine.")] = default("kinship", "distance"),
    linkage: Annotated[str, typer.Option(help="average, complete, single or ward.")] = default("kinship", "linkage"),
    cut: Annotated[float, typer.Option(help="Distance below which branches are one cluster.")] = default(
        "kinship", "cut"
    ),
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of bootstrap and permutations.")] = 0,
) -> None:
    """Kinship of origin models: `karma kinship --scores my.csv --with-paper --out kinship`."""
    check_out(out, scores, columns, written=("scores.csv", "scores.columns.yaml"))
    mine = load_scores(scores, columns, missing, measure, weight)
    for line in run_kinship(mine, out, with_paper, tau=tau, distance=distance, linkage=linkage, cut=cut, seed=seed):
        typer.echo(line)


def run_kinship(mine: ScoreTable, out: Path, with_paper: bool, **settings: Any) -> Iterator[str]:
    """Analyse a table, and yield what to tell the user: the `karma kinship` command."""
    check_out(out)
    check_tau(settings["tau"])
    check_cut(settings["cut"])
    replace_options(load_base().kinship, distance=settings["distance"], linkage=settings["linkage"])
    table = merge_score_tables(mine, load_score_table("paper")) if with_paper else mine
    yield f"{len(table.scores):,} origin models x {table.scores.shape[1]} benchmarks from {table.source}"
    study = analyse(table, out, tell=_tell, **settings)
    yield from summarize(study)
    if with_paper:
        kin = study.nearest.loc[mine.scores.index].join(table.facts["family"], on="nearest_kin")
        for model, row in kin.iterrows():
            kinship = f"kinship {row['kinship']:.3f}, family {row['family']}"
            yield f"{model}: nearest kin {row['nearest_kin']} ({kinship})"
    yield f"written to {out}: s_pref.csv, nearest_kin.csv, strategies.json and more, figures/"
    command = ("karma", "binarize", "--pool", "POOL", "--strategy", "k_sim", "--scores", out / "scores.csv")
    yield tell_next(*command, "--out", "PAIRS", why="pairs the responses of a pool by it")


def _tell(said: str) -> None:
    """Say what is done next, beside what a pipe reads."""
    typer.echo(f"  {said} ...", err=True)


def analyse(
    table: ScoreTable, folder: str | Path, tell: Callable[[str], None] = lambda said: None, **settings: Any
) -> KinshipStudy:
    """Compute stage 2 and write its folder, tables and figures.

    Args:
        table: origin models x benchmarks.
        folder: written files replace those of an earlier run.
        tell: is told what is done next.
        **settings: of `build_study`.

    Returns:
        All that was found.

    Raises:
        InputError: a setting out of range.
    """
    from karma.figures.kinship_study import save_study_figures
    from karma.figures.style import set_style

    study = build_study(table, tell=tell, **settings)
    tell("tables and figures")
    save_study(study, folder)
    set_style()
    save_study_figures(study, Path(folder) / "figures")
    return study
