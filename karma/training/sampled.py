"""The forward pass of GRPO and RLOO, cheaper: the answers to one prompt in one row, the head on their tokens only.

TRL scores each answer in a row of its own, prompt and padding included, once for the policy before training and once
for the policy, with the head on every position where there is no CUDA. Here answers to a prompt that lie in the same
pass share it, as the two responses of a pair do in DPO (`karma.training.forward`), and the layers below the first
adapter are run once for both policies, their states kept until the next answers are sampled.
Decisions: TRL's own pass computes where the temperature is not 1, since it scales the logits; the entropy of the
policy, which needs a pass over the whole vocabulary, is not logged. Limit: TRL shuffles answers among the micro-batches
of an update, so answers to one prompt share it as far as they meet in one.

Paper: the layout is ours.
"""

from collections import defaultdict
from typing import Any

import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from karma.models.chat import TokenizedResponse
from karma.models.frozen import count_frozen, keep_frozen
from karma.models.logprobs import (
    SharedRow,
    choose_pass_tokens,
    compute_token_logps,
    get_causal,
    plan_batches,
)
from karma.training.forward import can_share, is_replaced, replace_fused_head


class _Sampled:
    """What both trainers have besides TRL's."""

    def share_prompts(self, temperature: float) -> None:
        """Replace the pass of the policy, and of the one before training where that is another model."""
        trainer: Any = self
        models = [get_causal(model) for model in (trainer.model, trainer.ref_model) if model is not None]
        trainer.states = {}
        if temperature != 1.0 or not all(map(can_share, models)):
            return
        for model in models:
            replace_fused_head(model, compute_answers)
        if trainer.accelerator.num_processes == 1 and not trainer.args.gradient_checkpointing:
            keep_frozen(models[0], count_frozen(models[0]), trainer.states)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        trainer: Any = self
        trainer.states.clear()  # of other answers
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what was computed."""
        trainer: Any = self
        if is_replaced(trainer.model):
            trainer._metrics["train"].pop("entropy", None)
        super().log(logs, start_time)  # type: ignore[misc]


class SampledGRPOTrainer(_Sampled, GRPOTrainer):
    """TRL's GRPOTrainer with this pass."""


class SampledRLOOTrainer(_Sampled, RLOOTrainer):
    """TRL's RLOOTrainer with this pass."""


def compute_answers(model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> FusedCausalLMOutput:
    """Score TRL's batch, prompts padded on the left and answers on the right, and put the scores where it wants them.

    Returns:
        log_probs in nats (n, length - 1), 0 where the next token is not the answer's; the entropy is not computed.
    """
    rows, members = find_answers(ids.tolist(), mask.tolist(), (labels != -100).tolist())
    budget = choose_pass_tokens("cpu") if ids.device.type == "cpu" else 2**62
    groups = plan_batches([row.width for row in rows], budget)
    parts = [part for group in groups for part in compute_token_logps([rows[k] for k in group], model, pad=0)]
    owners = [number for group in groups for k in group for number in members[k]]
    width = ids.shape[1] - 1
    starts = (labels != -100).int().argmax(1).tolist()
    targets = [number * width + starts[number] - 1 + place
               for number, part in zip(owners, parts, strict=True) for place in range(len(part))]  # fmt: skip
    scored = torch.cat(parts)
    blank = scored.new_zeros(labels[:, 1:].numel())
    found = blank.index_put((torch.tensor(targets, device=ids.device),), scored).view_as(labels[:, 1:])
    return FusedCausalLMOutput(log_probs=found, entropy=torch.zeros_like(found))


def find_answers(
    ids: list[list[int]], mask: list[list[int]], scored: list[list[bool]]
) -> tuple[list[SharedRow], list[list[int]]]:
    """Return the rows of TRL's batch, one a prompt, and the numbers of each row's answers.

    Args:
        ids: padded rows. mask: 1 where there is a token. scored: where it is the answer's.

    Example:
        >>> ids, mask = [[0, 7, 1, 2], [0, 7, 3, 0], [8, 9, 1, 0]], [[0, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 0]]
        >>> rows, members = find_answers(ids, mask, [[False, False, True, bool(row[3])] for row in mask])
        >>> members, [[side.ids for side in row.sides] for row in rows]
        ([[0, 1], [2]], [[[7, 1, 2], [7, 3]], [[8, 9, 1]]])
    """
    found: dict[tuple[int, ...], list[tuple[int, list[int]]]] = defaultdict(list)
    for number, (row, seen, own) in enumerate(zip(ids, mask, scored, strict=True)):
        pairs = [(token, mine) for token, here, mine in zip(row, seen, own, strict=True) if here]
        prompt = tuple(token for token, mine in pairs if not mine)
        found[prompt].append((number, [token for token, _ in pairs]))
    rows = [SharedRow(tuple(TokenizedResponse(text, len(prompt)) for _, text in own), len(prompt))
            for prompt, own in found.items()]  # fmt: skip
    return rows, [[number for number, _ in own] for own in found.values()]
