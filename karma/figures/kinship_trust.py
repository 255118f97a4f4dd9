"""Stage 2's doubts in two figures: what sampling error flips, and what the choices hang on.

Every share is of pairs of origin models or of sets of four of them, never of prompts: a pool's prompts may
weigh the sets otherwise.
"""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from karma.figures.kinship import mark_names
from karma.figures.style import PAGE_WIDTH_IN, PALETTE, strategy_style
from karma.kinship.uncertainty import COIN_FLIP
from karma.vocabulary import KINSHIP_STRATEGIES, STRATEGIES

if TYPE_CHECKING:
    from karma.kinship.study import KinshipStudy

MAX_ROWS = 40


def plot_uncertainty(study: "KinshipStudy") -> list[Axes]:
    """Draw S_pref with 95 % intervals, and the triangle of how likely each preference is to flip.

    Args:
        study: with intervals (the number of items is known); the 40 strongest models are drawn, with a dagger
            where a score is at or below chance.

    Returns:
        Two axes.
    """
    shown = study.s_pref.sort_values("s_pref").tail(MAX_ROWS)
    assert study.pairs is not None
    height = 1.4 + max(0.19 * len(shown), 1.6)
    _, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH_IN, height), width_ratios=(1, 1.25), sharey=True)
    place = np.arange(len(shown))
    left.hlines(place, shown["low"], shown["high"], color=PALETTE[0], linewidth=5)
    left.plot(shown["s_pref"], place, "|", color="black", markersize=8, markeredgewidth=1)
    left.set_yticks(place, mark_names(study.table)[shown.index])
    left.set_xlabel("S_pref (share, 95 % interval)")
    left.set_title("a  Who is preferred", loc="left", fontweight="bold")
    left.grid(False, axis="y")
    _draw_flips(right, study.pairs, list(shown.index))
    return [left, right]


def _draw_flips(axes: Axes, pairs: pd.DataFrame, models: list[str]) -> None:
    """Draw the probability that each preference flips: rows are preferred, columns less preferred models."""
    place = {model: at for at, model in enumerate(models)}
    grid = np.full((len(models), len(models)), np.nan)
    for row in pairs[pairs["chosen"].isin(place) & pairs["rejected"].isin(place)].itertuples():
        grid[place[row.chosen], place[row.rejected]] = 100 * row.p_flip
    image = axes.imshow(grid, cmap="Oranges", vmin=0, vmax=50, origin="lower", aspect="auto")
    size = 8 if len(models) <= 16 else 0
    for (row, column), value in np.ndenumerate(grid):
        if size and value >= 100 * COIN_FLIP:
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=size,
                      color="white" if value > 35 else "black")  # fmt: skip
    axes.set_xticks(range(len(models)), models, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xlabel("less preferred")
    n = f"{int(pairs['coin_flip'].sum())} of {len(pairs)}"
    axes.set_title(f"b  Who might flip: {n} pairs flip\n    in {100 * COIN_FLIP:.0f} % of redraws or more", loc="left",
                   fontweight="bold")  # fmt: skip
    axes.grid(False)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.colorbar(image, ax=axes, label="redraws that flip the pair (%)", shrink=0.7)


def plot_sensitivity(study: "KinshipStudy") -> list[Axes]:
    """Draw what each tau keeps, and how many choices each variant of the method changes.

    Returns:
        Two axes.
    """
    assert study.taus is not None and study.sensitivity is not None
    shares = study.sensitivity.pivot(index="variant", columns="strategy", values="sets_changed")
    shares = shares.loc[list(dict.fromkeys(study.sensitivity["variant"]))[1:]]  # without "as in the paper"
    if study.choice_uncertainty is not None:
        shares.loc["sampling error alone"] = study.choice_uncertainty["p_other_in_sets"]
    height = 1.3 + 0.26 * max(len(shares), 7)
    _, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH_IN, height), width_ratios=(1, 1.25))
    _draw_taus(left, study)
    place = np.arange(len(shares))[::-1]
    for border in place[:-1] - 0.5:
        right.axhline(border, color="0.9", linewidth=0.8, zorder=1)
    for strategy, shift in zip(KINSHIP_STRATEGIES, (0.2, 0, -0.2), strict=True):
        look = strategy_style(strategy)
        right.scatter(
            shares[strategy],
            place + shift,
            s=30,
            color=look["color"],
            marker=look["marker"],
            label=STRATEGIES[strategy].title,
            zorder=3,
            edgecolors="white",
            linewidths=0.5,
        )
    right.set_yticks(place, shares.index)
    right.set_xlim(left=-0.01)
    right.set_xlabel(f"share of {study.n_sets:,} sets with another pair")
    right.set_title("b  What the choice hangs on", loc="left", fontweight="bold")
    right.grid(False, axis="y")
    right.legend(loc="upper right", bbox_to_anchor=(1, -0.2), ncols=3, frameon=False, handletextpad=0.1)
    return [left, right]


def _draw_taus(axes: Axes, study: "KinshipStudy") -> None:
    assert study.taus is not None
    n_models = len(study.s_pref)
    axes.plot(study.taus.index, study.taus["share_kept"], color=PALETTE[0], label="pairs kept")
    axes.plot(
        study.taus.index,
        study.taus["models_left"] / n_models,
        color=PALETTE[3],
        linestyle="--",
        label="models left (in a pair)",
    )
    axes.axvline(study.tau, color="black", linewidth=1, linestyle=":")
    axes.annotate(f"τ = {study.tau:g}", (study.tau, 0.03), (3, 0), textcoords="offset points", fontsize=8)
    axes.set_xlabel("τ (least kinship of a pair)")
    axes.set_ylabel("share")
    axes.set_ylim(0, 1.03)
    axes.set_title("a  What the threshold keeps", loc="left", fontweight="bold")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), frameon=False)
