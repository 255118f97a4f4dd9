"""Figures of stage 07: what each metric would keep, and what training on more or fewer of its pairs gave."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from karma.figures.style import COLUMN_WIDTH_IN, PAGE_WIDTH_IN, PALETTE, row_style
from karma.potential.margins import Candidates
from karma.potential.study import find_pool
from karma.vocabulary import METRICS, title_of

_ORDER = list(METRICS)
LEAST_SHOWN = 0.02  # share; an axis of differences reaches so far at least, so that nothing is not drawn large
DRAWN = ("random", "explicit_large", "implicit_small", "m_ap")  # the margins each alone, both, and neither


def metric_style(metric: str) -> dict[str, Any]:
    """Return the colour and marker of a metric, the same in every figure; `random` is black."""
    place = (_ORDER.index(metric) - 1) % len(_ORDER)  # the control last
    black = PALETTE.index("#000000")
    style = row_style(place if metric != _ORDER[0] and place < black else place + 1)
    return style | {"color": "#000000"} if metric == _ORDER[0] else style


def plot_choices(pools: Mapping[str, Candidates], choices: Mapping[str, np.ndarray], overlap: pd.DataFrame) -> Figure:
    """Draw the two margins of all candidates, once a metric with what it keeps, and how far the metrics agree.

    Args:
        pools: from `karma.potential.study.gather_pools`.
        choices: metric -> positions kept. overlap: square table of shares.

    Returns:
        The figure: a panel for each metric of DRAWN, with its cut, and a heat map of all.
    """
    drawn = [metric for metric in DRAWN if metric in choices]
    figure = plt.figure(figsize=(PAGE_WIDTH_IN, 2.4 + 0.9 + 0.26 * len(overlap)))
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.4, 0.9 + 0.26 * len(overlap)])
    above, below = parts
    axes = above.subplots(1, len(drawn), squeeze=False, sharex=True, sharey=True)[0]
    for ax, metric in zip(axes, drawn, strict=True):
        _plot_choice(ax, pools[find_pool(metric)], metric, choices[metric])
    shown = below.subplots()
    sns.heatmap(overlap, vmin=0, vmax=1, annot=True, fmt=".2f", cmap="cividis", cbar=False, ax=shown,
                annot_kws={"size": 8})  # fmt: skip
    shown.set_title("pairs kept by both (share)")
    shown.set_xticklabels(overlap.columns, rotation=30, ha="right", rotation_mode="anchor")
    above.supxlabel("explicit margin (units of the scores)", fontsize=9)
    above.supylabel("implicit margin (nats a token)", fontsize=9)
    return figure


def _plot_choice(ax: Axes, pool: Candidates, metric: str, places: np.ndarray) -> None:
    """Draw all candidates, those kept filled, and the cut between them where the metric has one."""
    kept = np.zeros(len(pool.reasons), bool)
    kept[places] = True
    style, rest = metric_style(metric), pool.fit & ~kept
    ax.scatter(pool.explicit[rest], pool.implicit[rest], s=8, facecolors="none", edgecolors="0.6", lw=0.6)
    ax.scatter(pool.explicit[kept], pool.implicit[kept], s=10, color=style["color"], marker=style["marker"], lw=0)
    _draw_cut(ax, pool, metric, kept)
    ax.set_title(f"{metric}\n{kept.sum()} of {pool.fit.sum()} kept", fontsize=8)
    ax.locator_params(nbins=3)


def _draw_cut(ax: Axes, pool: Candidates, metric: str, kept: np.ndarray) -> None:
    """Draw where the last pair was kept: upright, level, or aslant where the potential is the same."""
    line: Any = {"color": "black", "lw": 1, "ls": "--"}
    if metric == "explicit_large":
        ax.axvline(pool.explicit[kept].min(), **line)
    elif metric == "implicit_small":
        ax.axhline(pool.implicit[kept].max(), **line)
    elif metric == "m_ap" and pool.weight:
        spread = [part[pool.fit].std() or 1.0 for part in (pool.explicit, pool.implicit)]
        last = int(np.flatnonzero(kept)[np.argmin(pool.potential[kept])])
        slope = spread[1] / (pool.weight * spread[0])
        low, high = ax.get_xlim(), ax.get_ylim()
        ax.axline((pool.explicit[last], pool.implicit[last]), slope=slope, **line)
        ax.set(xlim=low, ylim=high)


def plot_curve(compared: pd.DataFrame) -> np.ndarray:
    """Draw held-out preference accuracy by metric, and beside it the paired difference from `random`.

    Args:
        compared: from `karma.potential.study.compare_selections`; of one share of pairs kept, dots; of several, lines
            over the share.

    Returns:
        Axes, two a (policy, strategy, method): accuracy and difference.
    """
    panels = list(compared.groupby(["policy", "strategy", "method"], sort=False))
    several, metrics = compared["ratio"].nunique() > 1, _list_metrics(compared)
    height = 2.5 if several else 0.9 + 0.24 * len(metrics)
    _, axes = plt.subplots(
        len(panels), 2, figsize=(PAGE_WIDTH_IN, height * len(panels) + 0.4), squeeze=False, sharex="col",
        sharey=False if several else "row",
    )  # fmt: skip
    columns = (["accuracy", "low", "high"], ["difference", "difference_low", "difference_high"])
    labels = ("held-out accuracy (share)", "minus random (share, paired)")
    for row, ((policy, strategy, method), part) in zip(axes, panels, strict=True):
        for ax, names, level, label in zip(row, columns, (0.5, 0.0), labels, strict=True):
            known = part[part[names[0]].notna()]
            if several:
                _plot_sizes(ax, known, names)
                ax.axhline(level, color="black", lw=1, ls=":")
                ax.set_ylabel(label)
            else:
                _plot_dots(ax, known, names, metrics)
                ax.axvline(level, color="black", lw=1, ls=":")
                ax.set_xlabel(label)
        n = f", n = {part['n'].max():,.0f}" if "n" in part and part["n"].notna().any() else ""
        share = "" if several else f", {100 * part['ratio'].iloc[0]:g} % kept"
        row[0].set_title(f"{policy}, {title_of(strategy)}, {title_of(method)}{share}{n}", loc="left", fontsize=9)
    if several:
        _add_legend(axes.ravel())
    return axes.ravel()


def _plot_dots(ax: Axes, rows: pd.DataFrame, columns: list[str], metrics: list[str]) -> None:
    """Draw a row a metric: its value as a dot with its interval."""
    value, low, high = columns
    for row in rows.to_dict("records"):
        style, place = metric_style(row["metric"]), metrics.index(row["metric"])
        ax.hlines(place, row[low], row[high], color=style["color"], lw=2)
        ax.plot(row[value], place, style["marker"], color=style["color"], ms=6, mec="0.2", mew=0.5)
    ax.set_yticks(range(len(metrics)), metrics)
    ax.set_ylim(len(metrics) - 0.5, -0.5)
    ax.grid(False, axis="y")


def plot_leads(compared: pd.DataFrame, titles: Mapping[str, str]) -> np.ndarray:
    """Draw each metric's score on benchmarks less that of `random`, by the share of pairs kept; of one share a row.

    Args:
        compared: from `karma.potential.study.compare_selections`, of benchmarks; all pairs are no selection, and left
            out. titles: of benchmarks, in the order of the panels.

    Returns:
        Axes, one a benchmark and (policy, strategy, method); none where no metric can be compared with `random`.
    """
    known = compared[compared["difference"].notna() & (compared["ratio"] < 1)]
    groups = {name: known[known["benchmark"] == name].groupby(["policy", "strategy", "method"]) for name in titles}
    panels = [(name, place, part) for name, group in groups.items() for place, part in group]
    if not panels:
        return np.array([])
    several = known["ratio"].nunique() > 1
    axes = _lay_out(len(panels), "score less random's (share)")
    for ax, (name, (policy, strategy, method), part) in zip(axes, panels, strict=True):
        columns = ["difference", "difference_low", "difference_high"]
        (_plot_sizes if several else _plot_one_size)(ax, part, columns)
        ax.axhline(0, color="black", lw=1, ls=":")
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, -LEAST_SHOWN), max(high, LEAST_SHOWN))
        ax.set_title(f"{titles[name]}\n{policy}, {title_of(strategy)}, {title_of(method)}")
    if several:
        _add_legend(axes)
    return axes


def plot_front(compared: pd.DataFrame) -> np.ndarray:
    """Draw what each selection keeps of two sources' margins: the first source to the right, another one upwards.

    Args:
        compared: from `karma.potential.study.compare_objectives`, of two sources or more.

    Returns:
        Axes, one a source but the first. Crosses are 95 % intervals over the pairs kept; selections on the front (none
        other keeps more of one source and less of none) are filled and joined, from left to right.
    """
    sources, names = list(dict.fromkeys(compared["source"])), list(dict.fromkeys(compared["selection"]))
    n = max(len(sources) - 1, 1)
    figure, grid = plt.subplots(
        1, n, figsize=(min(PAGE_WIDTH_IN, COLUMN_WIDTH_IN * n), 3.4), sharex=True, squeeze=False
    )
    table = compared.set_index(["source", "selection"])
    for ax, other in zip(grid[0], sources[1:], strict=True):
        x, y = table.loc[sources[0]].loc[names], table.loc[other].loc[names]
        front = x[x["on_front"]].assign(y=y["value"]).sort_values(["value", "y"])
        ax.plot(front["value"], front["y"], color="black", lw=1, ls=":", label="front")
        for place, name in enumerate(names):
            style, (a, b) = row_style(place), (x.loc[name], y.loc[name])
            spread = {"xerr": [[a["value"] - a["low"]], [a["high"] - a["value"]]],
                      "yerr": [[b["value"] - b["low"]], [b["high"] - b["value"]]]}  # fmt: skip
            ax.errorbar(a["value"], b["value"], **spread, color=style["color"], marker=style["marker"], ms=6, lw=0.8,
                        ls="", mfc=style["color"] if a["on_front"] else "white", label=name)  # fmt: skip
        ax.axhline(0, color="0.6", lw=0.8)
        ax.axvline(0, color="0.6", lw=0.8)
        ax.set_xlabel(f"{_shorten(sources[0])} (sd)", fontsize=8)
        ax.set_ylabel(f"{_shorten(other)} (sd)", fontsize=8)
    lines = dict(zip(*reversed(grid[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(lines.values(), [_shorten(name) for name in lines], loc="outside lower center",
                  ncols=2 if n == 1 else 3, frameon=False, fontsize=8)  # fmt: skip
    return np.array(grid[0])


def _shorten(name: str) -> str:
    """Return a source's name without its folders, and cut where it is long."""
    short = name.rpartition("/")[2]
    return short if len(short) <= 30 else short[:29] + "…"


def _lay_out(n: int, label: str) -> np.ndarray:
    """Return so many panels, two a row, with one scale; the first of each row has the label."""
    width, columns = min(PAGE_WIDTH_IN, COLUMN_WIDTH_IN * max(n, 1.3)), min(n, 2)
    n_rows = -(-n // columns)
    _, axes = plt.subplots(n_rows, columns, figsize=(width, 2.6 * n_rows), sharey=True, squeeze=False)
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    for ax in list(axes.flat)[n:]:
        ax.remove()
    return np.array(list(axes.flat)[:n])


def _list_metrics(part: pd.DataFrame) -> list[str]:
    return [metric for metric in _ORDER if metric in set(part["metric"])]


def _plot_sizes(ax: Axes, part: pd.DataFrame, columns: list[str]) -> None:
    """Draw a value with its interval over the share of pairs kept, a line a metric."""
    metrics = _list_metrics(part)
    for place, metric in enumerate(metrics):
        rows = part[part["metric"] == metric].sort_values("ratio")
        shift = (place - (len(metrics) - 1) / 2) * 0.9  # beside each other, to be seen
        _plot_intervals(ax, rows["ratio"] * 100 + shift, rows, columns, metric)
    ax.set(xlabel="pairs kept (%)", xlim=(0, 105))


def _plot_one_size(ax: Axes, part: pd.DataFrame, columns: list[str]) -> None:
    """Draw a value with its interval, a metric beside the other."""
    metrics = _list_metrics(part)
    for place, metric in enumerate(metrics):
        _plot_intervals(ax, [place], part[part["metric"] == metric], columns, metric)
    ax.set_xticks(range(len(metrics)), metrics, rotation=30, ha="right", rotation_mode="anchor")
    ax.set(xlabel=f"{100 * part['ratio'].iloc[0]:g} % of the pairs kept, by", xlim=(-0.6, len(metrics) - 0.4))
    ax.grid(axis="x", visible=False)


def _plot_intervals(ax: Axes, x: Any, rows: pd.DataFrame, columns: list[str], metric: str) -> None:
    value, low, high = (rows[name] for name in columns)
    style = metric_style(metric)
    ax.errorbar(x, value, yerr=[value - low, high - value], label=metric, color=style["color"],
                marker=style["marker"], ms=4, lw=1, capsize=2)  # fmt: skip


def _add_legend(axes: np.ndarray) -> None:
    lines = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    labels = [metric for metric in _ORDER if metric in lines]
    axes[0].figure.legend([lines[label] for label in labels], labels, loc="outside lower center", ncols=5,
                          frameon=False, fontsize=8)  # fmt: skip
