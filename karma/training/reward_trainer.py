"""TRL's RewardTrainer with both responses of a pair in one row; loss, metrics, saving and all else stay TRL's.

Of a pair (x, y_w, y_l) with rewards r the loss is, with the centring coefficient c,

    -log sigmoid(r(x, y_w) - r(x, y_l)) + c (r(x, y_w) + r(x, y_l))^2

TRL lays a pair out as two padded rows; here it is one, in which what both responses begin with, the prompt above all,
stands once (`karma.models.rewards`). What it logs is named as DPO's rewards are, so that curves, progress and alarms
read both. Decision: pairs of an update are sorted by length, as for DPO, which changes padding alone. Limit: TRL leaves
out pairs whose longer text exceeds `max_length`, rather than cut a text that is rated at its end; they are counted
before the training. Models that cannot share a row go TRL's own way.

Paper: the Bradley-Terry loss of arXiv 2203.02155, Eq. 1; centring is Eq. 2 of arXiv 2312.09244.
"""

import functools
import types
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import RewardConfig, RewardTrainer

from karma.models.logprobs import choose_pass_tokens, get_causal, plan_batches
from karma.models.rewards import build_reward_row, can_share_rewards, compute_row_rewards
from karma.study.training_settings import Training
from karma.training.forward import UpdateSampler


class SharedPromptRewardTrainer(RewardTrainer):
    """TRL's RewardTrainer, with a pair in one row."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        share_rewards(get_causal(self.model))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Draw the pairs of each update at random (or take them in order), then sort them by length."""
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        sides = zip(dataset["chosen_ids"], dataset["rejected_ids"], strict=True)
        return UpdateSampler.of(self.args, [len(chosen) + len(rejected) for chosen, rejected in sides])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics under DPO's names."""
        own = self._metrics["train"]
        means, margins, shares = (own.pop(key, []) for key in ("mean_reward", "margin", "accuracy"))
        for name, sign in (("chosen", 1), ("rejected", -1)):
            own[f"rewards/{name}"] = [mean + sign * gap / 2 for mean, gap in zip(means, margins, strict=True)]
        own |= {"rewards/margins": margins, "rewards/accuracies": shares}
        for key in [key for key, values in own.items() if not values]:  # the last log of a training has none
            own.pop(key)
        super().log(logs, start_time)


def share_rewards(model: Any) -> None:
    """Let a reward model answer TRL's batches, 2n padded rows with the n chosen first, from n shared rows.

    Args:
        model: a sequence classifier, without wrappers; one that cannot share stays as it is.
    """
    if not can_share_rewards(model):
        return
    budget = choose_pass_tokens("cpu") if model.device.type == "cpu" else 2**62

    @functools.wraps(type(model).forward)
    def forward(self, input_ids, attention_mask, **_: Any):
        texts = [row[:end] for row, end in zip(input_ids.tolist(), attention_mask.sum(1).tolist(), strict=True)]
        n, pad = len(texts) // 2, self.config.get_text_config().pad_token_id
        rows = [build_reward_row([texts[k], texts[n + k]], pad) for k in range(n)]
        groups = plan_batches([row.width for row in rows], budget)
        rewards = torch.stack([own for group in groups for own in compute_row_rewards(self, [rows[k] for k in group])])
        order = torch.tensor([k for group in groups for k in group]).argsort().to(rewards.device)
        return SequenceClassifierOutputWithPast(logits=rewards[order].T.reshape(2 * n, 1))

    model.forward = types.MethodType(forward, model)


def build_reward_trainer(model: Any, settings: Training, shared: dict[str, Any], options: dict[str, Any]) -> Any:
    """Build the trainer of a reward model.

    Args:
        model: from `karma.models.rewards.build_reward_model`. settings: the experiment's `training`.
        shared: TRL's configuration. options: its other options (`karma.training.trainers.build_trainer`).
    """
    config = RewardConfig(center_rewards_coefficient=settings.reward_model.centring or None, **shared)
    lora = options["peft_config"]
    options = {**options, "peft_config": replace(lora, task_type="SEQ_CLS") if lora else None}  # trains the head too
    return SharedPromptRewardTrainer(model, config, **options)
