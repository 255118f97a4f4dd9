"""Figure 4: origin models on two principal components of their normalised scores.

Names are placed one after the other where they overlap least. Limit: above 60 models points stay without
names; above 500 they are counted, since thousands of points hide one another.
"""

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from karma.figures.kinship import DAGGER, MAX_NAMED, mark_names
from karma.figures.style import MARKERS, PAGE_WIDTH_IN, PALETTE, build_dagger
from karma.kinship.similarity import MAX_SQUARE
from karma.scores.table import ScoreTable

if TYPE_CHECKING:
    from karma.kinship.clusters import Pca

COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)  # ticks of a logarithm
SMALLEST, PER_BILLION = 14, 3.2  # area of a marker, square points


def plot_pca(pca: "Pca", table: ScoreTable) -> list[Axes]:
    """Draw origin models on two principal components, and what the components are made of.

    Args:
        pca: of the normalised scores.
        table: the scores: facts of the models, titles; a dagger marks a score at or below chance.

    Returns:
        Two axes: models (colour and marker by family, area by parameters), loadings as arrows.

    Paper: Figure 4.
    """
    figure = plt.figure(figsize=(PAGE_WIDTH_IN, 4.4))
    grid = figure.add_gridspec(2, 2, width_ratios=(2.5, 1), height_ratios=(1, 1.15))
    is_large = len(table.scores) > MAX_SQUARE  # then no legend stands below the arrows
    axes = figure.add_subplot(grid[:, 0])
    arrows = figure.add_subplot(grid[:, 1] if is_large else grid[0, 1])
    if pca.positions.shape[1] == 1:
        pca = _add_flat_component(pca)
    xy = pca.positions.iloc[:, :2]
    axes.set_xlabel(f"PC1 ({pca.explained[0]:.0%} of the variance)")
    axes.set_ylabel(f"PC2 ({pca.explained[1]:.0%})")
    axes.margins(0.22, 0.1)
    axes.set_title("a  Origin models", loc="left", fontweight="bold")
    handles = _draw_models(axes, xy.rename(mark_names(table)), table)
    if not is_large:
        key = figure.add_subplot(grid[1, 1])
        key.axis("off")
        key.legend(handles=handles, loc="upper left", frameon=False, labelspacing=0.45, borderaxespad=0, fontsize=8)
    arrows.set_title("b  Loadings", loc="left", fontweight="bold")
    _draw_loadings(arrows, pca.loadings.iloc[:, :2], table.benchmarks["title"])
    return [axes, arrows]


def _add_flat_component(pca: "Pca") -> "Pca":
    """Give a table of one benchmark a second, empty component, so that it can be drawn."""
    from karma.kinship.clusters import Pca

    return Pca(pca.positions.assign(PC2=0.0), pca.loadings.assign(PC2=0.0), np.array([1.0, 0.0]))


def _draw_models(axes: Axes, xy: pd.DataFrame, table: ScoreTable) -> list[Line2D]:
    """Draw models, named where they are few; return the legend."""
    if len(xy) > MAX_SQUARE:
        hexes = axes.hexbin(xy.iloc[:, 0], xy.iloc[:, 1], gridsize=42, bins="log", mincnt=1, cmap="viridis",
                            linewidths=0.2)  # fmt: skip
        most = float(np.max(np.asarray(hexes.get_array())))
        axes.figure.colorbar(hexes, ax=axes, location="bottom", shrink=0.7, aspect=30, format="{x:,.0f}",
                             ticks=[tick for tick in COUNTS if tick <= most],
                             label=f"models in a cell, of {len(xy):,}")  # fmt: skip
        return []
    if len(xy) > MAX_NAMED:
        axes.scatter(xy.iloc[:, 0], xy.iloc[:, 1], s=5, alpha=0.3, linewidths=0, color=PALETTE[0], rasterized=True)
        return [Line2D([], [], marker="o", linestyle="", color=PALETTE[0], label=f"{len(xy):,} models")]
    facts = table.facts.reindex(table.scores.index).set_axis(xy.index)
    family, size_b, handles = facts["family"].fillna("family unknown"), facts["size_b"].astype(float), []
    area = (SMALLEST + PER_BILLION * size_b).fillna(60)
    for k, (name, rows) in enumerate(xy.groupby(family, sort=False)):
        look: dict[str, Any] = {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[(k + k // 8) % 8]}
        unknown = size_b[rows.index].isna() & size_b.notna().any()
        faces = [(1, 1, 1, 1) if u else look["color"] for u in unknown]
        axes.scatter(
            rows.iloc[:, 0],
            rows.iloc[:, 1],
            s=area[rows.index],
            facecolors=faces,
            marker=look["marker"],
            edgecolors="0.25" if k == 6 else look["color"],
            linewidths=1.3,
            zorder=3,
        )
        handles.append(Line2D([], [], linestyle="", markersize=6, label=str(name), **look))
    place_labels(axes, xy, 0.6 * np.sqrt(area.to_numpy()))
    return handles + _explain_marks(bool(xy.index.str.endswith(DAGGER).any()), bool(size_b.notna().any()))


def _explain_marks(with_dagger: bool, with_sizes: bool) -> list[Line2D]:
    """Return the legend of what the families do not explain."""
    handles = []
    if with_dagger:
        handles.append(build_dagger("score at chance"))
    if with_sizes:
        for size in (7, 30, 70):
            area = SMALLEST + PER_BILLION * size
            look: dict[str, Any] = {"marker": "o", "color": "0.65", "markersize": np.sqrt(area)}
            handles.append(Line2D([], [], linestyle="", label=f"{size} B parameters", **look))
        look = {"marker": "o", "markersize": 8, "markerfacecolor": "white", "markeredgecolor": "0.4"}
        handles.append(Line2D([], [], linestyle="", label="open: size unknown", **look))
    return handles


def place_labels(axes: Axes, xy: pd.DataFrame, radius_pt: np.ndarray) -> None:
    """Write each model's name beside its point, at the place nearby that overlaps least of what stands there.

    Args:
        axes: with its limits settled by the points drawn.
        xy: n x 2, in data units.
        radius_pt: n, of the markers, in points.
    """
    axes.figure.canvas.draw()
    points = axes.transData.transform(xy.to_numpy()) * 72 / axes.figure.dpi
    taken = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(points, radius_pt, strict=True)]
    corners = axes.get_window_extent()
    frame = tuple(v * 72 / axes.figure.dpi for v in (corners.x0, corners.y0, corners.x1, corners.y1))
    directions = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    for own, (name, (x, y)) in enumerate(zip(xy.index, points, strict=True)):
        width, height, choices = 4.7 * len(str(name)), 9.0, []
        for reach, (dx, dy) in ((k, d) for k in (3, 9, 16) for d in directions):
            along = (radius_pt[own] + reach) * np.array([dx, dy])
            left = x + along[0] - (0 if dx > 0 else width if dx < 0 else width / 2)
            box = (left, y + along[1] - 4.5, left + width, y + along[1] + height - 4.5)
            crossed = sum(_overlap(box, other) for k, other in enumerate(taken) if k != own)
            outside = width * height - _overlap(box, frame)
            choices.append((crossed + reach + 3 * outside, box, along, dx))
        _, box, along, dx = min(choices, key=lambda c: c[0])
        taken.append(box)
        align = {1: "left", -1: "right", 0: "center"}[dx]
        axes.annotate(
            str(name),
            xy.loc[name].to_numpy(),
            along,
            textcoords="offset points",
            va="center",
            ha=align,
            fontsize=8,
        )


def _overlap(one: tuple, other: tuple) -> float:
    """Return the area that two boxes (left, bottom, right, top) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _draw_loadings(axes: Axes, loadings: pd.DataFrame, titles: pd.Series) -> None:
    """Draw each benchmark's loadings as an arrow; names stand in a column, in the arrows' order."""
    ordered = loadings.sort_values(loadings.columns[1])
    values = ordered.to_numpy()
    reach = 1.15 * max(np.abs(values).max(), 0.1)
    heights = np.linspace(-0.92, 0.92, len(values)) * reach if len(values) > 1 else [values[0, 1]]
    for benchmark, (x, y), height in zip(ordered.index, values, heights, strict=True):
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "0.3", "linewidth": 1.0})
        axes.annotate(
            titles[benchmark],
            (x, y),
            (reach * 0.85, height),
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkB": 2},
        )
    axes.set_xlim(min(-0.15, 1.1 * values[:, 0].min()), reach * 1.9)
    axes.set_ylim(-reach * 1.05, reach * 1.05)
    axes.set_xlabel("PC1")
    axes.set_ylabel("PC2", labelpad=0)
    axes.grid(False)
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.set_xticks([0, 0.5])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
