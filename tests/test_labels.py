"""Labels against what a program checked: by eye, identities, and the texts of errors."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml

from karma.errors import InputError
from karma.evaluation.prompts import build_prompt
from karma.figures.labels import title_labels
from karma.labels.audit import (
    COLUMNS,
    audit_pairs,
    audit_strategies,
    build_ceiling,
    compare_models,
    compute_truth,
    save_audit,
)
from karma.pairs.build import build_pair_sets, save_pair_sets
from karma.pool.pool import load_pool, save_pool
from karma.scores.normalise import compute_s_pref
from karma.scores.read import load_score_table, save_score_table
from karma.statistics.intervals import compute_wilson
from karma.statistics.verdicts import compute_smallest_difference
from karma.study.experiment import load_experiment
from tests.conftest import copy_project, run_karma

IDS, KWARGS = ["punctuation:no_comma", "detectable_format:title"], "[{}, {}]"
TEXTS = {"both": "<<Rain>> It is wet.", "title": "<<Rain>> Wet, cold.", "comma": "It is wet.", "none": "Wet, cold."}
TRUTH = {"both": 1.0, "title": 0.5, "comma": 0.5, "none": 0.0}


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Three models: S_pref 1/6, 1/2, 5/6, as in tests/test_pairs.py."""
    path = tmp_path_factory.mktemp("scores") / "three.csv"
    path.write_text("origin_model,arc_easy,ifeval,mmlu_pro\nlow,0.2,0.5,0.2\nmiddle,0.5,0.2,0.8\nhigh,0.8,0.8,0.5\n")
    return load_score_table(path)


def make_study(scores, *answers, strategies=("k_score", "delta", "random")):
    """Prompts whose answers are named by what they follow: (low, middle, high) each."""
    prompts = [build_prompt(f"Describe rain {n}.", IDS, KWARGS) for n in range(len(answers))]
    rows = [{"source": "own", "instruction": p.text, "completions": [
        {"model": m, "response": TEXTS.get(a, a)} for m, a in zip(("low", "middle", "high"), own, strict=True)]}
        for p, own in zip(prompts, answers, strict=True)]  # fmt: skip
    pool = load_pool(rows)
    sets = build_pair_sets(pool, scores, strategies, tau=-1.0, seed=0)
    return prompts, pool, {name: one.table for name, one in sets.items()}


def audit(scores, *answers, **options):
    prompts, pool, tables = make_study(scores, *answers, **options)
    return audit_strategies(tables, compute_truth(prompts, pool), compute_s_pref(scores), 7, 0).set_index("strategy")


def test_the_truth_of_a_response_is_the_share_of_instructions_it_follows(scores):
    prompts, pool, _ = make_study(scores, ("both", "title", "none"), ("comma", " ", "both"))
    truth = compute_truth(prompts, pool, excluded=["Low"])
    assert truth["truth"].tolist() == [1.0, 0.5, 0.0, 0.5, 0.0, 1.0]
    assert truth["usable"].tolist() == [False, True, True, False, False, True]
    assert truth["model"].tolist() == ["low", "middle", "high"] * 2


def test_three_prompts_by_eye(scores):
    """Of k_score's pairs (high over middle) one is right, one wrong and one undecided; delta's are high over low."""
    found = audit(scores, ("none", "title", "both"), ("both", "both", "none"), ("none", "comma", "title"))
    k_score = found.loc["k_score"]
    assert (k_score["n_pairs"], k_score["n_decided"], k_score["label_accuracy"]) == (3, 2, 0.5)
    assert (k_score["low"], k_score["high"]) == compute_wilson(0.5, 2)
    assert k_score["mean_s_pref_gap"] == pytest.approx(1 / 3)
    assert k_score["mean_truth_gap"] == pytest.approx((0.5 - 1.0 + 0.0) / 3)
    delta = found.loc["delta"]
    assert (delta["n_decided"], delta["label_accuracy"]) == (3, pytest.approx(2 / 3))
    assert delta["mean_s_pref_gap"] == pytest.approx(2 / 3)
    truth = found.loc["truth"]
    assert (truth["n_pairs"], truth["n_decided"], truth["label_accuracy"]) == (3, 3, 1.0)
    assert truth["mean_truth_gap"] == pytest.approx((1 + 1 + 0.5) / 3)


def test_rows_columns_and_calls(scores):
    found = audit(scores, ("none", "title", "both"), strategies=("random", "delta", "k_sim")).reset_index()
    assert list(found.columns) == COLUMNS
    assert found["strategy"].tolist() == ["k_sim", "delta", "random", "truth"]  # the vocabulary's order
    assert set(found["judge_calls"]) == {0}


def test_rlaif_has_its_models_s_pref_and_its_judges_calls(scores):
    prompts, pool, tables = make_study(scores, ("both", "title", "none"), strategies=("k_score",))
    table = tables["k_score"].to_pandas().assign(chosen_score=5.0, rejected_score=1.0)  # annotations, not S_pref
    import pyarrow as pa

    rlaif = {"rlaif": pa.Table.from_pandas(table, preserve_index=False)}
    row = audit_strategies(rlaif, compute_truth(prompts, pool), compute_s_pref(scores), 7, 0).iloc[0]
    assert row["judge_calls"] == 7 and row["mean_s_pref_gap"] == pytest.approx(1 / 3)


def test_nothing_decided_is_an_empty_cell_and_not_zero(scores, tmp_path):
    prompts, pool, tables = make_study(scores, ("title", "comma", "title"), strategies=("k_score",))
    truth = compute_truth(prompts, pool)
    found = audit_strategies(tables, truth, compute_s_pref(scores), 0, 0)
    assert found["n_decided"].tolist() == [0, 0] and found[["label_accuracy", "low", "high"]].isna().all(axis=None)
    assert found["mean_truth_gap"].tolist() == [0.0, 0.0]
    save_audit(found, truth, compare_models(truth, compute_s_pref(scores)), tmp_path)
    head, line, _ = (tmp_path / "strategies.csv").read_text().splitlines()
    assert head == ",".join(COLUMNS) and line.startswith("k_score,1,0,,,,0.33")
    assert list(pd.read_csv(tmp_path / "models.csv")["model"]) == ["high", "middle", "low"]
    empty = audit_pairs("k_sim", tables["k_score"].to_pandas().head(0), truth, compute_s_pref(scores))
    assert (empty["n_pairs"], empty["mean_truth_gap"]) == (0, None)


def test_swapped_labels_turn_the_share_round(scores):
    answers = [("none", "title", "both"), ("both", "both", "none"), ("none", "both", "title")]
    prompts, pool, tables = make_study(scores, *answers, strategies=("k_score",))
    truth, pairs = compute_truth(prompts, pool), tables["k_score"].to_pandas()
    swapped = pairs.rename(columns={"chosen_id": "rejected_id", "rejected_id": "chosen_id"})
    one, other = (audit_pairs("k", table, truth, compute_s_pref(scores)) for table in (pairs, swapped))
    assert one["label_accuracy"] == pytest.approx(1 - other["label_accuracy"]) == pytest.approx(1 / 3)
    assert one["mean_truth_gap"] == pytest.approx(-other["mean_truth_gap"])


def test_the_ceiling_s_ties_are_drawn_and_never_decided_by_order(scores):
    prompts, pool, _ = make_study(scores, *[("title", "comma", "none")] * 12)
    truth = compute_truth(prompts, pool)
    shuffled = truth.sample(frac=1, random_state=1)
    one, other = (build_ceiling(t, seed=0).sort_values("row_id", ignore_index=True) for t in (truth, shuffled))
    pd.testing.assert_frame_equal(one, other)
    chosen = {build_ceiling(truth, seed=s)["chosen_id"].iloc[0] for s in range(20)}
    assert len(chosen) == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p, t, s: (p.assign(chosen_id="0" * 32), t, s), "k: response 0{32} of row .* is not in the pool"),
        (lambda p, t, s: (pd.concat([p, p]), t, s), "k: two pairs of one prompt"),
        (lambda p, t, s: (p, t, s.drop("high")), "k: origin model 'high' has no S_pref"),
    ],
)
def test_what_does_not_fit_the_pool_is_an_error(scores, spoil, message):
    prompts, pool, tables = make_study(scores, ("none", "title", "both"))
    parts = spoil(tables["k_score"].to_pandas(), compute_truth(prompts, pool), compute_s_pref(scores))
    with pytest.raises(InputError, match=message):
        audit_pairs("k", *parts)


def test_a_prompt_that_nothing_can_check_is_named(scores):
    prompts, pool, _ = make_study(scores, ("none", "title", "both"), ("none", "title", "both"))
    with pytest.raises(InputError, match=r"'Describe rain 1\..* is no verifiable prompt"):
        compute_truth(prompts[:1], pool)


def test_models_are_compared_over_prompts(scores):
    prompts, pool, _ = make_study(scores, ("none", "title", "both"), ("both", "both", "none"))
    models = compare_models(compute_truth(prompts, pool), compute_s_pref(scores)).set_index("model")
    assert list(models.index) == ["high", "middle", "low"]
    assert models["truth"].tolist() == [0.5, 0.75, 0.5] and (models["n_prompts"] == 2).all()
    half = 12.7062 * np.std([0.5, 1.0], ddof=1) / math.sqrt(2)
    assert models.loc["middle", "high"] == pytest.approx(0.75 + half, abs=1e-4)


@pytest.mark.parametrize("n", [6, 20, 100, 1000])
def test_the_smallest_difference_has_its_power(n):
    from scipy.stats import norm

    d = compute_smallest_difference(n)
    shown = norm.cdf((d * math.sqrt(n) - norm.ppf(0.975) / 2) / math.sqrt(0.25 - d**2))
    assert 0 < d < 0.5 and shown == pytest.approx(0.8)


def test_a_study_s_own_judge_is_called_weak():
    assert title_labels("rlaif", "judge") == "RLAIF (weak judge)" and title_labels("rlaif", "recorded") == "RLAIF"


def test_the_notebook_runs_where_labels_can_be_told_apart(tmp_path):
    """The smoke study's tiny models follow no instruction, so its audit decides nothing; here no model is needed."""
    project = copy_project(tmp_path)
    names = ("gpt-4", "bard", "alpaca-7b", "llama-2-7b-chat")
    prompts = [{"topic": f"Describe rain {n}.", "instruction_id_list": IDS, "kwargs": [{}, {}]} for n in range(8)]
    texts = [[list(TEXTS.values())[(n + k) % 4] for k in range(4)] for n in range(8)]
    rows = [{"source": "own", "instruction": build_prompt(p["topic"], IDS, KWARGS).text, "completions": [
        {"model": m, "response": t} for m, t in zip(names, own, strict=True)]}
        for p, own in zip(prompts, texts, strict=True)]  # fmt: skip
    (project / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    values = {"name": "told", "strategies": ["k_score", "k_sim", "delta"], "models": {"tiny": {"random": {
        "hidden_size": 8, "layers": 1, "heads": 1}}}, "policies": ["tiny"], "scores": {"table": "paper"},
        "pool": {"source": "pool.jsonl", "instructions": "prompts.jsonl"},
        "labels": {"audit": True, "judgments": "votes.json", "scores": "paper"}}  # fmt: skip
    votes = [{"question_id": n, "model_a": names[n % 3], "model_b": names[3], "winner": "model_a"} for n in range(8)]
    (project / "votes.json").write_text(json.dumps(votes))
    (project / "params" / "told.yaml").write_text(yaml.safe_dump(values))
    out, table = project / "outputs" / "told", load_score_table("paper")
    save_pool(rows, out / "pool" / "pool.parquet")
    (out / "pool" / "accounting.json").write_text("{}")
    (out / "kinship").mkdir()
    compute_s_pref(table).rename("s_pref").rename_axis("origin_model").to_csv(out / "kinship" / "s_pref.csv")
    save_score_table(table, out / "kinship" / "scores.csv")
    for name in ("scores_normalized.csv", "strategies.json"):
        (out / "kinship" / name).touch()
    pool = load_pool(out / "pool" / "pool.parquet")
    save_pair_sets(pool, table, {s: out / "pairs" / s for s in values["strategies"]}, tau=0.1, seed=0)
    result = run_karma(project, "notebook", "09_label_audit", "params/told.yaml")
    assert result.returncode == 0, result.stderr[-2000:]
    audit = pd.read_csv(out / "labels" / "strategies.csv").set_index("strategy")
    assert list(audit.index) == ["k_score", "k_sim", "delta", "truth"] and list(audit.reset_index()) == COLUMNS
    assert (audit["n_pairs"] == 8).all() and audit.loc["delta", "n_decided"] > 0
    assert audit.loc["truth", "mean_truth_gap"] == 1.0 and audit.loc["truth", "n_decided"] == 8
    assert len(pd.read_csv(out / "labels" / "responses.csv")) == 32
    kinships = pd.read_csv(out / "labels" / "kinships.csv").set_index(["kinship", "question"])
    assert kinships.loc[("cosine", "labels"), "n_comparisons"] > 0 and kinships.loc[("kappa", "labels"), "told"] == 0
    assert (out / "labels" / "figures" / "kinships.png").is_file()
    assert pd.read_csv(out / "labels" / "recorded" / "label_accuracy.csv").loc[0, "n_decided"] == 8
    assert (out / "labels" / "recorded" / "figures" / "trade_off.svg").is_file()


def test_an_audit_without_verifiable_prompts_is_refused(tmp_path):
    text = "models: {m: {hub: a/b}}\npolicies: [m]\nscores: {table: paper}\nlabels: {audit: true}\n"
    (tmp_path / "mine.yaml").write_text("name: mine\n" + text)
    with pytest.raises(InputError, match=r"labels.audit: name the file of the pool's verifiable prompts"):
        load_experiment(tmp_path / "mine.yaml")
