"""The rule by which each strategy picks a pair, once: for the rows of a pool, and for sets of origin models.

Every row's candidates become all their unordered pairs, flat. A strategy is then a list of criteria (`RULES`); each
keeps, in every row, the pairs that reach the row's best value, until one is left. Eligible pairs (kinship >= tau) come
first, the strategy picks among them (to those of `WITHOUT_TAU` every pair is eligible); a pick with equal S_pref is no
preference and is dropped. Where lengths are to match, only pairs whose longer response has at most so many times the
characters of the shorter one are eligible, to every strategy; to those of `SURE_ONLY` only pairs that are surely
labelled. Ties go to the higher S_pref, then the higher kinship;
what is still equal is decided by a draw keyed by (seed, row, response) and never by the order of models, completions or
rows (among the origin models of a score table, which have no responses to draw from, by the order given).

    k_score      the higher S_pref of the pair, then the lower one        (the two best models)
    k_score_sim  the higher S_pref of the pair, then the kinship          (the best model and its nearest kin)
    k_sim        the kinship                                             (the two nearest kin)
    k_sure       the kinship, of pairs whose label is at least .95 sure    (ours)
    delta        the higher S_pref of the pair, then the lower one, lowest first; no tau    (rival: delta learning)
    affinity     how alike the two texts are in complexity and quality (`karma.pool.affinity`)    (ours)
    least_kin    the kinship, lowest first                                (control: ours)
    random       a draw                                                   (control: ours)
    rlaif        the annotations of single responses; kinship plays no part
    density_ratio    the log-probabilities of single responses under two models, as rlaif    (rival: Dr.SoW)

k_score and k_score_sim therefore agree on the chosen response wherever both keep the row.
Limit: a row of c candidates makes c (c - 1) / 2 pairs; rows of thousands of responses need another way.

Paper: section 2.3 (thresholds and strategies), Eq. 3 in 2.4 (preference); delta: arXiv 2507.06187.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Protocol

import numpy as np

from karma.errors import InputError
from karma.pool.affinity import Traits, compute_affinity
from karma.pool.draws import mix

MAX_SETS = 5000
Criteria = list[np.ndarray]
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], Criteria]
# Of the pair: S_pref of its two models, kinship, a draw, the affinity of its texts.
RULES: dict[str, Rule] = {
    "k_score": lambda high, low, kin, draw, alike: [high, low],
    "k_score_sim": lambda high, low, kin, draw, alike: [high, kin],
    "k_sim": lambda high, low, kin, draw, alike: [kin],
    "delta": lambda high, low, kin, draw, alike: [high, -low],
    "least_kin": lambda high, low, kin, draw, alike: [-kin],
    "random": lambda high, low, kin, draw, alike: [draw],
    "k_sure": lambda high, low, kin, draw, alike: [kin],
    "affinity": lambda high, low, kin, draw, alike: [alike],
}
WITHOUT_TAU = {"delta"}  # whose own rule asks for no kinship
SURE_ONLY = {"k_sure"}
BY_TEXT = {"affinity"}  # whose rule reads the responses, so that sets of models alone have no pick
RATED = ("rlaif", "density_ratio")  # whose pairs follow from a score of each response (`choose_by_annotation`)
SURE = 0.95  # label confidence: the level of every interval of the kit, so that sampling error flips at most 1 in 20


class Kinship(Protocol):
    """Cosines of models by their places: a matrix, or what computes them one by one."""

    def __getitem__(self, places: tuple[np.ndarray, np.ndarray], /) -> np.ndarray:
        """Return the cosine of each two models, given as two arrays of places."""


@dataclass(frozen=True)
class Candidates:
    """Usable responses of a batch, ordered by row.

    Attributes:
        n_rows: rows of the batch, with or without candidates.
        row: int64, the row of each candidate, ascending.
        model: int32, the position of its origin model in the score table (-1: not in it; rlaif only).
        draw: uint64, its own random key.
        annotation: float64, its annotation, NaN where there is none.
        length: int64, in characters, at least 1; None where no one asks for it.
        traits: of the texts, for those of BY_TEXT; None where no one asks for them.
    """

    n_rows: int
    row: np.ndarray
    model: np.ndarray
    draw: np.ndarray
    annotation: np.ndarray
    length: np.ndarray | None = None
    traits: Traits | None = None


@dataclass(frozen=True)
class Choice:
    """What a strategy decided.

    Attributes:
        row: rows with a pair, ascending.
        chosen, rejected: positions among the candidates, one a row with a pair.
        dropped: reason -> boolean mask over all rows of the batch; the masks do not overlap.
    """

    row: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    dropped: dict[str, np.ndarray]


def choose_by_kinship(
    strategy: str,
    candidates: Candidates,
    s_pref: np.ndarray,
    kinship: Kinship,
    tau: float,
    max_length_ratio: float | None = None,
    confidence: np.ndarray | None = None,
) -> Choice:
    """Pick a pair a row from the origin models' scores and kinship alone.

    Args:
        strategy: a key of RULES.
        candidates: all with a model of the score table.
        s_pref: shape (models,), in [0, 1].
        kinship: shape (models, models), cosine in [-1, 1].
        tau: the least kinship of an eligible pair; no strategy of WITHOUT_TAU reads it.
        max_length_ratio: of an eligible pair's longer response to its shorter one, at least 1; None: any.
        confidence: shape (models, models), probability that a pair's label is right; needed by those of SURE_ONLY.

    Raises:
        InputError: the strategy asks for sure labels, and how sure they are is unknown; or for texts, without any.

    Example:
        >>> draws, row = np.arange(3, dtype=np.uint64), np.zeros(3, int)
        >>> three = Candidates(1, row, np.arange(3), draws, np.full(3, np.nan))
        >>> kin = np.array([[1.0, 0.5, 0.9], [0.5, 1.0, 0.8], [0.9, 0.8, 1.0]])
        >>> scores = np.array([0.2, 0.5, 0.9])
        >>> for name in ("k_score", "k_sim", "delta", "least_kin"):
        ...     pick = choose_by_kinship(name, three, scores, kin, tau=0.1)
        ...     print(name, pick.chosen, pick.rejected)
        k_score [2] [1]
        k_sim [2] [0]
        delta [2] [0]
        least_kin [1] [0]

    Paper: section 2.3; Eq. 3 in section 2.4.
    """
    row, model, draw = candidates.row, candidates.model, candidates.draw
    dropped = {"fewer_than_two_responses": _count_rows(row, candidates.n_rows) < 2}
    first, second = list_pairs(row, candidates.n_rows)
    first, second = _keep(candidates, dropped, "one_origin_model", first, second, model[first] != model[second])
    eligible = (kinship[model[first], model[second]] >= tau) | (strategy in WITHOUT_TAU)
    first, second = _keep(candidates, dropped, "below_tau", first, second, eligible)
    if strategy in SURE_ONLY:
        if confidence is None:
            raise InputError(f"{strategy} needs label confidence, from the number of items behind each score")
        sure = confidence[model[first], model[second]] >= SURE
        first, second = _keep(candidates, dropped, "no_sure_label", first, second, sure)
    first, second = _keep_alike(candidates, dropped, first, second, max_length_ratio)
    if strategy in BY_TEXT:
        measured = np.isfinite(_measure(candidates, strategy, first, second))
        first, second = _keep(candidates, dropped, "unknown_quality", first, second, measured)
    high, low = orient(candidates, s_pref, first, second)
    score, kin = s_pref[model], kinship[model[high], model[low]]
    alike = _measure(candidates, strategy, high, low) if strategy in BY_TEXT else np.zeros(len(high))
    criteria = RULES[strategy](score[high], score[low], kin, mix_draws(draw[high] + draw[low]), alike)
    ties = [score[high], score[low], kin, draw[high], draw[low]]
    high, low = keep_best(row, high, low, [*criteria, *ties])
    is_tie = score[high] == score[low]
    dropped["equal_s_pref"] = _mark(row[high][is_tie], candidates.n_rows)
    high, low = high[~is_tie], low[~is_tie]
    return Choice(row[high], high, low, dropped)


def choose_by_annotation(candidates: Candidates, rejected: str, max_length_ratio: float | None = None) -> Choice:
    """Pick the best annotated response against a lower one: the instance-wise baseline, and density_ratio.

    Args:
        candidates: annotations may be NaN; such responses take no part.
        rejected: "random_lower" (any response annotated below the best, by draw) or "worst".
        max_length_ratio: as of `choose_by_kinship`; then the best is that of the eligible pairs.

    Example:
        >>> row, draws, scores = np.zeros(3, int), np.arange(3, dtype=np.uint64), np.array([4.0, 1.0, 3.0])
        >>> pick = choose_by_annotation(Candidates(1, row, row, draws, scores), "worst")
        >>> int(pick.chosen[0]), int(pick.rejected[0])
        (0, 1)
    """
    row, annotation, n_usable = candidates.row, candidates.annotation, _count_rows(candidates.row, candidates.n_rows)
    rated = np.flatnonzero(np.isfinite(annotation))
    n_rated = _count_rows(row[rated], candidates.n_rows)
    dropped = {
        "fewer_than_two_responses": n_usable < 2,
        "fewer_than_two_annotated": (n_usable >= 2) & (n_rated < 2),
    }
    first, second = (rated[place] for place in list_pairs(row[rated], candidates.n_rows))
    unequal = annotation[first] != annotation[second]
    first, second = _keep(candidates, dropped, "equal_annotation", first, second, unequal)
    first, second = _keep_alike(candidates, dropped, first, second, max_length_ratio)
    is_first_best = annotation[first] > annotation[second]
    best, lower = np.where(is_first_best, first, second), np.where(is_first_best, second, first)
    lot = mix_draws(candidates.draw[lower])
    criteria = [lot] if rejected == "random_lower" else [-annotation[lower], lot]
    chosen, loser = keep_best(row, best, lower, [annotation[best], candidates.draw[best], *criteria])
    return Choice(row[chosen], chosen, loser, dropped)


def choose_in_sets(
    s_pref: np.ndarray,
    kinship: np.ndarray,
    sets: np.ndarray,
    strategy: str,
    tau: float,
    confidence: np.ndarray | None = None,
) -> np.ndarray:
    """Return the (chosen, rejected) pair a strategy picks in each set of origin models; ties go to S_pref, then order.

    A prompt in the pool was answered by a few origin models (UltraFeedback: four of 17), so that a strategy's choice is
    one within such a set. Over all sets of four one sees how much strategies, and variants of one, really differ.
    Limit: every set counts alike, whereas in a real pool some models answer more often.

    Args:
        s_pref: n models.
        kinship: n x n.
        sets: k x c positions of models.
        strategy: a key of RULES; none of BY_TEXT, which an InputError says.
        tau: lowest kinship of an eligible pair.
        confidence: n x n, as of `choose_by_kinship`.

    Returns:
        k x 2 positions; (-1, -1) where no pair is eligible or the pick is equal in S_pref.

    Example:
        >>> kinship = np.array([[1, 0.5, 0.9], [0.5, 1, 0.8], [0.9, 0.8, 1]])
        >>> s_pref = np.array([0.9, 0.6, 0.2])
        >>> for strategy in ("k_score", "k_sim", "k_score_sim"):
        ...     choose_in_sets(s_pref, kinship, np.array([[0, 1, 2]]), strategy, tau=0.1).tolist()
        [[0, 1]]
        [[0, 2]]
        [[0, 2]]

    Paper: section 2.3.
    """
    n_sets, size = sets.shape
    row, model = np.repeat(np.arange(n_sets), size), sets.ravel()
    order = np.tile(np.arange(size, 0, -1, dtype=np.uint64), n_sets)  # the earlier wins
    candidates = Candidates(n_sets, row, model, order, np.full(len(row), np.nan))
    choice = choose_by_kinship(strategy, candidates, s_pref, kinship, tau, confidence=confidence)
    picked = np.full((n_sets, 2), -1)
    picked[choice.row] = np.stack([model[choice.chosen], model[choice.rejected]], axis=1)
    return picked


def build_sets(n_models: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return all sets of `size` models, or MAX_SETS distinct random ones where there are more.

    Returns:
        k x size positions, ascending within a set; one set of all models where n_models < size.

    Example:
        >>> build_sets(16, 4, np.random.default_rng(0)).shape
        (1820, 4)
    """
    if comb(n_models, min(size, n_models)) <= MAX_SETS:
        return np.array(list(combinations(range(n_models), min(size, n_models))))
    drawn = rng.random((MAX_SETS, n_models)).argpartition(size, axis=1)[:, :size]
    return np.unique(np.sort(drawn, axis=1), axis=0)


def list_pairs(row: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all unordered pairs of candidates within each row, ordered by row.

    Example:
        >>> first, second = list_pairs(np.array([0, 0, 0, 1, 2, 2]), 3)
        >>> list(zip(first.tolist(), second.tolist()))
        [(0, 1), (0, 2), (1, 2), (4, 5)]
    """
    counts = _count_rows(row, n_rows)
    n_pairs = counts * (counts - 1) // 2
    largest = int(counts.max(initial=0))
    later, earlier = np.tril_indices(largest, -1)  # (1,0), (2,0), (2,1), ...: the order does not depend on the count
    place = np.arange(n_pairs.sum()) - np.repeat(np.cumsum(n_pairs) - n_pairs, n_pairs)
    start = np.repeat(np.cumsum(counts) - counts, n_pairs)
    return start + earlier[place], start + later[place]


def keep_best(
    row: np.ndarray, first: np.ndarray, second: np.ndarray, criteria: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Keep, in each row, the pair that is largest by the criteria taken in order.

    Args:
        row: the row of each candidate.
        first, second: positions among the candidates, ordered by row.
        criteria: arrays as long as `first`; a later one decides only among equals of those before.
    """
    for position in range(len(criteria)):
        if not len(first):
            break
        starts = _find_starts(row[first])
        lengths = np.diff(np.append(starts, len(first)))
        best = np.repeat(np.maximum.reduceat(criteria[position], starts), lengths)
        kept = criteria[position] == best
        first, second = first[kept], second[kept]
        criteria = [c[kept] for c in criteria]
    starts = _find_starts(row[first])  # what is left equal is the same text by the same model
    return first[starts], second[starts]


def mix_draws(values: np.ndarray) -> np.ndarray:
    """Give each draw a second, unrelated value."""
    return mix(mix(values))


def orient(
    candidates: Candidates, s_pref: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put the response of the higher S_pref first; of equal ones the larger draw."""
    a, b = s_pref[candidates.model[first]], s_pref[candidates.model[second]]
    swap = (b > a) | ((a == b) & (candidates.draw[second] > candidates.draw[first]))
    return np.where(swap, second, first), np.where(swap, first, second)


def _keep(
    candidates: Candidates,
    dropped: dict[str, np.ndarray],
    reason: str,
    first: np.ndarray,
    second: np.ndarray,
    mask: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the pairs under the mask; a row that loses its last pair is dropped for `reason`."""
    before = _mark(candidates.row[first], candidates.n_rows)
    first, second = first[mask], second[mask]
    dropped[reason] = before & ~_mark(candidates.row[first], candidates.n_rows)
    return first, second


def _keep_alike(
    candidates: Candidates,
    dropped: dict[str, np.ndarray],
    first: np.ndarray,
    second: np.ndarray,
    ratio: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the pairs whose lengths lie within the ratio; all where none is asked for."""
    if ratio is None or candidates.length is None:
        return first, second
    lengths = candidates.length[first], candidates.length[second]
    alike = np.maximum(*lengths) <= ratio * np.minimum(*lengths)
    return _keep(candidates, dropped, "unlike_lengths", first, second, alike)


def _measure(candidates: Candidates, strategy: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if candidates.traits is None:
        raise InputError(f"{strategy} needs the responses' texts: origin models alone have no pair by it")
    return compute_affinity(candidates.traits, candidates.row, first, second)


def _count_rows(row: np.ndarray, n_rows: int) -> np.ndarray:
    return np.bincount(row, minlength=n_rows)


def _mark(rows: np.ndarray, n_rows: int) -> np.ndarray:
    marked = np.zeros(n_rows, bool)
    marked[rows] = True
    return marked


def _find_starts(rows: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(rows, prepend=-1))
