"""The interval of a share, for results and for selections: Wilson's, which behaves at 0 and 1."""

import numpy as np
from scipy import stats

from karma.errors import InputError

LEVEL = 0.95  # confidence of every interval


def compute_wilson(value: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share.

    Args:
        value: in [0, 1].
        n: items, at least 1.

    Raises:
        InputError: a value outside [0, 1], or n below 1.

    Example:
        >>> [round(x, 3) for x in compute_wilson(0.5, 100)], compute_wilson(0.0, 10)[0]
        ([0.404, 0.596], 0.0)
    """
    if not 0 <= value <= 1 or n < 1:
        raise InputError(f"share {value} of n = {n}: expected a share in [0, 1] of at least one item")
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    centre = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(value * (1 - value) / n + z**2 / (4 * n**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return float(min(low, value)), float(max(high, value))  # at 0 and 1 rounding must not shut the value out
