"""The RLAIF baseline's annotator: a judge model that rates every response on its own.

The rating is the expectation over the tokens "1" to "5" of the judge's next-token distribution, without sampling. The
responses to one instruction lie in one row that shares it, hidden from each other. Calls, tokens and seconds are
counted, because not needing them is what kinship is for.
"""

import time
from typing import Any

import pyarrow as pa
import torch
from tqdm.auto import tqdm

from karma.models.load import Specs, choose_device, choose_dtype, load_model, load_tokenizer
from karma.models.logprobs import (
    SharedRow,
    TokenizedResponse,
    build_options_row,
    can_share_prompts,
    compute_choice_logits,
)
from karma.study.settings import Compute

JUDGE_PROMPT = """Rate how well the response answers the instruction, from 1 (useless) to 5 (excellent).

Instruction: {instruction}

Response: {response}

Reply with one digit."""
RATINGS = "12345"


def annotate(
    rows: list[dict[str, str]], models: Specs, judge: str, compute: Compute, batch_size: int
) -> tuple[pa.Table, dict[str, Any]]:
    """Rate each response with a judge model.

    Args:
        rows: dictionaries with row_id, response_id, model, instruction, response.
        models: name -> specification. judge: which of them rates.
        compute: the experiment's `compute`.
        batch_size: prompts a forward pass.

    Returns:
        A table (row_id, response_id, model, score in 1..5), and what it cost (calls, prompt_tokens, seconds).
    """
    started, device = time.perf_counter(), choose_device(compute.device)
    torch.set_num_threads(compute.threads)
    tokenizer = load_tokenizer(models, judge)
    model = load_model(models, judge, choose_dtype(compute.dtype, device), device)
    digits = [tokenizer.encode(rating, add_special_tokens=False)[-1] for rating in RATINGS]
    prompts = [_write_prompt(tokenizer, row) for row in rows]
    with tqdm(total=len(rows), desc=f"{judge} rates", unit="response") as bar:
        rate = _rate_shared if can_share_prompts(model) else _rate_each
        scores, n_tokens = rate(model, tokenizer, prompts, [row["row_id"] for row in rows], digits, batch_size, bar)
    table = pa.table({k: [row[k] for row in rows] for k in ("row_id", "response_id", "model")} | {"score": scores})
    cost = {"annotator": judge, "calls": len(rows), "prompt_tokens": n_tokens, "device": device,
            "seconds": round(time.perf_counter() - started, 3)}  # fmt: skip
    return table, cost


def _write_prompt(tokenizer: Any, row: dict[str, str]) -> str:
    content = JUDGE_PROMPT.format(instruction=row["instruction"], response=row["response"])
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def _rate_shared(
    model: Any, tokenizer: Any, prompts: list[str], row_ids: list[str], digits: list[int], batch_size: int, bar: Any
) -> tuple[list[float], int]:
    """Rate the responses of one row of the pool side by side: what their prompts begin with is read once."""
    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    places: dict[str, list[int]] = {}
    for i, row_id in enumerate(row_ids):
        places.setdefault(row_id, []).append(i)
    rows = [build_options_row([], [[*ids[i], digits[0]] for i in some]) for some in places.values()]
    rows = [_ask_last(row) for row in rows]
    budget = batch_size * max(map(len, ids))  # tokens, as a batch of single prompts would have
    logits = compute_choice_logits(model, rows, tokenizer.pad_token_id, budget, digits, bar.update)
    scores = [0.0] * len(prompts)
    for some, found in zip(places.values(), logits, strict=True):
        for i, score in zip(some, _expect(found), strict=True):
            scores[i] = score
    return scores, sum(map(len, ids))


def _ask_last(row: SharedRow) -> SharedRow:
    """Let each side be about its last token alone, in whose place the rating is read."""
    sides = tuple(TokenizedResponse(side.ids, len(side.ids) - 1) for side in row.sides)
    return SharedRow(sides, min(row.shared, *(len(side.ids) - 1 for side in sides)))


@torch.no_grad()
def _rate_each(
    model: Any, tokenizer: Any, prompts: list[str], row_ids: list[str], digits: list[int], batch_size: int, bar: Any
) -> tuple[list[float], int]:
    """Rate each response from a prompt of its own, for models that cannot share one."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
    scores, n_tokens = [0.0] * len(prompts), 0
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        inputs = tokenizer([prompts[i] for i in batch], return_tensors="pt", padding=True, add_special_tokens=False)
        n_tokens += int(inputs["attention_mask"].sum())
        logits = model(**inputs.to(model.device), logits_to_keep=1).logits[:, -1, digits].float()  # padded on the left
        for index, score in zip(batch, _expect(logits), strict=True):
            scores[index] = score
        bar.update(len(batch))
    return scores, n_tokens


def _expect(logits: torch.Tensor) -> list[float]:
    """Return each row's expected rating, given that the next token is one of the digits."""
    return (logits.softmax(1) @ torch.arange(1.0, 6.0, device=logits.device)).tolist()
