"""The RLAIF baseline's annotator: a judge model that rates every response on its own.

The rating is the expectation over the tokens "1" to "5" of the judge's next-token distribution, without sampling. The
responses to one instruction lie in one row that shares it, hidden from each other, and what all of a pass begin with
is read once (`karma.models.prefill`). Ratings are kept as they come, a shard of prompts a file named by its content, so
that a killed job goes on. Calls, tokens and seconds are counted, because not needing them is what kinship is for.
Limit: a judge that is loaded here; one behind an API writes its rating (`karma.pool.rate`).
"""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm.auto import tqdm

from karma.files import compute_digest, load_json, save_json
from karma.models.load import (
    Specs,
    choose_device,
    choose_dtype,
    compute_weights_digest,
    load_model,
    load_tokenizer,
)
from karma.models.logprobs import choose_pass_tokens
from karma.models.prefill import compute_choice_logits
from karma.study.settings import Compute

JUDGE_PROMPT = """Rate how well the response answers the instruction, from 1 (useless) to 5 (excellent).

Instruction: {instruction}

Response: {response}

Reply with one digit."""
RATINGS = "12345"
SHARD = 64  # prompts whose ratings are kept together: what a kill costs at most


def annotate(
    rows: list[dict[str, str]], models: Specs, judge: str, compute: Compute, batch_size: int, cache: Path | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """Rate each response with a judge model that is loaded here.

    Args:
        rows: dictionaries with row_id, response_id, model, instruction, response.
        models: name -> specification. judge: which of them rates.
        compute: the experiment's `compute`.
        batch_size: prompts a forward pass, at most.
        cache: folder in which ratings are kept as they come, by content; None keeps nothing.

    Returns:
        A table (row_id, response_id, model, score in 1..5), and what it cost (calls, prompt_tokens, seconds; those of
        kept ratings included).
    """
    device = choose_device(compute.device)
    dtype, digest = choose_dtype(compute.dtype, device), compute_weights_digest(models, judge)
    torch.set_num_threads(compute.threads)
    tokenizer = load_tokenizer(models, judge)
    digits = [tokenizer.encode(rating, add_special_tokens=False)[-1] for rating in RATINGS]
    prompts = [_write_prompt(tokenizer, row) for row in rows]
    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row["row_id"], []).append(i)
    model, scores, seconds = None, [0.0] * len(rows), 0.0
    with tqdm(total=len(rows), desc=f"{judge} rates", unit="response") as bar:
        grouped = list(groups.values())
        for shard in (grouped[start : start + SHARD] for start in range(0, len(grouped), SHARD)):
            asked = [[ids[i] for i in some] for some in shard]
            key = compute_digest([digest, dtype, device, digits, batch_size, asked])
            path = None if cache is None else cache / digest / f"ratings-{key}.json"
            if path is not None and path.is_file():
                kept = load_json(path)
                bar.update(sum(map(len, shard)))
            else:
                model = model or load_model(models, judge, dtype, device)
                started, budget = time.perf_counter(), batch_size * max(len(one) for some in asked for one in some)
                budget = min(budget, choose_pass_tokens(device))  # tokens, as a batch of the longest prompts has
                logits = compute_choice_logits(model, asked, tokenizer.pad_token_id, budget, digits, bar.update)
                kept = {
                    "scores": [_expect(found) for found in logits],
                    "seconds": round(time.perf_counter() - started, 3),
                }
                if path is not None:
                    save_json(kept, path)
            seconds += kept["seconds"]
            for some, found in zip(shard, kept["scores"], strict=True):
                for i, score in zip(some, found, strict=True):
                    scores[i] = score
    table = pa.table({k: [row[k] for row in rows] for k in ("row_id", "response_id", "model")} | {"score": scores})
    cost = {"annotator": judge, "calls": len(rows), "prompt_tokens": sum(map(len, ids)), "device": device,
            "seconds": round(seconds, 3)}  # fmt: skip
    return table, cost


def _write_prompt(tokenizer: Any, row: dict[str, str]) -> str:
    turns = [{"role": "user", "content": write_question(row)}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def write_question(row: dict[str, str]) -> str:
    """Return what a judge is asked about a response: row holds instruction and response."""
    return JUDGE_PROMPT.format(instruction=row["instruction"], response=row["response"])


def _expect(logits: torch.Tensor) -> list[float]:
    """Return each row's expected rating, given that the next token is one of the digits."""
    return (logits.softmax(1) @ torch.arange(1.0, 6.0, device=logits.device)).tolist()
