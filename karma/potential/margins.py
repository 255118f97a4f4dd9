"""Alignment potential: which preference pairs can still teach a policy something.

A pair carries an explicit margin M_r (how much better the chosen response is said to be) and meets an implicit one
M_pi (how much likelier the policy already finds one response than the other). Their standardised difference

    M_AP = z(M_r) - w z(M_pi)

is large where the pair says much and the policy knows little. Any score will do for M_r: a reward model's, a judge's,
or the kinship label's S_pref, which costs no annotation. Decision: z-scores are taken over one explicit pool of
candidates, those pairs that have both margins, whatever the metric; so two metrics choose among the same pairs, and
selecting in parts is not selecting from the whole. Limit: with absolute margins a mislabelled pair looks like a right
one; `m_ap_signed` tells them apart, and ranks highest the pairs whose rejected response the policy prefers most.

Paper: "Larger or Smaller Reward Margins to Select Preferences for LLM Alignment?" (arXiv 2503.01864).
"""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from karma.errors import InputError
from karma.files.reading import compute_digest

RANKINGS = (
    "random", "explicit_large", "explicit_small", "implicit_small", "implicit_large", "m_ap", "m_ap_signed",
)  # fmt: skip
POOLS = {
    "m_ap_signed": "signed",
    "m_ap_annotated": "annotated",
}  # whose margins it ranks; of others "plain"
RANKED_AS = {  # a metric that is another's ranking, of another pool, or again before every epoch
    "m_ap_annotated": "m_ap",
    "random_anew": "random",
    "m_ap_anew": "m_ap",
}
FORMS = ("absolute", "signed", "dpo")  # of the implicit margin
DECIMALS = 9  # of a ranking: smaller differences are rounding, and count as ties


def compute_explicit_margin(scores: ArrayLike, signed: bool = False) -> np.ndarray:
    """Compute how far apart the scores of a prompt's responses lie.

    Args:
        scores: (n, N), N >= 2 scores a prompt, in any unit; of a pair: chosen, rejected.
        signed: of pairs only: chosen minus rejected, which may be negative.

    Returns:
        Margins (n,), max - min (of a pair: |chosen - rejected|), in the scores' unit; NaN where a score is not finite.

    Raises:
        InputError: another shape.

    Paper: arXiv 2503.01864, M_r.

    Example:
        >>> compute_explicit_margin([[0.9, 0.2], [1.0, 1.0]]).round(1).tolist()
        [0.7, 0.0]
    """
    values = np.atleast_2d(np.asarray(scores, float))
    if values.ndim != 2 or values.shape[1] < 2 or (signed and values.shape[1] != 2):
        raise InputError(f"scores of shape {values.shape}: expected (prompts, 2 or more), and exactly 2 where signed")
    finite = np.isfinite(values).all(axis=1)
    values = np.where(finite[:, None], values, 0.0)
    margins = values[:, 0] - values[:, 1] if signed else values.max(axis=1) - values.min(axis=1)
    return np.where(finite & np.isfinite(margins), margins, np.nan)


def compute_implicit_margin(
    logps: ArrayLike, lengths: ArrayLike, form: str = "absolute", reference_logps: ArrayLike | None = None,
    beta: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """Compute how much likelier a policy finds one response of a pair than the other.

    Args:
        logps: (n, 2) summed log-probabilities of chosen and rejected, in nats.
        lengths: (n, 2) response lengths, in tokens.
        form: "absolute", |mean log pi(y_w|x) - mean log pi(y_l|x)| (means over tokens); "signed", the same without
            the bars; "dpo", the absolute reward margin beta |log-ratio of chosen - log-ratio of rejected|.
        reference_logps: (n, 2), for "dpo": the reference's.
        beta: for "dpo"; it drops out of every ranking.

    Returns:
        Margins (n,), in nats a token ("dpo": nats); NaN where a response has no token or a value is not finite.

    Raises:
        InputError: an unknown form, or "dpo" without a reference.

    Paper: arXiv 2503.01864, M_pi; "dpo": arXiv 2305.18290, Eq. 7.

    Example:
        >>> compute_implicit_margin([[-10.0, -30.0]], [[10, 20]]).tolist()
        [0.5]
    """
    if form not in FORMS:
        raise InputError(f"implicit margin '{form}' is unknown: choose from {', '.join(FORMS)}")
    sums, tokens = np.asarray(logps, float).reshape(-1, 2), np.asarray(lengths, float).reshape(-1, 2)
    if form == "dpo":
        if reference_logps is None:
            raise InputError("the dpo form of the implicit margin needs a reference model's log-probabilities")
        values = beta * (sums - np.asarray(reference_logps, float).reshape(-1, 2))
    else:
        values = np.divide(sums, tokens, out=np.full(sums.shape, np.nan), where=tokens > 0)
    fit = np.isfinite(values).all(axis=1) & (tokens > 0).all(axis=1)
    values = np.where(fit[:, None], values, 0.0)
    margins = values[:, 0] - values[:, 1]
    return np.where(fit, margins if form == "signed" else np.abs(margins), np.nan)


def compute_z(values: ArrayLike, what: str = "margin") -> np.ndarray:
    """Standardise over the whole pool: subtract the mean, divide by the population's standard deviation.

    Args:
        values: (n,), finite. what: a name for the warning.

    Returns:
        z-scores (n,); all 0, with a warning, where the values do not differ.

    Example:
        >>> compute_z([1.0, 3.0]).tolist()
        [-1.0, 1.0]
    """
    x = np.asarray(values, float)
    if not np.isfinite(x).all():
        raise InputError(f"{what}: {np.sum(~np.isfinite(x))} of {len(x)} values are not finite: leave those pairs out")
    largest = np.abs(x).max(initial=0.0)
    if largest:
        x = np.ldexp(x, -math.frexp(largest)[1])  # exact, and neither huge nor tiny units overflow
    if len(x) < 2 or np.ptp(x) <= 1e-12:
        warnings.warn(
            f"the {what} is the same for all {len(x)} pairs: it says nothing here and counts as 0", stacklevel=2
        )
        return np.zeros(len(x))
    ordered = np.sort(x)  # the order of the pairs must not change a rounding
    return (x - ordered.mean()) / ordered.std()


def compute_potential(explicit: ArrayLike, implicit: ArrayLike, weight: float) -> np.ndarray:
    """Compute M_AP = z(M_r) - w z(M_pi) over one pool.

    Args:
        explicit, implicit: (n,) margins, finite. weight: w, finite, >= 0; 1 in the paper's offline setting.

    Returns:
        (n,), mean 0; variance 1 + w^2 - 2 w corr(M_r, M_pi) where both margins differ.

    Raises:
        InputError: an impossible weight, or margins of different lengths.

    Paper: arXiv 2503.01864, M_AP.

    Example:
        >>> compute_potential([0.1, 0.3], [2.0, 1.0], 1.0).round(6).tolist()
        [-2.0, 2.0]
    """
    check_weight(weight)
    if np.shape(explicit) != np.shape(implicit):
        raise InputError(
            f"{np.size(explicit)} explicit and {np.size(implicit)} implicit margins: give one of each a pair"
        )
    z = compute_z(explicit, "explicit margin")
    return z - weight * compute_z(implicit, "implicit margin") if weight else z


def check_weight(weight: float) -> None:
    """Raise an InputError where a weight is negative or not finite."""
    if not (math.isfinite(weight) and weight >= 0):
        raise InputError(f"weight is {weight}: expected a finite number of at least 0")


def compute_k(n: int, ratio: float | None = None, k: int | None = None) -> int:
    """Return how many of n candidates to keep: k itself, or floor(ratio * n).

    Raises:
        InputError: both or neither given, or none or more than all would be kept.

    Example:
        >>> compute_k(100, 0.29), compute_k(9, k=9)
        (29, 9)
    """
    if (ratio is None) == (k is None):
        raise InputError("give either a ratio or k")
    if ratio is not None and not 0 < ratio <= 1:
        raise InputError(f"ratio is {ratio}: expected a share above 0, up to 1")
    kept = k if k is not None else math.floor(float(ratio or 0) * n + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if not 0 < kept <= n:
        asked = f"k = {k}" if k is not None else f"{ratio:g} of them"
        raise InputError(f"{asked} cannot be selected from {n} candidate pairs: expected 1 to {n} pairs")
    return kept


@dataclass(frozen=True, eq=False)
class Candidates:
    """The pool that metrics choose from, aligned with a table of pairs.

    Attributes:
        row_ids: (n,) what breaks ties, and seeds `random`.
        explicit, implicit: (n,) margins as measured, NaN where there is none.
        weight: w of the potential.
        reasons: (n,) why a pair is no candidate, or "".
        objectives: source -> its own explicit margins (n,), where they were made of several.
        by_draw: whether equal pairs are told apart by a seeded draw, not by row_id alone.
    """

    row_ids: Sequence[str]
    explicit: np.ndarray
    implicit: np.ndarray
    weight: float
    reasons: np.ndarray
    objectives: Mapping[str, np.ndarray] = field(default_factory=dict)
    by_draw: bool = False

    @property
    def fit(self) -> np.ndarray:
        """Which pairs are candidates (n,), booleans."""
        return self.reasons == ""

    @cached_property
    def potential(self) -> np.ndarray:
        """M_AP over the candidates (n,); NaN elsewhere."""
        values = np.full(len(self.reasons), np.nan)
        values[self.fit] = compute_potential(self.explicit[self.fit], self.implicit[self.fit], self.weight)
        return values

    @property
    def counts(self) -> Counter:
        """Pairs that are no candidates, by reason."""
        return Counter(self.reasons[~self.fit].tolist())


def build_candidates(
    row_ids: Sequence[str], explicit: np.ndarray, implicit: np.ndarray, weight: float,
    unusable: Sequence[str] | None = None,
) -> Candidates:  # fmt: skip
    """Sort out what has no margin, once for all metrics.

    Args:
        row_ids, explicit, implicit, weight: as in `Candidates`.
        unusable: (n,) reasons known before any margin ("empty_text", "identical_responses"), or "".
    """
    reasons = np.array(list(unusable) if unusable is not None else [""] * len(row_ids), dtype=object)
    for name, margins in (("no_explicit_margin", explicit), ("no_implicit_margin", implicit)):
        reasons[(reasons == "") & ~np.isfinite(margins)] = name
    return Candidates(list(row_ids), np.asarray(explicit, float), np.asarray(implicit, float), weight, reasons)


def compute_priorities(candidates: Candidates, metric: str, seed: int = 0) -> np.ndarray:
    """Return what a metric ranks by (n,), larger first; NaN for what is no candidate.

    Raises:
        InputError: an unknown metric.
    """
    if metric not in RANKINGS:
        raise InputError(f"metric '{metric}' is unknown: choose from {', '.join(RANKINGS)}")
    if metric == "random":
        values: Any = np.array(_draw(candidates.row_ids, seed), float)
    elif metric.startswith("m_ap"):
        values = candidates.potential
    else:
        side, direction = metric.split("_")
        values = getattr(candidates, side) * (1 if direction == "large" else -1)
    return np.where(candidates.fit, values, np.nan)


def select(
    candidates: Candidates, metric: str, ratio: float | None = None, k: int | None = None, seed: int = 0
) -> np.ndarray:
    """Select pairs: the k (or floor(ratio * candidates)) of highest priority, ties by row_id (or a draw before it).

    Args:
        candidates: the pool. metric: one of RANKINGS. ratio or k: how many. seed: of `random`, and of draws among ties.

    Returns:
        Positions (k,), ascending, so that all of any metric is the pool as it was.

    Raises:
        InputError: an unknown metric, or an impossible number.

    Example:
        >>> import numpy as np
        >>> pool = build_candidates(["a", "b", "c"], np.array([1.0, 3.0, 3.0]), np.array([0.1, 0.9, 0.1]), 1.0)
        >>> select(pool, "m_ap", k=1).tolist(), select(pool, "explicit_large", k=1).tolist()
        ([2], [1])
    """
    values = compute_priorities(candidates, metric, seed)
    places = np.flatnonzero(candidates.fit)
    kept = compute_k(len(places), ratio, k)
    ids = candidates.row_ids
    lots = _draw(ids, seed) if candidates.by_draw else [0.0] * len(ids)
    order = sorted(places, key=lambda i: (-_round(float(values[i]), metric), lots[int(i)], ids[int(i)], i))
    return np.array(sorted(order[:kept]), dtype=np.int64)


def _draw(row_ids: Sequence[str], seed: int) -> list[float]:
    """Return a number in [0, 1) for each pair, drawn from (seed, row_id)."""
    return [int(compute_digest([seed, "select", i])[:13], 16) / 16.0**13 for i in row_ids]


def _round(value: float, metric: str) -> float:
    """z-scores of equal margins may differ in their last bits after a change of units; margins themselves do not."""
    return round(value, DECIMALS) if metric.startswith("m_ap") else value
