"""Best of n: of n answers to a prompt the one with the largest reward is given; what is that worth by the truth?

With m >= n answers of a prompt at hand, their rewards r and truths t, the expected truth of the best of n drawn without
replacement is exact, without drawing: sorted by falling reward, the k-th (from 0) is the best of the draw with
probability C(m - 1 - k, n - 1) / C(m, n). Answers of equal reward share their mean truth. Best of 1 is the mean; with
the truths themselves for rewards it is what a perfect reward would reach. Prompts are the units of the intervals, and a
gain over n = 1 is paired.
Limit: the truth is what programs check; a reward may be right in what they do not see.

Paper: best-of-n as in arXiv 2203.02155 and 2210.10760; the estimator is that of arXiv 2107.03374 (pass@k), weighted.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from karma.statistics.intervals import compute_mean

COLUMNS = ["n", "n_prompts", "truth", "low", "high", "gain", "gain_low", "gain_high", "perfect"]


def expect_best(rewards: ArrayLike, truths: ArrayLike, n: int) -> float:
    """Return the expected truth of the answer with the largest reward among n of a prompt's answers.

    Args:
        rewards, truths: (m,), of the answers. n: how many are drawn, at most m.

    Example:
        >>> [round(expect_best([3.0, 1.0, 2.0], [0.0, 0.6, 0.9], n), 6) for n in (1, 3)]  # the mean; of reward 3
        [0.5, 0.0]
        >>> round(expect_best([3.0, 1.0, 2.0], [0.0, 0.6, 0.9], 2), 6)  # two of three draws hold reward 3, one 2 and 1
        0.3
    """
    reward, truth = np.asarray(rewards, float), np.asarray(truths, float)
    order = np.argsort(-reward, kind="stable")
    values, groups = truth[order], np.unique(-reward[order], return_inverse=True)[1]
    values = (np.bincount(groups, values) / np.bincount(groups))[groups]
    m = len(values)
    weights = [math.comb(m - 1 - k, n - 1) / math.comb(m, n) for k in range(m)]
    return float(np.dot(weights, values))


def compute_best_of_n(answers: Sequence[tuple[ArrayLike, ArrayLike]]) -> pd.DataFrame:
    """Return the truth of the best of n by reward, for each n that two prompts have answers for.

    Args:
        answers: of each prompt rewards and truths (m,), m its answers.

    Returns:
        COLUMNS: n, prompts with so many answers, mean truth with its 95 % interval over prompts, the gain over n = 1 on
        the same prompts with its own, and what the best by the truth itself would reach. Truths are shares in [0, 1].

    Example:
        >>> found = compute_best_of_n([([1.0, 2.0], [0.0, 1.0]), ([2.0, 1.0], [1.0, 0.5])])
        >>> found[["n", "truth", "gain", "perfect"]].values.tolist()
        [[1.0, 0.625, 0.0, 0.625], [2.0, 1.0, 0.375, 1.0]]
    """
    rows: list[dict[str, Any]] = []
    for n in range(1, max((len(np.asarray(truths)) for _, truths in answers), default=0) + 1):
        own = [(rewards, truths) for rewards, truths in answers if len(np.asarray(truths)) >= n]
        if len(own) < 2:
            break
        best = np.array([expect_best(rewards, truths, n) for rewards, truths in own])
        one = np.array([expect_best(rewards, truths, 1) for rewards, truths in own])
        level, gain = compute_mean(best), compute_mean(best - one)
        perfect = float(np.mean([expect_best(truths, truths, n) for _, truths in own]))
        rows.append({"n": n, "n_prompts": len(own), "truth": level["value"], "low": level["low"], "high": level["high"],
                     "gain": gain["value"], "gain_low": gain["low"], "gain_high": gain["high"],
                     "perfect": perfect})  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)
