"""What reward_evaluation says of a reward model: labels, truth, length and best of n, by hand and from the model."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma.errors import InputError
from karma.labels.best_of_n import compute_best_of_n, expect_best
from karma.labels.rewards import compare_truth, measure_reward_model
from karma.pairs.accounting import Accounting
from karma.pairs.pairs import PairSet

ANSWERS = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=6)


@given(ANSWERS)
def test_the_best_of_n_is_what_drawing_gives(answers):
    from itertools import combinations

    rewards, truths = (np.array(column, float) for column in zip(*answers, strict=True))
    for n in range(1, len(answers) + 1):
        drawn = [list(subset) for subset in combinations(range(len(answers)), n)]
        best = [truths[subset][rewards[subset] == rewards[subset].max()].mean() for subset in drawn]
        tie_free = len(set(rewards.tolist())) == len(rewards)
        if tie_free:
            assert expect_best(rewards, truths, n) == pytest.approx(np.mean(best))
        assert expect_best(truths, truths, n) == pytest.approx(np.mean([truths[subset].max() for subset in drawn]))
    assert expect_best(rewards, truths, 1) == pytest.approx(truths.mean())


def test_answers_of_equal_reward_are_a_draw():
    assert expect_best([1.0, 1.0, 0.0], [1.0, 0.0, 0.0], 3) == 0.5


def test_a_perfect_reward_gains_what_is_perfect_and_a_reversed_one_loses():
    rng = np.random.default_rng(0)
    truths = [rng.random(4) for _ in range(30)]
    perfect, reversed_ = (compute_best_of_n([(sign * t, t) for t in truths]) for sign in (1, -1))
    assert perfect["truth"].tolist() == pytest.approx(perfect["perfect"].tolist())
    assert perfect["gain_low"].iloc[-1] > 0 > reversed_["gain_high"].iloc[-1] and perfect["n"].tolist() == [1, 2, 3, 4]
    assert compute_best_of_n([([1.0], [1.0])]).empty


def make_set(rows):
    table = pa.Table.from_pylist([dict(zip(("row_id", "chosen_id", "rejected_id"), row, strict=True)) for row in rows])
    return PairSet(table, Accounting("k_sim", rows_in=len(rows), pairs_out=len(rows)))


TABLE = pd.DataFrame(
    [("p", "a", 2.0, 10, 1.0), ("p", "b", 1.0, 30, 0.0), ("p", "c", 3.0, 11, 0.5),
     ("q", "a", 0.0, 10, 1.0), ("q", "b", 1.0, 12, 0.0), ("r", "a", 0.0, 5, 0.5), ("r", "b", 9.0, 5, 0.5)],
    columns=["row_id", "response_id", "reward", "characters", "truth"],
)  # fmt: skip


def test_the_scores_by_hand():
    sets = {"k_sim": make_set([("p", "a", "b"), ("q", "a", "b")]), "delta": make_set([("r", "b", "a")])}
    found = measure_reward_model(TABLE, sets)
    assert (found["n_prompts"], found["n_responses"]) == (3, 7)
    assert found["pairs"]["k_sim"]["accuracy"] == 0.5 and found["pairs"]["delta"]["accuracy"] == 1.0
    assert found["pairs"]["k_sim"]["length"]["longer_preferred"]["value"] == 0.5  # q's longer, not p's
    truth = found["truth"]  # p: a > b right, a > c wrong, c > b right; q: wrong; r: nothing to tell
    assert truth["value"] == pytest.approx(2 / 4) and (truth["n_pairs"], truth["n_prompts"]) == (4, 2)
    assert truth["longer"]["value"] == pytest.approx(0.0 + 0 / 4) and truth["low"] < 0.5 < truth["high"]
    best = found["best_of_n"]
    assert [row["n"] for row in best] == [1, 2] and best[1]["n_prompts"] == 3
    assert best[1]["truth"] == pytest.approx(np.mean([2 / 3 * 0.5 + 1 / 3 * 1.0, 0.0, 0.5]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_truth_there_is_none_and_a_lost_response_is_named():
    table = TABLE.assign(truth=np.nan)
    found = measure_reward_model(table, {"k_sim": make_set([("p", "a", "b")])})
    assert found["truth"] is None and found["best_of_n"] == []
    with pytest.raises(InputError, match="k_sim: a held-out pair names a response that was not rated: run reward_eval"):
        measure_reward_model(table, {"k_sim": make_set([("p", "a", "zz")])})


def test_pairs_of_one_prompt_are_one_unit():
    rows = [(str(k), "ab"[j], float(j), 1, float(j)) for k in range(4) for j in range(2)]
    wide = compare_truth(pd.DataFrame(rows, columns=TABLE.columns))
    assert wide["value"] == 1.0 and wide["low"] < 0.6 and wide["n_prompts"] == 4
