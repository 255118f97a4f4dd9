"""The RLAIF baseline's annotator: a judge model that rates every response on its own.

The rating is the expectation over the tokens "1" to "5" of the judge's next-token distribution, without sampling. The
responses to one instruction lie in one row that shares it, hidden from each other, and what all begin with is read
once (`karma.models.prefill`). Calls, tokens and seconds are counted, because not needing them is what kinship is for.
"""

import time
from typing import Any

import pyarrow as pa
import torch
from tqdm.auto import tqdm

from karma.models.load import Specs, choose_device, choose_dtype, load_model, load_tokenizer
from karma.models.logprobs import choose_pass_tokens
from karma.models.prefill import compute_choice_logits
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
        batch_size: prompts a forward pass, at most.

    Returns:
        A table (row_id, response_id, model, score in 1..5), and what it cost (calls, prompt_tokens, seconds).
    """
    started, device = time.perf_counter(), choose_device(compute.device)
    torch.set_num_threads(compute.threads)
    tokenizer = load_tokenizer(models, judge)
    model = load_model(models, judge, choose_dtype(compute.dtype, device), device)
    digits = [tokenizer.encode(rating, add_special_tokens=False)[-1] for rating in RATINGS]
    prompts = [_write_prompt(tokenizer, row) for row in rows]
    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row["row_id"], []).append(i)
    budget = batch_size * max(map(len, ids), default=1)  # tokens, as a batch of the longest prompts has
    budget = min(budget, choose_pass_tokens(device))
    asked, scores = [[ids[i] for i in some] for some in groups.values()], [0.0] * len(rows)
    with tqdm(total=len(rows), desc=f"{judge} rates", unit="response") as bar:
        logits = compute_choice_logits(model, asked, tokenizer.pad_token_id, budget, digits, bar.update)
    for some, found in zip(groups.values(), logits, strict=True):
        for i, score in zip(some, _expect(found), strict=True):
            scores[i] = score
    table = pa.table({k: [row[k] for row in rows] for k in ("row_id", "response_id", "model")} | {"score": scores})
    cost = {"annotator": judge, "calls": len(rows), "prompt_tokens": sum(map(len, ids)), "device": device,
            "seconds": round(time.perf_counter() - started, 3)}  # fmt: skip
    return table, cost


def _write_prompt(tokenizer: Any, row: dict[str, str]) -> str:
    content = JUDGE_PROMPT.format(instruction=row["instruction"], response=row["response"])
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def _expect(logits: torch.Tensor) -> list[float]:
    """Return each row's expected rating, given that the next token is one of the digits."""
    return (logits.softmax(1) @ torch.arange(1.0, 6.0, device=logits.device)).tolist()
