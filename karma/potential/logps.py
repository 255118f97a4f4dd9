"""What a policy already thinks of a pair set: log-probabilities of every response, measured once and kept.

Pairs are grouped by length, a few together. Each group's log-probabilities are a record (`karma.models.store`) under
the digest of what was asked (token ids) in a folder named by who was asked and how (weights, precision, device,
batches), so that a killed job loses one group at most, another metric, ratio or weight asks nothing again, and other
weights under the same name ask everything. Groups make shards of about 1,000 pairs, which Ray's workers may answer.
Decision: groups are cut from the whole set in one fixed way, since a pair's company in a batch changes its rounding;
the same set gives the same bytes, however often it was interrupted. Limit: a pair set that differs in a few pairs asks
again for the groups they fall into, and often for those after them.

Paper: the quantities pi(y|x) of arXiv 2503.01864.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm

from karma.errors import InputError
from karma.files.reading import compute_digest
from karma.models.chat import TokenizedResponse
from karma.models.load import Specs, compute_weights_digest, load_model, load_tokenizer
from karma.models.logprobs import SharedRow, compute_row_logps, count_tokens, tokenize_pair
from karma.models.placement import answer, choose_place
from karma.models.shards import Advance, Piece, Recipe
from karma.models.store import Record, open_store
from karma.study.sections import Compute

GROUP_PAIRS = 16


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of a pair set under one model.

    Attributes:
        logps: (n, 2) summed over the tokens of chosen and rejected, in nats; NaN where the model gave none.
        lengths: (n, 2), in tokens; 0 where the prompt alone fills `max_length`.
        digest: of the model's weights. dtype, device: in which it was asked.
        n_asked, n_kept: pairs asked now, and before.
        n_truncated: pairs of which a response reaches `max_length` and loses its end.
    """

    logps: np.ndarray
    lengths: np.ndarray
    digest: str
    dtype: str
    device: str
    n_asked: int
    n_kept: int
    n_truncated: int


def measure_logps(
    pairs: pa.Table, models: Specs, policy: str, compute: Compute, max_length: int, batch_tokens: int,
    cache: Path | None = None,
) -> PairLogps:  # fmt: skip
    """Measure the log-probability of both responses of each pair under a policy.

    Args:
        pairs: prompt, chosen and rejected as lists of role/content messages.
        models: name -> specification. policy: which of them is asked.
        compute: the experiment's `compute` (device, dtype, threads).
        max_length: tokens of prompt and response kept, from the start.
        batch_tokens: tokens a forward pass.
        cache: folder of what was asked before; None keeps nothing.

    Returns:
        The log-probabilities, in the order of the pairs.

    Raises:
        InputError: max_length or batch_tokens below 1, or a policy without weights here.
    """
    for name, value in (("max_length", max_length), ("batch_tokens", batch_tokens)):
        if value < 1:
            raise InputError(f"{name} is {value}: expected a number of tokens, at least 1")
    device, dtype = choose_place(compute)
    digest, tokenizer = compute_weights_digest(models, policy), load_tokenizer(models, policy)
    rows = [tokenize_pair(tokenizer, row["prompt"], row["chosen"], row["rejected"], max_length)
            for row in pairs.select(["prompt", "chosen", "rejected"]).to_pylist()]  # fmt: skip
    how = {"models": models, "policy": policy, "dtype": dtype, "device": device, "threads": compute.threads,
           "pad": tokenizer.pad_token_id, "batch_tokens": batch_tokens}  # fmt: skip
    store = open_store(cache, digest, compute_digest([dtype, device, max_length, batch_tokens]))
    groups = plan_groups(rows)
    batches = [[Piece(key, {"rows": [_unpack(rows[k]) for k in members]}, len(members))] for members, key in groups]
    known: dict[str, list[list[float | None]]] = {}
    n_asked = 0
    with tqdm(total=len(rows), desc=f"{policy}: pairs", unit="pair") as bar:
        recipe = Recipe("karma.potential.logps:Scorer", how)
        for shard, took, records in answer(Scorer(**how), recipe, store, batches, compute, bar.update):
            for piece in (piece for batch in shard for piece in batch):
                known[piece.key] = records[piece.key]["logps"]
                is_new = took.pop(piece.key, None) is not None
                n_asked += piece.n if is_new else 0
                bar.update(0 if is_new else piece.n)
    logps = np.full((len(rows), 2), np.nan)
    for members, key in groups:
        logps[members] = np.array(known[key], float)
    cut = sum(any(len(side.ids) == max_length for side in row.sides) for row in rows)  # one that fits exactly counts
    return PairLogps(logps, count_tokens(rows).numpy(), digest, dtype, device, n_asked, len(rows) - n_asked, cut)


class Scorer:
    """Answers groups of pairs with their log-probabilities; the model is loaded for the first.

    Args:
        models, policy: whose. dtype, device, threads: in what. pad: the tokenizer's padding token.
        batch_tokens: tokens a forward pass.
    """

    def __init__(self, models: Specs, policy: str, dtype: str, device: str, threads: int, pad: int, batch_tokens: int):
        self._place, self._policy, self._threads = (dtype, device), (models, policy), threads
        self._pad, self._batch_tokens = pad, batch_tokens
        self._model: Any = None

    def load(self) -> None:
        """Load the model now."""
        if self._model is None:
            torch.set_num_threads(self._threads)
            self._model = load_model(*self._policy, *self._place)

    def ask(self, piece: Piece, advance: Advance) -> Record:
        """Return the log-probabilities of a group; None stands for what is not finite."""
        rows = [SharedRow(tuple(TokenizedResponse(*side) for side in sides), shared)
                for sides, shared in piece.asked["rows"]]  # fmt: skip
        found = compute_row_logps(self._model, rows, self._pad, self._batch_tokens, advance)
        return {"logps": [[value if np.isfinite(value) else None for value in pair] for pair in found.tolist()]}


def _unpack(row: SharedRow) -> tuple[list[tuple[list[int], int]], int]:
    return [(side.ids, side.start) for side in row.sides], row.shared


def plan_groups(rows: Sequence[SharedRow]) -> list[tuple[list[int], str]]:
    """Cut pairs into groups of like length, each with the key of its content; the order of the pairs does not matter.

    Returns:
        (positions in `rows`, key) of each group, the longest pairs first.
    """
    keys = [compute_digest([[side.ids, side.start] for side in row.sides]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-rows[i].width, keys[i]))
    groups = [order[start : start + GROUP_PAIRS] for start in range(0, len(order), GROUP_PAIRS)]
    return [(group, compute_digest([keys[i] for i in group])) for group in groups]
