"""Labels against recorded judgments: an independent loop, a pool of known truth, coverage, layouts, and bad sources."""

import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from karma.errors import InputError
from karma.labels.comparisons import COLUMNS, build_comparisons, cut_pairs, measure_pairs
from karma.labels.judgments import build_values
from karma.labels.layouts import load_judgments, read_rows
from karma.labels.matching import match_models
from karma.labels.recorded import BY_CONSTRUCTION, audit_recorded, describe_recorded, save_recorded
from karma.labels.sets import list_sets, measure_strategies, pick_all
from karma.pairs.build import save_pair_sets
from karma.pool.pool import load_pool, save_pool
from karma.pool.responses import to_hex
from karma.results.labels import show_labels
from karma.scores.read import load_score_table
from karma.scores.table import MEASURES
from karma.statistics.intervals import compute_comparison_share

ROOT = Path(__file__).parent.parent
BY = "weighted_alpaca_eval_gpt4_turbo"


@pytest.fixture
def leaderboard(real_data):
    return load_score_table(real_data / "open_llm_leaderboard_3827.csv", "open_llm_leaderboard_v2")


def write_results(folder, annotations, by=BY):
    """AlpacaEval's layout: model -> (instruction, preference) rows; answers are as long as their model's place."""
    for place, (model, rows) in enumerate(annotations.items(), 1):
        (folder / "results" / model / by).mkdir(parents=True)
        outputs = [{"instruction": text, "output": "x" * place, "generator": model} for text, _ in rows]
        own = [{"instruction": text, "generator_2": model, "generator_1": "base", "preference": p} for text, p in rows]
        (folder / "results" / model / "model_outputs.json").write_text(json.dumps(outputs))
        (folder / "results" / model / by / "annotations.json").write_text(json.dumps(own))
    return folder


def write_table(path, scores):
    path.write_text("origin_model,arc_easy,mmlu_pro\n" + "".join(f"{m},{a},{b}\n" for m, (a, b) in scores.items()))
    return path


THREE = {"x/Low-1": (0.2, 0.3), "x/mid-2": (0.5, 0.5), "x/high-3": (0.8, 0.9)}


def test_an_independent_loop_agrees(real_data, leaderboard):
    """Every number of the sample's first forty prompts again, by loops over dictionaries and the leaderboard's own CSV."""
    results = real_data / "alpaca_eval_judged" / "results"
    table = pd.read_csv(real_data / "open_llm_leaderboard_3827.csv")
    raw = ["IFEval Raw", "BBH Raw", "MATH Lvl 5 Raw", "GPQA Raw", "MUSR Raw", "MMLU-PRO Raw"]
    value, length, rows = {}, {}, {}
    for folder in results.iterdir():
        name = folder.name
        (own,) = table[table["fullname"].str.lower().str.split("/").str[-1] == name.lower()][raw].to_numpy().tolist()
        rows[name] = own
        for a in json.loads((folder / BY / "annotations.json").read_text()):
            value[name, a["instruction"]] = a["preference"]
        for o in json.loads((folder / "model_outputs.json").read_text()):
            length[name, o["instruction"]] = len(o["output"])
    prompts = sorted({p for _, p in value})[:40]
    low, high = np.min(list(rows.values()), axis=0), np.max(list(rows.values()), axis=0)
    unit = {m: (np.array(r) - low) / (high - low) for m, r in rows.items()}
    s_pref = {m: u.mean() for m, u in unit.items()}
    kin = {(a, b): unit[a] @ unit[b] / np.linalg.norm(unit[a]) / np.linalg.norm(unit[b]) for a in unit for b in unit}

    def judge(chosen, rejected, prompt):
        gap = value[chosen, prompt] - value[rejected, prompt]
        return np.array([1, gap > 0.02, abs(gap) > 0.02, gap, s_pref[chosen] - s_pref[rejected]])

    def order(a, b):
        return (a, b) if s_pref[a] > s_pref[b] else (b, a)

    rules = {
        "k_score": lambda four: sorted(four, key=s_pref.get)[:-3:-1],
        "delta": lambda four: [max(four, key=s_pref.get), min(four, key=s_pref.get)],
        "k_sim": lambda four: order(*max(combinations(four, 2), key=lambda p: kin[p])),
        "least_kin": lambda four: order(*min((p for p in combinations(four, 2) if kin[p] >= 0.1), key=lambda p: kin[p])),
        "k_score_sim": lambda four: max((order(*p) for p in combinations(four, 2)),
                                        key=lambda p: (s_pref[p[0]], kin[p])),
    }  # fmt: skip
    sums = {name: np.zeros(5) for name in ("all", "length", *rules)}
    bins = np.zeros((6, 5))
    for prompt in prompts:
        there = [m for m in rows if (m, prompt) in value]
        for pair in combinations(there, 2):
            found = judge(*order(*pair), prompt)
            sums["all"] += found
            bins[np.searchsorted([0.05, 0.1, 0.2, 0.3, 0.5], found[4], side="right")] += found
        for four in combinations(there, 4):
            for name, rule in rules.items():
                sums[name] += judge(*rule(four), prompt)
            by_length = sorted(four, key=lambda m: length[m, prompt])
            if (
                length[by_length[0], prompt] < length[by_length[1], prompt]
                and length[by_length[2], prompt] < length[by_length[3], prompt]
            ):
                sums["length"] += judge(by_length[3], by_length[0], prompt)
    records = [(p, m, v - 1, float(length[m, p])) for (m, p), v in value.items() if p in prompts]
    judgments = build_values(pd.DataFrame(records, columns=["prompt", "model", "value", "length"]), "x", "own", "share")
    audit = audit_recorded(judgments, leaderboard)
    got = audit.accuracy.set_index("slice")
    assert got.loc["all", "label_accuracy"] == pytest.approx(sums["all"][1] / sums["all"][2], abs=1e-9)
    assert got.loc["all", "n_comparisons"] == sums["all"][0]
    assert got.loc["s_pref_gap", "n_decided"].tolist() == bins[:, 2].tolist()
    assert got.loc["s_pref_gap", "label_accuracy"].to_numpy() == pytest.approx(
        bins[:, 1] / bins[:, 2], abs=1e-9, nan_ok=True
    )
    strategies = audit.strategies.set_index("strategy")
    for name in rules:
        n, right, decided, truth, gap = sums[name]
        row = strategies.loc[name]
        assert (row["n_pairs"], row["n_decided"]) == (n, decided), name
        assert row["label_accuracy"] == pytest.approx(right / decided, abs=1e-9), name
        assert row["mean_truth_gap"] == pytest.approx(truth / n, abs=1e-9), name
        assert row["mean_s_pref_gap"] == pytest.approx(gap / n, abs=1e-9), name
    assert strategies.loc["random", "label_accuracy"] == pytest.approx(got.loc["all", "label_accuracy"], abs=0.02)
    assert strategies.loc["length", "label_accuracy"] == pytest.approx(sums["length"][1] / sums["length"][2], abs=0.01)


def test_measures_of_kinship_change_picks_and_nothing_else(real_data, leaderboard):
    audit = audit_recorded(load_judgments(str(real_data / "alpaca_eval_judged")), leaderboard)
    measures = audit.measures.set_index(["measure", "strategy"])
    own = audit.strategies.set_index("strategy")
    for name in ("k_sim", "k_score_sim", "least_kin"):
        pd.testing.assert_series_equal(measures.loc[("cosine", name), own.columns], own.loc[name], check_names=False)
    gaps = measures["mean_s_pref_gap"].unstack()["k_sim"]
    assert gaps["rmsd"] < gaps["cosine"] and gaps["rank"] < gaps["cosine"]  # the cosine is blind to level
    assert set(measures.index.get_level_values("measure")) == set(MEASURES)
    assert "k_score" not in measures.index.get_level_values("strategy")


def test_the_sample_through_the_command(real_data, tmp_path):
    command = [sys.executable, "-m", "karma.cli", "audit-labels", "--judgments", str(real_data / "alpaca_eval_judged"), "--scores",
               str(real_data / "open_llm_leaderboard_3827.csv"), "--columns", "open_llm_leaderboard_v2", "--out", str(tmp_path)]  # fmt: skip
    found = subprocess.run(command, text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "10 models are few" in found.stdout and "if the whole table normalises" in found.stdout
    accuracy, strategies = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("label_accuracy", "strategies"))
    assert list(accuracy) == COLUMNS and set(accuracy["slice"]) == {
        "all",
        "s_pref_gap",
        "kinship",
        "s_pref_gap_in_kin",
        "p_flip",
    }
    assert strategies["strategy"].tolist() == [
        "k_score",
        "k_sim",
        "k_score_sim",
        "delta",
        "random",
        "least_kin",
        "k_sure",
        "min_confidence",
        "length",
    ]
    for frame in (accuracy.dropna(subset=["label_accuracy"]), strategies):
        assert ((frame["low"] <= frame["label_accuracy"]) & (frame["label_accuracy"] <= frame["high"])).all()
    by_gap = accuracy[accuracy["slice"] == "s_pref_gap"]
    assert (
        by_gap[["n_model_pairs", "n_comparisons", "n_decided"]].sum().tolist()
        == accuracy.loc[0, ["n_model_pairs", "n_comparisons", "n_decided"]].tolist()
    )
    books = json.loads((tmp_path / "accounting.json").read_text())
    assert (
        books["n_comparisons"]
        == books["decided"] + books["judged_tie"] + books["equal_s_pref"]
        == accuracy.loc[0, "n_comparisons"]
    )
    assert books["judgments_in"] == books["used"] + books["missing_preference"] + books["unmatched_model"]
    for figure in ("label_accuracy", "surface", "trade_off", "mislabelled"):
        assert all((tmp_path / "figures" / f"{figure}{end}").stat().st_size > 1000 for end in (".png", ".svg"))


def simulate(rng, n_models, n_prompts, noise=0.6):
    """Models whose judged quality is their score and an error of their own; prompts that tell more or less."""
    score = rng.normal(size=n_models)
    quality = score + noise * rng.normal(size=n_models)
    told = np.exp(0.5 * rng.normal(size=(n_prompts, 1))) * (quality + 0.5 * rng.normal(size=(n_prompts, n_models)))
    return score, told + rng.normal(size=(n_prompts, n_models))


def make_comparisons(score, values):
    names = [f"m{i:02d}" for i in range(len(score))]
    rows = pd.DataFrame(values, columns=names).rename_axis("prompt").reset_index()
    judgments = build_values(rows.melt("prompt", var_name="model"), "simulated", "own", "quality")
    kin = pd.DataFrame(np.ones((len(names), len(names))), names, names)
    return build_comparisons(judgments, pd.Series(score, names), kin)


def test_intervals_of_few_models_hold_the_truth_that_others_would_show():
    rng, held, cases = np.random.default_rng(0), 0, 300
    right = decided = 0
    for _ in range(150):
        both = make_comparisons(*simulate(rng, 30, 20))
        right, decided = right + both.find_right(0.1).sum(), decided + both.find_decided(0.1).sum()
    truth, widths = right / decided, []
    for _ in range(cases):
        row = measure_pairs(make_comparisons(*simulate(rng, 10, 60)), np.ones(45, bool), 0.1)
        held += row["low"] <= truth <= row["high"]
        widths.append(row["high"] - row["low"])
    assert 0.92 <= held / cases <= 0.99
    assert np.mean(widths) > 4 * 2 * 1.96 * math.sqrt(
        truth * (1 - truth) / (45 * 60)
    )  # not as if comparisons were independent


def test_a_known_truth_is_found_by_every_strategy():
    """Judged as S_pref says but for one in five prompts, turned round: every label is right in four of five."""
    rng = np.random.default_rng(1)
    score = rng.random(8)
    turned = np.where(rng.random((200, 1)) < 0.2, -1, 1)
    both = make_comparisons(score, turned * score)
    share = float((turned > 0).mean())
    sets = list_sets(both.judgments.answered, 0)
    assert len(sets.members) == 70
    rows = measure_strategies(both, pick_all(both, sets, 0.1, 0), sets, 0.0).set_index("strategy")
    assert rows["label_accuracy"].to_numpy() == pytest.approx(share)
    assert (rows["low"] < 0.8).all() and (rows["high"] > 0.8).all()
    assert (rows.drop("random")["n_pairs"] == 200 * 70).all() and rows.loc["random", "n_pairs"] == 200 * 70 * 6


def test_sure_labels_by_eye():
    """Nearest kin are a coin flip: k_sim takes them, k_sure the next of kin that are told apart, min_confidence nothing."""
    score, values = np.array([0.9, 0.89, 0.5, 0.1]), np.array([[0.2, 0.9, 0.4, 0.1]])
    both = make_comparisons(score, values)
    kin = np.array([[1, 0.99, 0.8, 0.3], [0.99, 1, 0.7, 0.3], [0.8, 0.7, 1, 0.6], [0.3, 0.3, 0.6, 1]])
    sure = np.full((4, 4), 1.0)
    sure[0, 1] = sure[1, 0] = 0.55
    sets = list_sets(both.judgments.answered, 0)
    found = {}
    for name, known in (("known", sure), ("unknown", None)):
        own = replace(both, kinship=kin, confidence=known)
        found[name] = measure_strategies(own, pick_all(own, sets, 0.1, 0), sets, 0.0).set_index("strategy")
    assert not {"k_sure", "min_confidence"} & set(found["unknown"].index)
    rows = found["known"]
    assert rows.drop(["k_sure", "min_confidence"]).equals(found["unknown"])
    assert rows.loc["k_sim", ["n_pairs", "label_accuracy", "mean_truth_gap"]].tolist() == pytest.approx([1, 0, -0.7])
    assert rows.loc["k_sure", ["n_pairs", "label_accuracy", "mean_truth_gap"]].tolist() == pytest.approx([1, 0, -0.2])
    assert rows.loc["min_confidence", "n_pairs"] == 0 and math.isnan(rows.loc["min_confidence", "label_accuracy"])
    surer = replace(both, kinship=kin, confidence=np.ones((4, 4)))
    rows = measure_strategies(surer, pick_all(surer, sets, 0.1, 0), sets, 0.0).set_index("strategy")
    assert rows.loc["k_sim"].equals(rows.loc["k_sure"]) and rows.loc["k_sim"].equals(rows.loc["min_confidence"])


def test_the_two_way_interval_by_hand():
    """Four models, two prompts: the variance is that of prompts and of the jackknife over models."""
    hits, units, of_model, counted = [5, 3], [6, 6], [5, 4, 4, 3], [6, 6, 6, 6]
    found = compute_comparison_share(hits, units, of_model, counted)
    without = (8 - np.array(of_model)) / 6
    by_model, by_prompt = 3 / 4 * ((without - without.mean()) ** 2).sum(), ((5 - 4) ** 2 + (3 - 4) ** 2) * 2 / 144
    from scipy.stats import t

    df = (by_model + by_prompt) ** 2 / (by_model**2 / 3 + by_prompt**2 / 1)
    n, z = 8 / 12 * 4 / 12 / (by_model + by_prompt) + 1, t.ppf(0.975, df)
    centre, half = (2 / 3 + z**2 / 2 / n) / (1 + z**2 / n), z / (1 + z**2 / n) * math.sqrt(2 / 9 / n + z**2 / 4 / n**2)
    assert (found["low"], found["high"]) == (pytest.approx(centre - half), pytest.approx(centre + half))
    assert (
        compute_comparison_share([5, 5], [5, 5], [5, 5, 0], [5, 5, 10])["low"] == 0.0
    )  # one model in every comparison


def test_bins_are_half_open_and_the_last_is_closed():
    inside = {low: who.tolist() for low, _, who in cut_pairs(np.array([0.0, 0.05, 0.1, 1.0]), (0.0, 0.05, 0.1, 1.0))}
    assert inside == {
        0.0: [True, False, False, False],
        0.05: [False, True, False, False],
        0.1: [False, False, True, True],
    }


def test_what_is_missing_unmatched_or_tied_is_counted(tmp_path):
    rows = {
        "low-1": [("a", 1.2), ("b", None), ("c", 1.1)],
        "Mid_2": [("a", 1.6), ("b", 1.3), ("c", 1.105)],
        "stranger": [("a", 1.0)],
    }
    judgments = load_judgments(write_results(tmp_path, rows))
    audit = audit_recorded(judgments, load_score_table(write_table(tmp_path / "t.csv", THREE)))
    books = audit.books
    assert (books["judgments_in"], books["used"], books["missing_preference"], books["unmatched_model"]) == (7, 5, 1, 1)
    assert (
        books["unmatched"] == ["stranger"]
        and books["n_unmatched"] == 1
        and books["matched"] == {"Mid_2": "x/mid-2", "low-1": "x/Low-1"}
    )
    assert (books["n_comparisons"], books["decided"], books["judged_tie"]) == (2, 1, 1)
    row = audit.accuracy.iloc[0]
    assert (row["label_accuracy"], row["low"], row["high"]) == (1.0, 0.0, 1.0)  # one pair of models tells of no other
    assert any("stranger" in line for line in describe_recorded(audit))
    save_recorded(audit, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "sensitivity.csv")["setting"].unique().tolist() == ["tie", "normalised by"]


def test_precisions_and_doubles_are_decided_or_refused(tmp_path, leaderboard):
    twice = leaderboard.facts["repository"].value_counts()
    name = next(
        r
        for r in twice[twice > 1].index
        if leaderboard.facts["repository"].str.endswith("/" + r.split("/")[1]).sum() == twice[r]
    )
    judged = [name, "gemma-7b-it"]
    with pytest.raises(InputError, match=r"stands there as b?float16 and .*--prefer b?float16"):
        match_models(judged, leaderboard)
    assert match_models(judged, leaderboard, "bfloat16").rows[name] == f"{name} bfloat16"
    doubled = load_score_table(write_table(tmp_path / "t.csv", {**THREE, "y/low-1": (0.4, 0.4)}))
    with pytest.raises(InputError, match=r"'low-1' may be x/Low-1 or y/low-1: remove all but one row"):
        match_models(["low-1", "mid-2", "high-3"], doubled)
    assert match_models(["mid-2", "high-3"], doubled).unmatched == []  # doubles that nobody judged do not matter
    with pytest.raises(InputError, match=r"'low-1' and 'LOW 1' are the same model"):
        match_models(["low-1", "LOW 1", "mid-2"], load_score_table(write_table(tmp_path / "u.csv", THREE)))


def test_votes_of_people(tmp_path):
    table = load_score_table(write_table(tmp_path / "t.csv", THREE))
    pandalm = [{"instruction": "Hi", "input": math.nan, "cmp_key": "low-1_mid-2", "response1": "aa", "response2": "b",
                "annotator1": 2, "annotator2": 2, "annotator3": 0},
               {"instruction": "Hi", "input": math.nan, "cmp_key": "high-3_low-1", "response1": "ccc", "response2": "aa",
                "annotator1": 2, "annotator2": 1, "annotator3": 0}]  # fmt: skip
    (tmp_path / "pandalm.json").write_text(json.dumps(pandalm))
    audit = audit_recorded(load_judgments(tmp_path / "pandalm.json"), table)
    assert (audit.books["n_comparisons"], audit.books["decided"], audit.accuracy.loc[0, "label_accuracy"]) == (
        2,
        1,
        1.0,
    )
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "answer"}]
    votes = [{"question_id": 81, "model_a": "high-3", "model_b": "low-1", "winner": winner, "turn": turn,
              "conversation_a": said * 2, "conversation_b": said * 2} for turn, winner in ((1, "model_a"), (1, "tie"), (2, "model_b"))]  # fmt: skip
    found = read_rows(votes, "votes")
    assert (
        found.votes["gap"].tolist() == [0.5, -1.0]
        and found.cluster.tolist() == [0, 0]
        and found.lengths[0].tolist() == [6, 6]
    )
    assert audit_recorded(found, table).accuracy.loc[0, "label_accuracy"] == 0.5


def test_pools_studies_and_pair_folders(tmp_path):
    table = load_score_table(write_table(tmp_path / "t.csv", THREE))
    rows = [{"source": "s", "instruction": f"q{n}", "completions": [
        {"model": m, "response": m * (n + 1), "overall_score": score} for m, score in zip(THREE, scores, strict=True)]}
        for n, scores in enumerate([(1, 2, 3), (4, 2, "N/A"), (5, 5, 1)])]  # fmt: skip
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rated = load_judgments(tmp_path / "pool.jsonl")
    audit = audit_recorded(rated, table)
    assert (audit.books["n_comparisons"], audit.books["decided"], audit.books["missing_preference"]) == (7, 6, 1)
    assert audit.accuracy.loc[0, "label_accuracy"] == 0.5
    rlaif = audit.strategies.set_index("strategy").loc["rlaif"]
    assert (rlaif["label_accuracy"], rlaif["judge_calls"]) == (1.0, 8)  # these judgments label it
    assert audit.books["rlaif_by_construction"] and f"note: {BY_CONSTRUCTION}" in describe_recorded(audit)
    other = replace(rated, annotations=-rated.values)
    assert not audit_recorded(other, table).books["rlaif_by_construction"]
    pool = load_pool(rows)
    save_pair_sets(pool, table, {s: tmp_path / "pairs" / s for s in ("delta", "k_score")}, tau=-1.0, seed=0)
    for name, truth in (("delta", [0.5, -0.5, None]), ("k_score", [True, None, False])):
        file = tmp_path / "pairs" / name / "pairs.parquet"
        pq.write_table(pq.read_table(file).append_column("truth", pa.array(truth)), file)
    audit = audit_recorded(load_judgments(tmp_path / "pairs"), table)
    assert audit.strategies.set_index("strategy")["label_accuracy"].to_dict() == {"delta": 0.5, "k_score": 0.5}
    assert audit.books["layout"] == "pairs" and audit.accuracy.loc[0, "n_decided"] == 4


def test_a_study_s_folder_is_read_with_its_judge(tmp_path):
    rows = [{"source": "s", "instruction": f"q{n}", "completions": [
        {"model": m, "response": f"{m} {n}", "overall_score": 1} for m in THREE]} for n in range(2)]  # fmt: skip
    pool = load_pool(rows)
    (batch,) = pool.batches(None)
    ids = {"row_id": to_hex(batch.row_digest[batch.row]), "response_id": to_hex(batch.response_digest)}
    scores = [4.0, 2.0, 1.0, 3.0, None, 1.0]  # of low, mid and high, twice
    (tmp_path / "study" / "pool").mkdir(parents=True)
    save_pool(iter(rows), tmp_path / "study" / "pool" / "pool.parquet")
    pq.write_table(pa.table({**ids, "score": scores}), tmp_path / "study" / "pool" / "annotations.parquet")
    found = load_judgments(tmp_path / "study")
    assert (found.layout, found.unit) == ("study", "score by annotations.parquet")
    by_model = dict(zip(map(str.lower, found.models), np.nan_to_num(found.values, nan=-1).T.tolist(), strict=True))
    assert by_model == {"x/low-1": [4.0, 3.0], "x/mid-2": [2.0, -1.0], "x/high-3": [1.0, 1.0]}


def test_one_of_two_annotators_is_named(tmp_path):
    rows = {"low-1": [("a", 1.2), ("b", 1.4)], "mid-2": [("a", 1.6), ("b", 1.3)]}
    for by, rest in (("one", rows), ("two", {m: [(t, 3 - p) for t, p in own] for m, own in rows.items()})):
        for model, own in rest.items():
            (tmp_path / "results" / model / by).mkdir(parents=True)
            said = [{"instruction": t, "generator_2": model, "generator_1": "base", "preference": p} for t, p in own]
            (tmp_path / "results" / model / by / "annotations.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="annotations are by one, two: name one with --annotator"):
        load_judgments(tmp_path)
    both = [load_judgments(tmp_path, annotator=name).values for name in ("one", "two")]
    assert np.allclose(both[0], [[0.2, 0.6], [0.4, 0.3]]) and np.allclose(both[0] + both[1], 1)
    with pytest.raises(InputError, match="annotations are by one, two"):
        load_judgments(tmp_path, annotator="three")


def test_the_report_and_the_readme_show_what_was_recorded(tmp_path, monkeypatch):
    table = load_score_table(write_table(tmp_path / "t.csv", THREE))
    rng = np.random.default_rng(0)
    rows = [
        (f"q{n}", model, value, 10.0, value)
        for n in range(6)
        for model, value in zip(THREE, rng.random(3), strict=True)
    ]
    judged = pd.DataFrame(rows, columns=["prompt", "model", "value", "length", "annotation"])
    audit = audit_recorded(build_values(judged, "six.json", "own", "share"), table)
    study = SimpleNamespace(outputs=tmp_path, settings=SimpleNamespace(
        strategies=[], labels=SimpleNamespace(audit=True), annotation=SimpleNamespace(source="recorded")))  # fmt: skip
    folder, written = tmp_path / "labels" / "recorded", tmp_path / "report"
    save_recorded(audit, folder)
    audit.strategies.to_csv(folder.parent / "strategies.csv", index=False)
    *_, shown = show_labels(study, written, written)
    assert (written / "recorded_label_accuracy.png").is_file() and (written / "recorded_labels.csv").is_file()
    for part in ("six.json", "sets of 3 of 3 models on 6 prompts", BY_CONSTRUCTION):
        assert part in shown.caption
    monkeypatch.syspath_prepend(ROOT / "docs")
    said = importlib.import_module("make_readme").build_recorded(folder)
    every = audit.accuracy.iloc[0]
    assert f"{audit.books['n_comparisons']} comparisons {audit.books['decided']} are decided" in said
    assert f"Over all pairs {every['label_accuracy']:.2f} of the labels are right" in said
    audit.strategies.query("strategy != 'rlaif'").to_csv(folder.parent / "strategies.csv", index=False)
    (folder / "strategies.csv").unlink()
    assert [shown.name for shown in show_labels(study, written, written)] == ["label_accuracy", "labels"]


GOOD = {"low-1": [("a", 1.2), ("b", 1.4)], "mid-2": [("a", 1.6), ("b", 1.3)]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: write_results(f, {**GOOD, "mid-2": [("a", math.nan)]}), "preference of 'a' is nan: expected 1 to 2, or null"),
        (lambda f: write_results(f, {**GOOD, "mid-2": [("a", 3.0)]}), "preference of 'a' is 3.0: expected 1 to 2"),
        (lambda f: write_results(f, {**GOOD, "mid-2": [("a", 1.1), ("a", 1.1)]}), "instruction 'a' is judged twice for 'mid-2'"),
        (lambda f: write_results(f, {"low-1": [("a", 1.2)]}), "only one model, 'low-1', is judged"),
        (lambda f: write_results(f, {"low-1": [("a", None)], "mid-2": [("a", None)]}), "none of 2 models has a preference"),
        (lambda f: write_results(f, {"low-1": [("a", 1.2)], "mid-2": [("b", 1.2)]}), "no prompt has judged responses of two"),
        (lambda f: write_results(f, {"who": [("a", 1.2)], "else": [("a", 1.2)]}), "has scores of 0 of 2 judged models"),
        (lambda f: write_results(write_results(f, GOOD, "one") / "more", GOOD, "two").parent / "none", "do not exist"),
        (lambda f: (f / "x.json").write_text('[{"question": 1}]') and f / "x.json", r"x.json has no layout that is known \(keys: question\)"),
        (lambda f: (f / "x.json").write_text("[]") and f / "x.json", "it holds no rows"),
        (lambda f: f, "has no layout that is known"),
        (lambda f: f / "missing.json", "judgments .* do not exist: give a folder, a file or a Hub id"),
    ],
)  # fmt: skip
def test_a_bad_source_is_one_line(tmp_path, make, message):
    (tmp_path / "bad").mkdir()
    table = load_score_table(write_table(tmp_path / "t.csv", THREE))
    with pytest.raises(InputError, match=message) as caught:
        audit_recorded(load_judgments(make(tmp_path / "bad")), table)
    assert "\n" not in str(caught.value)


def test_a_bad_source_ends_the_command_with_2(tmp_path):
    write_results(tmp_path, {**GOOD, "mid-2": [("a", math.nan)]})
    command = [sys.executable, "-m", "karma.cli", "audit-labels", "--judgments", str(tmp_path), "--scores",
               str(write_table(tmp_path / "t.csv", THREE)), "--out", str(tmp_path / "out")]  # fmt: skip
    found = subprocess.run(command, text=True, capture_output=True, check=False)
    assert found.returncode == 2 and len(found.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_the_hub_without_a_network_is_one_line(monkeypatch):
    import datasets

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("offline\nmode")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        InputError,
        match=r"lmsys/mt_bench_human_judgments cannot be loaded from the Hub \(offline mode\): give a local copy",
    ):
        load_judgments("lmsys/mt_bench_human_judgments")
