"""The figure of `karma win-rate`: who is preferred to whom, and the models' ratings where there are more than two.

Limit: intervals are those of the prompts; the judge is one, and its own noise is in none of them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from karma.figures.style import PAGE_WIDTH_IN, PALETTE, save_figure

if TYPE_CHECKING:
    from karma.labels.tournament import Tournament

MOST_ROWS = 30


def plot_win_rates(rates: pd.DataFrame, ratings: pd.DataFrame | None = None) -> Figure:
    """Plot each pair's win rate, plain and length-controlled, and below it the ratings.

    Args:
        rates: win_rates.csv; of more than 30 pairs the first 30. ratings: ratings.csv.
    """
    rows = rates.head(MOST_ROWS).reset_index(drop=True)
    heights = [0.45 * len(rows) + 0.8] + ([] if ratings is None else [0.3 * min(len(ratings), MOST_ROWS) + 0.8])
    figure, panels = plt.subplots(len(heights), 1, figsize=(PAGE_WIDTH_IN * 0.85, sum(heights) + 0.5), squeeze=False,
                                  height_ratios=heights)  # fmt: skip
    _plot_rates(panels[0, 0], rows)
    if ratings is not None:
        _plot_ratings(panels[1, 0], ratings)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _plot_rates(axes: Axes, rows: pd.DataFrame) -> None:
    axes.axvline(0.5, color="black", lw=1, ls=":", label="equal")
    kinds = (("win_rate", "low", "high", "o", PALETTE[0], "win rate", -0.12),
             ("length_controlled", "lc_low", "lc_high", "D", PALETTE[1], "at equal lengths", 0.12))  # fmt: skip
    for value, low, high, marker, color, title, shift in kinds:
        known = rows[rows[value].notna()]
        axes.hlines(known.index + shift, known[low], known[high], color=color, lw=2)
        axes.plot(known[value], known.index + shift, marker, color=color, mec="0.2", mew=0.5, label=title)
    names = [f"{a}\nover {b} (n = {n})"
             for a, b, n in zip(rows["model_a"], rows["model_b"], rows["n_judged"], strict=True)]  # fmt: skip
    axes.set(yticks=range(len(rows)), yticklabels=names, xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5),
             xlabel="preferred\n(share, 95 % interval over prompts)")  # fmt: skip


def _plot_ratings(axes: Axes, ratings: pd.DataFrame) -> None:
    rows = ratings[ratings["rating"].notna()].head(MOST_ROWS).reset_index(drop=True)
    axes.hlines(rows.index, rows["low"], rows["high"], color=PALETTE[2], lw=2)
    axes.plot(rows["rating"], rows.index, "s", color=PALETTE[2], mec="0.2", mew=0.5)
    axes.set(yticks=range(len(rows)), yticklabels=rows["model"], ylim=(max(len(rows), 1) - 0.5, -0.5),
             xlabel="Bradley-Terry rating\n(log-odds, mean 0, 95 % interval)")  # fmt: skip
    if rows.empty:
        axes.text(0.5, 0.5, "no rating has a bound", transform=axes.transAxes, ha="center", fontsize=8)


def save_win_rate_figure(found: "Tournament", folder: Path) -> None:
    """Draw and save the figure of a tournament as win_rates.png and .svg."""
    figure = plot_win_rates(found.rates, found.ratings)
    save_figure(figure, folder / "win_rates")
    plt.close(figure)
