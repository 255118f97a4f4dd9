"""Trainers of a pairwise loss of ours over the shared-prompt pass: SimPO, ORPO, KTO.

They are TRL's DPOTrainer in all but the loss: the same tokens, batches, order, saving and metrics, so that methods can
be compared, and none is an import that may vanish. KTO compares with a point z0, estimated on mismatched answers: each
prompt with the responses of the pair before it in the data set. Decision: which pair that is does not depend on the
batch (TRL turns the answers round within each batch of its fixed order), so that the untrained policy's side of the
estimate is computed once and pairs can be drawn at random.

Paper: SimPO arXiv 2405.14734; ORPO arXiv 2403.07691; KTO arXiv 2402.01306, section 4.1.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from karma.models.logprobs import get_causal
from karma.training.forward import SharedPromptDPOTrainer, share_prompts
from karma.training.losses import Loss, Side, compute_kto

_SIDES = ("chosen", "rejected")


class PairLossTrainer(SharedPromptDPOTrainer):
    """TRL's DPOTrainer with another loss of a pair, without a reference.

    Args:
        pair_loss: (chosen, rejected) -> loss and rewards.
        **options: SharedPromptDPOTrainer's.
    """

    def __init__(self, *args: Any, pair_loss: Callable[..., Loss], **options: Any):
        self.pair_loss = pair_loss
        super().__init__(*args, **options)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Nothing is compared with the untrained policy."""
        share_prompts(get_causal(self.model))
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch, and log the rewards it comes from."""
        chosen, rejected = self._score(model, inputs)
        loss, *rewards = self._compute_pair_loss(model, inputs, chosen, rejected)
        self._log_pairs(_find_mode(model), inputs, (chosen, rejected), [reward.detach() for reward in rewards])
        return (loss, {}) if return_outputs else loss

    def _compute_pair_loss(self, model: Any, inputs: dict[str, Any], chosen: Side, rejected: Side) -> Loss:
        return self.pair_loss(chosen, rejected)

    def _score(self, model: Any, inputs: dict[str, Any]) -> tuple[Side, Side]:
        """Return what the policy gives each side of a batch, whose first half are the chosen rows."""
        own = inputs["completion_mask"][:, 1:]
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        scored = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels,
                       use_cache=False, fused_lm_head=True).log_probs[:, -own.size(1) :]  # fmt: skip
        sums, lengths = scored.sum(1).chunk(2), own.sum(1).chunk(2)
        known = [inputs.get(f"ref_{side}_logps") for side in _SIDES]
        return Side(sums[0], lengths[0], known[0]), Side(sums[1], lengths[1], known[1])

    def _log_pairs(
        self, mode: str, inputs: dict[str, Any], sides: tuple[Side, Side], rewards: list[torch.Tensor]
    ) -> None:
        metrics, gather = self._metrics[mode], self.accelerator.gather
        for name, side, reward in zip(_SIDES, sides, rewards, strict=True):
            metrics[f"rewards/{name}"].append(gather(reward).mean().item())
            metrics[f"logps/{name}"].append(gather(side.logps.detach()).mean().item())
        margins = gather(rewards[0] - rewards[1])
        metrics["rewards/margins"].append(margins.mean().item())
        metrics["rewards/accuracies"].append((margins > 0).float().mean().item())
        self._total_train_tokens += gather(inputs["attention_mask"].sum()).sum().item()
        metrics["num_tokens"] = [self._total_train_tokens]


class KTOPairTrainer(PairLossTrainer):
    """KTO on pairs: both responses of a pair are examples, the chosen one desirable, the rejected one not.

    Args:
        beta, weights: of `karma.training.losses.compute_kto`.
        **options: SharedPromptDPOTrainer's.
    """

    def __init__(self, *args: Any, beta: float, weights: tuple[float, float], **options: Any):
        super().__init__(*args, pair_loss=functools.partial(compute_kto, beta=beta, weights=weights), **options)
        self._collate_pairs, self.data_collator = self.data_collator, self._collate

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        """Give each prompt, besides its own responses, those of the pair before it."""
        dataset = super()._prepare_dataset(dataset, *args)
        for side in _SIDES:
            own = dataset[f"{side}_ids"][:]
            dataset = dataset.add_column(f"kl_{side}_ids", own[-1:] + own[:-1])
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        more = [f"kl_{side}_ids" for side in _SIDES] + [f"ref_kl_{side}_logps" for side in _SIDES]
        self._signature_columns = list(dict.fromkeys([*(self._signature_columns or []), *more]))  # type: ignore[assignment]

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Compute the untrained policy's log-probabilities of the pairs, and of the mismatched ones."""
        with_pairs, kept = SharedPromptDPOTrainer._precompute_ref_logps(self, dataset, name, batch_size), None
        if self.reference_file is not None:
            kept, self.reference_file = self.reference_file, _name_mismatched(self.reference_file)
        mismatched = _as_pairs(dataset)
        done = SharedPromptDPOTrainer._precompute_ref_logps(self, mismatched, f"mismatched {name}", batch_size)
        self.reference_file = kept
        for side in _SIDES:
            with_pairs = with_pairs.add_column(f"ref_kl_{side}_logps", done[f"ref_{side}_logps"][:])
        return with_pairs

    def _collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        mismatched = [{"prompt_ids": example["prompt_ids"], "chosen_ids": example["kl_chosen_ids"],
                       "rejected_ids": example["kl_rejected_ids"]}
                      | {f"ref_{side}_logps": example[f"ref_kl_{side}_logps"] for side in _SIDES}
                      for example in examples]  # fmt: skip
        pairs, others = self._collate_pairs(examples), self._collate_pairs(mismatched)
        return pairs | {f"kl_{name}": value for name, value in others.items()}

    def _compute_pair_loss(self, model: Any, inputs: dict[str, Any], chosen: Side, rejected: Side) -> Loss:
        others = {name.removeprefix("kl_"): value for name, value in inputs.items() if name.startswith("kl_")}
        with torch.no_grad():
            sides = self._score(model, others)
        kl = self.accelerator.gather(torch.cat([side.ratios for side in sides])).mean().clamp(min=0)
        self._metrics[_find_mode(model)]["kl"].append(kl.item())
        return self.pair_loss(chosen, rejected, kl)


def _find_mode(model: Any) -> str:
    """Return where TRL keeps the metrics of a model in its state."""
    return "train" if model.training else "eval"


def _as_pairs(dataset: Dataset) -> Dataset:
    """Return the mismatched answers in the columns of pairs."""
    names = {f"kl_{side}_ids": f"{side}_ids" for side in _SIDES}
    return dataset.select_columns(["prompt_ids", *names]).rename_columns(names)


def _name_mismatched(file: Path) -> Path:
    return file.with_name(f"{file.stem}-mismatched{file.suffix}")
