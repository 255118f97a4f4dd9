"""Kinship: golden cosines, choices of the strategies, and what must not depend on order or unit."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from karma.errors import InputError
from karma.files.places import find_project_root
from karma.kinship.copies import compute_copies, describe_copies
from karma.kinship.similarity import (
    KinshipByPair,
    compute_choices,
    compute_cosine,
    compute_kinship,
    compute_nearest_kin,
    list_pairs,
)
from karma.scores.normalise import compute_normalized, compute_s_pref
from karma.scores.read import load_score_table
from karma.scores.table import MEASURES, ScoreTable, load_benchmarks, set_kinship
from karma.study.experiment import load_experiment

HIGHEST_COSINES = [
    ("Llama-2-7b-chat", "Llama-2-13b-chat", 0.9961), ("GPT-4", "bard", 0.9936),
    ("Llama-2-13b-chat", "Llama-2-70b-chat", 0.9905), ("Alpaca-7b", "MPT-30b-chat", 0.9901),
    ("GPT-3.5-turbo", "UltraLM-13b", 0.9883), ("GPT-3.5-turbo", "Vicuna-33b", 0.9860),
    ("WizardLM-70b", "Vicuna-33b", 0.9855), ("Llama-2-7b-chat", "WizardLM-13b", 0.9854),
    ("Llama-2-7b-chat", "Falcon-40b-instruct", 0.9842), ("GPT-4", "GPT-3.5-turbo", 0.9834),
]  # fmt: skip
BENCHMARKS = load_benchmarks()
VALUES = arrays(
    float,
    st.tuples(st.integers(2, 7), st.integers(1, 6)),
    elements=st.integers(0, 100).map(lambda i: i / 100),
)


@pytest.fixture(scope="module")
def paper() -> ScoreTable:
    return load_score_table("paper")


def build(values) -> ScoreTable:
    values = np.asarray(values, dtype=float)
    columns = list(BENCHMARKS.index[: values.shape[1]])
    index = pd.Index([f"m{i}" for i in range(len(values))], name="origin_model")
    return ScoreTable(pd.DataFrame(values, index=index, columns=columns), BENCHMARKS.loc[columns])


def usable(values) -> bool:
    return bool((np.ptp(values, axis=0) > 0).all())


@pytest.mark.parametrize(("one", "other", "cosine"), HIGHEST_COSINES)
def test_golden_cosines(paper, one, other, cosine):
    kinship = compute_kinship(paper)
    assert kinship.loc[one, other] == pytest.approx(cosine, abs=5.1e-5)
    assert kinship.loc[one, other] == kinship.loc[other, one]


def test_the_ten_highest_are_these_in_this_order(paper):
    top = list_pairs(paper, tau=0.1).nlargest(10, "kinship")
    found = [{a, b} for a, b in zip(top["chosen"], top["rejected"], strict=True)]
    assert found == [{a, b} for a, b, _ in HIGHEST_COSINES]


def test_tau_removes_one_pair_of_120(paper):
    pairs = list_pairs(paper, tau=0.1)
    assert len(pairs) == 120
    removed = pairs[~pairs["eligible"]]
    assert removed[["chosen", "rejected"]].to_numpy().tolist() == [["Pythia-12b", "Starchat"]]
    assert removed["kinship"].item() == pytest.approx(0.021, abs=5e-4)


def test_raw_scores_would_remove_nothing(paper):
    as_printed = paper.scores * 100
    as_printed["mmlu_pro"] /= 100  # the facts' .745 is of the printed units, in which MMLU-Pro hardly counts
    assert compute_cosine(as_printed).to_numpy().min() == pytest.approx(0.745, abs=5e-4)
    assert compute_cosine(paper.scores).to_numpy().min() == pytest.approx(0.752, abs=5e-4)


@pytest.mark.parametrize("variant", ["paper", "paper_four_digit"])
def test_choices_over_all_16(variant):
    assert compute_choices(load_score_table(variant), tau=0.1) == {
        "k_score": ("GPT-4", "bard"),
        "k_sim": ("Llama-2-13b-chat", "Llama-2-7b-chat"),
        "k_score_sim": ("GPT-4", "bard"),
    }  # fmt: skip


def test_choices_by_eye():
    # normalised rows: m0 (1, 0), m1 (.9, .1), m2 (.6, .6), m3 (0, 1); S_pref .5 .5 .6 .5
    table = build([[1, 0], [0.9, 0.1], [0.6, 0.6], [0, 1]])
    assert compute_choices(table, tau=-1) == {
        "k_score": ("m2", "m1"),
        "k_sim": None,  # m0 and m1 are the nearest kin (.99), but equal in S_pref: no preference
        "k_score_sim": ("m2", "m1"),  # cos(m2, m1) = .78, cos(m2, m0) = cos(m2, m3) = .71
    }


def test_k_score_and_k_score_sim_differ_where_the_second_best_is_no_kin():
    table = build([[1, 1, 0.5], [0, 0.9, 1], [0.6, 0.6, 0.2], [0.1, 0, 0]])
    choices = compute_choices(table, tau=0.1)
    assert choices["k_score"] == ("m0", "m1")
    assert choices["k_score_sim"] == ("m0", "m2")
    assert compute_choices(table, tau=1.0) == {"k_score": None, "k_sim": None, "k_score_sim": None}


def test_equal_s_pref_is_no_preference_whatever_the_order_of_addition():
    pairs = list_pairs(build([[0.1, 0.2, 0.7], [0.7, 0.1, 0.2], [0, 0, 0], [1, 1, 1]]), tau=0)
    tie = pairs[(pairs["chosen"] == "m0") & (pairs["rejected"] == "m1")]
    assert tie["gap"].item() == 0


def test_a_model_last_everywhere_has_kinship_0_to_all_and_is_not_eligible():
    table = build([[0, 0], [0.5, 1], [1, 0.5]])
    kinship = compute_kinship(table)
    assert kinship["m0"].tolist() == [0, 0, 0] and kinship.loc["m1", "m1"] == 1
    assert not list_pairs(table, tau=0.1).query("rejected == 'm0'")["eligible"].any()


@pytest.mark.parametrize("tau", [1.5, -2, float("nan")])
def test_tau_outside_a_cosine_is_refused(paper, tau):
    with pytest.raises(InputError, match=r"tau is .*, a cosine in \[-1, 1\] is expected"):
        list_pairs(paper, tau)


@settings(max_examples=60, deadline=None)
@given(VALUES.filter(usable), st.randoms(use_true_random=False))
def test_identities(values, random):
    table = build(values)
    kinship = compute_kinship(table).to_numpy()
    zero = ~compute_normalized(table).to_numpy().any(axis=1)
    assert (kinship == kinship.T).all()
    assert (np.diag(kinship) == np.where(zero, 0, 1)).all()
    assert kinship.min() >= 0 and kinship.max() <= 1
    rows, columns = list(table.scores.index), list(table.scores.columns)
    random.shuffle(rows), random.shuffle(columns)
    shuffled = replace(table, scores=table.scores.loc[rows, columns], benchmarks=table.benchmarks.loc[columns])
    pd.testing.assert_frame_equal(
        compute_kinship(shuffled).loc[table.scores.index, table.scores.index], compute_kinship(table)
    )
    assert compute_choices(shuffled, 0.1) == compute_choices(table, 0.1)
    assert compute_s_pref(shuffled)[table.scores.index].tolist() == compute_s_pref(table).tolist()


@settings(max_examples=40, deadline=None)
@given(VALUES.filter(usable), st.floats(0.1, 0.5), st.floats(0, 0.5))
def test_positive_affine_change_of_a_benchmark_changes_no_kinship(values, scale, shift):
    table = build(values)
    changed = table.scores.copy()
    changed.iloc[:, 0] = changed.iloc[:, 0] * scale + shift
    np.testing.assert_allclose(compute_kinship(replace(table, scores=changed)), compute_kinship(table), atol=1e-9)


def test_nearest_kin_is_the_largest_off_the_diagonal(paper):
    normalized = compute_normalized(paper)
    kinship = compute_cosine(normalized).to_numpy(copy=True)
    np.fill_diagonal(kinship, -1)
    nearest = compute_nearest_kin(paper)
    assert nearest["nearest_kin"].tolist() == paper.scores.index[kinship.argmax(axis=1)].tolist()
    np.testing.assert_allclose(nearest["kinship"], kinship.max(axis=1), atol=1e-12)


def test_nearest_kin_across_block_borders():
    rng = np.random.default_rng(0)
    for measure in MEASURES:
        table = set_kinship(build(rng.random((600, 6))), measure)
        kinship = compute_kinship(table).to_numpy(copy=True)
        np.fill_diagonal(kinship, -1)
        found = compute_nearest_kin(table)
        assert found["nearest_kin"].tolist() == table.scores.index[kinship.argmax(axis=1)].tolist()
        np.testing.assert_allclose(found["kinship"], kinship.max(axis=1), atol=1e-12)


def test_a_copy_above_its_father_is_told():
    models = load_experiment(str(find_project_root() / "tests" / "study.yaml")).settings.models
    s_pref = pd.Series({"smollm2-135m": 0.5, "smollm2-noise-3": 0.5, "smollm2-drop-1": 0.4, "other": 0.9})
    copies = compute_copies(s_pref, models)
    assert copies["is_below"].to_dict() == {"smollm2-noise-3": False, "smollm2-drop-1": True}
    assert describe_copies(copies).startswith(
        "S_pref puts smollm2-noise-3 at or above the intact base model: this study's"
    )
    right = describe_copies(compute_copies(s_pref.drop("smollm2-noise-3"), models))
    assert right == "S_pref puts the base model above each of its 1 damaged copies"


def test_kinship_by_pair_is_the_matrix_whatever_is_asked_beside():
    values = np.random.default_rng(0).random((60, 6))
    values[3], values[4] = 0, values[5]
    frame = pd.DataFrame(values)
    one, other = (places.ravel() for places in np.meshgrid(np.arange(60), np.arange(60)))
    lazy, square = KinshipByPair(frame), compute_cosine(frame).to_numpy()
    np.testing.assert_allclose(lazy[one, other], square[one, other], atol=1e-12)
    assert (
        lazy[one, one].tolist() == np.where(one == 3, 0.0, 1.0).tolist()
        and lazy[one, other].tolist() == lazy[other, one].tolist()
    )
    for k in range(0, len(one), 501):
        assert lazy[one[k : k + 1], other[k : k + 1]][0] == lazy[one, other][k]


@pytest.mark.parametrize("measure", MEASURES)
@settings(max_examples=25, deadline=None)
@given(VALUES.filter(usable), st.integers(0, 6), st.booleans())
def test_kinship_of_some_models_is_that_of_the_whole_table_to_the_last_bit(measure, values, first, weighted):
    table = build(values)
    weights = {name: 1 + 2 * place for place, name in enumerate(table.scores)} if weighted else None
    table = set_kinship(table, measure, weights)
    whole = compute_kinship(table)
    some = [*table.scores.index[first % len(whole) :], table.scores.index[0]]
    assert np.array_equal(compute_kinship(table, some), whole.loc[some, some])
    assert np.array_equal(whole, whole.T) and whole.to_numpy().max() <= 1


def test_measures_by_eye():
    table = build([[0.0, 0.0], [0.2, 0.2], [0.9, 0.9], [1.0, 0.0], [0.0, 1.0]])
    kin = {name: compute_kinship(set_kinship(table, name)) for name in MEASURES}
    assert kin["cosine"].loc["m1", "m2"] == 1  # blind to level
    assert kin["rmsd"].loc["m1", "m2"] == pytest.approx(0.3)  # .7 apart on both
    assert kin["rank"].loc["m1", "m2"] == pytest.approx(1 - 0.25)  # the ranks .5 and .75, of five models
    assert kin["centred_cosine"].loc["m1", "m2"] == pytest.approx(-1)  # below the mean, .42, and above it
    assert kin["cosine"].loc["m0"].eq(0).all() and kin["rmsd"].loc["m0", "m0"] == 1  # last everywhere


def test_weights_of_capabilities_are_shared_and_reach_kinship(paper):
    alone = set_kinship(paper, weights={"knowledge": 1, "reasoning": 0, "instruction following": 0})
    knowledge = compute_cosine(compute_normalized(paper)[["mmlu_stem", "mmlu_pro"]])
    np.testing.assert_allclose(compute_kinship(alone), knowledge, atol=1e-12)
    like = set_kinship(paper, "rmsd", dict.fromkeys(paper.scores, 3.0))
    np.testing.assert_allclose(compute_kinship(like), compute_kinship(set_kinship(paper, "rmsd")), atol=1e-12)
    assert compute_s_pref(alone).equals(compute_s_pref(paper))
    assert list_pairs(alone, 0.1).set_index(["chosen", "rejected"])["kinship"].loc["GPT-4", "bard"] == pytest.approx(
        knowledge.loc["GPT-4", "bard"]
    )


@pytest.mark.parametrize(
    ("measure", "weights", "message"),
    [
        ("euclid", None, "kinship.measure is 'euclid': choose from cosine, centred_cosine, rmsd, rank"),
        (None, {"knowlege": 1}, "kinship.weights: 'knowlege' is no capability and no benchmark: choose from"),
        (None, {"knowledge": 1}, r"'ifeval' has no weight: name it or its capability \('instruction following'\)"),
        (None, {"knowledge": -1}, "'knowledge' weighs -1: give 0 or more"),
        (None, {"knowledge": 0, "reasoning": 0, "instruction following": 0}, "all are 0: weigh at least one"),
    ],
)
def test_measures_and_weights_that_cannot_be_used(paper, measure, weights, message):
    with pytest.raises(InputError, match=message):
        set_kinship(paper, measure, weights)
