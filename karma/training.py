"""Tune a policy on pairs with SFT or DPO, through TRL.

SFT trains on the chosen response only (completion-only loss); DPO on chosen against rejected, with the reference
model's log-probabilities computed once, before the first update. Rows that are held out of training are the same for
every strategy, and give each run its held-out preference accuracy: how often the tuned policy prefers the chosen
response more than the untrained one did.
Decision: two runs with the same data, settings and seed are one training (K_score and K_(score,sim) choose the same
responses, so their SFT sets are the same); the second takes over the first's weights and says so.

Paper: section 4.1 and Appendix A.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from filelock import FileLock
from scipy.stats import binomtest

from karma.errors import InputError
from karma.files import atomic_path, compute_digest, load_json, save_json
from karma.logprobs import compute_logps, tokenize_response
from karma.models import (
    Specs,
    add_trained,
    choose_device,
    choose_dtype,
    compute_weights_digest,
    load_model,
    load_tokenizer,
)

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build_dataset(pairs: pa.Table, method: str):
    """Turn pairs into what TRL's trainer of that method takes.

    Args:
        pairs: with prompt, chosen and rejected as lists of role/content messages.
        method: "sft" (prompt, completion) or "dpo" (prompt, chosen, rejected).
    """
    from datasets import Dataset

    columns = {"prompt": "prompt", "completion": "chosen"} if method == "sft" else {k: k for k in _DPO_COLUMNS}
    return Dataset.from_dict({name: pairs[column].to_pylist() for name, column in columns.items()})


_DPO_COLUMNS = ("prompt", "chosen", "rejected")


def check_pairs(pairs: pa.Table, tokenizer: Any, method: str, settings: Any) -> dict[str, Any]:
    """Check a training set before any model is loaded.

    Args:
        pairs: the training split.
        tokenizer: the policy's.
        method: "sft" or "dpo".
        settings: the experiment's `training`.

    Returns:
        Counts a reader wants to see first: pairs, updates, median and longest row in tokens, rows truncated, and
        `warnings`, each a sentence with advice.

    Raises:
        InputError: no pairs, a malformed message, an empty response, or chosen equal to rejected.
    """
    if not len(pairs):
        raise InputError("the training split is empty: lower pairs.held_out, or look at accounting.json for the drops")
    lengths, sides = [], ("chosen",) if method == "sft" else ("chosen", "rejected")
    for row in pairs.select(["row_id", *_DPO_COLUMNS]).to_pylist():
        if method == "dpo" and row["chosen"] == row["rejected"]:
            raise InputError(f"pair {row['row_id']}: chosen and rejected are the same text")
        for side in sides:
            _check_messages(row, side)
            lengths.append(len(tokenize_response(tokenizer, row["prompt"], row[side], 10**9).ids))
    per_update = settings.per_device_batch_size * settings.gradient_accumulation * settings.devices
    n_updates = max(int(-(-len(pairs) // per_update) * settings.epochs), 1)
    truncated, warnings = sum(length > settings.max_length for length in lengths), []
    if n_updates <= settings.warmup_steps:
        warnings.append(f"{n_updates} updates are fewer than {settings.warmup_steps} warm-up steps: the learning rate "
                        "never reaches its value; lower training.warmup_steps")  # fmt: skip
    if truncated:
        warnings.append(f"{truncated} of {len(lengths)} rows are longer than max_length={settings.max_length} tokens "
                        "and lose their end; raise training.max_length")  # fmt: skip
    return {"pairs": len(pairs), "updates": n_updates, "median_tokens": sorted(lengths)[len(lengths) // 2],
            "longest_tokens": max(lengths), "truncated_rows": truncated, "warnings": warnings}  # fmt: skip


def _check_messages(row: dict[str, Any], side: str) -> None:
    turns = [(row["prompt"], "user"), (row[side], "assistant")]
    for messages, role in turns:
        if not isinstance(messages, list) or not messages or messages[-1].get("role") != role:
            raise InputError(
                f"pair {row['row_id']}: {side} must be messages ending with role '{role}', as stage 03 writes"
            )
        if not (messages[-1].get("content") or "").strip():
            raise InputError(f"pair {row['row_id']}: an empty text under role '{role}'")


def train(
    train_pairs: pa.Table, held_out: pa.Table, models: Specs, policy: str, method: str, seed: int, settings: Any,
    compute: Any, folder: Path, siblings: Sequence[Path] = (), code: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Tune a policy and save it, with the record of how it went.

    Args:
        train_pairs, held_out: the two splits of a pair set.
        models: name -> specification. policy: which of them is tuned.
        method: "sft" or "dpo". seed: of data order and adapters.
        settings: the experiment's `training`. compute: its `compute`.
        folder: where `model/` and `training.json` go.
        siblings: run folders whose training is taken over if it was the same.
        code: digest of the code in use; a run made by other code is never taken over.

    Returns:
        What training.json holds.
    """
    started, device = time.perf_counter(), choose_device(compute.device)
    dtype = choose_dtype(compute.dtype, device)
    torch.set_num_threads(compute.threads)
    tokenizer = load_tokenizer(models, policy)
    tokenizer.padding_side = "right"
    dataset = build_dataset(train_pairs, method)
    data = compute_digest(dataset.to_list())
    identity = compute_digest([data, settings.as_dict(), seed, code, method, compute_weights_digest(models, policy),
                               dtype, device, compute.threads])  # fmt: skip
    policy_model = load_model(models, policy, dtype, device)
    reference = _compute_margins(policy_model, tokenizer, held_out, settings, "held-out pairs before")
    with FileLock(Path(tempfile.gettempdir()) / f"karma-training-{identity}.lock"):  # a twin side by side waits here
        twin = _find_twin(siblings, identity)
        if twin:
            outcome = _take_over(twin, folder)
            policy_model = load_model(*add_trained(models, policy, folder / "model"), dtype, device)
        else:
            trainer = _build_trainer(policy_model, tokenizer, dataset, method, seed, settings, device)
            outcome = _run_trainer(trainer, tokenizer, folder)
            policy_model = trainer.model.eval()
        margins = _compute_margins(policy_model, tokenizer, held_out, settings, "held-out pairs after") - reference
        record = {"policy": policy, "method": method, "seed": seed, "n_train_pairs": len(train_pairs),
                  "n_held_out_pairs": len(held_out), "data_digest": data, "identity": identity, **outcome,
                  "held_out": summarise_margins(settings.beta * margins), "device": device, "dtype": dtype,
                  "settings": settings.as_dict(), "seconds": round(time.perf_counter() - started, 3)}  # fmt: skip
        save_json(record, folder / "training.json")
    return record


def _take_over(twin: Path, folder: Path) -> dict[str, Any]:
    """Copy a twin's weights, and what its record says of the training."""
    done = load_json(twin / "training.json")
    with atomic_path(folder / "model") as temporary:
        shutil.copytree(twin / "model", temporary)
    kept = {key: done[key] for key in ("n_updates", "tokens", "train_seconds", "history")}
    return {**kept, "same_data_as": done["same_data_as"] or os.path.relpath(twin, folder)}


def _run_trainer(trainer: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Train, save the weights, and return what the trainer's own log says."""
    trainer.train()
    with atomic_path(folder / "model") as temporary:
        trainer.save_model(str(temporary))
        tokenizer.save_pretrained(temporary)
        (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle, of no use to anyone here
    log = trainer.state.log_history
    history = [entry for entry in log if "loss" in entry]
    tokens = int(history[-1]["num_tokens"]) if history and "num_tokens" in history[-1] else None
    return {"n_updates": trainer.state.global_step, "tokens": tokens, "history": history, "same_data_as": None,
            "train_seconds": round(log[-1]["train_runtime"], 3)}  # fmt: skip


def _find_twin(siblings: Sequence[Path], identity: str) -> Path | None:
    for sibling in siblings:
        record = sibling / "training.json"
        if record.is_file() and (sibling / "model").is_dir() and load_json(record).get("identity") == identity:
            return sibling
    return None


def _build_trainer(model: Any, tokenizer: Any, dataset: Any, method: str, seed: int, settings: Any, device: str):
    """Configure TRL's trainer; what differs from its defaults is written out."""
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    shared: dict[str, Any] = {
        "output_dir": "unused", "save_strategy": "no", "report_to": "none", "seed": seed, "logging_steps": 1,
        "num_train_epochs": settings.epochs, "per_device_train_batch_size": settings.per_device_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation, "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps, "lr_scheduler_type": settings.scheduler,
        "max_length": settings.max_length, "gradient_checkpointing": settings.gradient_checkpointing,
        "use_cpu": device == "cpu", "bf16": device == "cuda" and model.dtype == torch.bfloat16,
        "dataloader_pin_memory": device == "cuda",
    }  # fmt: skip
    peft = _build_lora(model, settings.lora) if settings.lora else None
    if method == "sft":
        config: Any = SFTConfig(completion_only_loss=True, **shared)
        return SFTTrainer(model, config, train_dataset=dataset, processing_class=tokenizer, peft_config=peft)
    config = DPOConfig(beta=settings.beta, loss_type=[settings.loss_type], precompute_ref_log_probs=True, **shared)
    return DPOTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer, peft_config=peft)


def _build_lora(model: Any, lora: Any):
    from peft import LoraConfig

    n_layers = model.config.num_hidden_layers
    last = list(range(max(n_layers - lora.last_layers, 0), n_layers))
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=LORA_TARGETS,
                      layers_to_transform=last, task_type="CAUSAL_LM")  # fmt: skip


def _compute_margins(model: Any, tokenizer: Any, pairs: pa.Table, settings: Any, progress: str) -> torch.Tensor:
    """Return log pi(chosen) - log pi(rejected) of each pair, in nats."""
    prompts, sides = pairs["prompt"].to_pylist(), [pairs[side].to_pylist() for side in ("chosen", "rejected")]
    logps, _ = compute_logps(
        model, tokenizer, prompts * 2, sides[0] + sides[1], max_length=settings.max_length, progress=progress
    )
    return logps[: len(pairs)] - logps[len(pairs) :]


def summarise_margins(margins: torch.Tensor) -> dict[str, Any]:
    """Summarise reward margins of held-out pairs.

    Args:
        margins: beta * (policy's log-ratio of chosen over rejected - the reference's), (n,), in nats.

    Returns:
        accuracy (share of margins above 0; ties count half), n, its 95 % Wilson interval, and the mean margin.

    Example:
        >>> summarise_margins(torch.tensor([1.0, 2.0, -1.0, 0.0]))["accuracy"]
        0.625
    """
    n = len(margins)
    if not n:
        return {"accuracy": None, "n": 0, "interval": [None, None], "margin_mean": None}
    right = int((margins > 0).sum()) + 0.5 * int((margins == 0).sum())
    interval = binomtest(int(right), n).proportion_ci(method="wilson")
    return {"accuracy": right / n, "n": n, "interval": [float(interval.low), float(interval.high)],
            "margin_mean": float(margins.mean())}  # fmt: skip


def describe_held_out(held: dict[str, Any]) -> str:
    """Say in one sentence what the held-out pairs show.

    Example:
        >>> describe_held_out(summarise_margins(torch.tensor([1.0, 2.0, -1.0, 0.0])))
        'accuracy 0.62 on 4 held-out pairs, 95 % interval 0.15 to 0.85: cannot be told from a coin'
    """
    if not held["n"]:
        return "no pairs were held out (pairs.held_out is 0)"
    low, high = held["interval"]
    verdict = "cannot be told from a coin" if low <= 0.5 <= high else "differs from a coin"
    shown = f"accuracy {held['accuracy']:.2f} on {held['n']} held-out pairs"
    return f"{shown}, 95 % interval {low:.2f} to {high:.2f}: {verdict}"
