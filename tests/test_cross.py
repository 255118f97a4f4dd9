"""Trained on x tested on: every policy on every strategy's held-out pairs, from the model to the table."""

import json
from types import SimpleNamespace

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model

from karma.models import frozen
from karma.models.load import load_model, load_tokenizer
from karma.models.logprobs import compute_logps
from karma.pairs.pairs import load_pairs, split_pairs
from karma.results.cross import build_square, show_square, summarise
from karma.results.study import collect_results
from karma.results.tables import build_table2, build_table4
from karma.statistics.intervals import compute_wilson
from karma.study.experiment import load_experiment
from karma.study.sections import ModelSpec
from karma.study.stages import STAGES, Job
from karma.training import cross
from karma.training.held_out import load_both
from tests.study_files import make_experiment, write_study

MODELS = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=1).model_dump()}


@pytest.fixture
def experiment(tmp_path):
    """The tests' study, with the square: `k_sim` prefers what `rlaif` rejects, on the same held-out prompts."""
    father = make_experiment(tmp_path)
    (tmp_path / "cross.yaml").write_text(
        f"extends: {father.path}\nname: crossed\nbenchmarks: {{held_out_pairs: true}}\nlabels: {{audit: true}}\n"
    )
    made = load_experiment(tmp_path / "cross.yaml")
    made.outputs = father.outputs
    write_study(made)
    return made


def held_out(experiment, strategy):
    s = experiment.settings
    pairs = load_pairs(experiment.outputs / "pairs" / strategy)
    return split_pairs(pairs, s.pairs.held_out, s.pairs.seed)[1]


def write_changes(experiment, strategy, method, n_right):
    """A policy that training moved towards the chosen response of the first `n_right` held-out prompts, else away."""
    rows = held_out(experiment, strategy).table.to_pylist()
    table = [{"row_id": row["row_id"], "response_id": row[f"{side}_id"], "logps_before": -30.0,
              "logps_after": -30.0 + (1 if (side == "chosen") == (k < n_right) else -1)}
             for k, row in enumerate(rows) for side in ("chosen", "rejected")]  # fmt: skip
    params = {"policy": experiment.settings.policies[0], "strategy": strategy, "method": method, "seed": "0"}
    job = Job(experiment, STAGES["cross_evaluation"], params)
    job.folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_parquet(job.products[0])
    return len(rows)


def test_the_square_by_hand(experiment, tmp_path):
    n = write_changes(experiment, "k_sim", "dpo", 12)
    assert n > 12
    square = build_square(experiment)[0].set_index("tested_on")
    assert set(square["trained_on"]) == {"k_sim"} and list(square.index) == list(experiment.settings.strategies)
    row = square.loc["rlaif"]  # the same prompts, the same pairs in this study
    assert row["share"] == pytest.approx(12 / n) and row["n_pairs"] == row["n_prompts"] == n
    assert [row["low"], row["high"]] == pytest.approx(compute_wilson(12 / n, n), abs=0.01)
    path = experiment.outputs / "labels" / "responses.csv"
    path.parent.mkdir(parents=True)
    ids = held_out(experiment, "k_sim").table.select(["row_id", "chosen_id", "rejected_id"]).to_pylist()
    truths = [(row["row_id"], row[f"{side}_id"], 0.5 if side == "chosen" else 1.0)
              for row in ids[:12] for side in ("chosen", "rejected")]  # fmt: skip
    pd.DataFrame(truths, columns=["row_id", "response_id", "truth"]).to_csv(path, index=False)
    truth = build_square(experiment)[0].set_index("tested_on").loc["truth"]
    assert (truth["share"], truth["n_pairs"]) == (0.0, 12), "training moved twelve pairs to what the truth calls worse"
    _, table = show_square(experiment, tmp_path / "tables", tmp_path / "figures")
    assert table.frame.loc[("DPO", "K_sim"), "truth"].startswith("0.00 [0.00,")
    assert (tmp_path / "figures" / "square.png").is_file() and (tmp_path / "tables" / "square_long.csv").is_file()


def test_a_square_that_is_not_whole_says_what_is_missing(experiment):
    n = write_changes(experiment, "k_sim", "dpo", 12)
    _, notes = build_square(experiment)
    assert notes == ["one seed: without training noise"] and n > 12
    (experiment.outputs / "pairs" / "rlaif" / "pairs.parquet").unlink()
    square, notes = build_square(experiment)
    assert "rlaif" not in set(square["tested_on"]) and notes[0] == "rlaif: its pairs are missing: run 03"
    found = next((experiment.outputs / "runs").rglob("held_out_responses.parquet"))
    pd.read_parquet(found).iloc[2:].to_parquet(found)  # pairs made again, not measured again
    square, notes = build_square(experiment)
    assert square.empty and "dpo on k_sim: not measured on k_sim's pairs: run cross_evaluation" in notes
    found.unlink()
    assert build_square(experiment)[0].empty


def test_a_mean_over_some_of_the_seeds_is_not_shown(experiment, tmp_path):
    (tmp_path / "seeds.yaml").write_text(f"extends: {experiment.path}\nname: seeds\nseeds: [0, 1]\n")
    more = load_experiment(tmp_path / "seeds.yaml")
    more.outputs = experiment.outputs
    write_changes(more, "k_sim", "dpo", 12)
    square, notes = build_square(more)
    assert square.empty and notes == ["dpo on k_sim: 1 of 2 runs are missing"]


def test_seeds_are_averaged_and_pairs_of_a_prompt_are_one_cluster():
    rows, right = pd.Series([f"p{k // 4}" for k in range(80)]), pd.Series([float(k // 4 % 2) for k in range(80)])
    together, apart = (summarise(keys, right.to_frame()) for keys in (rows, pd.Series(range(80))))
    assert together["share"] == apart["share"] == 0.5 and together["n_prompts"] == 20
    assert together["high"] - together["low"] > 1.7 * (apart["high"] - apart["low"])
    alone = summarise(pd.Series(["p"] * 6), pd.DataFrame([1.0] * 4 + [0.0] * 2))
    seeds = summarise(rows, pd.concat([right, right * 0], axis=1))
    assert seeds["high"] - seeds["low"] > 2 * (together["high"] - together["low"]), "trainings that differ so much"
    assert (alone["low"], alone["high"]) == compute_wilson(2 / 3, 1), "six pairs of one prompt are one prompt"


def test_a_missing_measurement_is_a_named_gap(experiment):
    gaps = collect_results(experiment).gaps
    assert gaps["file"].str.endswith("held_out_responses.parquet").sum() == 4 * 2
    assert gaps["made_by"].str.startswith("karma cross_evaluation cross.yaml -p policy=").all()
    assert (
        build_square(experiment)[0].empty
        and list(show_square(experiment, experiment.outputs, experiment.outputs)) == []
    )


def test_held_out_rows_of_the_tables_are_split_by_method_and_rank_nothing(experiment):
    record = experiment.outputs / "runs/smollm2-135m/k_sim/sft/seed0/training.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "held_out": {**content["held_out"], "accuracy": 0.9}}))
    study = collect_results(experiment)
    for table in (build_table2(study), build_table4(study)):
        own = table.frame.index.get_level_values(0).str.startswith("Held-out pairs")
        assert own.sum() == 2 and not table.bold[own].to_numpy().any() and not table.shaded[own].to_numpy().any()
        assert sorted(table.frame.loc[own, "K_sim"]) == [0.6, 0.9] and table.bold[~own].to_numpy().any()
        assert any("ranking" in note for note in table.notes)
    assert list(build_table2(study).frame.index[-2:]) == ["Held-out pairs, SFT", "Held-out pairs, DPO"]


def test_responses_are_asked_once_and_scored_as_alone(experiment):
    sets = {name: held_out(experiment, name) for name in ("rlaif", "k_sim")}
    asked = cross.collect_responses(sets)
    assert len(asked) == len(sets["k_sim"]) and all(len(one["responses"]) == 2 for one in asked.values())
    model, tokenizer = load_model(MODELS, "tiny"), load_tokenizer(MODELS, "tiny")
    found = cross.measure_responses(model, tokenizer, asked, 64, "tiny")
    flat = [(one["prompt"], response) for one in asked.values() for response in one["responses"].values()]
    alone, _ = compute_logps(model, tokenizer, [p for p, _ in flat], [r for _, r in flat], max_length=64)
    assert torch.allclose(torch.tensor(found), alone, atol=1e-3)


@pytest.mark.parametrize("last", [(2, 3), None])
def test_an_adapter_is_measured_as_if_nothing_were_kept(tmp_path, monkeypatch, last):
    """On the last layers alone, and on all: the same numbers with what frozen layers make kept and without."""
    models = {"deep": ModelSpec(random={"hidden_size": 32, "layers": 4, "heads": 2}, seed=1).model_dump()}
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], layers_to_transform=last and [*last],
                        init_lora_weights=False, task_type="CAUSAL_LM")  # fmt: skip
    get_peft_model(load_model(models, "deep"), config).save_pretrained(tmp_path)
    asked = {"row": {"prompt": [{"role": "user", "content": "Hi"}],
                     "responses": {k: [{"role": "assistant", "content": k * 3}] for k in "abc"}}}  # fmt: skip
    found, kept = [], []
    for room in (frozen.ROOM, 0):
        monkeypatch.setattr(frozen, "ROOM", room)
        both = {}
        for when, model in load_both(models, "deep", tmp_path, "float32", "cpu"):
            both[when] = cross.measure_responses(model, load_tokenizer(models, "deep"), asked, 64, when)
            kept.append(len(model.karma_frozen.states) if hasattr(model, "karma_frozen") else None)
            del model
        found.append(both)
    assert kept == ([1, 1, 0, 0] if last else [None] * 4)
    assert found[0]["before"] != found[0]["after"]
    for when in ("before", "after"):
        assert found[0][when] == pytest.approx(found[1][when], abs=1e-4)


def test_the_stage_measures_before_and_after(tmp_path, experiment):
    """The stage's own code on a tiny policy, whole weights: after training into other weights, other numbers."""
    job = Job(experiment, STAGES["cross_evaluation"],
              {"policy": "smollm2-135m", "strategy": "k_sim", "method": "sft", "seed": "0"})  # fmt: skip

    other = {"other": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=2).model_dump()}
    load_model(other, "other").save_pretrained(job.folder / "model")
    load_tokenizer(other, "other").save_pretrained(job.folder / "model")
    cross.run(SimpleNamespace(params=job.params, folder=job.folder, experiment=experiment, settings=job.settings,
                              models={"smollm2-135m": MODELS["tiny"]}))  # fmt: skip
    table = pq.read_table(job.products[0]).to_pandas()
    assert table.columns.tolist() == ["row_id", "response_id", "logps_before", "logps_after"]
    assert (
        len(table) == 2 * len(held_out(experiment, "k_sim")) and not table.duplicated(["row_id", "response_id"]).any()
    )
    assert (table["logps_before"] < 0).all() and (table["logps_before"] != table["logps_after"]).all()
