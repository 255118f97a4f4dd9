"""Figures of stage 04: how a training went."""

import math
import textwrap
from collections.abc import Sequence

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


def plot_training(
    history: pd.DataFrame, method: str, held_out: pd.DataFrame | None = None, alarms: Sequence[str] | None = None
) -> np.ndarray:
    """Plot a training's curves over its updates, what it changed on held-out pairs, and its alarms.

    Args:
        history: one row a logged update, as in training.json.
        method: of `karma.vocabulary.METHODS`, or a recipe's step; it decides which curves there are.
        held_out: held_out.parquet's rows, with log-probabilities before and after; None, or rewards: no panel.
        alarms: of training.json, written above; None while it runs.

    Returns:
        The axes, one a curve; dots are updates, a line their running mean over a tenth of them.
    """
    row = METHODS[find_method(method)]
    own = {"chosen": ["mean_token_accuracy"], "pairs": ["rewards/margins", "rewards/accuracies", "logps/chosen"],
           "prompts": ["reward", "kl", "completions/mean_length"]}  # fmt: skip
    keys = [key for key in ("loss", *own[row.learns_from], "learning_rate") if key in history]
    compared = held_out is not None and "chosen_logps_before" in held_out and len(held_out) > 0
    n_rows = -(-(len(keys) + compared) // 3)
    figure, grid = plt.subplots(n_rows, 3, figsize=(PAGE_WIDTH_IN, 2.3 * n_rows), layout="constrained", squeeze=False)
    axes = grid.flatten()
    for axis in axes[len(keys) + compared :]:
        figure.delaxes(axis)
    axes = axes[: len(keys) + compared]
    for axis, key in zip(axes, keys, strict=False):
        _plot_curve(axis, history, key)
        if key == "reward":
            _plot_parts(axis, history)
        if key == "logps/chosen":
            _plot_points(axis, history["step"], history["logps/rejected"], 1)
            _name_lines(axis, ["chosen", "rejected"])
    if start := row.start_loss:
        axes[0].axhline(start, color="black", lw=1, ls=":")
        axes[0].set_title(f"dotted: {'ln 2' if start == math.log(2) else f'{start:.2f}'}, nothing learnt", fontsize=8)
    if compared:
        _plot_held_out(axes[len(keys)], held_out)
    if alarms is not None:
        lines = [line for alarm in alarms for line in textwrap.wrap(f"alarm: {alarm}", 105)] or ["alarms: none"]
        figure.suptitle("\n".join(lines), fontsize=8, x=0.01, ha="left", color=PALETTE[3] if alarms else "0.3")
    return axes


def _plot_held_out(axis: Axes, held_out: pd.DataFrame | None) -> None:
    """Draw each held-out pair's log-ratio before and after: above the diagonal it moved to its chosen answer."""
    assert held_out is not None
    before, after = (held_out[f"chosen_logps_{at}"] - held_out[f"rejected_logps_{at}"] for at in ("before", "after"))
    moved = int((after > before).sum())
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    axis.plot([low, high], [low, high], color="black", lw=1, ls=":")
    axis.scatter(before, after, s=12, color=PALETTE[0], alpha=0.6, lw=0)
    axis.set_title(f"held out: {moved} of {len(before)} moved up", fontsize=8)
    axis.set(xlabel="log-ratio before (nats)", ylabel="log-ratio after (nats)")


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
            _plot_points(axis, history["step"], history[key], place)
        _name_lines(axis, ["reward", *(_PARTS[key] for key in parts)])


def _plot_curve(axis: Axes, history: pd.DataFrame, key: str) -> None:
    label, reference = _PANELS[key]
    _plot_points(axis, history["step"], history[key], 0)
    if reference is not None:
        axis.axhline(reference, color="black", lw=1, ls=":")
    axis.set(xlabel="update", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _plot_points(axis: Axes, steps: pd.Series, values: pd.Series, place: int) -> None:
    """Draw updates as pale dots and their running mean, over a tenth of them, as a line."""
    mean = values.rolling(max(len(values) // 10, 1), min_periods=1, center=True).mean()
    axis.plot(steps, values, MARKERS[place], color=PALETTE[place], ms=3, mew=0, alpha=0.35)
    axis.plot(steps, mean, color=PALETTE[place], lw=1.5, ls=("-", "--", "-.")[place],
              marker=MARKERS[place] if len(values) == 1 else None)  # fmt: skip


def _name_lines(axis: Axes, names: Sequence[str]) -> None:
    """Name a panel's lines above it, where no data lie."""
    lines = [line for line in axis.lines if line.get_linestyle() != "None"]
    axis.legend(lines, names, loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=len(names), frameon=False, fontsize=8,
                handlelength=1.4, columnspacing=0.8, borderpad=0)  # fmt: skip
