"""Selections on the benchmarks: the stage, outcomes and intervals by hand, the report, and what is missing."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import t

from karma.errors import InputError
from karma.evaluation.compare import compare_answers
from karma.evaluation.runner import evaluate
from karma.figures.potential import plot_leads
from karma.models.ask import CachedModel
from karma.models.load import load_model, load_tokenizer
from karma.potential import evaluation, outcomes
from karma.potential.outcomes import ASKED, CELL, RUN_COLUMNS, collect_answers, compute_outcomes, compute_share
from karma.potential.rivals import compare_rivals, compute_trends
from karma.potential.study import compare_selections
from karma.results.selections import show_on_benchmarks
from karma.results.study import collect_results
from karma.statistics.intervals import compute_wilson
from karma.study.benchmark_settings import HarnessTask
from karma.study.experiment import load_experiment
from karma.study.sections import ModelSpec
from karma.study.stages import STAGES, Job, find_job, list_jobs
from karma.vocabulary import order_benchmarks
from tests.study_files import make_experiment, write_study

NO_RUNS = pd.DataFrame(columns=RUN_COLUMNS)
UNITS = {"ifeval": [2, 1, 3, 2], "arc_easy": [1, 1, 1, 1]}  # of four prompts, of four questions


def answers_of(metric, right, benchmark="arc_easy", ratio=0.4, seed=0):
    key = dict(zip(CELL, ("p", "k_sim", metric, ratio, "dpo"), strict=True))
    rows = [{"benchmark": benchmark, **key, "seed": seed, "row_id": f"item {k}", "right": r, "n": n}
            for k, (r, n) in enumerate(zip(right, UNITS[benchmark], strict=True))]  # fmt: skip
    return pd.DataFrame(rows)


def compare(*parts, untrained=None):
    answers = pd.concat(parts)
    start = pd.DataFrame(untrained if untrained is not None else [], columns=["benchmark", "policy", *ASKED])
    return compare_selections(NO_RUNS, answers, start).set_index(["benchmark", "metric"])


@pytest.fixture
def experiment(tmp_path):
    """The tests' study with its selections asked the benchmarks."""
    father = make_experiment(tmp_path)
    (tmp_path / "asked.yaml").write_text(f"extends: {father.path}\nname: asked\npotential: {{on_benchmarks: true}}\n")
    made = load_experiment(tmp_path / "asked.yaml")
    made.outputs = father.outputs
    return made


# --- outcomes and intervals by hand ----------------------------------------------------------------------------------


def test_a_prompt_with_several_instructions_is_one_cluster():
    """IFEval: right 2/2, 1/1, 0/3, 1/2 against 1/2, 0/1, 0/3, 1/2: two of eight instructions, on two of four prompts."""
    found = compare(answers_of("random", [1, 0, 0, 1], "ifeval"), answers_of("m_ap", [2, 1, 0, 1], "ifeval"))
    row, n = found.loc["ifeval", "m_ap"], np.array(UNITS["ifeval"])
    assert (row["accuracy"], row["n"], row["difference"]) == (0.5, 8, 0.25)
    residual = np.array([1, 1, 0, 0]) - 0.25 * n  # of each prompt: its sum less what its size would give
    half = t.ppf(0.975, 3) * np.sqrt((residual**2).sum() * 4 / 3) / 8
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-9)
    share = np.array([2, 1, 0, 1]) - 0.5 * n
    error = np.sqrt((share**2).sum() * 4 / 3) / 8
    assert (row["low"], row["high"]) == pytest.approx(compute_wilson(0.5, 8, error), abs=1e-9)
    assert row["high"] - row["low"] > np.diff(compute_wilson(0.5, 8))[0], "eight instructions are no eight prompts"
    nothing = compute_share(compute_outcomes(answers_of("m_ap", [0, 0, 0, 0], "ifeval")))
    assert (nothing["low"], nothing["high"]) == compute_wilson(0.0, 4) and nothing["n"] == 8


def test_the_difference_is_that_of_stage_05():
    """The same two sets of answers through `compare_answers`, which notebook 05 shows."""
    before, after = [1, 0, 0, 1], [2, 1, 0, 1]
    found = compare(answers_of("random", before, "ifeval"), answers_of("m_ap", after, "ifeval"))
    sides = [pd.DataFrame({"benchmark": "ifeval", "item_id": [*"abcd"], "answer": "", "correct": side,
                           "n": UNITS["ifeval"]}) for side in (before, after)]  # fmt: skip
    other = compare_answers(*(SimpleNamespace(to_pandas=lambda side=side: side) for side in sides)).loc["ifeval"]
    row = found.loc["ifeval", "m_ap"]
    assert [row[f"difference{end}"] for end in ("", "_low", "_high")] == pytest.approx(
        [other["difference"], other["low"], other["high"]]
    )


def test_the_change_from_the_untrained_policy_is_paired_in_every_seed():
    """One of four before; two after in one seed, three in the other, the one of before among them."""
    start = [{"benchmark": "arc_easy", "policy": "p", "row_id": f"item {k}", "right": r, "n": 1}
             for k, r in enumerate([1, 0, 0, 0])]  # fmt: skip
    other = [{**row, "policy": "q", "right": 1} for row in start] + [{**row, "benchmark": "ifeval"} for row in start]
    parts = [answers_of("m_ap", [1, 1, 0, 0], seed=0), answers_of("m_ap", [1, 1, 1, 0], seed=1)]
    row = compare(*parts, untrained=start + other).loc["arc_easy", "m_ap"]
    assert (row["accuracy"], row["change"], row["n_seeds"]) == (0.625, 0.375, 2)
    alone = compare(parts[0], untrained=start).loc["arc_easy", "m_ap"]
    half = t.ppf(0.975, 3) * np.std([0, 1, 0, 0], ddof=1) / 2
    assert (alone["change_low"], alone["change_high"]) == pytest.approx((0.25 - half, 0.25 + half))
    assert np.isnan(compare(*parts, untrained=other).loc["arc_easy", "m_ap"]["change"])


def test_seeds_that_disagree_widen_the_interval():
    apart = [answers_of(metric, [right] * 4, seed=seed) for metric, seed, right in
             [("random", 0, 0), ("random", 1, 0), ("m_ap", 0, 1), ("m_ap", 1, 0)]]  # fmt: skip
    row = compare(*apart).loc["arc_easy", "m_ap"]
    assert row["difference"] == 0.5 and row["difference_low"] < -1, "two trainings tell nothing of a third"
    lacking = compare(*apart[1:]).loc["arc_easy", "m_ap"]
    assert np.isnan(lacking["difference"]), "random lacks a seed: not the same trainings"


def test_items_that_one_side_lacks_are_left_out_and_n_says_so():
    short = answers_of("random", [0, 0, 0, 0]).iloc[:3]
    (row,) = compare_rivals(pd.concat([short, answers_of("m_ap", [1, 0, 1, 1])])).to_dict("records")
    assert (row["value"], row["n"]) == (pytest.approx(2 / 3), 3)


def test_every_metric_is_tested_against_random_and_m_ap_against_all_in_one_family():
    right = {"random": [0, 0, 0, 0], "explicit_large": [1, 0, 0, 0], "m_ap": [1, 1, 1, 0]}
    answers = pd.concat(
        [answers_of(metric, own, benchmark) for benchmark in UNITS for metric, own in right.items()]
        + [answers_of(metric, own, ratio=1.0) for metric, own in right.items()]  # all pairs: no selection, no test
    )
    found = compare_rivals(answers, all_against="random")
    tested = [("explicit_large", "random"), ("m_ap", "random"), ("m_ap", "explicit_large")]
    assert [(r.benchmark, r.metric, r.rival) for r in found.itertuples()] == [(b, *r) for b in UNITS for r in tested]
    values = found.set_index(["benchmark", "metric", "rival"])["value"]
    assert values["arc_easy"].tolist() == [0.25, 0.75, 0.5] and values["ifeval"].tolist() == [0.125, 0.375, 0.25]
    lead = np.array([1, 1, 1, 0])
    p = 2 * t.sf(0.75 / (lead.std(ddof=1) / 2), 3)
    row = found.set_index(["benchmark", "metric", "rival"]).loc["arc_easy", "m_ap", "random"]
    assert row["p_holm"] == pytest.approx(min(1, 6 * p)), "the smallest of six"
    assert row["verdict"].startswith("cannot tell with n = 4 items; ")
    assert set(found["n"]) == {4, 8}


def test_the_lead_s_trend_is_that_of_instructions():
    """IFEval: at .1 of the pairs M_AP leads by all eight instructions, at .4 by none: -.5 a doubling, on each prompt."""
    right = {0.1: UNITS["ifeval"], 0.4: [0, 0, 0, 0]}
    parts = [answers_of(metric, own if metric == "m_ap" else [0] * 4, "ifeval", ratio)
             for ratio, own in right.items() for metric in ("m_ap", "random")]  # fmt: skip
    (row,) = compute_trends(pd.concat(parts)).to_dict("records")
    assert (row["benchmark"], row["metric"], row["ratios"], row["n"]) == ("ifeval", "m_ap", "0.1, 0.4", 8)
    assert row["value"] == pytest.approx(-0.5) and row["verdict"] == "contradicted (n = 8 items)"


# --- the figure ------------------------------------------------------------------------------------------------------


def test_one_size_is_drawn_as_points_by_metric_and_several_as_curves():
    right = {"random": [0, 0, 0, 1], "explicit_large": [1, 0, 0, 0], "m_ap": [1, 1, 1, 0]}
    sizes = {
        ratio: [answers_of(metric, own, ratio=ratio) for metric, own in right.items()] for ratio in (0.2, 0.4, 1.0)
    }
    (ax,) = plot_leads(compare(*sizes[0.4], *sizes[1.0]).reset_index(), {"arc_easy": "ARC-E"})
    assert [label.get_text() for label in ax.get_xticklabels()] == ["explicit_large", "m_ap"]
    assert all(len(line[0].get_xdata()) == 1 for line in ax.containers), "a curve of one point"
    (ax,) = plot_leads(compare(*sizes[0.2], *sizes[0.4], *sizes[1.0]).reset_index(), {"arc_easy": "ARC-E"})
    assert [len(line[0].get_xdata()) for line in ax.containers] == [2, 2] and ax.get_xlabel() == "pairs kept (%)"
    assert ax.containers[1][0].get_ydata().tolist() == [0.5, 0.5]
    assert not len(plot_leads(compare(sizes[0.4][2]).reset_index(), {"arc_easy": "ARC-E"})), "nothing to compare with"


# --- the report, and what is missing ---------------------------------------------------------------------------------


def test_the_report_shows_every_selection_on_every_benchmark(experiment, tmp_path):
    write_study(experiment)
    shown = show_on_benchmarks(experiment, tmp_path / "tables", tmp_path / "figures")
    assert [each.name for each in shown[:2]] == ["selection_benchmarks"] * 2
    benchmarks = experiment.settings.benchmarks.policy
    long = pd.read_csv(tmp_path / "tables" / "selection_benchmark_intervals.csv")
    assert list(long["benchmark"].unique()) == benchmarks and len(long) == 2 * len(benchmarks)
    assert long["change"].notna().all() and (long["n_pairs"] == 24).all()
    row = long.set_index(["benchmark", "metric"]).loc["ifeval", "m_ap"]
    folder = experiment.outputs / "selections/smollm2-135m/k_score_sim+m_ap-0.4/dpo/seed0"
    score = json.loads((folder / "scores.json").read_text())["benchmarks"]["ifeval"]
    assert (row["accuracy"], row["n"]) == (pytest.approx(score["value"]), score["n"])
    table = (tmp_path / "tables" / "selection_benchmarks.md").read_text()
    title = order_benchmarks(["ifeval"], "table4")["ifeval"]
    assert f"n of {title}: instructions; those of a prompt are one cluster" in table and "are missing" not in table
    rivals = pd.read_csv(tmp_path / "tables" / "selection_benchmark_rivals.csv")
    assert len(rivals) == len(benchmarks) and (rivals["rival"] == "random").all() and rivals["verdict"].notna().all()
    assert all((tmp_path / "figures" / f"selection_benchmarks.{kind}").is_file() for kind in ("png", "svg"))


def test_a_study_that_does_not_ask_shows_and_misses_nothing(tmp_path):
    study = make_experiment(tmp_path)
    write_study(study)
    assert show_on_benchmarks(study, tmp_path / "tables", tmp_path / "figures") == []
    assert not list((tmp_path / "tables").glob("selection_benchmark*"))
    assert collect_results(study).gaps.empty and collect_answers(study)[0].empty
    with pytest.raises(InputError, match="no job of this stage there"):
        find_job(study, "selection_evaluation", {"policy": "smollm2-135m"})


def test_a_task_of_the_harness_is_among_the_benchmarks_that_are_asked(tmp_path):
    names = ["ifeval", "social_iqa", "of_an_earlier_run"]
    pq.write_table(pa.table({"benchmark": names, "item_id": names, "correct": [1, 0, 1], "n": [1, 1, 1]}),
                   tmp_path / "answers.parquet")  # fmt: skip
    benchmarks = SimpleNamespace(policy=["ifeval", HarnessTask(task="social_iqa")])
    settings = SimpleNamespace(settings=SimpleNamespace(benchmarks=benchmarks))
    found = outcomes._read_answers(SimpleNamespace(folder=tmp_path, experiment=settings), policy="p")
    assert found["benchmark"].tolist() == names[:2]


def test_a_missing_evaluation_is_a_named_gap_and_its_cell_is_not_compared(experiment, tmp_path):
    write_study(experiment)
    folder = experiment.outputs / "selections/smollm2-135m/k_score_sim+random-0.4/dpo/seed0"
    for name in STAGES["selection_evaluation"].products:
        (folder / name).unlink()
    (gap,) = collect_results(experiment).gaps.to_dict("records")
    assert gap["file"] == "selections/smollm2-135m/k_score_sim+random-0.4/dpo/seed0/scores.json"
    assert gap["made_by"] == ("karma selection_evaluation asked.yaml -p policy=smollm2-135m -p strategy=k_score_sim "
                              "-p metric=random -p ratio=0.4 -p method=dpo -p seed=0")  # fmt: skip
    show_on_benchmarks(experiment, tmp_path / "tables", tmp_path / "figures")
    long = pd.read_csv(tmp_path / "tables" / "selection_benchmark_intervals.csv")
    assert set(long["metric"]) == {"m_ap"} and long["difference"].isna().all() and long["change"].notna().all()
    table = (tmp_path / "tables" / "selection_benchmarks.md").read_text()
    assert "1 of 2 evaluations are missing: the gaps name them" in table
    assert not (tmp_path / "figures" / "selection_benchmarks.png").exists()


# --- the stage -------------------------------------------------------------------------------------------------------


def test_a_job_for_each_training_which_the_report_waits_for(experiment):
    jobs = [job for job in list_jobs(experiment) if job.stage.name == "selection_evaluation"]
    assert [job.params["metric"] for job in jobs] == ["random", "m_ap"]
    place = "selections/smollm2-135m/k_score_sim+m_ap-0.4/dpo/seed0"
    assert jobs[1].folder.relative_to(experiment.outputs).as_posix() == place
    assert jobs[1].label == "selection_evaluation.smollm2-135m.k_score_sim.m_ap.0.4.dpo.seed0"
    assert [needed.label for needed in jobs[1].inputs] == [
        "07_alignment_potential.smollm2-135m.k_score_sim.m_ap.0.4", "05_policy_evaluation.smollm2-135m.start",
    ]  # fmt: skip
    report = find_job(experiment, "06_results", {})
    assert {job.label for job in jobs} <= {needed.label for needed in report.inputs}


@pytest.fixture
def stage(experiment, tmp_path):
    """The job of a tiny policy that is asked two questions, with what stages 05 and 07 left."""
    given = find_job(experiment, "selection_evaluation", {
        "policy": "smollm2-135m", "strategy": "k_score_sim", "metric": "m_ap", "ratio": "0.4", "method": "dpo", "seed": 0,
    })  # fmt: skip
    models = {name: ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=seed).model_dump()
              for name, seed in (("smollm2-135m", 1), ("other", 2))}  # fmt: skip
    asked = experiment.settings.benchmarks.model_copy(update={"policy": ["arc_easy"], "limit": 2, "choice_tokens": 4})
    settings = SimpleNamespace(benchmarks=asked, compute=experiment.settings.compute)
    load_model(models, "other").save_pretrained(given.folder / "model")
    load_tokenizer(models, "other").save_pretrained(given.folder / "model")
    start = experiment.outputs / "runs" / "smollm2-135m" / "start"
    return SimpleNamespace(params=given.params, folder=given.folder, label=given.label, experiment=experiment,
                           settings=settings, models=models, start=start)  # fmt: skip


def write_start(stage, n):
    """Stage 05's answers of the untrained policy, to so many items."""
    settings = stage.settings.benchmarks.model_copy(update={"limit": n})
    model = CachedModel(stage.models, "smollm2-135m", stage.settings.compute, settings.batch_size)
    answers = evaluate(model, settings.policy, settings, stage.experiment.root)[1].to_pandas()
    stage.start.mkdir(parents=True)
    answers.to_parquet(stage.start / "answers.parquet")
    return answers


def test_the_stage_asks_what_05_asks_and_a_twin_costs_nothing(stage, capsys):
    start = write_start(stage, 2)
    evaluation.run(stage)
    first = pd.read_parquet(stage.folder / "answers.parquet")
    assert list(first["item_id"]) == list(start["item_id"]) and list(first["prompt"]) == list(start["prompt"])
    assert list(first["answer"]) != list(start["answer"]), "the trained weights were not asked"
    record = json.loads((stage.folder / "scores.json").read_text())
    assert record["n_asked"] == 2 and record["benchmarks"]["arc_easy"]["n"] == 2
    shown = capsys.readouterr().out
    assert "asked 2 prompts now, 0 came from earlier runs" in shown and "difference" in shown
    twin = SimpleNamespace(**{**vars(stage), "folder": stage.folder.with_name("seed1")})
    shutil.copytree(stage.folder / "model", twin.folder / "model")
    evaluation.run(twin)
    assert json.loads((twin.folder / "scores.json").read_text())["n_asked"] == 0
    assert pd.read_parquet(twin.folder / "answers.parquet").equals(first)


def test_a_training_that_is_not_there_and_other_items_are_one_line(stage):
    write_start(stage, 1)
    with pytest.raises(InputError, match="different items: evaluate both with the same settings"):
        evaluation.run(stage)
    assert not (stage.folder / "scores.json").exists()
    (stage.folder / "model").rename(stage.folder / "elsewhere")
    with pytest.raises(InputError, match="no trained policy lies there: run `karma notebook 07_alignment_potential`"):
        evaluation.run(stage)


def test_a_job_whose_selection_is_missing_names_the_notebook(experiment):
    job = Job(
        experiment, STAGES["selection_evaluation"], next(STAGES["selection_evaluation"].jobs(experiment.settings))
    )
    with pytest.raises(InputError, match=r"pairs\.parquet is missing: run notebooks/07_alignment_potential\.ipynb"):
        job.check_inputs()
