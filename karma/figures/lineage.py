"""One figure of lineage: how near fathers are to their sons among strangers, by every measure of kinship."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from karma.figures.style import MARKERS, PAGE_WIDTH_IN, PALETTE
from karma.kinship.lineage import STRANGERS


def plot_lineage(tests: pd.DataFrame) -> Axes:
    """Draw each measure's mean place of the father among its son's strangers, with 95 % intervals.

    Args:
        tests: from `karma.kinship.lineage.compare_fathers`.

    Returns:
        The axes; right of the dotted line a father is nearer than a stranger drawn at random, the small ticks are where
        another's father stands.
    """
    measures = list(dict.fromkeys(tests["measure"]))
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN, 1.2 + 0.45 * len(measures)))
    for k, strangers in enumerate(STRANGERS):
        rows = tests[tests["strangers"] == strangers].set_index("measure").loc[measures]
        place = np.arange(len(measures)) + (k - 0.5) * 0.3
        off = [rows["nearer"] - rows["low"], rows["high"] - rows["nearer"]]
        axes.errorbar(rows["nearer"], place, xerr=off, fmt=MARKERS[k], color=PALETTE[k], capsize=2, markersize=5,
                      label=f"fathers, against {strangers}")  # fmt: skip
        label = "another's father" if not k else None
        axes.plot(rows["expected"], place, "|", color="black", markersize=9, label=label)
    axes.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(measures)), [name.replace("_", " ") for name in measures])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the son's strangers that are less akin to it than the father (95 %, by father)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return axes
