"""Do kin share a family, or a size? Mantel tests of distance against what is known of the models (RQ1, RQ4).

Mantel's r is Pearson's correlation of two distance tables over pairs of models; its null distribution comes
from permuting the models' labels, because the pairs are not independent. Effect size: for groups, how much
farther apart the unlike are than the alike, in standard deviations of the distances; for size, r. All at the
level corrected for the tests of the table: its interval is the effect plus or minus what the null exceeds at
that level (a shift of the null, as for a location), "no effect larger than a medium one" is said only where the
interval lies within it, and what would show does so with 80 % power. Else, and where p is small alone but not
among all tests, it is "cannot tell". Limit: 16 models, of which few share a developer.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from karma.kinship.clusters import compute_distance, group_benchmarks
from karma.scores.normalise import compute_normalized
from karma.scores.table import ScoreTable
from karma.statistics.intervals import ALPHA
from karma.statistics.verdicts import POWER, adjust_holm

MEDIUM_EFFECT = {"same developer": 0.5, "same family": 0.5, "size difference": 0.3}
MAX_CELLS = 50_000_000  # permutations x pairs of models in one test
FACTORS = ("same developer", "same family", "size difference")


def build_factors(facts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return what is tested against distance, model x model: 0 where alike, NaN where unknown.

    Args:
        facts: origin_model x (developer, family, size_b in 1e9 parameters), missing where unknown.

    Returns:
        "same developer" and "same family": 0 the same, 1 not; "size difference": |log10 of the ratio of
        sizes|.
    """
    factors = {}
    for name, column in (("same developer", "developer"), ("same family", "family")):
        labels = facts[column].to_numpy(dtype=object)
        unknown = facts[column].isna().to_numpy()
        unlike = (labels[:, None] != labels[None, :]).astype(float)
        unlike[unknown, :] = unlike[:, unknown] = np.nan
        factors[name] = pd.DataFrame(unlike, index=facts.index, columns=facts.index)
    size = np.log10(facts["size_b"].to_numpy(dtype=float))
    factors["size difference"] = pd.DataFrame(np.abs(size[:, None] - size), index=facts.index, columns=facts.index)
    return factors


def compute_mantel(
    distance: pd.DataFrame,
    factor: pd.DataFrame,
    rng: np.random.Generator,
    n_permutations: int = 19_999,
    n_tests: int = 1,
) -> dict[str, float]:
    """Test whether models alike in `factor` are close in `distance`.

    Args:
        distance: n x n, symmetric.
        factor: n x n on the same models, symmetric; NaN rows are models left out.
        rng: draws the permutations.
        n_permutations: how many at most; p is at least 1 / (n_permutations + 1). Above 70 models fewer are
            drawn (999 or more), to bound the time.
        n_tests: tests in the family; the level is shared out among them (Bonferroni).

    Returns:
        n_models, n_alike (pairs with factor 0), r in [-1, 1] (positive: the alike are close), effect (r over
        the standard deviation of a 0/1 factor, else r), p (two-sided), low and high (of the effect: 95 % for all
        tests at once), detectable (the true |effect| that is shown with 80 % power at that level). All but the
        counts are NaN where the factor does not vary.

    Example:
        >>> points = pd.DataFrame({"x": [0.0, 0.1, 0.9, 1.0, 0.05, 0.95]})
        >>> near = compute_distance(points)
        >>> result = compute_mantel(near, near, np.random.default_rng(0), 99)
        >>> round(float(result["r"]), 6), result["n_models"]
        (1.0, 6)
    """
    known = ~factor.isna().all(axis=1).to_numpy()
    gaps, unlike = distance.to_numpy()[np.ix_(known, known)], factor.to_numpy()[np.ix_(known, known)]
    first, second = np.triu_indices(int(known.sum()), k=1)
    y, x = unlike[first, second], gaps[first, second]
    result = {"n_models": int(known.sum()), "n_alike": int((y == 0).sum())}
    if len(y) < 3 or np.ptp(y) == 0 or np.ptp(x) == 0:
        return result | dict.fromkeys(("r", "effect", "p", "low", "high", "detectable"), np.nan)
    scale = y.std() if set(y) <= {0, 1} else 1.0
    y = (y - y.mean()) / y.std()
    n_permutations = min(n_permutations, max(999, MAX_CELLS // len(y)))
    null = np.abs(_permute(gaps, y, rng, n_permutations))
    r = float(_correlate(x[None], y)[0])
    p = float((1 + (null >= abs(r) - 1e-12).sum()) / (1 + n_permutations))
    critical = float(np.quantile(null, 1 - ALPHA / n_tests, method="higher"))
    detectable = critical + float(ndtri(POWER) * np.sqrt((null**2).mean()))
    values = {"effect": r, "low": r - critical, "high": r + critical, "detectable": detectable}
    return result | {"r": r, "p": p} | {name: value / scale for name, value in values.items()}


def _permute(gaps: np.ndarray, y: np.ndarray, rng: np.random.Generator, n_permutations: int) -> np.ndarray:
    """Return r of `n_permutations` relabelled distance tables with the standardised pairs `y`."""
    first, second = np.triu_indices(len(gaps), k=1)
    rows = max(1, min(n_permutations, 1_000_000 // len(y)))
    null = []
    for start in range(0, n_permutations, rows):
        labels = np.tile(np.arange(len(gaps)), (min(rows, n_permutations - start), 1))
        orders = rng.permuted(labels, axis=1)
        null.append(_correlate(gaps[orders[:, first], orders[:, second]], y))
    return np.concatenate(null)


def _correlate(rows: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """Return Pearson's r of each row with a standardised vector."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray((centred @ standard) / (rows.std(axis=1) * len(standard)))


def compute_mantel_table(
    table: ScoreTable,
    distances: str | tuple[str, ...],
    rng: np.random.Generator,
    n_permutations: int = 19_999,
) -> pd.DataFrame:
    """Test every capability against developer, family and size.

    By both distances where a verdict is wanted, because they disagree: rmsd sees level, 1 - cosine (kinship
    itself) does not. On a single benchmark all cosines are 0 or 1, so there rmsd alone is tested.

    Args:
        table: with facts of its models.
        distances: "rmsd", "cosine", or a tuple of them.
        rng: draws the permutations.
        n_permutations: how many a test.

    Returns:
        One row a test: distance, group, factor, n_models, n_alike, r, effect, p, low, high, detectable, mean_alike
        and mean_unlike (mean distance; NaN for size), p_holm (for all rows together), verdict.

    Paper: RQ1 and RQ4, which the paper answers by eye (Figures 4 and 7).
    """
    normalized, factors = compute_normalized(table), build_factors(table.facts.reindex(table.scores.index))
    distances, rows = (distances,) if isinstance(distances, str) else distances, []
    both = product(distances, group_benchmarks(table).items())
    asked = [(distance, *group) for distance, group in both if distance != "cosine" or len(group[1]) > 1]
    varying = sum(factors[name].stack().nunique() > 1 for name in FACTORS)  # the others are no tests
    for distance, group, names in asked:
        gaps = compute_distance(normalized[names], distance)
        for name in FACTORS:
            test = compute_mantel(gaps, factors[name], rng, n_permutations, max(len(asked) * varying, 1))
            means = _compute_means(gaps, factors[name], name)
            rows.append({"distance": distance, "group": group, "factor": name, **test, **means})
    result = pd.DataFrame(rows)
    result["p_holm"] = adjust_holm(result["p"].to_numpy())
    result["verdict"] = [_judge(row) for row in result.to_dict("records")]
    return result


def _compute_means(gaps: pd.DataFrame, factor: pd.DataFrame, name: str) -> dict[str, float]:
    upper = np.triu_indices(len(gaps), k=1)
    pairs = pd.Series(gaps.to_numpy()[upper]).groupby(factor.to_numpy()[upper]).mean()
    if name == "size difference":
        return {"mean_alike": np.nan, "mean_unlike": np.nan}
    return {"mean_alike": float(pairs.get(0.0, np.nan)), "mean_unlike": float(pairs.get(1.0, np.nan))}


def compute_kin_agreement(
    nearest: pd.DataFrame, labels: pd.Series, rng: np.random.Generator, n_permutations: int = 999
) -> dict[str, float]:
    """Return how often a model and its nearest kin share a label, against chance.

    Args:
        nearest: origin_model -> nearest_kin, as of `karma.kinship.compute_nearest_kin`.
        labels: origin_model -> label, such as its base model; missing where unknown.
        rng: draws permutations of the labels.
        n_permutations: how many.

    Returns:
        n (models whose own and whose kin's label are known), shared and expected (of n), p (one-sided).

    Example:
        >>> near = pd.DataFrame({"nearest_kin": ["b", "a", "d", "c"]}, index=list("abcd"))
        >>> base = pd.Series(["x", "x", "y", "y"], index=list("abcd"))
        >>> result = compute_kin_agreement(near, base, np.random.default_rng(0))
        >>> result["shared"], result["n"]
        (1.0, 4)
    """
    known = labels.dropna()
    codes = pd.Series(pd.factorize(known)[0], index=known.index)
    usable = nearest[nearest.index.isin(known.index) & nearest["nearest_kin"].isin(known.index)]
    place = {model: i for i, model in enumerate(known.index)}
    one, other = usable.index.map(place).to_numpy(), usable["nearest_kin"].map(place).to_numpy()
    values = codes.to_numpy()
    shared = float((values[one] == values[other]).mean()) if len(usable) else np.nan
    shuffled = (rng.permutation(values) for _ in range(n_permutations))
    null = np.array([(labels_[one] == labels_[other]).mean() for labels_ in shuffled]) if len(usable) else np.array([])
    p = float((1 + (null >= shared).sum()) / (1 + n_permutations)) if len(usable) else np.nan
    return {
        "n": len(usable),
        "shared": shared,
        "expected": float(null.mean()) if len(usable) else np.nan,
        "p": p,
    }


def _judge(test: Mapping[str, Any]) -> str:
    """Put one test in words: yes, no, or cannot tell and why."""
    if np.isnan(test["r"]):
        return "cannot tell: the fact is unknown, or the same for all models"
    if test["p_holm"] < ALPHA:
        return "yes" if test["r"] > 0 else "no: the alike are farther apart"
    if test["p"] < ALPHA:
        return f"cannot tell: p = {test['p']:.3f} alone, {test['p_holm']:.2f} among all tests"
    medium = MEDIUM_EFFECT[test["factor"]]
    if -medium <= test["low"] and test["high"] <= medium:
        return f"no effect larger than {medium}"
    return f"cannot tell: only an effect of {test['detectable']:.2f} would show with 80 % power"
