"""Log-probabilities of responses under a model: what DPO's margins and alignment potential are made of.

A response's log-probability is summed over its tokens, in nats, given its prompt in the model's chat format, exactly
as TRL tokenises a conversational pair. Batches are sorted by length, and the vocabulary head is applied to response
positions only. Responses to one prompt share it: a pair is run as one row (prompt, chosen, rejected), an item of a
benchmark as one row (question, each option), with a mask that hides the responses from each other and positions as if
each followed the prompt.
Limit: one device, no sharding; a model whose layers see more than a causal mask says (sliding windows, states) takes
the plain way, each response in a row of its own.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, takewhile
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from karma.models.chat import Messages, TokenizedResponse, tokenize_response
from karma.models.frozen import run_rows

HEAD_CHUNK = 2048  # response tokens whose logits are held at a time, off the CPU
_SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


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
    causal = get_causal(model)
    if has_plain_head(model):  # else only the model knows how it scales
        states, head = (
            causal.base_model(input_ids=ids, attention_mask=mask).last_hidden_state,
            causal.get_output_embeddings(),
        )
    else:
        states, head = causal(input_ids=ids, attention_mask=mask).logits, torch.nn.Identity()
    sums = []
    for k, row in enumerate(rows):  # position t predicts token t + 1
        logits = head(states[k, row.start - 1 : len(row.ids) - 1]).float()
        picked = logits.gather(1, ids[k, row.start : len(row.ids), None])[:, 0]
        sums.append((picked - logits.logsumexp(1)).sum())
    return torch.stack(sums).cpu()


@dataclass(frozen=True)
class SharedRow:
    """Responses to one prompt as one row: the first tokens that all have in common, then the rest of each.

    Attributes:
        sides: each response with its prompt; of a pair, chosen and rejected.
        shared: how many first tokens all sides have in common (or fewer).
    """

    sides: tuple[TokenizedResponse, ...]
    shared: int

    @property
    def width(self) -> int:
        """Tokens of the row."""
        return self.shared + sum(len(side.ids) - self.shared for side in self.sides)

    @property
    def key(self) -> tuple[Any, ...]:
        """What its states depend on: how much is shared, and all tokens."""
        return self.shared, *(tuple(side.ids) for side in self.sides)


def build_options_row(context: list[int], options: Sequence[list[int]]) -> SharedRow:
    """Lay the options of one context out as a row; what all of them begin with is shared too.

    Example:
        >>> row = build_options_row([7, 8], [[1, 2], [1, 3]])
        >>> row.shared, row.width
        (3, 5)
    """
    sides = tuple(TokenizedResponse([*context, *option], len(context)) for option in options)
    columns = zip(*(side.ids for side in sides), strict=False)
    return SharedRow(sides, sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns)))


def tokenize_pair(tokenizer: Any, prompt: Messages, chosen: Messages, rejected: Messages, max_length: int) -> SharedRow:
    """Tokenise both responses as `tokenize_response` does, and find what they share before either begins."""
    return tokenize_row(tokenizer, prompt, [chosen, rejected], max_length)


def tokenize_row(tokenizer: Any, prompt: Messages, responses: Sequence[Messages], max_length: int) -> SharedRow:
    """Do so for any number of responses to one prompt."""
    sides = [tokenize_response(tokenizer, prompt, response, max_length) for response in responses]
    start = min(side.start for side in sides)  # all start where the first does, as TRL's pairs do
    columns = zip(*(side.ids[:start] for side in sides), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return SharedRow(tuple(TokenizedResponse(side.ids, start) for side in sides), shared)


def can_share_prompts(model: Any) -> bool:
    """Tell whether every layer of a model attends by the mask and the positions it is given, so that rows may share."""
    config, base = model.config, get_causal(model).base_model
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    stateful = any(
        getattr(config, name, None) for name in ("mamba_d_state", "state_size", "ssm_cfg", "is_encoder_decoder")
    )
    attends = getattr(config, "_attn_implementation", "") in ("sdpa", "eager")
    placed = "position_ids" in inspect.signature(getattr(base, "forward", base)).parameters
    placed = placed and not getattr(config, "alibi", None)
    return bool(attends and kinds == {"full_attention"} and not window and not stateful and placed)


def has_plain_head(model: Any) -> bool:
    """Tell whether logits are what the vocabulary head gives, without scaling or capping."""
    text = model.config.get_text_config()
    return all(getattr(text, key, None) in (None, 1.0) for key in _SCALES)


def get_causal(model: Any) -> Any:
    """Return the model under PEFT's wrapper, if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def compute_pair_logps(
    model: Any, tokenizer: Any, prompts: Sequence[Messages], chosen: Sequence[Messages], rejected: Sequence[Messages],
    *, max_length: int, batch_tokens: int | None = None, progress: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Compute the log-probabilities of both responses of each pair, the prompt's tokens once where the model allows.

    Args:
        model, tokenizer, prompts, max_length, progress: as for `compute_logps`.
        chosen, rejected: n lists of one assistant message each.
        batch_tokens: tokens a forward pass, padding included; a longer pair makes a pass of its own. None: as
            `choose_pass_tokens` says.

    Returns:
        Summed log-probabilities (n, 2) of chosen and rejected, in nats; and response lengths (n, 2), in tokens.
    """
    rows = [tokenize_pair(tokenizer, *row, max_length) for row in zip(prompts, chosen, rejected, strict=True)]
    with tqdm(total=len(rows), desc=progress, disable=progress is None, unit="pair") as bar:
        budget = batch_tokens or choose_pass_tokens(model.device.type)
        logps = compute_row_logps(model, rows, tokenizer.pad_token_id, budget, bar.update)
    return logps, count_tokens(rows)


def count_tokens(rows: Sequence[SharedRow]) -> torch.Tensor:
    """Return the lengths of chosen and rejected (n, 2) of pairs, in tokens."""
    return torch.tensor([[len(side.ids) - side.start for side in row.sides] for row in rows]).reshape(-1, 2)


def compute_row_logps(
    model: Any, rows: Sequence[SharedRow], pad: int, batch_tokens: int, advance: Callable[[int], Any] = lambda n: None
) -> torch.Tensor:
    """Return summed log-probabilities (n, 2) of tokenised pairs, in nats; `advance` hears of pairs done."""
    sides = compute_side_logps(model, rows, pad, batch_tokens, advance)
    return torch.stack(sides) if sides else torch.zeros(0, 2)


@torch.no_grad()
def compute_side_logps(
    model: Any, rows: Sequence[SharedRow], pad: int, batch_tokens: int, advance: Callable[[int], Any] = lambda n: None
) -> list[torch.Tensor]:
    """Return the summed log-probability (sides,) of each row's responses, in nats; `advance` hears of rows done."""
    logps: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    if not (can_share_prompts(model) and has_plain_head(model)):
        apart = [side for row in rows for side in row.sides]
        flat = torch.zeros(len(apart))
        for batch in plan_batches([len(side.ids) for side in apart], batch_tokens):
            flat[batch] = _compute_batch([apart[i] for i in batch], model, pad)
        advance(len(rows))
        return list(flat.split([len(row.sides) for row in rows]))
    for batch in plan_batches([row.width for row in rows], batch_tokens):
        some = [rows[i] for i in batch]
        found = torch.stack([tokens.sum() for tokens in compute_token_logps(some, model, pad)]).cpu()
        for i, own in zip(batch, found.split([len(row.sides) for row in some]), strict=True):
            logps[i] = own
        advance(len(batch))
    return logps


def choose_pass_tokens(device: str) -> int:
    """Return the tokens of a forward pass on "cpu" or "cuda" that is fast: larger ones leave a CPU's caches."""
    return 1024 if device == "cpu" else 16384


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


def compute_token_logps(rows: Sequence[SharedRow], model: Any, pad: int) -> list[torch.Tensor]:
    """Return each response's log-probabilities, token by token, from one forward pass; gradients flow.

    Args:
        rows: with any number of sides. model: one that `can_share_prompts`. pad: the padding token's id.

    Returns:
        One tensor a side in float32, in nats: of the first row's sides (chosen, rejected), the second's, ...
    """
    states, head, targets, counts = run_batch(rows, model, pad)
    return list(score_tokens(states, head, targets).split(counts))


@torch.no_grad()
def compute_option_logps(
    model: Any, rows: Sequence[SharedRow], pad: int, batch_tokens: int
) -> list[list[tuple[float, bool]]]:
    """Compare the sides of each row, as lm-evaluation-harness's `loglikelihood` does (which sums in the model's dtype).

    Args:
        model: one that `can_share_prompts` and `has_plain_head`. rows, pad: as for `compute_token_logps`.
        batch_tokens: tokens a forward pass, padding included; a longer row makes a pass of its own.

    Returns:
        For each row, each side's summed log-probability in nats, and whether all its tokens are the likeliest ones.
    """
    found: list[list[tuple[float, bool]]] = [[] for _ in rows]
    for batch in plan_batches([row.width for row in rows], batch_tokens):
        states, head, targets, counts = run_batch([rows[i] for i in batch], model, pad)
        logps, likeliest = torch.zeros(len(targets), device=states.device), torch.zeros_like(targets, dtype=torch.bool)
        for start in range(0, len(targets), HEAD_CHUNK):
            chunk = slice(start, start + HEAD_CHUNK)
            logits, own = head(states[chunk]).float(), targets[chunk]
            logps[chunk] = logits.gather(1, own[:, None])[:, 0] - logits.logsumexp(1)
            likeliest[chunk] = logits.argmax(1) == own
        sides = zip(logps.cpu().split(counts), likeliest.cpu().split(counts), strict=True)
        for i in batch:
            found[i] = [(float(logp.sum()), bool(best.all())) for logp, best in islice(sides, len(rows[i].sides))]
    return found


def run_batch(
    rows: Sequence[SharedRow], model: Any, pad: int, past: Any = None
) -> tuple[torch.Tensor, Any, torch.Tensor, list[int]]:
    """Return the states that predict the sides' tokens, the vocabulary head, those tokens, and how many a side has.

    Args:
        rows, model, pad: as for `compute_token_logps`.
        past: the cache of what all rows begin with, if it was read before; it predicts none of the tokens.
    """
    begun = past.get_seq_length() if past is not None else 0
    hidden = run_states(rows, model, pad, past)
    causal, device, width = get_causal(model), model.device, hidden.shape[1]
    found = [(k * width - begun, *side) for k, row in enumerate(rows) for side in _find_targets(row)]
    places = torch.tensor([first + column for first, columns, _ in found for column in columns], device=device)
    targets = torch.tensor([token for *_, tokens in found for token in tokens], device=device)
    states, counts = hidden.flatten(0, 1)[places.long()], [len(tokens) for *_, tokens in found]
    return states, causal.get_output_embeddings(), targets.long(), counts


def run_states(rows: Sequence[SharedRow], model: Any, pad: int, past: Any = None) -> torch.Tensor:
    """Return the last layer's states (rows, width, hidden) of rows laid out by `build_row_batch`.

    Args:
        rows, model, pad, past: as for `run_batch`; what `past` holds has no states here.
    """
    begun = past.get_seq_length() if past is not None else 0
    ids, positions, mask = build_row_batch(rows, pad)
    ids, positions, mask = ids[:, begun:], positions[:, begun:], mask[:, :, begun:]
    causal = get_causal(model)
    device, dtype = model.device, causal.get_input_embeddings().weight.dtype
    bias = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    run = partial(causal.base_model, input_ids=ids.to(device), attention_mask=bias.to(device),
                  position_ids=positions.to(device), past_key_values=past, use_cache=past is not None)  # fmt: skip
    keys, widths = [(begun, *row.key) for row in rows], [row.width - begun for row in rows]
    return run_rows(causal, keys, widths, run).last_hidden_state


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


def build_row_batch(rows: Sequence[SharedRow], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay rows out as (shared, rest of the first side, rest of the second, ...), padded on the right.

    Returns:
        ids and positions (rows, width), and the mask (rows, 1, width, width): True where a query may look.
    """
    width = max(row.width for row in rows)
    ids, positions = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    part = torch.full((len(rows), width), -1)  # 0 shared, 1 the first side, 2 the second, ..., -1 padding
    for k, row in enumerate(rows):
        own = [side.ids[row.shared :] for side in row.sides]
        ids[k, : row.width] = torch.tensor([*row.sides[0].ids[: row.shared], *chain(*own)])
        places = [range(row.shared), *(range(row.shared, row.shared + len(rest)) for rest in own)]
        positions[k, : row.width] = torch.tensor([*chain(*places)])
        part[k, : row.width] = torch.tensor([number for number, some in enumerate(places) for _ in some])
    same = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
    return ids, positions, (same & torch.ones(width, width, dtype=torch.bool).tril())[:, None]


def _find_targets(row: SharedRow) -> list[tuple[list[int], list[int]]]:
    """Return, for each side, the columns whose outputs predict its response's tokens, and those tokens."""
    found, offset = [], 0  # how far right of its position a side's own token lies
    for side in row.sides:
        places = range(side.start - 1, len(side.ids) - 1)  # position t predicts token t + 1
        found.append(([t if t < row.shared else t + offset for t in places], side.ids[side.start :]))
        offset += len(side.ids) - row.shared
    return found
