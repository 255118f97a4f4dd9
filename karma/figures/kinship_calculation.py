"""Figure 9: how K_score and K_sim are computed on a few origin models, number by number.

K_score takes the models whose min-max normalised scores have the highest means (Eq. 2), K_sim the two whose rows x and
y of these scores have the highest cosine, x.y / (|x| |y|) (Eq. 1); in both the higher S_pref is chosen (Eq. 3).
Decision: pairs below tau stand in the calculation, struck out, since tau is applied before a strategy picks. Limit:
four models fit; their minima and maxima are those of the whole table, which is not shown.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from karma.figures.kinship import draw_cells
from karma.figures.style import PAGE_WIDTH_IN, strategy_style
from karma.kinship.similarity import compute_kinship
from karma.scores.normalise import compute_normalized, compute_s_pref
from karma.scores.table import ScoreTable
from karma.strategies import choose_in_sets
from karma.vocabulary import STRATEGIES

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STEPS = ["x·y", "|x|", "|y|", "cosine"]


def compute_calculation(table: ScoreTable, models: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what K_score and what K_sim is computed from.

    Args:
        table: the whole table: min and max are taken over all of it. models: those to show, at most 26.

    Returns:
        Models x normalised scores with their mean `s_pref`, highest first; and (x, y) x STEPS, one row a pair of
        models, highest cosine first, x the one that stands higher in the first table.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> means, cosines = compute_calculation(load_score_table("paper"), ["bard", "GPT-4"])
        >>> means["s_pref"].round(4).to_dict(), cosines.loc["GPT-4", "bard"].round(3).tolist()
        ({'GPT-4': 0.9899, 'bard': 0.8561}, [5.076, 2.425, 2.106, 0.994])

    Paper: Figure 9, Eq. 1 and 2.
    """
    normalized, s_pref = compute_normalized(table).loc[models], compute_s_pref(table)[models]
    means = normalized.assign(s_pref=s_pref).sort_values("s_pref", ascending=False, kind="stable")
    rows, kinship = means.drop(columns="s_pref"), compute_kinship(_by_cosine(table), list(means.index))
    steps = {
        (x, y): [rows.loc[x] @ rows.loc[y], np.linalg.norm(rows.loc[x]), np.linalg.norm(rows.loc[y]), kinship.loc[x, y]]
        for k, x in enumerate(rows.index)
        for y in rows.index[k + 1 :]
    }
    cosines = pd.DataFrame.from_dict(steps, orient="index", columns=STEPS)
    cosines.index = pd.MultiIndex.from_tuples(list(steps), names=["x", "y"])
    return means, cosines.sort_values("cosine", ascending=False, kind="stable")


def plot_calculation(table: ScoreTable, models: list[str], tau: float) -> list[Axes]:
    """Draw how K_score and K_sim come to their pairs, highest first, the picks framed and the chosen model named.

    Args:
        table: the whole table. models: those to show; four fit the page. tau: lowest kinship of an eligible pair.

    Returns:
        Two axes: K_score's means, K_sim's cosines.

    Paper: Figure 9.
    """
    means, cosines = compute_calculation(table, models)
    names, n = list(means.index), len(means)
    letter = dict(zip(names, LETTERS, strict=False))
    figure, axes = plt.subplots(
        1, 2, figsize=(PAGE_WIDTH_IN, 1.9 + 0.24 * len(cosines)),
        gridspec_kw={"width_ratios": [means.shape[1] + 1.5, len(STEPS)]},
    )  # fmt: skip
    titles = table.benchmarks.loc[table.scores.columns, "title"].tolist()
    draw_cells(axes[0], means, [f"{letter[name]}  {name}" for name in names], [*titles, "mean (S_pref)"])
    axes[0].axvline(len(titles) - 0.5, color="white", linewidth=5)
    axes[0].set_title(f"a  {STRATEGIES['k_score'].title}: the highest means", loc="left", fontweight="bold")
    shade, text = cosines.copy(), cosines.map("{:.3f}".format).to_numpy()
    shade[STEPS[:-1]] = 0.0  # only the cosine has a scale from 0 to 1
    draw_cells(axes[1], shade, [f"x = {letter[x]}, y = {letter[y]}" for x, y in cosines.index], STEPS, text)
    axes[1].set_title(f"b  {STRATEGIES['k_sim'].title}: x·y / (|x| |y|)", loc="left", x=-0.4, fontweight="bold")
    kinship = compute_kinship(_by_cosine(table), names).to_numpy()
    picks = {
        s: choose_in_sets(means["s_pref"].to_numpy(), kinship, np.arange(n)[None, :], s, tau)[0].tolist()
        for s in ("k_score", "k_sim")
    }
    for place, role in zip(picks["k_score"], ("chosen", "rejected"), strict=True):
        if place >= 0:
            _frame(axes[0], len(titles), place, "k_score")
            axes[0].text(len(titles) + 0.62, place, role, va="center", fontsize=8)
    pairs = list(cosines.index)
    if picks["k_sim"][0] >= 0:
        x, y = sorted(picks["k_sim"])
        _frame(axes[1], len(STEPS) - 1, pairs.index((names[x], names[y])), "k_sim")
    low = np.flatnonzero(cosines["cosine"].to_numpy() < tau)
    axes[1].hlines(low, -0.4, len(STEPS) - 0.6, color="black", linewidth=0.8)
    handles = [Line2D([], [], label=STRATEGIES[s].title, **_look(s)) for s in picks]
    if len(low):
        handles.append(Line2D([], [], color="black", linewidth=0.8, label=f"below τ = {tau:g}: not eligible"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return list(axes)


def _by_cosine(table: ScoreTable) -> ScoreTable:
    """Return the table with the paper's kinship, whose steps the figure shows, whatever a study measures by."""
    return replace(table, measure="cosine", weights={})


def _look(strategy: str) -> dict:
    return {"color": strategy_style(strategy)["color"], "linewidth": 2.0}


def _frame(axes: Axes, column: int, row: int, strategy: str) -> None:
    axes.add_patch(Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, **_look(strategy)))
