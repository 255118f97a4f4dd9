"""Lengths of pairs: the bias by eye and in every folder, and the matched pairs against a plain rule."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma.errors import InputError
from karma.pairs.build import build_pair_sets, build_pairs
from karma.pairs.folder import save_pairs
from karma.pairs.lengths import compute_length_bias
from karma.pairs.pairs import load_pairs
from karma.pool.pool import load_pool
from karma.scores.read import load_score_table
from karma.statistics.intervals import compute_mean, compute_wilson
from tests.test_pairs import STRATEGIES, make_row, pick, three_models  # noqa: F401  (a fixture)

PAPER = load_score_table("paper")


def test_the_best_among_those_of_like_length(three_models):  # noqa: F811
    """H has 8 characters, M 4, L 6: within 1.5 lie (H, L) and (M, L); at 1 no pair is left."""
    row = make_row(responses=[("low", "L" * 6, 1.0), ("high", "H" * 8, 3.0), ("middle", "M" * 4, 5.0)])
    assert pick(row, three_models, "k_score") == ("H" * 8, "M" * 4)
    assert pick(row, three_models, "k_score", max_length_ratio=2) == ("H" * 8, "M" * 4)
    for strategy in ("k_score", "delta", "k_score_sim"):
        assert pick(row, three_models, strategy, max_length_ratio=1.5) == ("H" * 8, "L" * 6)
    assert pick(row, three_models, "rlaif", rejected="worst", max_length_ratio=1.5) == ("M" * 4, "L" * 6)
    assert {pick(row, three_models, s, max_length_ratio=1) for s in STRATEGIES} == {"unlike_lengths"}
    far = make_row(responses=[("low", "L", 1.0), ("high", "H", 3.0), ("middle", "M" * 9, 5.0)])
    assert pick(far, three_models, "rlaif", max_length_ratio=1.5) == ("H", "L"), "the best of those that have a match"


def test_characters_are_counted_and_not_bytes(three_models):  # noqa: F811
    row = make_row(responses=[("low", "ab"), ("high", "你好")])
    assert pick(row, three_models, "k_score", max_length_ratio=1) == ("你好", "ab")


ANSWERS = st.lists(st.tuples(st.sampled_from(["GPT-4", "bard", "alpaca-7b", "starchat", "pythia-12b"]),
                             st.integers(0, 9), st.sampled_from([1.0, 2.0, 5.0, None])), max_size=5)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(ANSWERS, min_size=1, max_size=4), ratio=st.sampled_from([1.0, 1.5, 3.0]))
def test_matched_sets_add_up_and_lose_only_rows_without_a_match(rows, ratio):
    texts = [[(m, chr(97 + i) * n, a) for i, (m, n, a) in enumerate(row)] for row in rows]
    pool = load_pool([make_row(f"Question {k}?", row) for k, row in enumerate(texts)])
    plain = build_pair_sets(pool, PAPER, list(STRATEGIES), tau=0.1, seed=3)
    matched = build_pair_sets(pool, PAPER, list(STRATEGIES), tau=0.1, seed=3, max_length_ratio=ratio)
    for strategy, pairs in matched.items():
        books, before = pairs.accounting, plain[strategy].accounting
        assert books.rows_in == len(rows) == len(pairs) + books.dropped.total()
        for reason in before.dropped:
            assert reason == "equal_s_pref" or books.dropped[reason] <= before.dropped[reason]
        for p in pairs.table.to_pylist():
            lengths = [len(p[side][0]["content"]) for side in ("chosen", "rejected")]
            assert max(lengths) <= ratio * min(lengths)


@pytest.mark.parametrize("ratio", [0.9, float("nan"), float("inf"), -1])
def test_an_impossible_ratio_is_refused(ratio):
    with pytest.raises(InputError, match=r"max_length_ratio is .*: longer over shorter is 1 or more"):
        build_pairs(load_pool([make_row()]), PAPER, "k_sim", tau=0.1, seed=0, max_length_ratio=ratio)


def test_every_folder_says_which_response_is_longer(three_models, tmp_path):  # noqa: F811
    """Chosen minus rejected: +3, 0, -1 and +2 characters; the card and accounting.json say what a table gives."""
    lengths = [(5, 2), (4, 4), (1, 2), (6, 4)]
    rows = [make_row(f"{k}?", [("high", "H" * a), ("low", "L" * b)]) for k, (a, b) in enumerate(lengths)]
    pairs = build_pairs(load_pool(rows), three_models, "k_score", tau=-1, seed=0)
    found, differences = compute_length_bias(pairs.table), [3, 0, -1, 2]
    assert (found["n"], found["n_longer"], found["n_equal"], found["share_longer"]) == (4, 2, 1, 0.625)
    assert (found["share_low"], found["share_high"]) == pytest.approx(compute_wilson(0.625, 4), abs=1e-6)
    mean = compute_mean(np.array(differences))
    assert found["mean_difference"] == 1.0
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((mean["low"], mean["high"]), abs=1e-6)
    folder = save_pairs(pairs, tmp_path / "pairs")
    assert json.loads((folder / "accounting.json").read_text())["length_bias"] == found
    card = (folder / "README.md").read_text("utf-8")
    assert "longer in 62.5 % of 4 pairs" in card and "by +1.0 characters" in card and "--max-length-ratio" in card
    assert load_pairs(folder).accounting == pairs.accounting
    nothing = compute_length_bias(pairs.table.slice(0, 0))
    assert nothing["n"] == 0 and nothing["share_longer"] is None and nothing["mean_difference"] is None
