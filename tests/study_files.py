"""Writes a study's files in the fixed formats, without a model, for tests of results, claims, report."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from karma.files.places import find_project_root
from karma.pairs.accounting import Accounting
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import PAIR_SCHEMA, PairSet
from karma.scores.measured import build_score_table
from karma.scores.read import save_score_table
from karma.study.benchmark_settings import name_benchmark
from karma.study.experiment import Experiment, load_experiment
from karma.study.stages import STAGES, Job

CHANCE = {"ifeval": None, "mmlu_stem": 0.25, "mmlu_pro": 0.1, "arc_easy": 0.25, "arc_challenge": 0.25}
N_ITEMS = 40


def write_answers(folder: Path, benchmarks: list[str], accuracy: float, seed: int) -> dict:
    """Write answers.parquet and return the benchmarks' scores as scores.json holds them."""
    generator, frames, scores = np.random.default_rng(seed), [], {}
    for benchmark in benchmarks:
        units = np.where(np.arange(N_ITEMS) % 2, 2, 1) if benchmark == "ifeval" else np.ones(N_ITEMS, int)
        correct = generator.binomial(units, accuracy)
        ids = [f"{benchmark}-{k}" for k in range(N_ITEMS)]
        texts = {"prompt": "p", "answer": "a", "extracted": "a"}
        frames.append(pd.DataFrame({"benchmark": benchmark, "item_id": ids, **texts, "correct": correct, "n": units}))
        value = correct.sum() / units.sum()
        scores[benchmark] = {"value": value, "n": int(units.sum()), "standard_error": 0.05,
                             "unextracted": 0.1, "chance": CHANCE.get(benchmark, 0.25), "task_version": 1,
                             "template_hash": "t", "shots": 0, "generation": {}, "details": {}}  # fmt: skip
    pd.concat(frames).to_parquet(folder / "answers.parquet")
    return scores


def write_scores(job: Job, accuracy: float, seed: int) -> None:
    benchmarks = job.experiment.settings.benchmarks
    asked = benchmarks.origin if "origin_model" in job.params else benchmarks.policy
    job.folder.mkdir(parents=True, exist_ok=True)
    content = {"model": "m", "weights_digest": "w", "backend": "hf", "device": "cpu", "dtype": "float32",
               "batch_size": 4, "seconds": 2.0, "prompt_tokens": 1000, "new_tokens": 100}  # fmt: skip
    scores = write_answers(job.folder, [name_benchmark(one) for one in asked], accuracy, seed)
    for name, task in benchmarks.tasks.items():
        if name in scores:
            scores[name]["task"] = {"name": task.task, "metric": "acc,none", "title": task.title or task.task,
                                    "capability": task.capability, "answer_form": "multiple choice"}  # fmt: skip
    (job.folder / "scores.json").write_text(json.dumps({**content, "benchmarks": scores}))


def write_training(job: Job) -> None:
    p, held_out = job.params, {"accuracy": 0.6, "n": 20, "interval": [0.4, 0.8], "margin_mean": 0.1}
    content = {**p, "seed": int(p["seed"]), "n_train_pairs": 60, "n_held_out_pairs": 20, "n_updates": 15,
               "seconds": 30.0, "tokens": 5000, "data_digest": "d", "same_data_as": None,
               "held_out": held_out, "history": [{"step": 1, "loss": 0.69}], "device": "cpu",
               "dtype": "float32", "settings": {}}  # fmt: skip
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "training.json").write_text(json.dumps(content))


def write_pairs(folder: Path, strategy: str, dropped: dict[str, int], **settings: Any) -> None:
    """Save a pair folder, through the kit's own saver: what is left of 100 prompts with 4 responses each."""
    n_pairs = 100 - sum(dropped.values())
    rows = [
        {"row_id": f"{k:032x}", "source": "test", "prompt": [{"role": "user", "content": f"Count to {k}."}],
         **{side: [{"role": "assistant", "content": f"{side} {k}"}] for side in ("chosen", "rejected")},
         "chosen_model": "a", "rejected_model": "b", "chosen_score": 0.9, "rejected_score": 0.2, "kinship": 0.5,
         "strategy": strategy, "chosen_id": f"c{k}", "rejected_id": f"r{k}"}
        for k in range(n_pairs)
    ]  # fmt: skip
    books = Accounting(strategy, rows_in=100, pairs_out=n_pairs, dropped=Counter(dropped), responses_in=400,
                       responses_usable=400, settings=settings)  # fmt: skip
    save_pairs(PairSet(pa.Table.from_pylist(rows, PAIR_SCHEMA), books), folder)


def part_pairs(experiment: Experiment) -> None:
    """Take a pair more from each strategy's set than from the last one's: no two are the same any more."""
    for n, name in enumerate(experiment.settings.strategies):
        path = experiment.outputs / "pairs" / name / "pairs.parquet"
        pq.write_table(pq.read_table(path).slice(n), path)


def write_selection(job: Job) -> None:
    """A finished selection of 07: `m_ap` moves the policy towards 15 of 20 held-out pairs, `random` towards 10."""
    n_right = 15 if job.params["metric"] == "m_ap" else 10
    agreement = {"n": 60, "correlation": 0.5, "low": 0.3, "high": 0.7, "overlap": 0.6, "overlap_by_chance": 0.4}
    write_pairs(
        job.folder, job.params["strategy"], {"equal_s_pref": 20, "held_out": 20, "not_selected": 36}, candidates=60
    )
    record = {**job.params, "ratio": float(job.params["ratio"]), "agreement_with_annotations": agreement}
    (job.folder / "selection.json").write_text(json.dumps(record))
    settings = job.experiment.settings
    for method in settings.potential.methods:
        for seed in settings.seeds:
            run = job.folder / method / f"seed{seed}"
            run.mkdir(parents=True)
            (run / "training.json").write_text(json.dumps({"n_train_pairs": 24, "same_data_as": None}))
            margins = [1.0 if i < n_right else -1.0 for i in range(20)]
            pq.write_table(
                pa.table({"row_id": [str(i) for i in range(20)], "margin": margins}), run / "held_out.parquet"
            )


def write_reward_scores(job: Job) -> None:
    """What reward_evaluation writes of a reward model: right on 15 of 20 pairs of each strategy, and of length alone."""
    share = {"value": 0.75, "low": 0.53, "high": 0.89, "n": 20}
    length = {name: share for name in ("longer_preferred", "longer_chosen", "like_length", "correlation")}
    pairs = {"accuracy": 0.75, "interval": [0.53, 0.89], "n": 20, "margin_mean": 0.4, "length": length}
    truth = {"value": 0.6, "low": 0.45, "high": 0.75, "n_pairs": 50, "n_prompts": 20, "longer": share}
    best = [{"n": n, "n_prompts": 20, "truth": 0.3 + 0.05 * n, "low": 0.2, "high": 0.6, "gain": 0.05 * (n - 1),
             "gain_low": 0.0, "gain_high": 0.2, "perfect": 0.3 + 0.1 * n} for n in (1, 2, 3)]  # fmt: skip
    scores = {"policy": job.params["policy"], "dtype": "float32", "seconds": 1.0, "n_prompts": 20, "n_responses": 60,
              "pairs": {name: pairs for name in job.experiment.settings.strategies}, "truth": truth,
              "best_of_n": best}  # fmt: skip
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "reward_scores.json").write_text(json.dumps(scores))
    (job.folder / "rewards.parquet").write_bytes(b"")


def write_study(experiment: Experiment, stages: tuple[str, ...] = tuple(STAGES)) -> None:
    """Write a whole study's files in the fixed formats; later strategies score a little higher."""
    s, out = experiment.settings, experiment.outputs
    seed = 0
    for stage in [STAGES[name] for name in stages if name in STAGES]:
        for job in (Job(experiment, stage, p) for p in stage.jobs(s)):
            seed += 1
            if stage.name in ("01_origin_evaluation", "05_policy_evaluation", "selection_evaluation"):
                write_scores(job, 0.3 + 0.02 * (seed % 7), seed)
            elif stage.name == "04_alignment_training":
                write_training(job)
            elif stage.name == "reward_evaluation":
                write_reward_scores(job)
            elif stage.name == "07_alignment_potential":
                write_selection(job)
            elif stage.name == "03_binarization":
                write_pairs(job.folder, job.params["strategy"], {"equal_s_pref": 20}, tau=0.1)
            elif stage.name == "pool":
                job.folder.mkdir(parents=True, exist_ok=True)
                (job.folder / "pool.parquet").write_bytes(b"")
                (job.folder / "accounting.json").write_text(json.dumps({"rows_in": 100, "rows_out": 100}))
            elif stage.name == "annotation":
                cost = {
                    "annotator": "judge",
                    "calls": 400,
                    "prompt_tokens": 90000,
                    "seconds": 100.0,
                    "device": "cpu",
                }
                (job.folder / "annotations.parquet").write_bytes(b"")
                (job.folder / "annotation_cost.json").write_text(json.dumps(cost))
    if "02_kinship_analysis" in stages:
        files = {m: json.loads((out / "origins" / m / "scores.json").read_text()) for m in s.origin_models}
        (out / "kinship").mkdir(parents=True)
        save_score_table(build_score_table(files), out / "kinship" / "scores.csv")
        for name in STAGES["02_kinship_analysis"].products[2:]:  # after the table and its column map
            (out / "kinship" / name).write_text("{}")


def make_experiment(tmp_path: Path, extra: str = "", select_from: str = "k_score_sim") -> Experiment:
    """Return the tests' study, under a name of its own, with outputs below tmp_path."""
    text = (find_project_root() / "tests" / "study.yaml").read_text().replace("name: demo", "name: study")
    text = text.replace("strategies: [k_score_sim]", f"strategies: [{select_from}]")
    (tmp_path / "params.yaml").write_text(text + extra)
    experiment = load_experiment(tmp_path / "params.yaml")
    experiment.outputs = tmp_path / "outputs" / "study"
    return experiment
