"""Figures 1, 2 and 8, drawn from a study's own counts: who labels what, the way of the data, the prompt as
sent.

Decision: a diagram's numbers come from the study's files, and one that is unknown is written "not
recorded", so that the drawing cannot promise what was not measured. Limit: boxes are sized for the
paper's and the demo's counts.
"""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from karma.figures.style import PAGE_WIDTH_IN, PALETTE, strategy_style
from karma.vocabulary import BASELINE, split_step, title_of

if TYPE_CHECKING:
    from karma.results.study import Study

UNKNOWN = "not recorded"
LINE_IN = 0.146  # inches a line of 8 pt takes
FIGURE8_LINES, FIGURE8_WIDTH = 26, 96  # lines and characters of a prompt that fit the page


def plot_labelling(counts: dict[str, float | None]) -> Axes:
    """Draw Figure 1: three ways to label a pool, who reads what; below, tokens over the size of the pool.

    Args:
        counts: as of `compute_counts`; without tokens of both ways there is no plot below.

    Returns:
        The diagram's axes.

    Paper: Figure 1, which has no costs.
    """
    known = all(counts[key] for key in ("rlaif_calls", "rlaif_tokens", "kinship_tokens"))
    figure, axes = plt.subplots(
        1 + known, 1, figsize=(PAGE_WIDTH_IN, 6.2 if known else 3.5), squeeze=False,
        height_ratios=[3.5, 2.4] if known else None,
    )  # fmt: skip
    ax = _clear(axes[0, 0], 3.5)
    pool = f"{_number(counts['prompts'], 'prompts')}\n{_number(counts['responses'], 'responses')}"
    judge = "a judge model rates\nevery response"
    judged = _number(counts["responses"], "judgements")
    exam = f"{_number(counts['origin_models'], 'origin models')} take\n"
    exam += f"{_number(counts['benchmarks'], 'benchmarks')} once"
    lanes = [
        ("People", "0.45", "annotators read\nevery response", judged),
        ("RLAIF", strategy_style("rlaif")["color"], judge, _cost(counts, "rlaif")),
        ("Kinship", strategy_style("k_sim")["color"], exam, _cost(counts, "kinship")),
    ]  # fmt: skip
    for y, (name, color, who, cost) in zip((2.35, 1.25, 0.15), lanes, strict=True):
        ax.text(0.05, y + 0.4, name, weight="bold", va="center", color="black")
        reads = "the pool is not read" if name == "Kinship" else pool
        texts = [reads, who, cost, "chosen and rejected\nfor each prompt"]
        for x, text in zip((0.95, 2.75, 4.55, 6.35), texts, strict=True):
            _box(ax, x - 0.06, y, 1.62, 0.8, text, color)
        for x in (2.51, 4.31, 6.11):
            _arrow(ax, (x, y + 0.4), (x + 0.18, y + 0.4))
    for x, title in zip((1.7, 3.5, 5.3, 7.1), ("what is read", "who labels", "cost of labels", "result"), strict=True):
        ax.text(x, 3.3, title, ha="center", va="bottom", style="italic")
    if known:
        _draw_cost(axes[1, 0], counts)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return ax


def _draw_cost(ax: Axes, counts: dict[str, Any]) -> None:
    """Draw tokens over responses: the judge's line rises, kinship's is flat, and they cross at the break-even."""
    each = counts["rlaif_tokens"] / counts["rlaif_calls"]
    even, here = counts["kinship_tokens"] / each, counts["responses"]
    sizes = np.array([0.0, 2 * max(even, here or 0)])
    unit, word = (1e6, "millions") if counts["kinship_tokens"] >= 1e6 else (1e3, "thousands")
    ax.plot(sizes, sizes * each / unit, color=strategy_style("rlaif")["color"], label="RLAIF: the judge")
    ax.plot(sizes, [counts["kinship_tokens"] / unit] * 2, color=strategy_style("k_sim")["color"], ls="--",
            label="kinship: the benchmarks")  # fmt: skip
    ax.plot([even], [counts["kinship_tokens"] / unit], "o", color="black", ms=5,
            label=f"break-even: {even:,.0f} responses")  # fmt: skip
    if here:
        ax.axvline(here, color="0.4", lw=1, ls=":", label=f"this pool: {here:,.0f}")
    ax.set(xlabel="responses in the pool", ylabel=f"tokens ({word})", xlim=(0, sizes[1]), ylim=(0, None))


def plot_framework(study: "Study", counts: dict[str, float | None]) -> Axes:
    """Draw Figure 2: from origin models and prompts to chosen and rejected, and to the trained policies.

    Args:
        study: its strategies, methods and policies. counts: as of `compute_counts`.

    Paper: Figure 2.
    """
    ax = _canvas(3.1)
    grey, kin = "0.45", strategy_style("k_sim")["color"]
    strategies = ", ".join(title_of(s) for s in study.strategies if s != BASELINE)
    pairs = f"pairs: {UNKNOWN}" if counts["pairs"] is None else f"up to {counts['pairs']:,.0f} pairs"
    top = [
        (_number(counts["origin_models"], "origin models"), grey),
        (f"scores on\n{_number(counts['benchmarks'], 'benchmarks')}", kin),
        ("min-max:\nS_pref, kinship", kin),
        (f"which pair:\n{textwrap.fill(strategies, 18)}", kin),
    ]
    bottom = [
        (_number(counts["prompts"], "prompts"), grey), (_number(counts["responses"], "responses"), grey),
        (f"chosen, rejected\n{pairs}", PALETTE[1]),
        (f"{_methods(study.methods)} of\n{_policies(len(study.policies))}", PALETTE[3]),
    ]  # fmt: skip
    for y, row in ((1.75, top), (0.2, bottom)):
        for x, (text, color) in zip((0.1, 2.1, 4.1, 6.1), row, strict=True):
            _box(ax, x, y, 1.6, 0.95, text, color)
        for x in (1.7, 3.7, 5.7):
            _arrow(ax, (x, y + 0.475), (x + 0.4, y + 0.475))
    _arrow(ax, (0.9, 1.75), (2.4, 1.15))
    _arrow(ax, (6.4, 1.75), (5.3, 1.15))
    ax.text(0.75, 1.44, "answer", ha="center", va="center", fontsize=8)
    ax.text(6.4, 1.42, "decides", ha="center", va="center", fontsize=8)
    return ax


def plot_prompt(prompt: str, answer: str | None = None, source: str = "") -> Axes:
    """Draw Figure 8: one evaluation prompt exactly as it was sent, and the answer that came back.

    A prompt longer than the page is cut, and says by how many lines.

    Paper: Figure 8.
    """
    lines = [part for line in prompt.splitlines() for part in textwrap.wrap(line, FIGURE8_WIDTH) or [""]]
    if len(lines) > FIGURE8_LINES:
        lines = [*lines[:FIGURE8_LINES], f"[{len(lines) - FIGURE8_LINES} more lines]"]
    shown = textwrap.shorten(answer or "", FIGURE8_WIDTH - 12, placeholder=" [...]") or "(empty)"
    boxes = [("\n".join(lines), len(lines), "#eef3f8")]
    boxes += [(f"answer: {shown}", 1, "#f4efe6")] if answer is not None else []
    height = sum(n for _, n, _ in boxes) * LINE_IN + 0.22 * len(boxes) + 0.32
    figure = plt.figure(figsize=(PAGE_WIDTH_IN, height))
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.text(0.01, 1 - 0.06 / height, f"The prompt as sent{f': {source}' if source else ''}", va="top", fontsize=10)
    top = 0.34
    for text, n, color in boxes:
        frame = {"facecolor": color, "edgecolor": "0.7", "boxstyle": "round,pad=0.4"}
        style: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": 8, "va": "top", "linespacing": 1.3}
        ax.text(0.015, 1 - top / height, text, bbox=frame, **style)
        top += n * LINE_IN + 0.2
    return ax


def _canvas(height: float) -> Axes:
    return _clear(plt.subplots(figsize=(PAGE_WIDTH_IN, height))[1], height)


def _clear(ax: Axes, height: float) -> Axes:
    ax.set_xlim(0, 8)
    ax.set_ylim(0, height)
    ax.set_axis_off()
    return ax


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    shape = "round,pad=0,rounding_size=0.06"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor="white", edgecolor=color, lw=1.6))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": "0.25", "lw": 1.1, "shrinkA": 1, "shrinkB": 1}
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return f"{unit}:\n{UNKNOWN}"
    return f"{value:,.0f} {unit.removesuffix('s') if value == 1 else unit}"


def _cost(counts: dict[str, float | None], who: str) -> str:
    calls, tokens, seconds = (counts[f"{who}_{what}"] for what in ("calls", "tokens", "seconds"))
    lines = [_number(calls, "calls"), _number(tokens, "tokens")] if calls is not None else [f"calls:\n{UNKNOWN}"]
    return "\n".join([*lines, *([f"{seconds:,.0f} s"] if seconds is not None else [])])


def _methods(names: Sequence[str]) -> str:
    """Name methods, and recipes once; more than four are counted."""
    found = list(dict.fromkeys(step[0] if (step := split_step(m)) else m.upper() for m in names))
    return ", ".join(found) if len(found) <= 4 else f"{len(found)} methods"


def _policies(n: int) -> str:
    return f"{n} policy" if n == 1 else f"{n} policies"
