"""Tune a policy on pairs by one of the methods, or make a reward model of it, through TRL.

What a method learns from a pair is said in `karma.vocabulary.METHODS`, how in `karma.training.trainers`. Rows that are
held out of training are the same for every strategy, and give each run its held-out preference accuracy: how often the
tuned policy prefers the chosen response more than the untrained one did, or how often a reward model rates it higher.
Decision: two runs with the same data, settings and seed are one training (K_score and K_(score,sim) choose the same
responses, so their SFT sets are the same); the second takes over the first's weights and says so.

Paper: section 3.3 and Appendix A.
"""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from karma.errors import InputError
from karma.files.locks import open_own_lock
from karma.files.reading import compute_digest, load_json, load_object
from karma.files.writing import atomic_path, save_json
from karma.models.load import add_trained, load_model, load_tokenizer
from karma.models.rewards import load_reward_model
from karma.pairs.turns import show_turns
from karma.training.card import build_model_card
from karma.training.checks import check_memory, estimate_memory, find_memory
from karma.training.health import compare_lengths, find_alarms, sample_answers
from karma.training.held_out import build_margins, load_both, measure_pairs, summarise_margins
from karma.training.progress import ShowProgress
from karma.training.refilter import FILE
from karma.training.rewards import measure_rewards, summarise_rewards
from karma.training.run import Run, compute_text_digest
from karma.training.trl_config import FILE as TRL_FILE
from karma.training.tuning import clean_up, load_start, prepare_checkpoints, save_outcome, tune


def train(run: Run, train_pairs: pa.Table, held_out: pa.Table, siblings: Sequence[Path] = ()) -> dict[str, Any]:
    """Tune a policy and save it, with the record of how it went; a killed training goes on where it was.

    Args:
        run: what is trained, where and how (`karma.training.run.describe_run`).
        train_pairs: the pairs that `run` was described with. held_out: those kept out.
        siblings: run folders whose training is taken over if it was the same, and the untrained policy's answers if
            they were asked the same.

    Returns:
        What training.json holds.

    Raises:
        InputError: pairs or settings that cannot be trained, or pairs other than the run's. KarmaError: the training
            failed.

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> from tempfile import mkdtemp
        >>> from karma.training.run import describe_run
        >>> smoke = load_experiment("smoke")
        >>> job = smoke.select(("training", "compute"))
        >>> models = {"tiny-a": smoke.settings.models["tiny-a"].model_dump(mode="json")}
        >>> said = [[{"role": "assistant", "content": text}] for text in ("Yes.", "No.", "Maybe.")]
        >>> asked = [[{"role": "user", "content": f"Is {k} odd?"}] for k in range(2)]
        >>> pairs = pa.table({"row_id": ["a", "b"], "prompt": asked, "chosen": said[:2], "rejected": said[1:]})
        >>> how = (job.training, job.compute, mkdtemp())
        >>> record = train(describe_run(pairs, models, "tiny-a", "dpo", 0, *how), pairs, held_out=pairs)
        >>> record["n_updates"], record["held_out"]["n"], len(record["answers"])
        (1, 2, 2)

    Paper: section 3.3, Appendix A.
    """
    started, folder, settings = time.perf_counter(), Path(run.folder), run.settings
    if compute_text_digest(train_pairs, run.method) != run.data_digest:
        raise InputError(f"{folder}: train_pairs are not those the run was described with: call describe_run with them")
    torch.set_num_threads(run.threads)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(run.models, run.policy)
    tokenizer.padding_side = "right"
    with open_own_lock(f"training-{run.identity}"):  # a twin side by side waits
        twin = _find_twin(siblings, run.identity)
        prepare_checkpoints(run)
        for name in [TRL_FILE] + [FILE] * (not settings.refilter):
            (folder / name).unlink(missing_ok=True)  # another training's
        if twin:
            outcome = _take_over(twin, folder)
        elif settings.accelerate:  # no model is loaded here while the processes have the devices
            from karma.training.launch import launch

            outcome = launch(run, train_pairs, settings.accelerate)
        else:
            outcome = _tune_here(run, tokenizer, train_pairs)
        _finish_weights(run, tokenizer, merge=settings.merge_adapter and not twin,
                        convert=settings.accelerate is not None and not twin)  # fmt: skip
        measured = _measure(run, tokenizer, held_out, (held_out if len(held_out) else train_pairs)["prompt"], siblings)
        record = _build_record(run, train_pairs, outcome, measured, time.perf_counter() - started)
        strategy = train_pairs["strategy"][0].as_py() if "strategy" in train_pairs.column_names else "custom"
        (folder / "model" / "README.md").write_text(build_model_card(record, run.models[run.policy], strategy), "utf-8")
        save_json(record, folder / "training.json")
        clean_up(folder)
    return record


def _tune_here(run: Run, tokenizer: Any, pairs: pa.Table) -> dict[str, Any]:
    """Train in this process, save the weights in the precision they are to compute in, and return the outcome."""
    model, view = load_start(run, run.device), run.open_view()
    try:
        trainer = tune(run, model, tokenizer, pairs, [ShowProgress(view)])
    finally:
        view.close()
    if not run.settings.lora:
        trainer.model.to(getattr(torch, run.dtype))
    return save_outcome(trainer, tokenizer, run)


def _measure(
    run: Run, tokenizer: Any, held_out: pa.Table, prompts: pa.ChunkedArray, siblings: Sequence[Path]
) -> dict[str, Any]:
    """Measure the policy before and after, as saved; write each held-out pair's margin, and return the summary."""
    if run.makes_reward_model:
        return _measure_reward_model(run, tokenizer, held_out)
    folder, asked = Path(run.folder), prompts.slice(0, 10).to_pylist()
    whole = not (folder / "model" / "adapter_config.json").is_file()  # then the start is rounded, too
    key = compute_digest([run.start, whole, run.settings.sample_tokens, asked])
    logps, dtype = {}, run.dtype
    answers = {"before": _find_answers(siblings, key)}
    for when, model in load_both(run.models, run.policy, folder / "model", run.dtype, run.device):
        dtype = str(model.dtype).removeprefix("torch.")
        logps[when] = measure_pairs(model, tokenizer, held_out, run.settings.max_length, f"held-out pairs {when}")
        if not answers.get(when):
            answers[when] = sample_answers(model, tokenizer, asked, run.settings.sample_tokens)
        del model
    margins = build_margins(held_out, logps["before"], logps["after"], run.settings.beta)
    _save_table(margins, folder / "held_out.parquet")
    texts = [{"prompt": show_turns(prompt), "before": old, "after": new}
             for prompt, old, new in zip(asked, *answers.values(), strict=False)]  # fmt: skip
    return {"held_out": {**summarise_margins(torch.tensor(margins["margin"].to_pylist())), "dtype": dtype},
            "answers": texts, "answers_key": key,
            "length_alarm": compare_lengths(answers["before"], answers["after"])}  # fmt: skip


def _measure_reward_model(run: Run, tokenizer: Any, held_out: pa.Table) -> dict[str, Any]:
    """Measure a reward model as saved, in float32 on a CPU as policies are; it has no before, and answers nothing."""
    folder, dtype = Path(run.folder), "float32" if run.device == "cpu" else run.dtype
    model = load_reward_model(*add_trained(run.models, run.policy, folder / "model"), dtype, run.device)
    rewards = measure_rewards(model, tokenizer, held_out, "held-out pairs")
    _save_table(rewards, folder / "held_out.parquet")
    return {"held_out": {**summarise_rewards(rewards), "dtype": dtype}, "answers": [], "answers_key": None,
            "length_alarm": None}  # fmt: skip


def _save_table(table: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def _find_answers(siblings: Sequence[Path], key: str) -> list[dict[str, Any]]:
    """Return what the untrained policy answered in another run that asked it the same, or nothing."""
    records = (load_json(file) for file in (sibling / "training.json" for sibling in siblings) if file.is_file())
    same = (record["answers"] for record in records if record.get("answers_key") == key)
    return [answer["before"] for answer in next(same, [])]


def _build_record(run: Run, pairs: pa.Table, outcome: dict, measured: dict, seconds: float) -> dict:
    alarms = find_alarms(outcome["history"], outcome["n_updates"], run.pairs_an_update, **run.rewards)
    alarms += [measured["length_alarm"]] if measured["length_alarm"] else []
    adapter = (Path(run.folder) / "model" / "adapter_config.json").is_file()
    return {"policy": run.policy, "method": run.method, "seed": run.seed, "n_train_pairs": len(pairs),
            "n_held_out_pairs": measured["held_out"]["n"], "data_digest": run.data_digest, "identity": run.identity,
            **outcome, **{key: measured[key] for key in ("held_out", "answers", "answers_key")}, "alarms": alarms,
            "adapter": adapter, "device": run.device, "dtype": run.dtype, "settings": run.settings.as_dict(),
            "seconds": round(seconds, 3)}  # fmt: skip


def _finish_weights(run: Run, tokenizer: Any, merge: bool, convert: bool) -> None:
    """Write whole weights in the precision they compute in, where an adapter is merged or processes saved float32."""
    folder = Path(run.folder) / "model"
    if not merge and not (convert and not (folder / "adapter_config.json").is_file()):
        return
    load = load_reward_model if run.makes_reward_model else load_model
    whole = load(*add_trained(run.models, run.policy, folder), run.dtype)
    with atomic_path(folder) as temporary:
        whole.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _take_over(twin: Path, folder: Path) -> dict[str, Any]:
    """Copy a twin's weights, and what its record says of the training."""
    done = load_json(twin / "training.json")
    with atomic_path(folder / "model") as temporary:
        shutil.copytree(twin / "model", temporary)
    for name in [FILE] * bool(done["refilter"]) + [TRL_FILE] * (twin / TRL_FILE).is_file():
        shutil.copy(twin / name, folder / name)
    taken = ("n_updates", "tokens", "train_seconds", "resumed_at", "processes", "history", "refilter")
    kept = {key: done[key] for key in taken}
    return {**kept, "same_data_as": os.path.relpath(twin, folder)}


def _find_twin(siblings: Sequence[Path], identity: str) -> Path | None:
    for sibling in siblings:
        record = sibling / "training.json"
        if record.is_file() and (sibling / "model").is_dir() and load_object(record).get("identity") == identity:
            return sibling
    return None


def describe_memory(run: Run, longest: int) -> dict[str, Any]:
    """Estimate a training's memory from the policy's shape and compare it with what is free, loading no weights.

    Args:
        run: what is trained. longest: the longest row, in tokens.

    Returns:
        states_gib, activations_gib, free_gib, and `warnings`.

    Raises:
        InputError: weights, gradients and optimiser alone do not fit.
    """
    from karma.models.load import load_shape

    config, n_parameters = load_shape(run.models, run.policy)
    estimate = estimate_memory(config, n_parameters, run.settings, run.dtype, run.method, longest)
    free = find_memory(run.device)
    gib = {name.replace("_bytes", "_gib"): round(value / 2**30, 2) for name, value in estimate.items()}
    return {**gib, "free_gib": round(free / 2**30, 2), "warnings": check_memory(estimate, free, run.device)}
