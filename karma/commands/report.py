"""What `karma report` does: tables, figures and report.html of a study, of the paper's numbers, or of two compared."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from karma.commands.next_step import tell_next
from karma.commands.options import check_out
from karma.errors import InputError
from karma.files.writing import remove_leftovers
from karma.results.page import export_html, open_results
from karma.results.readable import check_readable
from karma.results.study import collect_results
from karma.study.execute import execute_notebook
from karma.study.provenance import read_clock, save_provenance


def report(
    study: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="An experiment, or `paper`: the published study.")],
    other: Annotated[str | None, typer.Argument(help="A second experiment: the differences between the two.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: outputs/<name>.")] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of a million tokens, for the ledger of cost.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Write tables, figures and report.html of a study, of the paper's own numbers, or of two studies compared."""
    page = write_report(study, other, out, price)
    typer.echo(f"written: {page}, beside its tables/ and figures/" if page.suffix == ".html" else f"written: {page}")
    typer.echo(show_page(page) if open_it else tell_next("open", page, why="or give --open"))


def show_page(page: Path) -> str:
    """Show a page in a browser, and return what to tell the user: where none could be started, what to open."""
    if webbrowser.open(page.resolve().as_uri()):
        return tell_next("read", page, why="your browser shows it")
    return tell_next("open", page, why="no browser could be started here")


def write_report(study: str, other: str | None = None, out: Path | None = None, price: float | None = None) -> Path:
    """Write what `karma report` writes, and return the file to open.

    Args:
        study: an experiment, or "paper". other: a second experiment, to compare with.
        out: folder to write; default: outputs/published, the study's own folder, or <study>/compared.
        price: of a million tokens, for the ledger of cost.

    Raises:
        InputError: an unknown experiment, "paper" compared with another study, no run in common, or a study's file
            that cannot be read; nothing has been written then.
        KarmaError: a cell of the notebook failed; the executed notebook keeps the traceback.
    """
    if out is not None:
        check_out(out)
    if price is not None and (other is not None or study == "paper"):
        raise InputError("--price means nothing without a measured study of its own: leave it out")
    if other is not None:
        return _write_comparison(study, other, out)
    if study == "paper":
        from karma.results.paper_report import report_paper

        _remove_leftovers(out or Path("outputs") / "published")
        return report_paper(out or Path("outputs") / "published")
    job, started = open_results(study), read_clock()
    check_readable(job.experiment)
    values = {"experiment": str(job.experiment.path), "out": str((out or job.folder).resolve()),
              "price_per_million_tokens": price}  # fmt: skip
    _remove_leftovers(out or job.folder)
    execute_notebook(job, values)  # unlike `karma notebook` it does not ask that the study be whole
    page = export_html(job.executed_notebook, (out or job.folder) / "report.html")
    if out is None and all(path.exists() for needed in job.inputs for path in needed.products):
        save_provenance(job, started, f"karma report {study}")
    return page


def _remove_leftovers(folder: Path) -> None:
    """Remove what reports that were killed had begun to write."""
    for place in (folder, folder / "tables", folder / "figures", folder / "figures" / "paper"):
        remove_leftovers(place)


def _write_comparison(study: str, other: str, out: Path | None) -> Path:
    from karma.results.comparison import build_comparison, compare_studies
    from karma.study.experiment import load_experiment

    if "paper" in (study, other):
        raise InputError("'paper' is no measured study: `karma report EXPERIMENT` already stands beside the paper")
    experiments = [load_experiment(name) for name in (study, other)]
    for one in experiments:
        check_readable(one)
    studies = [*map(collect_results, experiments)]
    folder = out or (studies[0].folder or Path()) / "compared"
    table = build_comparison(*compare_studies(*studies), name=f"{studies[0].name}_against_{studies[1].name}")
    return table.save(folder)[1]
