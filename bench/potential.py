"""Implicit margins of real pairs against TRL's reference log-prob pass, in the same run.

    python bench/potential.py [--pairs 48] [--threads 2] [--rounds 3] [--check]

TRL's pass is DPOTrainer with precompute_ref_log_probs at its defaults (float32, batches of 8 pairs in the order given,
1,024 tokens); its seconds are those of the pass alone, tokenisation aside, while ours include it. Ours shares a pair's
prompt, batches by length and applies the vocabulary head to responses only. In float32 both must agree within 1e-3
nats a token. Rounds take turns, so that a busy machine hurts all alike; medians count, CPU seconds are printed too. It
takes about twenty minutes on two cores. The pairs are UltraFeedback's from $KARMA_REAL_DATA (or ../shared/data); where
it is absent, the demo's own instructions with made-up answers stand in, and the first line says so.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import Ratio, conclude, read_options

GOAL_FLOAT32, GOAL_PICKED, GOAL_NATS = 1.5, 3.0, 1e-3
MAX_LENGTH = 1024  # TRL's default
NAME = "smollm2-135m"


def load_rows(n: int, tokenizer) -> tuple[str, list[dict[str, list]]]:
    """Return where the pairs are from, and n of them as messages; no prompt fills MAX_LENGTH, which TRL would drop."""
    from karma.files.places import find_project_root
    from karma.models.logprobs import count_tokens, tokenize_pair
    from karma.pairs.public_shape import load_binarized
    from karma.potential.selection import find_unusable

    root = find_project_root()
    path = (
        Path(os.environ.get("KARMA_REAL_DATA", root.parent / "shared" / "data")) / "ultrafeedback_binarized_300.jsonl"
    )
    if path.is_file():
        table = load_binarized(path).table
        fit = [reason == "" for reason in find_unusable(table)]
        rows = table.select(["prompt", "chosen", "rejected"]).filter(fit).to_pylist()
        lengths = count_tokens([tokenize_pair(tokenizer, *row.values(), MAX_LENGTH) for row in rows])
        return "UltraFeedback's pairs", [row for row, kept in zip(rows, lengths.all(1), strict=True) if kept][:n]
    lines = (root / "karma/data/demo/instructions.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["instruction"] for line in lines]
    answers = ["\n".join(texts[k : k + size]) for k in range(len(texts)) for size in (2 + k % 9, 2 + k % 5)]
    rows = [
        {name: [{"role": role, "content": text}] for name, role, text in
         (("prompt", "user", texts[k % len(texts)]), ("chosen", "assistant", answers[2 * k % len(answers)]),
          ("rejected", "assistant", answers[(2 * k + 1) % len(answers)]))}
        for k in range(n)
    ]  # fmt: skip
    return "stand-ins of the demo's instructions (no $KARMA_REAL_DATA)", rows


class Trl:
    """TRL's own pass; built once, since only the pass is timed."""

    def __init__(self, model, tokenizer, rows):
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        self.folder = tempfile.TemporaryDirectory()
        config = DPOConfig(output_dir=self.folder.name, use_cpu=True, bf16=False, report_to="none")
        tokenizer.padding_side = "right"
        self.trainer = DPOTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        assert len(self.trainer.train_dataset) == len(rows), "TRL dropped a pair: compare on others"

    def run(self):
        import torch

        size = self.trainer.args.per_device_train_batch_size
        data, found = self.trainer.train_dataset, []
        for start in range(0, len(data), size):
            batch = self.trainer.data_collator([data[k] for k in range(start, min(start + size, len(data)))])
            found.append(torch.stack(self.trainer.compute_ref_log_probs(self.trainer.model, batch), 1))
        return torch.cat(found)


class Ours:
    """The kit's margins, tokenisation included, nothing kept."""

    def __init__(self, model, tokenizer, rows):
        self.model, self.tokenizer, self.rows = model, tokenizer, rows

    def run(self):
        return self.measure()[0]

    def measure(self):
        from karma.models.logprobs import compute_pair_logps
        from karma.study.experiment import load_base

        sides = [[row[name] for row in self.rows] for name in ("prompt", "chosen", "rejected")]
        tokens = load_base().potential.batch_tokens
        return compute_pair_logps(self.model, self.tokenizer, *sides, max_length=MAX_LENGTH, batch_tokens=tokens)


def main() -> int:
    options = read_options(__doc__, pairs=48, threads=2, rounds=3)
    import torch

    from karma.models.load import choose_dtype, load_model, load_tokenizer
    from karma.study.sections import ModelSpec

    torch.set_num_threads(options.threads)
    models, picked = {NAME: ModelSpec(packaged=NAME).model_dump()}, choose_dtype("auto", "cpu")
    where, rows = load_rows(options.pairs, load_tokenizer(models, NAME))
    print(f"{len(rows)} pairs, {where}; {options.threads} threads")
    ways = {"TRL float32": Trl(load_model(models, NAME), load_tokenizer(models, NAME), rows)}
    for dtype in dict.fromkeys(("float32", picked)):
        ways[f"ours {dtype}"] = Ours(load_model(models, NAME, dtype), load_tokenizer(models, NAME), rows)
    seconds, found = {name: [] for name in ways}, {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            started, cpu = time.perf_counter(), time.process_time()
            found[name] = way.run()
            seconds[name].append((time.perf_counter() - started, time.process_time() - cpu))
    lengths = ways["ours float32"].measure()[1].clamp(min=1)
    return compare(seconds, found, lengths, picked, options.check)


def compare(seconds: dict, found: dict, lengths, picked: str, check: bool) -> int:
    base, same = "TRL float32", "ours float32"
    medians = {name: tuple(statistics.median(kind) for kind in zip(*rounds, strict=True))
               for name, rounds in seconds.items()}  # fmt: skip
    n, apart = (
        len(lengths),
        {name: ((value - found[base]).abs() / lengths).max().item() for name, value in found.items()},
    )
    for name, (clock, cpu) in medians.items():
        print(f"{name}: {n / clock:.2f} pairs/s ({cpu:.0f} CPU s), at most {apart[name]:.1e} nats a token from {base}")
    speed = {name: medians[base][0] / medians[name][0] for name in medians}
    ratios = [
        Ratio("pairs per second, ours float32 / TRL float32", speed[same], GOAL_FLOAT32, True),
        Ratio(f"pairs per second, ours {picked} / TRL float32", speed[f"ours {picked}"], GOAL_PICKED, True),
        Ratio("largest difference in float32 / nats a token", apart[same], GOAL_NATS, form=".1e"),
    ]
    return conclude(ratios, check)


if __name__ == "__main__":
    sys.exit(main())
