"""Figures of stage 08: which pairs are kept, and what the arms gained over rounds and over data."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from karma.figures.style import COLUMN_WIDTH_IN, MARKERS, PAGE_WIDTH_IN, PALETTE
from karma.vocabulary import ARMS

UNITS = {"instructions": "share of instructions followed", "judge": "the judge's rating, 1 to 5",
         "reward_model": "reward"}  # fmt: skip
_ARMS = list(ARMS)


def plot_margins(pool: pa.Table, kept: pa.Table, unit: str, ax: Axes | None = None) -> Axes:
    """Plot the candidate pairs by their two margins, those that were kept filled.

    Args:
        pool: candidate pairs with explicit_margin and implicit_margin. kept: the selected ones.
        unit: of the explicit margin.
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(COLUMN_WIDTH_IN * 1.4, 2.8))[1]
    ids = set(kept["row_id"].to_pylist())
    chosen = np.array([row_id in ids for row_id in pool["row_id"].to_pylist()], bool)
    implicit, explicit = pool["implicit_margin"].to_numpy(), pool["explicit_margin"].to_numpy()
    ax.scatter(implicit[~chosen], explicit[~chosen], s=22, marker="o", facecolors="none", edgecolors="0.35",
               label=f"not selected ({(~chosen).sum()})")  # fmt: skip
    ax.scatter(
        implicit[chosen], explicit[chosen], s=30, marker="D", color=PALETTE[3], label=f"selected ({chosen.sum()})"
    )
    ax.set(xlabel="implicit margin (nats a token)", ylabel=f"explicit margin\n({unit})")
    ax.margins(0.06)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return ax


def plot_rounds(rounds: pd.DataFrame) -> np.ndarray:
    """Plot one policy's arms: score and held-out preference over rounds, and score over pairs trained on.

    Args:
        rounds: `karma.self_play.curves.load_rounds`, the rows of one policy.

    Returns:
        The three axes.
    """
    figure, axes = plt.subplots(1, 3, figsize=(PAGE_WIDTH_IN, 2.8))
    arms = [arm for arm in _ARMS if arm in set(rounds["arm"])]
    unit = UNITS[rounds["scorer"].iloc[0]]
    panels = [("round", "score", f"{unit}\n(held-out prompts)"), ("n_pairs", "score", ""),
              ("round", "preference", "held-out pairs moved\ntowards chosen (share)")]  # fmt: skip
    for ax, (x, y, label) in zip(axes, panels, strict=True):
        width = 0.06 * max(float(rounds[x].max()), 1e-9)
        for k, arm in enumerate(arms):
            own = rounds[rounds["arm"] == arm].sort_values("round")
            place = own[x] + (k - (len(arms) - 1) / 2) * width * (own["round"] > 0)
            _draw_curve(ax, place.to_numpy(float), own, y, arm)
        ax.set(xlabel="round (0: untrained)" if x == "round" else "pairs trained on so far", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes[1].sharey(axes[0])
    axes[2].axhline(0.5, color="black", lw=1, ls=":")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=min(len(arms), 3), loc="outside lower center", frameon=False)
    return axes


def _draw_curve(ax: Axes, x: np.ndarray, own: pd.DataFrame, key: str, arm: str) -> None:
    color, marker = PALETTE[_ARMS.index(arm)], MARKERS[_ARMS.index(arm)]
    value = own[key].astype(float).to_numpy()
    spread = np.array([value - own[f"{key}_low"].astype(float), own[f"{key}_high"].astype(float) - value]).clip(min=0)
    ax.errorbar(x, value, yerr=spread, color=color, marker=marker, ms=5, lw=1.4, elinewidth=0.9, capsize=2.5,
                label=ARMS[arm])  # fmt: skip
