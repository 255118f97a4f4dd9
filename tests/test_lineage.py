"""Lineage: who declares whom, whether sons are nearer to their fathers, answers alike, and the cosine's traps."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from karma.figures.lineage import plot_lineage
from karma.kinship.behaviour import compute_agreement
from karma.kinship.lineage import compare_fathers, compute_origin_kinship, describe_lineage, trace_lineage
from karma.kinship.measures import describe_traps, find_traps
from karma.kinship.similarity import compute_kinship
from karma.scores.read import load_score_table
from karma.scores.table import ScoreTable, load_benchmarks

N_FAMILIES = 12


def build(related: bool, n_sons: int = 3, seed: int = 0) -> ScoreTable:
    """Fathers anywhere; their sons beside them, or anywhere too; and strangers who declare nothing."""
    rng = np.random.default_rng(seed)
    fathers = {f"f{k}": rng.random(4) for k in range(N_FAMILIES)}
    rows, bases = dict(fathers), dict.fromkeys(fathers, "")
    for name, own in fathers.items():
        for k in range(n_sons):
            rows[f"{name}-s{k}"] = np.clip(own + rng.normal(0, 0.02, 4), 0, 1) if related else rng.random(4)
            bases[f"{name}-s{k}"] = name
    rows |= {f"x{k}": rng.random(4) for k in range(20)}
    known = load_benchmarks().head(4)
    scores = pd.DataFrame(rows, index=known.index).T.rename_axis("origin_model")
    facts = pd.DataFrame({"base_model": bases}).replace("", None)
    return ScoreTable(scores, known, facts=facts.reindex(columns=["base_model", "merged", "size_b"]))


def ask(table):
    lineage = trace_lineage(table)
    return compare_fathers(table, lineage, np.random.default_rng(1), 199)[0].set_index(
        ["measure", "strangers"]
    ), lineage


def test_sons_beside_their_fathers_are_found_and_sons_anywhere_are_not():
    near, lineage = ask(build(related=True))
    assert lineage.counts["sons of a father in the table"] == 36 and (near["n_fathers"].dropna() >= 0).all()
    found = near.loc[("rmsd", "all strangers")]
    assert found["nearer"] > 0.97 and found["p"] == pytest.approx(1 / 200) and 0.4 < found["expected"] < 0.6
    assert any(
        "rmsd: a base model is nearer to its offspring than" in line
        for line in describe_lineage(near.reset_index(), lineage)
    )
    far, _ = ask(build(related=False))
    assert far.loc[("rmsd", "all strangers"), "p"] > 0.05
    assert (
        near.loc[("rmsd", "strangers of like size"), "nearer"] != near.loc[("rmsd", "strangers of like size"), "nearer"]
    )
    assert plot_lineage(near.reset_index()).get_xlim() == (0, 1)


def test_many_sons_of_one_father_are_one_observation():
    """Chance alone, with 20 sons to a father."""
    p = [ask(build(related=False, n_sons=20, seed=s))[0].loc[("rmsd", "all strangers"), "p"] for s in range(6)]
    assert sum(value <= 0.05 for value in p) <= 1


def test_strangers_of_like_size_take_the_size_out():
    """Sons share their fathers' size, and size is all there is in the scores."""
    rng = np.random.default_rng(0)
    sizes = np.repeat([1.0, 3.0, 7.0, 14.0, 30.0, 70.0], 40)
    level = np.log(sizes) / 5
    known = load_benchmarks().head(4)
    names = [f"m{k}" for k in range(len(sizes))]
    values = np.clip(level[:, None] * 0.8 + rng.normal(0.05, 0.02, (len(sizes), 4)), 0, 1)
    bases = [names[k - k % 40 + k % 8] if k % 40 >= 8 else None for k in range(len(sizes))]
    facts = pd.DataFrame({"base_model": bases, "size_b": sizes, "merged": None}, index=names)
    table = ScoreTable(pd.DataFrame(values, names, known.index).rename_axis("origin_model"), known, facts=facts)
    found, _ = ask(table)
    assert found.loc[("rmsd", "all strangers"), "nearer"] > 0.8 and found.loc[("rmsd", "all strangers"), "p"] < 0.05
    assert abs(found.loc[("rmsd", "strangers of like size"), "nearer"] - 0.5) < 0.1
    assert found.loc[("rmsd", "strangers of like size"), "p"] > 0.05


def test_what_is_declared():
    names = ["a/x bf16", "a/x fp16", "b/y bf16", "b/y fp16", "c/m", "d/z", "e/e", "g/h"]
    repository = ["a/x", "a/x", "b/y", "b/y", "c/m", "d/z", "e/e", "g/h"]
    bases = ["a/x", "a/x", "a/x", "a/x", "c/m (Merge)", "a/x; e/e", "e/e", "gone"]
    facts = pd.DataFrame({"base_model": bases, "repository": repository, "merged": ["False"] * 4 + ["True"] * 2 + [None] * 2,
                          "size_b": np.nan}, index=names)  # fmt: skip
    known = load_benchmarks().head(2)
    scores = pd.DataFrame(np.random.default_rng(0).random((8, 2)), names, known.index).rename_axis("origin_model")
    lineage = trace_lineage(ScoreTable(scores, known, facts=facts))
    assert lineage.sons[["son", "father", "merged"]].to_numpy().tolist() == [
        ["b/y bf16", "a/x bf16", False], ["b/y fp16", "a/x fp16", False],  # of like precision
        ["d/z", "a/x bf16", True], ["d/z", "e/e", True],  # a merge of two declared parents
    ]  # fmt: skip
    assert list(lineage.counts.values()) == [3, 1, 1, 3, 0]
    kin = compute_origin_kinship(lineage)
    assert kin.loc["a/x bf16"].tolist() == [1, 1, 0.5, 0.5, 0, 0.5, 0.25, 0]
    assert np.array_equal(kin, kin.T)


def test_agreement_by_eye():
    rows = [("a", "q", i, o) for i, o in enumerate("AABB")] + [("b", "q", i, o) for i, o in enumerate("ABBB")]
    rows += [("c", "q", i, None) for i in range(2)] + [("d", "r", 0, "A"), ("a", "r", 0, "A")]
    found = compute_agreement(pd.DataFrame(rows, columns=["origin_model", "benchmark", "item_id", "extracted"]))
    assert found["agreement"].loc["a", ["b", "c", "d"]].tolist() == [0.75, 0, 1]
    assert found["kappa"].loc["a", "b"] == pytest.approx((0.75 - 0.5) / 0.5)  # by chance .5 * .25 + .5 * .75
    assert np.isnan(found["agreement"].loc["c", "d"]) and found["n_items"].loc["a", "b"] == 4
    assert np.isnan(found["kappa"].loc["a", "d"])  # one item, one option


def test_recorded_answers_of_six_models_agree_more_than_chance(real_data):
    frame = pd.read_json(real_data / "mmlu_pro_answers.jsonl", lines=True)
    answers = frame.rename(columns={"model": "origin_model", "pred": "extracted"}).assign(benchmark="mmlu_pro")
    found = compute_agreement(answers)
    kappa, shared = found["kappa"].to_numpy(), found["n_items"].to_numpy()
    assert kappa.shape == (6, 6) and np.allclose(np.diag(kappa), 1)
    assert np.nanmax(np.abs(kappa - kappa.T)) < 1e-12 and (kappa[shared > 0] <= 1).all()


def test_the_traps_of_the_paper_s_table():
    table = load_score_table("paper")
    traps = find_traps(table).set_index("trap")
    assert traps.loc["chance", ["one", "other"]].tolist() == ["MPT-30b-chat", "Alpaca-7b"]
    assert traps.loc["chance", "cosine"] == pytest.approx(0.990, abs=5e-4)
    level = traps.loc["level"]
    assert level["cosine"] >= 0.9 and level["rmsd"] < 0.5 and level["s_pref_one"] - level["s_pref_other"] > 0.5
    assert level["cosine"] == compute_kinship(table).loc[level["one"], level["other"]]
    assert len(describe_traps(traps.reset_index())) == 2
    able = replace(table, benchmarks=table.benchmarks.assign(chance=np.nan))
    assert find_traps(able)["trap"].tolist() == ["level"]
