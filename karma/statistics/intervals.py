"""Every interval of the kit: of shares, means and differences, paired, clustered, over seeds.

Shares get Wilson's interval, which behaves at 0 and 1; units that come in clusters (IFEval's instructions of one
prompt) count for as many independent ones as their standard error says. Differences on the same items are paired, with
Student's t and the prompt as the unit. Where several seeds were trained, their noise is in it (`compute_two_way`);
models compared on shared prompts are clustered by prompt and by model (`compute_comparison_share`). Limit: with one
seed the noise of training is in no interval, and whoever shows one says so.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import chdtri, ndtri, stdtr, stdtrit  # scipy.stats takes a second to import, in every job of a study

from karma.errors import InputError

LEVEL = 0.95  # confidence of every interval
ALPHA = round(1 - LEVEL, 12)  # of every test


def compute_wilson(
    value: float, n: float, standard_error: float | None = None, n_tests: int = 1, df: float = math.inf
) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share.

    Args:
        value: in [0, 1]; ties may count half.
        n: units, at least 1.
        standard_error: of the value, where units come in clusters; None takes them as independent.
        n_tests: intervals that are to hold all at once (Bonferroni).
        df: degrees of freedom of the standard error, where it is itself a guess from few clusters; else normal.

    Raises:
        InputError: a value outside [0, 1], or n below 1.

    Example:
        >>> [round(x, 3) for x in compute_wilson(0.5, 100)], compute_wilson(0.0, 10)[0]
        ([0.404, 0.596], 0.0)
        >>> [round(x, 2) for x in compute_wilson(0.5, 100, standard_error=0.1)]  # as 26 independent units
        [0.32, 0.68]
    """
    if not 0 <= value <= 1 or n < 1:
        raise InputError(f"share {value} of n = {n}: expected a share in [0, 1] of at least one item")
    if standard_error and 0 < value < 1:
        n = min(n, value * (1 - value) / standard_error**2 + 1)  # the standard error divides by n - 1
    level = 1 - ALPHA / 2 / n_tests
    z = float(ndtri(level) if math.isinf(df) else stdtrit(df, level))
    centre = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(value * (1 - value) / n + z**2 / (4 * n**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return float(min(low, value)), float(max(high, value))  # at 0 and 1 rounding must not shut the value out


def compute_mean(values: ArrayLike, units: ArrayLike | None = None) -> dict[str, float]:
    """Return a mean over prompts (or pairs) with its standard error and 95 % interval: Student's t.

    Of a paired difference, give the differences. With `units` the mean is sum(values) / sum(units), a ratio over
    clusters, linearised.

    Args:
        values: (n,), a cluster's sum each. units: (n,), how many units each holds; None: one each.

    Returns:
        value, standard_error, low, high (NaN where n is 1), df.

    Example:
        >>> found = compute_mean([1.0, 0.0, 1.0, 1.0])
        >>> found["value"], round(found["low"], 3)
        (0.75, -0.046)
    """
    own = np.asarray(values, float)
    size = np.ones(len(own)) if units is None else np.asarray(units, float)
    n, mean = len(own), float(own.sum() / size.sum())
    squares = float(((own - mean * size) ** 2).sum())
    return _describe_mean(mean, math.sqrt(squares * n / (n - 1)) / float(size.sum()) if n > 1 else math.nan, n)


def compute_mean_of_sums(n: int, total: float, squares: float) -> dict[str, float]:
    """Return what `compute_mean` does of n values that are known by their sums alone, as of a stream.

    Args:
        n: at least 1. total: sum of the values. squares: sum of their squares.

    Example:
        >>> compute_mean_of_sums(4, 3.0, 3.0) == compute_mean([1.0, 0.0, 1.0, 1.0])
        True
    """
    mean = total / n
    around = max(squares - n * mean**2, 0.0)
    return _describe_mean(mean, math.sqrt(around * n / (n - 1)) / n if n > 1 else math.nan, n)


def _describe_mean(mean: float, error: float, n: int) -> dict[str, float]:
    if n < 2:
        return {"value": mean, "standard_error": math.nan, "low": math.nan, "high": math.nan, "df": 0}
    low, high = compute_interval(mean, error, n - 1)
    return {"value": mean, "standard_error": error, "low": low, "high": high, "df": n - 1}


def compute_interval(value: float, standard_error: float, df: float, n_tests: int = 1) -> tuple[float, float]:
    """Return the 95 % interval of an estimate, Student's t; of several, those that hold all at once (Bonferroni).

    Example:
        >>> [round(x, 3) for x in compute_interval(0.75, 0.25, 3)]
        [-0.046, 1.546]
    """
    half = float(stdtrit(df, 1 - ALPHA / 2 / n_tests)) * standard_error
    return value - half, value + half


def compute_spread_interval(spread: float, df: float) -> tuple[float, float]:
    """Return the 95 % interval of a standard deviation, chi-square's: of values that are normal.

    Args:
        spread: the standard deviation. df: its degrees of freedom, at least 1.

    Example:
        >>> [round(x, 3) for x in compute_spread_interval(1.0, 4)]
        [0.599, 2.874]
    """
    low, high = (math.sqrt(df / float(chdtri(df, tail))) * spread for tail in (ALPHA / 2, 1 - ALPHA / 2))
    return low, high


def compute_p_value(value: float, standard_error: float, df: float) -> float:
    """Return the two-sided p value of "the true value is 0": Student's t. Without any spread it is 0, or 1 at 0.

    Example:
        >>> round(compute_p_value(2.0, 1.0, 5), 4), compute_p_value(0.0, 0.0, 5)
        (0.1019, 1.0)
    """
    if standard_error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stdtr(df, -abs(value / standard_error)))


def compute_slopes(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the least-squares slope over places, of each unit on its own; their mean is a trend, paired over units.

    Args:
        values: (places, ...). places: where they were measured, two or more different ones.

    Example:
        >>> compute_slopes(np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 3.0])).tolist()
        [0.5, 0.0]
    """
    around = places - places.mean()
    return np.tensordot(around / (around**2).sum(), values, axes=1)


def compute_two_way(values: ArrayLike, units: ArrayLike | None = None) -> dict[str, float]:
    """Return a mean over trainings and prompts, the same prompts asked of each, that is to hold for others of both.

    The variance is that over prompts plus that over trainings less what both count twice (two-way clusters); below the
    first alone it never falls. With few trainings and much noise of training the interval is somewhat short: two
    trainings whose noise is twice that of 400 prompts held the truth in .88 of simulations, three in .93.

    Args:
        values: (trainings, n), a cluster's sum each. units: (n,), how many units each cluster holds; None: one each.

    Returns:
        As `compute_mean`, which it is for one training.

    Example:
        >>> found = compute_two_way([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
        >>> found["value"], found["standard_error"] > compute_mean([0.5, 0.0, 1.0, 0.5])["standard_error"]
        (0.5, True)
    """
    own = np.asarray(values, float)
    size = np.ones(own.shape[1]) if units is None else np.asarray(units, float)
    if len(own) == 1 or own.shape[1] < 2:
        return compute_mean(own.mean(axis=0), size)
    mean = float(own.mean(axis=0).sum() / size.sum())
    parts = split_variance((own - mean * size) / size.sum(), size)
    variance, df = combine_variances(parts, parts[0][0])
    error = math.sqrt(variance)
    low, high = compute_interval(mean, error, df)
    return {"value": mean, "standard_error": error, "low": low, "high": high, "df": df}


def split_variance(residuals: np.ndarray, units: np.ndarray) -> list[tuple[float, float]]:
    """Return what a mean's variance is made of: (over prompts, over trainings, counted twice: negative), each with df.

    Args:
        residuals: (trainings, n), a training's contributions to the mean less its expectation. units: (n,).
    """
    n_runs, n = residuals.shape
    of_prompt, of_run = residuals.mean(axis=0), residuals.sum(axis=1)
    of_run = of_run - of_run.mean()
    inner = residuals - of_prompt - np.outer(of_run, units / units.sum())
    over = n / (n - 1) / n_runs / (n_runs - 1)
    return [
        (float((of_prompt**2).sum()) * n / (n - 1), n - 1),
        (float((of_run**2).sum()) / n_runs / (n_runs - 1), n_runs - 1),
        (-float((inner**2).sum()) * over, (n - 1) * (n_runs - 1)),
    ]


def combine_variances(parts: Sequence[tuple[float, float]], least: float = 0.0) -> tuple[float, float]:
    """Return the sum of variances, at least `least`, and its degrees of freedom after Satterthwaite.

    Args:
        parts: (variance, degrees of freedom); a negative one is taken off.

    Example:
        >>> combine_variances([(1.0, 9), (1.0, 9)]), combine_variances([(2.0, 9), (1.0, 2), (-1.5, 18)], least=2.0)[0]
        ((2.0, 18.0), 2.0)
    """
    variance = sum(part for part, _ in parts)
    variance = max(variance, least) if variance == variance else math.nan  # an unknown part leaves the sum unknown
    shares = sum(part**2 / df for part, df in parts)
    return float(variance), float(variance**2 / shares) if shares else math.inf


def compute_comparison_share(
    hits: ArrayLike, units: ArrayLike, hits_of_model: ArrayLike, units_of_model: ArrayLike
) -> dict[str, float]:
    """Return a share of comparisons between models on shared prompts, clustered by prompt and by model.

    Two comparisons are dependent where they share a prompt, and where they share a model. The variance is the sum of
    both: over prompts linearised (as `compute_mean`), over models the jackknife that leaves out a model with all its
    comparisons (Arvesen 1969; for networks Snijders and Borgatti 1999). Wilson's interval then has the degrees of
    freedom of the two together (Satterthwaite), so that a thousand prompts of ten models are not a thousand. Chance
    within a single comparison counts in both sums: a little too wide, never too narrow. Where one model stands in
    every comparison nothing is known of others, and the interval is all of [0, 1].

    Args:
        hits, units: (prompts,), right and counted comparisons of each prompt.
        hits_of_model, units_of_model: (models,), of all comparisons that the model has part in (or, in sets of
            models, of those of its sets): what goes when it is left out.

    Returns:
        value, low, high; NaN where nothing is counted.

    Example:
        >>> found = compute_comparison_share([8, 6, 7, 7], [10, 10, 10, 10], [20, 14, 12, 10], [20, 20, 20, 20])
        >>> {name: round(value, 2) for name, value in found.items()}
        {'value': 0.7, 'low': 0.12, 'high': 0.98}
        >>> compute_comparison_share([8, 6], [10, 10], [14, 14], [20, 20])  # two models: one pair
        {'value': 0.7, 'low': 0.0, 'high': 1.0}
    """
    own, size, part, counted = (np.asarray(a, float) for a in (hits, units, hits_of_model, units_of_model))
    own, size, part, counted = own[size > 0], size[size > 0], part[counted > 0], counted[counted > 0]
    if not len(size):
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    mean, total = compute_mean(own, size), float(size.sum())
    value, n_prompts, n_models = min(mean["value"], 1.0), len(size), len(counted)
    if n_prompts < 2 or (counted >= total).any():
        return {"value": value, "low": 0.0, "high": 1.0}
    without = (own.sum() - part) / (total - counted)
    by_prompt = mean["standard_error"] ** 2
    by_model = (n_models - 1) / n_models * float(((without - without.mean()) ** 2).sum())
    variance = by_prompt + by_model
    spread = by_prompt**2 / (n_prompts - 1) + by_model**2 / (n_models - 1)
    clusters = max(1.0, min(n_prompts, n_models / 2))  # so many comparisons share neither prompt nor model
    low, high = compute_wilson(
        value,
        clusters if variance == 0 else total,
        math.sqrt(variance),
        df=variance**2 / spread if spread else math.inf,
    )
    return {"value": value, "low": low, "high": high}


def compute_prompt_share(hits: ArrayLike, units: ArrayLike | None = None) -> dict[str, float]:
    """Return a share with its interval clustered by prompt (Wilson's, at the linearised standard error).

    Args:
        hits: (prompts,), of a prompt: its preference, or the sum over several comparisons, halves allowed.
        units: (prompts,), how many comparisons a prompt holds; None: one each.

    Returns:
        value, low, high; NaN where nothing is counted.

    Example:
        >>> {name: round(x, 2) for name, x in compute_prompt_share([1.0, 0.0, 0.5, 1.0]).items()}
        {'value': 0.62, 'low': 0.12, 'high': 0.95}
    """
    own = np.asarray(hits, float)
    size = np.ones(len(own)) if units is None else np.asarray(units, float)
    own, size = own[size > 0], size[size > 0]
    if not len(own):
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    mean, n = compute_mean(own, size), len(own)
    value = min(max(mean["value"], 0.0), 1.0)
    if n < 2:
        return {"value": value, "low": 0.0, "high": 1.0}
    low, high = compute_wilson(value, n, mean["standard_error"], df=n - 1)
    return {"value": value, "low": low, "high": high}


def compute_spearman(first: ArrayLike, second: ArrayLike) -> tuple[float, float, float]:
    """Return Spearman's correlation with its 95 % interval: Fisher's z with Bonett and Wright's error.

    Example:
        >>> rho, low, high = compute_spearman(range(20), [*range(1, 20), 0])
        >>> round(rho, 2), -1 < low < rho < high < 1
        (0.71, True)
    """
    from scipy.stats import spearmanr

    rho = float(spearmanr(first, second).statistic)
    n = len(np.asarray(first))
    half = float(ndtri((1 + LEVEL) / 2)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    centre = np.arctanh(np.clip(rho, -0.999999, 0.999999))
    low, high = np.tanh([centre - half, centre + half])
    return rho, float(low), float(high)


def quantiles(draws: np.ndarray) -> np.ndarray:
    """Return the 95 % interval of bootstrap draws along the first axis: (low, high)."""
    return np.asarray(np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2], axis=0))
