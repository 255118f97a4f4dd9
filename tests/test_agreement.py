"""Agreement with people's votes: by eye, another judge beside, voters of a known reliability, and what is refused."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from karma.errors import InputError
from karma.labels.agreement import ANOTHER, COLUMNS, LABELS, LONGER, OTHER, OWN, SHARED, measure_agreement
from karma.labels.comparisons import build_comparisons
from karma.labels.judgments import build_values, build_votes
from karma.labels.layouts import load_judgments
from karma.labels.recorded import audit_recorded, describe_recorded, save_recorded
from karma.scores.read import load_score_table

S_PREF = pd.Series({"high": 1.0, "mid": 0.6, "low": 0.0})
KIN = pd.DataFrame(0.5, index=S_PREF.index, columns=S_PREF.index)
VOTES = [*(("p", "high", "low", vote) for vote in (1.0, 1.0, -1.0, 0.0)), *[("q", "mid", "low", -1.0)] * 2,
         ("r", "high", "mid", 1.0)]  # fmt: skip


def cast(rows, lengths=None):
    frame = pd.DataFrame(rows, columns=["prompt", "first", "second", "vote"])
    judgments = build_votes(frame.assign(group=frame["prompt"]), "votes.json", "own", lengths)
    return build_comparisons(judgments, S_PREF[judgments.models], KIN)


def judge(*rows):
    return build_values(pd.DataFrame(rows, columns=["prompt", "model", "value"]), "gpt4.json", "own", "share")


def read(found, on=OWN):
    rows = found[found["on"] == on].set_index("judge")
    return {name: (row["n_votes"], round(row["agreement"], 4)) for name, row in rows.iterrows()}


def test_agreement_by_eye():
    """p: two votes for high, one for low; q: both for low, whom S_pref puts below mid; r: one for high."""
    found = measure_agreement(cast(VOTES))
    assert read(found) == {LABELS: (6, 0.5), ANOTHER: (5, 0.6)}  # (1 + 2) of 3 + 2: r has no other vote
    assert read(found, SHARED) == {LABELS: (5, 0.4), ANOTHER: (5, 0.6)}
    assert list(found) == COLUMNS and found["n_comparisons"].tolist() == [3, 2, 2, 2]
    turned = [(prompt, second, first, -vote) for prompt, first, second, vote in VOTES]
    pd.testing.assert_frame_equal(measure_agreement(cast(turned)), found)


def test_another_judge_stands_beside_people():
    """It finds high better in p, mid and low alike in q, and mid better in r."""
    values = judge(("p", "high", 0.9), ("p", "low", 0.1), ("q", "mid", 0.5), ("q", "low", 0.51), ("r", "high", 0.2),
                   ("r", "mid", 0.8), ("x", "mid", 0.8))  # fmt: skip
    found = measure_agreement(cast(VOTES), values)
    assert read(found)[OTHER] == (4, 0.5) and read(found, SHARED) == {
        LABELS: (3, 0.6667), OTHER: (3, 0.6667), ANOTHER: (3, 0.3333)
    }  # fmt: skip
    votes = cast([("p", "low", "high", -1.0), ("q", "low", "mid", 0.0), ("r", "mid", "high", 1.0)]).judgments
    pd.testing.assert_frame_equal(measure_agreement(cast(VOTES), votes), found)


def test_the_longer_response_is_a_judge_where_lengths_are_known():
    rows = [("p", "high", 5.0), ("p", "low", 9.0), ("q", "mid", 3.0), ("q", "low", 3.0)]
    lengths = pd.DataFrame(rows, columns=["prompt", "model", "length"])
    assert read(measure_agreement(cast(VOTES, lengths)))[LONGER] == (3, 0.3333)


def test_voters_of_a_known_reliability_are_found():
    """A voter is right four times in five: labels that are always right get .8, another voter .8^2 + .2^2."""
    rng, names = np.random.default_rng(0), list(S_PREF.index)
    rows = [(f"p{n}", one, other, 1.0 if rng.random() < 0.8 else -1.0)
            for n in range(400) for one, other in combinations(names, 2) for _ in range(3)]  # fmt: skip
    found = measure_agreement(cast(rows)).set_index(["judge", "on"])
    for who, truth in ((LABELS, 0.8), (ANOTHER, 0.68)):
        row = found.loc[(who, OWN)]
        assert row["low"] < truth < row["high"] and row["agreement"] == pytest.approx(truth, abs=0.02)


def test_the_command_s_audit_writes_it_and_refuses_what_cannot_agree(tmp_path):
    (tmp_path / "t.csv").write_text("origin_model,arc_easy,mmlu_pro\nhigh,.9,.9\nmid,.5,.6\nlow,.1,.2\n")
    names = {"model_a": "high", "model_b": "low"}
    rows = [{"question_id": q, **names, "winner": w} for q in range(3) for w in ("model_a", "model_a", "model_b")]
    (tmp_path / "votes.json").write_text(json.dumps(rows))
    (tmp_path / "gpt4.json").write_text(json.dumps([{"question_id": 1, **names, "winner": "model_a"}]))
    people, other = load_judgments(tmp_path / "votes.json"), load_judgments(tmp_path / "gpt4.json")
    table = load_score_table(tmp_path / "t.csv")
    audit = audit_recorded(people, table, beside=other)
    save_recorded(audit, tmp_path / "out")
    written = pd.read_csv(tmp_path / "out" / "agreement.csv")
    assert read(written) == {LABELS: (9, 0.6667), OTHER: (3, 0.6667), ANOTHER: (9, 0.3333)}
    assert any(line.startswith(f"agreement with a vote, {OWN}: {OTHER} 0.667") for line in describe_recorded(audit))
    (tmp_path / "else.json").write_text(json.dumps([{"question_id": 9, **names, "winner": "model_a"}]))
    with pytest.raises(InputError, match=r"else\.json judges none of the comparisons of votes\.json"):
        audit_recorded(people, table, beside=load_judgments(tmp_path / "else.json"))
    values = judge(("p", "high", 0.9), ("p", "low", 0.1))
    with pytest.raises(InputError, match=r"--beside votes\.json: gpt4\.json has no votes on pairs"):
        audit_recorded(values, table, beside=people)
    assert not len(audit_recorded(values, table).agreement)
