"""The pair each strategy picks, in many sets of origin models at once.

A prompt in the pool was answered by a few origin models (UltraFeedback: four of 17), so that a strategy's
choice is a choice within such a set. Over all sets of four from the table one sees how much the strategies,
and variants of a strategy, really differ. Ties are broken by S_pref, then by position. Limit: every set
counts alike, whereas in a real pool some models answer more often.
"""

from itertools import combinations
from math import comb

import numpy as np

STRATEGIES = ("k_score", "k_sim", "k_score_sim")
MAX_SETS = 5000


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


def choose_in_sets(s_pref: np.ndarray, kinship: np.ndarray, sets: np.ndarray, strategy: str, tau: float) -> np.ndarray:
    """Return the (chosen, rejected) pair a strategy picks in each set.

    Args:
        s_pref: n models.
        kinship: n x n.
        sets: k x c positions of models.
        strategy: k_score, k_sim or k_score_sim.
        tau: lowest kinship of an eligible pair.

    Returns:
        k x 2 positions; (-1, -1) where no pair is eligible or the pick is equal in S_pref.

    Example:
        >>> kinship = np.array([[1, 0.5, 0.9], [0.5, 1, 0.8], [0.9, 0.8, 1]])
        >>> s_pref = np.array([0.9, 0.6, 0.2])
        >>> for strategy in STRATEGIES:
        ...     choose_in_sets(s_pref, kinship, np.array([[0, 1, 2]]), strategy, tau=0.1).tolist()
        [[0, 1]]
        [[0, 2]]
        [[0, 2]]

    Paper: section 3.2.
    """
    first, second = np.triu_indices(sets.shape[1], k=1)
    one, other = sets[:, first], sets[:, second]
    swap = s_pref[other] > s_pref[one]
    high, low = np.where(swap, other, one), np.where(swap, one, other)
    cosine = kinship[high, low]
    criteria = {
        "k_score": (s_pref[high], s_pref[low], cosine),
        "k_sim": (cosine, s_pref[high], s_pref[low]),
        "k_score_sim": (s_pref[high], cosine, s_pref[low]),
    }[strategy]
    left = cosine >= tau
    for criterion in criteria:
        value = np.where(left, criterion, -np.inf)
        left &= value >= value.max(axis=1, keepdims=True)
    best = left.argmax(axis=1)
    rows = np.arange(len(sets))
    picked = np.stack([high[rows, best], low[rows, best]], axis=1)
    none = ~left.any(axis=1) | (s_pref[picked[:, 0]] == s_pref[picked[:, 1]])
    picked[none] = -1
    return picked
