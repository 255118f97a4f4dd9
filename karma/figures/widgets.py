"""Things to try by hand in a notebook that somebody reads live, and a picture of the same where nobody does.

Change the threshold, leave out a benchmark, change one score, and watch the pairs; judge ten pairs yourself before the
label, the judge and the programs say what they think. Decision: what is shown is computed by the package on every
change, with no copy of a rule here. Limit: a few models of one prompt; whole studies are changed in their files.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from karma.figures.style import PAGE_WIDTH_IN, PALETTE, row_style
from karma.kinship.similarity import compute_kinship
from karma.pool.responses import index_responses
from karma.scores.names import canonical_model_name
from karma.scores.normalise import compute_s_pref
from karma.scores.table import ScoreTable
from karma.study.escape import escape_html
from karma.study.searchable import LIVE

STRATEGIES = ("k_score", "k_sim", "k_score_sim")
Build = Callable[[ScoreTable, str, float], Mapping[str, Any] | None]


def find_widgets() -> Any:
    """Return ipywidgets where somebody reads live, else None: in an executed notebook a control would be dead."""
    if not any(name in os.environ for name in LIVE):
        return None
    try:
        return import_module("ipywidgets")
    except ImportError:
        return None


def change_table(
    table: ScoreTable, without: str | None = None, changed: tuple[str, str, float] | None = None
) -> ScoreTable:
    """Return a score table without a benchmark, or with one score changed.

    Args:
        table: origin models x benchmarks. without: a benchmark to leave out.
        changed: origin model, benchmark, and its score there instead, in [0, 1].

    Example:
        >>> from karma.scores.read import load_score_table
        >>> table = load_score_table("paper")
        >>> change_table(table, "ifeval").scores.shape, change_table(table, None, ("bard", "ifeval", 0.5)).scores.shape
        ((16, 5), (16, 6))
    """
    scores = table.scores.copy()
    if changed is not None:
        model, benchmark, score = changed
        scores.loc[model, benchmark] = score
    kept = [name for name in scores if name != without]
    items = None if table.n_items is None else {k: n for k, n in table.n_items.items() if k in kept}
    weights = {name: weight for name, weight in table.weights.items() if name in kept}
    return replace(table, scores=scores[kept], benchmarks=table.benchmarks.loc[kept], n_items=items, weights=weights)


def explore_pairs(build: Build, table: ScoreTable, models: Sequence[str], tau: float) -> Any:
    """Return controls that change the threshold, the benchmarks or one score; draw the same where nobody reads live.

    Args:
        build: a table, a strategy and tau -> the pair as a row, or None.
        table: the score table. models: the prompt's origin models, by the names of a pool. tau: to begin with.
    """
    ipywidgets = find_widgets()
    if ipywidgets is None:
        draw_changes(table, models, tau)
        return None
    names = _find_names(table, models)
    level = ipywidgets.FloatSlider(tau, min=0, max=1, step=0.005, description="tau", readout_format=".3f")
    without = ipywidgets.Dropdown(options=["none", *table.scores], description="leave out")
    model = ipywidgets.Dropdown(options=list(models), value=models[-2], description="model")
    benchmark = ipywidgets.Dropdown(options=list(table.scores), description="benchmark")
    score = ipywidgets.FloatSlider(min=0, max=1, step=0.01, description="its score", readout_format=".2f")
    shown = ipywidgets.HTML()
    before = {strategy: _name_pair(build(table, strategy, tau)) for strategy in STRATEGIES}

    def start(_: object = None) -> None:
        score.value = float(table.scores.loc[names[model.value], benchmark.value])
        show()

    def show(_: object = None) -> None:
        left_out = None if without.value == "none" else without.value
        own = change_table(table, left_out, (names[model.value], benchmark.value, score.value))
        rows = {strategy: _name_pair(build(own, strategy, level.value)) for strategy in STRATEGIES}
        shown.value = _write_pairs(rows, before)

    for control in (model, benchmark):
        control.observe(start, "value")
    for control in (level, without, score):
        control.observe(show, "value")
    start()
    return ipywidgets.VBox([level, without, ipywidgets.HBox([model, benchmark, score]), shown])


def _name_pair(row: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return "no pair", "", ""
    return str(row["chosen_model"]), str(row["rejected_model"]), f"{row['kinship']:.3f}"


def _write_pairs(rows: Mapping[str, tuple[str, str, str]], before: Mapping[str, tuple[str, str, str]]) -> str:
    lines = ["<table><tr><th>strategy</th><th>chosen</th><th>rejected</th><th>kinship</th><th></th></tr>"]
    for strategy, (chosen, rejected, kinship) in rows.items():
        same = {chosen, rejected} == {*before[strategy][:2]}
        told = "" if (chosen, rejected) == before[strategy][:2] else "the label flips" if same else "another pair"
        cells = "".join(f"<td>{escape_html(text)}</td>" for text in (strategy, chosen, rejected, kinship, told))
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def _find_names(table: ScoreTable, models: Sequence[str]) -> dict[str, str]:
    """Return a pool's name -> the table's name of the same model."""
    known = {canonical_model_name(name): str(name) for name in table.scores.index}
    return {name: known[canonical_model_name(name)] for name in models}


def draw_changes(table: ScoreTable, models: Sequence[str], tau: float) -> Figure:
    """Draw what the controls would show: pairs over tau, S_pref without each benchmark, and where a label flips.

    Args:
        table: the score table. models: the prompt's origin models; the last but one has its score changed. tau: drawn.
    """
    names = _find_names(table, models)
    figure, (a, b, c) = plt.subplots(1, 3, figsize=(PAGE_WIDTH_IN * 1.4, 4.0))
    kinship = compute_kinship(table)
    pairs = sorted(combinations(models, 2), key=lambda pair: kinship.loc[names[pair[0]], names[pair[1]]])
    for place, (one, two) in enumerate(pairs):
        value = kinship.loc[names[one], names[two]]
        a.plot(value, place, "o", color=PALETTE[0], mfc=PALETTE[0] if value >= tau else "white")
    a.set_yticks(range(len(pairs)), [" / ".join(pair) for pair in pairs])
    a.axvline(tau, color="0.3", ls="--", lw=1)
    a.set(xlabel=f"kinship (dashed: tau = {tau:g})", xlim=(-0.03, 1.03), title="a  Which pairs reach tau?")
    variants = [None, *table.scores]
    for place, without in enumerate(variants):
        s_pref = compute_s_pref(change_table(table, without))
        for k, model in enumerate(models):
            style = row_style(k)
            b.plot(s_pref[names[model]], place, style["marker"], color=style["color"],
                   label=model if place == 0 else None)  # fmt: skip
    titles = ["none", *table.benchmarks["title"]]
    b.set_yticks(range(len(variants)), titles)
    b.invert_yaxis()
    b.set(xlabel="S_pref", xlim=(-0.03, 1.03), title="b  Leave out a benchmark")
    b.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    _draw_flip(c, table, names, models[-2], models[-3])
    return figure


def _draw_flip(axes: Any, table: ScoreTable, names: Mapping[str, str], model: str, rival: str) -> None:
    benchmark = str(table.scores.columns[0])
    title, levels = table.benchmarks.loc[benchmark, "title"], np.linspace(0, 1, 101)
    found = [compute_s_pref(change_table(table, None, (names[model], benchmark, level)))[[names[model], names[rival]]]
             for level in levels]  # fmt: skip
    own, other = np.array(found).T
    axes.plot(levels, own, color=PALETTE[0], label=model)
    axes.plot(levels, other, color=PALETTE[1], ls="--", label=rival)
    axes.axvline(table.scores.loc[names[model], benchmark], color="0.6", lw=1, label="as measured")
    flips = levels[1:][np.diff(np.sign(own - other)) != 0]
    if len(flips):
        axes.axvline(flips[0], color="0.2", ls=":", lw=1, label=f"the label flips ({flips[0]:.2f})")
    axes.set(xlabel=f"{title} score of {model}", ylabel="S_pref", title="c  Change one score")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)


@dataclass(frozen=True)
class Judged:
    """A pair to be judged by a reader: two texts, and which of them each judge prefers.

    Attributes:
        prompt, first, second: texts. verdicts: who -> "first", "second" or "neither".
    """

    prompt: str
    first: str
    second: str
    verdicts: Mapping[str, str]


def choose_pairs_to_judge(
    pairs: pd.DataFrame, truths: pd.DataFrame, rated: pd.DataFrame | None = None, n: int = 10, seed: int = 0
) -> list[Judged]:
    """Choose pairs that programs decide, each in a random order, with the verdicts of label, judge and truth.

    Args:
        pairs: a strategy's pairs. truths: row_id, response_id, truth (share of instructions followed).
        rated: row_id, response_id, score, of a judge. n: how many, fewer where fewer are decided.
        seed: of the choice and the order.
    """
    truth = index_responses(truths, "truth")
    ratings = {} if rated is None else index_responses(rated, "score")
    rng = np.random.default_rng(seed)
    rows = [row for row in pairs.to_dict("records") if _compare(truth, row) != "neither"]
    chosen = [rows[k] for k in sorted(rng.permutation(len(rows))[:n])]
    turn = {"first": "second", "second": "first", "neither": "neither"}
    judged = []
    for row, turned in zip(chosen, rng.random(len(chosen)) < 0.5, strict=True):
        texts = [row[side][-1]["content"] for side in ("chosen", "rejected")]
        found = {"label": "first", "truth": _compare(truth, row)}
        if ratings:
            found["judge"] = _compare(ratings, row)
        if turned:
            texts, found = texts[::-1], {who: turn[verdict] for who, verdict in found.items()}
        judged.append(Judged(row["prompt"][-1]["content"], texts[0], texts[1], found))
    return judged


def _compare(values: Mapping[tuple[str, str], float], row: Mapping[str, Any]) -> str:
    chosen, rejected = (values.get((row["row_id"], row[f"{side}_id"]), np.nan) for side in ("chosen", "rejected"))
    return "first" if chosen > rejected else "second" if chosen < rejected else "neither"


def count_agreement(judged: Sequence[Judged], own: Sequence[str] = ()) -> pd.DataFrame:
    """Count how often each judge, and a reader, preferred what the truth prefers.

    Args:
        judged: the pairs. own: a reader's verdicts on the first of them.

    Example:
        >>> count_agreement([Judged("p", "a", "b", {"label": "second", "truth": "first"})], ["first"])
               right  of
        label      0   1
        you        1   1
    """
    who = dict.fromkeys(name for pair in judged for name in pair.verdicts if name != "truth")
    verdicts = {name: [pair.verdicts.get(name, "neither") for pair in judged] for name in who}
    if own:
        verdicts["you"] = list(own)
    right = {name: sum(v == pair.verdicts["truth"] for v, pair in zip(given, judged, strict=False))
             for name, given in verdicts.items()}  # fmt: skip
    return pd.DataFrame({"right": right, "of": {name: len(given) for name, given in verdicts.items()}})


def judge_pairs(judged: Sequence[Judged]) -> Any:
    """Return buttons to judge the pairs one after the other; draw the verdicts where nobody reads live."""
    if not judged:
        print("programs decide none of these pairs: there is nothing to judge")
        return None
    ipywidgets = find_widgets()
    if ipywidgets is None:
        draw_verdicts(judged)
        return None
    shown, own = ipywidgets.HTML(), list[str]()
    buttons = [ipywidgets.Button(description=f"the {side} is better") for side in ("first", "second")]

    def show() -> None:
        k = len(own)
        told = "" if not k else f"<p>Last pair: {_tell(judged[k - 1], own[-1])}</p>"
        if k == len(judged):
            shown.value = told + count_agreement(judged, own).to_html()
            for button in buttons:
                button.disabled = True
            return
        pair = judged[k]
        texts = [("prompt", pair.prompt), ("first", pair.first), ("second", pair.second)]
        rows = "".join(f"<tr><th>{name}</th><td style='text-align: left; white-space: pre-wrap'>{escape_html(text)}"
                       "</td></tr>" for name, text in texts)  # fmt: skip
        shown.value = f"{told}<p>Pair {k + 1} of {len(judged)}</p><table>{rows}</table>"

    def press(side: str) -> Callable[[object], None]:
        def pressed(_: object) -> None:
            own.append(side)
            show()

        return pressed

    for button, side in zip(buttons, ("first", "second"), strict=True):
        button.on_click(press(side))
    show()
    return ipywidgets.VBox([shown, ipywidgets.HBox(buttons)])


def _tell(pair: Judged, own: str) -> str:
    return escape_html(", ".join([f"you said {own}", *(f"{who} {verdict}" for who, verdict in pair.verdicts.items())]))


def draw_verdicts(judged: Sequence[Judged]) -> Figure:
    """Draw which text each judge preferred of every pair, and whether programs agree."""
    who = [name for name in ("label", "judge", "truth") if any(name in pair.verdicts for pair in judged)]
    figure, axes = plt.subplots(figsize=(PAGE_WIDTH_IN * 0.75, 0.3 * max(len(judged), 1) + 1.3))
    for place, pair in enumerate(judged):
        for k, name in enumerate(who):
            verdict = pair.verdicts.get(name, "neither")
            right = verdict == pair.verdicts["truth"]
            axes.plot(k, place, "o" if right else "X", color=PALETTE[0] if right else PALETTE[3], ms=7)
            axes.text(k + 0.12, place, verdict, va="center", fontsize=8)
    axes.set_xticks(range(len(who)), who)
    axes.set_yticks(range(len(judged)), [f"pair {k + 1}" for k in range(len(judged))])
    axes.set(xlim=(-0.3, len(who) - 0.3), ylim=(len(judged) - 0.4, -0.6),
             title="Which text is better? (circle: as the truth says, cross: not)")  # fmt: skip
    axes.grid(visible=False)
    return figure
