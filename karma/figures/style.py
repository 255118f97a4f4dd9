"""One style for every figure, and one way to save them.

Colours are the Okabe-Ito set, which colour-blind readers can tell apart; series also differ in hatch or marker, so
that a grey print can be read. Sizes are inches at a journal's column (3.5) or page (7.0) width, text at least 8 pt.
Figures are split by the stage they belong to: `kinship`, `pairs`, `training`, `results`.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from karma.files.writing import atomic_path
from karma.vocabulary import OTHER_SETS, STRATEGIES

COLUMN_WIDTH_IN, PAGE_WIDTH_IN = 3.5, 7.0
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000"]
HATCHES = ["", "//", "..", "xx", "--", "\\\\", "oo", "++"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]


def set_style() -> None:
    """Apply the kit's style to every figure made after this call; a name with a dollar sign in it is a name."""
    sns.set_theme(context="paper", style="whitegrid", palette=PALETTE, font="DejaVu Sans")
    plt.rcParams.update({
        "font.size": 9, "axes.labelsize": 9, "axes.titlesize": 10, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "legend.fontsize": 8, "figure.dpi": 110, "savefig.dpi": 200, "figure.constrained_layout.use": True,
        "svg.hashsalt": "karma", "svg.fonttype": "path", "text.parse_math": False,
    })  # fmt: skip


def build_dagger(label: str) -> Line2D:
    """Return a legend's dagger, the one sign that is drawn as mathematics."""
    with plt.rc_context({"text.parse_math": True}):
        return Line2D([], [], marker="$\u2020$", color="black", linestyle="", label=label)


def strategy_style(strategy: str) -> dict[str, str]:
    """Return the colour, hatch and marker of a strategy, the same in every figure: by its place in the vocabulary."""
    names = [*STRATEGIES, *OTHER_SETS]
    return row_style(names.index(strategy if strategy in names else "custom"))


def row_style(place: int) -> dict[str, str]:
    """Return the colour, hatch and marker of a row of a vocabulary; beyond eight, colours come again with other marks.

    Example:
        >>> row_style(0)["color"] == row_style(8)["color"], row_style(0)["marker"] == row_style(8)["marker"]
        (True, False)
    """
    n, again = len(PALETTE), place // len(PALETTE)
    return {"color": PALETTE[place % n], "hatch": HATCHES[(place + again) % n], "marker": MARKERS[(place + again) % n]}


def save_figure(drawn: Figure | Axes, path: str | Path) -> list[Path]:
    """Save a figure, or the one that axes belong to, as PNG and SVG under `path`, whole and the same bytes each time.

    Args:
        drawn: what to save. path: its suffix is ignored.

    Returns:
        The two paths written.
    """
    path, written = Path(path), []
    figure = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
    assert figure is not None
    engine = figure.get_layout_engine()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not anew for each file and pass
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": "karma"})):
        target = path.with_suffix(suffix)
        with atomic_path(target) as temporary:
            figure.savefig(temporary, metadata=metadata)
        written.append(target)
    figure.set_layout_engine(engine)
    return written
