"""The figure of stability: how far trainings lie apart over seeds, how often they jump, and how far they move."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from karma.figures.style import PAGE_WIDTH_IN, row_style
from karma.vocabulary import METHODS, title_of

_PANELS = {  # column -> axis label with unit, what is said where it is known of no training
    "accuracy_spread": ("spread of held-out accuracy\n(standard deviation, share)", "one seed: cannot be told"),
    "spikes": ("updates whose loss spikes\n(share)", "too few updates to tell"),
    "kl": ("KL to the untrained policy\n(nats a response, k2)", "no pair was held out"),
    "drift": ("answers longer by\n(tokens)", "no answer was sampled"),
}


def plot_stability(found: pd.DataFrame) -> np.ndarray:
    """Draw four measures of stability by data set, a marker a method, with 95 % intervals over seeds.

    Args:
        found: from `karma.results.stability.compute_stability`, with titles for strategies.

    Returns:
        The axes. A panel of which nothing is known (one seed) says so; a point without a line has no interval.
    """
    names = list(dict.fromkeys(found["strategy"]))
    methods = list(dict.fromkeys(found["method"]))  # recipes' steps among them
    places = {method: list(METHODS).index(method) if method in METHODS else len(METHODS) + methods.index(method)
              for method in methods}  # fmt: skip
    height = 1.2 + 0.16 * len(names) * max(len(methods), 2)
    figure, grid = plt.subplots(2, 2, figsize=(PAGE_WIDTH_IN, 2 * height), sharey=True)
    for ax, (column, (label, unknown)) in zip(grid.flat, _PANELS.items(), strict=True):
        for place, method in enumerate(methods):
            rows = found[(found["method"] == method) & found[column].notna()]
            y = [names.index(name) + (place - (len(methods) - 1) / 2) * 0.8 / len(methods) for name in rows["strategy"]]
            low, high = (rows[f"{column}_{end}"].fillna(rows[column]) for end in ("low", "high"))
            style = row_style(places[method])
            ax.errorbar(rows[column], y, xerr=[(rows[column] - low).clip(0), (high - rows[column]).clip(0)], ls="",
                        color=style["color"], marker=style["marker"], ms=4, lw=1, capsize=2,
                        label=title_of(method))  # fmt: skip
        if not found[column].notna().any():
            ax.text(0.5, 0.5, unknown, transform=ax.transAxes, ha="center", va="bottom", fontsize=8)
            ax.set_xticks([])
        ax.set_xlabel(label)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
    grid[1, 1].axvline(0, color="black", lw=1, ls=":")
    lines = {label: line for ax in grid.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return np.array(list(grid.flat))
