"""Stability of trainings: spikes, KL, drift and spreads by eye, and the report's table over a study's own files."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chi2, t

from karma.files.reading import load_json
from karma.results.stability import (
    ONE_SEED,
    build_stability,
    compute_stability,
    count_spikes,
    estimate_kl,
    measure_trainings,
    show_stability,
    summarise_seeds,
)
from karma.results.study import collect_results
from karma.statistics.intervals import compute_spread_interval
from tests.study_files import make_experiment, part_pairs, write_study

STAGES = ("01_origin_evaluation", "02_kinship_analysis", "pool", "03_binarization", "04_alignment_training",
          "05_policy_evaluation")  # fmt: skip


def write_run(folder, accuracy=0.6, losses=(0.69,), moved=0.0, tokens=(10, 10)):
    """What a finished training leaves: its record, and held-out pairs that all moved by so many nats."""
    answers = [{"before": {"tokens": tokens[0]}, "after": {"tokens": tokens[1]}} for _ in range(10)]
    record = load_json(folder / "training.json")
    record |= {"history": [{"step": k + 1, "loss": loss} for k, loss in enumerate(losses)], "answers": answers}
    record["held_out"]["accuracy"] = accuracy
    (folder / "training.json").write_text(json.dumps(record))
    before = pa.array([-20.0, -30.0])
    after = pa.array([-20.0 + moved, -30.0 + moved])
    pq.write_table(pa.table({"chosen_logps_before": before, "rejected_logps_before": before,
                             "chosen_logps_after": after, "rejected_logps_after": after}), folder / "held_out.parquet")  # fmt: skip


@pytest.fixture
def study_of(tmp_path):
    """A function: seeds -> an experiment whose trainings are finished."""

    def make(seeds):
        experiment = make_experiment(tmp_path)
        changes = {"seeds": seeds, "strategies": ["k_sim", "k_score"], "methods": ["dpo"], "trained_on": {}}
        experiment.settings = experiment.settings.model_copy(update=changes)
        write_study(experiment, STAGES)
        part_pairs(experiment)
        return experiment

    return make


def test_a_spike_by_eye():
    """Losses .6 and .8 in turn have a deviation of .1 about .7: 1.4 is one of seven, 1.39 is none; falling is none."""
    calm = [0.6, 0.8] * 10
    assert count_spikes([*calm, 1.4 + 1e-9]) == (1, 11) and count_spikes([*calm, 1.39]) == (0, 11)
    assert count_spikes([*calm, -9.0]) == (0, 11)
    assert count_spikes(calm[:10]) == (0, 0) and count_spikes([]) == (0, 0)
    assert count_spikes([*calm, float("nan"), 1.5]) == (1, 11)
    assert count_spikes([0.5] * 12 + [0.6]) == (1, 3), "a jump off a flat line"


def test_only_the_window_is_looked_back_at():
    """After a thousand calm updates a jump counts, though the first losses were wild."""
    wild, calm = list(np.linspace(0, 50, 300)), [0.6, 0.8] * 500
    assert count_spikes([*wild, *calm, 2.0])[0] == 1 + count_spikes([*wild, *calm])[0]


def test_kl_is_exact_to_second_order():
    """k2 of a policy's own samples against the KL of two near distributions, computed over all outcomes."""
    rng = np.random.default_rng(0)
    before = rng.dirichlet(np.ones(50) * 9)
    after = before * np.exp(rng.normal(0, 0.05, 50))
    after /= after.sum()
    exact = float((after * np.log(after / before)).sum())
    drawn = rng.choice(50, size=(2, 40_000), p=after)
    frame = {f"{side}_logps_{when}": np.log(p[own]) for side, own in zip(("chosen", "rejected"), drawn, strict=True)
             for when, p in (("before", before), ("after", after))}  # fmt: skip
    assert estimate_kl(pd.DataFrame(frame)) == pytest.approx(exact, rel=0.05)


def test_a_reward_model_has_no_kl():
    """It keeps rewards of held-out pairs, not log-probabilities."""
    rewards = {"row_id": ["a"], "chosen_reward": [1.0], "rejected_reward": [0.0], "margin": [1.0]}
    assert np.isnan(estimate_kl(pd.DataFrame(rewards))) and np.isnan(estimate_kl(pd.DataFrame()))


def test_means_and_spreads_over_seeds_are_scipy_s():
    values = np.array([0.5, 0.6, 0.7, 0.55])
    runs = pd.DataFrame({"policy": "p", "seed": range(4), "kl": values})
    found = summarise_seeds(runs, "kl")
    spread = values.std(ddof=1)
    assert found[""] == pytest.approx(values.mean()) and found["_spread"] == pytest.approx(spread)
    assert (found["_low"], found["_high"]) == pytest.approx(t.interval(0.95, 3, values.mean(), spread / 2))
    by_scipy = [np.sqrt(3 * spread**2 / chi2.ppf(level, 3)) for level in (0.975, 0.025)]
    assert (
        (found["_spread_low"], found["_spread_high"]) == pytest.approx(by_scipy) == compute_spread_interval(spread, 3)
    )


def test_policies_that_differ_are_no_spread():
    runs = pd.DataFrame({"policy": ["p", "p", "q", "q"], "seed": [0, 1, 0, 1], "kl": [1.0, 1.0, 9.0, 9.0]})
    assert summarise_seeds(runs, "kl")["_spread"] == 0 and summarise_seeds(runs, "kl")[""] == 5


def test_what_is_measured_of_a_training(study_of):
    experiment = study_of([0, 1])
    for k, run in enumerate(("k_sim/dpo/seed0", "k_sim/dpo/seed1")):
        write_run(experiment.outputs / "runs" / experiment.settings.policies[0] / run, 0.5 + 0.2 * k,
                  [*[0.6, 0.8] * 10, 3.0 * k], moved=2.0, tokens=(10, 14 + k))  # fmt: skip
    study = collect_results(experiment)
    policy = experiment.settings.policies[0]
    runs = measure_trainings(study)
    own = runs[(runs["policy"] == policy) & (runs["strategy"] == "k_sim")].set_index("seed")
    assert own["accuracy"].tolist() == [0.5, 0.7] and own["kl"].tolist() == [2.0, 2.0]
    assert own["drift"].tolist() == [4.0, 5.0] and own["n_spikes"].tolist() == [0, 1] and (own["n_judged"] == 11).all()
    scores = study.results[(study.results["policy"] == policy) & (study.results["strategy"] == "k_sim")]
    assert own["score"].to_dict() == pytest.approx(scores.groupby("seed")["value"].mean().to_dict())
    found = compute_stability(runs[runs["policy"] == policy]).set_index("strategy")
    assert found.loc["k_sim", "accuracy_spread"] == pytest.approx(0.2 / 2**0.5)
    assert (found.loc["k_sim", "n_spikes"], found.loc["k_sim", "n_judged"]) == (1, 22)
    assert found.loc["k_sim", "spikes_low"] < 1 / 22 < found.loc["k_sim", "spikes_high"]
    assert np.isnan(found.loc["k_score", "kl"]) and np.isnan(found.loc["k_score", "drift"])  # nothing was kept there


def test_the_report_shows_and_keeps_it(study_of, tmp_path):
    experiment = study_of([0, 1, 2])
    for folder in sorted(experiment.outputs.glob("runs/*/*/dpo/seed*")):
        seed = int(folder.name[-1])
        write_run(folder, 0.5 + 0.1 * seed, [0.6, 0.8] * 10, moved=1.0 + seed, tokens=(10, 12 + seed))
    shown = show_stability(experiment, tmp_path / "tables", tmp_path / "figures")
    assert "read it beside the accuracy" in shown[0].reading and shown[1].name == "stability"
    assert all((tmp_path / "tables" / f"stability.{suffix}").is_file() for suffix in ("csv", "md", "tex"))
    assert (tmp_path / "figures" / "stability.png").is_file()
    table = pd.read_csv(tmp_path / "tables" / "stability.csv").set_index("strategy")
    kl = np.array([0.5, 2.0, 4.5])
    assert table.loc["K_sim", "KL"].startswith(f"{kl.mean():.2f} [") and table.loc["K_sim", "length"].startswith(
        "3.0 ["
    )
    assert table.loc["K_sim", "its spread"].startswith("0.100 [")
    values = pd.read_csv(tmp_path / "tables" / "stability_values.csv").set_index("strategy").loc["k_sim"]
    assert values["kl"] == pytest.approx(kl.mean(), abs=1e-3) and values["accuracy_spread"] == pytest.approx(0.1)
    assert values["kl_low"] < values["kl"] < values["kl_high"]
    assert ONE_SEED not in shown[1].notes


def test_one_seed_says_what_cannot_be_told(study_of, tmp_path):
    experiment = study_of([0])
    table = show_stability(experiment, tmp_path / "tables", tmp_path / "figures")[1]
    assert table.notes[0] == ONE_SEED and table.frame["its spread"].eq("n/a").all()
    assert "what seeds change cannot be told" in (tmp_path / "tables" / "stability.md").read_text()


def test_a_study_without_trainings_gets_nothing(tmp_path):
    experiment = make_experiment(tmp_path)
    assert show_stability(experiment, tmp_path / "tables", tmp_path / "figures") == []
    assert not (tmp_path / "tables").exists()


def test_every_cell_has_a_row(study_of):
    study = collect_results(study_of([0, 1]))
    found = compute_stability(measure_trainings(study))
    assert len(build_stability(study, found).frame) == len(found) == 2
