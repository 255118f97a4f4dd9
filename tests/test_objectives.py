"""Several sources of an explicit margin, by weights and by Pareto rank."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from karma.commands.select import parse_sources
from karma.errors import InputError
from karma.labels.sources import compute_capability
from karma.pool.annotations import load_annotations
from karma.potential.margins import RANKINGS, compute_priorities, select
from karma.potential.objectives import Objectives, combine_margins, compute_fronts, gather_objectives
from karma.potential.selection import find_scores, gather_candidates
from karma.potential.study import compare_objectives, gather_pools
from karma.scores.normalise import compute_s_pref
from karma.scores.read import load_score_table
from karma.study.experiment import load_experiment

N = 24
COARSE = st.integers(-8, 8).map(lambda k: k / 4)  # differences that no rounding hides


def make_id(k):
    """An id as the kit's are: 32 hexadecimal digits of content."""
    return f"{k:02x}" * 16


def make_table(n=N):
    texts = [[{"role": "assistant", "content": f"text {k}"}] for k in range(2 * n)]
    rng = np.random.default_rng(3)
    return pa.table({
        "row_id": [make_id(k) for k in range(n)], "chosen": texts[:n], "rejected": texts[n:],
        "chosen_id": [make_id(k) for k in range(n)], "rejected_id": [make_id(n + k) for k in range(n)],
        "chosen_model": ["gpt-4"] * n, "rejected_model": ["bard"] * n,
        "chosen_score": rng.random(n), "rejected_score": rng.random(n)})  # fmt: skip


def make_pool(scores, weights, combine="weights", implicit=None, signed=False):
    """Candidates of margins given as (n, S): the chosen response scores the margin, the rejected one 0."""
    named = {
        f"s{k}": np.stack([column, np.zeros(len(column))], 1) for k, column in enumerate(np.asarray(scores, float).T)
    }
    own = Objectives(named, dict(zip(named, weights, strict=True)), combine)
    n = len(scores)
    logps = np.stack([np.zeros(n) if implicit is None else -np.asarray(implicit, float), np.zeros(n)], 1)
    return gather_candidates(make_table(n), own, logps, np.ones((n, 2)), weight=1.0, signed=signed)


def test_two_sources_by_eye():
    """Margins 3 0 | 0 3 | 2 2 | 1 1: alone each wants its own first, together the third is first, the fourth last."""
    margins = [[3, 0], [0, 3], [2, 2], [1, 1]]
    for combine in ("weights", "pareto"):
        values = make_pool(margins, [1, 1], combine).explicit
        assert values.argmax() == 2 and values.argmin() == 3 and values[0] == pytest.approx(values[1])
    assert select(make_pool(margins, [9, 1]), "explicit_large", k=1).tolist() == [0]
    z = [(m - m.mean()) / m.std() for m in np.array(margins, float).T]
    assert make_pool(margins, [9, 1]).explicit == pytest.approx(9 * z[0] + z[1])


def test_fronts_against_the_definition():
    """Peeled off as the definition says: what no remaining pair dominates is the next front."""
    values = np.random.default_rng(0).integers(0, 5, (60, 3))
    left, front, expected = set(range(60)), 1, np.zeros(60, int)
    while left:
        best = [
            i for i in left if not any((values[j] >= values[i]).all() and (values[j] > values[i]).any() for j in left)
        ]
        expected[best], left, front = front, left - set(best), front + 1
    assert compute_fronts(values).tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(
    arrays(float, (12, 2), elements=COARSE),
    st.sampled_from(["weights", "pareto"]),
    st.integers(1, 11),
    st.integers(0, 3),
)
def test_no_pair_left_out_dominates_one_that_is_kept(scores, combine, k, seed):
    """In both margins, and in M_AP also where the policy knows less: whatever the ties, weights and seed."""
    implicit = np.random.default_rng(seed).integers(0, 3, 12)
    pool = make_pool(scores, [1.0, 0.5], combine, implicit)
    for metric, columns in (("explicit_large", np.abs(scores)), ("m_ap", np.column_stack([np.abs(scores), -implicit]))):
        kept = select(pool, metric, k=k, seed=seed)
        for out in set(range(12)) - set(kept.tolist()):
            dominates = (columns[out] >= columns[kept]).all(axis=1) & (columns[out] > columns[kept]).any(axis=1)
            assert not dominates.any()


@settings(max_examples=60, deadline=None)
@given(
    arrays(float, (12, 3), elements=COARSE),
    st.floats(0.01, 100),
    st.floats(-5, 5),
    st.sampled_from(["weights", "pareto"]),
)
def test_a_source_s_unit_changes_nothing(margins, factor, shift, combine):
    """A positive affine change of one source's scores: they are turned into standard scores."""
    table = make_table(12)
    base = np.random.default_rng(1).random((12, 2))
    named = {f"s{k}": base + np.stack([column, 0 * column], 1) for k, column in enumerate(margins.T)}
    changed = {**named, "s1": factor * named["s1"] + shift}
    weights = {"s0": 1.0, "s1": 2.0, "s2": 0.5}
    asked = (np.zeros((12, 2)), np.ones((12, 2)))
    pools = [
        gather_candidates(table, Objectives(each, weights, combine), *asked, weight=1.0) for each in (named, changed)
    ]
    assert np.allclose(pools[0].explicit, pools[1].explicit, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(RANKINGS)), st.sampled_from(["weights", "pareto"]), st.floats(0.01, 50), st.integers(1, N)
)
def test_a_map_of_one_source_is_the_plain_setting(metric, combine, weight, k):
    table, rng = make_table(), np.random.default_rng(5)
    asked = {
        "logps": -rng.random((N, 2)) * 9,
        "lengths": np.full((N, 2), 3),
        "weight": 1.0,
        "signed": metric == "m_ap_signed",
    }
    one = gather_objectives(table, {"score": weight}, combine, {})
    plain, mapped = (gather_candidates(table, scores, **asked) for scores in (find_scores(table), one))
    assert np.array_equal(compute_priorities(plain, metric), compute_priorities(mapped, metric))
    assert select(plain, metric, k=k).tolist() == select(mapped, metric, k=k).tolist()


def test_equal_pairs_are_told_apart_by_the_seed():
    """All margins equal: Pareto rank leaves it to the draw, another seed keeps others; weights go by row_id, as ever."""
    margins = np.ones((20, 2))
    kept = [select(make_pool(margins, [1, 1], "pareto"), "m_ap", k=8, seed=seed).tolist() for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]
    assert select(make_pool(margins, [1, 1]), "m_ap", k=8, seed=1).tolist() == list(range(8))


def test_a_pair_that_one_source_does_not_know_is_no_candidate():
    own = Objectives({"a": np.array([[1.0, 0], [np.nan, 0], [2, 0]]), "b": np.array([[1.0, 0], [2, 0], [0, 0]])},
                     {"a": 1.0, "b": 1.0})  # fmt: skip
    pool = gather_candidates(make_table(3), own, np.zeros((3, 2)), np.array([[1, 1], [1, 1], [0, 1]]), weight=1.0)
    assert pool.reasons.tolist() == ["", "no_explicit_margin", "no_implicit_margin"]
    assert pool.objectives["b"].tolist() == [1, 2, 0]


def test_signed_margins_know_when_sources_disagree():
    margins = np.array([[3.0, 3.0], [3.0, -3.0], [1.0, 1.0], [0.0, 0.0]])
    assert make_pool(margins, [1, 1]).explicit[0] == make_pool(margins, [1, 1]).explicit[1]
    signed = make_pool(margins, [1, 1], signed=True).explicit
    assert signed[0] > signed[2] > signed[1]


def test_what_each_way_keeps_by_eye():
    """Two sources that want opposite pairs: each alone keeps its own, the others lie between; lots lie behind."""
    margins = np.column_stack([np.arange(N), np.arange(N)[::-1]]).astype(float)
    pool = make_pool(margins, [1, 1])
    found = compare_objectives(pool, {"s0": 1.0, "s1": 1.0}, 6, seed=0).set_index(["selection", "source"])
    own = np.arange(N)[-6:]
    assert found.loc[("s0 alone", "s0"), "margin"] == own.mean()
    assert found.loc[("s0 alone", "s0"), "value"] == pytest.approx((own.mean() - (N - 1) / 2) / np.arange(N).std())
    assert found.loc[("s1 alone", "s0"), "margin"] == np.arange(6).mean()
    assert set(found.index.get_level_values("selection")) == {"s0 alone", "s1 alone", "weights", "pareto", "random"}
    assert found.loc["s0 alone", "on_front"].all() and (found["low"] <= found["value"]).all()


def test_a_selection_that_another_exceeds_is_not_on_the_front():
    margins = np.column_stack([np.arange(N), np.arange(N)]).astype(
        float
    )  # both want the same pairs: lots are dominated
    found = compare_objectives(make_pool(margins, [1, 1]), {"s0": 1.0, "s1": 1.0}, 6, seed=0).set_index("selection")
    assert found.loc["pareto", "on_front"].all() and not found.loc["random", "on_front"].any()


def test_one_source_has_nothing_to_trade():
    found = compare_objectives(make_pool(np.arange(N)[:, None], [1]), {"s0": 1.0}, 6, seed=0)
    assert found["selection"].tolist() == ["s0 alone", "random"]


def test_s_pref_of_a_capability_is_eq_2_on_its_benchmarks():
    table = load_score_table("paper")
    assert compute_capability(table, "kinship") == compute_s_pref(table).to_dict()
    own = table.scores[["arc_easy", "arc_challenge", "hellaswag"]]
    by_hand = ((own - own.min()) / (own.max() - own.min())).mean(axis=1)
    assert pd.Series(compute_capability(table, "kinship:reasoning")).to_numpy() == pytest.approx(by_hand.to_numpy())
    with pytest.raises(InputError, match="has the capability 'love': choose from instruction"):
        compute_capability(table, "kinship:love")


def test_sources_are_looked_up_by_model_and_by_response(tmp_path):
    table = make_table(3)
    rewards = pa.table({"row_id": [make_id(k % 3) for k in range(6)], "response_id": [make_id(k) for k in range(6)],
                        "score": [1.0, 2, 3, 4, 5, 6]})  # fmt: skip
    pq.write_table(rewards, tmp_path / "r.parquet")
    given = {"r.parquet": load_annotations(tmp_path / "r.parquet"), "kinship": {"GPT-4": 0.9}}
    found = gather_objectives(table, {"score": 1, "r.parquet": 2, "kinship": 1}, "weights", given)
    assert found.scores["r.parquet"].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert found.scores["kinship"][:, 0].tolist() == [0.9] * 3 and np.isnan(found.scores["kinship"][:, 1]).all()
    with pytest.raises(InputError, match="explicit margin from 'truth': no scores are given"):
        gather_objectives(table, {"truth": 1}, "weights", given)


def test_the_study_s_pools_take_several_sources():
    table = make_table()
    rng = np.random.default_rng(0)
    own = Objectives({"score": find_scores(table), "b": rng.random((N, 2))}, {"score": 1.0, "b": 1.0}, "pareto")
    pools = gather_pools(table, own, find_scores(table), -rng.random((N, 2)), np.ones((N, 2)), 1.0, "absolute")
    assert pools["plain"].by_draw and set(pools["signed"].objectives) == {"score", "b"}
    assert not pools["annotated"].objectives


def test_combining_is_of_the_candidates_alone():
    """z-scores and fronts do not see what is no candidate."""
    margins = np.array([[1.0, 2], [2, 1], [3, 0], [99, 99]])
    named = {f"s{k}": np.stack([column, np.zeros(4)], 1) for k, column in enumerate(margins.T)}
    own, lengths = Objectives(named, {"s0": 1.0, "s1": 1.0}), np.array([[1, 1], [1, 1], [1, 1], [0, 0]])
    pool = gather_candidates(make_table(4), own, np.zeros((4, 2)), lengths, weight=1.0)
    assert pool.explicit[:3] == pytest.approx(combine_margins(margins[:3], [1, 1], "weights"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("explicit: love", "expected score, annotation, or several sources with their weights"),
        ("explicit: {love: 1}", "'love' is no source: choose from score, annotation, truth, kinship"),
        ("explicit: {score: 0}", "'score' weighs 0: give a number above 0"),
        ("explicit: {score: yes}", "'score' weighs True: give a number above 0"),
        ("explicit: {kinship:love: 1}", "no benchmark of this experiment has the capability 'love': choose from"),
        ("explicit: {annotation: 1, score: 1}\nannotation: {source: judge}\nstrategies: [k_sim]", "a judge's annotations are made only"),
        ("explicit: {truth: 1}\npool: {source: x.parquet, instructions: null}", "truth needs the pool's verifiable prompts"),
        ("combine: sum", "potential.combine is .?sum"),
    ],
)  # fmt: skip
def test_sources_that_cannot_be_are_refused_at_once(tmp_path, text, message):
    first, *rest = text.split("\n")
    body = "\n".join([f"potential:\n  {first}", *rest])
    labels = "labels: {audit: false}\n"
    (tmp_path / "x.yaml").write_text(f"extends: smoke\nname: x\n{labels}{body}\n")
    with pytest.raises(InputError, match=message):
        load_experiment(tmp_path / "x.yaml")


def test_several_sources_are_settings(tmp_path):
    text = "extends: smoke\nname: x\npotential:\n  explicit: {score: 1, truth: 0.5, kinship:reasoning: 2}\n  combine: pareto\n"
    (tmp_path / "x.yaml").write_text(text)
    potential = load_experiment(tmp_path / "x.yaml").settings.potential
    assert potential.explicit == {"score": 1.0, "truth": 0.5, "kinship:reasoning": 2.0}
    assert json.dumps(potential.as_dict()) and potential.sources == ["score", "truth", "kinship:reasoning"]


@pytest.mark.parametrize(
    "text", ["love", "score=1,love=1", "score=1,score=2", "score=1,annotation", "score=0", "score=x", "="]
)
def test_a_word_that_is_no_source_is_refused(text):
    with pytest.raises(InputError, match=r"^--explicit "):
        parse_sources(text)
