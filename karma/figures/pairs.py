"""Figures of the binarization: overlap of strategies, model pairs, Response Quality Gap, the premise, curriculum."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import seaborn as sns
from matplotlib.axes import Axes

from karma.figures.style import COLUMN_WIDTH_IN, MARKERS, PAGE_WIDTH_IN, PALETTE, strategy_style
from karma.pairs.premise import MEASURES
from karma.pairs.quality_gap import UNITS

AXIS_TITLES = {
    "length": "length gap",
    "lexical": "lexical gap",
    "complexity": "complexity gap",
    "judge": "judge's gap",
    "embedding": "embedding gap",
    "truth": "truth gap",
}


def plot_overlap(chosen: pd.DataFrame, pair: pd.DataFrame) -> np.ndarray:
    """Draw how often two strategies choose the same response, and the same pair.

    Args:
        chosen, pair: square tables of shares from `karma.pairs.agreement.compute_overlap`.

    Returns:
        The two Axes.
    """
    n = len(chosen)
    figure, axes = plt.subplots(1, 2, figsize=(PAGE_WIDTH_IN, 1.7 + 0.42 * n), sharey=True)
    for ax, shares, title in zip(axes, (chosen, pair), ("the same response is chosen", "the same pair"), strict=True):
        sns.heatmap(
            shares,
            vmin=0,
            vmax=1,
            annot=True,
            fmt=".2f",
            cmap="cividis",
            square=True,
            cbar=False,
            ax=ax,
            linewidths=0.5,
            annot_kws={"size": 8},
        )
        ax.set_title(title)
        ax.tick_params(axis="x", rotation=45)
        ax.tick_params(axis="y", rotation=0)
    figure.suptitle("Share of common prompts on which two strategies decide alike", fontsize=10)
    return axes


def plot_model_pairs(pairs: pa.Table, strategy: str, max_models: int = 20) -> Axes:
    """Draw how many pairs each two origin models make: rows chosen, columns rejected.

    Args:
        pairs: a pair set.
        strategy: its name, for the title.
        max_models: the commonest models shown.
    """
    frame = pairs.select(["chosen_model", "rejected_model", "chosen_score", "rejected_score"]).to_pandas()
    both = pd.concat([frame["chosen_model"], frame["rejected_model"]]).value_counts().head(max_models).index
    scores = pd.concat(
        [
            frame.groupby("chosen_model")["chosen_score"].mean(),
            frame.groupby("rejected_model")["rejected_score"].mean(),
        ]
    )
    order = scores[scores.index.isin(both)].groupby(level=0).mean().sort_values(ascending=False).index
    counts = pd.crosstab(frame["chosen_model"], frame["rejected_model"]).reindex(
        index=order, columns=order, fill_value=0
    )
    side = max(COLUMN_WIDTH_IN, 0.4 * len(order) + 1.6)
    _, ax = plt.subplots(figsize=(min(side + 0.6, PAGE_WIDTH_IN), min(side, PAGE_WIDTH_IN)))
    sns.heatmap(
        counts,
        mask=counts == 0,
        annot=len(order) <= 17,
        fmt="d",
        cmap="Blues",
        cbar=False,
        square=True,
        ax=ax,
        linewidths=0.5,
        linecolor="#dddddd",
        annot_kws={"size": 8},
    )
    ax.set(
        xlabel="origin model of the rejected response",
        ylabel="origin model of the\nchosen response",
        title=f"{strategy}: pairs by\norigin models (best first)",
    )
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)
    ax.grid(visible=False)
    return ax


def plot_gaps(gaps: Mapping[str, pd.DataFrame], comparison: pd.DataFrame) -> np.ndarray:
    """Draw the Response Quality Gap: above, its distribution; below, the difference from the baseline.

    Args:
        gaps: strategy -> gaps, from `karma.pairs.quality_gap.compute_gaps`.
        comparison: from `compare_gaps`, with one baseline.

    Returns:
        Axes, shape (2, measures).
    """
    measures = list(dict.fromkeys(comparison["measure"]))
    names = list(gaps)
    shape = (2, max(len(measures), 1))
    figure, axes = plt.subplots(*shape, figsize=(PAGE_WIDTH_IN, 1.6 + 0.5 * len(names)), sharey="row", squeeze=False)
    for measure, (upper, lower) in zip(measures, axes.T, strict=False):
        for place, name in enumerate(names):
            values = gaps[name][measure].dropna() if measure in gaps[name] else pd.Series(dtype=float)
            _draw_box(upper, values, place, strategy_style(name))
            found = comparison[(comparison["measure"] == measure) & (comparison["strategy"] == name)]
            for row in found.itertuples():
                style = strategy_style(name)
                lower.errorbar(
                    row.difference,
                    place,
                    xerr=[[row.difference - row.low], [row.high - row.difference]],
                    color=style["color"],
                    marker=style["marker"],
                    capsize=3,
                    markersize=5,
                )
        upper.set(title=AXIS_TITLES[measure], xlabel=UNITS[measure])
        lower.axvline(0, color="black", linewidth=0.8, linestyle="--")
        lower.set(xlabel=UNITS[measure])
    for ax in (axes[0, 0], axes[1, 0]):
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
    baseline = comparison["baseline"].iloc[0] if len(comparison) else "the baseline"
    figure.suptitle(
        f"Above: gap of each pair (box: quartiles, diamond: mean). Below: mean minus {baseline}, same prompts, 95 %",
        fontsize=9,
    )
    return axes


def plot_premise(tests: pd.DataFrame, curve: pd.DataFrame, models: pd.DataFrame, tau: float) -> np.ndarray:
    """Draw, a panel a measure, the mean gap of each two models against their kinship, and what a threshold leaves.

    Args:
        tests, curve, models: from `karma.pairs.premise`: `relate_gaps`, `trace_gaps`, `average_models`.
        tau: of the study.

    Returns:
        Axes, shape (rows, columns), three columns at most.
    """
    names = list(dict.fromkeys(curve["measure"]))
    n_columns = min(max(len(names), 1), 3)
    n_rows = max(-(-len(names) // n_columns), 1)
    size = (PAGE_WIDTH_IN, 0.9 + 2.1 * n_rows)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, sharex=True)
    for ax, name in zip(axes.flat, names, strict=False):
        line, test = curve[curve["measure"] == name], tests[tests["measure"] == name].set_index("relation")
        start = line["tau"].min() - 0.05 * float(np.ptp(line["tau"]))  # below the lowest kinship all pairs are left
        line = pd.concat([line.head(1).assign(tau=start), line])
        ax.fill_between(line["tau"], line["low"], line["high"], step="pre", color=PALETTE[3], alpha=0.25, linewidth=0)
        ax.plot(line["tau"], line["value"], drawstyle="steps-pre", color=PALETTE[3], zorder=3,
                label="all pairs of kinship ≥ τ")  # fmt: skip
        ax.plot(models["kinship"], models[name], MARKERS[0], color=PALETTE[0], markersize=4, markeredgecolor="white",
                markeredgewidth=0.5, label="two origin models")  # fmt: skip
        if line["tau"].min() < tau:
            ax.axvline(tau, color="black", linewidth=0.8, linestyle=":")
        found = test.loc["kinship", ["r", "p_holm"]]
        p = "p < 0.001" if found["p_holm"] < 0.001 else f"p = {found['p_holm']:.3f}"
        said = "no r" if found.isna().any() else f"r = {found['r']:+.2f}, {p}"
        ax.set(title=f"{AXIS_TITLES[name]}\n{said}", xlabel="kinship, or τ", ylabel=MEASURES[name])
        ax.tick_params(labelbottom=True)  # the panel below may be empty
    for ax in axes.flat[len(names) :]:
        ax.remove()
    if names:
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    told = "Mean gap of two responses (band: 95 %, by prompt; r: Mantel's, with 1 - kinship; p: Holm's)"
    figure.suptitle(told, fontsize=9)
    return axes


def plot_curriculum(pairs: pa.Table, strategy: str) -> Axes:
    """Draw a curriculum: the score gap along the order of training, kinship as colour, stages marked.

    Args:
        pairs: a set ordered by `karma.pairs.order_pairs`, with a column `stage`.
        strategy: its name, for the title.
    """
    frame = pairs.select(["chosen_score", "rejected_score", "kinship", "stage"]).to_pandas()
    _, ax = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.75, 2.8))
    points = ax.scatter(
        np.arange(len(frame)) + 1,
        frame["chosen_score"] - frame["rejected_score"],
        s=9,
        c=frame["kinship"],
        cmap="cividis",
        rasterized=True,
    )
    starts = np.flatnonzero(frame["stage"].diff().to_numpy() > 0)
    for start in starts:
        ax.axvline(start + 0.5, color="black", linewidth=0.8, linestyle="--")
    for stage, places in frame.groupby("stage").indices.items():
        ax.text(
            places.mean() + 1,
            1.01,
            f"stage {stage}",
            transform=ax.get_xaxis_transform(),
            ha="center",
            fontsize=8,
        )
    ax.figure.colorbar(points, ax=ax, label="kinship (cosine)")
    unit = {"rlaif": "annotation", "density_ratio": "log-density ratio (nats)"}.get(strategy, "S_pref")
    ax.set(
        xlabel="place in the order of training (pairs)",
        ylabel=f"{unit}, chosen minus rejected",
        ylim=(0, None),
    )
    ax.set_title(f"{strategy}: from plain to subtle distinctions", pad=16)
    return ax


def plot_agreement(by_models: pd.DataFrame, max_rows: int = 12) -> Axes:
    """Draw how often the annotations agree with the kinship label, by pair of origin models.

    Args:
        by_models: from `compute_agreement(..., by_models=True)`.
        max_rows: the commonest model pairs shown.
    """
    rows = by_models.dropna(subset="share").head(max_rows)[::-1]
    _, ax = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.75, 1.35 + 0.26 * len(rows)))
    labels = [f"{r.chosen_model} > {r.rejected_model}  (n={r.n}, ties {r.tie})" for r in rows.itertuples()]
    spans = [np.maximum(rows["share"] - rows["low"], 0), np.maximum(rows["high"] - rows["share"], 0)]
    ax.errorbar(rows["share"], labels, xerr=spans, fmt="o", capsize=3)
    ax.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
    ax.set(
        xlim=(-0.02, 1.02),
        xlabel="share of untied annotations\nthat agree, 95 % interval",
        title="Does the annotator see it so?",
    )
    return ax


def _draw_box(ax: Axes, values: pd.Series, place: int, style: dict[str, str]) -> None:
    if len(values):
        ax.boxplot(
            values,
            positions=[place],
            orientation="horizontal",
            widths=0.65,
            showfliers=False,
            showmeans=True,
            patch_artist=True,
            manage_ticks=False,
            medianprops={"color": "black"},
            boxprops={"facecolor": style["color"], "alpha": 0.6, "hatch": style["hatch"]},
            meanprops={
                "marker": "D",
                "markerfacecolor": "white",
                "markeredgecolor": "black",
                "markersize": 4,
            },
        )
