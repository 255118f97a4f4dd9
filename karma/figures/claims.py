"""The claims as a forest plot: each difference with its interval, its verdict as a colour and a mark.

Decision: distances (RQ1, RQ4) and held-out pairs have panels of their own, since no scale fits them and accuracies.
Limit: intervals are each at 95 %, verdicts corrected for the tests of a question, so that a line beside zero may still
be "cannot tell".
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from karma.figures.style import PAGE_WIDTH_IN

VERDICTS = {  # how a verdict begins -> colour, marker
    "supported": ("#009E73", "^"),
    "contradicted": ("#D55E00", "v"),
    "no difference": ("#0072B2", "s"),
    "cannot tell": ("#6B6B6B", "o"),
}
DISTANCES = ("RQ1", "RQ4")  # questions whose effects are distances
HELD_OUT = "prefers held-out"  # in claims on a training's own pairs
LABELS = {
    "difference": "difference of accuracy (points, 95 % interval)",
    "held out": "held-out pairs preferred, less one half\n(points, 95 % interval)",
    "distance": "mean distance between families less within\n(in [0, 1], 95 % interval)",
}
WIDTH = 46  # characters of a claim in a line


def find_verdict(text: object) -> str:
    """Return which of VERDICTS a claim's verdict is, or "" of another text.

    Example:
        >>> find_verdict("cannot tell with n = 40 items; 9,000 would show 0.02"), find_verdict("agrees")
        ('cannot tell', '')
    """
    return next((name for name in VERDICTS if str(text).startswith(name)), "")


def plot_claims(claims: pd.DataFrame, smallest: float) -> np.ndarray:
    """Draw each claim's effect with its 95 % interval.

    Args:
        claims: from `karma.results.claims.test_claims`; claims without an effect are left out.
        smallest: the difference that is worth claiming, as a share; the band around zero.

    Returns:
        Axes, one a kind of effect (LABELS); a study without effects says so.
    """
    known = claims[claims["effect"].notna()]
    kinds = known["question"].isin(DISTANCES).map({True: "distance", False: "difference"})
    kinds[known["claim"].str.contains(HELD_OUT)] = "held out"
    parts = {kind: known[kinds == kind] for kind in LABELS if (kinds == kind).any()}
    heights = [1.0 + sum(_count_lines(claim) for claim in part["claim"]) for part in parts.values()] or [2.0]
    figure, grid = plt.subplots(
        max(len(parts), 1), 1, figsize=(PAGE_WIDTH_IN, 0.19 * sum(heights) + 0.75 * len(heights)), squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    axes = grid[:, 0]
    if not parts:
        axes[0].text(0.5, 0.5, "no claim can be tested yet", ha="center", va="center", transform=axes[0].transAxes)
        axes[0].set_axis_off()
    for ax, (kind, part) in zip(axes, parts.items(), strict=False):
        _draw_panel(ax, part, 1 if kind == "distance" else 100)
        if kind != "distance":
            ax.axvspan(-100 * smallest, 100 * smallest, color="0.9", zorder=0, lw=0)
        ax.set_xlabel(LABELS[kind])
    marks = [Line2D([], [], color=color, marker=marker, ls="", ms=6, label=name)
             for name, (color, marker) in VERDICTS.items() if parts]  # fmt: skip
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False)
    return axes


def _count_lines(claim: str) -> int:
    return len(textwrap.wrap(claim, WIDTH))


def _draw_panel(ax: Axes, rows: pd.DataFrame, scale: float) -> None:
    """Draw a row a claim, as high as its name; `scale` turns shares into points."""
    sizes = np.array([_count_lines(claim) for claim in rows["claim"]], float)
    places = np.cumsum(sizes) - sizes / 2
    for place, row in zip(places, rows.itertuples(), strict=True):
        color, marker = VERDICTS.get(find_verdict(row.verdict), ("#6B6B6B", "o"))
        ax.hlines(place, scale * row.low, scale * row.high, color=color, lw=2)
        ax.plot(scale * row.effect, place, marker, color=color, ms=6, mec="white", mew=0.5)
    names = [textwrap.fill(f"{q}: {c}" if q.startswith("RQ") else c, WIDTH + 5)
             for q, c in zip(rows["question"], rows["claim"], strict=True)]  # fmt: skip
    ax.axvline(0, color="black", lw=1)
    ax.set_yticks(places, names)
    ax.set_ylim(sizes.sum() + 0.2, -0.2)
    ax.grid(False, axis="y")
