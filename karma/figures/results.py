"""Figures 5 and 6: what the trained policies score, by capability and by policy, with 95 % intervals.

Decision: a bar is drawn only where all the scores that it averages exist; a missing one is written "n/a"
in its place, so that an unfinished study cannot be mistaken for a poor one. Limit: with one seed the
intervals hold the items' noise, not the training's.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from karma.errors import InputError
from karma.figures.style import COLUMN_WIDTH_IN, PAGE_WIDTH_IN, save_figure, strategy_style
from karma.results.estimates import compute_mean
from karma.results.study import Study
from karma.scores.normalise import compute_normalized
from karma.scores.table import ScoreTable, load_benchmarks
from karma.vocabulary import START, order_benchmarks, title_of

CAPABILITIES = ["knowledge", "instruction following", "reasoning"]


def compute_capabilities(study: Study) -> pd.DataFrame:
    """Return the mean score of each strategy on each capability, over all policies, methods and seeds.

    Returns:
        Columns capability, strategy, value, low, high (all NaN where a run is missing), n.

    Paper: Figure 5, with Table 1's capabilities.
    """
    capability = load_benchmarks()["capability"]
    runs, records = len(study.policies) * len(study.methods) * len(study.seeds), []
    for name in CAPABILITIES:
        benchmarks = [b for b in study.benchmarks if capability[b] == name]
        for strategy in study.strategies if benchmarks else ():
            rows = study.results[study.results["benchmark"].isin(benchmarks)]
            rows = rows[rows["strategy"] == strategy]
            whole = len(rows) == runs * len(benchmarks)
            records.append({"capability": name, "strategy": strategy, **_estimate(study, rows if whole else rows[:0])})
    return pd.DataFrame(records)


def compute_policies(study: Study, method: str = "dpo") -> pd.DataFrame:
    """Return each policy's score by benchmark and strategy, a mean over seeds, the untrained policy included.

    Returns:
        Columns policy, benchmark, strategy, value, low, high (NaN where a run is missing), n.

    Raises:
        InputError: a method that the study does not train.

    Paper: Figure 6 (DPO).
    """
    if method not in study.methods:
        raise InputError(f"method '{method}' is not trained in {study.name}: choose from {', '.join(study.methods)}")
    records = []
    for policy in study.policies:
        for benchmark in order_benchmarks(study.benchmarks, "table2"):
            for strategy in [START, *study.strategies]:
                rows = study.results.query("policy == @policy and benchmark == @benchmark and strategy == @strategy")
                rows = rows[rows["method"].isin([START, method])]
                whole = len(rows) == (1 if strategy == START else len(study.seeds))
                key = {"policy": policy, "benchmark": benchmark, "strategy": strategy}
                records.append({**key, **_estimate(study, rows if whole else rows[:0])})
    return pd.DataFrame(records)


def _estimate(study: Study, rows: pd.DataFrame) -> dict[str, float]:
    if rows.empty:
        return {"value": np.nan, "low": np.nan, "high": np.nan, "n": 0}
    found = compute_mean(study, rows)
    low, high = found.interval
    return {"value": found.value, "low": max(low, 0.0), "high": min(high, 1.0), "n": found.n}


def plot_capabilities(study: Study, ax: Axes | None = None) -> Axes:
    """Draw Figure 5: bars by capability, the baseline beside the kinship strategies, 95 % intervals.

    Paper: Figure 5.
    """
    ax = ax or plt.subplots(figsize=(PAGE_WIDTH_IN * 0.7, 2.9))[1]
    bars = compute_capabilities(study)
    groups = [c for c in CAPABILITIES if c in set(bars["capability"])]
    _draw_bars(ax, bars.assign(group=bars["capability"]), groups, list(study.strategies))
    ax.set_xticks(range(len(groups)), groups)
    ax.set_ylabel("mean accuracy (share)")
    ax.set_ylim(0, _compute_top(bars))
    ax.set_title(f"{_source(study)}: all policies and methods")
    ax.legend(ncols=min(len(study.strategies), 4), loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    return ax


def plot_policies(study: Study, method: str = "dpo") -> np.ndarray:
    """Draw Figure 6: one panel a policy, bars by benchmark and strategy, 95 % intervals.

    A black line marks the untrained policy, a dotted one chance.

    Returns:
        The panels' Axes.

    Paper: Figure 6.
    """
    bars, count = compute_policies(study, method), len(study.policies)
    columns = min(count, 2)
    width = COLUMN_WIDTH_IN * 1.6 if count == 1 else PAGE_WIDTH_IN
    height = -(-count // columns) * 2.1 + 0.7
    figure, axes = plt.subplots(
        -(-count // columns), columns, figsize=(width, height), squeeze=False, sharey=True, sharex=True
    )
    known = load_benchmarks()
    for ax, policy in zip(axes.flat, study.policies, strict=False):
        rows = bars[bars["policy"] == policy]
        groups = list(dict.fromkeys(rows["benchmark"]))
        _draw_bars(ax, rows.assign(group=rows["benchmark"]), groups, list(study.strategies))
        _draw_levels(ax, rows, groups, known["chance"])
        labels = [known.loc[b, "title"].replace("-", "-\n", 1) for b in groups]
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
    width = 0.8 / len(strategies)
    for k, strategy in enumerate(strategies):
        style = strategy_style(strategy)
        rows = bars[bars["strategy"] == strategy].set_index("group").reindex(groups)
        x = np.arange(len(groups)) + (k - (len(strategies) - 1) / 2) * width
        ax.bar(
            x, rows["value"].fillna(0), width * 0.92, label=title_of(strategy), color=style["color"],
            hatch=style["hatch"], edgecolor="white", linewidth=0.6,
        )  # fmt: skip
        there = rows["value"].notna().to_numpy()
        spread = np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]])[:, there]
        ax.errorbar(x[there], rows["value"][there], yerr=spread, fmt="none", ecolor="0.15", capsize=1.8, lw=0.9)
        for position in x[~there]:
            ax.text(position, 0.01, "n/a", rotation=90, ha="center", va="bottom", fontsize=8, color="0.25")
    ax.grid(axis="x", visible=False)
    ax.margins(x=0.02)


def _draw_levels(ax: Axes, rows: pd.DataFrame, groups: list[str], chance: pd.Series) -> None:
    untrained = rows[rows["strategy"] == START].set_index("benchmark")["value"].reindex(groups)
    edges = np.arange(len(groups))
    if untrained.notna().any():
        ax.hlines(untrained, edges - 0.42, edges + 0.42, color="black", lw=1.2, label="untrained")
    levels = chance.reindex(groups)
    ax.hlines(levels, edges - 0.42, edges + 0.42, color="0.2", lw=1.0, linestyles=":", label="chance")


def _compute_top(bars: pd.DataFrame) -> float:
    """Return an axis limit above every interval, and at least .3, so that noise does not fill the figure."""
    return min(1.0, max(0.3, float(np.nanmax([0.0, *bars["high"]])) * 1.08))


def _source(study: Study) -> str:
    return "The paper's numbers" if study.is_published else f"Study {study.name}"


def save_kinship_figures(table: ScoreTable | None, kinship: Any, folder: Path) -> list[Axes]:
    """Draw and save Figures 3, 4, 7 and 9 of a score table, as stage 2 draws them.

    Args:
        table: origin models x benchmarks; None (stage 2 has not run) draws nothing.
        kinship: the experiment's kinship settings (tau, distance, linkage, cut).
        folder: figure3.png, figure3.svg and so on go there.

    Returns:
        The first axes of each figure.
    """
    from karma.figures.kinship import find_worked_set, plot_dendrograms, plot_worked_example
    from karma.figures.kinship_map import plot_pca
    from karma.kinship.clusters import compute_pca, compute_trees

    if table is None:
        return []
    tau = kinship.tau
    worked = {n: find_worked_set(table, tau, with_dropped=n == 9) for n in (3, 9)}
    drawn = {3: plot_worked_example(table, worked[3], tau)[0]}
    drawn[4] = plot_pca(compute_pca(compute_normalized(table)), table)[0]
    drawn[7] = plot_dendrograms(compute_trees(table, kinship.distance, kinship.linkage), kinship.cut, table)[0]
    drawn[9] = plot_worked_example(table, worked[9], tau)[0]
    for number, ax in drawn.items():
        save_axes(ax, folder / f"figure{number}")
    return list(drawn.values())


def save_axes(ax: Axes, path: Path) -> list[Path]:
    """Save the figure that holds `ax` as PNG and SVG, and return the paths."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return save_figure(figure, path)
