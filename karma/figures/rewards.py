"""Figure of reward models: what each gets right, what of it is length, and what the best of n is worth."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from karma.figures.style import PAGE_WIDTH_IN, strategy_style


def plot_reward_models(shares: pd.DataFrame, best: pd.DataFrame) -> np.ndarray:
    """Draw shares with their 95 % intervals, one row a measure, and beside it truth over n where it is known.

    Args:
        shares: measure (its title), strategy (trained on), strategy_title, value, low, high; one row a reward model and
            measure, in the order of the rows.
        best: strategy, strategy_title, n, truth, low, high, perfect, one row a reward model and n; empty where nothing
            is known of the truth.

    Returns:
        The Axes: of the shares, and of the best of n where there is one.
    """
    measures = list(dict.fromkeys(shares["measure"]))
    runs = list(shares.groupby(["run"], sort=False))
    height = 0.9 + (0.2 + 0.16 * len(runs)) * len(measures)
    wide = len(best) > 0
    figure, grid = plt.subplots(
        1, 1 + wide, figsize=(PAGE_WIDTH_IN, max(height, 2.6)), squeeze=False,
        gridspec_kw={"width_ratios": [1.5, 1][: 1 + wide]},
    )  # fmt: skip
    axes = grid[0]
    for k, (_, own) in enumerate(runs):
        style = strategy_style(own["strategy"].iloc[0])
        places = own["measure"].map(measures.index) + (k - (len(runs) - 1) / 2) * 0.7 / len(runs)
        spread = np.array([own["value"] - own["low"], own["high"] - own["value"]]).clip(0)
        axes[0].errorbar(own["value"], places, xerr=spread, fmt=style["marker"], color=style["color"], ms=4, lw=1,
                         capsize=2, label=own["strategy_title"].iloc[0])  # fmt: skip
    axes[0].axvline(0.5, color="black", lw=1, ls=":")
    axes[0].set(
        xlim=(-0.02, 1.02), ylim=(len(measures) - 0.4, -0.6), xlabel="share of pairs (95 % interval)", ylabel=""
    )
    axes[0].set_yticks(range(len(measures)), measures)
    axes[0].grid(axis="y", visible=False)
    if wide:
        _plot_best(axes[1], best)
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    if wide:
        handles |= dict(zip(*axes[1].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), ncols=4, loc="outside lower center", frameon=False)
    return axes


def _plot_best(axis: plt.Axes, best: pd.DataFrame) -> None:
    runs = list(best.groupby(["run"], sort=False))
    for k, (_, own) in enumerate(runs):
        style = strategy_style(own["strategy"].iloc[0])
        places = own["n"] + (k - (len(runs) - 1) / 2) * 0.06
        spread = np.array([own["truth"] - own["low"], own["high"] - own["truth"]]).clip(0)
        axis.errorbar(places, own["truth"], yerr=spread, color=style["color"], marker=style["marker"], ms=4, lw=1,
                      capsize=2)  # fmt: skip
    axis.plot(
        runs[0][1]["n"], runs[0][1]["perfect"], color="black", lw=1, ls="--", label="the best by the truth itself"
    )
    axis.set(xlabel="n, of which the best by reward", ylabel="instructions followed (share)", ylim=(0, 1))
    axis.set_xticks(sorted(best["n"].unique()))
