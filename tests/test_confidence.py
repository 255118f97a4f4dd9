"""How sure labels are: exact probabilities, the rule by eye, the books, and every place where pairs are kept."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom

from karma.errors import InputError
from karma.kinship.similarity import list_pairs
from karma.kinship.study import build_study, save_study
from karma.kinship.uncertainty import compute_label_confidence, compute_pair_uncertainty, draw_tables
from karma.pairs.build import build_pair_sets, build_pairs
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import load_pairs
from karma.pairs.public_shape import load_binarized, save_binarized
from karma.pool.pool import load_pool
from karma.scores.read import load_score_table
from karma.strategies import SURE
from karma.vocabulary import STRATEGIES
from tests.test_pairs import make_row, pick

PAPER = load_score_table("paper")
OPTIONS = {"tau": 0.1, "seed": 0}


def make_table(folder, scores, n_items):
    text = "".join(f"{name},{one},{other}\n" for name, (one, other) in scores.items())
    (folder / "t.csv").write_text(f"origin_model,arc_easy,mmlu_pro\n{text}")
    table = load_score_table(folder / "t.csv")
    return replace(table, n_items=dict.fromkeys(table.scores, n_items), n_items_source="measured")


@pytest.fixture
def four(tmp_path):
    """Of 100 items a benchmark best and second are a coin flip apart, both far above third and last."""
    scores = {"best": (0.90, 0.82), "second": (0.89, 0.82), "third": (0.5, 0.6), "last": (0.2, 0.1)}
    return make_table(tmp_path, scores, 100)


ROW = make_row(responses=[("best", "B", 2.0), ("second", "S", 3.0), ("third", "T", 1.0), ("last", "L", 4.0)])


def test_two_models_on_one_benchmark_are_as_sure_as_two_binomials(tmp_path):
    """Min-max of two models is who leads: P(lead) / P(not equal), by the binomial distribution."""
    table = make_table(tmp_path, {"a": (0.6, 0.1), "b": (0.5, 0.2)}, 100)
    table = replace(table, scores=table.scores[["arc_easy"]], n_items={"arc_easy": 100})
    count = np.arange(101)
    both = np.outer(binom.pmf(count, 100, 0.6), binom.pmf(count, 100, 0.5))
    exact = np.tril(both, -1).sum() / (1 - np.trace(both))
    found = compute_label_confidence(table, seed=1)
    assert found.loc["a", "b"] == found.loc["b", "a"] == pytest.approx(exact, abs=4 * np.sqrt(exact / 10 / 2000))


def test_it_is_one_less_p_flip_and_knows_no_order():
    draws = draw_tables(PAPER, np.random.default_rng(5), 2000)
    pairs = compute_pair_uncertainty(PAPER, draws, 0.1)
    sure = compute_label_confidence(PAPER)
    found = np.array([sure.loc[a, b] for a, b in zip(pairs["chosen"], pairs["rejected"], strict=True)])
    assert np.abs(found - (1 - pairs["p_flip"])).max() < 0.05 and len(pairs) == len(list_pairs(PAPER, 0.1))
    assert (found >= 0.4).all() and 0.5 < found.min() + 0.1 < found.max() == 1
    turned = replace(PAPER, scores=PAPER.scores.iloc[::-1, ::-1])
    assert compute_label_confidence(turned).loc[sure.index, sure.columns].equals(sure)
    assert np.array_equal(sure, sure.T) and (np.diag(sure) == 0.5).all()


def test_k_sure_by_eye(four):
    sure = compute_label_confidence(four)
    assert sure.loc["best", "second"] < 0.9 and sure.drop("best").drop(columns="best").max().min() >= SURE
    assert pick(ROW, four, "k_sim") == ("B", "S")  # kin to .999, and a coin flip
    assert pick(ROW, four, "k_sure") in (("B", "T"), ("S", "T"))
    assert pick({**ROW, "completions": ROW["completions"][:2]}, four, "k_sure") == "no_sure_label"
    assert pick(ROW, four, "k_sure", tau=0.999999) in ("below_tau", "no_sure_label")


def test_less_sure_picks_are_dropped_and_counted_and_no_other_pick_changes(four):
    rows = [{**ROW, "instruction": f"Question {n}?", "completions": ROW["completions"][n % 3 :]} for n in range(9)]
    names = [name for name in STRATEGIES if name != "density_ratio"]  # which needs a table (test_density_ratio.py)
    plain = build_pair_sets(load_pool(rows), four, names, **OPTIONS)
    strict = build_pair_sets(load_pool(rows), four, names, min_confidence=0.9, **OPTIONS)
    assert strict["k_sim"].accounting.dropped["unsure_label"] == 3 == len(plain["k_sim"]) - len(strict["k_sim"])
    assert strict["rlaif"].table.equals(plain["rlaif"].table) and plain["rlaif"].table["label_confidence"].null_count
    for name in names:
        strict[name].accounting.check()
        kept = [p for p in plain[name].table.to_pylist() if name == "rlaif" or p["label_confidence"] >= 0.9]
        assert strict[name].table.to_pylist() == kept
        sure = compute_label_confidence(four)
        for p in kept if name != "rlaif" else ():
            assert p["label_confidence"] == sure.loc[p["chosen_model"], p["rejected_model"]]
    assert strict["k_sim"].accounting.settings["label_confidence"] == "sampling error of the scores (measured)"
    assert strict["rlaif"].accounting.settings["label_confidence"] == "unknown: labels are annotations"


def test_unknown_item_counts_leave_the_column_empty_and_are_said(four):
    unknown = replace(four, n_items=None)
    pairs = build_pairs(load_pool([ROW]), unknown, "k_sim", **OPTIONS)
    assert pairs.table["label_confidence"].to_pylist() == [None]
    assert "unknown: " in pairs.accounting.settings["label_confidence"] and "n_items" in str(pairs.accounting.settings)
    for strategy, options in (("k_sure", {}), ("k_sim", {"min_confidence": 0.9})):
        with pytest.raises(InputError, match=r"label confidence is unknown: .*needs n_items of each benchmark"):
            build_pairs(load_pool([ROW]), unknown, strategy, **OPTIONS, **options)
    with pytest.raises(InputError, match=r"min_confidence is 1\.5: a probability lies between 0 and 1"):
        build_pairs(load_pool([ROW]), four, "k_sim", **OPTIONS, min_confidence=1.5)


def test_a_study_s_table_knows_how_many_items_were_asked(four, tmp_path):
    """Read back, it was taken for the full benchmarks: labels looked surer than sixty items can make them."""
    save_study(
        build_study(four, tau=0.1, distance="rmsd", linkage="average", cut=0.4, n_draws=200), tmp_path / "kinship"
    )
    again = load_score_table(tmp_path / "kinship" / "scores.csv")
    assert again.n_items == four.n_items and again.n_items_source == "measured"
    (tmp_path / "kinship" / "scores.columns.yaml").unlink()
    assert load_score_table(tmp_path / "kinship" / "scores.csv").n_items != four.n_items


def test_folders_and_exports_keep_it_and_older_folders_load(four, tmp_path):
    pairs = build_pairs(load_pool([ROW]), four, "k_sure", **OPTIONS)
    folder = save_pairs(pairs, tmp_path / "pairs")
    (sure,) = pairs.table["label_confidence"].to_pylist()
    assert sure >= SURE and load_pairs(folder).table.equals(pairs.table)
    public = save_binarized(folder)
    assert pq.read_table(public)["label_confidence"].to_pylist() == [sure]
    assert load_binarized(public).table["label_confidence"].to_pylist() == [sure]
    pq.write_table(pairs.table.drop_columns("label_confidence"), folder / "pairs.parquet")
    assert load_pairs(folder).table["label_confidence"].to_pylist() == [None]
    assert "label_confidence" not in pq.read_table(save_binarized(folder)).column_names


def test_a_table_too_large_for_a_square_has_no_confidence(tmp_path):
    many = {name: (i / 600, (7 * i % 600) / 600) for i, name in enumerate(["best", "second", *map(str, range(500))])}
    table = make_table(tmp_path, many, 100)
    with pytest.raises(InputError, match=r"t\.csv: label confidence of 502 models is not computed: keep"):
        compute_label_confidence(table)
