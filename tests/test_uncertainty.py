"""Bootstrap, Mantel tests and sensitivity: against analytic cases and the paper's crowded ranking."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from karma.errors import InputError
from karma.kinship.clusters import compute_distance
from karma.kinship.mantel import _judge, build_factors, compute_kin_agreement, compute_mantel, compute_mantel_table
from karma.kinship.sensitivity import compute_sensitivity, match_tau, sweep_tau
from karma.kinship.similarity import compute_choices, compute_kinship
from karma.kinship.uncertainty import (
    compute_choice_uncertainty,
    compute_pair_uncertainty,
    compute_s_pref_intervals,
    draw_tables,
)
from karma.scores.normalise import compute_s_pref
from karma.scores.read import load_score_table
from karma.scores.table import ScoreTable, load_benchmarks
from karma.strategies import Candidates, build_sets, choose_by_kinship, choose_in_sets
from karma.vocabulary import KINSHIP_STRATEGIES


@pytest.fixture(scope="module")
def paper() -> ScoreTable:
    return load_score_table("paper")


@pytest.fixture(scope="module")
def draws(paper):
    return draw_tables(paper, np.random.default_rng(0), 2000)


def build_fixed_ends(low: float, high: float, n: int) -> ScoreTable:
    """One benchmark, models at 0, `low`, `high` and 1: the ends have no error, S_pref is the score."""
    index = pd.Index(["zero", "low", "high", "one"], name="origin_model")
    scores = pd.DataFrame({"arc_easy": [0.0, low, high, 1.0]}, index=index)
    return ScoreTable(scores, load_benchmarks().loc[["arc_easy"]], {"arc_easy": n}, "measured")


def test_bootstrap_has_the_binomial_standard_error():
    table = build_fixed_ends(0.4, 0.5, 50)
    draws = draw_tables(table, np.random.default_rng(1), 20_000)
    assert draws.s_pref.std(axis=0)[1] == pytest.approx(sqrt(0.4 * 0.6 / 50), rel=0.02)
    assert draws.s_pref[:, 0].max() == 0 and draws.s_pref[:, 3].min() == 1
    low, high = compute_s_pref_intervals(table, draws).loc["low", ["low", "high"]]
    assert (low, high) == (binom.ppf(0.025, 50, 0.4) / 50, binom.ppf(0.975, 50, 0.4) / 50)


def test_probability_of_a_flip_is_the_exact_one_with_ties_counted_half():
    pairs = compute_pair_uncertainty(
        table := build_fixed_ends(0.4, 0.5, 50), draw_tables(table, np.random.default_rng(2), 20_000), tau=0
    )
    k = np.arange(51)
    low, high = binom.pmf(k, 50, 0.4), binom.pmf(k, 50, 0.5)
    exact = sum(low[i] * (high[:i].sum() + high[i] / 2) for i in k)
    flip = pairs.set_index(["chosen", "rejected"]).loc[("high", "low"), "p_flip"]
    assert flip == pytest.approx(exact, abs=0.01)


def test_draws_without_a_range_are_discarded_and_counted():
    index = pd.Index(["a", "b"], name="origin_model")
    scores = pd.DataFrame({"arc_easy": [0.0, 0.5]}, index=index)
    table = ScoreTable(scores, load_benchmarks().loc[["arc_easy"]], {"arc_easy": 1}, "measured")
    draws = draw_tables(table, np.random.default_rng(0), 1000)
    assert draws.n_discarded == pytest.approx(500, abs=60)
    assert len(draws.s_pref) == 1000 - draws.n_discarded and np.isfinite(draws.s_pref).all()


def test_unknown_number_of_items_is_refused(paper):
    with pytest.raises(InputError, match="sampling error needs n_items of each benchmark"):
        draw_tables(replace(paper, n_items=None), np.random.default_rng(0))


def test_same_seed_same_draws(paper, draws):
    again = draw_tables(paper, np.random.default_rng(0), 2000)
    assert np.array_equal(again.s_pref, draws.s_pref)


def test_the_crowded_middle_of_table_3_is_coin_flips(paper, draws):
    pairs = compute_pair_uncertainty(paper, draws, tau=0.1)
    coins = pairs[pairs["coin_flip"]]
    assert {frozenset(p) for p in coins[["chosen", "rejected"]].to_numpy()} == {
        frozenset(p)
        for p in [
            ("WizardLM-70b", "Llama-2-70b-chat"),
            ("WizardLM-70b", "Vicuna-33b"),
            ("Llama-2-70b-chat", "Vicuna-33b"),
            ("WizardLM-13b", "Llama-2-13b-chat"),
        ]
    }
    assert (pairs["kinship_low"] <= pairs["kinship_high"]).all()


def test_sampling_error_changes_picks_in_sets_of_four(paper, draws):
    sets = build_sets(16, 4, np.random.default_rng(0))
    result = compute_choice_uncertainty(paper, draws, sets, tau=0.1)
    assert result.loc["k_score", "p_other_overall"] == 0  # GPT-4 and Bard lead by far
    assert result.loc["k_sim", "p_other_overall"] == pytest.approx(0.17, abs=0.03)
    assert result["p_other_in_sets"].between(0.05, 0.12).all()


@pytest.mark.parametrize("strategy", KINSHIP_STRATEGIES)
def test_choice_in_the_set_of_all_models_is_the_choice_among_all(paper, strategy):
    everyone = np.arange(16)[None, :]
    kinship = compute_kinship(paper).to_numpy()
    picked = choose_in_sets(compute_s_pref(paper).to_numpy(), kinship, everyone, strategy, 0.1)[0]
    assert tuple(paper.scores.index[picked]) == compute_choices(paper, 0.1)[strategy]


@pytest.mark.parametrize("strategy", [*KINSHIP_STRATEGIES, "delta"])
def test_sets_agree_with_the_choices_that_pairs_are_built_by(paper, strategy):
    s_pref, kinship = compute_s_pref(paper).to_numpy(), compute_kinship(paper).to_numpy()
    sets = build_sets(16, 4, np.random.default_rng(0))
    n = sets.size
    rows, keys = np.repeat(np.arange(len(sets)), 4), np.arange(n, dtype=np.uint64)
    candidates = Candidates(len(sets), rows, sets.ravel().astype(np.int32), keys, np.full(n, np.nan))
    made = choose_by_kinship(strategy, candidates, s_pref, kinship, 0.1)
    theirs = np.stack([sets.ravel()[made.chosen], sets.ravel()[made.rejected]], axis=1)
    assert np.array_equal(made.row, np.arange(len(sets)))
    assert np.array_equal(choose_in_sets(s_pref, kinship, sets, strategy, 0.1), theirs)


def test_k_score_and_k_score_sim_always_choose_the_same_response_and_often_the_same_pair(paper):
    s_pref, kinship = compute_s_pref(paper).to_numpy(), compute_kinship(paper).to_numpy()
    sets = build_sets(16, 4, np.random.default_rng(0))
    assert len(sets) == 1820
    one, other = (choose_in_sets(s_pref, kinship, sets, s, 0.1) for s in ("k_score", "k_score_sim"))
    assert np.array_equal(one[:, 0], other[:, 0])
    assert (one == other).all(axis=1).mean() == pytest.approx(0.67, abs=0.005)


def test_no_eligible_pair_and_equal_s_pref_give_no_choice():
    kinship, sets = np.array([[1, 0.5], [0.5, 1]]), np.array([[0, 1]])
    assert choose_in_sets(np.array([0.1, 0.2]), kinship, sets, "k_sim", 0.6).tolist() == [[-1, -1]]
    assert choose_in_sets(np.array([0.2, 0.2]), kinship, sets, "k_sim", 0.1).tolist() == [[-1, -1]]


def test_many_models_are_sampled_in_distinct_sets():
    sets = build_sets(100, 4, np.random.default_rng(0))
    assert len(sets) <= 5000 and len(np.unique(sets, axis=0)) == len(sets)
    assert (np.diff(sets, axis=1) > 0).all()


def test_tau_sweep(paper):
    taus = sweep_tau(compute_kinship(paper))
    assert taus.loc[0.1, ["pairs_kept", "models_left"]].tolist() == [119, 16]
    assert taus.loc[0.9, ["pairs_kept", "models_left"]].tolist() == [45, 14]
    assert (taus["pairs_kept"].diff().dropna() <= 0).all()


def test_sensitivity(paper):
    result = compute_sensitivity(paper, build_sets(16, 4, np.random.default_rng(0)), 0.1)
    shares = result.set_index(["variant", "strategy"])["sets_changed"]
    assert result["variant"].nunique() == 12  # the paper's, raw, six benchmarks left out, Pearson, 3 measures
    assert (shares["as in the paper"] == 0).all()
    assert shares["Euclidean, not cosine", "k_score"] == 0  # K_score looks at no similarity but tau
    assert shares["without HellaSwag", "k_sim"] == pytest.approx(0.47, abs=0.005)
    overall = result.set_index(["variant", "strategy"])["overall"]
    assert overall["without IFEval", "k_sim"] == "Vicuna-33b > UltraLM-13b"


def test_matched_tau_drops_as_many():
    values = np.array([0.9, 0.1, 0.5, 0.3])
    assert (values < match_tau(values, 2)).sum() == 2
    assert match_tau(values, 4) == np.inf


def test_mantel_r_is_pearsons_and_p_counts_permutations():
    rng = np.random.default_rng(0)
    values = pd.DataFrame(rng.random((8, 3)))
    gaps, size = compute_distance(values), pd.DataFrame(np.abs(np.subtract.outer(np.arange(8), np.arange(8))))
    upper = np.triu_indices(8, k=1)
    result = compute_mantel(gaps, size.astype(float), rng, 5000)
    assert result["r"] == pytest.approx(np.corrcoef(gaps.to_numpy()[upper], size.to_numpy()[upper])[0, 1])
    assert 0.01 < result["p"] <= 1
    assert compute_mantel(size.astype(float), size.astype(float), rng, 999)["p"] <= 0.002


def test_permutations_that_give_the_same_table_count_against_it():
    gaps = compute_distance(pd.DataFrame({"x": [0.0, 0.5, 1.0]}))  # reversed, no distance changes
    assert compute_mantel(gaps, gaps, np.random.default_rng(0), 5000)["p"] == pytest.approx(1 / 3, abs=0.03)


def test_mantel_shows_what_it_says_it_can_at_the_corrected_level():
    rng, n_tests = np.random.default_rng(0), 10
    x = rng.random((30, 1))
    gaps = compute_distance(pd.DataFrame(x))
    noise = pd.DataFrame(np.abs(np.subtract.outer(*[rng.random(30)] * 2)))
    alone, family = (compute_mantel(gaps, noise, np.random.default_rng(1), 9999, n) for n in (1, n_tests))
    assert family["detectable"] > alone["detectable"] and family["high"] > alone["high"]
    shown, level = 0, 0.05 / n_tests
    for _ in range(300):  # factors whose true r is what would show: 8 in 10 are
        other = np.abs(np.subtract.outer(*[rng.random(30)] * 2))
        r = family["detectable"]
        standard = [(part - part.mean()) / part.std() for part in (gaps.to_numpy(), other)]
        mixed = pd.DataFrame(r * standard[0] + np.sqrt(1 - r**2) * standard[1])
        shown += compute_mantel(gaps, mixed, rng, 999)["p"] <= level
    assert 0.7 <= shown / 300 <= 0.95, shown / 300
    close = _judge({"r": 0.01, "p": 0.9, "p_holm": 1.0, "low": -0.2, "high": 0.22, "detectable": 0.3,
                    "factor": "size difference"})  # fmt: skip
    assert close == "no effect larger than 0.3"


def test_unknown_developer_is_neither_alike_nor_unlike():
    facts = pd.DataFrame({"developer": ["a", "a", None, "b"], "family": None, "size_b": [7, 70, np.nan, 7]})
    factors = build_factors(facts)
    assert factors["same developer"].iloc[2].isna().all() and factors["same developer"].iloc[0, 1] == 0
    assert factors["size difference"].iloc[0, [1, 3]].tolist() == pytest.approx([1, 0])
    gaps = compute_distance(pd.DataFrame({"x": [0.0, 0.1, 0.5, 0.9]}))
    assert compute_mantel(gaps, factors["same developer"], np.random.default_rng(0), 99)["n_models"] == 3


def test_mantel_effect_is_the_difference_in_standard_deviations():
    gaps = compute_distance(pd.DataFrame({"x": [0.0, 0.1, 0.5, 0.9, 1.0]}))
    facts = pd.DataFrame({"developer": list("aabbb"), "family": None, "size_b": np.nan})
    factor = build_factors(facts)["same developer"]
    upper = np.triu_indices(5, k=1)
    x, y = gaps.to_numpy()[upper], factor.to_numpy()[upper]
    result = compute_mantel(gaps, factor, np.random.default_rng(0), 99)
    assert result["effect"] == pytest.approx((x[y == 1].mean() - x[y == 0].mean()) / x.std())
    assert result["n_alike"] == 4


def test_models_whose_fact_is_unknown_are_left_out_and_counted(paper):
    result = compute_mantel_table(paper, "rmsd", np.random.default_rng(0), 2000).set_index(["group", "factor"])
    assert result.loc[("total", "size difference"), "n_models"] == 13  # GPT-4, GPT-3.5, Bard: not published
    assert result.loc[("total", "same developer"), "n_alike"] == 7
    assert result.loc[("total", "same family"), "verdict"] == "yes"
    assert result.loc[("knowledge", "same developer"), "verdict"].startswith("cannot tell")
    assert len(result) == 12


def test_both_distances_are_tested_and_corrected_together(paper):
    both = compute_mantel_table(paper, ("rmsd", "cosine"), np.random.default_rng(0), 9999)
    assert len(both) == 21  # no cosine on the one benchmark of instruction following
    found = set(both.loc[both["verdict"] == "yes", ["distance", "group", "factor"]].itertuples(index=False, name=None))
    assert found == {("rmsd", "total", "same family"), ("cosine", "knowledge", "same family")}
    assert both["p_holm"].min() == pytest.approx(21 * both["p"].min())


def test_mantel_without_any_fact_cannot_tell(paper):
    bare = replace(paper, facts=paper.facts.assign(developer=None, family="x", size_b=np.nan))
    result = compute_mantel_table(bare, "rmsd", np.random.default_rng(0), 99)
    assert result["verdict"].eq("cannot tell: the fact is unknown, or the same for all models").all()


def test_kin_agreement_against_chance():
    nearest = pd.DataFrame({"nearest_kin": list("badc")}, index=list("abcd"))
    labels = pd.Series(["x", "x", "y", None], index=list("abcd"))
    result = compute_kin_agreement(nearest, labels, np.random.default_rng(0))
    assert result["n"] == 2 and result["shared"] == 1  # c and d are out: d's label is unknown
    assert result["expected"] == pytest.approx(1 / 3, abs=0.05)
