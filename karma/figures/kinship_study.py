"""Every figure of a score table at once: those of stage 2, and the paper's Figures 3, 4, 7 and 9 for the report."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from karma.figures.kinship import find_worked_set, plot_dendrograms, plot_kinship, plot_worked_example
from karma.figures.kinship_calculation import plot_calculation
from karma.figures.kinship_large import plot_branches
from karma.figures.kinship_map import plot_pca
from karma.figures.kinship_trust import plot_sensitivity, plot_uncertainty
from karma.figures.lineage import plot_lineage
from karma.figures.style import save_figure
from karma.kinship.clusters import compute_pca, compute_trees
from karma.kinship.study import KinshipStudy
from karma.scores.normalise import compute_normalized
from karma.scores.table import ScoreTable

WORKED: dict[str, tuple[Any, bool]] = {
    "figure3_worked_example": (plot_worked_example, False),
    "figure9_worked_example": (plot_calculation, True),
}  # file -> how it is drawn, and whether of models of which tau drops a pair


def save_study_figures(study: "KinshipStudy", folder: Path) -> list[Path]:
    """Draw and save every figure of a study; above 500 models only the PCA, branches and the lineage."""
    table = study.table
    figures: dict[str, Any] = {"figure4_pca": plot_pca(study.pca, table)[0].figure}
    if study.fathers is not None and study.fathers["nearer"].notna().any():
        figures["lineage"] = plot_lineage(study.fathers).figure
    if study.large is not None:
        figures["branches"] = plot_branches(study.large, table.benchmarks["title"], study.cut)[0].figure
    if study.kinship is not None and study.trees is not None and study.sensitivity is not None:
        for name, (plot, dropped) in WORKED.items():
            figures[name] = plot(table, find_worked_set(table, study.tau, dropped), study.tau)[0].figure
        figures["figure7_dendrograms"] = plot_dendrograms(study.trees, study.cut, table)[0].figure
        figures["kinship"] = plot_kinship(study.kinship, study.trees["total"][1], study.tau, study.cut, table).figure
        figures["sensitivity"] = plot_sensitivity(study)[0].figure
        if study.choice_uncertainty is not None:
            figures["uncertainty"] = plot_uncertainty(study)[0].figure
    written = [path for name, figure in figures.items() for path in save_figure(figure, folder / name)]
    for figure in figures.values():
        plt.close(figure)
    return written


def draw_kinship_figures(table: ScoreTable | None, kinship: Any) -> dict[int, Axes]:
    """Draw Figures 3, 4, 7 and 9 of a score table, as stage 2 draws them.

    Args:
        table: origin models x benchmarks; None (stage 2 has not run) draws nothing.
        kinship: the experiment's kinship settings (tau, distance, linkage, cut).

    Returns:
        The first axes of each figure, by its number.
    """
    if table is None:
        return {}
    tau = kinship.tau
    three, nine = (plot(table, find_worked_set(table, tau, dropped), tau)[0] for plot, dropped in WORKED.values())
    trees = compute_trees(table, kinship.distance, kinship.linkage)
    four = plot_pca(compute_pca(compute_normalized(table)), table)[0]
    return {3: three, 9: nine, 4: four, 7: plot_dendrograms(trees, kinship.cut, table)[0]}
