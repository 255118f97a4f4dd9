"""Kinship by score, origin and behaviour put to one test: which predicts close responses and right labels?"""

import json

import numpy as np
import pandas as pd
import pytest

from karma.errors import InputError
from karma.labels.kinships import (
    build_outcomes,
    compare_kinships,
    describe_kinships,
    list_kinships,
    load_answers,
)
from karma.labels.layouts import load_judgments
from karma.labels.recorded import audit_recorded, describe_recorded
from karma.scores.normalise import compute_s_pref
from karma.scores.read import load_score_table


def square(values, names):
    return pd.DataFrame(values, names, names)


def test_four_models_by_eye():
    """a and b write alike, c and d write alike; S_pref orders a > b > c > d; the truth has d above c."""
    names = list("abcd")
    texts = np.array([["x y", "x y z", "p q", "p q r"]] * 2, object)
    values = np.array([[4.0, 3.0, 1.0, 2.0]] * 2)
    found = build_outcomes(texts, values, pd.Series([0.9, 0.7, 0.5, 0.3], names))
    assert (
        found.closeness[0, 0, 1] == found.closeness[0, 3, 2] == pytest.approx(2 / 3) and found.closeness[0, 0, 2] == 0
    )
    assert found.right[0, 2, 3] == 0 and found.right[0, 0, 3] == found.right[0, 3, 0] == 1
    near = square([[1, 0.9, 0.2, 0.1], [0.9, 1, 0.2, 0.1], [0.2, 0.2, 1, 0.9], [0.1, 0.1, 0.9, 1]], names)
    rows = compare_kinships(found, {("score", "cosine"): near, ("origin", "base model"): square(np.eye(4), names)})
    rows = rows.set_index(["kinship", "question"])
    # of each model's three pairs of others two differ in closeness, and the nearer kin is right in both
    assert rows.loc[("cosine", "responses"), ["n_comparisons", "share", "told"]].tolist() == [16, 1, 1]
    # labels are wrong for (c, d) alone, each other's nearest kin: 2 x 2 comparisons a prompt, all against the nearer
    assert rows.loc[("cosine", "labels"), ["n_comparisons", "share"]].tolist() == [8, 0]
    assert rows.loc[("base model", "responses"), "told"] == 0 and np.isnan(
        rows.loc[("base model", "responses"), "share"]
    )


def test_a_kinship_turned_round_tells_the_opposite_and_one_by_lot_nothing():
    rng = np.random.default_rng(0)
    names, n = [f"m{k}" for k in range(12)], 12
    place = rng.random(n)
    gaps = np.abs(place[:, None] - place)
    words = [[" ".join(str(w) for w in range(int(30 * p), int(30 * p) + 20)) for p in place + rng.normal(0, 0.1, n)]
             for _ in range(30)]  # fmt: skip
    found = build_outcomes(np.array(words, object), rng.random((30, n)), pd.Series(place, names))
    lot = rng.random((n, n))
    rows = compare_kinships(found, {("score", "near"): square(1 - gaps, names), ("score", "far"): square(gaps, names),
                                    ("score", "lot"): square(lot + lot.T, names)})  # fmt: skip
    share = rows[rows["question"] == "responses"].set_index("kinship")
    assert share.loc["near", "low"] > 0.6 and share.loc["near", "share"] == pytest.approx(1 - share.loc["far", "share"])
    assert share.loc["lot", "low"] < 0.5 < share.loc["lot", "high"]
    assert ((rows["low"] <= rows["share"]) & (rows["share"] <= rows["high"])).all()


def test_recorded_mmlu_pro_answers_of_six_models(real_data):
    """Behaviour on one half of the items, responses and truth on the other; scores and origins from the leaderboard."""
    frame = pd.read_json(real_data / "mmlu_pro_answers.jsonl", lines=True)
    table = load_score_table(real_data / "open_llm_leaderboard_3827.csv", "open_llm_leaderboard_v2")
    rows = {}
    for name in sorted(frame["model"].unique()):
        own = [r for r in table.scores.index if r.split(" ")[0].endswith(f"/{name}") and "unsloth" not in r]
        rows[name] = own[0]
    half = frame["item_id"].rank(method="dense") % 2 == 0
    answers = frame[half].rename(columns={"model": "origin_model", "pred": "extracted"}).assign(benchmark="mmlu_pro")
    rest = frame[~half].assign(value=lambda f: (f["pred"] == f["gold"]).astype(float))
    grids = [
        rest.pivot(index="item_id", columns="model", values=name)[list(rows)] for name in ("model_output", "value")
    ]
    s_pref = compute_s_pref(table)[list(rows.values())].set_axis(list(rows))
    outcomes = build_outcomes(grids[0].to_numpy(object), grids[1].to_numpy(), s_pref)
    found = compare_kinships(outcomes, list_kinships(table, rows, answers)).set_index(["kinship", "question"])
    assert (
        found.loc[("kappa", "responses"), "n_comparisons"] > 2500 and found.loc[("kappa", "responses"), "n_models"] == 6
    )
    assert found.loc[("base model", "responses"), "told"] == 0  # the six declare no ancestor in common
    assert (found["high"] - found["low"]).dropna().min() > 0.2  # six models show little, and the intervals say so


def test_the_judged_models_of_the_leaderboard(real_data):
    table = load_score_table(real_data / "open_llm_leaderboard_3827.csv", "open_llm_leaderboard_v2")
    audit = audit_recorded(load_judgments(str(real_data / "alpaca_eval_judged")), table)
    found = audit.kinships.set_index(["kinship", "question"])
    cosine = found.loc[("cosine", "responses")]
    assert cosine["n_models"] == 10 and cosine["n_prompts"] == 200 and cosine["low"] < 0.5 < cosine["share"]
    assert found.loc[("base model", "responses"), "told"] == 0
    told = describe_kinships(audit.kinships)
    assert "nothing is told by origin (base model)" in told[1] and told[0] in describe_recorded(audit)


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_recorded_answers_are_read_and_bad_ones_named(tmp_path):
    row = {"model": "org/A-1", "id": 3, "pred": None}
    path = write(tmp_path / "a.jsonl", [row, {**row, "model": "a_1", "id": 4, "pred": "B"}, {**row, "model": "b"}])
    read = load_answers(path, ["A1", "B"]).fillna("none").values.tolist()
    assert read == [["A1", "items", "3", "none"], ["A1", "items", "4", "B"], ["B", "items", "3", "none"]]
    for rows, message in (
        ([row, row, {**row, "model": "b"}], "'A1' answers item '3' twice: keep one of them"),
        ([{"model": "A1", "id": 1}], "row 1 has no 'extracted': expected origin_model, item_id, extracted"),
        ([{**row, "pred": [1]}], "row 1: origin_model and item_id are names, extracted a text or null"),
        ([row], "answers of 1 of the models with judgments and scores, two are needed"),
    ):
        with pytest.raises(InputError, match=message):
            load_answers(write(tmp_path / "bad.jsonl", rows), ["A1", "B"])
