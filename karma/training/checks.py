"""What is checked before a model loads: the pairs, the method, the memory, the folder.

TRL truncates long rows, and drops rows whose prompt alone fills `max_length`, without a word: here both are counted
first. Memory is estimated from the model's shape alone; weights, gradients and Adam's two moments are exact, and
activations a rule of thumb. Limit: the estimate knows Llama-like models, and nothing of what other programs will take.

Paper: Appendix A for the settings; the rule of thumb for activations follows arXiv 2205.05198, section 4.
"""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from karma.errors import InputError
from karma.files.reading import load_json, load_object
from karma.models.logprobs import HEAD_CHUNK, tokenize_row
from karma.pairs.accounting import DROPPED
from karma.pairs.pairs import PairSet
from karma.pairs.turns import find_fault
from karma.study.training_settings import Online, Training
from karma.training.refilter import check_refilter
from karma.training.rl import count_online_updates, find_long, find_unrewarded, list_instructions
from karma.training.trainers import (
    check_method,
    choose_weights_dtype,
    count_accumulation,
    find_confidence,
    find_trainer,
    is_curriculum,
    is_sharded,
)

_BYTES = {"float32": 4, "bfloat16": 2}


def check_pairs(pairs: pa.Table, tokenizer: Any, method: str, settings: Training) -> dict[str, Any]:
    """Check a training set before any model is loaded.

    Args:
        pairs: the training split.
        tokenizer: the policy's.
        method: a name of `karma.vocabulary.METHODS`.
        settings: the experiment's `training`.

    Returns:
        Counts a reader wants to see first: pairs, updates, pairs an update, median and longest row in tokens, rows
        truncated, pairs dropped, and `warnings`, each a sentence with advice.

    Raises:
        InputError: no pairs (left), a malformed message, an empty text, chosen equal to rejected (`drop_unusable`
            leaves such pairs out), a conversation that the chat template refuses, a label confidence that is needed and
            unknown, stages out of order, a method that cannot be trained as set, or pairs that cannot be ranked anew
            (`training.refilter`).
    """
    check_method(method, settings)
    if not len(pairs):
        raise InputError(
            "the training split is empty: lower pairs.held_out (`karma train --held-out`), or look at accounting.json "
            "for the drops"
        )
    if len(pairs) < (least := find_trainer(method).least_pairs):
        raise InputError(f"{method} needs at least {least} pairs to train on: give it more, or train by dpo")
    if is_curriculum(pairs) and (stages := pairs["stage"].to_pylist()) != sorted(stages):
        raise InputError(
            "the pairs' stages are out of order: write them again with `karma binarize --order curriculum`"
        )
    _refuse_unusable(pairs, method)
    find_confidence(pairs, method, settings)
    if online := find_trainer(method).samples(settings):
        return _check_prompts(pairs, tokenizer, settings, online)
    sides = find_trainer(method).sides
    rows = [_measure(row, tokenizer, sides) for row in pairs.select(["row_id", *_TEXTS]).to_pylist()]
    limit = settings.max_length
    whole = find_trainer(method).makes == "reward_model"  # a text that is rated at its end is not cut
    fit = np.array([all((end <= limit if whole else start < limit) for start, end in row) for row in rows])
    dropped = int((~fit).sum())
    lengths = sorted(end for row in rows for _, end in row)
    truncated = 0 if whole else sum(start < limit < end for row in rows for start, end in row)
    if whole and dropped == len(rows):
        raise InputError(f"every pair has a text of more than max_length={limit} tokens: raise training.max_length")
    if dropped == len(rows):
        raise InputError(f"every prompt is at least max_length={limit} tokens long: raise training.max_length")
    per_update = settings.per_device_batch_size * count_accumulation(settings, 1)
    n_updates = math.ceil(-(-check_refilter(pairs, method, settings, fit) // per_update) * settings.epochs)
    return {"pairs": len(pairs), "updates": n_updates, "pairs_an_update": per_update,
            "median_tokens": lengths[len(lengths) // 2], "longest_tokens": lengths[-1], "truncated_rows": truncated,
            "dropped_pairs": dropped,
            "warnings": list(_list_warnings(n_updates, settings, truncated, dropped, len(rows), whole))}  # fmt: skip


def _check_prompts(pairs: pa.Table, tokenizer: Any, settings: Training, online: Online) -> dict[str, Any]:
    """Count as `check_pairs`, for a method that samples answers to the pairs' prompts."""
    prompts, limit = pairs["prompt"].to_pylist(), settings.max_length
    unrewarded = set(find_unrewarded(list_instructions(pairs), online))
    if len(unrewarded) == len(prompts):
        raise InputError(
            "no prompt has instructions that a program can check: name their file in pool.instructions "
            "(`karma train --instructions`), or reward by a reward_model"
        )
    counts = [_measure(row, tokenizer, ())[0][0] for row in pairs.select(["row_id", "prompt"]).to_pylist()]
    long = set(find_long(prompts, tokenizer, settings, online)) - unrewarded
    dropped = len(long | unrewarded)
    if dropped == len(prompts):
        raise InputError(
            f"no prompt leaves room for {online.max_new_tokens} new tokens within max_length={limit}: raise "
            "training.max_length"
        )
    lengths = sorted(n + online.max_new_tokens for k, n in enumerate(counts) if k not in long | unrewarded)
    per_update = settings.per_device_batch_size * count_accumulation(settings, 1)
    accumulation = count_accumulation(settings, settings.devices if settings.accelerate else 1)
    n_updates, left = count_online_updates(len(prompts) - dropped, settings, online, accumulation)
    warnings = list(_list_warnings(n_updates, settings, 0, 0, len(prompts), False))
    if unrewarded:
        lost = f"{len(unrewarded)} of {len(prompts)} prompts are not trained on"
        warnings.append(f"{lost}: they have no instructions that a program can check")
    if long:
        room = f"they leave no room for {online.max_new_tokens} new tokens within max_length={limit}"
        warnings.append(f"{len(long)} of {len(prompts)} prompts are not trained on: {room}; raise training.max_length")
    if left:
        whole = f"{left} of {len(prompts) - dropped} prompts, others in each epoch"
        warnings.append(f"{whole}, are left over: {settings.per_device_batch_size} are answered at once")
    return {"pairs": len(pairs), "updates": n_updates, "pairs_an_update": per_update,
            "median_tokens": lengths[len(lengths) // 2], "longest_tokens": lengths[-1], "truncated_rows": 0,
            "dropped_pairs": dropped, "warnings": warnings}  # fmt: skip


_TEXTS = ("prompt", "chosen", "rejected")


def drop_unusable(pairs: PairSet, method: str, tokenizer: Any = None) -> PairSet:
    """Leave out the pairs that a method cannot learn from; the books count them by reason.

    Args:
        pairs: any. method: a name of `karma.vocabulary.METHODS`.
        tokenizer: the policy's, to leave out what its chat template refuses; None: that is not looked for.

    Returns:
        The others. Reasons are those of `karma.pairs.accounting.DROPPED`: no_prompt, empty_turn, empty_text,
        identical_responses, refused_by_template.

    Raises:
        InputError: a malformed message.
    """
    reasons = find_unusable(pairs.table, method)
    if tokenizer is not None:
        sides, rows = find_trainer(method).sides, pairs.table.select(["row_id", *_TEXTS]).to_pylist()
        reasons = [reason or _find_refusal(row, tokenizer, sides)
                   for reason, row in zip(reasons, rows, strict=True)]  # fmt: skip
    table = pairs.table.filter(pa.array([not reason for reason in reasons], pa.bool_()))
    dropped = pairs.accounting.dropped + Counter(filter(None, reasons))
    return PairSet(table, replace(pairs.accounting, pairs_out=table.num_rows, dropped=dropped))


def find_unusable(pairs: pa.Table, method: str) -> list[str]:
    """Return why a method cannot learn from each pair, "" where it can.

    SFT looks at the chosen response alone, a method that samples answers at the prompt.

    Example:
        >>> said = [[{"role": "assistant", "content": text}] for text in ("Yes.", "No.", " ")]
        >>> asked = [[{"role": "user", "content": "Is 1 odd?"}]] * 3
        >>> pairs = pa.table({"row_id": ["a", "b", "c"], "prompt": asked, "chosen": said, "rejected": [said[0]] * 3})
        >>> find_unusable(pairs, "dpo"), find_unusable(pairs, "sft")
        (['identical_responses', '', 'empty_text'], ['', '', 'empty_text'])
    """
    sides = find_trainer(method).sides
    return [_find_reason(row, sides) for row in pairs.select(["row_id", *_TEXTS]).to_pylist()]


def _find_reason(row: dict[str, Any], sides: tuple[str, ...]) -> str:
    for side in sides or ("prompt",):
        _check_messages(row, side)
    *before, last = row["prompt"]
    if not (last["content"] or "").strip():
        return "no_prompt"
    if any(turn["role"] in ("user", "assistant") and not (turn["content"] or "").strip() for turn in before):
        return "empty_turn"
    if not all((row[side][-1]["content"] or "").strip() for side in sides):
        return "empty_text"
    return "identical_responses" if "rejected" in sides and row["chosen"] == row["rejected"] else ""


def _refuse_unusable(pairs: pa.Table, method: str) -> None:
    """Raise where a pair cannot be trained on, with how many there are."""
    reasons = find_unusable(pairs, method)
    first = next((place for place, reason in enumerate(reasons) if reason), None)
    if first is not None:
        others = f" (of {len(reasons)} pairs {sum(map(bool, reasons))} cannot be trained on)"
        raise InputError(
            f"pair {pairs['row_id'][first].as_py()}: {DROPPED[reasons[first]]}{others}: "
            "repair them, or leave them out with `karma train --drop-unusable`"
        )


_ANSWER = [{"role": "assistant", "content": "."}]  # stands in where answers are yet to be sampled


def _measure(row: dict[str, Any], tokenizer: Any, sides: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return (tokens of the prompt, tokens in all) of each of a pair's rows."""
    try:
        tokens = tokenize_row(tokenizer, row["prompt"], [row[side] for side in sides] or [_ANSWER], 10**9).sides
    except InputError as error:
        raise InputError(f"pair {row['row_id']}: {error}: leave such pairs out with `karma train --drop-unusable`, or "
                         "train another policy") from None  # fmt: skip
    return [(t.start, len(t.ids)) for t in tokens]


def _find_refusal(row: dict[str, Any], tokenizer: Any, sides: tuple[str, ...]) -> str:
    try:
        tokenize_row(tokenizer, row["prompt"], [row[side] for side in sides] or [_ANSWER], 10**9)
    except InputError:
        return "refused_by_template"
    return ""


def _check_messages(row: dict[str, Any], side: str) -> None:
    for name, role in [("prompt", "user"), (side, "assistant")][: 1 if side == "prompt" else 2]:
        if fault := find_fault(row[name], role, only=name != "prompt"):
            raise InputError(f"pair {row['row_id']}: {name} {fault}, as stage 03 writes")


def _list_warnings(n_updates: int, settings: Training, truncated: int, dropped: int, n_pairs: int, whole: bool):
    limit = settings.max_length
    if n_updates <= settings.warmup_steps:
        yield (f"{n_updates} updates are fewer than {settings.warmup_steps} warm-up steps: the learning rate "
               "never reaches its value; lower training.warmup_steps")  # fmt: skip
    if truncated:
        yield f"{truncated} rows are longer than max_length={limit} tokens, and lose their end; raise that setting"
    if dropped:
        why = "a text of theirs is longer than" if whole else "their prompt alone fills"
        yield (f"{dropped} of {n_pairs} pairs are not trained on: {why} max_length={limit} tokens; "
               "raise training.max_length")  # fmt: skip


def estimate_memory(config: Any, n_parameters: int, settings: Training, dtype: str, method: str, longest: int) -> dict:
    """Estimate the memory that one process of a training takes, in bytes.

    Args:
        config: the model's (`transformers`). n_parameters: its weights.
        settings: the experiment's `training`. dtype: what is computed in. method: how it is tuned.
        longest: the longest row, in tokens.

    Returns:
        states_bytes (weights, gradients, Adam's moments, shared out among `devices` under FSDP or ZeRO-3),
        activations_bytes, and their sum total_bytes.
    """
    weights, trained = n_parameters * _BYTES[choose_weights_dtype(settings, dtype)], n_parameters
    if settings.lora:
        n_layers = min(settings.lora.last_layers, config.num_hidden_layers)
        trained = settings.lora.rank * n_layers * _sum_widths(config)
        weights += 4 * trained
    states = (weights + 12 * trained) / (
        settings.devices if is_sharded(settings.accelerate) else 1
    )  # float32 gradient and two moments
    trainer = find_trainer(method)
    online = trainer.samples(settings)
    rows = settings.per_device_batch_size * (online.generations if online else len(trainer.sides))
    tokens, layers = rows * min(longest, settings.max_length), config.num_hidden_layers
    a_layer = tokens * (16 * config.hidden_size + 6 * config.intermediate_size) * _BYTES[dtype] / 2
    kept = layers * tokens * config.hidden_size * _BYTES[dtype] + a_layer
    activations = kept if settings.gradient_checkpointing else layers * a_layer
    scored = min(tokens, HEAD_CHUNK) if trainer.scores_in_chunks else tokens
    scored *= trainer.makes == "policy"  # a reward model has no vocabulary head
    activations += 10.0 * config.vocab_size * scored  # logits in float32 with their gradient
    if online:
        states += 0 if settings.lora or not online.beta else n_parameters * 4  # the policy before training
        answers = rows * (settings.gradient_accumulation if online.iterations > 1 else 1)
        cached = 2 * layers * _count_keys(config) * min(longest, settings.max_length) * _BYTES[dtype]
        activations = max(activations, answers * (cached + 10.0 * config.vocab_size))  # sampled, or learnt from
    parts = {"states_bytes": states, "activations_bytes": activations, "total_bytes": states + activations}
    return {name: int(value) for name, value in parts.items()}


def _sum_widths(config: Any) -> int:
    """Return a layer's summed widths, in and out, over its seven matrices (a LoRA of rank r has r times as many)."""
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    head, keys = getattr(config, "head_dim", None) or hidden // heads, _count_keys(config)
    return 4 * hidden + 2 * heads * head + 2 * keys + 3 * (hidden + inner)


def _count_keys(config: Any) -> int:
    """Return the width of a layer's keys (and of its values)."""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return (getattr(config, "num_key_value_heads", None) or heads) * head


def find_memory(device: str) -> int:
    """Return the free memory of the device, in bytes: the first CUDA device's, or this machine's."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available


def check_memory(estimate: dict[str, int], free: int, device: str) -> list[str]:
    """Compare an estimate with what is free.

    Returns:
        Warnings, each with advice.

    Raises:
        InputError: weights, gradients and moments alone do not fit.
    """
    need, states = estimate["total_bytes"] / 2**30, estimate["states_bytes"] / 2**30
    advice = "use training.lora, a smaller per_device_batch_size, or share it out (training.accelerate)"
    if estimate["states_bytes"] > free:
        raise InputError(f"weights, gradients and optimiser take {states:.1f} GiB, and {device} has "
                         f"{free / 2**30:.1f} GiB free: {advice}")  # fmt: skip
    if estimate["total_bytes"] > free:
        return [f"about {need:.1f} GiB are needed, and {device} has {free / 2**30:.1f} GiB free: {advice}"]
    return []


def find_state(folder: Path, identity: str) -> str:
    """Tell what a run folder is for a training: "free", "resumable" (a checkpoint of it), "done", or "another's".

    Args:
        folder: where the training writes. identity: what it is made of (`Run.identity`).
    """
    record, marker = folder / "training.json", folder / "checkpoints" / "identity.json"
    if record.is_file() and (folder / "model").is_dir():
        return "done" if load_object(record).get("identity") == identity else "another's"
    return "resumable" if marker.is_file() and load_json(marker) == identity else "free"


def check_folder(folder: Path, identity: str) -> str:
    """Return the folder's state, as `find_state`.

    Raises:
        InputError: another training's results lie there.
    """
    state = find_state(folder, identity)
    if state == "another's":
        raise InputError(f"{folder} holds another training: give a new folder, or remove it")
    return state
