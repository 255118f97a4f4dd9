"""Figures of stage 09: how often the labels are right, and whether S_pref orders the origin models as the truth does.

Limit: intervals are those of the prompts; the origin models are the study's own and stand for no others.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from karma.figures.style import COLUMN_WIDTH_IN, PAGE_WIDTH_IN, PALETTE, strategy_style
from karma.vocabulary import title_strategy

CEILING_TITLE = "truth (ceiling)"


def title_labels(strategy: str, source: str) -> str:
    """Return what a row of the audit is called.

    Args:
        strategy: a strategy, or "truth". source: the setting annotation.source.

    Example:
        >>> [title_labels(name, "judge") for name in ("rlaif", "k_sim", "truth")]
        ['RLAIF (weak judge)', 'K_sim', 'truth (ceiling)']
    """
    if strategy == "truth":
        return CEILING_TITLE
    return title_strategy(strategy, source)


def plot_label_accuracy(audit: pd.DataFrame, source: str) -> Axes:
    """Plot each strategy's share of right labels with its 95 % interval, beside chance and the ceiling.

    Args:
        audit: from `karma.labels.audit.audit_strategies`. source: the setting annotation.source.
    """
    rows = audit[audit["strategy"] != "truth"].reset_index(drop=True)
    ceiling = audit.loc[audit["strategy"] == "truth", "label_accuracy"].dropna()
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN * 1.5, 0.36 * len(rows) + 1.5))
    axes.axvline(0.5, color="black", lw=1, ls=":", label="a coin")
    if len(ceiling):
        axes.axvline(ceiling.iloc[0], color="0.4", lw=1.5, ls="--", label="the truth itself")
    for place, row in rows.iterrows():
        if np.isnan(row["label_accuracy"]):
            axes.text(0.52, place, "no pair is decided", va="center", fontsize=8)
            continue
        style = strategy_style(row["strategy"])
        axes.hlines(place, row["low"], row["high"], color=style["color"], lw=2)
        axes.plot(row["label_accuracy"], place, style["marker"], color=style["color"], mec="0.2", mew=0.5)
    names = [f"{title_labels(s, source)} (n = {n})" for s, n in zip(rows["strategy"], rows["n_decided"], strict=True)]
    axes.set(yticks=range(len(rows)), yticklabels=names, xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5),
             xlabel="labels that the truth confirms\n(share of decided pairs, 95 % interval)")  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return axes


def plot_model_truth(models: pd.DataFrame) -> np.ndarray:
    """Plot each origin model's S_pref and, beside it, the mean truth of its responses with its 95 % interval.

    Args:
        models: from `karma.labels.audit.compare_models`, best S_pref first.

    Returns:
        The two Axes.
    """
    size = (PAGE_WIDTH_IN * 0.85, 0.26 * len(models) + 1.1)
    _, axes = plt.subplots(1, 2, figsize=size, sharey=True)
    places = range(len(models))
    axes[0].plot(models["s_pref"], places, "o", color=PALETTE[0])
    axes[1].hlines(places, models["low"], models["high"], color=PALETTE[3], lw=2)
    axes[1].plot(models["truth"], places, "D", color=PALETTE[3])
    axes[0].set(yticks=places, yticklabels=models["model"], xlim=(-0.05, 1.05), ylabel="origin model")
    axes[0].set_xlabel("S_pref\n(share, what the labels go by)")
    axes[1].set(xlim=(-0.05, 1.05), xlabel="truth: instructions followed\n(share, 95 % interval over prompts)")
    axes[0].set_ylim(len(models) - 0.5, -0.5)
    return axes
