"""Do 95 % intervals hold what they say? Studies with a known truth, simulated at a fixed seed.

The grid: n of 50, 100 and 400 units, a true share of .2 to .8, 2,000 simulations a cell (S_pref and kinship: twelve
cells of 167, 2,004 in all; means over trainings: 36 of 60; null claims: 6,000 studies). Approximate intervals are right, on the average over the grid,
where they hold the truth in 93 to 97 % of the simulations; a family of null claims where at most 6 % of the studies
support or contradict anything (the upper end of that share's own interval).
"""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from karma.kinship.similarity import compute_kinship
from karma.kinship.uncertainty import compute_pair_uncertainty, compute_s_pref_intervals, draw_tables
from karma.results.estimates import Estimate
from karma.scores.normalise import compute_s_pref
from karma.scores.table import ScoreTable, load_benchmarks
from karma.statistics.intervals import compute_mean, compute_two_way, compute_wilson
from karma.statistics.verdicts import adjust_holm
from karma.training.held_out import summarise_margins

N_SIMULATIONS = 2000
GRID = list(product([50, 100, 400], [0.2, 0.35, 0.5, 0.65, 0.8]))


def holds(low, high, truth):
    return float(np.mean((np.asarray(low) <= truth) & (truth <= np.asarray(high))))


def check(coverages, low=0.93, high=0.97):
    assert low <= np.mean(coverages) <= high, f"mean coverage {np.mean(coverages):.3f}: {np.round(coverages, 3)}"
    assert min(coverages) > 0.9, f"a cell of the grid has {min(coverages):.3f}"


def test_shares():
    rng, found = np.random.default_rng(1), []
    for n, p in GRID:
        bounds = np.array([compute_wilson(k / n, n) for k in range(n + 1)])[rng.binomial(n, p, N_SIMULATIONS)]
        found.append(holds(bounds[:, 0], bounds[:, 1], p))
    check(found)


def test_held_out_pairs():
    rng, found = np.random.default_rng(2), []
    for n, p in GRID:
        intervals = [summarise_margins(torch.tensor(np.where(np.arange(n) < k, 1.0, -1.0)))["interval"]
                     for k in range(n + 1)]  # fmt: skip
        bounds = np.array(intervals)[rng.binomial(n, p, N_SIMULATIONS)]
        found.append(holds(bounds[:, 0], bounds[:, 1], p))
    check(found)


def test_paired_differences():
    """Two policies on the same items: a share p is right before; three answers in ten are drawn anew, .1 better."""
    rng, found = np.random.default_rng(3), []
    for n, p in GRID:
        before, again = rng.random((N_SIMULATIONS, n)) < p, rng.random((N_SIMULATIONS, n)) < 0.3
        after = np.where(again, rng.random((N_SIMULATIONS, n)) < p + 0.1, before)
        means = [compute_mean(row) for row in after.astype(float) - before]
        found.append(holds([m["low"] for m in means], [m["high"] for m in means], 0.3 * 0.1))
    check(found)


def test_means_over_trainings_and_items():
    """Two, three and five trainings on the same items: items and trainings differ, and an answer is partly luck."""
    rng, found, of_items = np.random.default_rng(7), {}, []
    for n_runs, n, spread in product([2, 3, 5], [50, 100, 400], [0.0, 0.05, 0.15, 0.3]):
        held = []
        for _ in range(60):
            latent = 0.2 + rng.normal(0, 0.8, n) + rng.normal(0, spread, (n_runs, 1)) + rng.normal(0, 1, (n_runs, n))
            right, truth = (latent > 0).astype(float), stats.norm.cdf(0.2 / np.sqrt(1 + 0.8**2 + spread**2))
            mean, alone = compute_two_way(right), compute_mean(right.mean(axis=0))
            held.append(mean["low"] <= truth <= mean["high"])
            of_items.append(alone["low"] <= truth <= alone["high"])
        found[n_runs, n, spread] = np.mean(held)
    assert 0.93 <= np.mean(list(found.values())) <= 0.97, found
    assert np.mean(of_items) < 0.9, "intervals of the items alone would do as well"


def draw_clusters(rng, n, p):
    """One to three instructions a prompt, alike within it: the prompt's own share follows a beta distribution."""
    units = rng.integers(1, 4, n)
    return rng.binomial(units, rng.beta(3 * p, 3 * (1 - p), n)), units


def test_clustered_shares():
    rng, wilson, student = np.random.default_rng(4), [], []
    for n, p in GRID:
        bounds, means = [], []
        for _ in range(N_SIMULATIONS):
            right, units = draw_clusters(rng, n, p)
            means.append(compute_mean(right, units))
            bounds.append(compute_wilson(means[-1]["value"], units.sum(), means[-1]["standard_error"]))
        wilson.append(holds(*zip(*bounds, strict=True), p))
        student.append(holds([m["low"] for m in means], [m["high"] for m in means], p))
    check(wilson)
    check(student)


def test_clusters_taken_as_independent_would_not_do():
    rng, found = np.random.default_rng(4), []
    for n, p in GRID:
        pairs = [draw_clusters(rng, n, p) for _ in range(200)]
        bounds = [compute_wilson(right.sum() / units.sum(), units.sum()) for right, units in pairs]
        found.append(holds(*zip(*bounds, strict=True), p))
    with pytest.raises(AssertionError, match="mean coverage"):
        check(found)


BENCHMARKS = ["ifeval", "mmlu_pro", "hellaswag", "arc_easy"]


def make_table(scores, n):
    index = pd.Index([f"model-{k}" for k in range(len(scores))], name="origin_model")
    frame = pd.DataFrame(np.asarray(scores, float), index=index, columns=BENCHMARKS)
    return ScoreTable(frame, load_benchmarks().loc[BENCHMARKS], dict.fromkeys(BENCHMARKS, n), "simulated")


@pytest.mark.heavy  # half a minute
def test_s_pref_and_kinship():
    """Six models of known ability on n items: nearly alike in what they are good at, or less so."""
    rng, s_pref, kinship = np.random.default_rng(5), [], []
    for n, high, apart in product([100, 400], [0.6, 0.8], [0.05, 0.1, 0.2]):
        truth = make_table(np.linspace(0.3, high, 6)[:, None] + rng.uniform(-apart, apart, (6, 4)), n)
        best, cosine = compute_s_pref(truth).to_numpy(), compute_kinship(truth)
        for _ in range(N_SIMULATIONS // 12 + 1):
            seen = make_table(rng.binomial(n, truth.scores) / n, n)
            draws = draw_tables(seen, rng, 200)
            found = compute_s_pref_intervals(seen, draws)
            s_pref.append((found["low"] <= best) & (best <= found["high"]))
            pairs = compute_pair_uncertainty(seen, draws, 0.0)
            own = np.array(
                [cosine.loc[one, other] for one, other in zip(pairs["chosen"], pairs["rejected"], strict=True)]
            )
            kinship.append((pairs["kinship_low"] <= own) & (own <= pairs["kinship_high"]))
    check([np.mean(s_pref)])
    check([np.mean([k.mean() for k in kinship])])


def test_a_family_of_null_claims():
    """Six differences that share a baseline and its items, as RQ2 has them: none is true, few studies claim one."""
    rng, wrong = np.random.default_rng(6), 0
    n_studies = 3 * N_SIMULATIONS
    for k in range(n_studies):
        n, p = GRID[k % len(GRID)]
        ability = rng.random(n) < p
        flips = rng.random((7, n)) < 0.15
        right = np.where(flips, rng.random((7, n)) < p, ability).astype(float)
        found = []
        for strategy in range(6):
            mean = compute_mean(right[strategy] - right[6])
            found.append(Estimate(mean["value"], mean["standard_error"], mean["df"], n, 1, "").p_value)
        wrong += bool((adjust_holm(found) < 0.05).any())
    assert compute_wilson(wrong / n_studies, n_studies)[1] <= 0.06, f"{wrong} of {n_studies} studies claim something"
    assert wrong, "a test that never errs finds nothing"


def test_the_exact_test_of_held_out_pairs():
    for n in (10, 14, 50, 100):
        errs = sum(stats.binom.pmf(k, n, 0.5) for k in range(n + 1) if stats.binomtest(k, n).pvalue < 0.05)
        assert 0 < errs <= 0.05
