"""Draw the README's picture, docs/karma.png and docs/karma.svg, out of the package's own pool: `make readme` calls it.

Prompt, four answers with their models' scores, the pair that K_sim makes of them, and the policy that learns from it.
Nothing in it is typed in: texts, scores, kinship and what programs say of the answers come from karma/data/sample.
Which prompt is shown is a rule (`choose`), the same for every pool.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from karma import build_pairs, compute_s_pref, load_pool, load_score_table
from karma.evaluation.ifeval import check_instructions
from karma.evaluation.prompts import load_prompts
from karma.figures.style import PALETTE, save_figure, set_style
from karma.pool.responses import to_hex
from karma.scores.names import canonical_model_name

ROOT = Path(__file__).parent.parent
WIDTH_IN, HEIGHT_IN = 12.0, 4.6
BLUE, ORANGE, GREY = PALETTE[0], PALETTE[1], "0.35"
STRATEGY = "k_sim"


@dataclass(frozen=True)
class Example:
    """One prompt as the picture shows it.

    Attributes:
        prompt: its text. answers: model -> text, best S_pref first. s_pref: model -> S_pref.
        chosen, rejected: models. kinship: of the two. followed: model -> instructions that programs confirm.
        n_instructions: of the prompt.
    """

    prompt: str
    answers: dict[str, str]
    s_pref: dict[str, float]
    chosen: str
    rejected: str
    kinship: float
    followed: dict[str, int]
    n_instructions: int


def list_examples() -> list[Example]:
    """Return every pair of the package's pool with all that is shown of it."""
    pool, table = load_pool("sample"), load_score_table("sample")
    pairs = build_pairs(pool, table, STRATEGY, tau=0.1, seed=0).table.to_pylist()
    s_pref = {canonical_model_name(name): value for name, value in compute_s_pref(table).items()}
    prompts = {one.text: one for one in load_prompts(ROOT / "karma" / "data" / "demo" / "pool.jsonl", False)}
    rows = {}
    for batch in pool.batches():
        ids = to_hex(batch.row_digest[batch.row]).to_pylist()
        for place, (row, text) in enumerate(zip(ids, batch.response.to_pylist(), strict=True)):
            rows.setdefault(row, {})[batch.model_names[batch.model[place]]] = text
    found = []
    for pair in pairs:
        answers, text = rows[pair["row_id"]], pair["prompt"][-1]["content"]
        asked = prompts[text]
        order = sorted(answers, key=lambda name: -s_pref[canonical_model_name(name)])
        found.append(Example(
            text, {name: answers[name] for name in order},
            {name: s_pref[canonical_model_name(name)] for name in order}, pair["chosen_model"], pair["rejected_model"],
            pair["kinship"], {name: sum(check_instructions(asked.item, answers[name])["strict"]) for name in order},
            len(asked.instruction_ids),
        ))  # fmt: skip
    return found


def choose(examples: list[Example]) -> Example:
    """Return the example that is shown: of those in which the programs decide, the one with the shortest texts.

    Whether the programs agree with the label is no part of the rule, so that the picture may show a wrong label.
    """
    decided = [one for one in examples if one.followed[one.chosen] != one.followed[one.rejected]] or examples
    return min(decided, key=lambda one: len(one.prompt) + sum(map(len, one.answers.values())))


def draw(shown: Example) -> Figure:
    """Draw the picture.

    Args:
        shown: one prompt.
    """
    set_style()
    figure, ax = plt.subplots(figsize=(WIDTH_IN, HEIGHT_IN))
    ax.set_xlim(0, WIDTH_IN)
    ax.set_ylim(0, HEIGHT_IN)
    ax.axis("off")
    titles = ((0.15, "a prompt"), (2.5, "1  score the models that answered"), (7.0, "2  pair two answers of kin"),
              (10.0, "3  check"))  # fmt: skip
    for x, title in titles:
        ax.text(x, HEIGHT_IN - 0.3, title, size=12, weight="bold", va="center")
    _box(ax, 0.15, 0.75, 2.1, 3.3, _wrap(shown.prompt, 26, 12), GREY)
    n = len(shown.answers)
    height = 3.3 / n
    for place, (name, text) in enumerate(shown.answers.items()):
        y = 4.05 - (place + 1) * height
        kin = {shown.chosen: BLUE, shown.rejected: ORANGE}.get(name)
        body = f"{_wrap(text, 40, 2)}"
        _box(ax, 3.85, y + 0.05, 2.85, height - 0.1, body, kin or "0.7", size=8.5)
        ax.text(2.5, y + height / 2 + 0.16, name, size=9, va="center", weight="bold" if kin else "normal")
        ax.barh(y + height / 2 - 0.14, 0.75 * shown.s_pref[name], 0.18, left=2.5, color=kin or "0.7")
        ax.text(
            2.58 + 0.75 * shown.s_pref[name], y + height / 2 - 0.15, f"{shown.s_pref[name]:.2f}", size=9, va="center"
        )
    _arrow(ax, (2.27, 2.4), (2.47, 2.4))
    for y, side, name, color in ((2.75, "chosen", shown.chosen, BLUE), (0.75, "rejected", shown.rejected, ORANGE)):
        told = f"{side}: {name}\n{_wrap(shown.answers[name], 38, 4)}"
        _box(ax, 7.0, y, 2.7, 1.3, told, color, size=8.5)
        place = list(shown.answers).index(name)
        _arrow(ax, (6.73, 4.05 - (place + 0.5) * height), (6.97, y + 0.65), color)
    told = f"kinship {shown.kinship:.3f}: the closest two;\nthe higher S_pref is chosen"
    ax.text(8.35, 2.4, told, size=9, va="center", ha="center")
    _arrow(ax, (9.72, 3.4), (9.98, 3.4))
    _arrow(ax, (9.72, 1.4), (9.98, 1.4))
    counts = [f"{shown.followed[name]} of {shown.n_instructions}" for name in (shown.chosen, shown.rejected)]
    right = "right" if shown.followed[shown.chosen] > shown.followed[shown.rejected] else "wrong"
    label = f"the label: programs find\n{counts[0]} instructions followed\nby the chosen, {counts[1]} by\n"
    label += f"the rejected: {right} here"
    policy = "the policy: tuned on\nthe pairs, asked before\nand after, on prompts\nit has not seen"
    _box(ax, 10.0, 2.75, 1.85, 1.3, label, GREY, size=8.5)
    _box(ax, 10.0, 0.75, 1.85, 1.3, policy, GREY, size=8.5)
    told = (
        "S_pref (bars): mean of a model's benchmark scores, each from 0, the worst of these models, to 1, the best. "
        "No answer was read to pick or label the pair."
    )
    ax.text(0.15, 0.38, told, size=9, va="center", color=GREY)
    return figure


def _wrap(text: str, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(" ".join(text.split()), width, max_lines=lines, placeholder=" ..."))


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, color: str, size: float = 9) -> None:
    corner, style = (x + 0.04, y + 0.04), "round,pad=0.04"
    frame = {"fill": False, "edgecolor": color, "linewidth": 1.6}
    ax.add_patch(FancyBboxPatch(corner, width - 0.08, height - 0.08, boxstyle=style, **frame))
    ax.text(x + 0.1, y + height / 2, text, size=size, va="center", linespacing=1.25)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = GREY) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=color, linewidth=1.4))


def main() -> None:
    """Write docs/karma.png and docs/karma.svg."""
    save_figure(draw(choose(list_examples())), ROOT / "docs" / "karma")


if __name__ == "__main__":
    main()
