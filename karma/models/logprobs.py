"""Log-probabilities of responses under a model: what DPO's margins and alignment potential are made of.

A response's log-probability is summed over its tokens, in nats, given its prompt in the model's chat format, exactly
as TRL tokenises a conversational pair. Batches are sorted by length, and the vocabulary head is applied to response
positions only. The two responses of a pair share their prompt: `compute_pair_logps` runs a pair as one row (prompt,
chosen, rejected), with a mask that hides the responses from each other and positions as if each followed the prompt.
Limit: one device, no sharding; a model whose layers see more than a causal mask says (sliding windows, states) takes
the plain way, each response in a row of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

HEAD_CHUNK = 2048  # response tokens whose logits are held at a time, off the CPU
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class TokenizedResponse:
    """A prompt and its response as one row of token ids; the response starts at `start`."""

    ids: list[int]
    start: int


def tokenize_response(tokenizer: Any, prompt: Messages, response: Messages, max_length: int) -> TokenizedResponse:
    """Tokenise as TRL does: the prompt with its generation prompt, then the rest of the whole conversation.

    Args:
        tokenizer: with a chat template.
        prompt: messages up to the response. response: the assistant's message.
        max_length: tokens kept, from the start.
    """
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*prompt, *response], tokenize=True, return_dict=False)
    return TokenizedResponse(whole[:max_length], min(len(start), max_length))


@torch.no_grad()
def compute_logps(
    model: Any, tokenizer: Any, prompts: Sequence[Messages], responses: Sequence[Messages], *, max_length: int,
    batch_size: int = 8, progress: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Compute the log-probability of each response given its prompt.

    Args:
        model: a causal language model; its dtype is kept, the sum is in float32.
        tokenizer: its tokenizer.
        prompts: n lists of messages. responses: n lists of one assistant message.
        max_length: tokens of prompt and response kept, from the start.
        batch_size: rows a forward pass.
        progress: what to call the progress bar; None shows none.

    Returns:
        Summed log-probabilities (n,), in nats, <= 0; and the response lengths (n,), in tokens.

    Paper: the quantities pi(y|x) of DPO (arXiv 2305.18290, Eq. 7).
    """
    rows = [tokenize_response(tokenizer, p, r, max_length) for p, r in zip(prompts, responses, strict=True)]
    logps, lengths = torch.zeros(len(rows)), torch.tensor([len(r.ids) - r.start for r in rows])
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    with tqdm(total=len(rows), desc=progress, disable=progress is None, unit="response") as bar:
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            logps[batch] = _compute_batch([rows[i] for i in batch], model, tokenizer.pad_token_id)
            bar.update(len(batch))
    return logps, lengths


def _compute_batch(rows: list[TokenizedResponse], model: Any, pad: int) -> torch.Tensor:
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows], device=model.device)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model  # under PEFT's wrapper
    hidden = causal.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    sums = []
    for k, row in enumerate(rows):  # position t predicts token t + 1
        logits = causal.get_output_embeddings()(hidden[k, row.start - 1 : len(row.ids) - 1]).float()
        picked = logits.gather(1, ids[k, row.start : len(row.ids), None])[:, 0]
        sums.append((picked - logits.logsumexp(1)).sum())
    return torch.stack(sums).cpu()


@dataclass(frozen=True)
class PairRow:
    """A pair as one row: what chosen and rejected have in common up to the response, then the rest of each.

    Attributes:
        sides: the two whole conversations. shared: how many first tokens they have in common (at most `start`).
    """

    sides: tuple[TokenizedResponse, TokenizedResponse]
    shared: int

    @property
    def width(self) -> int:
        """Tokens of the row."""
        return sum(len(side.ids) for side in self.sides) - self.shared


def tokenize_pair(tokenizer: Any, prompt: Messages, chosen: Messages, rejected: Messages, max_length: int) -> PairRow:
    """Tokenise both responses as `tokenize_response` does, and find what they share before either begins."""
    first, second = (tokenize_response(tokenizer, prompt, r, max_length) for r in (chosen, rejected))
    limit = min(first.start, second.start)
    alike = (i for i, (a, b) in enumerate(zip(first.ids[:limit], second.ids[:limit], strict=False)) if a != b)
    return PairRow((first, second), next(alike, min(limit, len(first.ids), len(second.ids))))


def can_share_prompts(model: Any) -> bool:
    """Tell whether every layer of a model attends by the mask it is given, so that a pair may be one row."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    stateful = any(
        getattr(config, name, None) for name in ("mamba_d_state", "state_size", "ssm_cfg", "is_encoder_decoder")
    )
    attends = getattr(config, "_attn_implementation", "") in ("sdpa", "eager")
    return attends and kinds == {"full_attention"} and not window and not stateful


def compute_pair_logps(
    model: Any, tokenizer: Any, prompts: Sequence[Messages], chosen: Sequence[Messages], rejected: Sequence[Messages],
    *, max_length: int, batch_tokens: int = 4096, progress: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Compute the log-probabilities of both responses of each pair, the prompt's tokens once where the model allows.

    Args:
        model, tokenizer, prompts, max_length, progress: as for `compute_logps`.
        chosen, rejected: n lists of one assistant message each.
        batch_tokens: tokens a forward pass, padding included; a longer pair makes a pass of its own.

    Returns:
        Summed log-probabilities (n, 2) of chosen and rejected, in nats; and response lengths (n, 2), in tokens.
    """
    rows = [tokenize_pair(tokenizer, *row, max_length) for row in zip(prompts, chosen, rejected, strict=True)]
    with tqdm(total=len(rows), desc=progress, disable=progress is None, unit="pair") as bar:
        logps = compute_row_logps(model, rows, tokenizer.pad_token_id, batch_tokens, bar.update)
    return logps, count_tokens(rows)


def count_tokens(rows: Sequence[PairRow]) -> torch.Tensor:
    """Return the lengths of chosen and rejected (n, 2), in tokens."""
    return torch.tensor([[len(side.ids) - side.start for side in row.sides] for row in rows]).reshape(-1, 2)


@torch.no_grad()
def compute_row_logps(
    model: Any, rows: Sequence[PairRow], pad: int, batch_tokens: int, advance: Callable[[int], Any] = lambda n: None
) -> torch.Tensor:
    """Return summed log-probabilities (n, 2) of tokenised pairs, in nats; `advance` hears of pairs done."""
    logps, shares = torch.zeros(len(rows), 2), can_share_prompts(model)
    for batch in plan_batches([row.width for row in rows], batch_tokens):
        some = [rows[i] for i in batch]
        if shares:
            logps[batch] = compute_pair_batch(some, model, pad).cpu()
        else:
            sides = [_compute_batch([row.sides[k] for row in some], model, pad) for k in (0, 1)]
            logps[batch] = torch.stack(sides, 1)
        advance(len(batch))
    return logps


def plan_batches(widths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group rows of like width, widest first, so that width times rows stays within a budget.

    Example:
        >>> plan_batches([3, 9, 4, 2], 8)
        [[1], [2, 0], [3]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(widths)), key=lambda i: -widths[i]):
        if batches and widths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def compute_pair_batch(rows: Sequence[PairRow], model: Any, pad: int) -> torch.Tensor:
    """Return summed log-probabilities (rows, 2) of chosen and rejected, from one forward pass; gradients flow.

    Args:
        rows: from `tokenize_pair`. model: one that `can_share_prompts`. pad: the padding token's id.
    """
    return torch.stack([tokens.sum() for tokens in compute_token_logps(rows, model, pad)]).view(-1, 2)


def compute_token_logps(rows: Sequence[PairRow], model: Any, pad: int) -> list[torch.Tensor]:
    """Return each response's log-probabilities, token by token, from one forward pass; gradients flow.

    Args:
        rows, model, pad: as for `compute_pair_batch`.

    Returns:
        2 * rows tensors in float32, in nats: of the first pair's chosen and rejected, the second's, ...
    """
    ids, positions, mask = build_pair_batch(rows, pad)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model  # under PEFT's wrapper
    device, dtype = model.device, causal.get_input_embeddings().weight.dtype
    bias = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    hidden = causal.base_model(
        input_ids=ids.to(device), attention_mask=bias.to(device), position_ids=positions.to(device), use_cache=False
    ).last_hidden_state
    found = [(k * ids.shape[1], *side) for k, row in enumerate(rows) for side in _find_targets(row)]
    places = torch.tensor([first + column for first, columns, _ in found for column in columns], device=device)
    targets = torch.tensor([token for *_, tokens in found for token in tokens], device=device)
    scored = score_tokens(hidden.flatten(0, 1)[places.long()], causal.get_output_embeddings(), targets.long())
    return list(scored.split([len(tokens) for *_, tokens in found]))


def score_tokens(states: torch.Tensor, head: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return each token's log-probability (m,) in float32 from the state (m, hidden) that predicts it.

    Off the CPU, where memory is dear, a chunk's logits are computed again in the backward pass rather than kept.
    """

    def score(some: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.cross_entropy(head(some).float(), own, reduction="none")

    if states.device.type == "cpu":
        return score(states, tokens)
    chunks = zip(states.split(HEAD_CHUNK), tokens.split(HEAD_CHUNK), strict=True)
    return torch.cat([checkpoint(score, some, own, use_reentrant=False) for some, own in chunks])


def build_pair_batch(rows: Sequence[PairRow], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay pairs out as rows of (shared, rest of chosen, rest of rejected), padded on the right.

    Returns:
        ids and positions (rows, width), and the mask (rows, 1, width, width): True where a query may look.
    """
    width = max(row.width for row in rows)
    ids, positions = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    part = torch.full((len(rows), width), 3)  # 0 shared, 1 chosen, 2 rejected, 3 padding
    for k, row in enumerate(rows):
        first, second = row.sides[0].ids, row.sides[1].ids[row.shared :]
        end = len(first)
        ids[k, : row.width] = torch.tensor(first + second)
        positions[k, : row.width] = torch.tensor([*range(end), *range(row.shared, row.shared + len(second))])
        part[k, : row.shared], part[k, row.shared : end], part[k, end : row.width] = 0, 1, 2
    same = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
    return ids, positions, (same & torch.ones(width, width, dtype=torch.bool).tril())[:, None]


def _find_targets(row: PairRow) -> list[tuple[list[int], list[int]]]:
    """Return, for each side, the columns whose outputs predict its response's tokens, and those tokens."""
    found = []
    for k, side in enumerate(row.sides):
        offset = len(row.sides[0].ids) - row.shared if k else 0  # where the rejected response's own tokens lie
        places = range(side.start - 1, len(side.ids) - 1)  # position t predicts token t + 1
        found.append(([t if t < row.shared else t + offset for t in places], side.ids[side.start :]))
    return found
