"""Figures of stage 04: how a training went."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from karma.figures.style import PAGE_WIDTH_IN, PALETTE
from karma.vocabulary import METHODS

_PANELS = {  # history key -> (axis label with unit, reference line)
    "loss": ("loss (nats)", None),
    "rewards/margins": ("reward margin (nats)", 0.0),
    "rewards/accuracies": ("reward accuracy (share)", 0.5),
    "logps/chosen": ("log-probability (nats)", None),
    "mean_token_accuracy": ("token accuracy (share)", None),
    "learning_rate": ("learning rate", None),
}


def plot_training(history: pd.DataFrame, method: str) -> np.ndarray:
    """Plot a training's curves over its updates.

    Args:
        history: one row a logged update, as in training.json.
        method: of `karma.vocabulary.METHODS`; it decides which curves there are.

    Returns:
        The axes, one a curve.
    """
    own = {"chosen": ["mean_token_accuracy"], "pairs": ["rewards/margins", "rewards/accuracies", "logps/chosen"]}
    keys = [key for key in ("loss", *own[METHODS[method].learns_from], "learning_rate") if key in history]
    n_rows = -(-len(keys) // 3)
    figure, grid = plt.subplots(n_rows, 3, figsize=(PAGE_WIDTH_IN, 2.2 * n_rows), layout="constrained", squeeze=False)
    axes = grid.flatten()
    for axis in axes[len(keys) :]:
        figure.delaxes(axis)
    axes = axes[: len(keys)]
    for axis, key in zip(axes, keys, strict=True):
        _plot_curve(axis, history, key)
        if key == "logps/chosen":
            axis.plot(history["step"], history["logps/rejected"], color=PALETTE[1], marker="s", ms=3, ls="--")
            axis.legend(["chosen", "rejected"])
    if start := METHODS[method].start_loss:
        axes[0].axhline(start, color="black", lw=1, ls=":")
        where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes[0].annotate("ln 2" if start == math.log(2) else f"{start:.2f}", (0.98, start), fontsize=8, **where)
    return axes


def _plot_curve(axis: Axes, history: pd.DataFrame, key: str) -> None:
    label, reference = _PANELS[key]
    axis.plot(history["step"], history[key], color=PALETTE[0], marker="o", ms=3)
    if reference is not None:
        axis.axhline(reference, color="black", lw=1, ls=":")
    axis.set(xlabel="update", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
