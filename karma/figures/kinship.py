"""Stage 2's figures: the worked example (3), dendrograms (7), kinship as a heat map.

Cells at or below chance carry a dagger wherever single scores are shown, because they make kin of unlike
models. Limit: names of models are readable up to about 60 models; above, the heat map and the trees go
without.
"""

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import dendrogram, fcluster, leaves_list, set_link_color_palette

from karma.figures.style import COLUMN_WIDTH_IN, PAGE_WIDTH_IN, PALETTE, build_dagger, strategy_style
from karma.kinship.clusters import group_benchmarks
from karma.kinship.similarity import MAX_SQUARE, compute_kinship
from karma.scores.normalise import compute_below_chance, compute_normalized, compute_s_pref
from karma.scores.table import ScoreTable
from karma.strategies import build_sets, choose_in_sets
from karma.vocabulary import KINSHIP_STRATEGIES, STRATEGIES

if TYPE_CHECKING:
    pass

DAGGER = "†"
MAX_NAMED = 60


def find_worked_set(table: ScoreTable, tau: float, with_dropped: bool = False) -> list[str]:
    """Return four origin models that make a good worked example.

    Args:
        table: origin models x benchmarks.
        tau: lowest kinship of an eligible pair.
        with_dropped: ask for a set in which tau drops a pair (for Figure 9) rather than none (Figure 3).

    Returns:
        The first set of four, in the table's order, in which the strategies' picks differ most; of large tables, among
        60 models spread over it.
    """
    n = len(table.scores)
    names = table.scores.index[np.linspace(0, n - 1, min(n, MAX_NAMED) if n > MAX_SQUARE else n).astype(int)].tolist()
    s_pref, kinship = compute_s_pref(table)[names].to_numpy(), compute_kinship(table, names).to_numpy()
    sets = build_sets(len(s_pref), 4, np.random.default_rng(0))
    picks = np.stack([choose_in_sets(s_pref, kinship, sets, s, tau) for s in KINSHIP_STRATEGIES], axis=1)
    n_distinct = np.array([len({tuple(p) for p in row if p[0] >= 0}) for row in picks])
    low = np.array([kinship[np.ix_(row, row)][np.triu_indices(len(row), k=1)].min() for row in sets])
    fits = (low < tau) == with_dropped
    best = (n_distinct + 10 * fits).argmax()
    return [names[place] for place in sets[best]]


def plot_worked_example(table: ScoreTable, models: list[str], tau: float) -> list[Axes]:
    """Draw Eq. 1 to 3 on a few origin models: scores, min-max with S_pref, kinship with the picks.

    Args:
        table: the whole table: min and max are taken over all of it.
        models: those to show; four fit the page.
        tau: lowest kinship of an eligible pair.

    Returns:
        Three axes: scores, normalised scores, kinship.

    Paper: Figure 3.
    """
    n = len(models)
    widths = [table.scores.shape[1] + 0.5, table.scores.shape[1] + 1, n + 0.8]
    figure, axes = plt.subplots(1, 3, figsize=(PAGE_WIDTH_IN, 1.9 + 0.32 * n), gridspec_kw={"width_ratios": widths})
    titles = table.benchmarks.loc[table.scores.columns, "title"].tolist()
    raw, below = table.scores.loc[models], compute_below_chance(table).loc[models]
    marks = np.where(below, DAGGER, "")
    normalized, s_pref = compute_normalized(table).loc[models], compute_s_pref(table)[models]
    kinship = compute_kinship(table, models)
    draw_cells(axes[0], raw, models, titles, raw.mul(100).map("{:.1f}".format).to_numpy() + marks)
    axes[0].set_title("a  Scores (%)", loc="left", fontweight="bold")
    draw_cells(axes[1], normalized.assign(s_pref=s_pref), [""] * n, [*titles, "S_pref"])
    axes[1].axvline(len(titles) - 0.5, color="white", linewidth=5)
    axes[1].set_title("b  Min-max and mean", loc="left", fontweight="bold")
    draw_cells(axes[2], kinship, [""] * n, models, kinship.map(_shorten).to_numpy())
    axes[2].set_title("c  Kinship", loc="left", fontweight="bold")
    handles = _draw_picks(axes[2], s_pref.to_numpy(), kinship.to_numpy(), tau)
    if below.to_numpy().any():
        handles.append(build_dagger("at or below chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, columnspacing=1.5)
    return list(axes)


def shorten_name(name: str, longest: int = 24) -> str:
    """Return a label that fits beside a cell: a long name without its owner, and cut where it is still too long.

    Example:
        >>> shorten_name("Falcon-40b-instruct"), shorten_name("jpacifico/Chocolatine-2-14B-Instruct-v2.0 float16")
        ('Falcon-40b-instruct', 'Chocolatine-2-14B-Instr…')
    """
    bare = name if len(name) <= longest else name.rpartition("/")[2]
    return bare if len(bare) <= longest else bare[: longest - 1] + "…"


def _shorten(value: float) -> str:
    """Write a cosine to three decimals without its leading zero."""
    return "1" if value == 1 else f"{value:.3f}".lstrip("0")


def draw_cells(
    axes: Axes, frame: pd.DataFrame, rows: list[str], columns: list[str], text: np.ndarray | None = None
) -> None:
    """Draw a table as shaded cells, with the numbers in them."""
    values = frame.to_numpy(dtype=float)
    shown = frame.map("{:.2f}".format).to_numpy() if text is None else text
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    axes.set_xticks(range(len(columns)), map(shorten_name, columns), rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), map(shorten_name, rows))
    axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    axes.grid(False)
    axes.grid(True, which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value > 0.8 else "black"
        axes.text(j, i, str(shown[i, j]), ha="center", va="center", fontsize=8, color=colour)


def _draw_picks(axes: Axes, s_pref: np.ndarray, kinship: np.ndarray, tau: float) -> list[Line2D]:
    """Frame each strategy's pair (row: chosen), strike out pairs below tau; return the legend."""
    everyone, handles = np.arange(len(s_pref))[None, :], []
    for k, strategy in enumerate(KINSHIP_STRATEGIES):
        chosen, rejected = choose_in_sets(s_pref, kinship, everyone, strategy, tau)[0]
        look: dict[str, Any] = {
            "color": strategy_style(strategy)["color"],
            "linewidth": 2.0,
            "linestyle": ["-", "-", (0, (2, 1))][k],
        }
        inset = [0.05, 0.05, 0.13][k]
        if chosen >= 0:
            left, top, side = rejected - 0.5 + inset, chosen - 0.5 + inset, 1 - 2 * inset
            axes.add_patch(Rectangle((left, top), side, side, fill=False, **look))
        handles.append(Line2D([], [], label=STRATEGIES[strategy].title, **look))
    for i, j in np.argwhere(kinship < tau):
        axes.plot([j - 0.4, j + 0.4], [i + 0.4, i - 0.4], color="black", linewidth=0.8)
    if (kinship < tau).any():
        handles.append(Line2D([], [], color="black", linewidth=0.8, label=f"below τ = {tau:g}"))
    return handles


def mark_names(table: ScoreTable, benchmarks: list[str] | None = None) -> pd.Series:
    """Return each model's name, with a dagger where a score of it (on `benchmarks`) is at or below chance.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> mark_names(load_score_table("paper"), ["arc_easy"])[["GPT-4", "Starchat"]].tolist()
        ['GPT-4', 'Starchat †']
    """
    below = compute_below_chance(table)[benchmarks or list(table.scores)].any(axis=1)
    names = table.scores.index.to_series().astype(str)
    return names.where(~below, names + f" {DAGGER}")


def plot_dendrograms(trees: dict[str, tuple[pd.DataFrame, np.ndarray]], cut: float, table: ScoreTable) -> list[Axes]:
    """Draw the trees of all benchmarks and of each capability.

    Args:
        trees: group -> distances and linkage, as of `karma.kinship.clusters.compute_trees`.
        cut: branches joined below this distance share a colour.
        table: the scores; a dagger marks models with one at or below chance in the tree's benchmarks.

    Returns:
        One axes a tree. The dotted line is the major split: the middle between the last two joins.

    Paper: Figure 7.
    """
    n_models = len(next(iter(trees.values()))[0])
    rows = (len(trees) + 1) // 2
    height = min(max(0.6 + 0.16 * n_models, 1.5), 9 / rows)
    figure, grid = plt.subplots(rows, 2, figsize=(PAGE_WIDTH_IN, rows * height), sharex=True, squeeze=False)
    for axes, (letter, (group, (distance, tree))) in zip(
        grid.flat, zip("abcdefgh", trees.items(), strict=False), strict=False
    ):
        names = mark_names(table, group_benchmarks(table)[group])[distance.index]
        _draw_tree(axes, tree, names.tolist(), cut)
        axes.set_title(f"{letter}  {group.capitalize()}", loc="left", fontweight="bold")
    for axes in list(grid.flat)[len(trees) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("distance of normalised scores")
        axes.set_xlim(0, 1.06 * max(tree[-1, 2] for _, tree in trees.values()))
    handles = [
        Line2D([], [], color="0.75", linewidth=0.9, label=f"cut at {cut:g} (below: a colour a cluster)"),
        Line2D([], [], color="black", linewidth=1.2, linestyle=":", label="major split"),
        build_dagger("a score at or below chance"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return list(grid.flat)[: len(trees)]


def _draw_tree(axes: Axes, tree: np.ndarray, names: list[str], cut: float) -> None:
    set_link_color_palette(PALETTE[:6])
    with plt.rc_context({"lines.linewidth": 1.2}):
        dendrogram(
            tree,
            labels=names,
            orientation="right",
            color_threshold=cut,
            ax=axes,
            above_threshold_color="0.55",
            no_labels=len(names) > MAX_NAMED,
        )
    set_link_color_palette(None)
    axes.axvline(cut, color="0.75", linewidth=0.9, zorder=0)
    heights = tree[:, 2]
    if len(heights) > 1:
        axes.axvline((heights[-1] + heights[-2]) / 2, color="black", linewidth=1.2, linestyle=":")
    axes.grid(False)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.tick_params(axis="x", labelbottom=True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)


def plot_kinship(kinship: pd.DataFrame, tree: np.ndarray, tau: float, cut: float, table: ScoreTable) -> Axes:
    """Draw the kinship of all pairs, models in the order of the tree's leaves, clusters apart.

    Args:
        kinship: n x n.
        tree: linkage that orders the models.
        tau: lowest kinship of an eligible pair; pairs below are struck out, the colour bar bears a mark.
        cut: distance that parts the clusters.
        table: the scores; a dagger marks models with one at or below chance.
    """
    order = leaves_list(tree)[::-1]
    values, n = kinship.to_numpy()[np.ix_(order, order)], len(order)
    names = mark_names(table)[kinship.index[order]].tolist() if n <= MAX_NAMED else []
    side = min(max(COLUMN_WIDTH_IN, 1.8 + 0.32 * n), PAGE_WIDTH_IN)
    axes = plt.subplots(figsize=(side, 0.86 * side))[1]
    shown = np.where(np.eye(n, dtype=bool), np.nan, values)
    image = axes.imshow(shown, cmap="viridis", vmin=min(0.0, float(values.min())), vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    cluster = fcluster(tree, cut, criterion="distance")[order]
    for border in np.flatnonzero(np.diff(cluster)) + 0.5:
        axes.axhline(border, color="white", linewidth=4)
        axes.axvline(border, color="white", linewidth=4)
    for i, j in np.argwhere((values < tau) & ~np.eye(n, dtype=bool)):
        axes.plot([j - 0.45, j + 0.45], [i + 0.45, i - 0.45], color="white", linewidth=1.2)
    if n <= 20:
        for (i, j), value in np.ndenumerate(shown):
            colour = "black" if value > 0.65 else "white"
            text = "" if np.isnan(value) else f"{100 * min(value, 0.99):.0f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, label="kinship (cosine; cells: x 100)")
    bar.ax.axhline(tau, color="white", linewidth=2)
    bar.ax.annotate(f"τ = {tau:g}", (0, tau), (-3, 0), textcoords="offset points", ha="right", va="center", fontsize=8)
    return axes
