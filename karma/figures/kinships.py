"""One figure of three kinships: which of score, origin and behaviour tells closeness of responses and right labels."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from karma.figures.style import PAGE_WIDTH_IN, row_style

TITLES = {"responses": "a  Nearer: closer response?", "labels": "b  Nearer: right label?"}
BY = ("score", "origin", "behaviour")


def plot_kinships(found: pd.DataFrame) -> list[Axes]:
    """Draw how often each kinship is right of two models and a third, with 95 % intervals by prompt and model.

    Args:
        found: from `karma.labels.kinships.compare_kinships`.

    Returns:
        Two axes. Dotted: a kinship that tells nothing. Behind each name, in either panel: of how many comparisons it
        speaks. An open place: it speaks of none.
    """
    kinds = list(dict.fromkeys(zip(found["by"], found["kinship"], strict=True)))
    _, grid = plt.subplots(1, 2, figsize=(PAGE_WIDTH_IN, 1.5 + 0.34 * len(kinds)), sharey=True)
    for axes, (question, rows) in zip(grid, found.groupby("question", sort=False), strict=False):
        axes.axvline(0.5, color="black", linewidth=0.9, linestyle=":")
        n = int(rows["n_comparisons"].max())
        for place, (_, row) in enumerate(rows.iterrows()):
            if not row["told"] > 0:
                said = "nothing to compare" if not n else "not known, or equal for all"
                axes.text(0.5, place, said, fontsize=8, va="center", ha="center", backgroundcolor="white")
                continue
            look = row_style(BY.index(row["by"]))
            axes.hlines(place, row["low"], row["high"], color=look["color"], linewidth=2)
            axes.plot(row["share"], place, look["marker"], color=look["color"], markeredgecolor="0.2",
                      markeredgewidth=0.5)  # fmt: skip
            axes.text(1.03, place, f"{row['told']:.0%}", fontsize=8, va="center", ha="left")
        axes.text(1.03, -0.5, "told", fontsize=8, va="center", ha="left", color="0.35")
        axes.set_title(TITLES[str(question)], loc="left", fontweight="bold")
        axes.set_xlim(0, 1)
        axes.set_xlabel(
            f"share of yes in {n:,} comparisons\n"
            f"({rows['n_models'].iloc[0]} models, {rows['n_prompts'].max():,} prompts)"
        )
        axes.grid(False, axis="y")
    grid[0].set_yticks(np.arange(len(kinds)), [f"{by}: {name.replace('_', ' ')}" for by, name in kinds])
    grid[0].set_ylim(len(kinds) - 0.4, -0.9)
    return list(grid)
