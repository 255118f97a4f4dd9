"""What `karma audit-labels` does: recorded judgments against the labels that a score table gives."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

import typer

from karma.commands.next_step import tell_next
from karma.commands.options import (
    LAST_SEED,
    Columns,
    Measure,
    Missing,
    Out,
    Weight,
    check_files,
    check_out,
    default,
    list_typed,
    load_scores,
    refuse_idle,
)
from karma.labels.layouts import LAYOUTS, load_judgments
from karma.labels.recorded import audit_recorded, describe_recorded, save_recorded


def audit_labels(
    context: typer.Context,
    judgments: Annotated[str, typer.Option(help=f"A folder, file or Hub id: {'; '.join(LAYOUTS.values())}.")],
    scores: Annotated[str, typer.Option(help="Score table (CSV), `paper` or `paper_four_digit`.")],
    out: Out,
    columns: Columns = None,
    missing: Missing = default("scores", "missing"),
    measure: Measure = None,
    weight: Weight = None,
    tie: Annotated[
        float, typer.Option(min=0, help="Judged values this close are equal, in the source's unit.")
    ] = default("labels", "tie"),
    prefer: Annotated[str | None, typer.Option(help="Precision to take where a model has several rows.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of sets of models, draws and the bootstrap.")] = 0,
    tau: Annotated[float, typer.Option(min=-1, max=1, help="Least kinship of an eligible pair, cosine.")] = default(
        "kinship", "tau"
    ),
    annotator: Annotated[str | None, typer.Option(help="AlpacaEval: whose annotations, a folder's name.")] = None,
    annotation: Annotated[str, typer.Option(help="UltraFeedback: overall_score, fine-grained_score, ...")] = default(
        "annotation", "field"
    ),
    annotations: Annotated[
        Path | None, typer.Option(help="rlaif: a parquet table of row_id, response_id, score by another annotator.")
    ] = None,
    affinity: Annotated[
        bool,
        typer.Option("--affinity", help="Pairing by the texts beside pairing by kinship: affinity.csv."),
    ] = False,
    beside: Annotated[
        str | None, typer.Option(help="Votes: another judge's judgments of the same responses, e.g. GPT-4's.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="The models' answers to shared items (JSON lines), for kinship by behaviour."),
    ] = None,
) -> None:
    """How often labels are right: `karma audit-labels --judgments alpaca_eval/results --scores my.csv --out labels`."""
    options = locals()
    options["typed"] = list_typed(options.pop("context"))
    for line in run_audit_labels(**options):
        typer.echo(line)


def run_audit_labels(
    judgments: str, scores: str, out: Path, columns: str | None, tie: float, prefer: str | None, seed: int, tau: float,
    annotator: str | None, annotation: str, annotations: Path | None, beside: str | None, missing: str = "refuse",
    measure: str | None = None, weight: list[str] | None = None, affinity: bool = False, answers: Path | None = None,
    typed: Collection[str] = (),
) -> Iterator[str]:  # fmt: skip
    """Load, audit, draw and write; yield what to tell the user: the `karma audit-labels` command.

    Args:
        judgments, scores, ...: the options of `karma audit-labels`, under their own names.
        typed: those that were typed: one that means nothing here is refused.
    """
    from karma.figures.labels import save_recorded_figures
    from karma.figures.style import set_style

    check_out(out, judgments, beside)
    check_files({"--answers": answers, "--annotations": annotations})
    table = load_scores(scores, columns, missing, measure, weight)
    found = load_judgments(judgments, annotator=annotator, field=annotation, annotations=annotations, texts=affinity)
    other = None if beside is None else load_judgments(beside, annotator=annotator, field=annotation)
    read = [(name, one) for name, one in ((judgments, found), (beside, other)) if name is not None and one is not None]
    if not any(one.layout == "ultrafeedback" for _, one in read):
        refuse_idle(typed, ("annotation",), "without a pool's own annotations (UltraFeedback's rows)")
    if not any(one.layout == "alpaca_eval" and Path(name).is_dir() for name, one in read):
        refuse_idle(typed, ("annotator",), "without AlpacaEval's results folder")
    if found.values is None or found.labelled:
        refuse_idle(typed, ("answers",), "without judgments of single responses (these are of pairs)")
    audit = audit_recorded(found, table, tie=tie, prefer=prefer, tau=tau, seed=seed, beside=other, answers=answers)
    save_recorded(audit, out)
    set_style()
    save_recorded_figures(audit, out / "figures")
    yield from describe_recorded(audit)
    yield f"written to {out}: label_accuracy.csv, strategies.csv and more, figures/"
    command: tuple[str, ...] = (
        "karma",
        "binarize",
        "--pool",
        "POOL",
        "--strategy",
        "k_sim",
        "--scores",
        scores,
        "--out",
        "PAIRS",
    )
    if (calibration := out / "calibration.json").is_file():
        command += ("--calibration", str(calibration))
    yield tell_next(*command, why="pairs by this table, each with the confidence of its label")
