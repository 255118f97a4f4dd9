"""A reward model on real pairs: the kit's trainer against TRL's RewardTrainer, in the same precision and run.

    python bench/reward_model.py [--pairs 12] [--threads 2] [--rounds 1] [--check]

SmolLM2-135M-Instruct, full fine-tuning, one epoch, four pairs an update, 512 tokens, TRL at its best flags (no gradient
checkpointing). First one batch's loss is shown equal in float32, and its gradient within 1 %. Then both take turns; the
best round counts. Pairs are those of bench/training.py, whose texts fit the length: TRL leaves the others out.
"""

import sys
import tempfile
import time

from common import Ratio, conclude, read_options
from training import LEARNING_RATE, MAX_LENGTH, NAME, PAIRS_AN_UPDATE, build_settings, build_table, load, load_texts

GOAL, GOAL_LOSS, GOAL_GRADIENT = 1.5, 1e-4, 0.01


def build_ours(model, tokenizer, pairs, dtype: str, rate: float = LEARNING_RATE):
    from karma.training.trainers import build_trainer

    settings = build_settings()
    own = settings.reward_model.model_copy(update={"learning_rate": rate})
    settings = settings.model_copy(update={"reward_model": own})
    return build_trainer(model, tokenizer, pairs, "reward_model", 0, settings, device="cpu", dtype=dtype)


def build_trl(model, tokenizer, pairs, dtype: str, folder: str):
    from trl import RewardConfig, RewardTrainer

    from karma.training.trainers import build_dataset

    config = RewardConfig(output_dir=folder, use_cpu=True, report_to="none", save_strategy="no", num_train_epochs=1,
                          per_device_train_batch_size=PAIRS_AN_UPDATE, max_length=MAX_LENGTH, logging_steps=1,
                          learning_rate=LEARNING_RATE, disable_tqdm=True, gradient_checkpointing=False,
                          bf16=dtype == "bfloat16", center_rewards_coefficient=0.01)  # fmt: skip
    return RewardTrainer(model, config, train_dataset=build_dataset(pairs, "reward_model"), processing_class=tokenizer)


def load_start():
    """Return a reward model whose head has an opinion, the same each time, and its tokenizer."""
    import torch

    from karma.models.rewards import build_reward_model

    model, tokenizer = load()
    model = build_reward_model(model)
    torch.nn.init.normal_(model.score.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return model, tokenizer


def compare(texts: list[tuple[str, str, str]], folder: str) -> str:
    """Return the line that shows both trainers equal in float32 on one batch; fails where they are not."""
    import torch

    pairs, losses, gradients = build_table(texts[:PAIRS_AN_UPDATE]), [], []
    for build in (build_ours, lambda *args: build_trl(*args, folder)):
        model, tokenizer = load_start()
        trainer = build(model, tokenizer, pairs, "float32")
        data = trainer.train_dataset
        loss = trainer.compute_loss(trainer.model, trainer.data_collator([data[k] for k in range(len(data))]))
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    apart, gradient = abs(losses[0] - losses[1]), ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()
    assert apart < GOAL_LOSS and gradient < GOAL_GRADIENT, f"not the same: {losses}, gradient {gradient:.2%}"
    return (f"equal in float32: losses within {apart:.1e} (allowed {GOAL_LOSS:g}), gradients within {gradient:.2%} "
            f"(allowed {GOAL_GRADIENT:.0%})")  # fmt: skip


def main() -> int:
    options = read_options(__doc__, pairs=12, threads=2, rounds=1)
    import torch

    from karma.models.load import choose_dtype
    from karma.models.rewards import tokenize_whole

    torch.set_num_threads(options.threads)
    source, texts = load_texts(10**6)
    table, tokenizer = build_table(texts).to_pylist(), load()[1]
    sides = ("chosen", "rejected")
    longest = [max(len(tokenize_whole(tokenizer, row["prompt"], row[side])) for side in sides) for row in table]
    fit = [text for text, length in zip(texts, longest, strict=True) if length <= MAX_LENGTH]
    texts, dtype = fit[: options.pairs], choose_dtype("auto", "cpu")
    print(f"{len(texts)} pairs: {source}; {NAME}, {dtype}, {options.threads} threads")
    pairs, seconds = build_table(texts), {"TRL": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        print(compare(texts, folder), flush=True)
        for _ in range(options.rounds):
            for name, build in (("TRL", lambda *args: build_trl(*args, folder)), ("ours", build_ours)):
                model, tokenizer = load_start()
                started = time.perf_counter(), time.process_time()
                trainer = build(model, tokenizer, pairs, dtype)
                trainer.train()
                seconds[name].append(time.perf_counter() - started[0])
                log = [entry for entry in trainer.state.log_history if "loss" in entry]
                print(f"{name}: {seconds[name][-1]:.1f} s, {time.process_time() - started[1]:.1f} CPU s, "
                      f"{log[-1]['num_tokens'] / seconds[name][-1]:.0f} tokens/s, first loss {log[0]['loss']:.4f}",
                      flush=True)  # fmt: skip
    ratio = min(seconds["TRL"]) / min(seconds["ours"])
    what = "pairs a second over TRL's RewardTrainer, same precision"
    return conclude([Ratio(what, ratio, GOAL, at_least=True)], options.check)


if __name__ == "__main__":
    sys.exit(main())
