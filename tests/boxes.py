"""What a figure's boxes tell once it is drawn: text off the canvas, over other text, too small; legends over data."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

LEAST_PT = 8.0
FREE = 0.2  # of a line's box: room above and below its letters, where boxes may cross and ink does not
EDGE_PX = 1.0


def check_boxes(figure: Figure) -> None:
    """Draw a figure, with Agg, and fail with everything that a reader would stumble over."""
    problems = find_problems(figure)
    assert not problems, "\n" + "\n".join(problems)


def find_problems(figure: Figure) -> list[str]:
    """Return what is wrong with a figure's boxes, a line each."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # lays it out
    texts = list(_list_texts(figure))
    problems = [f"off the canvas by {off:.0f} px: {_name(t)}" for t in texts if (off := _off(t, figure)) > EDGE_PX]
    problems += [f"{t.get_fontsize():g} pt, below {LEAST_PT:g}: {_name(t)}"
                 for t in texts if t.get_fontsize() < LEAST_PT]  # fmt: skip
    problems += [f"over one another: {_name(a)} and {_name(b)}" for a, b in _list_overlaps(texts)]
    for ax in _list_axes(figure):
        problems += [f"no axis title beside {_name(labels[0])}" for labels in _list_untitled(ax)]
        if not (ax.has_data() or ax.texts or ax.get_legend()):
            problems.append("axes with nothing in them")
    return problems + [f"a legend covers {what}" for what in _list_covered(figure, texts)]


def _list_texts(artist: Artist) -> Iterator[Text]:
    """Yield the texts that are drawn: not those of hidden artists, nor of ticks beyond an axis's end."""
    if not artist.get_visible():
        return
    if isinstance(artist, Text) and artist.get_text().strip():
        yield artist
    if isinstance(artist, Axis):
        yield from _list_tick_labels(artist)
        yield from (t for t in (artist.label, artist.get_offset_text()) if t.get_visible() and t.get_text().strip())
        return
    hidden = (artist.xaxis, artist.yaxis) if isinstance(artist, Axes) and not artist.axison else ()
    for child in artist.get_children():
        if not any(child is axis for axis in hidden):
            yield from _list_texts(child)


def _list_tick_labels(axis: Axis) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    labels = [
        t.label1 if t.label1.get_visible() else t.label2 for t in ticks if low - slack <= t.get_loc() <= high + slack
    ]
    return [label for label in labels if label.get_visible() and label.get_text().strip()]


def _list_axes(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.get_visible()]


def _find_box(text: Text) -> Bbox:
    return Text.get_window_extent(text)  # an annotation's own would hold its arrow


def _off(text: Text, figure: Figure) -> float:
    box, page = _find_box(text), figure.bbox
    return max(page.x0 - box.x0, page.y0 - box.y0, box.x1 - page.x1, box.y1 - page.y1)


def _list_overlaps(texts: list[Text]) -> Iterator[tuple[Text, Text]]:
    corners = [_find_corners(text) for text in texts]
    low, high = (np.array([f(c, axis=0) for c in corners]).reshape(-1, 2) for f in (np.min, np.max))
    for a, b in combinations(range(len(texts)), 2):
        near = (low[a] < high[b]).all() and (low[b] < high[a]).all()
        if near and _cross(corners[a], corners[b]):
            yield texts[a], texts[b]


def _find_corners(text: Text) -> np.ndarray:
    """Return the corners (4 x 2, pixels) of a text's box, turned as the text is; less high by what letters leave free."""
    turned, angle = _find_box(text), text.get_rotation()
    text.set_rotation(0)
    plain = _find_box(text)
    text.set_rotation(angle)
    n_lines = text.get_text().count("\n") + 1
    half = np.array([plain.width, plain.height * (1 - FREE / n_lines)]) / 2
    corners = half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    centre = np.array([turned.x0 + turned.x1, turned.y0 + turned.y1]) / 2
    return corners @ np.array([[cos, sin], [-sin, cos]]) + centre


def _cross(one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether two rectangles share more than an edge: no line along a side of either parts them."""
    for side in (one[1] - one[0], one[3] - one[0], other[1] - other[0], other[3] - other[0]):
        a, b = one @ side, other @ side
        if min(a.max(), b.max()) - max(a.min(), b.min()) <= 0.5 * np.hypot(*side):  # half a pixel
            return False
    return True


def _list_untitled(ax: Axes) -> Iterator[list[Text]]:
    """Yield the tick labels of each axis that shows numbers and says nowhere of what; names explain themselves."""
    if not ax.axison:
        return
    owner = ax.get_figure(root=False)
    for axis, shared, above in ((ax.xaxis, ax.get_shared_x_axes(), owner.get_supxlabel()),
                                (ax.yaxis, ax.get_shared_y_axes(), owner.get_supylabel())):  # fmt: skip
        labels = _list_tick_labels(axis) if axis.get_visible() else []
        others = [getattr(mate, f"{axis.axis_name}axis") for mate in shared.get_siblings(ax)]
        if any(map(_is_number, labels)) and not above and not any(o.get_label_text().strip() for o in others):
            yield labels


def _is_number(label: Text) -> bool:
    text = label.get_text().replace("\N{MINUS SIGN}", "-").replace("$", "").replace("%", "").replace(",", "")
    try:
        float(text)
    except ValueError:
        return "mathdefault" in text
    return True


def _list_covered(figure: Figure, texts: list[Text]) -> Iterator[str]:
    legends = [artist for artist in figure.findobj(Legend) if artist.get_visible()]
    for legend in legends:
        own, box = set(map(id, legend.findobj(Text))), legend.get_window_extent()
        frame = np.array([(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)])
        yield from (_name(t) for t in texts if id(t) not in own and _cross(frame, _find_corners(t)))
        for ax in _list_axes(figure):
            points = [line.get_xydata() for line in ax.lines if line.get_transform() == ax.transData]
            points += [
                np.ma.getdata(c.get_offsets()) for c in ax.collections if c.get_offset_transform() == ax.transData
            ]
            pixels = ax.transData.transform(np.concatenate([np.empty((0, 2)), *points]).astype(float))
            n_covered = int(((pixels > box.min) & (pixels < box.max)).all(axis=1).sum())
            if n_covered:
                yield f"{n_covered} points of the plot"


def _name(text: Text) -> str:
    return repr(text.get_text()[:60])
