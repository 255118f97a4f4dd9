"""The length-controlled win rate: what a win rate would be if the two models' responses were equally long.

A logistic regression of one model's preference on each prompt, in [0, 1], on a constant (which of the two models is
better), the length difference tanh(d / sd(d)) in characters, and the prompt's difficulty, where it is known: how much
better the model does on this prompt against others, in units of its standard deviation. The length-controlled win rate
is the mean over prompts of what the regression expects at a length difference of 0. Swapping the models mirrors it;
where all lengths are equal it is the win rate itself, since a regression with a constant keeps the mean.
Decision: AlpacaEval 2 chooses the strength of an L1 penalty by cross-validation and pulls each fit to judgments of its
own baseline's long and short twins; neither exists for two models of one's own, so length and difficulty get a fixed
weak prior instead (normal, 2.5 in log-odds), the constant none. The interval is linearised, a prompt the unit.
Limit: where one model is longer on every prompt, length and model cannot be told apart, and the prior decides. How near
it comes to the leaderboard's own values is measured on recorded judgments without the baseline's answers only
(tests/test_win_rates.py): for eight models 2.5 points off on average, where the sample's plain rates are 1.9 off.

Source: Dubois et al. 2024 (arXiv 2404.04475); the prior: Gelman et al. 2008 (doi 10.1214/08-AOAS191), as a normal.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from karma.statistics.intervals import compute_prompt_share, compute_wilson

PRIOR_SD = 2.5  # of the coefficients of length and difficulty, in log-odds


def control_length(
    preference: ArrayLike, length_difference: ArrayLike, difficulty: ArrayLike | None = None
) -> dict[str, float]:
    """Return the win rate at equal lengths.

    Args:
        preference: (n,), of the first model over the second on each prompt, in [0, 1].
        length_difference: (n,), characters of the first model's response less those of the second's.
        difficulty: (n,), of each prompt, any unit; None: unknown. NaN counts as the mean.

    Returns:
        value, low, high in [0, 1], and length_effect: log-odds that a difference of tanh = 1 adds. All NaN without a
        prompt, and where one non-zero length difference is that of every prompt, which nothing can separate from the
        models.

    Example:
        >>> found = control_length([1.0, 0.0, 1.0, 0.0], [0, 0, 0, 0])
        >>> round(found["value"], 6), found["length_effect"]
        (0.5, 0.0)
        >>> longer_wins = control_length([0.9, 0.9, 0.8, 0.4], [500, 400, 300, -100])
        >>> longer_wins["value"] < 0.75
        True
    """
    own = np.asarray(preference, float)
    if not len(own):
        return dict.fromkeys(("value", "low", "high", "length_effect"), math.nan)
    length = _scale_length(np.asarray(length_difference, float))
    if np.isnan(length).any():
        return dict.fromkeys(("value", "low", "high", "length_effect"), math.nan)
    if own.min() == own.max():  # nothing to explain; log-odds may have no bound
        return compute_prompt_share(own) | {"length_effect": 0.0}
    columns = [np.ones(len(own)), length] + ([] if difficulty is None else [_standardise(difficulty)])
    design = np.column_stack(columns)
    coefficients, bread = fit_logistic(design, own, PRIOR_SD)
    equal = design.copy()
    equal[:, 1] = 0.0
    expected = expit(equal @ coefficients)
    value, n = float(expected.mean()), len(own)
    slope = (equal * (expected * (1 - expected))[:, None]).mean(axis=0)
    scores = design * (own - expit(design @ coefficients))[:, None]
    influence = (expected - value) / n + scores @ bread @ slope
    error = math.sqrt(float((influence**2).sum()) * n / (n - 1))
    low, high = compute_wilson(min(max(value, 0.0), 1.0), n, error, df=n - 1)
    return {"value": value, "low": low, "high": high, "length_effect": float(coefficients[1])}


def fit_logistic(
    design: np.ndarray, share: np.ndarray, prior_sd: float = math.inf, constant: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a logistic regression of shares in [0, 1].

    Args:
        design: (n, k). share: (n,). prior_sd: of the coefficients but the constant's; infinite: none.
        constant: whether the first column is the constant, which has no prior.

    Returns:
        The coefficients (k,), and the inverse of the penalised information (k, k).
    """
    from sklearn.linear_model import LogisticRegression

    twice = np.concatenate([design, design])  # a share is a win of its weight and a loss of the rest
    won = np.repeat([1, 0], len(share))
    model = LogisticRegression(C=prior_sd**2, fit_intercept=constant, tol=1e-8, max_iter=1000)
    model.fit(twice[:, int(constant) :], won, np.concatenate([share, 1 - share]))
    coefficients = np.concatenate([model.intercept_, model.coef_[0]]) if constant else model.coef_[0]
    penalty = np.full(design.shape[1], prior_sd**-2)
    penalty[: int(constant)] = 0.0
    for _ in range(2):  # Newton's last steps, so that a constant keeps the mean to the last digit
        bread, expected = _invert_information(design, coefficients, penalty), expit(design @ coefficients)
        coefficients = coefficients + bread @ (design.T @ (share - expected) - penalty * coefficients)
    return coefficients, _invert_information(design, coefficients, penalty)


def _invert_information(design: np.ndarray, coefficients: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    expected = expit(design @ coefficients)
    return np.asarray(np.linalg.inv(design.T @ (design * (expected * (1 - expected))[:, None]) + np.diag(penalty)))


def _scale_length(difference: np.ndarray) -> np.ndarray:
    """Return tanh(d / sd(d)), as AlpacaEval 2; NaN where all differ from 0 by the same."""
    if not difference.any():
        return np.zeros(len(difference))
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    return np.tanh(difference / spread) if spread else np.full(len(difference), math.nan)


def _standardise(difficulty: ArrayLike) -> np.ndarray:
    values = np.asarray(difficulty, float)
    known = values[np.isfinite(values)]
    spread = float(known.std()) if len(known) else 0.0
    scaled = (values - known.mean()) / spread if spread else np.zeros(len(values))
    return np.asarray(np.nan_to_num(scaled, nan=0.0))
