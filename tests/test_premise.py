"""The premise: three models by eye, a pool whose gap is a known function of kinship, and pools where it is none."""

import numpy as np
import pandas as pd
import pytest

from karma.kinship.similarity import compute_kinship
from karma.pairs.premise import (
    KEYS,
    average_models,
    measure_response_pairs,
    measure_truths,
    relate_gaps,
    sample_response_pairs,
    save_premise,
    trace_gaps,
)
from karma.pool.annotations import collect_annotations
from karma.pool.pool import load_pool
from karma.results.premise import show_premise
from karma.scores.read import load_score_table
from karma.statistics.intervals import compute_mean
from tests.study_files import make_experiment

ANGLES = np.radians([0, 4, 15, 27, 33, 48, 55, 70, 84, 90])
NAMES = [f"model-{place}" for place in range(len(ANGLES))]


def make_row(number, answers):
    keys = ("model", "response", "overall_score")
    completions = [dict(zip(keys, answer, strict=False)) for answer in answers]
    return {"source": "own", "instruction": f"Question {number}?", "completions": completions}


@pytest.fixture(scope="module")
def fan(tmp_path_factory):
    """Ten models on two benchmarks, each a direction: their kinship is the cosine of the angle between them."""
    path = tmp_path_factory.mktemp("fan") / "scores.csv"
    frame = pd.DataFrame({"arc_easy": np.cos(ANGLES), "hellaswag": np.sin(ANGLES)}, index=NAMES).round(12)
    frame.rename_axis("origin_model").to_csv(path)
    return load_score_table(path)


def write_pool(lengths, n=60):
    """Every prompt answered by four of the models, in so many words; half a word in twenty by lot."""
    dice = np.random.default_rng(0)
    rows = []
    for number in range(n):
        some = dice.choice(len(lengths), 4, replace=False)
        rows.append(make_row(number, [(NAMES[k], "rain " * int(lengths[k] * dice.uniform(0.95, 1.05))) for k in some]))
    return load_pool(rows)


def relate(pool, scores):
    gaps = measure_response_pairs(sample_response_pairs(pool, scores, seed=0))
    return relate_gaps(average_models(gaps)).set_index(["relation", "measure"]), gaps


LENGTHS = 20 * 2 ** (ANGLES / np.radians(30))  # a doubling every 30 degrees


def test_three_models_by_eye(tmp_path):
    table = "origin_model,arc_easy,hellaswag,arc_challenge\nhigh,0.9,0.8,0.9\nnear,0.8,0.5,0.6\nlow,0.1,0.7,0.1\n"
    (tmp_path / "scores.csv").write_text(table)
    scores = load_score_table(tmp_path / "scores.csv")
    pool = load_pool([
        make_row(1, [("low", "a b", 1.0), ("high", "a b c d e f g h", 5.0), ("near", "a b c d", 4.0)]),
        make_row(2, [("high", "a b", 3.0), ("near", "a b", 3.0), ("low", " ", 3.0), ("gone", "a", 3.0)]),
        make_row(3, [("near", "a", 1.0), ("near", "b c", 2.0)]),
    ])  # fmt: skip
    pairs = sample_response_pairs(pool, scores, seed=0, excluded=["gone"])
    assert pairs.num_rows == 4, (
        "three of the first prompt, one of the second: no blank, no excluded model, no model with itself"
    )
    gaps = measure_response_pairs(pairs, collect_annotations(pool, "overall_score"))
    models = average_models(gaps).set_index(["one", "other"])
    assert models["length"].to_dict() == {("high", "low"): 2.0, ("high", "near"): 0.5, ("low", "near"): 1.0}
    assert models["judge"].to_dict() == {("high", "low"): 4.0, ("high", "near"): 0.5, ("low", "near"): 3.0}
    kinship = compute_kinship(scores)
    assert models["kinship"].to_dict() == pytest.approx({pair: kinship.loc[pair] for pair in models.index})
    assert models.loc[("high", "near"), "n"] == 2 and models.loc[("high", "near"), "s_pref"] == pytest.approx(0.5)
    tests = relate_gaps(models.reset_index())
    assert tests["verdict"].str.startswith("cannot tell: 3 models").all()
    curve = trace_gaps(gaps).set_index(["measure", "tau"]).loc["length"]
    assert curve["value"].tolist() == [(2 + 1 + 1 + 0) / 4, (2 + 1 + 0) / 3, 0.5]
    clustered = compute_mean([1 + 2 + 1, 0], [3, 1])
    assert [curve["low"].iloc[0], curve["high"].iloc[0]] == [clustered["low"], clustered["high"]]
    assert curve["n_prompts"].tolist() == [2, 2, 2] and curve["n_model_pairs"].tolist() == [3, 2, 1]


def test_a_gap_that_follows_kinship_is_found_and_a_shuffled_one_is_not(fan):
    tests, gaps = relate(write_pool(LENGTHS), fan)
    found = tests.loc[("kinship", "length")]
    assert found["verdict"] == "supported" and found["r"] > 0.9 and found["n_models"] == 10
    assert tests.loc[("s_pref", "length"), "verdict"].startswith("cannot tell: of 10 models only a correlation above")
    assert tests.loc[("kinship", "lexical"), "verdict"] == "cannot tell: 10 models, or no differences among them"
    degrees = np.degrees(np.arccos(gaps["kinship"].clip(-1, 1)))
    assert np.abs(gaps["length"] - degrees / 30).max() < 0.25, "a doubling every 30 degrees"
    curve = trace_gaps(gaps).query("measure == 'length'")
    assert (curve["value"].diff().dropna() < 0.02).all() and curve["value"].iloc[-1] < curve["value"].iloc[0] / 3
    shuffled, _ = relate(write_pool(np.random.default_rng(5).permutation(LENGTHS)), fan)
    assert shuffled.loc[("kinship", "length"), "verdict"].startswith("cannot tell")


def test_the_order_of_responses_changes_nothing(fan):
    rows = [row for batch in write_pool(LENGTHS).read(None) for row in batch.to_pylist()]
    turned = [{**row, "completions": row["completions"][::-1]} for row in rows[::-1]]
    both = [average_models(measure_response_pairs(sample_response_pairs(load_pool(r), fan, 0))) for r in (rows, turned)]
    pd.testing.assert_frame_equal(*both)


def test_a_sample_is_of_prompts_with_all_their_pairs(fan):
    pool = write_pool(LENGTHS, n=300)
    some = sample_response_pairs(pool, fan, seed=1, n_prompts=100)["row_id"].to_pandas().value_counts()
    assert 60 < len(some) < 140 and (some == 6).all()


def test_models_that_never_met_are_left_out():
    rows = [(a, b, k, s, 3, g) for a, b, k, s, g in (("a", "b", 0.9, 0.1, 1.0), ("a", "c", 0.5, 0.2, 2.0),
            ("b", "c", 0.4, 0.3, 3.0), ("c", "d", 0.1, 0.5, 9.0))]  # fmt: skip
    models = pd.DataFrame(rows, columns=["one", "other", "kinship", "s_pref", "n", "length"])
    assert relate_gaps(models)["n_models"].tolist() == [3, 3]
    assert relate_gaps(models.iloc[:0]).empty or relate_gaps(models.iloc[:0])["r"].isna().all()


def test_the_report_shows_it_and_adds_the_truth(fan, tmp_path):
    experiment = make_experiment(tmp_path)
    audited = experiment.settings.labels.model_copy(update={"audit": True})
    experiment.settings = experiment.settings.model_copy(update={"labels": audited})
    assert list(show_premise(experiment, tmp_path / "tables", tmp_path / "figures")) == []
    tests, gaps = relate(write_pool(LENGTHS), fan)
    models = average_models(gaps)
    folder = experiment.outputs / "pairs" / experiment.settings.strategies[1] / "premise"
    save_premise(tests.reset_index(), trace_gaps(gaps), models, folder)
    _, table = show_premise(experiment, tmp_path / "tables", tmp_path / "figures")
    assert table.frame.loc[("kinship", "length"), "verdict"] == "supported"
    assert ("kinship", "truth") not in table.frame.index
    truths = [
        (f"p{number}", f"{number}-{k}", NAMES[k], number or k, ANGLES[k] / 2) for number in range(5) for k in range(10)
    ]
    responses = pd.DataFrame(truths, columns=["row_id", "response_id", "model", "usable", "truth"])
    responses["usable"] = responses["usable"].astype(bool)  # the first prompt's first response is blank
    measured = measure_truths(responses, models)
    assert list(measured) == [*KEYS, "truth"] and len(measured) == 4 * 45 + 36
    (experiment.outputs / "labels").mkdir(parents=True)
    responses.to_csv(experiment.outputs / "labels" / "responses.csv", index=False)
    _, table = show_premise(experiment, tmp_path / "tables", tmp_path / "figures")
    assert table.frame.loc[("kinship", "truth"), "verdict"] == "supported"
    assert table.frame.loc[("kinship", "length"), "p_holm"] >= tests.loc[("kinship", "length"), "p_holm"]
    curve = pd.read_csv(tmp_path / "tables" / "premise_curve.csv")
    assert "truth" in set(curve["measure"]) and (tmp_path / "figures" / "premise.png").is_file()
