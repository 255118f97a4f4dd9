"""Which pairs are kept: those of the largest alignment potential, as many as the budget says.

The explicit margin is the distance of the two scores; the implicit one how much likelier, per token, the policy that
is about to be trained finds one answer than the other. A pair is worth training on where the first is large and the
second small:  M_AP = z(M_r) - w z(M_pi), z over all candidate pairs (population standard deviation).

Paper: arXiv 2503.01864, M_AP.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from karma.errors import InputError
from karma.files.reading import compute_digest
from karma.models.load import Specs
from karma.pairs.pairs import PairSet
from karma.potential.logps import measure_logps
from karma.potential.margins import compute_potential
from karma.study.sections import Compute

MARGINS = ("explicit_margin", "implicit_margin", "potential")
BATCH_TOKENS = 1024  # a forward pass


def compute_token_margins(
    pairs: pa.Table, models: Specs, policy: str, max_length: int, compute: Compute, cache: Path
) -> np.ndarray:
    """Compute mean log pi(chosen) - mean log pi(rejected), means over tokens, of each pair: what selection looks at.

    Args:
        pairs: with prompt, chosen and rejected. models, policy: whose log-probabilities.
        max_length: tokens of prompt and answer kept. compute: the experiment's `compute`.
        cache: folder where log-probabilities are kept, by the weights' digest.

    Returns:
        Signed margins (n,), in nats a token.
    """
    logps, lengths = _measure(pairs, models, policy, max_length, compute, cache)
    return np.asarray(np.diff(logps / lengths)[:, 0] * -1)


def compute_summed_margins(
    pairs: pa.Table, models: Specs, policy: str, max_length: int, compute: Compute, cache: Path
) -> np.ndarray:
    """Compute log pi(chosen) - log pi(rejected) of each pair: what held-out preference looks at, as in 04 and 07.

    Args:
        pairs, models, policy, max_length, compute, cache: as of `compute_token_margins`.

    Returns:
        Signed margins (n,), in nats.
    """
    return np.asarray(np.diff(_measure(pairs, models, policy, max_length, compute, cache)[0])[:, 0] * -1)


def _measure(
    pairs: pa.Table, models: Specs, policy: str, max_length: int, compute: Compute, cache: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities in nats and lengths in tokens, (n, 2) each: chosen, rejected."""
    if not len(pairs):
        return np.zeros((0, 2)), np.ones((0, 2))
    found = measure_logps(pairs, models, policy, compute, max_length, BATCH_TOKENS, cache / "margins")
    if not found.lengths.all():
        n_full = int((found.lengths == 0).any(axis=1).sum())
        raise InputError(f"{n_full} prompts fill training.max_length={max_length}: raise it")
    return found.logps, found.lengths


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


RANKS = {  # arm -> what it ranks candidates by, and whether the largest come first; others rank by potential
    "fresh_explicit": ("explicit_margin", True),
    "fresh_implicit": ("implicit_margin", False),
}


def find_best(pairs: PairSet, k: int, arm: str = "") -> np.ndarray:
    """Return the places of the (at most) k pairs that an arm keeps, ascending; ties go by row_id.

    Args:
        pairs: with margins. k: how many. arm: fresh_explicit keeps the largest explicit margins, fresh_implicit the
            smallest implicit ones, all others the largest potential (fresh_random draws instead: `draw_places`).
    """
    column, largest = RANKS.get(arm, ("potential", True))
    values, ids = pairs.table[column].to_numpy().round(9), pairs.table["row_id"].to_pylist()
    order = sorted(range(len(pairs)), key=lambda i: (-values[i] if largest else values[i], ids[i]))
    return np.array(sorted(order[:k]), dtype=np.int64)


def draw_places(keys: list[str], k: int, seed: int, what: str) -> np.ndarray:
    """Return the places of (at most) k of some texts, ascending, at random: a draw on (seed, what, text).

    Example:
        >>> len(draw_places(list("abcdef"), 4, 0, "pairs")), draw_places(["a"], 4, 0, "pairs").tolist()
        (4, [0])
    """
    order = sorted(range(len(keys)), key=lambda i: compute_digest([seed, what, keys[i]]))
    return np.array(sorted(order[:k]), dtype=np.int64)


def take_pairs(pairs: PairSet, places: np.ndarray, reason: str = "not_selected") -> PairSet:
    """Keep the pairs at these places; the books count the others under a reason."""
    table = pairs.table.take(pa.array(places, pa.int64()))
    dropped = pairs.accounting.dropped + Counter({reason: len(pairs) - table.num_rows})
    return PairSet(table, replace(pairs.accounting, pairs_out=table.num_rows, dropped=dropped))
