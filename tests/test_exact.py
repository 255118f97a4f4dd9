"""An exact interval where nothing changed: its bound, and that it holds."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from karma.potential.rivals import compare_rivals
from karma.results.estimates import compute_difference, compute_mean
from karma.results.study import collect_results
from karma.statistics.exact import compute_unchanged
from tests.study_files import make_experiment, write_study


@pytest.mark.parametrize("n", [1, 9, 100, 2376])
def test_of_one_benchmark_it_is_clopper_and_pearsons_bound(n):
    assert compute_unchanged([1.0], [n]) == pytest.approx(binomtest(0, n).proportion_ci(0.95, "exact").high)
    assert compute_unchanged([0.5], [n]) == pytest.approx(compute_unchanged([1.0], [n]) / 2)


def test_of_several_benchmarks_it_is_the_largest_mean_change_that_all_of_them_allow():
    weights, counts = [0.7, 0.3], [40, 10]
    grid = np.linspace(0, 1, 2001)[:-1]
    one, other = np.meshgrid(grid, grid)
    likelihood = (1 - one) ** counts[0] * (1 - other) ** counts[1]
    best = np.where(likelihood >= 0.025, weights[0] * one + weights[1] * other, 0).max()
    assert compute_unchanged(weights, counts) == pytest.approx(best, abs=1e-3)
    assert compute_unchanged(weights, counts, n_tests=5) > compute_unchanged(weights, counts)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study in which K_sim and RLAIF answer every item alike, and every answer on ARC-Easy is wrong."""
    experiment = make_experiment(tmp_path_factory.mktemp("exact"))
    write_study(experiment)
    for method in ("sft", "dpo"):
        folders = [experiment.outputs / f"runs/smollm2-135m/{s}/{method}/seed0" for s in ("rlaif", "k_sim")]
        answers = pd.read_parquet(folders[0] / "answers.parquet")
        answers.loc[answers["benchmark"] == "arc_easy", "correct"] = 0
        for folder in folders:
            answers.to_parquet(folder / "answers.parquet")
            text = (folders[0] / "scores.json").read_text()
            (folder / "scores.json").write_text(text)
    return collect_results(experiment)


def test_runs_that_answer_alike_have_an_interval_with_a_width(study):
    found = compute_difference(study, "k_sim", "rlaif")
    assert found is not None and found.value == 0 and found.standard_error == 0
    low, high = found.interval
    n = 40  # items of each of five benchmarks, IFEval's prompts among them
    assert high == -low == pytest.approx(compute_unchanged([0.2] * 5, [n] * 5)) and 0.01 < high < 0.03
    assert found.compute_interval(3)[1] > high


def test_a_mean_of_items_all_wrong_has_an_interval_with_a_width(study):
    rows = study.results.query("strategy in ('rlaif', 'k_sim') and benchmark == 'arc_easy' and method == 'dpo'")
    found = compute_mean(study, rows.assign(value=0.0))
    assert found.standard_error == 0 and found.interval[1] - found.value == pytest.approx(
        compute_unchanged([1.0], [40])
    )


def test_where_items_differ_the_interval_is_students(study):
    found = compute_difference(study, "k_score", "rlaif")
    assert found is not None and not found.unchanged and found.standard_error > 0


def test_of_several_seeds_the_interval_has_a_width_too(tmp_path):
    experiment = make_experiment(tmp_path, "\nseeds: [0, 1]\n")
    write_study(experiment)
    for method in ("sft", "dpo"):
        whole = experiment.outputs / "runs/smollm2-135m/rlaif" / method / "seed0"
        for folder in (
            experiment.outputs / f"runs/smollm2-135m/{s}/{method}/seed{n}" for s in ("rlaif", "k_sim") for n in (0, 1)
        ):
            if folder != whole:
                for name in ("answers.parquet", "scores.json"):
                    (folder / name).write_bytes((whole / name).read_bytes())
    found = compute_difference(collect_results(experiment), "k_sim", "rlaif")
    assert found is not None and found.value == found.standard_error == 0
    assert found.interval[1] == pytest.approx(compute_unchanged([0.2] * 5, [40] * 5))


def build_outcomes(n: int, units: int) -> pd.DataFrame:
    """Return what two metrics' trainings made of n items of so many units each: half of them right, the same half."""
    rows = [{"benchmark": "ifeval", "policy": "p", "strategy": "k_sim", "metric": metric, "ratio": 0.4, "method": "dpo",
             "seed": 0, "row_id": str(k), "right": units * (k % 2), "n": units}
            for metric in ("m_ap", "random") for k in range(n)]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_metric_that_changed_nothing_is_judged_by_what_its_items_can_tell():
    few, many = (compare_rivals(build_outcomes(n, 1)).iloc[0] for n in (28, 2000))
    assert few["verdict"] == "cannot tell with n = 28 items" and few["high"] == -few["low"] > 0.1
    assert many["verdict"] == "no difference larger than 0.02 (n = 2,000 items)"
    assert many["high"] == pytest.approx(compute_unchanged([1.0], [2000]))


def test_instructions_of_a_prompt_are_one_item():
    found = compare_rivals(build_outcomes(100, 3)).iloc[0]
    assert found["n"] == 300 and found["high"] > 0.03
    assert found["high"] == pytest.approx(compute_unchanged([1.0], [100]))
    assert found["verdict"] == "cannot tell with n = 300 items"
