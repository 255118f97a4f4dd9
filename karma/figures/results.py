"""Figures 5 and 6: what the trained policies score, by capability and by policy, with 95 % intervals; and the square.

Decision: a bar is drawn only where all the scores that it averages exist; a missing one is written "n/a"
in its place, so that an unfinished study cannot be mistaken for a poor one. Limit: with one seed the
intervals hold the items' noise, not the training's.
"""

import textwrap

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from karma.figures.style import COLUMN_WIDTH_IN, PAGE_WIDTH_IN, strategy_style
from karma.vocabulary import START, title_of


def plot_capabilities(bars: pd.DataFrame, leads: pd.DataFrame) -> np.ndarray:
    """Draw Figure 5: a column a capability, above each data set's mean, below its paired difference from the baseline.

    Args:
        bars: from `karma.results.estimates.compute_capabilities`. leads: from `karma.results.leads.compute_leads`.

    Returns:
        Axes (2, capabilities), or (1, capabilities) where there is nothing to compare with.

    Paper: Figure 5.
    """
    groups, strategies = (list(dict.fromkeys(bars[key])) for key in ("capability", "strategy"))
    others = list(dict.fromkeys(leads["strategy"]))
    rows = [len(strategies), *([len(others)] if others else [])]
    size = (PAGE_WIDTH_IN, sum(0.24 * n + 0.85 for n in rows))
    _, axes = plt.subplots(
        len(rows), max(len(groups), 1), figsize=size, sharex="row", sharey="row", squeeze=False, height_ratios=rows
    )
    for column, group in enumerate(groups):
        own = bars[bars["capability"] == group]
        _draw_dots(axes[0, column], own, strategies, 1)
        n = own["n"].max()
        told = f"n = {n:,.0f}" if n else ""
        if n and own.loc[own["value"].notna(), "low"].isna().any():  # then there is no interval
            told += ", partly unknown"
        axes[0, column].set(title=f"{group}\n({told})" if told else group, xlabel="accuracy (share, 95 %)")
        if others:
            _draw_dots(axes[1, column], leads[leads["capability"] == group], others, 100)
            axes[1, column].axvline(0, color="black", lw=1)
            axes[1, column].set_xlabel("minus RLAIF (points, 95 %)")
    axes[0, 0].set_xlim(0, _compute_top(bars))
    return axes


def _draw_dots(ax: Axes, rows: pd.DataFrame, strategies: list[str], scale: float) -> None:
    """Draw a row a strategy: its value, times `scale`, as a dot with its interval; "n/a" where it is missing."""
    titles = rows.set_index("strategy")["strategy_title"].to_dict()
    for place, row in zip(rows["strategy"].map(strategies.index), rows.itertuples(), strict=True):
        look = strategy_style(row.strategy)
        if np.isnan(row.value):
            ax.text(0.03, place, "n/a", transform=ax.get_yaxis_transform(), va="center", fontsize=8, color="0.25")
            continue
        ax.hlines(place, scale * row.low, scale * row.high, color=look["color"], lw=2)
        ax.plot(scale * row.value, place, look["marker"], color=look["color"], ms=6, mec="0.2", mew=0.5)
    ax.set_yticks(range(len(strategies)), [titles[name] for name in strategies])
    ax.set_ylim(len(strategies) - 0.5, -0.5)
    ax.grid(False, axis="y")


def plot_policies(bars: pd.DataFrame, method: str) -> np.ndarray:
    """Draw Figure 6: one panel a policy, bars by benchmark and strategy, 95 % intervals.

    A black line marks the untrained policy, a dotted one chance as measured on the items asked.

    Args:
        bars: from `karma.results.estimates.compute_policies`. method: theirs, for the titles.

    Returns:
        The panels' Axes.

    Paper: Figure 6.
    """
    policies, strategies = (list(dict.fromkeys(bars[key])) for key in ("policy", "strategy"))
    strategies, count = [s for s in strategies if s != START], len(policies)
    columns = min(count, 2)
    width = COLUMN_WIDTH_IN * 1.6 if count == 1 else PAGE_WIDTH_IN
    height = -(-count // columns) * 2.1 + 0.7
    figure, axes = plt.subplots(
        -(-count // columns), columns, figsize=(width, height), squeeze=False, sharey=True, sharex=True
    )
    for ax, policy in zip(axes.flat, policies, strict=False):
        rows = bars[bars["policy"] == policy]
        groups = list(dict.fromkeys(rows["benchmark"]))
        _draw_bars(ax, rows.assign(group=rows["benchmark"]), groups, strategies)
        _draw_levels(ax, rows, groups)
        titles = rows.set_index("benchmark")["benchmark_title"].to_dict()
        labels = [textwrap.fill(titles[b], 9) for b in groups]
        ax.set_xticks(range(len(groups)), labels)
        ax.set_title(f"{policy}, {title_of(method)}")
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy (share)")
        ax.set_ylim(0, _compute_top(bars))
    for ax in list(axes.flat)[count:]:
        ax.remove()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=3 if count == 1 else 5, loc="outside lower center", frameon=False)
    return np.array(list(axes.flat)[:count])


def _draw_bars(ax: Axes, bars: pd.DataFrame, groups: list[str], strategies: list[str]) -> None:
    """Draw grouped bars with intervals; `bars` has group, strategy, value, low, high."""
    width, titles = 0.8 / len(strategies), bars.set_index("strategy")["strategy_title"].to_dict()
    for k, strategy in enumerate(strategies):
        style = strategy_style(strategy)
        rows = bars[bars["strategy"] == strategy].set_index("group").reindex(groups)
        x = np.arange(len(groups)) + (k - (len(strategies) - 1) / 2) * width
        ax.bar(
            x, rows["value"].fillna(0), width * 0.92, label=titles[strategy], color=style["color"],
            hatch=style["hatch"], edgecolor="white", linewidth=0.6,
        )  # fmt: skip
        there = rows["value"].notna().to_numpy()
        spread = np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]])[:, there]
        ax.errorbar(x[there], rows["value"][there], yerr=spread, fmt="none", ecolor="0.15", capsize=1.8, lw=0.9)
        for position in x[~there]:
            ax.text(position, 0.01, "n/a", rotation=90, ha="center", va="bottom", fontsize=8, color="0.25")
    ax.grid(axis="x", visible=False)
    ax.margins(x=0.02)


def _draw_levels(ax: Axes, rows: pd.DataFrame, groups: list[str]) -> None:
    untrained = rows[rows["strategy"] == START].set_index("benchmark")["value"].reindex(groups)
    edges = np.arange(len(groups))
    if untrained.notna().any():
        ax.hlines(untrained, edges - 0.42, edges + 0.42, color="black", lw=1.2, label="untrained")
    levels = rows.groupby("benchmark")["chance"].first().reindex(groups)
    ax.hlines(levels, edges - 0.42, edges + 0.42, color="0.2", lw=1.0, linestyles=":", label="chance")


def _compute_top(bars: pd.DataFrame) -> float:
    """Return an axis limit above every bar and interval, and at least .3, so that noise does not fill the figure."""
    return min(1.0, max(0.3, float(np.nanmax([0.0, *bars["high"], *bars["value"]])) * 1.08))


def plot_square(cells: pd.DataFrame, titles: dict[str, str]) -> np.ndarray:
    """Draw what policies were trained on against what they are tested on, one panel a method.

    Purple: training moved the policy towards the labels of the column; orange: away from them; white: a coin. A star
    marks a share whose 95 % interval leaves .5 out, uncorrected.

    Args:
        cells: from `karma.results.cross.build_square`. titles: of strategies and of the truth, by name.

    Returns:
        The panels' Axes.
    """
    methods, tested = (list(dict.fromkeys(cells[key])) for key in ("method", "tested_on"))
    counts = [cells.loc[cells["method"] == method, "trained_on"].nunique() for method in methods]
    figure, axes = plt.subplots(
        len(methods), 1, figsize=(PAGE_WIDTH_IN, 0.27 * sum(counts) + 1.0 * len(methods) + 0.9), squeeze=False,
        sharex=True, gridspec_kw={"height_ratios": counts},
    )  # fmt: skip
    for method, panel in zip(methods, axes[:, 0], strict=True):
        own = cells[cells["method"] == method]
        shares = own.pivot(index="trained_on", columns="tested_on", values="share")
        shares = shares.reindex(index=dict.fromkeys(own["trained_on"]), columns=tested)
        own = own.assign(text=[f"{r.share:.2f}{'' if r.low <= 0.5 <= r.high else '*'}" for r in own.itertuples()])
        texts = own.pivot(index="trained_on", columns="tested_on", values="text").reindex_like(shares)
        sns.heatmap(shares, annot=texts, fmt="", vmin=0, vmax=1, center=0.5, cmap="PuOr", cbar=False, linewidths=0.5,
                    ax=panel, annot_kws={"size": 8})  # fmt: skip
        panel.set(title=f"{title_of(method)}: trained on (rows), tested on (columns)", xlabel="", ylabel="")
        panel.set_yticklabels([titles[name] for name in shares.index], rotation=0)
        panel.set_xticklabels([titles[name] for name in tested], rotation=30, ha="right", rotation_mode="anchor")
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.TwoSlopeNorm(0.5, 0, 1), "PuOr")
    meaning = "share of held-out pairs\nmoved the right way\n(*: 95 % interval without .5)"
    figure.colorbar(scale, ax=axes[:, 0], shrink=0.5, label=meaning)
    return axes[:, 0]
