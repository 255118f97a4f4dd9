"""TRL's DPO trainer with a cheaper forward pass: each pair's prompt once, the vocabulary head on response tokens only.

TRL lays a pair out as two rows, prompt + chosen and prompt + rejected, pads both to the longest row of the batch, and
off CUDA scores every position with the vocabulary head. Here a pair is one row, prompt + chosen + rejected, in which
the rejected response does not see the chosen one and takes up the positions after the prompt; only positions that
predict a response token meet the head. Losses, metrics, saving and all else stay TRL's: only what
`model(..., fused_lm_head=True)` computes is replaced, and it returns the same log-probabilities.
Decisions: pairs of an update are sorted by length among its micro-batches, which changes their padding and nothing
else; the reference's log-probabilities are kept in a file, so that a killed run or another seed does not repeat them.
Limit: models with sliding windows, recurrent layers or a scaled head go TRL's own way.

Paper: DPO (arXiv 2305.18290), Eq. 7; the layout is ours.
"""

import functools
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Sampler
from trl import DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

from karma.files import atomic_path

HEAD_CHUNK = 2048  # response tokens scored at a time where memory is dear
_UNSCORED = ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy")  # need the whole vocabulary again
_SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class SharedPromptDPOTrainer(DPOTrainer):
    """TRL's DPOTrainer, with the forward pass above and with reference log-probabilities kept in a file.

    Args:
        reference_file: parquet of the reference's log-probabilities, read if it is there, written if not; None keeps
            none.
        **options: DPOTrainer's.
    """

    def __init__(self, *args: Any, reference_file: Path | None = None, **options: Any):
        self.reference_file = reference_file
        super().__init__(*args, **options)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Compute the reference's log-probabilities in order of length, or read them."""
        for model in filter(None, (self.model, self.ref_model)):
            share_prompts(_unwrap(model))
        if self.reference_file and self.reference_file.is_file():
            return concatenate_datasets([dataset, Dataset(pq.read_table(self.reference_file))], axis=1)
        lengths = _count_tokens(dataset)
        order = sorted(range(len(dataset)), key=lambda i: -lengths[i])
        places = sorted(range(len(dataset)), key=order.__getitem__)
        ordered = self._share_out(dataset.select(order).flatten_indices())
        done = super()._precompute_ref_logps(ordered, name, batch_size)
        reference = done.select_columns(["ref_chosen_logps", "ref_rejected_logps"]).select(places).flatten_indices()
        if self.reference_file and self.accelerator.is_main_process:
            with atomic_path(self.reference_file) as temporary:
                pq.write_table(reference.data.table, temporary)
            shutil.rmtree(self.reference_file.with_suffix(""), ignore_errors=True)
        return concatenate_datasets([dataset, reference], axis=1)

    def _share_out(self, dataset: Dataset) -> Dataset:
        """Let several processes see one data set on disk: TRL's own cache of the pass lies beside it."""
        if self.accelerator.num_processes == 1 or self.reference_file is None:
            return dataset
        folder = self.reference_file.with_suffix("")
        if self.accelerator.is_main_process:
            dataset.save_to_disk(str(folder))
        self.accelerator.wait_for_everyone()
        return load_from_disk(str(folder))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Draw the pairs of each update at random (or take them in order), then sort them by length."""
        dataset, args = train_dataset if train_dataset is not None else self.train_dataset, self.args
        per_update = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = None if args.train_sampling_strategy == "sequential" else args.seed
        return UpdateSampler(_count_tokens(dataset), per_update, seed)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what was computed: TRL's entropy, mean logits and token accuracy need a pass that is saved here."""
        if _unwrap(self.model).forward.__name__ == "forward_pairs":
            for key in _UNSCORED:
                self._metrics["train"].pop(key, None)
        super().log(logs, start_time)


class UpdateSampler(Sampler):
    """Every pair once an epoch, the pairs of each update sorted by length, longest first.

    What an update holds is drawn from (seed, epoch) alone, so every process and every resumed run draws alike; sorting
    changes which pairs share a micro-batch, and so their padding, but not the update's gradient.

    Args:
        lengths: tokens of each pair. per_update: pairs an update. seed: of the draw; None takes them in their order.

    Example:
        >>> list(UpdateSampler([5, 9, 2, 7], per_update=2, seed=None))
        [1, 0, 3, 2]
    """

    def __init__(self, lengths: list[int], per_update: int, seed: int | None):
        self.lengths, self.per_update, self.seed, self.epoch = lengths, per_update, seed, 0

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


def _unwrap(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def can_share(config: Any) -> bool:
    """Tell whether a model takes a mask of any shape in every layer and has a plain vocabulary head."""
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    plain_attention = layers == {"full_attention"} and not window and config._attn_implementation in ("sdpa", "eager")
    plain_head = all(getattr(text, key, None) in (None, 1.0) for key in _SCALES)
    return plain_attention and plain_head and not getattr(text, "output_router_logits", None)


def share_prompts(model: Any) -> None:
    """Replace what `model(..., fused_lm_head=True)` computes, where the model allows it; all other calls are as before.

    Args:
        model: a causal language model that TRL has given its fused head.
    """
    before = model.forward
    if not can_share(model.config) or before.__name__ == "forward_pairs":
        return

    @functools.wraps(type(model).forward)  # generation checks its arguments against the signature
    def forward_pairs(self, *args, fused_lm_head=False, **inputs):
        if not fused_lm_head:
            return before(*args, **inputs)
        scored = compute_pair_logps(self, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
        blank = torch.zeros_like(scored)
        return FusedCausalLMOutput(log_probs=scored, entropy=blank, mean_logits=blank, is_top1=blank.bool())

    forward_pairs.__name__ = "forward_pairs"
    model.forward = types.MethodType(forward_pairs, model)


def compute_pair_logps(model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute each response token's log-probability, with every pair's prompt passed once.

    Args:
        model: a causal language model.
        ids: token ids (2n, length), the n chosen rows first, each followed in the second half by its rejected row;
            padded on the right.
        mask: 1 for a token, 0 for padding (2n, length).
        labels: the token ids, -100 where a token is not the response's (2n, length).

    Returns:
        Log-probabilities in nats (2n, length - 1), 0 where the next token is not the response's.
    """
    layout = lay_out_pairs(ids, mask, labels)
    seen = torch.zeros(layout["mask"].shape, dtype=model.dtype, device=ids.device)
    seen.masked_fill_(~layout["mask"], torch.finfo(model.dtype).min)
    hidden = model.base_model(
        input_ids=layout["ids"], position_ids=layout["positions"], attention_mask=seen[:, None], use_cache=False
    ).last_hidden_state
    states = hidden.flatten(0, 1)[layout["sources"]]
    scored = _score(states, model.get_output_embeddings(), layout["tokens"])
    blank = scored.new_zeros(labels[:, 1:].numel())
    return blank.index_put((layout["targets"],), scored).view_as(labels[:, 1:])


def lay_out_pairs(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Lay n pairs out as n rows: prompt, chosen, rejected.

    Args:
        ids, mask, labels: as for `compute_pair_logps`.

    Returns:
        ids and positions (n, width); mask (n, width, width), True where row attends to column; and, over all m
        response tokens: sources (the flat place in (n, width) whose state predicts it), tokens, and targets (the
        flat place in (2n, length - 1) it belongs to).

    Example:
        >>> rows = torch.tensor([[7, 1, 2], [7, 3, 0]])  # prompt 7, chosen 1 2, rejected 3
        >>> own = torch.tensor([[-100, 1, 2], [-100, 3, -100]])
        >>> out = lay_out_pairs(rows, (rows > 0).long(), own)
        >>> out["ids"].tolist(), out["positions"].tolist()
        ([[7, 1, 2, 3]], [[0, 1, 2, 1]])
        >>> out["mask"].int().tolist()[0][3]  # the rejected token sees the prompt and itself
        [1, 0, 0, 1]
        >>> out["sources"].tolist(), out["tokens"].tolist(), out["targets"].tolist()
        ([0, 1, 0], [1, 2, 3], [0, 1, 2])
    """
    n, last = len(ids) // 2, ids.shape[1] - 1
    starts = (labels != -100).int().argmax(1).tolist()
    ends = mask.sum(1).tolist()
    starts = [min(starts[k % n], starts[k % n + n]) for k in range(2 * n)]
    width = max(ends[k] + ends[k + n] - starts[k] for k in range(n))
    rows, positions = ids.new_zeros(n, width), ids.new_zeros(n, width)
    segment = ids.new_full((n, width), 3)  # 0 prompt, 1 chosen, 2 rejected, 3 padding
    sources, tokens, targets = [], [], []
    for k in range(n):
        for row, first, kind in ((k, starts[k], 1), (k + n, ends[k], 2)):
            start, end, place = starts[k], ends[row], torch.arange(starts[k], ends[row], device=ids.device)
            rows[k, first : first + end - start] = ids[row, start:end]
            positions[k, first : first + end - start] = place
            segment[k, first : first + end - start] = kind
            before = k * width + first + torch.arange(-1, end - start - 1, device=ids.device)
            before[0] = k * width + start - 1  # the prompt's last token predicts the first of both responses
            sources.append(before)
            tokens.append(ids[row, start:end])
            targets.append(row * last + place - 1)
        rows[k, : starts[k]], segment[k, : starts[k]] = ids[k, : starts[k]], 0
        positions[k, : starts[k]] = torch.arange(starts[k], device=ids.device)
    same = segment[:, :, None] == segment[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
    return {"ids": rows, "positions": positions, "mask": causal & (same | (segment[:, None, :] == 0)),
            "sources": torch.cat(sources), "tokens": torch.cat(tokens), "targets": torch.cat(targets)}  # fmt: skip


def _score(states: torch.Tensor, head: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return each token's log-probability in float32, (m,), a chunk at a time."""
    if states.device.type == "cpu" or len(states) <= HEAD_CHUNK or not torch.is_grad_enabled():
        parts = [
            _score_chunk(s, head, t) for s, t in zip(states.split(HEAD_CHUNK), tokens.split(HEAD_CHUNK), strict=True)
        ]
    else:  # the logits of a chunk are computed again in the backward pass rather than kept
        parts = [checkpoint(_score_chunk, s, head, t, use_reentrant=False)
                 for s, t in zip(states.split(HEAD_CHUNK), tokens.split(HEAD_CHUNK), strict=True)]  # fmt: skip
    return torch.cat(parts)


def _score_chunk(states: torch.Tensor, head: Any, tokens: torch.Tensor) -> torch.Tensor:
    return -cross_entropy(head(states).float(), tokens, reduction="none")
