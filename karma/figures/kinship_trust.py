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
MAX_FLIPS = 12


def plot_uncertainty(study: "KinshipStudy") -> list[Axes]:
    """Draw S_pref with 95 % intervals, and the preferences most likely to flip.

    Args:
        study: with intervals (the number of items is known); the 40 strongest models are drawn, with a dagger
            where a score is at or below chance.

    Returns:
        Two axes.
    """
    shown = study.s_pref.sort_values("s_pref").tail(MAX_ROWS)
    assert study.pairs is not None
    n_flips = min(int((study.pairs["p_flip"] > 0).sum()), MAX_FLIPS)
    height = 1.1 + max(0.19 * len(shown), 0.33 * n_flips)
    _, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH_IN, height), width_ratios=(1.5, 1))
    place = np.arange(len(shown))
    left.hlines(place, shown["low"], shown["high"], color=PALETTE[0], linewidth=5)
    left.plot(shown["s_pref"], place, "|", color="black", markersize=8, markeredgewidth=1)
    left.set_yticks(place, mark_names(study.table)[shown.index])
    left.set_xlabel("S_pref, with its 95 % interval")
    left.set_title("a  Who is preferred", loc="left", fontweight="bold")
    left.grid(False, axis="y")
    _draw_flips(right, study.pairs)
    return [left, right]


def _draw_flips(axes: Axes, pairs: pd.DataFrame) -> None:
    """Draw the likeliest flips as bars, coin flips in another colour and hatch."""
    likely = pairs[pairs["p_flip"] > 0].nlargest(MAX_FLIPS, "p_flip").iloc[::-1]
    place, coin = np.arange(len(likely)), likely["coin_flip"].to_numpy()
    axes.barh(
        place[coin],
        likely["p_flip"][coin],
        color=PALETTE[3],
        hatch="//",
        edgecolor="white",
        label="coin flip",
    )
    axes.barh(place[~coin], likely["p_flip"][~coin], color="0.7")
    axes.axvline(COIN_FLIP, color="black", linewidth=1, linestyle=":")
    axes.set_yticks(place, [f"{a}\n> {b}" for a, b in zip(likely["chosen"], likely["rejected"], strict=True)])
    axes.set_xlim(0, max(0.52, 1.05 * likely["p_flip"].max()) if len(likely) else 0.52)
    axes.set_xlabel("probability of a flip")
    axes.set_title("b  Who might flip", loc="left", fontweight="bold")
    n_coins = f"{int(pairs['coin_flip'].sum())} of {len(pairs)} pairs\nare coin flips"
    axes.annotate(n_coins, (0.97, 0.04), xycoords="axes fraction", ha="right", fontsize=8)
    axes.grid(False, axis="y")


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
