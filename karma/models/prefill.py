"""Read prompts, what all of a batch begin with once and without padding: for answers to come, or for the next token.

`generate` reads a batch as one rectangle, each prompt padded to the longest, the system message again in every row.
Here the common beginning is read once, the rest in groups of like length, and what attention needs of them, the cache
of keys and values, is laid out as `generate` would have left it. Texts are the same, rounding aside; on two cores
reading takes most of the time of a short answer. Where only the next token's logits are wanted, as of a judge, prompts
that share more than the beginning of all lie in one row besides.
Limit: models whose layers attend to all that went before (`can_share_prompts`); others are read by `generate` itself.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache

from karma.models.chat import TokenizedResponse
from karma.models.logprobs import (
    SharedRow,
    build_options_row,
    can_share_prompts,
    choose_pass_tokens,
    get_causal,
    has_plain_head,
    plan_batches,
    run_batch,
)


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
    shared = _count_shared(rows)
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


@torch.no_grad()
def compute_choice_logits(
    model: Any, groups: Sequence[Sequence[list[int]]], pad: int, batch_tokens: int, choices: Sequence[int],
    advance: Callable[[int], Any] = lambda n: None,
) -> list[torch.Tensor]:  # fmt: skip
    """Return the logits of some tokens as the next one after each prompt; a group's common beginning is run once.

    Args:
        model: any causal language model; one that cannot share prompts gets each prompt in a row of its own.
        groups: of prompts as token ids. pad: the padding token's id.
        batch_tokens: tokens a forward pass, padding included; a longer row makes a pass of its own.
        choices: the tokens' ids. advance: hears of prompts done.

    Returns:
        For each group float32 logits (prompts, choices).
    """
    shares = can_share_prompts(model) and has_plain_head(model)
    prompts = [ids for group in groups for ids in group]
    rows = [_lay_out(group) for group in (groups if shares else ([ids] for ids in prompts))]
    shared = _count_shared(ids[:-1] for ids in prompts) if shares and len(rows) > 1 else 0
    begun = _read(model, [prompts[0][:shared]], []) if shared else []
    found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for batch in plan_batches([row.width - shared for row in rows], batch_tokens):
        some = [rows[i] for i in batch]
        if shares:
            states, head, _, _ = run_batch(some, model, pad, _build_cache(begun, len(some)) if begun else None)
            logits = head(states)
        else:
            logits = _run_plain([row.sides[0].ids[:-1] for row in some], model, pad)
        counts = [len(row.sides) for row in some]
        for i, own in zip(batch, logits[:, list(choices)].float().cpu().split(counts), strict=True):
            found[i] = own
        advance(sum(counts))
    return list(torch.cat(found).split([len(group) for group in groups])) if found else []


def _lay_out(prompts: Sequence[list[int]]) -> SharedRow:
    """Lay prompts out side by side, each with a token to come, in whose place its logits are."""
    row = build_options_row([], [[*ids, 0] for ids in prompts])
    return SharedRow(tuple(TokenizedResponse(side.ids, len(side.ids) - 1) for side in row.sides), row.shared)


def _run_plain(prompts: Sequence[list[int]], model: Any, pad: int) -> torch.Tensor:
    """Return the logits after each prompt, padded on the left, from the model's own head."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(own)) + own for own in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in prompts], device=model.device)
    return model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]


def _count_shared(rows: Iterable[list[int]]) -> int:
    """Return how many first tokens all rows have in common."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def _read(model: Any, rows: list[list[int]], begun: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return keys and values in turn, layer by layer (rows, heads, tokens, width), of `begun` and the rows after it."""
    longest = max(1, *map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=model.device)
    past = _build_cache(begun, len(rows))
    layers = get_causal(model).base_model(ids, past_key_values=past, use_cache=True).past_key_values.layers
    return [part for layer in layers for part in (layer.keys, layer.values)]


def _build_cache(parts: list[torch.Tensor], n_rows: int = -1) -> DynamicCache:
    """Return keys and values as a cache, those of one row for `n_rows`."""
    cache = DynamicCache()
    rows = [part.expand(n_rows, -1, -1, -1) for part in parts]
    for number, pair in enumerate(zip(rows[::2], rows[1::2], strict=True)):
        cache.update(*pair, number)
    return cache
