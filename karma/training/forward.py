"""TRL's SFT and DPO trainers with cheaper forward passes; losses, metrics, saving and all else stay TRL's.

TRL gives a model a pass `model(..., fused_lm_head=True)` that returns log-probabilities in place of logits; off CUDA it
scores every position of a padded batch with the vocabulary head, prompt and padding included. What that pass computes
is replaced here, and it returns the same log-probabilities: only positions that predict a response token meet the head.
For DPO TRL lays a pair out as two rows, prompt + chosen and prompt + rejected; here it is one row, prompt + chosen +
rejected, in which the rejected response does not see the chosen one and takes up the positions after the prompt. Layers
below the first adapter are run once for the reference and the policy (`karma.models.frozen`).
Decisions: pairs of an update are sorted by length among its micro-batches, which changes their padding, not the sum of
their losses (in a last, partial update micro-batches may differ in size, and weigh the same); the reference's
log-probabilities are computed of the pairs that training will see, and kept in a file, so that a killed run or another
seed does not repeat them, unless its states are needed: then it is repeated in the same batches, so that weights do not
depend, by rounding, on what lay there; metrics that need a pass over the whole vocabulary (entropy, mean logits) are
not logged.
Pairs that carry their label confidence are trained with labels smoothed by it (`smooth_loss`). TRL's own smoothing does
not fit: one number for all pairs, none in its sigmoid loss, and its robust loss divides by 2c - 1, 0 at a coin flip.
Limit: models with a scaled or capped head and mixtures of experts go TRL's own way, in DPO also those with sliding
windows or recurrent layers, in SFT all on CUDA, where TRL picks the positions itself.

Paper: DPO (arXiv 2305.18290), Eq. 7; the layout is ours.
"""

import functools
import math
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch.utils.data import Sampler
from trl import DPOTrainer, SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from karma.files.writing import atomic_path
from karma.models.chat import TokenizedResponse
from karma.models.frozen import count_frozen, keep_frozen, keeps_frozen
from karma.models.logprobs import (
    SharedRow,
    can_share_prompts,
    choose_pass_tokens,
    compute_token_logps,
    get_causal,
    has_plain_head,
    plan_batches,
)
from karma.pairs.pairs import CONFIDENCE

_REPLACED = "karma_replaced_head"  # set on a model whose fused pass was replaced
_UNSCORED = ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy")  # need the whole vocabulary again


class ResponseHeadSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer, off CUDA with the head on response tokens only."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        causal = get_causal(self.model)
        if self.accelerator.device.type == "cpu" and can_replace_head(causal):
            replace_fused_head(causal, _score_responses)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what was computed."""
        if is_replaced(self.model):
            self._metrics["train"].pop("entropy", None)
        super().log(logs, start_time)


class SharedPromptDPOTrainer(DPOTrainer):
    """TRL's DPOTrainer, with a pair in one row and with reference log-probabilities kept in a file.

    Args:
        reference_file: parquet of the reference's log-probabilities, read if it is there, written if not; None keeps
            none.
        scratch: a folder of this run that all its processes see, needed with several.
        **options: DPOTrainer's; where `train_dataset` has a column label_confidence, labels are smoothed by it.
    """

    def __init__(self, *args: Any, reference_file: Path | None = None, scratch: Path | None = None, **options: Any):
        self.reference_file, self.scratch = reference_file, scratch
        super().__init__(*args, **options)
        self.ref_model = None  # its log-probabilities are known
        if CONFIDENCE in options["train_dataset"].column_names:
            self.data_collator = functools.partial(_collate_confidence, self.data_collator)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*(self._signature_columns or []), CONFIDENCE]))  # type: ignore[assignment]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss, smoothed where the batch has label confidence."""
        if CONFIDENCE not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        asked = {name: value for name, value in inputs.items() if name != CONFIDENCE}
        passes: list[Any] = []

        def score(**batch: Any) -> Any:  # TRL's pass, seen once more: the loss alone does not tell each pair's margin
            passes.append(model(**batch))
            return passes[-1]

        loss = super().compute_loss(score, asked, False, num_items_in_batch)
        chosen, rejected = passes[0].log_probs.sum(dim=1).chunk(2)
        margins = self.beta * (chosen - asked["ref_chosen_logps"] - rejected + asked["ref_rejected_logps"])
        loss = smooth_loss(loss, margins, inputs[CONFIDENCE])
        return (loss, passes[0]) if return_outputs else loss

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Compute the reference's log-probabilities in order of length, or read them."""
        for model in filter(None, (self.model, self.ref_model)):
            share_prompts(get_causal(model))
        alone = self.accelerator.device.type == "cpu" and self.accelerator.num_processes == 1
        if alone and self.ref_model is None and not self.args.gradient_checkpointing:
            keep_frozen(get_causal(self.model), count_frozen(get_causal(self.model)), {})
        seen, lengths = self._find_seen(dataset), _count_tokens(dataset)
        keeps = keeps_frozen(get_causal(self.model))  # then the pass makes the states that training goes on from
        known = [not keeps and self._read_reference(seen) is not None]
        broadcast_object_list(known)  # what the main process sees: all go the same way
        if known[0]:
            return concatenate_datasets([dataset, Dataset(self._read_reference(seen))], axis=1)
        order = sorted(seen, key=lambda i: -lengths[i])
        ordered = self._share_out(dataset.select(order).flatten_indices())
        done = super()._precompute_ref_logps(ordered, name, batch_size)
        columns = {}
        for column in ("ref_chosen_logps", "ref_rejected_logps"):
            columns[column] = np.full(len(dataset), np.nan, np.float32)
            columns[column][order] = done[column]
        reference = pa.table(columns)
        if self.reference_file and self.accelerator.is_main_process:
            with atomic_path(self.reference_file) as temporary:
                pq.write_table(reference, temporary)
        return concatenate_datasets([dataset, Dataset(reference)], axis=1)

    def _find_seen(self, dataset: Dataset) -> list[int]:
        """Return the pairs that training will see: all, unless it ends within its first epoch."""
        args = self.args
        per_update = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        n_updates = math.ceil(args.num_train_epochs * math.ceil(len(dataset) / per_update))
        sampler = self._get_train_sampler(dataset)
        drawn = list(sampler) if sampler is not None and args.num_train_epochs < 1 else list(range(len(dataset)))
        return sorted(drawn[: max(n_updates, 1) * per_update] if args.num_train_epochs < 1 else drawn)

    def _read_reference(self, seen: list[int]) -> pa.Table | None:
        """Return the file's log-probabilities, if it has those of all pairs that training will see."""
        if self.reference_file is None or not self.reference_file.is_file():
            return None
        table = pq.read_table(self.reference_file)
        whole = all(np.isfinite(table[column].to_numpy()[seen]).all() for column in table.column_names)
        return table if whole else None

    def _share_out(self, dataset: Dataset) -> Dataset:
        """Let several processes see one data set on disk: TRL's own cache of the pass lies beside it."""
        if self.accelerator.num_processes == 1 or self.scratch is None:
            return dataset
        if self.accelerator.is_main_process:
            dataset.save_to_disk(str(self.scratch))
        self.accelerator.wait_for_everyone()
        return load_from_disk(str(self.scratch))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Draw the pairs of each update at random (or take them in order), then sort them by length."""
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        together = any(name.startswith("aot") for name in self.loss_types)  # whose loss sees who shares a micro-batch
        return UpdateSampler.of(self.args, _count_tokens(dataset), unsorted=together)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what was computed: TRL's entropy, mean logits and token accuracy need a pass that is saved here."""
        if is_replaced(self.model):
            for key in _UNSCORED:
                self._metrics["train"].pop(key, None)
        super().log(logs, start_time)


def smooth_loss(loss: torch.Tensor, margins: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """Return conservative DPO: the mean over pairs of c * loss(m) + (1 - c) * loss(-m), loss(m) = -log sigmoid(m).

    A label smoothing of 1 - c, a pair. As loss(-m) = loss(m) + m, it is the plain loss plus the mean of (1 - c) * m:
    equal to it at c = 1, without a gradient at m = 0 where the label is a coin flip, smallest at sigmoid(m) = c.

    Args:
        loss: mean of loss(m), in nats. margins: m, reward margins in nats (n,). confidence: c in [0, 1] (n,).

    Example:
        >>> m = torch.tensor([1.0])
        >>> plain, turned = (-torch.nn.functional.logsigmoid(x).mean() for x in (m, -m))
        >>> round(smooth_loss(plain, m, torch.tensor([0.8])).item(), 6), round((0.8 * plain + 0.2 * turned).item(), 6)
        (0.513262, 0.513262)

    Paper: none for a pair of its own c; DPO's Eq. 7 (arXiv 2305.18290), and its authors' note on cDPO.
    """
    return loss + ((1 - confidence) * margins).mean()


def _collate_confidence(collate: Callable[..., dict[str, Any]], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {**collate(pairs), CONFIDENCE: torch.tensor([pair[CONFIDENCE] for pair in pairs])}


class UpdateSampler(Sampler):
    """Every pair once an epoch, the pairs of each update sorted by length, longest first.

    What an update holds is drawn from (seed, epoch) alone, so every process and every resumed run draws alike; sorting
    changes which pairs share a micro-batch, and so their padding, not the gradient of a full update.

    Args:
        lengths: tokens of each pair. per_update: pairs an update. seed: of the draw; None takes them in their order.

    Example:
        >>> list(UpdateSampler([5, 9, 2, 7], per_update=2, seed=None))
        [1, 0, 3, 2]
    """

    def __init__(self, lengths: list[int], per_update: int, seed: int | None):
        self.lengths, self.per_update, self.seed, self.epoch = lengths, per_update, seed, 0

    @classmethod
    def of(cls, args: Any, lengths: list[int], unsorted: bool = False) -> "UpdateSampler":
        """Return the sampler that TRL's configuration asks for; `unsorted`: pairs stay in the order drawn."""
        per_update = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = None if args.train_sampling_strategy == "sequential" else args.seed
        return cls(lengths, 1 if unsorted else per_update, seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be that of an epoch (the trainer calls it)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        drawn = list(range(len(self)))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
            drawn = torch.randperm(len(self), generator=generator).tolist()
        for start in range(0, len(drawn), self.per_update):
            yield from sorted(drawn[start : start + self.per_update], key=lambda i: (-self.lengths[i], i))


def _count_tokens(dataset: Dataset) -> list[int]:
    parts = [dataset[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    return [sum(map(len, row)) for row in zip(*parts, strict=True)]


def can_share(model: Any) -> bool:
    """Tell whether a model may be trained so: one row a pair, and a vocabulary head without scaling or experts."""
    return can_share_prompts(model) and can_replace_head(model)


def share_prompts(model: Any) -> None:
    """Replace what `model(..., fused_lm_head=True)` computes, where the model allows it; all other calls are as before.

    Args:
        model: a causal language model that TRL has given its fused head.
    """
    if can_share(model):
        replace_fused_head(model, _compute_pairs)


def _compute_pairs(model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> FusedCausalLMOutput:
    scored = _score_pairs(model, ids, mask, labels)
    blank = torch.zeros_like(scored)
    return FusedCausalLMOutput(log_probs=scored, entropy=blank, mean_logits=blank, is_top1=blank.bool())


def _score_pairs(model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Score TRL's batch, (2n, length) with the n chosen rows first, and put the scores where TRL expects them.

    Returns:
        Log-probabilities in nats (2n, length - 1), 0 where the next token is not the response's.
    """
    rows = _find_pairs(ids.tolist(), mask.sum(1).tolist(), (labels != -100).int().argmax(1).tolist())
    budget = choose_pass_tokens("cpu") if ids.device.type == "cpu" else 2**62
    groups = plan_batches([row.width for row in rows], budget)
    parts = [part for group in groups for part in compute_token_logps([rows[k] for k in group], model, pad=0)]
    sides = [side for group in groups for k in group for side in rows[k].sides]
    numbers = [k + len(rows) * side for group in groups for k in group for side in (0, 1)]  # TRL's row of each
    targets = [number * (ids.shape[1] - 1) + place for number, side in zip(numbers, sides, strict=True)
               for place in range(side.start - 1, len(side.ids) - 1)]  # fmt: skip
    scored = torch.cat(parts)
    blank = scored.new_zeros(labels[:, 1:].numel())
    return blank.index_put((torch.tensor(targets, device=ids.device),), scored).view_as(labels[:, 1:])


def _find_pairs(ids: list[list[int]], ends: list[int], starts: list[int]) -> list[SharedRow]:
    """Return the pairs of TRL's batch.

    Example:
        >>> _find_pairs([[7, 1, 2], [7, 3, 0]], ends=[3, 2], starts=[1, 1])[0].width  # 7 once, then 1 2 and 3
        4
    """
    n = len(ids) // 2
    sides = [TokenizedResponse(row[:end], start) for row, end, start in zip(ids, ends, starts, strict=True)]
    return [SharedRow((sides[k], sides[k + n]), min(starts[k], starts[k + n])) for k in range(n)]


def can_replace_head(model: Any) -> bool:
    """Tell whether a model's log-probabilities follow from its states and its head alone."""
    return has_plain_head(model) and not getattr(model.config.get_text_config(), "output_router_logits", None)


def is_replaced(model: Any) -> bool:
    """Tell whether a model's fused forward pass was replaced."""
    return getattr(get_causal(model), _REPLACED, False)


def replace_fused_head(model: Any, compute: Callable[..., FusedCausalLMOutput]) -> None:
    """Let `compute(model, input_ids, attention_mask, labels)` answer `model(..., fused_lm_head=True)`, once.

    Args:
        model: a causal language model that TRL has given its fused head; all its other calls stay as they were.
    """
    before = model.forward
    if is_replaced(model):
        return

    @functools.wraps(type(model).forward)  # generation checks its arguments against the signature
    def forward(self, *args, fused_lm_head=False, **inputs):
        if not fused_lm_head:
            return before(*args, **inputs)
        return compute(self, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])

    model.forward = types.MethodType(forward, model)
    setattr(model, _REPLACED, True)


def _score_responses(model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> FusedCausalLMOutput:
    """Score the tokens that have a label; position t predicts token t + 1."""
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    own = targets != -100
    logits = model.get_output_embeddings()(hidden[own]).float()
    logps = -torch.nn.functional.cross_entropy(logits, targets[own], reduction="none")
    blank = logps.new_zeros(own.shape)
    return FusedCausalLMOutput(log_probs=blank.masked_scatter(own, logps), entropy=blank, mean_logits=blank,
                               is_top1=torch.zeros_like(own).masked_scatter(own, logits.argmax(-1) == targets[own]),
                               label_mask=own)  # fmt: skip
