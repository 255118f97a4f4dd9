"""Results of a study whose files the test writes itself, in the fixed formats, whole and half finished."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from karma.errors import InputError
from karma.files import find_project_root
from karma.params import Experiment, load_experiment
from karma.results import collect, compute_size, load_published, open_results
from karma.stages import STAGES, Job, compute_jobs
from karma.tables import BASELINE, build_table2, build_table4, build_tables, compute_intervals
from karma.estimates import compute_difference, compute_mean, compute_wilson

CHANCE = {"ifeval": None, "mmlu_stem": 0.25, "mmlu_pro": 0.1, "arc_easy": 0.25, "arc_challenge": 0.25}
N_ITEMS = 40


def write_answers(folder: Path, benchmarks: list[str], accuracy: float, seed: int) -> dict:
    """Write answers.parquet and return the benchmarks' scores as scores.json holds them."""
    generator, frames, scores = np.random.default_rng(seed), [], {}
    for benchmark in benchmarks:
        units = np.where(np.arange(N_ITEMS) % 2, 2, 1) if benchmark == "ifeval" else np.ones(N_ITEMS, int)
        correct = generator.binomial(units, accuracy)
        ids = [f"{benchmark}-{k}" for k in range(N_ITEMS)]
        texts = {"prompt": "p", "answer": "a", "extracted": "a"}
        frames.append(
            pd.DataFrame({"benchmark": benchmark, "item_id": ids, **texts, "correct": correct, "n": units})
        )
        value = correct.sum() / units.sum()
        scores[benchmark] = {"value": value, "n": int(units.sum()), "standard_error": 0.05,
                             "unextracted": 0.1, "chance": CHANCE.get(benchmark, 0.25), "task_version": 1,
                             "template_hash": "t", "shots": 0, "generation": {}, "details": {}}  # fmt: skip
    pd.concat(frames).to_parquet(folder / "answers.parquet")
    return scores


def write_scores(job: Job, accuracy: float, seed: int) -> None:
    benchmarks = job.experiment.settings.benchmarks
    asked = benchmarks.origin if "origin_model" in job.params else benchmarks.policy
    job.folder.mkdir(parents=True, exist_ok=True)
    content = {"model": "m", "weights_digest": "w", "backend": "hf", "device": "cpu", "dtype": "float32",
               "batch_size": 4, "seconds": 2.0, "prompt_tokens": 1000, "new_tokens": 100}  # fmt: skip
    scores = write_answers(job.folder, asked, accuracy, seed)
    (job.folder / "scores.json").write_text(json.dumps({**content, "benchmarks": scores}))


def write_training(job: Job) -> None:
    p, held_out = job.params, {"accuracy": 0.6, "n": 20, "interval": [0.4, 0.8], "margin_mean": 0.1}
    content = {**p, "seed": int(p["seed"]), "n_train_pairs": 60, "n_held_out_pairs": 20, "n_updates": 15,
               "seconds": 30.0, "tokens": 5000, "data_digest": "d", "same_data_as": None,
               "held_out": held_out, "history": [{"step": 1, "loss": 0.69}], "device": "cpu",
               "dtype": "float32", "settings": {}}  # fmt: skip
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "training.json").write_text(json.dumps(content))


def write_study(experiment: Experiment, stages: tuple[str, ...] = tuple(STAGES)) -> None:
    """Write a whole study's files in the fixed formats; later strategies score a little higher."""
    s, out = experiment.settings, experiment.outputs
    seed = 0
    for stage in [STAGES[name] for name in stages if name in STAGES]:
        for job in (Job(experiment, stage, p) for p in compute_jobs(stage, s)):
            seed += 1
            if stage.name in ("01_origin_evaluation", "05_policy_evaluation"):
                write_scores(job, 0.3 + 0.02 * (seed % 7), seed)
            elif stage.name == "04_alignment_training":
                write_training(job)
            elif stage.name == "03_binarization":
                job.folder.mkdir(parents=True, exist_ok=True)
                accounting = {"rows_in": 100, "pairs_out": 80, "dropped": {"equal S_pref": 20}}
                (job.folder / "accounting.json").write_text(json.dumps(accounting))
                (job.folder / "README.md").write_text("card")
                (job.folder / "pairs.parquet").write_bytes(b"")
            elif stage.name == "pool":
                job.folder.mkdir(parents=True, exist_ok=True)
                (job.folder / "pool.parquet").write_bytes(b"")
                (job.folder / "accounting.json").write_text(json.dumps({"rows_in": 100, "rows_out": 100}))
            elif stage.name == "annotation":
                cost = {
                    "annotator": "judge",
                    "calls": 400,
                    "prompt_tokens": 90000,
                    "seconds": 100.0,
                    "device": "cpu",
                }
                (job.folder / "annotations.parquet").write_bytes(b"")
                (job.folder / "annotation_cost.json").write_text(json.dumps(cost))
    if "02_kinship_analysis" in stages:
        from karma.scores import build_score_table, save_score_table

        files = {m: json.loads((out / "origins" / m / "scores.json").read_text()) for m in s.origin_models}
        (out / "kinship").mkdir(parents=True)
        save_score_table(build_score_table(files), out / "kinship" / "scores.csv")
        for name in STAGES["02_kinship_analysis"].products[1:]:
            (out / "kinship" / name).write_text("{}")


def make_experiment(tmp_path: Path, extra: str = "") -> Experiment:
    """Return the demo experiment, under a name of its own, with outputs below tmp_path."""
    text = (find_project_root() / "params" / "demo.yaml").read_text().replace("name: demo", "name: study")
    (tmp_path / "params.yaml").write_text(text + extra)
    experiment = load_experiment(tmp_path / "params.yaml")
    experiment.outputs = tmp_path / "outputs" / "study"
    return experiment


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    made = make_experiment(tmp_path_factory.mktemp("whole"))
    write_study(made)
    return made


@pytest.fixture(scope="module")
def study(experiment):
    return collect(experiment)


def test_a_whole_study_has_no_gaps(study):
    assert study.gaps.empty, study.gaps
    assert len(study.results) == 5 * (1 + 4 * 2)  # benchmarks x (untrained, strategies x methods)
    assert set(study.results["strategy"]) == {"start", "rlaif", "k_score", "k_sim", "k_score_sim"}
    assert set(study.trainings["held_out_accuracy"]) == {0.6}
    assert study.scores.n_items["ifeval"] == 60 and study.scores.n_items_source == "measured"


def test_an_empty_study_gives_tables_of_named_gaps(tmp_path):
    study = collect(make_experiment(tmp_path))
    assert len(study.gaps) > 20
    assert "pairs/rlaif/accounting.json" in set(study.gaps["file"])
    assert study.gaps["made_by"].str.startswith("karma ").all()
    tables = build_tables(study)
    assert tables[1].frame.isna().all(axis=None) and "0 of 10 scores exist" in " ".join(tables[1].notes)
    assert "n/a" in tables[3].to_markdown() and "see gaps.csv" in tables[3].to_latex()
    for table in tables:
        assert len(table.save(tmp_path / "tables")) == 3


def test_one_missing_run_is_a_gap_only_where_it_belongs(tmp_path):
    experiment = make_experiment(tmp_path)
    write_study(experiment)
    (experiment.outputs / "runs/smollm2-135m/k_sim/dpo/seed0/scores.json").unlink()
    study = collect(experiment)
    assert list(study.gaps["file"]) == ["runs/smollm2-135m/k_sim/dpo/seed0/scores.json"]
    assert "policy=smollm2-135m -p strategy=k_sim" in study.gaps["made_by"][0]
    frame = build_table2(study).frame
    accuracies = frame.drop("Held-out pairs")
    assert accuracies["K_sim"].isna().all() and accuracies.drop(columns="K_sim").notna().all(axis=None)


def test_an_impossible_score_is_refused_by_name(tmp_path):
    experiment = make_experiment(tmp_path)
    write_study(experiment, ("05_policy_evaluation",))
    path = experiment.outputs / "runs/smollm2-135m/start/scores.json"
    path.write_text(path.read_text().replace('"value": ', '"value": 9', 1))
    with pytest.raises(InputError, match=r"start/scores.json: mmlu_stem is 90?\.\d+, expected a share"):
        collect(experiment)


def test_tables_hold_the_files_numbers(study):
    table = build_table4(study)
    rows = study.results.query("benchmark == 'arc_easy' and method == 'dpo' and strategy == 'k_sim'")
    label = ("ARC-easy", "smollm2-135m", "DPO")
    assert table.frame.loc[label, "K_sim"] == rows["value"].item()
    assert table.frame.loc[("Held-out pairs", "smollm2-135m", "DPO"), "K_sim"] == 0.6
    start = study.results.query("benchmark == 'arc_easy' and strategy == 'start'")["value"].item()
    assert table.frame.loc[label, "untrained"] == start
    best = table.frame.loc[label].drop("untrained").astype(float)
    assert list(table.bold.columns[table.bold.loc[label]]) == list(best.index[best == best.max()])


def test_table2_is_the_mean_over_runs_and_shades_against_the_baseline(study):
    table, trained = build_table2(study), study.results.query("strategy == 'k_sim'")
    assert table.frame.loc["ARC-Easy", "K_sim"] == trained.query("benchmark == 'arc_easy'")["value"].mean()
    assert table.frame.loc["Total", "K_sim"] == pytest.approx(
        trained.groupby("benchmark")["value"].mean().mean()
    )
    numbers = table.frame
    assert bool(table.shaded.loc["MMLU", "K_sim"]) == (
        numbers.loc["MMLU", "K_sim"] >= numbers.loc["MMLU", "RLAIF"]
    )
    assert not table.shaded["RLAIF"].any() and BASELINE == "rlaif"


def test_files_of_a_table_agree(study, tmp_path):
    table = build_table4(study)
    table.save(tmp_path)
    back = pd.read_csv(tmp_path / "table4.csv", index_col=[0, 1, 2])
    pd.testing.assert_frame_equal(back, table.frame, atol=1e-6, check_names=False)
    latex, markdown = (tmp_path / "table4.tex").read_text(), (tmp_path / "table4.md").read_text()
    assert r"\toprule" in latex and r"\bfseries" in latex and r"K\_(score,sim)" in latex
    first = f"{table.frame.iloc[0, 1]:.4f}"
    assert first in latex and first in markdown and first in table.to_html()


def test_several_seeds_are_averaged_and_widen_the_interval(tmp_path):
    experiment = make_experiment(tmp_path, "\nseeds: [0, 1, 2]\n")
    write_study(experiment, ("05_policy_evaluation",))
    study = collect(experiment)
    cell = study.results.query("benchmark == 'mmlu_pro' and method == 'sft' and strategy == 'rlaif'")
    assert len(cell) == 3
    assert build_table4(study).frame.loc[("MMLU-pro", "smollm2-135m", "SFT"), "RLAIF"] == cell["value"].mean()
    found = compute_difference(study, "k_sim", "rlaif", method="dpo")
    assert found.n_seeds == 3 and "across 3 seeds" in found.basis and np.isfinite(found.df)


def test_a_paired_difference_is_that_of_the_items(study):
    """Against the definition: one run each, one benchmark, per-item differences."""
    found = compute_difference(study, "k_sim", "rlaif", method="dpo", benchmark="arc_easy")
    correct, _ = study.items["arc_easy"]
    run = "runs/smollm2-135m/{}/dpo/seed0"
    items = correct[run.format("k_sim")] - correct[run.format("rlaif")]
    assert found.value == pytest.approx(items.mean())
    assert found.standard_error == pytest.approx(items.std(ddof=1) / np.sqrt(len(items)))
    assert found.basis == "paired over items" and found.n == N_ITEMS


def test_a_run_against_itself_differs_by_nothing(study):
    found = compute_difference(study, "k_sim", "k_sim")
    assert found.value == pytest.approx(0) and found.standard_error == pytest.approx(0) and found.p_value == 1


def test_instructions_of_a_prompt_stay_together(study):
    """IFEval's value is a ratio of sums; its error is that of prompts, not of instructions."""
    rows = study.results.query("benchmark == 'ifeval' and strategy == 'start'")
    found = compute_mean(study, rows)
    correct, units = study.items["ifeval"]
    column = correct["runs/smollm2-135m/start"]
    assert found.value == pytest.approx(column.sum() / units.sum()) and found.n == units.sum()
    residual = column - found.value * units
    assert found.standard_error == pytest.approx(np.sqrt((residual**2).sum() * 40 / 39) / units.sum())


def test_intervals_hold_their_values(study):
    rows = compute_intervals(study)
    assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])).all()
    with pytest.raises(InputError, match=r"share 1.2 of n = 4"):
        compute_wilson(1.2, 4)


def test_published_intervals_say_what_they_rest_on():
    study = load_published()
    found = compute_difference(study, "k_score", "rlaif")
    assert found.value == pytest.approx(-0.0069, abs=5e-5)
    assert found.basis == "runs taken as independent" and found.interval[0] < 0 < found.interval[1]


def test_open_results_starts_without_files(tmp_path):
    assert open_results(make_experiment(tmp_path).path).stage.name == "06_results"


def test_sizes_are_read_from_names():
    names = {"Llama-3.1-8B": 8, "Qwen2.5-3B": 3, "wizardlm-70b": 70, "tiny-a": None, "smollm2-noise-8": None}
    assert {name: compute_size(name) for name in names} == names
