"""Alignment potential: every property of the method's definition, by eye and by hypothesis."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from karma.errors import InputError
from karma.potential.margins import (
    RANKINGS,
    build_candidates,
    compute_explicit_margin,
    compute_implicit_margin,
    compute_k,
    compute_potential,
    compute_z,
    select,
)

NUMBERS = st.integers(-400, 400).map(lambda i: i / 8)  # exact in binary, so that ties are ties
POOLS = st.lists(st.tuples(NUMBERS.map(abs), NUMBERS.map(abs)), min_size=2, max_size=30).map(np.array)
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 2.5])


def pool_of(margins, weight=1.0, ids=None):
    ids = ids or [f"{i:02}" for i in range(len(margins))]
    return build_candidates(ids, margins[:, 0], margins[:, 1], weight)


def spread(margins):
    return np.ptp(margins, axis=0).min() > 0


def test_five_pairs_by_eye():
    """Explicit 1..5, implicit against it: the fifth says most and is known least."""
    margins = np.array([[1.0, 5.0], [2.0, 4.0], [3.0, 3.0], [4.0, 2.0], [5.0, 1.0]])
    z = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) / np.sqrt(2)
    pool = pool_of(margins)
    assert pool.potential == pytest.approx(2 * z)
    kept = {metric: select(pool, metric, k=2).tolist() for metric in RANKINGS if metric != "random"}
    assert kept == {"explicit_large": [3, 4], "explicit_small": [0, 1], "implicit_small": [3, 4],
                    "implicit_large": [0, 1], "m_ap": [3, 4], "m_ap_signed": [3, 4]}  # fmt: skip


def test_margins_by_eye():
    logps, lengths = [[-10.0, -30.0], [-30.0, -10.0], [-5.0, -5.0]], [[10, 20], [20, 10], [5, 5]]
    assert compute_implicit_margin(logps, lengths).tolist() == [0.5, 0.5, 0.0]
    assert compute_implicit_margin(logps, lengths, "signed").tolist() == [0.5, -0.5, 0.0]
    reference = [[-12.0, -31.0], [-30.0, -10.0], [-5.0, -6.0]]
    assert compute_implicit_margin(logps, lengths, "dpo", reference, beta=0.5).tolist() == [0.5, 0.0, 0.5]
    assert compute_explicit_margin([[1, 5, 3], [2, 2, 2]]).tolist() == [4, 0]
    assert compute_explicit_margin([[1, 5]], signed=True).tolist() == [-4]


def test_the_dpo_form_is_0_where_policy_and_reference_are_one_and_nothing_becomes_nan():
    logps = np.array([[-10.0, -30.0], [-3.0, -4.0], [-1.0, -9.0]])
    implicit = compute_implicit_margin(logps, np.ones((3, 2)), "dpo", logps)
    assert implicit.tolist() == [0, 0, 0]
    explicit = np.array([0.1, 0.2, 0.4])
    with pytest.warns(UserWarning, match="the implicit margin is the same for all 3 pairs"):
        potential = compute_potential(explicit, implicit, 1.0)
    assert potential.tolist() == compute_z(explicit).tolist()


@pytest.mark.parametrize("values", [[0.1] * 7, [0.0, 0.0], [1e300] * 3, [5.0], [0.1 + 0.2, 0.3]])
def test_no_spread_is_0_with_a_warning(values):
    with pytest.warns(UserWarning, match="says nothing here"):
        assert compute_z(values).tolist() == [0.0] * len(values)


@given(POOLS, WEIGHTS)
def test_mean_variance_and_the_ranking_without_z(margins, weight):
    if not spread(margins):
        return
    explicit, implicit = margins.T
    potential = compute_potential(explicit, implicit, weight)
    correlation = np.corrcoef(explicit, implicit)[0, 1]
    assert abs(potential.mean()) < 1e-9
    assert potential.var() == pytest.approx(1 + weight**2 - 2 * weight * correlation, abs=1e-8)
    unscaled = explicit - weight * explicit.std() / implicit.std() * implicit
    assert potential * explicit.std() == pytest.approx(unscaled - unscaled.mean(), abs=1e-7)


@given(
    POOLS,
    WEIGHTS,
    st.sampled_from([0.125, 3.0, 40.0]),
    st.sampled_from([-7.0, 0.0, 100.0]),
    st.sampled_from([0.25, -2.0]),
)
def test_units_of_scores_and_scale_of_logps_change_nothing(margins, weight, scale, shift, factor):
    scores = np.stack([margins[:, 0], np.zeros(len(margins))], 1)
    logps, lengths = np.stack([margins[:, 1], np.zeros(len(margins))], 1), np.ones((len(margins), 2))
    one = compute_potential(compute_explicit_margin(scores), compute_implicit_margin(logps, lengths), weight)
    other = compute_potential(
        compute_explicit_margin(scale * scores + shift), compute_implicit_margin(factor * logps, lengths), weight
    )
    assert one == pytest.approx(other, abs=1e-9)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=8), st.sampled_from([0.05, 0.5, 2.0]))
def test_at_the_kl_regularised_optimum_nothing_is_left_to_learn(answers, beta):
    """pi* = pi_ref exp(r / beta) / Z: the implicit margin of any pair, in DPO's form, is the explicit one."""
    rewards, logits = np.array(answers).T / 25
    reference = logits - np.logaddexp.reduce(logits)
    optimum = reference + rewards / beta - np.logaddexp.reduce(reference + rewards / beta)
    pairs = np.array([(i, j) for i in range(len(rewards)) for j in range(len(rewards))])
    ones = np.ones(pairs.shape)
    implicit = compute_implicit_margin(optimum[pairs], ones, "dpo", reference[pairs], beta)
    assert implicit == pytest.approx(compute_explicit_margin(rewards[pairs]), abs=1e-9)


@given(POOLS)
def test_the_gap_bounds_what_a_soft_label_can_still_teach(margins):
    """Soft Bradley-Terry: the gradient is at most a quarter of the gap, the excess loss an eighth of its square.

    With w = std(M_pi) / std(M_r) the potential is that gap, but for its mean and unit.
    """
    if not spread(margins):
        return
    explicit, implicit = margins.T / 50  # near 0, where the bounds are tight
    potential = compute_potential(explicit, implicit, implicit.std() / explicit.std())
    gap = potential * explicit.std() + (explicit - implicit).mean()
    m = torch.tensor(implicit, requires_grad=True)
    label = torch.sigmoid(torch.tensor(explicit))
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    loss = cross_entropy(m, label, reduction="none")
    least = cross_entropy(torch.tensor(explicit), label, reduction="none")
    loss.sum().backward()
    assert (np.abs(m.grad.numpy()) <= np.abs(gap) / 4 + 1e-7).all()
    assert ((loss - least).detach().numpy() <= gap**2 / 8 + 1e-7).all()


@given(POOLS, st.data())
def test_absolute_margins_cannot_see_a_swap_and_signed_ones_can(margins, data):
    flips = np.array(data.draw(st.lists(st.booleans(), min_size=len(margins), max_size=len(margins))))
    scores, logps = (
        np.stack([margins[:, 0] + 1, margins[:, 0] * 0], 1),
        np.stack([margins[:, 1], -margins[:, 1] - 1], 1),
    )
    swapped = [np.where(flips[:, None], x[:, ::-1], x) for x in (scores, logps)]
    ones = np.ones((len(margins), 2))
    for signed in (False, True):
        form = "signed" if signed else "absolute"
        before = compute_explicit_margin(scores, signed), compute_implicit_margin(logps, ones, form)
        after = compute_explicit_margin(swapped[0], signed), compute_implicit_margin(swapped[1], ones, form)
        same = np.array_equal(before[0], after[0]) and np.array_equal(before[1], after[1])
        assert same == (not signed or not flips.any())


@given(POOLS, st.data())
def test_weight_0_is_explicit_and_a_huge_weight_is_implicit(margins, data):
    if not spread(margins):
        return
    k = data.draw(st.integers(1, len(margins)))
    assert (
        select(pool_of(margins, 0.0), "m_ap", k=k).tolist() == select(pool_of(margins), "explicit_large", k=k).tolist()
    )
    implicit = np.sort(margins[:, 1])
    if k == len(margins) or implicit[k - 1] < implicit[k]:  # no tie at the border
        assert (
            select(pool_of(margins, 1e5), "m_ap", k=k).tolist()
            == select(pool_of(margins), "implicit_small", k=k).tolist()
        )


@given(POOLS, WEIGHTS, st.data())
def test_no_selected_pair_is_dominated_by_an_unselected_one(margins, weight, data):
    k = data.draw(st.integers(1, len(margins)))
    kept = select(pool_of(margins, weight), "m_ap", k=k)
    left = np.setdiff1d(np.arange(len(margins)), kept)
    for i in left:
        assert not ((margins[i, 0] > margins[kept, 0]) & (margins[i, 1] < margins[kept, 1])).any()


@given(POOLS, st.sampled_from(sorted(RANKINGS)), st.data())
def test_fewer_lie_inside_more_and_shuffling_changes_nothing(margins, metric, data):
    k1, k2 = sorted(data.draw(st.tuples(st.integers(1, len(margins)), st.integers(1, len(margins)))))
    ids = [f"{i:02}" for i in range(len(margins))]
    kept = {ids[i] for i in select(pool_of(margins), metric, k=k2, seed=3)}
    assert {ids[i] for i in select(pool_of(margins), metric, k=k1, seed=3)} <= kept
    order = data.draw(st.permutations(range(len(margins))))
    shuffled = pool_of(margins[order], ids=[ids[i] for i in order])
    assert {ids[order[i]] for i in select(shuffled, metric, k=k2, seed=3)} == kept


@pytest.mark.parametrize("metric", RANKINGS)
def test_all_of_any_metric_is_the_pool_in_its_own_order(metric):
    margins = np.random.default_rng(0).random((40, 2))
    assert select(pool_of(margins), metric, ratio=1.0).tolist() == list(range(40))


def test_parts_are_not_the_whole():
    margins = np.array([[9.0, 0.0], [8.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    whole = select(pool_of(margins), "m_ap", ratio=0.5).tolist()
    parts = [*select(pool_of(margins[:2]), "m_ap", ratio=0.5), *(2 + select(pool_of(margins[2:]), "m_ap", ratio=0.5))]
    assert whole == [0, 1] and parts == [0, 2]


def test_ties_fall_to_the_smaller_row_id_and_the_lot_to_the_seed():
    margins = np.ones((6, 2))
    ids = ["f", "e", "d", "c", "b", "a"]
    assert select(pool_of(margins, ids=ids), "explicit_large", k=2).tolist() == [4, 5]
    lots = {tuple(select(pool_of(margins, ids=ids), "random", k=3, seed=s)) for s in range(20)}
    assert len(lots) > 5
    assert tuple(select(pool_of(margins, ids=ids), "random", k=3, seed=0)) in lots


def test_what_has_no_margin_is_counted_and_never_chosen():
    explicit, implicit = np.array([1.0, np.nan, 2.0, np.inf, 3.0]), np.array([1.0, 1.0, np.nan, 1.0, 2.0])
    pool = build_candidates(list("abcde"), explicit, implicit, 1.0, ["", "", "", "", "identical_responses"])
    assert pool.counts == {"no_explicit_margin": 2, "no_implicit_margin": 1, "identical_responses": 1}
    assert np.isnan(pool.potential).tolist() == [False, True, True, True, True]
    assert select(pool, "m_ap", ratio=1.0).tolist() == [0]


@given(st.integers(1, 3000), st.integers(1, 100))
@example(100, 29)  # 0.29 * 100 is 28.999999999999996
@settings(max_examples=200)
def test_a_ratio_keeps_the_floor(n, percent):
    expected = n * percent // 100
    if expected:
        assert compute_k(n, ratio=percent / 100) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select(pool_of(np.ones((3, 2))), "m_app", k=1), "metric 'm_app' is unknown: choose from random, explicit"),
        (lambda: compute_k(9, ratio=0.0), "ratio is 0.0: expected a share above 0, up to 1"),
        (lambda: compute_k(9, ratio=0.1), "0.1 of them cannot be selected from 9 candidate pairs: expected 1 to 9"),
        (lambda: compute_k(9, k=10), "k = 10 cannot be selected from 9 candidate pairs"),
        (lambda: compute_k(9), "give either a ratio or k"),
        (lambda: compute_potential([1.0], [1.0], -1.0), "weight is -1.0: expected a finite number of at least 0"),
        (lambda: compute_potential([1.0], [1.0], float("nan")), "weight is nan"),
        (lambda: compute_potential([1.0, 2.0], [1.0], 1.0), "2 explicit and 1 implicit margins"),
        (lambda: compute_z([1.0, float("nan")]), "1 of 2 values are not finite"),
        (lambda: compute_implicit_margin([[0, 0]], [[1, 1]], "relative"), "choose from absolute, signed, dpo"),
        (lambda: compute_implicit_margin([[0, 0]], [[1, 1]], "dpo"), "needs a reference model's log-probabilities"),
        (lambda: compute_explicit_margin([[1.0]]), r"expected \(prompts, 2 or more\)"),
    ],
)  # fmt: skip
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(InputError, match=message):
        call()
