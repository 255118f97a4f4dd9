"""Figures as the report shows them: drawn, saved, and put beside their words.

A picture is shown as SVG inside of the page, so that it is sharp in print, and can be saved from it. Decision: the
words stand in one table (`karma.results.readings`), by the file's name, so that a figure without words cannot be shown.
Limit: above MOST_BYTES of SVG (thousands of points) the PNG is shown instead.
"""

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma.figures.style import save_figure
from karma.results.readings import read_figure
from karma.study.escape import escape_html

MOST_BYTES = 1_500_000
PAPER = "paper"  # the folder of figures that show the paper's numbers


@dataclass(frozen=True)
class Picture:
    """A saved figure with its words; shown by a notebook and by the page.

    Attributes:
        name: the file's stem. title: one sentence. reading: how to read it. alt: what is seen, for who cannot see it.
        is_paper: whether it shows the paper's numbers. data: the picture as a data: address.
    """

    name: str
    title: str
    reading: str
    alt: str
    is_paper: bool
    data: str

    def _repr_html_(self) -> str:
        source = PAPER if self.is_paper else "study"
        words = f'<strong class="title">{escape_html(self.title)}</strong> {escape_html(self.reading)}'
        image = f'<img src="{self.data}" alt="{escape_html(self.alt)}">'
        return (
            f'<figure class="picture" data-name="{escape_html(self.name)}" data-source="{source}">'
            f'{image}<figcaption class="words">{words}</figcaption></figure>'
        )


def show_picture(drawn: Any, path: Path, **facts: object) -> Picture:
    """Save a figure and return it with its words; its window is closed, so that a notebook shows it once.

    Args:
        drawn: a Figure, Axes or an array of Axes. path: without a suffix; below a folder "paper" it is the paper's.
        **facts: what the figure's words leave open, by name.

    Raises:
        KeyError: `karma.results.readings` has no words for it, or `facts` lack one.
    """
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.figure import Figure

    first = drawn if isinstance(drawn, Figure) else np.atleast_1d(np.asarray(drawn, dtype=object)).flat[0]
    figure = first if isinstance(first, Figure) else first.get_figure(root=True)
    title, reading, alt = read_figure(path.name, facts)
    png, svg = save_figure(figure, path)
    plt.close(figure)
    kind, file = ("svg+xml", svg) if svg.stat().st_size <= MOST_BYTES else ("png", png)
    data = f"data:image/{kind};base64,{b64encode(file.read_bytes()).decode()}"
    return Picture(path.name, title, reading, alt, path.parent.name == PAPER, data)
