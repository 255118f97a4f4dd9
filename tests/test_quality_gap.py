"""The Response Quality Gap and agreement: by eye, as identities, and against scipy."""

import math
import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from karma.errors import InputError
from karma.figures.pairs import plot_agreement, plot_gaps, plot_model_pairs, plot_overlap
from karma.pairs.agreement import compute_agreement, compute_cost_saved, compute_overlap
from karma.pairs.build import build_pair_sets, build_pairs
from karma.pairs.quality_gap import UNITS, compare_gaps, compute_gaps, has_readability, sample_rows
from karma.pool.annotations import collect_annotations, load_annotations
from karma.pool.pool import load_pool
from karma.pool.responses import compute_response_id, compute_row_id
from karma.scores.read import load_score_table
from karma.statistics.intervals import compute_wilson

PAPER = load_score_table("paper")


def make_row(i, answers):
    keys = ("model", "response", "overall_score")
    return {
        "source": "own",
        "instruction": f"Question {i}?",
        "completions": [dict(zip(keys, a, strict=False)) for a in answers],
    }


@pytest.fixture(scope="module")
def rows():
    """Eighty rows; longer answers by better models, annotated at random."""
    dice = random.Random(0)
    models = {"gpt-4": 30, "bard": 28, "alpaca-7b": 5, "mpt-30b-chat": 12, "vicuna-33b": 20}
    return [
        make_row(i, [(m, f"{m} {i}. " + "Rain falls on the quiet hills. " * (models[m] + dice.randint(0, 3)),
                      float(dice.randint(1, 5))) for m in dice.sample(sorted(models), 4)])
        for i in range(80)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sets(rows):
    return build_pair_sets(load_pool(rows), PAPER, ["rlaif", "k_sim", "random"], tau=0.1, seed=0)


def one_pair(chosen, rejected):
    turn = [[{"role": "assistant", "content": t}] for t in (chosen, rejected)]
    return pa.table({"row_id": ["0" * 32], "chosen": [turn[0]], "rejected": [turn[1]]})


class TestByEye:
    @pytest.mark.parametrize(
        "chosen, rejected, length, lexical",
        [
            ("one two", "one two", 0.0, 0.0),
            ("one two three four", "ONE two", 1.0, 0.5),
            ("a b", "c d", 0.0, 1.0),
            ("", "a b c d", 2.0, 1.0),  # no word counts as one, so that the ratio exists
            ("", "", 0.0, 0.0),
        ],
    )
    def test_length_and_lexical(self, chosen, rejected, length, lexical):
        found = compute_gaps(one_pair(chosen, rejected)).iloc[0]
        assert (found["length"], found["lexical"]) == (length, lexical)

    def test_embedding_is_optional(self):
        vectors = {"east": [1.0, 0.0], "north": [0.0, 2.0], "nothing": [0.0, 0.0]}
        embed = lambda texts: np.array([vectors[t] for t in texts])  # noqa: E731
        assert compute_gaps(one_pair("east", "north"), embed=embed)["embedding"].tolist() == [1.0]
        assert compute_gaps(one_pair("east", "nothing"), embed=embed)["embedding"].isna().all()
        assert "embedding" not in compute_gaps(one_pair("east", "north"))

    @pytest.mark.skipif(not has_readability(), reason="textstat is not installed: complexity is not measured")
    def test_complexity(self):
        plain, hard = (
            "The cat sat on the mat. It was warm.",
            "Incomprehensible institutional prevarication notwithstanding.",
        )
        gap = compute_gaps(one_pair(hard, plain))["complexity"].iloc[0]
        assert gap == compute_gaps(one_pair(plain, hard))["complexity"].iloc[0] > 5
        assert math.isnan(compute_gaps(one_pair("123", "!!!"))["complexity"].iloc[0])


def test_gaps_do_not_depend_on_who_is_chosen(sets):
    table = sets["k_sim"].table
    swapped = table.rename_columns([{"chosen": "rejected", "rejected": "chosen"}.get(c, c) for c in table.column_names])
    pd.testing.assert_frame_equal(compute_gaps(table), compute_gaps(swapped))


def test_judge_gap_is_the_annotations(rows, sets):
    annotations = collect_annotations(load_pool(rows), "overall_score")
    table = sets["rlaif"].table
    expected = table["chosen_score"].to_numpy() - table["rejected_score"].to_numpy()
    assert compute_gaps(table, annotations)["judge"].tolist() == expected.tolist()


def test_comparison_against_scipy(sets):
    gaps = {s: compute_gaps(p.table) for s, p in sets.items()}
    found = compare_gaps(gaps, "random").set_index(["measure", "strategy"]).loc[("length", "k_sim")]
    own, other = gaps["k_sim"]["length"].align(gaps["random"]["length"], join="inner")
    interval = stats.ttest_rel(own, other).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert found["effect"] == pytest.approx((own.mean() - other.mean()) / math.sqrt((own.var() + other.var()) / 2))
    assert found["n"] == len(own) and found["difference"] == pytest.approx((own - other).mean())


def test_verdicts():
    index = pd.Index([f"{i:032x}" for i in range(50)])
    base = pd.DataFrame({"length": np.linspace(1, 2, 50)}, index=index)
    noise = np.random.default_rng(0).normal(0, 0.1, (50, 1))
    gaps = {
        "random": base,
        "k_sim": base - 0.5 + noise,
        "rlaif": base + 0.5 + noise,
        "k_score": base + noise - noise.mean(),
    }
    verdict = compare_gaps(gaps, "random").set_index("strategy")["gap"].to_dict()
    assert verdict == {"k_sim": "narrower", "rlaif": "wider", "k_score": "no difference larger than 0.2 SD"}
    apart = {"random": base, "k_sim": base + np.random.default_rng(1).normal(0, 1, (50, 1))}
    (row,) = compare_gaps({**apart, "k_score": base}, "random").query("strategy == 'k_sim'").to_dict("records")
    assert row["gap"] == "cannot tell" and row["needed_n"] > 50
    assert compare_gaps({**apart, "k_score": base}, "random")["gap"].tolist() == ["cannot tell", "the same"]
    few = compare_gaps({"random": base.head(1), "k_sim": base.head(1)}, "random")
    assert few["gap"].tolist() == ["too few prompts"]
    with pytest.raises(InputError, match="baseline 'best' has no gaps"):
        compare_gaps(gaps, "best")


def test_one_family_of_tests_over_measures_strategies_and_baselines():
    """Three strategies, two measures, two baselines: ten comparisons (random with rlaif once), corrected together."""
    dice, index = np.random.default_rng(5), pd.Index([f"{i:032x}" for i in range(40)])
    gaps = {name: pd.DataFrame(dice.normal(1 + 0.06 * k, 0.3, (40, 2)), index=index, columns=["length", "lexical"])
            for k, name in enumerate(("random", "rlaif", "k_sim", "k_score"))}  # fmt: skip
    found = compare_gaps(gaps, "random", "rlaif")
    assert len(found) == len(found.drop_duplicates(["measure", "strategy", "baseline"])) == 10
    assert not ((found["baseline"] == "rlaif") & (found["strategy"] == "random")).any()
    alone = [
        stats.ttest_rel(gaps[r.strategy][r.measure], gaps[r.baseline][r.measure]).pvalue for r in found.itertuples()
    ]
    order = np.argsort(alone)
    by_hand = np.minimum(1, np.maximum.accumulate(np.array(alone)[order] * np.arange(10, 0, -1)))
    assert found["p_holm"].to_numpy()[order] == pytest.approx(by_hand)
    assert (min(alone) < 0.05) and found["p_holm"].min() > min(alone)


def test_the_judge_is_not_asked_of_pairs_that_its_own_ratings_picked(rows, sets):
    """rlaif takes the best rated against a lower one: its gap is wide by construction, whatever the baseline."""
    annotations = collect_annotations(load_pool(rows), "overall_score")
    gaps = {s: compute_gaps(p.table, annotations) for s, p in sets.items()}
    found = compare_gaps(gaps, "random", "rlaif").query("measure == 'judge'")
    assert found[["baseline", "strategy"]].to_numpy().tolist() == [["random", "k_sim"]]
    assert {"rlaif"} == set(compare_gaps(gaps, "random", "rlaif").query("measure == 'length'")["strategy"]) - {"k_sim"}


def test_sample_takes_the_same_prompts(sets):
    ids = {s: set(sample_rows(p.table, 20, seed=0)["row_id"].to_pylist()) for s, p in sets.items()}
    assert 8 < len(ids["k_sim"]) < 35
    assert len(ids["k_sim"] & ids["random"]) > 0.9 * min(map(len, ids.values()))
    assert sample_rows(sets["k_sim"].table, 1000, seed=0).num_rows == len(sets["k_sim"])


class TestAgreement:
    def build(self, scores):
        rows = [make_row(i, [("gpt-4", f"good {i}"), ("alpaca-7b", f"poor {i}")]) for i in range(len(scores))]
        pairs = build_pairs(load_pool(rows), PAPER, "k_sim", tau=0.1, seed=0)
        triples = [
            (compute_row_id(r), compute_response_id(m, f"{word} {i}"), s)
            for i, (r, both) in enumerate(zip(rows, scores, strict=True))
            for m, word, s in zip(("gpt-4", "alpaca-7b"), ("good", "poor"), both, strict=True)
            if s is not None
        ]
        columns = dict(zip(("row_id", "response_id", "score"), map(list, zip(*triples, strict=True)), strict=True))
        return pairs.table, load_annotations(pa.table(columns))

    def test_by_eye(self):
        found = compute_agreement(*self.build([(5, 1), (4, 1), (3, 3), (1, 2), (5, None)])).iloc[0]
        assert found[["n", "agree", "disagree", "tie"]].tolist() == [4, 2, 1, 1]
        assert found["share"] == pytest.approx(2 / 3) and found["low"] < 2 / 3 < found["high"]

    def test_by_models_adds_up(self, rows, sets):
        annotations = collect_annotations(load_pool(rows), "overall_score")
        table = sets["k_sim"].table
        total, by_models = (compute_agreement(table, annotations, by_models=b) for b in (False, True))
        for column in ("n", "agree", "disagree", "tie"):
            assert by_models[column].sum() == total[column].iloc[0]
        assert (by_models["n"] == by_models[["agree", "disagree", "tie"]].sum(axis=1)).all()

    def test_rlaif_agrees_with_itself(self, rows, sets):
        found = compute_agreement(sets["rlaif"].table, collect_annotations(load_pool(rows), "overall_score"))
        assert found["share"].tolist() == [1.0]

    def test_nothing_annotated(self, sets):
        empty = collect_annotations(load_pool([make_row(0, [("a", "x")])]), "overall_score")
        assert len(empty) == 0
        found = compute_agreement(sets["k_sim"].table, empty)
        assert found["n"].tolist() == [0] and found["share"].isna().all()

    def test_wilson_against_scipy(self):
        for k, n in [(0, 5), (3, 10), (10, 10)]:
            exact = stats.binomtest(k, n).proportion_ci(method="wilson")
            assert compute_wilson(k / n, n) == pytest.approx((exact.low, exact.high), abs=1e-6)

    def test_cost(self, rows):
        n_bytes = sum(len(c["response"]) + len(r["instruction"]) for r in rows for c in r["completions"])
        assert compute_cost_saved(load_pool(rows)) == {"calls": 320, "prompt_tokens": n_bytes // 4}


def test_overlap_of_score_strategies_on_table3(real_data):
    pool = load_pool(real_data / "pool_alpacaeval_200.jsonl")
    sets = build_pair_sets(pool, PAPER, ["k_score", "k_sim", "k_score_sim"], tau=0.1, seed=0)
    tables = {s: p.table for s, p in sets.items()}
    assert compute_overlap(tables, "chosen").loc["k_score", "k_score_sim"] == 1
    pair = compute_overlap(tables)
    assert 0.4 < pair.loc["k_score", "k_score_sim"] < 0.8
    assert (pair == pair.T).all().all() and (np.diag(pair) == 1).all()


def test_figures_say_what_they_show(rows, sets):
    tables = {s: p.table for s, p in sets.items()}
    gaps = {s: compute_gaps(t) for s, t in tables.items()}
    axes = plot_gaps(gaps, compare_gaps(gaps, "random"))
    assert axes.shape[0] == 2
    assert all(UNITS[m] == ax.get_xlabel() for m, ax in zip(gaps["random"], axes[0], strict=True))
    assert [t.get_text() for t in axes[0, 0].get_yticklabels()] == list(gaps)
    ax = plot_model_pairs(tables["k_sim"], "k_sim")
    shown = [int(t.get_text()) for t in ax.texts]
    assert sum(shown) == tables["k_sim"].num_rows
    assert len(plot_overlap(compute_overlap(tables, "chosen"), compute_overlap(tables))) == 2
    annotations = collect_annotations(load_pool(rows), "overall_score")
    assert plot_agreement(compute_agreement(tables["k_sim"], annotations, by_models=True)).get_xlim()[1] >= 1
