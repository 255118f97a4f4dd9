"""Calibrated label confidence: a known truth is found again, by eye, bad files, and what `karma binarize` makes of it."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.special import expit
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.files.writing import save_json
from karma.kinship.uncertainty import compute_label_confidence
from karma.labels.calibration import HELD_OUT, _draw_held_out, describe_calibration, fit_calibration
from karma.labels.comparisons import build_comparisons
from karma.labels.judgments import build_values
from karma.labels.recorded import audit_recorded, describe_recorded, save_recorded
from karma.pairs.build import build_pair_sets, build_pairs
from karma.pairs.calibration import Calibration, load_calibration
from karma.pairs.card import CardFacts, build_card
from karma.pairs.lengths import LengthBias
from karma.pool.pool import load_pool
from karma.scores.normalise import compute_s_pref
from karma.study.current import fingerprint_settings
from karma.study.experiment import load_experiment
from karma.study.stages import find_job
from tests.test_confidence import ROW, four, make_table

__all__ = ["four"]
OPTIONS = {"tau": 0.1, "seed": 0}
SCORE = {"value": 0.2, "low": 0.1, "high": 0.3}
FILE = {
    "version": 1, "source": "alpaca", "score_table": "t.csv", "tie": 0.02, "n_models": 10, "n_prompts": 100,
    "n_decided": 3000, "intercept": 0.5, "terms": [
        {"fact": "s_pref_gap", "coefficient": 2.0, "lowest": 0.0, "highest": 1.0},
        {"fact": "p_flip", "coefficient": -3.0, "lowest": 0.0, "highest": 0.5},
        {"fact": "length_difference", "coefficient": 1.0, "lowest": -1.0, "highest": 1.0}],
    "held_out": {"n_prompts": 100, "n_decided": 3100, "brier_calibrated": SCORE, "brier_sampling_error": SCORE,
                 "brier_constant": SCORE},
}  # fmt: skip


def judge(rng, n_models=40, n_prompts=60, slope=4.0, length_slope=1.5):
    """A source in which P(the better model's response is judged better) is logistic in gap and length, and exactly so."""
    names = [f"m{i:02d}" for i in range(n_models)]
    s_pref = pd.Series(np.sort(rng.random(n_models)), names)
    s_pref = (s_pref - s_pref.min()) / (s_pref.max() - s_pref.min())
    length = np.exp(rng.normal(5, 0.5, (n_prompts, n_models))).round()
    noise = rng.gumbel(size=(n_prompts, n_models))  # the difference of two Gumbel draws is logistic
    value = slope * s_pref.to_numpy() + length_slope * np.log(length) + noise
    rows = pd.DataFrame({"prompt": np.repeat([f"p{k}" for k in range(n_prompts)], n_models),
                         "model": names * n_prompts, "value": value.ravel(), "length": length.ravel()})  # fmt: skip
    kin = pd.DataFrame(np.ones((n_models, n_models)), names, names)
    return build_comparisons(build_values(rows, "simulated", "own", "points"), s_pref, kin)


def test_a_known_model_is_found_again_and_a_sure_one_is_called_out():
    both = judge(np.random.default_rng(0))
    sure = np.full((40, 40), 0.999)  # sampling error alone: thousands of items tell the models apart
    found = fit_calibration(replace(both, confidence=sure), 0.0, "t.csv")
    slopes = {term.fact: term.coefficient for term in found.model.terms}
    assert set(slopes) == {"s_pref_gap", "length_difference"}, "kinship and p_flip are the same for all: no terms"
    assert slopes["s_pref_gap"] == pytest.approx(4.0, abs=0.6)
    assert slopes["length_difference"] == pytest.approx(1.5, abs=0.2) and abs(found.model.intercept) < 0.2
    held = found.model.held_out
    assert held.brier_calibrated.high < held.brier_constant.value < held.brier_sampling_error.low
    curve = found.curve[found.curve["confidence"] == "calibrated"]
    inside = (curve["low"] <= curve["mean_confidence"]) & (curve["mean_confidence"] <= curve["high"])
    assert len(curve) >= 6 and inside.mean() >= 0.8
    (row,) = found.curve[found.curve["confidence"] == "sampling error"].to_dict("records")
    assert row["n_decided"] == held.n_decided and row["high"] < row["mean_confidence"] == pytest.approx(0.999)
    assert f"on {held.n_prompts} held-out prompts" in describe_calibration(found.model)
    assert "no better than a constant" not in describe_calibration(found.model)


def test_prompts_are_held_out_whole_and_by_seed_alone():
    both = judge(np.random.default_rng(1), n_prompts=50)
    models = [fit_calibration(both, 0.0, "t.csv", seed).model for seed in (0, 0, 1)]
    assert models[0] == models[1] != models[2]
    for model in models:
        n_prompts = model.n_prompts + model.held_out.n_prompts
        assert n_prompts == 50 and 0.25 < model.held_out.n_prompts / 50 < 0.75 and HELD_OUT == 0.5
        assert model.n_decided + model.held_out.n_decided == both.find_decided(0.0).sum()
    twins = replace(both, judgments=replace(both.judgments, cluster=np.arange(50) // 2))
    model = fit_calibration(twins, 0.0, "t.csv").model
    assert model.n_prompts % 2 == 0 and model.held_out.n_prompts % 2 == 0


def test_the_brier_score_of_a_constant_by_hand():
    both = judge(np.random.default_rng(2), n_models=5, n_prompts=12)
    found = fit_calibration(both, 0.0, "t.csv").model
    held, decided, right = _draw_held_out(both, 0), both.find_decided(0.0), both.find_right(0.0)
    share = right[~held].sum() / decided[~held].sum()
    assert found.held_out.brier_constant.value == pytest.approx(((share - right[held][decided[held]]) ** 2).mean())
    assert found.held_out.n_prompts == held.sum() and found.n_decided == decided[~held].sum()


def test_a_confidence_by_eye_and_never_beyond_what_was_seen():
    model = Calibration.model_validate(FILE)
    facts = {"s_pref_gap": np.array([0.5, 9.0]), "kinship": np.array([0.0, 0.0]), "p_flip": np.array([0.1, 0.1]),
             "length_difference": np.array([math.log(2), -9.0])}  # fmt: skip
    by_hand = [expit(0.5 + 1.0 - 0.3 + math.log(2)), expit(0.5 + 2.0 - 0.3 - 1.0)]
    assert model.compute(facts) == pytest.approx(by_hand)


def test_binarize_takes_confidence_from_it(four, tmp_path):
    save_json(FILE, tmp_path / "calibration.json")
    model = load_calibration(tmp_path / "calibration.json")
    assert json.loads((tmp_path / "calibration.json").read_text()) == model.model_dump(mode="json")
    rows = [{**ROW, "instruction": f"Question {n}?", "completions": [
        {**c, "response": c["response"] * (1 + 7 * (n + k) % 5)} for k, c in enumerate(ROW["completions"])]}
        for n in range(6)]  # fmt: skip
    names = ["k_sim", "k_sure", "delta", "rlaif"]
    plain = build_pair_sets(load_pool(rows), four, names, **OPTIONS)
    given = build_pair_sets(load_pool(rows), four, names, calibration=model, **OPTIONS)
    s_pref, sure = compute_s_pref(four), compute_label_confidence(four)
    for name in names:
        drop = ["label_confidence"]
        assert given[name].table.drop_columns(drop).equals(plain[name].table.drop_columns(drop)), "the picks stay"
        for pair in given[name].table.to_pylist() if name != "rlaif" else ():
            sides = pair["chosen_model"], pair["rejected_model"]
            sizes = [len(pair[side][0]["content"]) for side in ("chosen", "rejected")]
            gap, flip = s_pref[sides[0]] - s_pref[sides[1]], 1 - sure.loc[sides]
            length = min(max(math.log(sizes[0] / sizes[1]), -1), 1)
            assert pair["label_confidence"] == pytest.approx(expit(0.5 + 2 * gap - 3 * min(flip, 0.5) + length))
    assert given["rlaif"].table["label_confidence"].null_count == 6
    kept = build_pairs(load_pool(rows), four, "k_sim", calibration=model, min_confidence=0.4, **OPTIONS)
    expected = [pair for pair in given["k_sim"].table.to_pylist() if pair["label_confidence"] >= 0.4]
    assert kept.table.to_pylist() == expected and 0 < len(expected) < 6
    assert kept.accounting.dropped["unsure_label"] == 6 - len(expected)
    said = "calibrated on alpaca (3,000 decided comparisons of 10 models)"
    assert kept.accounting.settings["label_confidence"] == kept.accounting.settings["calibration"] == said
    assert "by a model fitted on recorded judgments" in build_card(kept.accounting, CardFacts(), LengthBias().as_dict())
    assert plain["k_sim"].accounting.settings["calibration"] is None


def test_a_calibration_that_reads_what_is_unknown_is_refused_and_one_that_does_not_is_enough(four):
    model, unknown = Calibration.model_validate(FILE), replace(four, n_items=None)
    with pytest.raises(InputError, match=r"the calibration reads p_flip: label confidence is unknown: .*n_items"):
        build_pairs(load_pool([ROW]), unknown, "k_sim", calibration=model, **OPTIONS)
    assert len(build_pairs(load_pool([ROW]), None, "rlaif", calibration=model, **OPTIONS)) == 1
    less = model.model_copy(update={"terms": [term for term in model.terms if term.fact != "p_flip"]})
    pairs = build_pairs(load_pool([ROW]), unknown, "k_sim", calibration=less, min_confidence=0.1, **OPTIONS)
    assert pairs.table["label_confidence"].null_count == 0 and len(pairs) == 1
    with pytest.raises(InputError, match="k_sure: label confidence is unknown"):
        build_pairs(load_pool([ROW]), unknown, "k_sure", calibration=less, **OPTIONS)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda f: f.pop("version"), "is no calibration: it names no version; make it with `karma audit-labels`"),
    (lambda f: f.update(version=2), "is a calibration of version 2, read is 1: make it"),
    (lambda f: f.update(intercept="high"), "is no calibration: intercept: Input should be a valid number"),
    (lambda f: f.update(intercept="0.5"), "is no calibration: intercept: Input should be a valid number"),
    (lambda f: f["terms"].clear(), "is no calibration: terms: List should have at least 1 item"),
    (lambda f: f["terms"][0].update(fact="taste"), r"is no calibration: terms\.0\.fact: Input should be 's_pref_gap'"),
    (lambda f: f["terms"][0].update(lowest=2.0), r"is no calibration: terms\.0: Value error, lowest is above highest"),
    (lambda f: f["terms"].append(f["terms"][0]), "is no calibration: its terms: Value error, a fact stands in two"),
    (lambda f: f.update(extra=1), "is no calibration: extra: Extra inputs are not permitted"),
    (lambda f: f.pop("held_out"), "is no calibration: held_out: Field required"),
])  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path, spoil, message):
    values = json.loads(json.dumps(FILE))
    spoil(values)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=message) as found:
        load_calibration(path)
    assert "\n" not in str(found.value)
    path.write_text(json.dumps(FILE).replace("0.5", "NaN", 1))
    with pytest.raises(InputError, match="intercept: Input should be a finite number"):
        load_calibration(path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"c\.json cannot be read as JSON"):
        load_calibration(path)
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read: it does not exist"):
        load_calibration(tmp_path / "nowhere.json")


def write_source(folder, n_prompts, turn=lambda k: 1):
    rows = [{"prompt": f"q{k}", "model": m, "value": turn(k) * v, "length": 10.0 * (i + 1) + k}
            for k in range(n_prompts) for i, (m, v) in enumerate((("best", 0.9), ("third", 0.5), ("last", 0.1)))]  # fmt: skip
    return build_values(pd.DataFrame(rows), "own", "own", "share"), make_table(
        folder, {"best": (0.9, 0.8), "third": (0.5, 0.6), "last": (0.2, 0.1)}, 100
    )


def test_an_audit_writes_it_where_there_is_enough_and_says_so_where_not(tmp_path):
    good = audit_recorded(*write_source(tmp_path, 40, lambda k: 1 if k % 3 else -1), tie=0.0)
    save_recorded(good, tmp_path / "out")
    model = load_calibration(tmp_path / "out" / "calibration.json")
    assert model == good.calibration.model and set(model.facts) <= {
        "s_pref_gap",
        "kinship",
        "p_flip",
        "length_difference",
    }
    assert pd.read_csv(tmp_path / "out" / "reliability.csv")["n_decided"].sum() == 2 * model.held_out.n_decided
    assert any("label confidence, Brier score on" in line for line in describe_recorded(good))
    bad = audit_recorded(*write_source(tmp_path, 40), tie=0.0)  # every label is right: nothing to tell apart
    save_recorded(bad, tmp_path / "out")
    assert not list((tmp_path / "out").glob("[cr][ae]li*")), "an earlier audit's file must go"
    assert any("note: no calibration: " in line and "labelled rightly" in line for line in describe_recorded(bad))


def test_the_sample_is_calibrated_through_both_commands(real_data, tmp_path):
    run = CliRunner().invoke
    found = run(app, ["audit-labels", "--judgments", str(real_data / "alpaca_eval_judged"), "--scores",
                      str(real_data / "open_llm_leaderboard_3827.csv"), "--columns", "open_llm_leaderboard_v2", "--out",
                      str(tmp_path / "labels")])  # fmt: skip
    assert found.exit_code == 0 and "label confidence, Brier score on" in found.output, found.output
    assert all((tmp_path / "labels" / "figures" / f"reliability.{end}").stat().st_size > 1000 for end in ("png", "svg"))
    model = load_calibration(tmp_path / "labels" / "calibration.json")
    books = json.loads((tmp_path / "labels" / "accounting.json").read_text())
    assert model.n_decided + model.held_out.n_decided == books["decided"] and books["calibration"] == "calibration.json"
    assert set(model.facts) == {"s_pref_gap", "kinship", "p_flip", "length_difference"}
    assert model.source == "alpaca_eval_judged/results" and str(tmp_path) not in model.model_dump_json()
    pool = real_data / "ultrafeedback_row_example.json"
    row = json.loads(pool.read_text())
    (tmp_path / "pool.jsonl").write_text(json.dumps(row[0] if isinstance(row, list) else row) + "\n")
    command = ["binarize", "--pool", str(tmp_path / "pool.jsonl"), "--strategy", "k_sim", "--out", str(tmp_path / "pairs"),
               "--calibration", str(tmp_path / "labels" / "calibration.json")]  # fmt: skip
    found = run(app, command)
    assert found.exit_code == 0, found.output
    (sure,) = pq.read_table(tmp_path / "pairs" / "pairs.parquet")["label_confidence"].to_pylist()
    assert 0 < sure < 1
    found = run(app, [*command[:-1], str(tmp_path / "pairs" / "accounting.json")])
    assert isinstance(found.exception, InputError) and "names no version" in str(found.exception)


def test_a_study_s_pairs_are_made_again_where_the_file_changes(tmp_path):
    file = tmp_path / "calibration.json"
    (tmp_path / "study.yaml").write_text(f"extends: smoke\nname: x\npairs: {{calibration: {file}}}\n")
    job = find_job(load_experiment(tmp_path / "study.yaml"), "03_binarization", {"strategy": "k_sim"})
    seen = []
    for text in ("{}", "[]"):
        file.write_text(text)
        seen.append(fingerprint_settings(job)["files"][str(file)])
    assert seen[0] != seen[1]
