"""What readers try by hand: the controls do what the package does, and a picture stands in where nobody reads live."""

import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from karma import build_pairs, load_pool, load_score_table
from karma.figures import widgets
from karma.figures.style import set_style
from karma.results.solutions import PAGE_MODELS
from tests.boxes import check_boxes

TABLE = load_score_table("paper")


def build(table, strategy, tau):
    answers = [{"model": name, "response": f"of {name}"} for name in PAGE_MODELS]
    pool = load_pool([{"source": "s", "instruction": "?", "completions": answers}])
    return next(iter(build_pairs(pool, table, strategy, tau=tau, seed=0).table.to_pylist()), None)


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "somebody reads")


@pytest.fixture
def controls(live):
    made = widgets.explore_pairs(build, TABLE, PAGE_MODELS, 0.1)
    level, without, row, shown = made.children
    return level, without, *row.children, shown


def test_the_threshold_takes_pairs_away(controls):
    level, *_, shown = controls
    assert "<td>k_sim</td><td>llama-2-13b-chat</td><td>llama-2-7b-chat</td><td>0.996</td><td></td>" in shown.value
    level.value = 0.999
    assert shown.value.count("no pair") == 3 and "another pair" in shown.value


def test_one_score_turns_a_label_and_a_benchmark_left_out_is_left_out(controls):
    _, without, model, benchmark, score, shown = controls
    assert (model.value, benchmark.value) == ("llama-2-7b-chat", "ifeval")
    assert score.value == pytest.approx(TABLE.scores.loc["Llama-2-7b-chat", "ifeval"], abs=0.006)
    score.value = 0.47
    assert (
        "<td>k_sim</td><td>llama-2-7b-chat</td><td>llama-2-13b-chat</td>" in shown.value
        and "the label flips" in shown.value
    )
    benchmark.value = "arc_easy"  # begins at its own score again
    assert "the label flips" not in shown.value
    before = shown.value
    without.value = "hellaswag"
    assert shown.value != before


@pytest.fixture
def headless(monkeypatch):
    set_style()
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("VSCODE_PID", raising=False)
    plt.close("all")
    yield
    plt.close("all")


def test_where_nobody_reads_live_the_same_is_drawn(headless):
    assert widgets.explore_pairs(build, TABLE, PAGE_MODELS, 0.1) is None
    figure = plt.gcf()
    a, b, c = figure.axes
    assert len(a.lines) == 7 and len(b.lines) == 7 * 4
    flip = next(line.get_label() for line in c.lines if "flips" in line.get_label())
    at = float(flip.split("(")[1].rstrip(")"))
    for score, chosen in ((at - 0.02, "llama-2-13b-chat"), (at + 0.02, "llama-2-7b-chat")):
        changed = widgets.change_table(TABLE, None, ("Llama-2-7b-chat", "ifeval", score))
        assert build(changed, "k_sim", 0.1)["chosen_model"] == chosen
    check_boxes(figure)


def message(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def judged():
    pairs = pd.DataFrame([{"row_id": f"r{k}", "chosen_id": "a", "rejected_id": "b", "prompt": message(f"prompt {k}"),
                           "chosen": message(f"chosen {k}"), "rejected": message(f"rejected {k}")} for k in range(14)])  # fmt: skip
    rows = [(f"r{k}", side) for k in range(14) for side in "ab"]
    truths = pd.DataFrame(rows, columns=["row_id", "response_id"])
    truths["truth"] = [0.5 if k < 2 else float((side == "a") == (k % 3 > 0)) for k in range(14) for side in "ab"]
    rated = truths.assign(score=[float(side == "b") for _, side in rows])
    return widgets.choose_pairs_to_judge(pairs, truths, rated)


def test_ten_decided_pairs_are_chosen_and_turned_with_their_verdicts(judged):
    assert len(judged) == 10 and len({pair.prompt for pair in judged}) == 10
    assert not {"prompt 0", "prompt 1"} & {pair.prompt for pair in judged}
    for pair in judged:
        text = {"first": pair.first, "second": pair.second}
        assert text[pair.verdicts["label"]].startswith("chosen") and text[pair.verdicts["judge"]].startswith("rejected")
        right = int(pair.prompt.split()[1]) % 3 > 0
        assert text[pair.verdicts["truth"]].startswith("chosen" if right else "rejected")
    assert {pair.verdicts["label"] for pair in judged} == {"first", "second"}


def test_a_reader_presses_ten_times_and_is_counted(live, judged):
    shown, row = widgets.judge_pairs(judged).children
    first, second = row.children
    assert "Pair 1 of 10" in shown.value and judged[0].first in shown.value
    for pair in judged:
        (first if pair.verdicts["truth"] == "first" else second).click()
    assert first.disabled and second.disabled
    counted = widgets.count_agreement(judged, [pair.verdicts["truth"] for pair in judged])
    assert (
        counted.loc["you"].tolist() == [10, 10] and counted.loc["label", "right"] + counted.loc["judge", "right"] == 10
    )
    assert counted.to_html() in shown.value


def test_the_verdicts_are_drawn_where_nobody_reads_live(headless, judged):
    assert widgets.judge_pairs(judged) is None
    marks = [line.get_marker() for line in plt.gcf().axes[0].lines]
    assert len(marks) == 30 and {*marks[2::3]} == {"o"} and "X" in marks
    check_boxes(plt.gcf())


def test_without_ipywidgets_a_live_reader_sees_the_picture(live, judged, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert widgets.judge_pairs(judged) is None and widgets.explore_pairs(build, TABLE, PAGE_MODELS, 0.1) is None
    plt.close("all")


def test_without_decided_pairs_there_is_nothing_to_judge(capsys):
    assert widgets.judge_pairs([]) is None and "nothing to judge" in capsys.readouterr().out
