"""Results of a study whose files the test writes itself, in the fixed formats, whole and half finished."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from karma.errors import InputError
from karma.figures.results import plot_policies
from karma.pairs.pairs import load_pairs
from karma.results.claims import test_claims as claim_table
from karma.results.estimates import compute_capabilities, compute_difference, compute_mean, compute_policies
from karma.results.means import build_means, compute_means
from karma.results.page import open_results
from karma.results.published import compute_size, load_published
from karma.results.study import collect_results
from karma.results.tables import BASELINE, build_table1, build_table2, build_table4, build_tables, compute_intervals
from karma.statistics.intervals import compute_two_way, compute_wilson
from karma.study.experiment import Experiment, load_experiment
from tests.study_files import N_ITEMS, make_experiment, write_study


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    made = make_experiment(tmp_path_factory.mktemp("whole"))
    write_study(made)
    return made


@pytest.fixture(scope="module")
def study(experiment):
    return collect_results(experiment)


def test_a_whole_study_has_no_gaps(study):
    assert study.gaps.empty, study.gaps
    assert len(study.results) == 5 * (1 + 4 * 2)  # benchmarks x (untrained, strategies x methods)
    assert set(study.results["strategy"]) == {"start", "rlaif", "k_score", "k_sim", "k_score_sim"}
    assert set(study.trainings["held_out_accuracy"]) == {0.6}
    assert study.scores.n_items["ifeval"] == 60 and study.scores.n_items_source == "measured"


def test_what_the_experiment_does_not_train_is_no_gap_and_moves_no_mean(tmp_path):
    extra = "\nstrategies: [rlaif, k_score, k_sim, least_kin]\ntrained_on: {sft: [rlaif, k_sim], dpo: [rlaif, k_score, k_sim]}"
    made = make_experiment(tmp_path, extra, select_from="k_sim")
    write_study(made)
    sft = made.outputs / "runs/smollm2-135m/k_sim/sft/seed0/training.json"
    record = json.loads(sft.read_text())
    sft.write_text(json.dumps({**record, "held_out": {**record["held_out"], "accuracy": 0.2}}))
    study = collect_results(made)
    table2 = build_table2(study).frame
    assert (table2.loc["Held-out pairs, DPO", "K_sim"], table2.loc["Held-out pairs, SFT", "K_sim"]) == (0.6, 0.2)
    assert study.gaps.empty and len(study.results) == 5 * (1 + 2 + 3)
    assert study.strategies == ("rlaif", "k_score", "k_sim") and study.untrained == {("k_score", "sft")}
    assert study.common_methods == ("dpo",) and list(study.pairs["strategy"])[-1] == "least_kin"
    table2, table4 = build_table2(study), build_table4(study)
    dpo = study.results.query("strategy == 'k_sim' and method == 'dpo' and benchmark == 'arc_easy'")["value"].item()
    assert table2.frame.loc["ARC-Easy", "K_sim"] == pytest.approx(dpo)
    claims = set(claim_table(study)["claim"])
    assert (
        "K_sim beats RLAIF (weak judge), SFT only" in claims
        and "K_score beats RLAIF (weak judge), SFT only" not in claims
    )
    assert "over DPO alone" in " ".join(table2.notes) and "5 cells are n/a because" in " ".join(table4.notes)
    assert not any("their runs are missing" in note for note in table4.notes)
    assert set(compute_capabilities(study)["strategy"]) == set(study.strategies)
    assert compute_capabilities(study)["value"].notna().all()


def test_the_study_s_pair_folders_are_those_that_the_kit_loads(experiment):
    folders = [p.parent for p in experiment.outputs.glob("*/**/pairs.parquet")]
    assert len(folders) == 4 + 2  # strategies, selections
    for folder in folders:
        pairs = load_pairs(folder)
        assert (
            len(pairs) == (80 if folder.parent.name == "pairs" else 24) and (folder / "README.md").stat().st_size > 500
        )


def test_an_empty_study_gives_tables_of_named_gaps(tmp_path):
    study = collect_results(make_experiment(tmp_path))
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
    study = collect_results(experiment)
    assert list(study.gaps["file"]) == ["runs/smollm2-135m/k_sim/dpo/seed0/scores.json"]
    assert "policy=smollm2-135m -p strategy=k_sim" in study.gaps["made_by"][0]
    frame = build_table2(study).frame
    accuracies = frame[~frame.index.str.startswith("Held-out pairs")]
    assert accuracies["K_sim"].isna().all() and accuracies.drop(columns="K_sim").notna().all(axis=None)


def test_an_impossible_score_is_refused_by_name(tmp_path):
    experiment = make_experiment(tmp_path)
    write_study(experiment, ("05_policy_evaluation",))
    path = experiment.outputs / "runs/smollm2-135m/start/scores.json"
    path.write_text(path.read_text().replace('"value": ', '"value": 9', 1))
    with pytest.raises(InputError, match=r"start/scores.json: mmlu_stem is 90?\.\d+, expected a share"):
        collect_results(experiment)


def test_tables_hold_the_files_numbers(study):
    table = build_table4(study)
    rows = study.results.query("benchmark == 'arc_easy' and method == 'dpo' and strategy == 'k_sim'")
    label = ("ARC-Easy", "smollm2-135m", "DPO")
    assert table.frame.loc[label, "K_sim"] == rows["value"].item()
    assert table.frame.loc[("Held-out pairs", "smollm2-135m", "DPO"), "K_sim"] == 0.6
    start = study.results.query("benchmark == 'arc_easy' and strategy == 'start'")["value"].item()
    assert table.frame.loc[label, "untrained"] == start
    best = table.frame.loc[label].drop("untrained").astype(float)
    assert list(table.bold.columns[table.bold.loc[label]]) == list(best.index[best == best.max()])


def test_table2_is_the_mean_over_runs_and_shades_against_the_baseline(study):
    table, trained = build_table2(study), study.results.query("strategy == 'k_sim'")
    assert table.frame.loc["ARC-Easy", "K_sim"] == trained.query("benchmark == 'arc_easy'")["value"].mean()
    assert table.frame.loc["Total", "K_sim"] == pytest.approx(trained.groupby("benchmark")["value"].mean().mean())
    numbers = table.frame
    assert bool(table.shaded.loc["MMLU-STEM", "K_sim"]) == (
        numbers.loc["MMLU-STEM", "K_sim"] >= numbers.loc["MMLU-STEM", "RLAIF (weak judge)"]
    )
    assert not table.shaded["RLAIF (weak judge)"].any() and BASELINE == "rlaif"


def test_table2_and_its_total_have_the_intervals_of_the_items(study):
    """One method, one seed: a cell is one run, its error that of the prompts; the Total adds the benchmarks' errors."""
    one = replace(study, methods=("dpo",), results=study.results[study.results["method"].isin(["dpo", "start"])])
    found, run = compute_means(one), "runs/smollm2-135m/k_sim/dpo/seed0"
    errors = []
    for benchmark, title in one.title_benchmarks("table2").items():
        correct, units = one.items[benchmark]
        cell, own = found[title, "k_sim"], correct[run]
        residual = own - units * own.sum() / units.sum()
        errors.append(np.sqrt((residual**2).sum() * N_ITEMS / (N_ITEMS - 1)) / units.sum())
        assert cell.value == pytest.approx(build_table2(one).frame.loc[title, "K_sim"])
        assert cell.standard_error == pytest.approx(errors[-1]) and cell.df == N_ITEMS - 1
    total = found["Total", "k_sim"]
    assert total.standard_error == pytest.approx(np.sqrt(np.sum(np.square(errors))) / 5)
    shown = build_means(one)
    low, high = total.interval
    assert shown.frame.loc["Total", "K_sim"] == f"{total.value:.3f} [{low:.3f}, {high:.3f}]"
    assert "one seed: without training noise" in shown.notes
    assert (
        "policies are evaluated on 5 of the 6 benchmarks that define S_pref, from which the labels come" in shown.notes
    )


def test_means_of_missing_runs_and_of_unknown_items_have_no_interval(tmp_path):
    empty = build_means(collect_results(make_experiment(tmp_path)))
    assert empty.frame.isna().all(axis=None)
    published = build_means(load_published()).frame
    assert published.loc["MMLU-STEM"].str.endswith("(items unknown)").all() and "[" in published.loc["IFEval", "K_sim"]


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
    study = collect_results(experiment)
    cell = study.results.query("benchmark == 'mmlu_pro' and method == 'sft' and strategy == 'rlaif'")
    assert len(cell) == 3
    assert (
        build_table4(study).frame.loc[("MMLU-Pro", "smollm2-135m", "SFT"), "RLAIF (weak judge)"] == cell["value"].mean()
    )
    found = compute_difference(study, "k_sim", "rlaif", method="dpo")
    assert found.n_seeds == 3 and "across 3 seeds" in found.basis and np.isfinite(found.df)
    of_seed = [compute_difference(study, "k_sim", "rlaif", method="dpo", seed=k).value for k in (0, 1, 2)]
    assert found.value == pytest.approx(np.mean(of_seed))
    one = {"method": "dpo", "benchmark": "ifeval"}
    correct, units = study.items["ifeval"]
    runs = [[f"runs/smollm2-135m/{name}/dpo/seed{k}" for name in ("k_sim", "rlaif")] for k in (0, 1, 2)]
    expected = compute_two_way([correct[ours] - correct[theirs] for ours, theirs in runs], units)
    found = compute_difference(study, "k_sim", "rlaif", **one)
    assert (found.value, found.standard_error) == pytest.approx((expected["value"], expected["standard_error"]))
    assert found.df == pytest.approx(expected["df"]) and found.interval == pytest.approx(
        (expected["low"], expected["high"])
    )
    assert compute_means(study)["Total", "k_sim"].n_seeds == 3


def test_seeds_without_the_same_cells_are_said_to_be_left_out(tmp_path):
    experiment = make_experiment(tmp_path, "\nseeds: [0, 1]\n")
    write_study(experiment, ("05_policy_evaluation",))
    study = collect_results(experiment)
    some = study.results.query("strategy == 'k_sim' and (seed == 0 or benchmark == 'ifeval')")
    assert "noise of training left out: the 2 seeds' cells differ" in compute_mean(study, some).basis


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
    rows = compute_intervals(replace(study, results=study.results.assign(standard_error=0.1)))
    asked = rows[rows["benchmark"] == "ifeval"].iloc[0]  # several instructions of a prompt are not so many answers
    assert (asked["low"], asked["high"]) == compute_wilson(asked["value"], asked["n"], asked["standard_error"])
    assert asked["high"] - asked["low"] > np.diff(compute_wilson(asked["value"], asked["n"]))[0]
    for n in range(1, 200):
        assert compute_wilson(0.0, n)[0] == 0 and compute_wilson(1.0, n)[1] == 1
    with pytest.raises(InputError, match=r"share 1.2 of n = 4"):
        compute_wilson(1.2, 4)


def test_published_intervals_say_what_they_rest_on():
    study = load_published()
    found = compute_difference(study, "k_score", "rlaif")
    assert found.value == pytest.approx(-0.0069, abs=5e-5)
    assert found.basis == "runs taken as independent, items unknown: no interval" and np.isnan(found.interval).all()
    known = compute_difference(study, "k_score", "rlaif", benchmark="mmlu_pro")
    assert known.basis == "runs taken as independent" and known.interval[0] < 0 < known.interval[1]


def test_open_results_starts_without_files(tmp_path):
    assert open_results(make_experiment(tmp_path).path).stage.name == "06_results"


def test_sizes_are_read_from_names():
    names = {"Llama-3.1-8B": 8, "Qwen2.5-3B": 3, "wizardlm-70b": 70, "tiny-a": None, "smollm2-noise-8": None}
    assert {name: compute_size(name) for name in names} == names


def test_prompts_of_the_kit_s_own_are_not_called_ifeval_nor_a_judge_of_its_own_rlaif_alone(study):
    own = replace(study, titles={"rlaif": "RLAIF (weak judge)", "ifeval": "Held-out prompts"})
    tables = build_table1(own), build_table2(own), build_table4(own)
    assert all("Held-out prompts" in str(table.frame) and "IFE" not in str(table.frame).upper() for table in tables)
    panel = plot_policies(compute_policies(own, "dpo"), "dpo")[0]
    assert "Held-out\nprompts" in [label.get_text() for label in panel.get_xticklabels()]
    packaged = load_experiment("params/demo.yaml")
    assert collect_results(packaged).titles == own.titles
