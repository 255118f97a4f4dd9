"""The paper's published study as a report of its own: no model, no clone, seconds.

Tables, figures and audit come from the numbers shipped in data/paper, through the same code as a measured
study's. The page is a notebook object assembled here and rendered by `karma.results.page`, since a kernel would
only slow it down. Limit: Figure 8 needs a prompt that was sent, so only a measured study has it.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pandas as pd

from karma.figures.diagrams import plot_framework, plot_labelling
from karma.figures.kinship_study import save_kinship_figures
from karma.figures.results import plot_capabilities, plot_policies
from karma.figures.style import save_figure, set_style
from karma.files import atomic_path
from karma.results.audit import audit_paper, build_printed_table2
from karma.results.estimates import compute_capabilities, compute_policies, describe_chance
from karma.results.ledger import compute_counts
from karma.results.means import build_means
from karma.results.page import render_page
from karma.results.published import load_published
from karma.results.study import Study
from karma.results.tables import build_tables, compute_intervals
from karma.study.escape import escape_formula, escape_frame
from karma.study.experiment import load_base

FIGURES = {
    1: "who labels what. Counts are UltraFeedback's; no cost is published.",
    2: "the framework.",
    3: "a worked example of S_pref, kinship and the strategies.",
    4: "PCA of the normalised scores, one point an origin model.",
    5: "mean accuracy by capability: the baseline red, kinship blue. Intervals (95 %) rest on item counts inferred "
       "from the fractions (none where no count explains them), and take runs as failing on the same items; the noise "
       "of training is not in them.",
    6: "accuracy by policy, DPO. Intervals as in Figure 5; dotted: {chance}.",
    7: "dendrograms. The paper does not name its distance; here it is the root mean square difference.",
    9: "how K_score and K_sim are computed, of four models of which the threshold drops a pair.",
}  # fmt: skip


def report_paper(out: Path) -> Path:
    """Write tables, figures, audit.csv and report.html of the published study.

    Args:
        out: folder to write.

    Returns:
        The page.
    """
    set_style()
    study = load_published()
    tables = [build_printed_table2(study) if table.name == "table2" else table for table in build_tables(study)]
    tables.insert(2, build_means(study))
    for table in tables:
        table.save(out / "tables")
    audit = audit_paper()
    save_frame(audit, out / "tables" / "audit.csv")
    save_frame(compute_intervals(study), out / "tables" / "intervals.csv")
    _save_figures(study, out / "figures")
    page = render_page(_assemble(tables, audit, out / "figures", describe_chance(study)))
    with atomic_path(out / "report.html") as temporary:
        temporary.write_text(page, "utf-8")
    return out / "report.html"


def save_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, gaps as n/a, whole or not at all."""
    with atomic_path(path) as temporary:
        escape_frame(frame, escape_formula).to_csv(temporary, index=False, na_rep="n/a")


def _save_figures(study: Study, folder: Path) -> None:
    counts = compute_counts(study)
    save_figure(plot_labelling(counts), folder / "figure1")
    save_figure(plot_framework(study, counts), folder / "figure2")
    save_figure(plot_capabilities(compute_capabilities(study), study.source)[0], folder / "figure5")
    save_figure(plot_policies(compute_policies(study, "dpo"), "dpo")[0], folder / "figure6")
    assert study.scores is not None
    save_kinship_figures(study.scores, load_base().kinship, folder)
    plt.close("all")


def _assemble(tables: list, audit: pd.DataFrame, figures: Path, chance: str) -> Any:
    """Put tables, audit and figures into a notebook that counts as executed."""
    import base64

    intro = ("# The published study, computed again\n\nWhat the paper (arXiv 2502.18744) prints, from its "
             "own tables: no model was run. Intervals are ours, on inferred item counts. Quotation marks hold words "
             "of the paper, or of a public summary of it, as they stand.")  # fmt: skip
    cells = [
        nbformat.v4.new_markdown_cell(intro),
        nbformat.v4.new_markdown_cell("## The paper's claims, audited"),
    ]
    cells.append(_output({"text/html": audit.to_html(index=False, border=0)}))
    for table in tables:
        if table.name[-1].isdigit():  # what goes with a table stands below it
            cells.append(nbformat.v4.new_markdown_cell(f"## Table {table.name[-1]}"))
        cells.append(_output({"text/html": table.to_html()}))
    for number, text in FIGURES.items():
        picture = base64.b64encode((figures / f"figure{number}.png").read_bytes()).decode()
        cells += [nbformat.v4.new_markdown_cell(f"## Figure {number}\n\nFigure {number}: {text.format(chance=chance)}")]
        cells.append(_output({"image/png": picture}))
    return nbformat.v4.new_notebook(cells=cells)


def _output(content: dict[str, str]) -> Any:
    return nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data=content)])
