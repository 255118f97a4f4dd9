"""Which pairs are kept: those of the largest alignment potential, as many as the budget says.

The explicit margin is the distance of the two scores; the implicit one how much likelier, per token, the policy that
is about to be trained finds one answer than the other. A pair is worth training on where the first is large and the
second small:  M_AP = z(M_r) - w z(M_pi), z over all candidate pairs (population standard deviation).

Paper: arXiv 2503.01864, M_AP.
"""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from karma.errors import InputError
from karma.files import compute_digest
from karma.models import Specs, choose_device, choose_dtype, compute_weights_digest
from karma.pairs import PairSet
from karma.self_play.answers import remember

MARGINS = ("explicit_margin", "implicit_margin", "potential")
_log = logging.getLogger(__name__)


def compute_potential(explicit: np.ndarray, implicit: np.ndarray, weight: float) -> np.ndarray:
    """Compute M_AP = z(M_r) - w z(M_pi) over one pool of pairs.

    Args:
        explicit, implicit: (n,) margins >= 0. weight: w >= 0.

    Returns:
        (n,), mean 0; a side without spread counts as 0, with a warning.

    Example:
        >>> compute_potential(np.array([0.1, 0.3]), np.array([2.0, 1.0]), 1.0).round(6).tolist()
        [-2.0, 2.0]
    """
    return _compute_z(explicit, "explicit margin") - weight * _compute_z(implicit, "implicit margin")


def _compute_z(values: np.ndarray, what: str) -> np.ndarray:
    if len(values) < 2 or np.ptp(values) <= 1e-12:
        _log.warning("the %s is the same for all %d pairs: it says nothing here and counts as 0", what, len(values))
        return np.zeros(len(values))
    return (values - values.mean()) / values.std()


def compute_token_margins(
    pairs: pa.Table, models: Specs, policy: str, max_length: int, compute: Any, cache: Path
) -> np.ndarray:
    """Compute mean log pi(chosen) - mean log pi(rejected), means over tokens, of each pair.

    Args:
        pairs: with prompt, chosen and rejected. models, policy: whose log-probabilities.
        max_length: tokens of prompt and answer kept. compute: the experiment's `compute`.
        cache: folder where margins are kept, by the weights' digest.

    Returns:
        Signed margins (n,), in nats a token.
    """
    device = choose_device(compute.device)
    dtype = choose_dtype(compute.dtype, device)
    rows = [pairs[side].to_pylist() for side in ("prompt", "chosen", "rejected")]
    key = compute_digest([compute_weights_digest(models, policy), dtype, device, max_length, rows])

    def measure() -> list[float]:
        import torch

        from karma.logprobs import compute_logps
        from karma.models import load_model, load_tokenizer

        torch.set_num_threads(compute.threads)
        model, tokenizer = load_model(models, policy, dtype, device), load_tokenizer(models, policy)
        logps, lengths = compute_logps(
            model, tokenizer, rows[0] * 2, rows[1] + rows[2], max_length=max_length, progress="margins"
        )
        if not lengths.all():
            raise InputError(f"{int((lengths == 0).sum())} prompts fill training.max_length={max_length}: raise it")
        means = (logps / lengths).reshape(2, -1)
        return (means[0] - means[1]).tolist()

    return np.array(remember(cache / "margins" / f"{key}.json", measure) if len(pairs) else [], float)


def add_margins(pairs: PairSet, token_margins: np.ndarray, weight: float) -> PairSet:
    """Add the columns explicit_margin, implicit_margin (nats a token) and potential to a pool of pairs."""
    scores = [pairs.table[f"{side}_score"].to_numpy() for side in ("chosen", "rejected")]
    explicit, implicit = np.abs(scores[0] - scores[1]), np.abs(token_margins)
    table = pairs.table
    for name, values in zip(
        MARGINS, (explicit, implicit, compute_potential(explicit, implicit, weight) if len(pairs) else []), strict=True
    ):
        table = table.append_column(name, pa.array(values, pa.float64()))
    return replace(pairs, table=table)


def find_best(pairs: PairSet, k: int) -> np.ndarray:
    """Return the places of the (at most) k pairs of largest potential, ascending; ties go by row_id."""
    potential, ids = pairs.table["potential"].to_numpy().round(9), pairs.table["row_id"].to_pylist()
    order = sorted(range(len(pairs)), key=lambda i: (-potential[i], ids[i]))
    return np.array(sorted(order[:k]), dtype=np.int64)


def take_pairs(pairs: PairSet, places: np.ndarray) -> PairSet:
    """Keep the pairs at these places; the books count the others as not selected."""
    table = pairs.table.take(pa.array(places, pa.int64()))
    dropped = pairs.accounting.dropped + Counter({"not_selected": len(pairs) - table.num_rows})
    return PairSet(table, replace(pairs.accounting, pairs_out=table.num_rows, dropped=dropped))
