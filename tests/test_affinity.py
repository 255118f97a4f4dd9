"""The strategy affinity: by eye, its properties, the quality it takes, and the ablation against a plain loop."""

import json
import math
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import textstat
from hypothesis import given, settings
from hypothesis import strategies as st

from karma.errors import InputError
from karma.labels.affinity import VARIANTS, compare_affinities
from karma.labels.layouts import load_judgments
from karma.labels.recorded import audit_recorded
from karma.labels.texts import find_text_rules
from karma.pairs.build import build_pair_sets, build_pairs, save_pair_sets
from karma.pool.affinity import TRAITS, Traits, compute_affinity, measure_complexity
from karma.pool.annotations import load_annotations
from karma.pool.pool import load_pool
from karma.pool.responses import compute_response_id, compute_row_id
from karma.scores.read import load_score_table
from karma.strategies import choose_in_sets
from karma.study.experiment import load_experiment
from tests.test_pairs import MODELS, PAPER, ROW, encodable, make_row, three_models  # noqa: F401 - a fixture

LONG = "Rain falls. It is wet. The sky is grey. " * 4
LISTED = "- rain\n- snow\n- hail\n- sun"
SHORT, OTHER = "It may rain today.", "It can rain today."


def pick(row, scores, **options):
    pairs = build_pairs(load_pool([row]), scores, "affinity", **{"tau": -1.0, "seed": 0, **options})
    if not len(pairs):
        return next(iter(+pairs.accounting.dropped))
    (pair,) = pairs.table.to_pylist()
    return pair["chosen"][0]["content"], pair["rejected"][0]["content"]


ROW4 = make_row(responses=[("low", SHORT, 1.0), ("middle", LONG, 5.0), ("high", OTHER, 5.0), ("high", LISTED, 1.0)])


def test_by_eye(three_models):  # noqa: F811
    """S_pref 1/6, 1/2, 5/6. SHORT and OTHER are alike in all but S_pref; LONG is halfway from both in that."""
    assert pick(ROW4, three_models, quality_weight=0.0) == (OTHER, SHORT)
    # a half of quality: A(SHORT, OTHER) = .5 + 0; A(LONG, SHORT) = A(LONG, OTHER) = .5 * .6055 + .25, of which the latter
    # has the higher S_pref
    values = measure_pairs(0.5)
    assert values[SHORT, OTHER] == 0.5 and values[LONG, OTHER] == values[SHORT, LONG] == pytest.approx(0.5527, abs=1e-4)
    assert pick(ROW4, three_models) == (OTHER, LONG)
    # quality alone: the middle one with any other is at 1/2; of the highest S_pref there are two, and a draw between them
    assert pick(ROW4, three_models, quality_weight=1.0) in ((OTHER, LONG), (LISTED, LONG))
    # by annotations, 5 and 5, 1 and 1 are alike; (high, middle) comes before (high, low)
    assert pick(ROW4, three_models, quality="annotation", quality_weight=1.0) == (OTHER, LONG)


def measure_pairs(weight):
    texts = [SHORT, LONG, OTHER, LISTED]
    traits = Traits(measure_complexity(pa.array(texts)), np.array([1 / 6, 1 / 2, 5 / 6, 5 / 6]), weight)
    first, second = map(np.array, zip(*combinations(range(4), 2), strict=True))
    kept = [k for k in range(6) if (first[k], second[k]) != (2, 3)]  # one origin model
    values = compute_affinity(traits, np.zeros(4, int), first, second)
    return {(texts[first[k]], texts[second[k]]): values[k] for k in kept}


def test_the_formula_against_plain_python():
    texts = [SHORT, LONG, LISTED, "42", "Yes.\n\n```\ncode\n```\n\nNo."]
    quality, weight = [0.1, 0.4, 0.9, 0.5, 0.3], 0.3
    rows = [dict(zip(TRAITS, (math.log(1 + len(t)), textstat.automated_readability_index(t) if any(map(str.isalpha, t)) else None,
                              math.log(1 + n[0]), math.log(1 + n[1]), math.log(1 + n[2])), strict=True))
            for t, n in zip(texts, [(0, 0, 1), (0, 0, 1), (4, 0, 1), (0, 0, 1), (0, 1, 3)], strict=True)]  # fmt: skip

    def alike(values, i, j):
        if values[i] is None or values[j] is None:
            return None
        known = [v for v in values if v is not None]
        spread = max(known) - min(known)
        return 1 - abs(values[i] - values[j]) / spread if spread else 1

    traits = Traits(measure_complexity(pa.array(texts)), np.array(quality), weight)
    for i, j in combinations(range(len(texts)), 2):
        s = {name: alike([row[name] for row in rows], i, j) for name in TRAITS}
        parts = [s["length"], s["readability"], (s["lists"] + s["code"] + s["paragraphs"]) / 3]
        parts = [part for part in parts if part is not None]
        expected = (1 - weight) * sum(parts) / len(parts) + weight * alike(quality, i, j)
        assert compute_affinity(traits, np.zeros(5, int), np.array([i]), np.array([j]))[0] == pytest.approx(
            expected, abs=1e-11
        )


def test_prompts_have_scales_of_their_own():
    """The same two responses, alone or beside another prompt's: the affinity is the same."""
    texts = [SHORT, LONG, OTHER, LISTED * 9, LONG * 9]
    complexity, row = measure_complexity(pa.array(texts)), np.array([0, 0, 0, 1, 1])
    quality = np.arange(5.0)
    whole = compute_affinity(Traits(complexity, quality), row, np.array([0, 0]), np.array([1, 2]))
    alone = compute_affinity(Traits(complexity[:3], quality[:3]), row[:3], np.array([0, 0]), np.array([1, 2]))
    assert whole.tolist() == alone.tolist()


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=5).filter(encodable), order=st.randoms(), weight=st.sampled_from([0.0, 0.5, 1.0]),
       quality=st.sampled_from(["s_pref", "annotation"]))  # fmt: skip
def test_shuffling_changes_no_choice_and_every_row_is_counted(rows, order, weight, quality):
    options = {
        "tau": 0.1,
        "seed": 1,
        "excluded_origin_models": ["ultralm-65b"],
        "quality": quality,
        "quality_weight": weight,
    }
    shuffled = [{**row, "completions": order.sample(row["completions"], len(row["completions"]))} for row in rows]
    one, other = (
        build_pair_sets(load_pool(each), PAPER, ["affinity"], **options)["affinity"] for each in (rows, shuffled)
    )
    assert one.accounting.rows_in == len(rows) == len(one) + one.accounting.dropped.total()
    assert one.table.to_pylist() == other.table.to_pylist()
    for pair in one.table.to_pylist():
        assert pair["kinship"] >= 0.1 and pair["chosen_score"] > pair["rejected_score"]


def test_unknown_quality_is_no_pair_and_is_counted(three_models):  # noqa: F811
    row = make_row(responses=[("low", SHORT, 3.0), ("middle", LONG), ("high", OTHER)])
    assert pick(row, three_models, quality="annotation") == "unknown_quality"
    assert pick(row, three_models, quality="annotation", quality_weight=0.0) == (OTHER, SHORT)


def test_quality_by_a_table(three_models, tmp_path):  # noqa: F811
    ids = [compute_response_id(c["model"], c["response"]) for c in ROW4["completions"]]
    table = pa.table({"row_id": [compute_row_id(ROW4)] * 4, "response_id": ids, "score": [0.0, 9.0, 1.0, 9.0]})
    pq.write_table(table, tmp_path / "reward.parquet")
    reward = load_annotations(tmp_path / "reward.parquet")
    assert pick(ROW4, three_models, quality=reward, quality_weight=1.0) == (LISTED, LONG)
    books = build_pairs(load_pool([ROW4]), three_models, "affinity", tau=-1, seed=0, quality=reward).accounting
    assert (books.settings["affinity_quality"], books.settings["affinity_weight"]) == ("reward.parquet", 0.5)
    assert (
        "affinity_quality"
        not in build_pairs(load_pool([ROW4]), three_models, "k_sim", tau=-1, seed=0).accounting.settings
    )


def test_quality_by_truth_in_a_study():
    experiment = load_experiment("demo")
    line = json.loads((experiment.root / experiment.settings.pool.instructions).read_text("utf-8").splitlines()[0])
    from karma.evaluation.prompts import read_prompt

    pool = load_pool([make_row(read_prompt(line, "here", verifiable=True).text, [("a", "One, two."), ("b", "Three")])])
    asked = experiment.settings.model_copy(
        update={"affinity": experiment.settings.affinity.model_copy(update={"quality": "truth"})}
    )
    found = find_text_rules(asked, pool, experiment.root)
    assert found["decontaminate"] is None and found["near_duplicates"] is None and found["quality_weight"] == 0.5
    assert len(found["quality"]) == 2 and ((found["quality"].scores >= 0) & (found["quality"].scores <= 1)).all()
    assert find_text_rules(experiment.settings, pool, experiment.root)["quality"] == "s_pref"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"quality": "charm"}, "affinity quality is 'charm': choose s_pref, annotation"),
        ({"quality_weight": 1.5}, "affinity weight is 1.5: a share lies between 0 and 1"),
    ],
)
def test_impossible_rules(three_models, options, message):  # noqa: F811
    with pytest.raises(InputError, match=message):
        pick(ROW4, three_models, **options)


def test_models_alone_have_no_affinity():
    with pytest.raises(InputError, match="affinity needs the responses' texts"):
        choose_in_sets(np.array([0.1, 0.9]), np.ones((2, 2)), np.array([[0, 1]]), "affinity", tau=0.1)


def test_processes_make_the_bytes_of_one(tmp_path, monkeypatch):
    from karma.pairs import parallel
    from karma.pool import parts

    monkeypatch.setattr(parts, "PART_ROWS", parts.BATCH_ROWS)
    rows = [make_row(f"Question {i}?", [(m, f"{m} says {'so ' * ((i * k) % 7)}{i}.") for k, m in enumerate(MODELS[:3])])
            for i in range(5_000)]  # fmt: skip
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = load_pool(tmp_path / "pool.jsonl")
    save_pair_sets(pool, PAPER, {"affinity": tmp_path / "one"}, tau=0.1, seed=0)
    monkeypatch.setattr(parallel, "SMALL_ROWS", 1)
    save_pair_sets(pool, PAPER, {"affinity": tmp_path / "two"}, tau=0.1, seed=0, cores=2)
    for name in ("pairs.parquet", "accounting.json", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


class TestAblation:
    @pytest.fixture(scope="class")
    def audit(self, real_data):
        judgments = load_judgments(str(real_data / "alpaca_eval_judged"), texts=True)
        table = load_score_table(str(real_data / "open_llm_leaderboard_3827.csv"), "open_llm_leaderboard_v2")
        return judgments, audit_recorded(judgments, table, prefer="bfloat16")

    def test_rows_and_intervals(self, audit):
        found = audit[1].affinities
        assert found[["strategy", "quality"]].values.tolist() == [[v.strategy, v.quality] for v in VARIANTS]
        assert ((found["low"] <= found["label_accuracy"]) & (found["label_accuracy"] <= found["high"])).all()
        own = audit[1].strategies.set_index("strategy")
        k_sim = found.set_index("strategy").loc["k_sim"]
        assert k_sim["label_accuracy"] == pytest.approx(own.loc["k_sim", "label_accuracy"], abs=1e-12)
        assert k_sim["n_decided"] == own.loc["k_sim", "n_decided"]

    def test_affinity_narrows_what_it_is_made_to_narrow(self, audit):
        found = audit[1].affinities.set_index(["strategy", "quality"])
        by_lot, alone = found.loc[("random", "")], found.loc[("affinity", "none")]
        assert alone["mean_length_gap"] < by_lot["mean_length_gap"]
        assert alone["mean_readability_gap"] < by_lot["mean_readability_gap"]
        judged = found.loc[("affinity", "judged values")]
        assert judged["n_decided"] == found["n_decided"].min(), "judged alike: few are decided"

    def test_without_texts_there_is_no_ablation(self, audit, real_data, tmp_path):
        plain = load_judgments(str(real_data / "alpaca_eval_judged"))
        assert plain.complexity is None and audit[0].complexity.shape == (*plain.values.shape, len(TRAITS))
        pd.DataFrame({"row_id": ["a", "a"], "model": ["x", "y"], "truth": [0, 1]}).to_csv(
            tmp_path / "responses.csv", index=False
        )
        with pytest.raises(InputError, match=r"no texts that could be measured.*leave out --affinity"):
            load_judgments(tmp_path / "responses.csv", texts=True)


def test_the_ablation_is_empty_without_texts():
    from karma.labels.comparisons import build_comparisons
    from karma.labels.judgments import build_values
    from karma.labels.sets import list_sets

    rows = pd.DataFrame([("p", m, k / 9) for k, m in enumerate("abcd")], columns=["prompt", "model", "value"])
    table = pd.DataFrame(np.eye(4), index=list("abcd"), columns=list("abcd"))
    judgments = build_values(rows, "x", "own", "share")
    comparisons = build_comparisons(judgments, pd.Series({m: k / 4 for k, m in enumerate("abcd")}), table)
    assert not len(compare_affinities(comparisons, list_sets(judgments.answered, 0), tie=0.02, tau=0.1, seed=0))
