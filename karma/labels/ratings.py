"""Bradley-Terry ratings: one number a model, such that differences are the log-odds of being preferred.

P(a is preferred to b) = 1 / (1 + exp(rating_b - rating_a)), fitted to the preferences in [0, 1] of all comparisons, a
tie half a win for each; ratings sum to 0. For two models it gives their win rate back. Intervals are from a sandwich
clustered by prompt: comparisons of one prompt are dependent, whichever models they are about.
Decision: no prior, so that a model that wins (or loses) every comparison against the rest has no bounded rating, and
gets none; its win rate is given all the same. Limit: one scale for all prompts; a judge who prefers in circles does not
fit it, and the ratings do not say so.

Source: Bradley and Terry 1952 (doi 10.2307/2334029); when a rating exists: Ford 1957 (doi 10.2307/2308513).
"""

import math

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from karma.labels.length_control import fit_logistic
from karma.statistics.intervals import compute_interval, compute_prompt_share

COLUMNS = ["model", "rating", "low", "high", "win_rate", "win_low", "win_high", "n_comparisons"]


def compute_ratings(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Rate every model.

    Args:
        comparisons: prompt_id, model_a, model_b, preference (for model_a, in [0, 1]; NaN is left out).

    Returns:
        COLUMNS, best first: rating (log-odds, mean 0; NaN where it has no bound), win_rate over all its comparisons.

    Example:
        >>> rows = [(p, "a", "b", won) for p, won in enumerate([1.0, 1.0, 1.0, 0.0])]
        >>> frame = pd.DataFrame(rows, columns=["prompt_id", "model_a", "model_b", "preference"])
        >>> found = compute_ratings(frame).set_index("model")
        >>> round(float(expit(found.loc["a", "rating"] - found.loc["b", "rating"])), 6)
        0.75
    """
    known = comparisons[comparisons["preference"].notna()]
    models = sorted(set(comparisons["model_a"]) | set(comparisons["model_b"]))
    ratings, errors, df = _fit(known, models)
    rows = []
    for place, model in enumerate(models):
        first, second = known[known["model_a"] == model], known[known["model_b"] == model]
        won = pd.concat([first.set_index("prompt_id")["preference"], 1 - second.set_index("prompt_id")["preference"]])
        by_prompt = won.groupby(level=0).agg(["sum", "size"])
        share = compute_prompt_share(by_prompt["sum"], by_prompt["size"])
        rating, error = float(ratings[place]), float(errors[place])
        low, high = compute_interval(rating, error, df) if df > 0 else (math.nan, math.nan)
        rows.append({"model": model, "rating": rating, "low": low, "high": high, "win_rate": share["value"],
                     "win_low": share["low"], "win_high": share["high"], "n_comparisons": len(won)})  # fmt: skip
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.sort_values(["rating", "win_rate", "model"], ascending=[False, False, True], ignore_index=True)


def _fit(known: pd.DataFrame, models: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return ratings, their standard errors and the degrees of freedom; NaN where a maximum does not exist."""
    place = {name: i for i, name in enumerate(models)}
    a, b = known["model_a"].map(place).to_numpy(int), known["model_b"].map(place).to_numpy(int)
    own = known["preference"].to_numpy(float)
    none = np.full(len(models), math.nan)
    if not _is_bounded(a, b, own, len(models)):
        return none, none, 0
    design = np.zeros((len(own), len(models)))
    design[np.arange(len(own)), a] += 1
    design[np.arange(len(own)), b] -= 1
    free, bread = fit_logistic(design[:, :-1], own, constant=False)  # the last model is the 0 of the fit
    centre = np.eye(len(models))[:, :-1] - 1 / len(models)
    prompt, _ = pd.factorize(known["prompt_id"])
    scores = np.zeros((prompt.max() + 1, len(models) - 1))
    np.add.at(scores, prompt, design[:, :-1] * (own - expit(design[:, :-1] @ free))[:, None])
    n = len(scores)
    if n < 2:
        return centre @ free, none, 0
    half = centre @ bread @ scores.T
    return centre @ free, np.sqrt((half**2).sum(axis=1) * n / (n - 1)), n - 1


def _is_bounded(a: np.ndarray, b: np.ndarray, own: np.ndarray, n: int) -> bool:
    """Tell whether from each model a chain of (partial) wins leads to every other: only then is there a maximum."""
    won = np.zeros((n, n))
    np.add.at(won, (a, b), own)
    np.add.at(won, (b, a), 1 - own)
    return bool(connected_components(won > 0, directed=True, connection="strong")[0] == 1)
