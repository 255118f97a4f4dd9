"""Win rates: verdicts by eye, identities, Bradley-Terry, length control against other computations and published values."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import spearmanr

from karma.labels.length_control import PRIOR_SD, control_length
from karma.labels.pairwise import read_reply
from karma.labels.ratings import compute_ratings
from karma.labels.win_rates import VERDICTS, combine_orders, compute_win_rates, name_verdicts
from karma.statistics.intervals import compute_mean, compute_prompt_share

FREE = {"calls": 0, "prompt_tokens": 0, "seconds": 0.0}


def build_verdicts(p_first, a="x", b="y", tie=0.02):
    """Verdicts of prompts p0, p1, ...: (p_first with a's response first, p_first with b's first), None: unread."""
    rows = [(f"p{k}", a, b, order, np.nan if p is None else p) for k, both in enumerate(p_first)
            for order, p in zip(("ab", "ba"), both, strict=True)]  # fmt: skip
    table = pd.DataFrame(rows, columns=[name for name in VERDICTS if name not in ("verdict", "reply")])
    return table.assign(verdict=name_verdicts(table["p_first"].to_numpy(float), tie), reply=None)[VERDICTS]


BY_EYE = [  # x first, y first, x's preference, tie, consistent, unread
    ((1.0, 0.0), 1.0, False, True, 0),  # x both times
    ((0.0, 1.0), 0.0, False, True, 0),  # y both times
    ((1.0, 1.0), 0.5, True, False, 0),  # whoever is first
    ((0.5, 0.5), 0.5, True, True, 0),  # a tie both times
    ((0.9, 0.3), 0.8, False, True, 0),
    ((0.6, 0.5), 0.55, False, False, 0),  # x, then a tie
    ((0.51, 0.50), 0.505, True, True, 0),  # within the band of .02
    ((None, 0.0), np.nan, False, False, 1),
    ((None, None), np.nan, False, False, 2),
]  # fmt: skip


def test_both_orders_are_put_together_as_by_eye():
    found = combine_orders(build_verdicts([row[0] for row in BY_EYE]), tie=0.02)
    assert found["preference"].tolist() == pytest.approx([row[1] for row in BY_EYE], nan_ok=True)
    assert found[["is_tie", "is_consistent", "n_unread"]].values.tolist() == [list(row[2:]) for row in BY_EYE]


def test_a_row_of_win_rates_by_eye():
    verdicts = build_verdicts([row[0] for row in BY_EYE])
    lengths = {name: {f"p{k}": 100 for k in range(len(BY_EYE))} for name in "xy"}
    cost = {"calls": 18, "prompt_tokens": None, "seconds": 2.0}
    (row,) = compute_win_rates(combine_orders(verdicts, 0.02), lengths, {("x", "y"): cost}).to_dict("records")
    assert (row["n_prompts"], row["n_judged"], row["n_ties"], row["n_unread"]) == (9, 7, 3, 3)
    assert row["win_rate"] == pytest.approx((1 + 0 + 0.5 + 0.5 + 0.8 + 0.55 + 0.505) / 7)
    assert row["consistency"] == pytest.approx(5 / 7)
    assert (row["judge_calls"], row["prompt_tokens"], row["seconds"]) == (18, None, 2.0)
    assert 0 < row["low"] < row["win_rate"] < row["high"] < 1


def test_no_readable_verdict_is_no_rate():
    lengths = {name: {"p0": 1} for name in "xy"}
    (row,) = compute_win_rates(
        combine_orders(build_verdicts([(None, 1.0)]), 0.02), lengths, {("x", "y"): FREE}
    ).to_dict("records")
    assert np.isnan([row[name] for name in ("win_rate", "low", "length_controlled", "consistency")]).all()
    assert (row["n_prompts"], row["n_judged"], row["n_unread"]) == (1, 0, 1)


@pytest.mark.parametrize(("reply", "p_first"), [
    ("A", 1.0), ("(B)", 0.0), ("**B**", 0.0), ("Response A", 1.0), ("the answer is (a).", 1.0), ("Response B is better.", 0.0),
    ("Response A is clearly better than Response B.", 1.0), ("Response B is the better response, since it is right.", 0.0),
    ("Both have merit. The answer is (B)", 0.0), ("<think>the answer is (A)</think>The answer is (B).", 0.0),
    ("Response A is not better.", np.nan), ("A or B", np.nan), ("They are equally good.", np.nan), ("", np.nan), ("The answer is (C).", np.nan),
])  # fmt: skip
def test_replies_are_read_as_a_person_would(reply, p_first):
    assert read_reply(reply) == pytest.approx(p_first, nan_ok=True)


def test_a_share_of_prompts_is_the_mean_with_the_mean_s_error():
    hits = [1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 1.0, 1.0]
    found, mean = compute_prompt_share(hits), compute_mean(hits)
    assert found["value"] == mean["value"] and found["low"] < mean["value"] < found["high"]
    twice = compute_prompt_share(np.repeat(hits, 1) * 2, [2] * len(hits))  # two comparisons a prompt that always agree
    assert twice == pytest.approx(found), "prompts are the unit, however many comparisons they hold"


# --- identities -----------------------------------------------------------------------------------------------------

shares = st.integers(0, 20).map(lambda n: n / 20)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(shares, shares, st.integers(-900, 900)), min_size=3, max_size=25))
def test_swapping_the_models_mirrors_every_rate(rows):
    p_first, gaps = [row[:2] for row in rows], [row[2] for row in rows]
    lengths = {"x": {f"p{k}": 1000 + gap for k, gap in enumerate(gaps)}, "y": {f"p{k}": 1000 for k in range(len(rows))}}
    comparisons = combine_orders(build_verdicts(p_first), 0.02)
    swapped = combine_orders(build_verdicts([(b, a) for a, b in p_first], "y", "x"), 0.02)
    (one,) = compute_win_rates(comparisons, lengths, {("x", "y"): FREE}).to_dict("records")
    (other,) = compute_win_rates(swapped, lengths, {("y", "x"): FREE}).to_dict("records")
    for value, low, high in (("win_rate", "low", "high"), ("length_controlled", "lc_low", "lc_high")):
        mirrored = [1 - other[value], 1 - other[high], 1 - other[low]]
        assert [one[value], one[low], one[high]] == pytest.approx(mirrored, abs=1e-6, nan_ok=True)
    assert (one["consistency"], one["n_ties"]) == (other["consistency"], other["n_ties"])


@settings(max_examples=40, deadline=None)
@given(st.lists(shares, min_size=2, max_size=30), st.lists(st.floats(-3, 3), min_size=30, max_size=30))
def test_length_control_is_the_plain_rate_where_lengths_are_equal(preference, difficulty):
    found, plain = (
        control_length(preference, [0] * len(preference), difficulty[: len(preference)]),
        compute_prompt_share(preference),
    )
    assert found["value"] == pytest.approx(plain["value"], abs=1e-7)
    alone = control_length(preference, [0] * len(preference))
    assert [alone[k] for k in ("value", "low", "high")] == pytest.approx(
        [plain[k] for k in ("value", "low", "high")], abs=1e-6
    )


# --- length control -------------------------------------------------------------------------------------------------


def draw_preferences(generator, n, strength, length_effect, difficulty_effect):
    gap, hard = generator.normal(300, 500, n).round(), generator.normal(0, 1, n)
    log_odds = strength + length_effect * np.tanh(gap / gap.std(ddof=1)) + difficulty_effect * hard
    return (generator.random(n) < expit(log_odds)).astype(float), gap, hard


def test_length_control_agrees_with_an_independent_computation():
    """The penalised likelihood maximised by scipy, and the interval by leaving out each prompt."""
    own, gap, hard = draw_preferences(np.random.default_rng(3), 150, -0.4, 1.5, 0.8)

    def compute(keep):
        y, length = own[keep], np.tanh(gap[keep] / gap[keep].std(ddof=1))
        difficulty = (hard[keep] - hard[keep].mean()) / hard[keep].std()

        def lose(b):
            z = b[0] + b[1] * length + b[2] * difficulty
            return np.logaddexp(0, z).sum() - y @ z + (b[1] ** 2 + b[2] ** 2) / 2 / PRIOR_SD**2

        b = minimize(lose, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x
        return expit(b[0] + b[2] * difficulty).mean(), b[1]

    found, (value, effect) = control_length(own, gap, hard), compute(np.arange(150))
    assert (found["value"], found["length_effect"]) == pytest.approx((value, effect), abs=1e-5)
    without = np.array([compute(np.delete(np.arange(150), k))[0] for k in range(150)])
    error = np.sqrt(149 / 150 * ((without - without.mean()) ** 2).sum())
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.976 * error, rel=0.06)


def test_length_control_recovers_what_length_added():
    """Longer responses are preferred for their length alone: the plain rate is not .5, the controlled one is."""
    generator, covered, controlled, plain = np.random.default_rng(0), 0, [], []
    for _ in range(100):
        own, gap, _ = draw_preferences(generator, 300, 0.0, 2.0, 0.0)
        found = control_length(own, gap)
        controlled.append(found["value"])
        plain.append(own.mean())
        covered += found["low"] <= 0.5 <= found["high"]
    assert np.mean(plain) > 0.6
    assert np.mean(controlled) == pytest.approx(0.5, abs=0.01)
    assert covered >= 89, "of 100 intervals at 95 %; fewer come once in 200 runs"


def test_one_length_difference_everywhere_cannot_be_told_from_the_models():
    assert np.isnan(control_length([1.0, 0.0, 1.0], [50, 50, 50])["value"])
    assert control_length([1.0, 1.0, 1.0], [50, 10, 90])["value"] == 1.0


# AlpacaEval 2's leaderboard, all 805 prompts, percent: win rate, length-controlled win rate
# (github.com/tatsu-lab/alpaca_eval, data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv at 01f3cb2)
PUBLISHED = {
    "OpenHermes-2.5-Mistral-7B": (10.340, 16.249), "vicuna-7b-v1.5": (4.797, 7.617), "vicuna-7b-v1.3": (4.643, 7.156),
    "gemma-7b-it": (6.937, 10.426), "gemma-2b-it": (3.402, 5.437), "phi-2": (2.350, 4.399),
    "falcon-40b-instruct": (3.343, 5.608), "falcon-7b-instruct": (2.147, 4.037),
}  # fmt: skip
BASELINE_LENGTH = 2049  # characters, the baseline's mean on that leaderboard


def test_recorded_judgments_against_the_leaderboard(real_data):
    """What agreement there is, measured: the sample has 200 of the 805 prompts, and its baseline answers are left empty.

    So the baseline's length on a prompt is stood in for by the mean of the ten models', scaled to its published mean.
    These 200 prompts are harder than all 805: the plain rates lie 1.9 points below the published ones on average, and
    the controlled ones 2.5, where the plain rates lie 4.7 below the published controlled ones.
    """
    results, preference, lengths = real_data / "alpaca_eval_judged" / "results", [], {}
    for folder in sorted(results.iterdir()):
        for row in json.loads((folder / "weighted_alpaca_eval_gpt4_turbo" / "annotations.json").read_text()):
            value = np.nan if row["preference"] is None else row["preference"] - 1
            preference.append((row["instruction"], folder.name, "baseline", value))
        outputs = json.loads((folder / "model_outputs.json").read_text())
        lengths[folder.name] = {row["instruction"]: len(row["output"]) for row in outputs}
    mean = pd.DataFrame(lengths).mean(axis=1)
    lengths["baseline"] = (mean * BASELINE_LENGTH / mean.mean()).to_dict()
    frame = pd.DataFrame(preference, columns=["prompt_id", "model_a", "model_b", "preference"])
    frame = frame.assign(is_tie=False, is_consistent=True, n_unread=0)
    costs = {(name, "baseline"): FREE for name in lengths}
    found = compute_win_rates(frame, lengths, costs).set_index("model_a").loc[list(PUBLISHED)]
    plain, controlled = 100 * found["win_rate"].to_numpy(), 100 * found["length_controlled"].to_numpy()
    published, adjusted = np.array(list(PUBLISHED.values())).T
    assert np.abs(plain - published).mean() == pytest.approx(1.89, abs=0.01)
    assert np.abs(controlled - adjusted).mean() < 2.6 < np.abs(plain - adjusted).mean() - 2
    assert (controlled > plain).all(), "all of them write less than the baseline"
    assert spearmanr(controlled, adjusted).statistic > 0.85


# --- Bradley-Terry --------------------------------------------------------------------------------------------------


def build_comparisons(own, prompts, models):
    return pd.DataFrame({"prompt_id": prompts, "model_a": [m[0] for m in models], "model_b": [m[1] for m in models],
                         "preference": own})  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(shares, min_size=2, max_size=30).filter(lambda own: 0 < sum(own) < len(own)))
def test_ratings_of_two_models_are_their_win_rate(own):
    found = compute_ratings(build_comparisons(own, range(len(own)), [("x", "y")] * len(own))).set_index("model")
    assert expit(found.loc["x", "rating"] - found.loc["y", "rating"]) == pytest.approx(np.mean(own), abs=1e-6)
    assert found["rating"].sum() == pytest.approx(0, abs=1e-9)
    assert found.loc["x", "win_rate"] == pytest.approx(np.mean(own))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=6))
def test_ratings_recover_known_strengths(strengths):
    """Preferences that are exactly what the strengths make them give the strengths back."""
    names = [f"m{k}" for k in range(len(strengths))]
    pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    own = [expit(strengths[a] - strengths[b]) for a, b in pairs for _ in range(2)]
    found = compute_ratings(
        build_comparisons(own, [0, 1] * len(pairs), [(names[a], names[b]) for a, b in pairs for _ in range(2)])
    )
    ratings = found.set_index("model")["rating"]
    expected = np.array(strengths) - np.mean(strengths)
    assert ratings.loc[names].to_numpy() == pytest.approx(expected, abs=1e-4)
    assert found["rating"].is_monotonic_decreasing


def test_a_comparison_repeated_on_its_prompt_tells_nothing_new():
    own, n = [1.0, 0.0, 1.0, 1.0, 0.5, 1.0, 0.0, 1.0], 8
    once = compute_ratings(build_comparisons(own, range(n), [("x", "y")] * n))
    again = compute_ratings(build_comparisons(own * 4, [*range(n)] * 4, [("x", "y")] * 4 * n))
    for end in ("rating", "low", "high"):
        assert again[end].to_numpy() == pytest.approx(once[end].to_numpy(), abs=1e-4)


def test_intervals_of_ratings_hold_the_truth_though_prompts_are_shared():
    """A prompt on which one model is good moves all its comparisons at once: clustered by prompt, .95 of intervals hold."""
    generator, truth, covered = np.random.default_rng(1), np.array([0.5, 0.0, -0.5]), np.zeros(3)
    pairs = list(combinations(range(3), 2))
    many = generator.normal(0, 1, (100_000, 3))
    centre = np.array(
        [[expit(truth[a] - truth[b] + many[:, a] - many[:, b]).mean() for b in range(3)] for a in range(3)]
    )
    marginal = [(a, b) for a, b in pairs for _ in range(2)]
    target = compute_ratings(
        build_comparisons([centre[a, b] for a, b in marginal], [0, 1] * 3, [(f"m{a}", f"m{b}") for a, b in marginal])
    )
    target = target.set_index("model")["rating"].loc[["m0", "m1", "m2"]].to_numpy()
    for _ in range(200):
        own_of_prompt = generator.normal(0, 1, (80, 3))
        rows = [(p, f"m{a}", f"m{b}", expit(truth[a] - truth[b] + own_of_prompt[p, a] - own_of_prompt[p, b]))
                for p in range(80) for a, b in pairs]  # fmt: skip
        frame = pd.DataFrame(rows, columns=["prompt_id", "model_a", "model_b", "preference"])
        found = compute_ratings(frame).set_index("model").loc[["m0", "m1", "m2"]]
        covered += (found["low"].to_numpy() <= target) & (target <= found["high"].to_numpy())
    assert (covered / 200).min() > 0.89, covered


def test_a_model_that_always_wins_has_no_rating():
    own = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    models = [("x", "y"), ("x", "y"), ("x", "z"), ("x", "z"), ("y", "z"), ("y", "z")]
    found = compute_ratings(build_comparisons(own, [0, 1] * 3, models)).set_index("model")
    assert found["rating"].isna().all() and found.loc["x", "win_rate"] == 1.0
