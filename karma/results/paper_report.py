"""The paper's published study as a report of its own: no model, no clone, seconds.

Tables, figures and audit come from the numbers shipped in data/paper, through the same code as a measured
study's. The page's body is put together here, since a kernel, and nbconvert, would only slow it down. Limit: Figure 8
needs a prompt that was sent, so only a measured study has it.
"""

from pathlib import Path

import pandas as pd

from karma import __version__
from karma.figures.diagrams import plot_framework, plot_labelling
from karma.figures.kinship_study import draw_kinship_figures
from karma.figures.results import plot_capabilities, plot_policies
from karma.figures.style import set_style
from karma.files.writing import atomic_path
from karma.results.audit import audit_paper, build_printed_table2
from karma.results.estimates import compute_capabilities, compute_policies
from karma.results.findings import Front, find_published
from karma.results.leads import compute_leads, describe_figures
from karma.results.ledger import compute_counts
from karma.results.means import build_means
from karma.results.page import build_page
from karma.results.pictures import Picture, show_picture
from karma.results.published import load_published
from karma.results.study import Study
from karma.results.tables import Table, build_plain, build_tables, compute_intervals, save_frame
from karma.study.experiment import load_base
from karma.study.provenance import find_commit

SECTIONS = {2: "The means over all runs", 4: "Every run", 1: "The benchmarks", 3: "The origin models and their kinship"}
FIGURES: dict[int, tuple[int, ...]] = {2: (5,), 4: (6,), 1: (), 3: (3, 9, 4, 7)}  # below which table a figure stands
INTRO = (
    "What the paper prints, computed again from its own tables: no model was run. Intervals are ours, on inferred item "
    "counts. Quotation marks hold words of the paper, or of a public summary of it, as they stand."
)


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
    with atomic_path(out / "report.html") as temporary:
        temporary.write_text(build_page(_assemble(study, tables, audit, _draw(study, out / "figures"))), "utf-8")
    return out / "report.html"


def _draw(study: Study, folder: Path) -> dict[int, Picture]:
    """Save every figure and return it with its words, by number."""
    assert study.scores is not None
    counts = compute_counts(study)
    drawn = {
        1: plot_labelling(counts),
        2: plot_framework(study, counts),
        5: plot_capabilities(compute_capabilities(study), compute_leads(study)),
        6: plot_policies(compute_policies(study, "dpo"), "dpo"),
        **draw_kinship_figures(study.scores, load_base().kinship),
    }
    facts = describe_figures(study, "dpo") | {"even": "no cost is published"}
    return {number: show_picture(axes, folder / f"figure{number}", **facts) for number, axes in drawn.items()}


def _assemble(study: Study, tables: list[Table], audit: pd.DataFrame, figures: dict[int, Picture]) -> str:
    """Put findings, audit, tables and figures into one body of HTML."""
    facts = {"source": "arXiv 2502.18744, Tables 2 to 4 as printed", "models run": "none",
             "kit": f"version {__version__}, commit {find_commit(Path(__file__).parent)[:10]}"}  # fmt: skip
    front = Front("The published study, computed again", facts, list(find_published(study, audit)))
    quotes = build_plain("audit", f"The paper's statements, audited: {len(audit)} of them.", audit.set_index("claim"))
    parts = [front._repr_html_(), f"<p>{INTRO}</p>", "<h2>The paper's claims, audited</h2>", quotes.to_html()]
    for number in (2, 4, 1, 3):
        own = [table for table in tables if table.name.startswith(f"table{number}")]
        parts += [f"<h2>{SECTIONS[number]}</h2>", *(table.to_html() for table in own)]
        parts += [figures[n]._repr_html_() for n in FIGURES[number]]
    parts += ["<h2>Who labels what, and the way of the data</h2>", *(figures[n]._repr_html_() for n in (1, 2))]
    return "\n".join(parts)
