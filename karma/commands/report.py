"""What `karma report` does: tables, figures and report.html of a study, of the paper's numbers, or of two compared."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    study: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="An experiment, or `paper`: the published study.")],
    other: Annotated[str | None, typer.Argument(help="A second experiment: the differences between the two.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: outputs/<name>.")] = None,
    price: Annotated[float | None, typer.Option(help="Price of a million tokens, for the ledger of cost.")] = None,
) -> None:
    """Write tables, figures and report.html of a study, of the paper's own numbers, or of two studies compared."""
    from karma.results.page import write_report

    typer.echo(f"written: {write_report(study, other, out, price)}")
