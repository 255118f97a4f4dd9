"""What a policy already thinks of a pair set: log-probabilities of every response, measured once and kept.

Pairs are grouped by length into small shards. Each shard's log-probabilities lie in a file named by what was asked
(token ids) below a folder named by who was asked and how (weights, precision, device, batches), so that a killed job
loses one shard at most, another metric, ratio or weight asks nothing again, and other weights under the same name ask
everything. Decision: shards are cut from the whole set in one fixed way, since a pair's company in a batch changes its
rounding; the same set gives the same bytes, however often it was interrupted. Limit: a pair set that differs in a few
pairs asks again for the shards they fall into, and often for those after them.

Paper: the quantities pi(y|x) of arXiv 2503.01864.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm

from karma.errors import InputError
from karma.files import compute_digest, load_json, save_json
from karma.models.load import Specs, choose_device, choose_dtype, compute_weights_digest, load_model, load_tokenizer
from karma.models.logprobs import SharedRow, compute_row_logps, count_tokens, tokenize_pair
from karma.study.locks import open_lock
from karma.study.settings import Compute

SHARD_PAIRS = 16


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
    device = choose_device(compute.device)
    dtype, digest = choose_dtype(compute.dtype, device), compute_weights_digest(models, policy)
    torch.set_num_threads(compute.threads)
    tokenizer = load_tokenizer(models, policy)
    rows = [tokenize_pair(tokenizer, row["prompt"], row["chosen"], row["rejected"], max_length)
            for row in pairs.select(["prompt", "chosen", "rejected"]).to_pylist()]  # fmt: skip
    folder = None if cache is None else cache / digest / compute_digest([dtype, device, max_length, batch_tokens])
    with _locked(folder):
        shards = plan_shards(rows)
        known = [_load(folder, key) for _, key in shards]
        todo = [i for i, values in enumerate(known) if values is None]
        model = load_model(models, policy, dtype, device) if todo else None
        n_asked = sum(len(shards[i][0]) for i in todo)
        with tqdm(total=len(rows), initial=len(rows) - n_asked, desc=f"{policy}: pairs", unit="pair") as bar:
            for i in todo:
                some = [rows[k] for k in shards[i][0]]
                found = compute_row_logps(model, some, tokenizer.pad_token_id, batch_tokens, bar.update)
                known[i] = [[_plain(value) for value in pair] for pair in found.tolist()]
                if folder is not None:
                    save_json({"logps": known[i]}, folder / f"{shards[i][1]}.json")
    logps = np.full((len(rows), 2), np.nan)
    for (members, _), values in zip(shards, known, strict=True):
        logps[members] = np.array(values, float)
    cut = sum(any(len(side.ids) == max_length for side in row.sides) for row in rows)  # one that fits exactly counts
    return PairLogps(logps, count_tokens(rows).numpy(), digest, dtype, device, n_asked, len(rows) - n_asked, cut)


def plan_shards(rows: Sequence[SharedRow]) -> list[tuple[list[int], str]]:
    """Cut pairs into groups of like length, each with the key of its content; the order of the pairs does not matter.

    Returns:
        (positions in `rows`, key) of each shard, the longest pairs first.
    """
    keys = [compute_digest([[side.ids, side.start] for side in row.sides]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-rows[i].width, keys[i]))
    groups = [order[start : start + SHARD_PAIRS] for start in range(0, len(order), SHARD_PAIRS)]
    return [(group, compute_digest([keys[i] for i in group])) for group in groups]


def _locked(folder: Path | None):
    """Let jobs that ask the same, side by side, ask it once."""
    if folder is None:
        return nullcontext()
    return open_lock(folder / ".lock")


def _load(folder: Path | None, key: str) -> list[list[float | None]] | None:
    path = None if folder is None else folder / f"{key}.json"
    return load_json(path)["logps"] if path is not None and path.is_file() else None


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
