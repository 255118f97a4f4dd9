"""The RLAIF baseline's annotator: a judge model that rates every response on its own.

The rating is the expectation over the tokens "1" to "5" of the judge's next-token distribution, without sampling. The
responses to one instruction lie in one row that shares it, hidden from each other, and what all of a pass begin with
is read once (`karma.models.prefill`). Ratings are kept as they come, those of some prompts a record
(`karma.models.store`), so that a killed job goes on, and Ray's workers may rate. Calls, tokens and seconds are counted,
because not needing them is what kinship is for. A judge that is a reward model (`karma.models.rewards`) is asked no
question: its rating is the reward, in its own unit.
Limit: a judge that is loaded here; one behind an API writes its rating (`karma.pool.rate`).
"""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm.auto import tqdm

from karma.files.reading import compute_digest
from karma.models.load import Specs, compute_weights_digest, is_reward_model, load_model, load_tokenizer
from karma.models.logprobs import choose_pass_tokens
from karma.models.placement import answer, choose_place
from karma.models.prefill import compute_choice_logits
from karma.models.rewards import build_reward_row, compute_rewards, load_reward_model, tokenize_whole
from karma.models.shards import Advance, Piece, Recipe, Share
from karma.models.store import Record, open_store
from karma.study.sections import Compute

JUDGE_PROMPT = """Rate how well the response answers the instruction, from 1 (useless) to 5 (excellent).

Instruction: {instruction}

Response: {response}

Reply with one digit."""
RATINGS = "12345"
GROUP = 64  # prompts whose ratings are kept together: what a kill costs at most


def annotate(
    rows: list[dict[str, str]], models: Specs, judge: str, compute: Compute, batch_size: int,
    cache: Path | None = None, share: Share | None = None,
) -> tuple[pa.Table, dict[str, Any]]:  # fmt: skip
    """Rate each response with a judge model that is loaded here.

    Args:
        rows: dictionaries with row_id, response_id, model, instruction, response.
        models: name -> specification. judge: which of them rates.
        compute: the experiment's `compute`.
        batch_size: prompts a forward pass, at most.
        cache: folder in which ratings are kept as they come, by content; None keeps nothing.
        share: this process is one of several that rate the same; scores that the others have not made are 0.

    Returns:
        A table (row_id, response_id, model, score in 1..5, or the reward), and what it cost (calls, prompt_tokens,
        seconds; those of kept ratings included).
    """
    device, dtype = choose_place(compute)
    digest, tokenizer = compute_weights_digest(models, judge), load_tokenizer(models, judge)
    rewards = is_reward_model(models, judge)
    digits = [] if rewards else [tokenizer.encode(rating, add_special_tokens=False)[-1] for rating in RATINGS]
    ids = [_tokenize_rated(tokenizer, row) for row in rows] if rewards else _tokenize_questions(tokenizer, rows)
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row["row_id"], []).append(i)
    grouped, members, batches = list(groups.values()), dict[str, list[list[int]]](), []
    for some in (grouped[start : start + GROUP] for start in range(0, len(grouped), GROUP)):
        asked = [[ids[i] for i in one] for one in some]
        key = f"ratings-{compute_digest([digest, dtype, device, digits, batch_size, asked])}"
        members[key] = some
        batches.append([Piece(key, {"ids": asked}, sum(map(len, some)))])
    how = {"models": models, "judge": judge, "dtype": dtype, "device": device, "threads": compute.threads,
           "pad": tokenizer.pad_token_id, "digits": digits, "batch_size": batch_size}  # fmt: skip
    recipe, store = Recipe("karma.models.judge:Rater", how), open_store(cache, digest)
    scores, seconds = [0.0] * len(rows), 0.0
    with tqdm(total=len(rows), desc=f"{judge} rates", unit="response") as bar:
        for shard, took, records in answer(Rater(**how), recipe, store, batches, compute, bar.update, share):
            for piece in (piece for batch in shard for piece in batch):
                kept = records[piece.key]
                bar.update(0 if piece.key in took else piece.n)
                seconds += kept["seconds"]
                for one, found in zip(members[piece.key], kept["scores"], strict=True):
                    for i, score in zip(one, found, strict=True):
                        scores[i] = score
    table = pa.table({k: [row[k] for row in rows] for k in ("row_id", "response_id", "model")} | {"score": scores})
    cost = {"annotator": judge, "calls": len(rows), "prompt_tokens": sum(map(len, ids)), "device": device,
            "seconds": round(seconds, 3)}  # fmt: skip
    return table, cost


class Rater:
    """Rates the responses to some instructions; the model is loaded for the first.

    Args:
        models, judge: who rates. dtype, device, threads: in what. pad: the tokenizer's padding token.
        digits: tokens of the ratings; none: the judge is a reward model. batch_size: prompts a forward pass, at most.
    """

    def __init__(
        self, models: Specs, judge: str, dtype: str, device: str, threads: int, pad: int, digits: list[int],
        batch_size: int,
    ):  # fmt: skip
        self._judge, self._place, self._threads = (models, judge), (dtype, device), threads
        self._pad, self._digits, self._batch_size = pad, digits, batch_size
        self._model: Any = None

    def load(self) -> None:
        """Load the model now."""
        if self._model is None:
            torch.set_num_threads(self._threads)
            self._model = (load_model if self._digits else load_reward_model)(*self._judge, *self._place)

    def ask(self, piece: Piece, advance: Advance) -> Record:
        """Return the expected ratings, and what they took."""
        started, asked = time.perf_counter(), piece.asked["ids"]
        budget = self._batch_size * max(len(one) for some in asked for one in some)
        budget = min(budget, choose_pass_tokens(self._place[1]))  # tokens, as a batch of the longest prompts has
        if self._digits:
            logits = compute_choice_logits(self._model, asked, self._pad, budget, self._digits, advance)
            scores = [_expect(found) for found in logits]
        else:
            pad = self._model.config.get_text_config().pad_token_id
            with torch.no_grad():
                found = compute_rewards(self._model, [build_reward_row(one, pad) for one in asked], budget, advance)
            scores = [own.tolist() for own in found]
        return {"scores": scores, "seconds": round(time.perf_counter() - started, 3)}


def _tokenize_rated(tokenizer: Any, row: dict[str, str]) -> list[int]:
    asked, said = [{"role": "user", "content": row["instruction"]}], [{"role": "assistant", "content": row["response"]}]
    return tokenize_whole(tokenizer, asked, said)


def _tokenize_questions(tokenizer: Any, rows: list[dict[str, str]]) -> list[list[int]]:
    prompts = [_write_prompt(tokenizer, row) for row in rows]
    return tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []


def _write_prompt(tokenizer: Any, row: dict[str, str]) -> str:
    turns = [{"role": "user", "content": write_question(row)}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def write_question(row: dict[str, str]) -> str:
    """Return what a judge is asked about a response: row holds instruction and response."""
    return JUDGE_PROMPT.format(instruction=row["instruction"], response=row["response"])


def _expect(logits: torch.Tensor) -> list[float]:
    """Return each row's expected rating, given that the next token is one of the digits."""
    return (logits.softmax(1) @ torch.arange(1.0, 6.0, device=logits.device)).tolist()
