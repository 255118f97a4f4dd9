"""Figures of stages 01 and 05: scores against chance, and what training changed."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from karma.figures.style import COLUMN_WIDTH_IN, PALETTE


def plot_scores(frame: pd.DataFrame, title: str = "") -> Axes:
    """Plot each benchmark's score with its 95 % interval and its chance level (IFEval: its floor).

    Args:
        frame: `karma.evaluation.compare.build_score_frame`.
        title: the model's name.
    """
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN * 1.35, 0.36 * len(frame) + 1.5))
    rows = range(len(frame))
    axes.hlines(rows, 100 * frame["low"], 100 * frame["high"], color=PALETTE[0], lw=2, label="95 % interval")
    axes.plot(100 * frame["value"], rows, "o", color=PALETTE[0], label="score")
    for column, colour, label in (("chance", PALETTE[3], "chance"), ("floor", PALETTE[1], "shuffled answers")):
        if frame[column].notna().any():
            axes.plot(100 * frame[column].astype(float), rows, "|", color=colour, ms=13, mew=2, label=label)
    axes.set(yticks=rows, yticklabels=[f"{b} (n = {n})" for b, n in frame["n"].items()], xlim=(0, 100),
             xlabel="score (% right)", title=title)  # fmt: skip
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return axes


def plot_differences(frame: pd.DataFrame, title: str = "") -> Axes:
    """Plot the paired difference of each benchmark with its 95 % interval.

    Args:
        frame: `karma.evaluation.compare.compare_answers`.
        title: the run's name.
    """
    _, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN * 1.35, 0.36 * len(frame) + 1.2))
    rows = range(len(frame))
    axes.axvline(0, color="black", lw=1)
    axes.hlines(rows, 100 * frame["low"], 100 * frame["high"], color=PALETTE[2], lw=2)
    axes.plot(100 * frame["difference"], rows, "D", color=PALETTE[2])
    axes.set(yticks=rows, yticklabels=[f"{b} (n = {n})" for b, n in frame["n"].items()],
             xlabel="trained minus start\n(percentage points, 95 % interval)", title=title)  # fmt: skip
    axes.invert_yaxis()
    return axes
