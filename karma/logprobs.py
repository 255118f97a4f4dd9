"""Log-probabilities of responses under a model: what DPO's margins and alignment potential are made of.

A response's log-probability is summed over its tokens, in nats, given its prompt in the model's chat format, exactly
as TRL tokenises a conversational pair. Batches are sorted by length, and the vocabulary head is applied to response
positions only. Limit: one device, no sharding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

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
