"""The spread over seeds: pooled by eye, its verdicts on spreads that are known, and what is not counted."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from karma.results.published import load_published
from karma.results.spread import _describe, build_spread, compute_spread


def make_study(totals, benchmarks=("arc_easy", "ifeval")):
    """A study of runs {(strategy, policy): totals by seed}, whose two benchmarks lie .1 below and above the total."""
    rows = [{"policy": policy, "strategy": strategy, "method": "dpo", "seed": seed, "benchmark": name,
             "value": total + shift}
            for (strategy, policy), own in totals.items() for seed, total in enumerate(own)
            for name, shift in zip(benchmarks, (-0.1, 0.1), strict=True)]  # fmt: skip
    strategies = tuple(dict.fromkeys(strategy for strategy, _ in totals))
    return replace(load_published(), strategies=strategies, benchmarks=benchmarks, results=pd.DataFrame(rows))


def test_the_spread_is_pooled_over_policies_by_eye():
    """(.1^2 + 0 + .1^2) / 2 and 0 / 2 in two policies: a variance of .02 / 4; RLAIF's is .08 / 4, twice the spread."""
    totals = {("k_sim", "p"): [0.3, 0.4, 0.5], ("k_sim", "q"): [0.7, 0.7, 0.7],
              ("rlaif", "p"): [0.2, 0.4, 0.6], ("rlaif", "q"): [0.1, 0.1, 0.1]}  # fmt: skip
    found = compute_spread(make_study(totals))
    own = found.loc[("dpo", "k_sim")]
    assert (own["n"], own["spread"], own["ratio"]) == pytest.approx((6, 0.005**0.5, 0.5))
    assert found.loc[("dpo", "rlaif"), "spread"] == pytest.approx(0.02**0.5)
    assert np.isnan(found.loc[("dpo", "rlaif"), "ratio"]) and found.loc[("dpo", "rlaif"), "verdict"] == ""
    # chi-square's quantiles of 4 degrees of freedom, .4844 and 11.1433; F's of 4 and 4, 9.6045 and its inverse
    assert (own["low"], own["high"]) == pytest.approx(((0.02 / 11.1433) ** 0.5, (0.02 / 0.4844) ** 0.5), rel=1e-4)
    assert (own["ratio_low"], own["ratio_high"]) == pytest.approx(
        ((0.25 / 9.6045) ** 0.5, (0.25 * 9.6045) ** 0.5), rel=1e-4
    )
    assert own["verdict"] == "cannot tell with 6 trainings"


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(0.5, "supported"), (2.0, "contradicted"), (1.0, "no difference larger than 0.1"), (1.03, "no difference")],
)
def test_a_known_spread_gets_its_verdict(factor, verdict):
    draws = np.random.default_rng(0).normal(size=3000) * 0.01
    found = compute_spread(make_study({("rlaif", "p"): 0.5 + draws, ("delta", "p"): 0.5 + factor * draws[::-1]}))
    assert found.loc[("dpo", "delta"), "verdict"].startswith(verdict)
    assert found.loc[("dpo", "delta"), "ratio"] == pytest.approx(factor)


def test_levels_are_held_where_nothing_differs():
    """Of 2,000 studies of two policies and four seeds, alike in truth, one in twenty is called different."""
    draws = np.random.default_rng(1).normal(0.5, 0.01, (2000, 2, 2, 4))  # study, data set, policy, seed
    variances = draws.var(axis=3, ddof=1).mean(axis=2)
    told = sum(_describe(own, 6, 8, (other, 6, 8))["p"] < 0.05 for own, other in variances)
    assert 0.04 < told / 2000 < 0.06


def test_what_was_trained_once_or_lacks_a_benchmark_has_no_spread():
    study = make_study({("rlaif", "p"): [0.4, 0.5], ("k_sim", "p"): [0.4], ("delta", "p"): [0.4, 0.6]})
    gone = (
        (study.results["strategy"] == "delta") & (study.results["seed"] == 1) & (study.results["benchmark"] == "ifeval")
    )
    found = compute_spread(replace(study, results=study.results[~gone]))
    assert list(found.index) == [("dpo", "rlaif")]
    assert build_spread(load_published()) == []


def test_policies_that_never_differ_spread_by_nothing_and_are_not_compared():
    found = compute_spread(make_study({("rlaif", "p"): [0.5, 0.5], ("k_sim", "p"): [0.4, 0.6]}))
    assert found.loc[("dpo", "rlaif"), "spread"] == 0 and np.isnan(found.loc[("dpo", "k_sim"), "ratio"])
    (table,) = build_spread(make_study({("rlaif", "p"): [0.5, 0.5], ("k_sim", "p"): [0.4, 0.6]}))
    assert table.frame.index.tolist() == [("dpo", "RLAIF"), ("dpo", "K_sim")]
