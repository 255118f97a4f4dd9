"""Several objectives at once: explicit margins from several sources, as one number to rank pairs by.

A source scores both responses of a pair: the pairs' own scores, S_pref on all benchmarks or on those of one capability,
annotations, a reward model's scores, what programs can check. Its margin is how far the two lie apart, and z its
standard score over the candidates, so that no source's unit matters. Two ways to combine the margins m_1 .. m_S:

    weights  w_1 z(m_1) + ... + w_S z(m_S)
    pareto   the pair's place when pairs are sorted into fronts (no pair of a front is dominated but by earlier fronts;
             one pair dominates another that it exceeds in some margin and undercuts in none), within a front by the
             weighted sum; the share of pairs at or below it, equal places sharing their mean

Either way a pair that dominates another one ranks higher. Decision: one source is its own margin, whatever `combine`
says, so that a map of one source is the plain setting. Limit: absolute margins do not ask whether sources agree on
which response is better; `m_ap_signed` does.

Paper: its summary (arXiv 2503.01864) speaks of several objectives at once; the sorting is that of NSGA-II (Deb et al.
2002, IEEE Trans. Evol. Comput. 6:182).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from karma.errors import InputError
from karma.pool.annotations import AnnotationTable
from karma.potential.margins import DECIMALS, compute_explicit_margin, compute_z
from karma.scores.names import canonical_model_name

Source = AnnotationTable | Mapping[str, float]  # scores of single responses, or of origin models
COMBINATIONS = ("weights", "pareto")
SIDES = ("chosen", "rejected")


@dataclass(frozen=True, eq=False)
class Objectives:
    """What an explicit margin is made of.

    Attributes:
        scores: source -> (n, 2), of chosen and rejected, NaN where there is none. weights: source -> its weight.
        combine: how several margins become one.
    """

    scores: dict[str, np.ndarray]
    weights: dict[str, float]
    combine: Literal["weights", "pareto"] = "weights"

    @property
    def sorts(self) -> bool:
        """Whether pairs are sorted into fronts, so that equal ones are told apart by a draw."""
        return self.combine == "pareto" and len(self.weights) > 1

    def describe(self) -> str:
        """Say what the margins are made of."""
        return describe_sources(self.weights, self.combine)

    def compute_margins(self, signed: bool = False) -> dict[str, np.ndarray]:
        """Return each source's margins (n,), NaN where one of the two scores is missing."""
        return {source: compute_explicit_margin(self.scores[source], signed) for source in self.weights}


def list_sources(explicit: str | Mapping[str, float]) -> dict[str, float]:
    """Return the sources of an explicit margin with their weights.

    Example:
        >>> list_sources("score"), list_sources({"score": 1, "truth": 0.5})
        ({'score': 1.0}, {'score': 1.0, 'truth': 0.5})
    """
    named = {explicit: 1.0} if isinstance(explicit, str) else explicit
    return {source: float(weight) for source, weight in named.items()}


def describe_sources(weights: Mapping[str, float], combine: str) -> str:
    """Say what an explicit margin was made of.

    Example:
        >>> describe_sources({"score": 1.0, "truth": 0.5}, "pareto"), describe_sources({"score": 1.0}, "pareto")
        ('1 score + 0.5 truth, by pareto', 'score')
    """
    if len(weights) == 1:
        return next(iter(weights))
    return f"{' + '.join(f'{weight:g} {source}' for source, weight in weights.items())}, by {combine}"


def score_models(pairs: pa.Table, s_pref: Mapping[str, float]) -> np.ndarray:
    """Return the scores of a pair set's origin models (n, 2), NaN for those that have none."""
    known = {canonical_model_name(name): value for name, value in s_pref.items()}
    models = [pairs[f"{side}_model"].to_pylist() for side in SIDES]
    return np.array([[known.get(canonical_model_name(m or ""), np.nan) for m in side] for side in models], float).T


def gather_objectives(
    pairs: pa.Table, weights: Mapping[str, float], combine: str, sources: Mapping[str, Source]
) -> Objectives:
    """Look up the scores of every source that has a weight.

    Args:
        pairs: a pair set's table. weights: source -> weight; "score" is the pairs' own. combine: "weights" or "pareto".
        sources: of the others, by name.

    Raises:
        InputError: a source that is not given.
    """
    found: dict[str, np.ndarray] = {}
    for source in weights:
        if source == "score":
            found[source] = np.stack([pairs[f"{side}_score"].to_numpy().astype(float) for side in SIDES], 1)
        elif source not in sources:
            raise InputError(f"explicit margin from '{source}': no scores are given for it ({', '.join(sources)})")
        else:
            own = sources[source]
            found[source] = (
                np.stack(own.score_pairs(pairs), 1) if isinstance(own, AnnotationTable) else score_models(pairs, own)
            )
    return Objectives(found, dict(weights), "pareto" if combine == "pareto" else "weights")


def combine_margins(margins: ArrayLike, weights: ArrayLike, combine: str) -> np.ndarray:
    """Return one number a pair to rank by, larger first.

    Args:
        margins: (n, S), finite. weights: (S,), above 0. combine: "weights" or "pareto".

    Returns:
        (n,): the margin itself of one source; the weighted sum of z-scores; or places in (0, 1].

    Example:
        >>> margins = [[3.0, 0.0], [0.0, 3.0], [2.0, 2.0], [1.0, 1.0]]  # the last one is dominated by the third
        >>> combine_margins(margins, [1, 1], "pareto").tolist()  # the third has the largest sum of its front
        [0.625, 0.625, 1.0, 0.25]
        >>> combine_margins(margins, [1, 1], "weights").round(3).tolist()
        [0.0, 0.0, 0.894, -0.894]
    """
    values, shares = np.asarray(margins, float), np.asarray(weights, float)
    if values.shape[1] == 1:
        return values[:, 0]
    z = np.stack([compute_z(column, "margin of a source") for column in values.T], 1).round(DECIMALS)
    total = (z @ shares).round(DECIMALS)
    if combine == "weights":
        return np.asarray(total)
    _, place, counts = np.unique(
        np.stack([-compute_fronts(z), total], 1), axis=0, return_inverse=True, return_counts=True
    )
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(mean_rank[place.reshape(-1)] / len(values))


def compute_fronts(values: ArrayLike) -> np.ndarray:
    """Return each pair's front (n,), from 1: 1 + the largest front among the pairs that dominate it.

    Args:
        values: (n, S), larger is better.

    Example:
        >>> compute_fronts([[3, 0], [0, 3], [2, 2], [1, 1], [1, 1], [0, 0]]).tolist()
        [1, 1, 1, 2, 2, 3]
    """
    points, place = np.unique(np.asarray(values, float), axis=0, return_inverse=True)
    fronts = np.zeros(len(points), dtype=np.int64)
    for k in range(len(points) - 1, -1, -1):  # what dominates a point comes after it in the sorted list
        above = (points[k + 1 :] >= points[k]).all(axis=1)
        fronts[k] = 1 + fronts[k + 1 :][above].max(initial=0)
    return np.asarray(fronts[place.reshape(-1)])
