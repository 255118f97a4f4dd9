"""Read the prompts of a batch before they are answered: what all begin with once, and no padding.

`generate` reads a batch as one rectangle, each prompt padded to the longest, the system message again in every row.
Here the common beginning is read once, the rest in groups of like length, and what attention needs of them, the cache
of keys and values, is laid out as `generate` would have left it. Texts are the same, rounding aside; on two cores
reading takes most of the time of a short answer.
Limit: models whose layers attend to all that went before (`can_share_prompts`); others are read by `generate` itself.
"""

from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache

from karma.models.logprobs import can_share_prompts, choose_pass_tokens, get_causal, plan_batches


@torch.no_grad()
def read_prompts(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, DynamicCache]:
    """Return what to give to `generate` besides a batch of prompts, so that it need not read them.

    Args:
        model: a causal language model. ids: prompts (n, width), padded on the left. mask: 1 where a token is, else 0.

    Returns:
        `past_key_values` of all tokens but each prompt's last, which `generate` reads itself; {} for a model that does
        not allow it, or a batch of one, of which nothing would be saved.
    """
    rows = [row[own.bool()].tolist()[:-1] for row, own in zip(ids, mask, strict=True)]
    if len(rows) < 2 or not all(rows) or not can_share_prompts(model):
        return {}
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
    begun = _read(model, [rows[0][:shared]], []) if shared else []
    whole: list[torch.Tensor] = []
    for batch in plan_batches([len(row) - shared for row in rows], choose_pass_tokens(ids.device.type)):
        read = _read(model, [rows[i][shared:] for i in batch], begun)
        whole = whole or [part.new_zeros(len(rows), part.shape[1], ids.shape[1] - 1, part.shape[3]) for part in read]
        for k, i in enumerate(batch):
            n = len(rows[i])
            for layer, part in zip(whole, read, strict=True):
                layer[i, :, layer.shape[2] - n :] = part[k, :, :n]
    return {"past_key_values": _build_cache(whole)}


def _read(model: Any, rows: list[list[int]], begun: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return keys and values in turn, layer by layer (rows, heads, tokens, width), of `begun` and the rows after it."""
    longest = max(1, *map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=model.device)
    past = _build_cache([part.expand(len(rows), -1, -1, -1) for part in begun])
    layers = get_causal(model).base_model(ids, past_key_values=past, use_cache=True).past_key_values.layers
    return [part for layer in layers for part in (layer.keys, layer.values)]


def _build_cache(parts: list[torch.Tensor]) -> DynamicCache:
    cache = DynamicCache()
    for number, pair in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        cache.update(*pair, number)
    return cache
