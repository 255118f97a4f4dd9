"""What may be claimed of intervals: correction for several looks, the verdict, and how many units it would take.

Decision: no difference is claimed without its p value corrected over the family (Holm), and none is denied unless the
corrected interval lies within the smallest difference worth claiming. Limit: needed sizes take the standard error of
the units that were measured for that of further ones.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from karma.statistics.exact import compute_unchanged
from karma.statistics.intervals import ALPHA, compute_interval, compute_p_value

POWER = 0.8  # of the test whose size `compute_needed_n` asks for
SMALLEST = 0.02  # share; the smallest difference in accuracy worth claiming; ours


def adjust_holm(p: ArrayLike) -> np.ndarray:
    """Return Holm's adjusted p values; NaN stays NaN and is not counted as a test.

    Example:
        >>> adjust_holm([0.01, 0.04, np.nan, 0.03]).round(3).tolist()
        [0.03, 0.06, nan, 0.06]
    """
    values = np.asarray(p, float)
    adjusted, tested = np.full(len(values), np.nan), np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    scaled = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1) if len(order) else []
    return adjusted


def judge(value: float, p_holm: float, bounds: tuple[float, float], smallest: float, n: str, more: str = "") -> str:
    """Put a test of "above 0" in one of four verdicts.

    Args:
        value: the estimate. p_holm: corrected for its family. bounds: its interval, corrected for the family.
        smallest: a difference below it does not count. n: how many of what. more: what would show `smallest`.

    Example:
        >>> [judge(sign * 0.1, 0.01, (0.02, 0.18), 0.02, "n = 40 pairs") for sign in (1, -1)]
        ['supported (n = 40 pairs)', 'contradicted (n = 40 pairs)']
        >>> judge(0.0, 1.0, (-0.01, 0.01), 0.02, "n = 40 pairs")
        'no difference larger than 0.02 (n = 40 pairs)'
        >>> judge(0.1, 0.2, (-0.05, 0.25), 0.02, "n = 40 pairs", "9,000 would show 0.02")
        'cannot tell with n = 40 pairs; 9,000 would show 0.02'
    """
    if p_holm < ALPHA:
        return f"{'supported' if value > 0 else 'contradicted'} ({n})"
    low, high = bounds
    if -smallest < low <= high < smallest:
        return f"no difference larger than {smallest} ({n})"
    return f"cannot tell with {n}" + (f"; {more}" if more else "")


def judge_family(
    found: Sequence[Mapping[str, float]], n: Sequence[int], unit: str, smallest: float = SMALLEST
) -> list[dict[str, float | str]]:
    """Test each estimate of a family against 0, corrected for the family (Holm), and say what follows.

    Args:
        found: value, standard_error and df of each, as `compute_mean` returns them; clusters, where units come in such:
            where nothing changed, they say what may still. n: units behind each.
        unit: what they are. smallest: a difference below it does not count.

    Returns:
        p, p_holm and verdict of each.

    Example:
        >>> judge_family([{"value": 0.5, "standard_error": 0.1, "df": 39}], [40], "pairs")[0]["verdict"]
        'supported (n = 40 pairs)'
        >>> judge_family([{"value": 0.5, "standard_error": 0.3, "df": 39}] * 2, [40, 40], "pairs")[0]["verdict"]
        'cannot tell with n = 40 pairs; 85,546 would show 0.02'
    """
    p = [compute_p_value(each["value"], each["standard_error"], each["df"]) for each in found]
    n_tests, corrected = sum(not math.isnan(own) for own in p), adjust_holm(p)
    judged: list[dict[str, float | str]] = []
    for each, units, own, p_holm in zip(found, n, p, corrected, strict=True):
        value, error, size = each["value"], each["standard_error"], f"n = {units:,} {unit}"
        bounds = compute_interval(value, error, each["df"], max(n_tests, 1)) if error else (value, value)
        if not error and not value:
            half = compute_unchanged([1.0], [int(each.get("clusters", units))], max(n_tests, 1))
            bounds = (-half, half)
        needed = compute_needed_n(units, error, smallest, n_tests) if error and not math.isnan(own) else None
        more = f"{needed:,} would show {smallest}" if needed else ""
        judged.append({"p": own, "p_holm": p_holm, "verdict": judge(value, p_holm, bounds, smallest, size, more)})
    return judged


def compute_needed_n(n: int, standard_error: float, effect: float, n_tests: int = 1) -> int | None:
    """Return how many units would show a true `effect` with 80 % power; None for an effect of 0.

    The standard error is taken to shrink with the square root of n: seeds would have to grow alike.

    Args:
        n: units now. standard_error: with these. effect: to be shown.
        n_tests: of the family; the level is shared out among them (Bonferroni: never fewer than Holm would need).

    Example:
        >>> compute_needed_n(100, 0.02, 0.01), compute_needed_n(100, 0.02, 0.01, n_tests=3)
        (3140, 4188)
    """
    if effect == 0:
        return None
    return math.ceil(round(n * (compute_detectable(standard_error, n_tests) / effect) ** 2, 6))


def compute_detectable(standard_error: float, n_tests: int = 1) -> float:
    """Return the true effect that a two-sided test shows with 80 % power (normal), in the effect's unit.

    Args:
        standard_error: of the effect. n_tests: of the family; the level is shared out among them (Bonferroni).

    Example:
        >>> round(compute_detectable(0.1), 3), round(compute_detectable(0.1, n_tests=10), 3)
        (0.28, 0.365)
    """
    return float(ndtri(1 - ALPHA / 2 / n_tests) + ndtri(POWER)) * standard_error


def compute_smallest_difference(n: int) -> float | None:
    """Return the smallest distance from a half that n yes-or-no answers show with 80 % power (two-sided, normal).

    Args:
        n: independent answers.

    Returns:
        In (0, .5]; None where not even n equal answers reach the level (n below 6).

    Example:
        >>> [round(compute_smallest_difference(n), 3) for n in (20, 100, 785)], compute_smallest_difference(5)
        ([0.295, 0.138, 0.05], None)
    """
    if 2 * 0.5**n > ALPHA:
        return None
    z, power = float(ndtri(1 - ALPHA / 2)), float(ndtri(POWER))
    spread = n + power**2  # of d sqrt(n) = z / 2 + power sqrt(1/4 - d^2), solved for d
    return float((z * math.sqrt(n) + math.sqrt(z**2 * n - spread * (z**2 - power**2))) / (2 * spread))
