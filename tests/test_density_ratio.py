"""The labeller density_ratio: its scores against single passes, its pairs by eye, and its place in a study."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from karma.errors import InputError
from karma.files.reading import load_json
from karma.labels.audit import audit_strategies
from karma.labels.density_ratio import run, score_densities
from karma.models.load import load_model, load_tokenizer
from karma.models.logprobs import compute_logps
from karma.pairs.build import build_pairs
from karma.pool.annotations import load_annotations
from karma.pool.pool import load_pool, save_pool
from karma.pool.responses import list_responses
from karma.study.experiment import load_experiment
from karma.study.sections import ModelSpec
from karma.study.stages import find_job, list_jobs
from tests.conftest import change_base

SHAPE = {"hidden_size": 32, "layers": 2, "heads": 2}
MODELS = {name: ModelSpec(random=SHAPE, seed=seed).model_dump() for seed, name in enumerate(("strong", "weak"), 1)}
COMPUTE = change_base("compute", device="cpu", dtype="float32")
ROWS = [
    {"source": "own", "instruction": f"Count to {k}.", "completions": [
        {"model": model, "response": f"{model} {'one two three ' * (k + place)}"}
        for place, model in enumerate(("bard", "gpt-4", "alpaca-7b"))]}
    for k in range(1, 5)
]  # fmt: skip


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool") / "pool" / "pool.parquet"
    save_pool(ROWS, path)
    return path


@pytest.fixture(scope="module")
def scored(pool_file):
    return score_densities(list_responses(pool_file), MODELS, "strong", "weak", COMPUTE, 256)


def test_scores_are_differences_of_summed_log_probabilities(pool_file, scored):
    rows, (table, cost) = list_responses(pool_file), scored
    prompts = [[{"role": "user", "content": row["instruction"]}] for row in rows]
    answers = [[{"role": "assistant", "content": row["response"]}] for row in rows]
    both = []
    for name in ("strong", "weak"):
        model, tokenizer = load_model(MODELS, name), load_tokenizer(MODELS, name)
        both.append(compute_logps(model, tokenizer, prompts, answers, max_length=256, batch_size=1)[0].numpy())
    assert table["logps_strong"].to_numpy() == pytest.approx(both[0], abs=1e-3)
    assert table["score"].to_numpy() == pytest.approx(both[0] - both[1], abs=2e-3)
    assert np.ptp(table["score"].to_numpy()) > 0.02 and table["model"].to_pylist() == [row["model"] for row in rows]
    assert cost["responses"] == 12 and (cost["strong"], cost["weak"]) == ("strong", "weak") and cost["tokens"] > 0


def test_a_model_against_itself_prefers_nothing_and_a_full_prompt_scores_nothing(pool_file):
    rows = list_responses(pool_file)
    same, _ = score_densities(rows, {**MODELS, "weak": MODELS["strong"]}, "strong", "weak", COMPUTE, 256)
    assert same["score"].to_pylist() == [0.0] * 12
    cut, _ = score_densities(rows, MODELS, "strong", "weak", COMPUTE, 16)
    assert cut["score"].null_count == 12
    unscored = build_pairs(load_pool(ROWS), None, "density_ratio", tau=0.1, seed=0, densities=load_annotations(cut))
    assert len(unscored) == 0 and unscored.accounting.responses_unused["not_annotated"] == 12


def test_pairs_by_eye(pool_file, scored):
    """The response with the highest ratio is chosen, the lowest rejected; an unscored one takes no part."""
    table = scored[0]
    ratios = table["score"].to_pylist()
    ratios[0] = None
    table = table.set_column(table.column_names.index("score"), "score", pa.array(ratios, pa.float64()))
    rules = {"tau": 0.1, "seed": 0, "rejected": "worst", "densities": load_annotations(table)}
    pairs = build_pairs(load_pool(ROWS), None, "density_ratio", **rules)
    for k, pair in enumerate(pairs.table.to_pylist()):
        own = {ROWS[k]["completions"][place]["response"]: ratios[3 * k + place] for place in range(3)}
        known = {text: ratio for text, ratio in own.items() if ratio is not None}
        assert pair["chosen"][0]["content"] == max(known, key=known.get)
        assert pair["rejected"][0]["content"] == min(known, key=known.get)
        assert (pair["chosen_score"], pair["rejected_score"]) == (max(known.values()), min(known.values()))
        assert pair["label_confidence"] is None and pair["strategy"] == "density_ratio"
    books = pairs.accounting
    assert len(pairs) == 4 and books.responses_unused["not_annotated"] == 1 and books.responses_usable == 11
    assert books.settings["label_confidence"] == "unknown: labels are density ratios"
    with pytest.raises(
        InputError, match="score the pool with `karma density_ratio`, and give the table with --densities"
    ):
        build_pairs(load_pool(ROWS), None, "density_ratio", tau=0.1, seed=0)
    responses = pd.DataFrame({**{c: table[c].to_pylist() for c in ("row_id", "response_id", "model")}, "usable": True,
                              "truth": [0.0 if r is None else r for r in ratios]})  # fmt: skip
    s_pref = pd.Series({"bard": 0.2, "gpt-4": 0.9, "alpaca-7b": 0.1})
    row = audit_strategies({"density_ratio": pairs.table}, responses, s_pref, 7, 0).iloc[0]
    assert (row["strategy"], row["n_decided"], row["label_accuracy"], row["judge_calls"]) == (
        "density_ratio",
        4,
        1.0,
        0,
    )


EXTRA = "strategies: [k_sim, density_ratio]\ndensity_ratio: {strong: tiny-a, weak: tiny-b}\n"


def write_experiment(folder, extra):
    (folder / "x.yaml").write_text(f"extends: smoke\nname: x\n{extra}")
    return load_experiment(folder / "x.yaml")


def test_a_study_scores_its_pool_once_and_for_this_strategy_alone(tmp_path, pool_file):
    experiment = write_experiment(tmp_path, EXTRA)
    experiment.outputs = pool_file.parent.parent
    names = [job.stage.name for job in list_jobs(experiment)]
    assert names.count("density_ratio") == 1 and names.index("density_ratio") < names.index("03_binarization")
    job = find_job(experiment, "density_ratio", {})
    assert set(job.models) == {"tiny-a", "tiny-b"} and [one.stage.name for one in job.inputs] == ["pool"]
    waits = {name: [one.stage.name for one in find_job(experiment, "03_binarization", {"strategy": name}).inputs]
             for name in ("k_sim", "density_ratio")}  # fmt: skip
    assert "density_ratio" in waits["density_ratio"] and "density_ratio" not in waits["k_sim"]
    run(job)
    table = pq.read_table(job.folder / "densities.parquet")
    assert table.num_rows == 12 and load_json(job.folder / "density_cost.json")["strong"] == "tiny-a"
    pairs = build_pairs(load_pool(pool_file), None, "density_ratio", tau=0.1, seed=0,
                        densities=load_annotations(job.folder / "densities.parquet"))  # fmt: skip
    assert len(pairs) == 4


@pytest.mark.parametrize(("extra", "message"), [
    ("strategies: [density_ratio]\n", "density_ratio: name two models, density_ratio.strong and density_ratio.weak"),
    ("strategies: [density_ratio]\ndensity_ratio: {strong: tiny-a, weak: tiny-a}\n", "name two models"),
    ("strategies: [density_ratio]\ndensity_ratio: {strong: tiny-a, weak: huge}\n", "density_ratio.weak: 'huge' is not a model"),
    (EXTRA + "training: {smooth_by_confidence: true}\n", "density_ratio's labels are of unknown confidence"),
])  # fmt: skip
def test_what_cannot_label_is_refused_before_anything_runs(tmp_path, extra, message):
    with pytest.raises(InputError, match=message):
        write_experiment(tmp_path, extra)


def test_it_reads_no_annotation(scored):
    """And rlaif none of its densities, where both are made in one pass."""
    table = load_annotations(scored[0])
    turned = replace(table, scores=-table.scores)
    found = [build_pairs(load_pool(ROWS), None, "density_ratio", tau=0.1, seed=0, rejected="worst", densities=densities,
                         annotations=annotations).table
             for densities, annotations in ((table, turned), (table, table), (turned, table))]  # fmt: skip
    assert found[0].equals(found[1])
    assert found[2]["chosen"].to_pylist() == found[0]["rejected"].to_pylist()
