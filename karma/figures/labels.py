"""Figures of stage 09 and of `karma audit-labels`: how often the labels are right, when, and for whose responses.

Limit: intervals are those of the prompts; the origin models are the study's own and stand for no others.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from karma.figures.kinships import plot_kinships
from karma.figures.style import COLUMN_WIDTH_IN, PAGE_WIDTH_IN, PALETTE, row_style, save_figure, strategy_style
from karma.vocabulary import title_strategy

if TYPE_CHECKING:
    from karma.labels.calibration import CalibrationAudit
    from karma.labels.recorded import RecordedAudit

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


def plot_label_accuracy(audit: pd.DataFrame, source: str, by: str = "the truth") -> Axes:
    """Plot each strategy's share of right labels with its 95 % interval, beside chance and the ceiling.

    Args:
        audit: from `karma.labels.audit.audit_strategies`, or recorded judgments' strategies. source: the setting
            annotation.source. by: who confirms labels.
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
             xlabel=f"labels that {by} confirms\n(share of decided pairs, 95 % interval)")  # fmt: skip
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


def plot_accuracy_surface(surface: pd.DataFrame) -> Axes:
    """Plot label accuracy over the gap of S_pref and kinship, n the number of model pairs in each cell.

    Args:
        surface: from `karma.labels.comparisons.measure_surface`.
    """
    shown = surface.assign(row=surface["kinship_low"], column=surface["gap_low"])
    grid = shown.pivot(index="row", columns="column", values="label_accuracy")
    pairs = shown.pivot(index="row", columns="column", values="n_model_pairs")
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.8, 3.6))
    image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=1, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(grid.to_numpy(float)):
        if not np.isnan(value):
            text = f"{value:.2f}\nn = {int(pairs.iloc[row, column])}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=8, color="black" if value > 0.55 else "white"
            )
    gaps, kin = (surface[[f"{name}_low", f"{name}_high"]].drop_duplicates().to_numpy() for name in ("gap", "kinship"))
    axes.set(
        xticks=range(len(gaps)),
        xticklabels=[f"{a:g} to {b:g}" for a, b in gaps],
        yticks=range(len(kin)),
        yticklabels=[f"{a:g} to {b:g}" for a, b in kin],
        xlabel="gap of S_pref (share)",
        ylabel="kinship (cosine)",
    )
    axes.grid(False)
    figure.colorbar(image, label="labels confirmed (share of decided)")
    return axes


def plot_trade_off(accuracy: pd.DataFrame, strategies: pd.DataFrame, source: str) -> Axes:
    """Plot label accuracy against how subtle pairs are: by gap of S_pref a line, the strategies as points.

    Args:
        accuracy: label_accuracy.csv. strategies: strategies.csv. source: the setting annotation.source.
    """
    bins = accuracy[(accuracy["slice"] == "s_pref_gap") & accuracy["label_accuracy"].notna()]
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.8, 3.4))
    middle = (bins["low_edge"] + bins["high_edge"]) / 2
    axes.fill_between(middle, bins["low"], bins["high"], color="0.85", label="95 % interval of a bin")
    axes.plot(middle, bins["label_accuracy"], "-", color="0.3", label="all pairs, by gap")
    axes.axhline(0.5, color="black", lw=1, ls=":", label="a coin")
    for _, row in strategies.dropna(subset=["label_accuracy"]).iterrows():
        style = strategy_style(row["strategy"])
        axes.errorbar(row["mean_s_pref_gap"], row["label_accuracy"], fmt=style["marker"], color=style["color"],
                      yerr=[[row["label_accuracy"] - row["low"]], [row["high"] - row["label_accuracy"]]],
                      elinewidth=1, mec="0.2", label=title_labels(row["strategy"], source))  # fmt: skip
    axes.set(xlabel="mean gap of S_pref, chosen less rejected (subtle pairs to the left)", ylim=(-0.02, 1.02),
             ylabel="labels confirmed\n(share of decided)")  # fmt: skip
    figure.legend(loc="outside right upper", frameon=False)
    return axes


def plot_mislabelled(models: pd.DataFrame) -> Axes:
    """Plot for each model the share of its decided comparisons that are labelled wrongly, and which way.

    Args:
        models: from `karma.labels.comparisons.measure_models`; of more than 30 models the 30 most mislabelled.
    """
    rows = models.dropna(subset=["label_accuracy"]).head(30).reset_index(drop=True)
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.85, 0.24 * len(rows) + 1.3))
    axes.barh(rows.index, rows["overrated"], color=PALETTE[1], label="called better, judged worse")
    axes.barh(rows.index, rows["underrated"], left=rows["overrated"], color=PALETTE[0], hatch="//",
              label="called worse, judged better")  # fmt: skip
    names = [f"{name} (n = {n:,})" for name, n in zip(rows["model"], rows["n_decided"], strict=True)]
    axes.set(yticks=rows.index, yticklabels=names, ylim=(len(rows) - 0.5, -0.5), ylabel="origin model",
             xlabel="labels that judgments contradict\n(share of the model's decided comparisons)",
             xlim=(0, 1))  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return axes


def plot_vote_agreement(agreement: pd.DataFrame) -> Axes:
    """Plot how often each judge agrees with a person's vote, on its own comparisons and on those that all decide.

    Args:
        agreement: from `karma.labels.agreement.measure_agreement`.
    """
    judges = list(dict.fromkeys(agreement["judge"]))
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN * 1.5, 0.45 * len(judges) + 1.5))
    axes.axvline(0.5, color="black", lw=1, ls=":", label="a coin")
    for shift, (on, rows) in zip((-0.15, 0.15), agreement.groupby("on", sort=False), strict=False):
        places = rows["judge"].map(judges.index) + shift
        style = row_style(0 if shift < 0 else 3)
        axes.hlines(places, rows["low"], rows["high"], color=style["color"], lw=2)
        axes.plot(rows["agreement"], places, style["marker"], color=style["color"], mec="0.2", mew=0.5, label=on)
    counts = agreement.groupby("judge", sort=False)["n_votes"].first()
    names = [f"{judge} (n = {counts[judge]:,})" for judge in judges]
    axes.set(yticks=range(len(judges)), yticklabels=names, xlim=(-0.02, 1.02), ylim=(len(judges) - 0.5, -0.5),
             xlabel="agrees with a person's vote\n(share of votes, 95 % interval)")  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return axes


def plot_reliability(audit: "CalibrationAudit") -> Axes:
    """Plot how often labels of held-out prompts were right against how sure they were said to be, 95 % intervals.

    A point's area is in proportion to the decided comparisons that it stands for.

    Args:
        audit: from `karma.labels.calibration.fit_calibration`.
    """
    held = audit.model.held_out
    brier = {"calibrated": held.brier_calibrated, "sampling error": held.brier_sampling_error}
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN * 1.5, 3.8))
    axes.plot([0, 1], [0, 1], ls=":", color="black", lw=1, label="as sure as right")
    for place, (name, rows) in enumerate(audit.curve.groupby("confidence", sort=False)):
        score = brier[str(name)]
        errors = [rows["label_accuracy"] - rows["low"], rows["high"] - rows["label_accuracy"]]
        label = f"{name}: Brier {score.value:.3f} ({score.low:.3f} to {score.high:.3f})" if score else str(name)
        axes.errorbar(rows["mean_confidence"], rows["label_accuracy"], yerr=errors, elinewidth=1, label=label,
                      color=PALETTE[place], marker="os"[place], markersize=2, ls="--" if place else "-")  # fmt: skip
        axes.scatter(rows["mean_confidence"], rows["label_accuracy"], color=PALETTE[place], marker="os"[place],
                     s=200 * rows["n_decided"] / audit.curve["n_decided"].max(), alpha=0.6)  # fmt: skip
    constant = held.brier_constant
    axes.plot([], [], " ", label=f"a constant: Brier {constant.value:.3f} ({constant.low:.3f} to {constant.high:.3f})")
    axes.set(xlabel="label confidence (mean of a bin of one tenth)\narea of a point: decided comparisons",
             ylabel=f"labels confirmed\n(share of {held.n_decided:,} decided, {held.n_prompts:,} prompts)",
             xlim=(-0.02, 1.14), ylim=(-0.02, 1.08))  # fmt: skip
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    return axes


def save_recorded_figures(audit: "RecordedAudit", folder: Path) -> None:
    """Draw and save the figures of an audit of recorded judgments."""
    drawn = {
        "label_accuracy": plot_label_accuracy(audit.strategies, "recorded", "the judge"),
        "surface": plot_accuracy_surface(audit.surface),
        "trade_off": plot_trade_off(audit.accuracy, audit.strategies, "recorded"),
        "mislabelled": plot_mislabelled(audit.models),
    }
    if len(audit.agreement):
        drawn["agreement"] = plot_vote_agreement(audit.agreement)
    if len(audit.kinships) and audit.kinships["told"].max() > 0:
        drawn["kinships"] = plot_kinships(audit.kinships)[0]
    if audit.calibration:
        drawn["reliability"] = plot_reliability(audit.calibration)
    for name, axes in drawn.items():
        save_figure(axes, folder / name)
        plt.close(axes.get_figure(root=True))
