"""DPO, SimPO, ORPO and KTO on real pairs: the kit's trainers against TRL's, reference pass included, in the same run.

    python bench/training.py [--pairs 12] [--threads 2] [--rounds 1] [--check]

SmolLM2-135M-Instruct, full fine-tuning, one epoch, four pairs an update, 512 tokens. First the two are shown equal in
float32: log-probabilities within 1e-3 nats a token, gradients within 1 %. Then four ways take turns: TRL at its
defaults in the float32 that it loads a model in (`use_cpu`, `bf16=False`), the same with TRL's default `bf16=True`
(printed without a goal), TRL at its best flags (reference log-probabilities once, no gradient checkpointing) in the
precision the kit picks, and the kit in that precision. A way's time is that of building its
trainer and training; the best round counts. The pairs are UltraFeedback's from $KARMA_REAL_DATA (or ../shared/data);
where it is absent, stand-ins from the demo's instructions. On a CUDA device tokens a second, peak memory and MFU follow
for this shape and a random one of 3B parameters, against TRL's defaults.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from common import Ratio, conclude, read_options

GOAL_SAME_DTYPE, GOAL_DEFAULTS, GOAL_NATS, GOAL_GRADIENT = 1.5, 2.5, 1e-3, 0.01
PAIRS_AN_UPDATE, MAX_LENGTH, LEARNING_RATE = 4, 512, 1e-6
NAME = "smollm2-135m"
METHODS = ("simpo", "orpo", "kto")  # besides DPO
SHAPES = {"0.1B": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                   "num_key_value_heads": 3},
          "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
                 "num_key_value_heads": 8}}  # fmt: skip


def load_texts(n: int) -> tuple[str, list[tuple[str, str, str]]]:
    """Return where the pairs are from, and n triples of prompt, chosen, rejected."""
    from karma.files.places import find_project_root

    root = find_project_root()
    folder = Path(os.environ.get("KARMA_REAL_DATA", root.parent / "shared" / "data"))
    path = folder / "ultrafeedback_binarized_300.jsonl"
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        texts = [(r["prompt"], r["chosen"], r["rejected"]) for r in rows]
        fit = [t for t in texts if t[1].strip() and t[2].strip() and t[1] != t[2] and len(t[0]) < 1500]
        return "UltraFeedback's pairs", fit[:n]
    lines = (root / "karma/data/demo/instructions.jsonl").read_text("utf-8").splitlines()
    own = [json.loads(line)["instruction"] for line in lines]
    made = [(own[k], "\n".join(own[k : k + 2 + k % 9]), "\n".join(own[k + 1 : k + 4 + k % 5])) for k in range(len(own))]
    return "stand-ins of the demo's instructions (no $KARMA_REAL_DATA)", made[:n]


def build_table(texts: list[tuple[str, str, str]]):
    import pyarrow as pa

    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = [{name: [{"role": role, "content": text}] for (name, role), text in zip(roles.items(), t, strict=True)}
            for t in texts]  # fmt: skip
    return pa.Table.from_pylist(rows)


def build_settings():
    from karma.commands.train import build_settings as build

    return build([f"per_device_batch_size={PAIRS_AN_UPDATE}", "gradient_accumulation=1", "devices=1", "warmup_steps=0",
                  f"max_length={MAX_LENGTH}", "gradient_checkpointing=false", f"learning_rate={LEARNING_RATE:.1e}",
                  "checkpoint_steps=0", "sample_tokens=0"])  # fmt: skip


def build_ours(model, tokenizer, pairs, dtype: str, device: str = "cpu", method: str = "dpo"):
    from karma.training.trainers import build_trainer

    return build_trainer(model, tokenizer, pairs, method, 0, build_settings(), device=device, dtype=dtype)


def build_trl_method(method: str, model, tokenizer, pairs, folder: str, dtype: str):
    """Return TRL's trainer of another method, with its best flags; None where this TRL has it no more."""
    from datasets import Dataset

    shared = dict(output_dir=folder, use_cpu=True, report_to="none", save_strategy="no", num_train_epochs=1,
                  per_device_train_batch_size=PAIRS_AN_UPDATE, max_length=MAX_LENGTH, learning_rate=LEARNING_RATE,
                  logging_steps=1, disable_tqdm=True, bf16=dtype == "bfloat16",
                  gradient_checkpointing=False)  # fmt: skip
    rows = pairs.to_pylist()
    if method == "kto":
        from trl import KTOConfig, KTOTrainer

        single = [{"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
                  for row in rows for side in ("chosen", "rejected")]  # fmt: skip
        config = KTOConfig(
            precompute_ref_log_probs=True, **shared | {"per_device_train_batch_size": 2 * PAIRS_AN_UPDATE}
        )
        return KTOTrainer(model, args=config, train_dataset=Dataset.from_list(single), processing_class=tokenizer)
    try:
        if method == "simpo":
            from trl.experimental.cpo import CPOConfig, CPOTrainer

            config = CPOConfig(loss_type="simpo", cpo_alpha=0.0, beta=2.5, simpo_gamma=1.375, **shared)
            return CPOTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    except ImportError as error:
        print(f"{method}: no baseline, {error}")
        return None
    return ORPOTrainer(model, args=ORPOConfig(beta=0.1, **shared), train_dataset=Dataset.from_list(rows),
                       processing_class=tokenizer)  # fmt: skip


def measure_methods(texts: list[tuple[str, str, str]], folder: str) -> dict[str, float]:
    """Return method -> pairs a second over TRL's trainer of it, in the same precision."""
    from karma.models.load import choose_dtype

    pairs, dtype, ratios = build_table(texts), choose_dtype("auto", "cpu"), {}
    for method in METHODS:
        seconds = []
        for build in (lambda m, t, name=method: build_trl_method(name, m, t, pairs, folder, dtype),
                      lambda m, t, name=method: build_ours(m, t, pairs, dtype, method=name)):  # fmt: skip
            model, tokenizer = load()
            started = time.perf_counter()
            trainer = build(model, tokenizer)
            if trainer is not None:
                trainer.train()
                seconds.append(time.perf_counter() - started)
        if len(seconds) == 2:
            ratios[method] = seconds[0] / seconds[1]
            print(f"{method} {dtype}: TRL {seconds[0]:.1f} s, ours {seconds[1]:.1f} s", flush=True)
    return ratios


def build_trl(model, tokenizer, pairs, reference, folder: str, device: str = "cpu", **flags):
    from trl import DPOConfig, DPOTrainer

    from karma.training.trainers import build_dataset

    config = DPOConfig(output_dir=folder, use_cpu=device == "cpu", report_to="none", save_strategy="no",
                       num_train_epochs=1, per_device_train_batch_size=PAIRS_AN_UPDATE, max_length=MAX_LENGTH,
                       learning_rate=LEARNING_RATE, logging_steps=1, disable_tqdm=True, **flags)  # fmt: skip
    return DPOTrainer(model, reference, args=config, train_dataset=build_dataset(pairs, "dpo"),
                      processing_class=tokenizer)  # fmt: skip


def load(dtype: str = "float32"):
    from karma.models.load import load_model, load_tokenizer
    from karma.study.sections import ModelSpec

    models = {NAME: ModelSpec(packaged=NAME).model_dump()}
    tokenizer = load_tokenizer(models, NAME)
    tokenizer.padding_side = "right"
    return load_model(models, NAME, dtype), tokenizer


def compare(texts: list[tuple[str, str, str]], folder: str) -> list[str]:
    """Return the lines that show both trainers equal in float32 on one batch; fails where they are not."""
    import torch

    pairs = build_table(texts[:PAIRS_AN_UPDATE])
    logps, gradients = [], []
    for ours in (True, False):
        model, tokenizer = load()
        trainer = (
            build_ours(model, tokenizer, pairs, "float32")
            if ours
            else build_trl(model, tokenizer, pairs, None, folder, bf16=False, precompute_ref_log_probs=True,
                           gradient_checkpointing=False)
        )  # fmt: skip
        data = trainer.train_dataset
        batch = trainer.data_collator([data[k] for k in range(len(data))])
        logps.append(torch.stack(trainer.compute_ref_log_probs(trainer.model, batch), 1))
        lengths = batch["completion_mask"].sum(1).view(2, -1).T
        trainer.model.train()
        trainer.compute_loss(trainer.model, batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    nats = ((logps[0] - logps[1]).abs() / lengths).max().item()
    gradient = ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()
    assert nats < GOAL_NATS and gradient < GOAL_GRADIENT, f"not the same: {nats} nats a token, gradient {gradient:.2%}"
    return [f"equal in float32: log-probabilities within {nats:.1e} nats a token (allowed {GOAL_NATS:g}), "
            f"gradients within {gradient:.2%} (allowed {GOAL_GRADIENT:.0%})"]  # fmt: skip


def measure_ways(texts: list[tuple[str, str, str]], rounds: int, folder: str) -> dict[str, list[tuple[float, float]]]:
    """Return name -> (seconds by the clock, of CPU) of each round."""
    from karma.models.load import choose_dtype

    pairs, dtype = build_table(texts), choose_dtype("auto", "cpu")
    best = {"bf16": dtype == "bfloat16", "precompute_ref_log_probs": True, "gradient_checkpointing": False}
    ways = {
        "TRL defaults float32": lambda m, t, r: build_trl(m, t, pairs, r, folder, bf16=False),
        "TRL defaults bf16": lambda m, t, r: build_trl(m, t, pairs, r, folder),
        f"TRL best flags {dtype}": lambda m, t, r: build_trl(m, t, pairs, None, folder, **best),
        f"ours {dtype}": lambda m, t, r: build_ours(m, t, pairs, dtype),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, build in ways.items():
            model, tokenizer = load()
            reference = load()[0] if name.startswith("TRL defaults") else None
            started = time.perf_counter(), time.process_time()
            trainer = build(model, tokenizer, reference)
            trainer.train()
            seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
            log = [entry for entry in trainer.state.log_history if "loss" in entry]
            tokens, (clock, cpu) = log[-1]["num_tokens"], seconds[name][-1]
            print(f"{name}: {clock:.1f} s, {cpu:.1f} CPU s, {tokens / clock:.0f} tokens/s, "
                  f"first loss {log[0]['loss']:.4f}", flush=True)  # fmt: skip
    return seconds


def measure_cuda(shape: str, texts: list[tuple[str, str, str]], folder: str, device: str = "cuda") -> None:
    """Print tokens a second, peak memory and MFU of both trainers for a randomly initialised model of a shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import compute_flops_per_token, compute_mfu, get_peak_flops

    tokenizer, pairs = load()[1], build_table(texts)
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
                         **SHAPES[shape])  # fmt: skip
    speeds = {}
    for name in ("TRL defaults", "ours"):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(device)
        reference = LlamaForCausalLM(config).to(device) if name == "TRL defaults" else None
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        trainer = (build_ours(model, tokenizer, pairs, "bfloat16", device) if name == "ours"
                   else build_trl(model, tokenizer, pairs, reference, folder, device))  # fmt: skip
        trainer.train()
        seconds = time.perf_counter() - started
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        speeds[name] = log[-1]["num_tokens"] / seconds
        peak = get_peak_flops(torch.cuda.get_device_name(), "bfloat16") if device == "cuda" else None
        mfu = compute_mfu(compute_flops_per_token(config, MAX_LENGTH), speeds[name], 1, peak) if peak else float("nan")
        memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
        print(f"{shape} {name}: {speeds[name]:.0f} tokens/s, peak {memory:.1f} GiB, MFU {mfu:.1f} %", flush=True)
        del model, reference, trainer
    what = f"{shape} on {device}: tokens/s over TRL's defaults"
    conclude([Ratio(what, speeds["ours"] / speeds["TRL defaults"], 1.0, at_least=True)], check=False)


def main() -> int:
    options = read_options(__doc__, pairs=12, threads=2, rounds=1)
    import torch

    torch.set_num_threads(options.threads)
    source, texts = load_texts(options.pairs)
    print(f"{len(texts)} pairs: {source}; {options.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        print(*compare(texts, folder), sep="\n", flush=True)
        seconds = {name: min(times)[0] for name, times in measure_ways(texts, options.rounds, folder).items()}
        defaults, defaults_bf16, best, ours = seconds.values()
        found = [("pairs a second over TRL's best flags, same precision", best / ours, GOAL_SAME_DTYPE),
                 ("pairs a second over TRL's defaults, precision picked", defaults / ours, GOAL_DEFAULTS)]  # fmt: skip
        found += [(f"{method}: pairs a second over TRL's trainer, same precision", ratio, GOAL_SAME_DTYPE)
                  for method, ratio in measure_methods(texts, folder).items()]  # fmt: skip
        code = conclude([Ratio(*one, at_least=True) for one in found], options.check)
        print(f"besides: over TRL's defaults with bf16=True {defaults_bf16 / ours:.2f}")
        if torch.cuda.is_available():
            for shape in SHAPES:
                measure_cuda(shape, load_texts(96)[1], folder)
        else:
            print("no CUDA device here: tokens a second, memory and MFU on one were not measured")
    return code


if __name__ == "__main__":
    sys.exit(main())
