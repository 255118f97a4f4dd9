"""An exact interval where nothing was seen to change: no item of n is right in one run and wrong in the other.

Student's t gives such a difference an interval of no width, as if n items proved that none would ever change. Of a
change with probability q, n items show none with probability (1 - q)^n, so that every q up to 1 - (alpha / 2)^(1/n)
stays possible (Clopper and Pearson's bound). Of a mean over several benchmarks the bound is the largest mean change at
which all of them together show none. Limit: items are taken as independent, and each as changing by at most its weight.
"""

import math
from collections.abc import Mapping, Sequence

from karma.statistics.intervals import ALPHA

_STEPS = 200  # of the bisection: far below a rounding


def compute_unchanged(weights: Sequence[float], counts: Sequence[int], n_tests: int = 1) -> float:
    """Return the largest change of a weighted mean over benchmarks that unchanged items allow, 95 %.

    Args:
        weights: of each benchmark's mean, above 0. counts: items of each, at least 1.
        n_tests: intervals that are to hold all at once (Bonferroni).

    Returns:
        In (0, sum of weights].

    Example:
        >>> round(compute_unchanged([1.0], [100]), 4), round(compute_unchanged([0.5, 0.5], [100, 100]), 4)
        (0.0362, 0.0183)
    """
    room = -math.log(ALPHA / 2 / n_tests)

    def spend(price: float) -> list[float]:
        """Return -ln(1 - q) of each benchmark where a change is worth its price in likelihood."""
        return [max(0.0, math.log(w / (price * n))) for w, n in zip(weights, counts, strict=True)]

    low, high = 0.0, max(w / n for w, n in zip(weights, counts, strict=True))
    for _ in range(_STEPS):
        price = (low + high) / 2
        spent = sum(n * t for n, t in zip(counts, spend(price), strict=True))
        low, high = (price, high) if spent > room else (low, price)
    return sum(w * (1 - math.exp(-t)) for w, t in zip(weights, spend(high), strict=True))


def widen_unchanged(found: Mapping[str, float], n: int) -> dict[str, float]:
    """Return a difference of shares with its exact interval where nothing changed, and n as `clusters`.

    Args:
        found: value, standard_error, low and high, as `compute_mean` returns them. n: clusters, at least 1.

    Example:
        >>> same = {"value": 0.0, "standard_error": 0.0, "low": 0.0, "high": 0.0}
        >>> round(widen_unchanged(same, 100)["high"], 4), widen_unchanged({**same, "value": 0.1}, 100)["high"]
        (0.0362, 0.0)
    """
    half = compute_unchanged([1.0], [n]) if not found["value"] and not found["standard_error"] else None
    return {**found, "clusters": n, **({} if half is None else {"low": -half, "high": half})}
