"""Figures of stage 04: how a training went."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from karma.figures.style import COLUMN_WIDTH_IN, MARKERS, PAGE_WIDTH_IN, PALETTE
from karma.vocabulary import METHODS, find_method

_PANELS = {  # history key -> (axis label with unit, reference line)
    "loss": ("loss (nats)", None),
    "rewards/margins": ("reward margin (nats)", 0.0),
    "rewards/accuracies": ("reward accuracy (share)", 0.5),
    "logps/chosen": ("log-probability (nats)", None),
    "mean_token_accuracy": ("token accuracy (share)", None),
    "learning_rate": ("learning rate", None),
    "reward": ("reward, its parts", None),
    "kl": ("KL (nats a token)", 0.0),
    "completions/mean_length": ("answer (tokens)", None),
}
_PARTS = {"rewards/instructions/mean": "instructions", "rewards/reward_model/mean": "reward model"}  # or the truth


def plot_training(history: pd.DataFrame, method: str) -> np.ndarray:
    """Plot a training's curves over its updates.

    Args:
        history: one row a logged update, as in training.json.
        method: of `karma.vocabulary.METHODS`, or a recipe's step; it decides which curves there are.

    Returns:
        The axes, one a curve.
    """
    row = METHODS[find_method(method)]
    own = {"chosen": ["mean_token_accuracy"], "pairs": ["rewards/margins", "rewards/accuracies", "logps/chosen"],
           "prompts": ["reward", "kl", "completions/mean_length"]}  # fmt: skip
    keys = [key for key in ("loss", *own[row.learns_from], "learning_rate") if key in history]
    n_rows = -(-len(keys) // 3)
    figure, grid = plt.subplots(n_rows, 3, figsize=(PAGE_WIDTH_IN, 2.2 * n_rows), layout="constrained", squeeze=False)
    axes = grid.flatten()
    for axis in axes[len(keys) :]:
        figure.delaxes(axis)
    axes = axes[: len(keys)]
    for axis, key in zip(axes, keys, strict=True):
        _plot_curve(axis, history, key)
        if key == "reward":
            _plot_parts(axis, history)
        if key == "logps/chosen":
            axis.plot(history["step"], history["logps/rejected"], color=PALETTE[1], marker="s", ms=3, ls="--")
            axis.legend(["chosen", "rejected"])
    if start := row.start_loss:
        axes[0].axhline(start, color="black", lw=1, ls=":")
        where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes[0].annotate("ln 2" if start == math.log(2) else f"{start:.2f}", (0.98, start), fontsize=8, **where)
    return axes


def plot_refilter(epochs: pd.DataFrame) -> Axes:
    """Draw what dynamic filtering kept: an epoch's pairs that stayed and entered, and below 0 those that left.

    Args:
        epochs: one row an epoch: epoch, n_kept, n_entered, n_left, n_of_first, as in training.json.

    Returns:
        The axes; a line shows how many of the untrained policy's choice are still kept.
    """
    _, axis = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2.6), layout="constrained")
    x, entered = epochs["epoch"], epochs["n_entered"].where(epochs["epoch"] > 1, 0)  # the first epoch has none before
    axis.bar(x, epochs["n_kept"] - entered, color=PALETTE[0], width=0.6, label="stayed")
    axis.bar(x, entered, bottom=epochs["n_kept"] - entered, color=PALETTE[2], width=0.6, hatch="//", label="entered")
    axis.bar(x, -epochs["n_left"], color="0.75", width=0.6, label="left")
    axis.plot(x, epochs["n_of_first"], color="black", marker="o", ms=3, lw=1, label="of the first")
    axis.axhline(0, color="black", lw=1)
    axis.margins(y=0.1)
    axis.set(xlabel="epoch", ylabel="pairs")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)  # type: ignore[union-attr]
    return axis


def _plot_parts(axis: Axes, history: pd.DataFrame) -> None:
    """Draw what a reward is made of, and the truth beside a reward model, where that is more than one curve."""
    parts = [key for key in _PARTS if key in history and history[key].notna().any()]
    if len(parts) > 1 or (parts and not np.allclose(history[parts[0]], history["reward"])):
        for place, key in enumerate(parts, 1):
            axis.plot(history["step"], history[key], color=PALETTE[place], marker=MARKERS[place], ms=3, ls="--")
        axis.legend(["reward", *(_PARTS[key] for key in parts)])


def _plot_curve(axis: Axes, history: pd.DataFrame, key: str) -> None:
    label, reference = _PANELS[key]
    axis.plot(history["step"], history[key], color=PALETTE[0], marker="o", ms=3)
    if reference is not None:
        axis.axhline(reference, color="black", lw=1, ls=":")
    axis.set(xlabel="update", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
