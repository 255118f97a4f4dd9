"""Kinship of origin models (Eq. 1 of the paper), the threshold tau, and the pair each strategy picks.

Kinship S_ij is the cosine of the two models' min-max normalised score rows, so it lies in [0, 1]. A model
that is last on every benchmark is the zero vector: its kinship is 0 to all others and to itself. Pairs below
tau, or with equal S_pref (no preference), are not eligible; the strategies pick among the eligible ones, and
ties are broken by S_pref, then by name, never by the table's order. Limit: the cosine ignores level, and
cells below chance make kin.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.scores.names import canonical_model_name
from karma.scores.normalise import DECIMALS, compute_normalized, compute_s_pref
from karma.scores.table import ScoreTable
from karma.strategies import choose_in_sets
from karma.vocabulary import KINSHIP_STRATEGIES

MAX_SQUARE = 500  # models; above, kinship.csv gives way to the nearest kin of each model
_BLOCK = 256  # rows of the cosine matrix held at once: 20 MB at 10,000 models


def compute_kinship(table: ScoreTable) -> pd.DataFrame:
    """Return the kinship of every two origin models.

    Args:
        table: n origin models x m benchmarks.

    Returns:
        n x n, symmetric, in [0, 1], names on both axes; the diagonal is 1 (0 for a model that is last
        everywhere).

    Example:
        >>> from karma.scores.read import load_score_table
        >>> kinship = compute_kinship(load_score_table("paper"))
        >>> float(round(kinship.loc["Llama-2-7b-chat", "Llama-2-13b-chat"], 4))
        0.9961

    Paper: Eq. 1.
    """
    return compute_cosine(compute_normalized(table))


def compute_cosine(normalized: pd.DataFrame) -> pd.DataFrame:
    """Return the cosine of every two rows, to 12 decimals; 0 where a row is the zero vector.

    Example:
        >>> compute_cosine(pd.DataFrame([[3.0, 4.0], [0.0, 0.0], [4.0, 3.0]])).round(2).to_numpy().tolist()
        [[1.0, 0.0, 0.96], [0.0, 0.0, 0.0], [0.96, 0.0, 1.0]]
    """
    unit = compute_unit_rows(normalized.to_numpy(dtype=float))
    cosine = np.clip(unit @ unit.T, -1, 1).round(DECIMALS)
    np.fill_diagonal(cosine, unit.any(axis=1).astype(float))
    return pd.DataFrame(cosine, index=normalized.index, columns=normalized.index.rename(None))


class KinshipByPair:
    """The kinship of more models than a square matrix is made of: each cosine is computed when it is looked up.

    Terms are added benchmark by benchmark, so that a cosine depends on its two models alone, to the last bit.

    Example:
        >>> kinship = KinshipByPair(pd.DataFrame([[3.0, 4.0], [0.0, 0.0], [4.0, 3.0]]))
        >>> kinship[np.array([0, 0, 1]), np.array([2, 0, 1])].tolist()
        [0.96, 1.0, 0.0]

    Paper: Eq. 1.
    """

    def __init__(self, normalized: pd.DataFrame) -> None:
        self._unit = np.ascontiguousarray(compute_unit_rows(normalized.to_numpy(dtype=float)).T)

    def __getitem__(self, places: tuple[np.ndarray, np.ndarray], /) -> np.ndarray:
        """Return the cosine of each two models, given as two arrays of places."""
        cosine = np.zeros(len(places[0]))
        for column in self._unit:
            cosine += column[places[0]] * column[places[1]]
        return np.clip(cosine, -1, 1).round(DECIMALS)


def compute_unit_rows(values: np.ndarray) -> np.ndarray:
    """Scale the last axis to length 1; zero rows stay zero."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(np.divide(values, length, out=np.zeros_like(values), where=length > 0))


def list_pairs(table: ScoreTable, tau: float) -> pd.DataFrame:
    """Return every pair of origin models, the preferred one first.

    Args:
        table: n origin models.
        tau: lowest kinship of an eligible pair, in [-1, 1].

    Returns:
        n (n - 1) / 2 rows: chosen, rejected, s_pref_chosen, s_pref_rejected, gap, kinship, eligible. Where
        S_pref is equal neither is preferred: gap is 0, and the order is that of the names.

    Paper: Eq. 3, section 2.4.
    """
    _check_tau(tau)
    ranked = rank_pairs(compute_s_pref(table), compute_kinship(table))
    return ranked.assign(eligible=ranked["kinship"] >= tau)


def rank_pairs(s_pref: pd.Series, kinship: pd.DataFrame) -> pd.DataFrame:
    """Return every pair of models, the preferred one first, from scores and kinship however they were computed.

    Args:
        s_pref: n models. kinship: n x n, of the same names.

    Returns:
        As `list_pairs`, without eligible.

    Paper: Eq. 3, section 2.4.
    """
    order = s_pref.rename("s").to_frame()
    order["name"] = [canonical_model_name(str(m)) for m in order.index]
    ranked = order.sort_values(["s", "name"], ascending=[False, True])["s"]
    cosine = kinship.loc[ranked.index, ranked.index].to_numpy()
    first, second = np.triu_indices(len(ranked), k=1)
    names, values = ranked.index.to_numpy(), ranked.to_numpy()
    return pd.DataFrame({
        "chosen": names[first], "rejected": names[second], "s_pref_chosen": values[first],
        "s_pref_rejected": values[second], "gap": values[first] - values[second], "kinship": cosine[first, second],
    })  # fmt: skip


def _check_tau(tau: float) -> None:
    if not -1 <= tau <= 1:
        raise InputError(f"tau is {tau}, a cosine in [-1, 1] is expected: the paper's is 0.1")


def compute_choices(table: ScoreTable, tau: float) -> dict[str, tuple[str, str] | None]:
    """Return the pair (chosen, rejected) each strategy picks among all origin models, or None.

    k_score: the two with the highest S_pref. k_sim: the two with the highest kinship. k_score_sim: the one
    with the highest S_pref, with the one most similar to it.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> compute_choices(load_score_table("paper"), tau=0.1)["k_sim"]
        ('Llama-2-13b-chat', 'Llama-2-7b-chat')

    Paper: section 2.3.
    """
    _check_tau(tau)
    names = table.scores.index.to_numpy()
    by_name = np.argsort([canonical_model_name(str(m)) for m in names], kind="stable")[None, :]
    values = compute_s_pref(table).to_numpy(), compute_kinship(table).to_numpy()
    picks = {s: choose_in_sets(*values, by_name, s, tau)[0] for s in KINSHIP_STRATEGIES}
    return {s: (names[i], names[j]) if i >= 0 else None for s, (i, j) in picks.items()}


def compute_nearest_kin(normalized: pd.DataFrame) -> pd.DataFrame:
    """Return each model's nearest kin, in bounded memory.

    Args:
        normalized: n models x m benchmarks, in [0, 1].

    Returns:
        origin_model -> nearest_kin, kinship. Equal kinship: the first in the table's order.

    Example:
        >>> rows = pd.DataFrame({"a": [1.0, 0.9, 0.0], "b": [0.0, 0.1, 1.0]}, index=["x", "y", "z"])
        >>> compute_nearest_kin(rows)["nearest_kin"].tolist()
        ['y', 'x', 'y']
    """
    unit = compute_unit_rows(normalized.to_numpy(dtype=float))
    nearest, kinship = np.empty(len(unit), dtype=np.int64), np.empty(len(unit))
    for start, block in _cosine_blocks(unit):
        rows = np.arange(len(block))
        block[rows, rows + start] = -np.inf
        nearest[start : start + len(block)] = best = block.argmax(axis=1)
        kinship[start : start + len(block)] = block[rows, best]
    names = normalized.index.to_numpy()
    return pd.DataFrame({"nearest_kin": names[nearest], "kinship": kinship.clip(-1, 1)}, index=normalized.index)


def _cosine_blocks(unit: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, block of the cosine matrix); the block's memory is used again for the next one."""
    buffer = np.empty((min(_BLOCK, len(unit)), len(unit)))
    other = np.ascontiguousarray(unit.T)
    for start in range(0, len(unit), _BLOCK):
        rows = unit[start : start + _BLOCK]
        yield start, np.matmul(rows, other, out=buffer[: len(rows)])
