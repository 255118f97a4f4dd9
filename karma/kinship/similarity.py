"""Kinship of origin models (Eq. 1 of the paper), the threshold tau, and the pair each strategy picks.

Kinship S_ij is the cosine of the two models' min-max normalised score rows b, so it lies in [0, 1]. A model that is
last on every benchmark is the zero vector: its kinship is 0 to all others and to itself. The table may name another
measure (ours), each with the benchmarks' weights w:

    cosine           sum w b_i b_j / (|b_i| |b_j|)                 the paper's
    centred_cosine   the same after each benchmark's mean is taken off: alike is who is unlike the rest in the same way
    rmsd             1 - sqrt(sum w (b_i - b_j)^2 / sum w)         sees level
    rank             the same of ranks in [0, 1]: sees level, and no scale

Normalisation, means and ranks are those of the whole table, worked out once (`compute_profiles`); a pair's kinship is
then a sum over benchmarks in a fixed order, the same bits whichever other models are asked about. Pairs below tau, or
with equal S_pref (no preference), are not eligible; the strategies pick among the eligible ones, and ties are broken by
S_pref, then by name, never by the table's order. Limit: the cosine ignores level, and cells below chance make kin
(`karma.kinship.measures` shows both).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Profiles:
    """What a measure compares: a row of numbers a model, made over the whole table.

    Attributes:
        rows: n x m. measure: one of `karma.scores.table.MEASURES`.
    """

    rows: np.ndarray
    measure: str

    def compare(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return the kinship of models by their positions in the table: len(one) x len(other), to 12 decimals."""
        return compare_rows(self.rows[one], self.rows[other], self.measure).round(DECIMALS)


def compute_kinship(table: ScoreTable, models: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the kinship of every two origin models.

    Args:
        table: n origin models x m benchmarks.
        models: some of its models; their kinship is that of the whole table. None: all.

    Returns:
        n x n, symmetric, in [0, 1], names on both axes; the diagonal is 1 (0 for a model that is last
        everywhere). By `centred_cosine` in [-1, 1].

    Example:
        >>> from karma.scores.read import load_score_table
        >>> kinship = compute_kinship(load_score_table("paper"), ["Llama-2-7b-chat", "Llama-2-13b-chat"])
        >>> float(round(kinship.iloc[0, 1], 4))
        0.9961

    Paper: Eq. 1.
    """
    places = np.arange(len(table.scores)) if models is None else table.scores.index.get_indexer(list(models))
    names = table.scores.index[places]
    return pd.DataFrame(compute_profiles(table).compare(places, places), index=names, columns=names.rename(None))


def compute_profiles(table: ScoreTable) -> Profiles:
    """Return what kinship between the table's models is computed from, by its measure and weights."""
    normalized = compute_normalized(table).to_numpy(dtype=float)
    return Profiles(build_rows(normalized, table.measure, list_weights(table)), table.measure)


def list_weights(table: ScoreTable) -> np.ndarray:
    """Return the weight of each benchmark in kinship, in the table's order."""
    return np.array([table.weights[name] if table.weights else 1.0 for name in table.scores])


def build_rows(normalized: np.ndarray, measure: str, weights: np.ndarray) -> np.ndarray:
    """Return what a measure compares.

    Args:
        normalized: (..., n models, m benchmarks), min-max normalised. measure: its name. weights: (m,).
    """
    if measure == "cosine":
        return compute_unit_rows(normalized * np.sqrt(weights))
    if measure == "centred_cosine":
        return compute_unit_rows((normalized - normalized.mean(axis=-2, keepdims=True)) * np.sqrt(weights))
    if measure == "rank":
        from scipy.stats import rankdata  # a second to import, of every process that makes pairs

        normalized = (rankdata(normalized, axis=-2) - 1) / (normalized.shape[-2] - 1)
    return np.asarray(normalized * np.sqrt(weights / weights.sum()))


def compare_rows(one: np.ndarray, other: np.ndarray, measure: str) -> np.ndarray:
    """Return the kinship of rows of `build_rows`: (..., a, m) and (..., b, m) give (..., a, b).

    Benchmark after benchmark and not as a matrix product, whose last digits depend on how many rows there are.

    Example:
        >>> rows = build_rows(np.array([[0.2, 0.2], [0.8, 0.8]]), "rmsd", np.ones(2))
        >>> compare_rows(rows, rows, "rmsd").round(2).tolist()
        [[1.0, 0.4], [0.4, 1.0]]
    """
    total = np.zeros((*one.shape[:-1], other.shape[-2]))
    is_cosine = measure in ("cosine", "centred_cosine")
    for k in range(one.shape[-1]):
        a, b = one[..., :, None, k], other[..., None, :, k]
        total += a * b if is_cosine else (a - b) ** 2
    return np.clip(total, -1, 1) if is_cosine else 1 - np.sqrt(total)


def compute_cosine(normalized: pd.DataFrame) -> pd.DataFrame:
    """Return the cosine of every two rows, to 12 decimals; 0 where a row is the zero vector.

    Example:
        >>> compute_cosine(pd.DataFrame([[3.0, 4.0], [0.0, 0.0], [4.0, 3.0]])).round(2).to_numpy().tolist()
        [[1.0, 0.0, 0.96], [0.0, 0.0, 0.0], [0.96, 0.0, 1.0]]
    """
    unit = compute_unit_rows(normalized.to_numpy(dtype=float))
    cosine = compare_rows(unit, unit, "cosine").round(DECIMALS)
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
    check_tau(tau)
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


def check_tau(tau: float) -> None:
    """Raise an InputError where tau is no cosine.

    Example:
        >>> check_tau(0.1)
    """
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
    check_tau(tau)
    names = table.scores.index.to_numpy()
    by_name = np.argsort([canonical_model_name(str(m)) for m in names], kind="stable")[None, :]
    values = compute_s_pref(table).to_numpy(), compute_kinship(table).to_numpy()
    picks = {s: choose_in_sets(*values, by_name, s, tau)[0] for s in KINSHIP_STRATEGIES}
    return {s: (names[i], names[j]) if i >= 0 else None for s, (i, j) in picks.items()}


def compute_nearest_kin(table: ScoreTable) -> pd.DataFrame:
    """Return each model's nearest kin, in bounded memory.

    Args:
        table: n models x m benchmarks.

    Returns:
        origin_model -> nearest_kin, kinship. Equal kinship: the first in the table's order.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> compute_nearest_kin(load_score_table("paper")).loc["GPT-4", "nearest_kin"]
        'bard'
    """
    profiles = compute_profiles(table)
    n = len(profiles.rows)
    nearest, kinship = np.empty(n, dtype=np.int64), np.empty(n)
    for start, block in _kinship_blocks(profiles):
        rows = np.arange(len(block))
        block[rows, rows + start] = -np.inf
        nearest[start : start + len(block)] = best = block.argmax(axis=1)
        kinship[start : start + len(block)] = block[rows, best]
    names = table.scores.index.to_numpy()
    return pd.DataFrame({"nearest_kin": names[nearest], "kinship": kinship.clip(-1, 1)}, index=table.scores.index)


def _kinship_blocks(profiles: Profiles) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, block of the kinship matrix); a cosine block's memory is used again for the next one."""
    rows, is_cosine = profiles.rows, profiles.measure in ("cosine", "centred_cosine")
    buffer = np.empty((min(_BLOCK, len(rows)), len(rows)))
    other = np.ascontiguousarray(rows.T)
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        if is_cosine:  # as a product, for speed: kin that differ in the last digit only are a tie anyway
            yield start, np.matmul(part, other, out=buffer[: len(part)])
        else:
            yield start, compare_rows(part, rows, profiles.measure)
