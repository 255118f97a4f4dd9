"""Thousands of origin models in one figure: the last branches of their tree, and what each is good at.

Names of thousands of models cannot be read; a dozen branches can, whatever their number. Limit: a branch's mean hides
how far its models lie apart, and the names are examples.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.cluster.hierarchy import dendrogram

from karma.figures.kinship import draw_cells, shorten_name
from karma.figures.style import PAGE_WIDTH_IN
from karma.kinship.clusters import LargeTree

MAX_COLUMNS = 12


def plot_branches(tree: LargeTree, titles: pd.Series, cut: float) -> list[Axes]:
    """Draw the last branches of a large tree, with their mean min-max scores.

    Args:
        tree: from `karma.kinship.clusters.compute_large_tree`. titles: benchmark -> title; the first twelve are drawn.
        cut: the distance that parts clusters.

    Returns:
        Two axes: how the branches join (dotted: the cut), and a row of cells a branch with the number of its models and
        one of them.
    """
    branches = tree.branches
    names = [name for name in branches if name not in ("n_models", "typical", "s_pref")][:MAX_COLUMNS]
    _, (left, right) = plt.subplots(1, 2, figsize=(PAGE_WIDTH_IN, 1.6 + 0.27 * len(branches)),
                                         gridspec_kw={"width_ratios": (1.2, 1 + 0.2 * len(names))})  # fmt: skip
    with plt.rc_context({"lines.linewidth": 1.2}):
        dendrogram(tree.joins, orientation="left", ax=left, no_labels=True, color_threshold=0,
                   above_threshold_color="0.35")  # fmt: skip
    left.axvline(cut, color="black", linewidth=0.8, linestyle=":")
    left.set_ylim(10 * len(branches), 0)
    left.set_xlim(1.06 * max(cut, tree.joins[-1, 2]), 0)
    left.set_xlabel("distance")
    left.set_title("a  Joins", loc="left", fontweight="bold")
    left.grid(False)
    for side in ("top", "left", "right"):
        left.spines[side].set_visible(False)
    rows = [f"{n:,}  {shorten_name(name.removesuffix(' float16').removesuffix(' bfloat16'))}"
            for n, name in zip(branches["n_models"], branches["typical"].astype(str), strict=True)]  # fmt: skip
    shown = branches[[*names, "s_pref"]]
    draw_cells(right, shown, rows, [*titles[names], "S_pref"], shown.map(_shorten).to_numpy())
    right.axvline(len(names) - 0.5, color="white", linewidth=4)
    right.yaxis.tick_right()
    right.set_yticks(np.arange(len(rows)), rows)
    right.tick_params(which="both", length=0)
    right.set_title("b  Mean min-max scores; n models, an example", loc="left", fontweight="bold")
    return [left, right]


def _shorten(value: float) -> str:
    return f"{value:.2f}".lstrip("0") if value < 0.995 else "1"
