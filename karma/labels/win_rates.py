"""From verdicts to win rates: both orders put together, consistency, ties, and the length-controlled rate.

A verdict is about one prompt, two models and one order. A prompt counts where both orders were read: the preference for
the first model is the mean of the probability that its response is better, over the two orders, so that a judge's love
for a place cancels. The win rate is the mean preference over prompts (AlpacaEval 2's weighted rate; where a judge says
only a letter, the share of wins plus half of the ties); a prompt is a tie where the preference is within `tie` / 2 of a
half. Consistency is the share of prompts on which both orders name the same winner.
Decision: a prompt with an unread verdict is left out and counted, never halved: one order alone carries the place.
Limit: the models are held fixed, and so is the judge: an interval says what other prompts would give.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.labels.length_control import control_length
from karma.statistics.intervals import compute_prompt_share

ORDERS = ("ab", "ba")  # model_a's response first, or model_b's
VERDICTS = ["prompt_id", "model_a", "model_b", "order", "p_first", "verdict", "reply"]
COLUMNS = ["model_a", "model_b", "n_prompts", "n_judged", "win_rate", "low", "high", "length_controlled", "lc_low",
           "lc_high", "consistency", "n_ties", "n_unread", "judge_calls", "prompt_tokens", "seconds"]  # fmt: skip
UNREAD = "unread"


def check_sides(names: Sequence[str], tie: float) -> None:
    """Raise an InputError where models cannot be set against each other: one alone, a name twice, an impossible tie."""
    if len(names) < 2:
        raise InputError("give two models or more, or files of their responses: `karma win-rate A B --judge M`")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{twice[0]} is given twice: where two models are called '{twice[0]}', rename one")
    if not 0 <= tie < 1:
        raise InputError(f"--tie {tie}: expected 0 or more, below 1")


def name_verdicts(p_first: np.ndarray, tie: float) -> np.ndarray:
    """Say what each probability that the first response is better means.

    Args:
        p_first: (n,), NaN where the judge's reply could not be read.
        tie: a verdict is a tie where the two responses' probabilities differ by no more.

    Example:
        >>> name_verdicts(np.array([0.9, 0.49, 0.505, np.nan]), tie=0.02).tolist()
        ['first', 'tie', 'tie', 'unread']
    """
    gap = np.round(2 * p_first - 1, 12)  # .51 is at .02, not above it by rounding
    return np.select([np.isnan(gap), np.abs(gap) <= tie, gap > 0], [UNREAD, "tie", "first"], "second")


def combine_orders(verdicts: pd.DataFrame, tie: float) -> pd.DataFrame:
    """Put the two orders of each comparison together.

    Args:
        verdicts: columns of VERDICTS, two rows a prompt and pair of models. tie: as in `name_verdicts`.

    Returns:
        One row a prompt and pair: prompt_id, model_a, model_b, preference (for model_a, NaN where an order is unread),
        is_tie, is_consistent, n_unread.

    Example:
        >>> rows = [("p", "x", "y", "ab", 1.0, "first", ""), ("p", "x", "y", "ba", 1.0, "first", "")]
        >>> row = combine_orders(pd.DataFrame(rows, columns=VERDICTS), tie=0.02).iloc[0]
        >>> float(row["preference"]), bool(row["is_tie"]), bool(row["is_consistent"])  # the first place won twice
        (0.5, True, False)
    """
    keys = ["prompt_id", "model_a", "model_b"]
    forward, backward = (verdicts[verdicts["order"] == order].set_index(keys) for order in ORDERS)
    backward = backward.reindex(forward.index)
    preference = (forward["p_first"] + 1 - backward["p_first"]) / 2
    turned = backward["verdict"].map({"first": "second", "second": "first", "tie": "tie"})
    read = preference.notna()
    return pd.DataFrame({
        "preference": preference,
        "is_tie": read & (name_verdicts(preference.to_numpy(float), tie) == "tie"),
        "is_consistent": read & (forward["verdict"] == turned),
        "n_unread": (forward["verdict"] == UNREAD).astype(int) + (backward["verdict"] == UNREAD).astype(int),
    }).reset_index()  # fmt: skip


def compute_win_rates(
    comparisons: pd.DataFrame,
    lengths: Mapping[str, Mapping[str, int]],
    costs: Mapping[tuple[str, str], Mapping[str, float | None]],
) -> pd.DataFrame:
    """Measure every pair of models.

    Args:
        comparisons: from `combine_orders`. lengths: model -> prompt_id -> characters of its response.
        costs: (model_a, model_b) -> calls, prompt_tokens (None: the server does not say), seconds.

    Returns:
        COLUMNS, one row a pair of models; NaN where no prompt was judged.
    """
    rows = []
    for (a, b), part in comparisons.groupby(["model_a", "model_b"], sort=False):
        judged = part[part["preference"].notna()]
        plain = compute_prompt_share(judged["preference"])
        gaps = [lengths[a][prompt] - lengths[b][prompt] for prompt in judged["prompt_id"]]
        controlled = control_length(judged["preference"], gaps, compute_difficulty(comparisons, a, b, judged))
        cost = costs[a, b]
        rows.append({
            "model_a": a, "model_b": b, "n_prompts": len(part), "n_judged": len(judged), "win_rate": plain["value"],
            "low": plain["low"], "high": plain["high"], "length_controlled": controlled["value"],
            "lc_low": controlled["low"], "lc_high": controlled["high"],
            "consistency": judged["is_consistent"].mean() if len(judged) else np.nan,
            "n_ties": int(judged["is_tie"].sum()), "n_unread": int(part["n_unread"].sum()),
            "judge_calls": cost["calls"], "prompt_tokens": cost["prompt_tokens"], "seconds": cost["seconds"],
        })  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def compute_difficulty(comparisons: pd.DataFrame, a: str, b: str, judged: pd.DataFrame) -> np.ndarray | None:
    """Return how much better `a` does than `b` on each prompt, in the eyes of the comparisons with other models.

    That is a's mean preference against the others less b's; where all are compared with one baseline, how easily the
    baseline is beaten on the prompt, AlpacaEval 2's instruction difficulty.

    Args:
        comparisons: from `combine_orders`, of all pairs. judged: the rows of `a` against `b`.

    Returns:
        (rows,), NaN where no other comparison knows the prompt; None where there is no other model.

    Example:
        >>> rows = [("p", "a", "b", 1.0), ("p", "a", "c", 0.8), ("p", "b", "c", 0.3)]
        >>> frame = pd.DataFrame(rows, columns=["prompt_id", "model_a", "model_b", "preference"])
        >>> compute_difficulty(frame, "a", "b", frame.head(1)).tolist()
        [0.5]
    """
    others = comparisons[~(comparisons["model_a"].isin([a, b]) & comparisons["model_b"].isin([a, b]))]
    sides = {}
    for name in (a, b):
        first = others[others["model_a"] == name].set_index("prompt_id")["preference"]
        second = 1 - others[others["model_b"] == name].set_index("prompt_id")["preference"]
        both = pd.concat([first, second])
        sides[name] = both.groupby(level=0).mean().reindex(judged["prompt_id"]).to_numpy(float)
    known = {name: values for name, values in sides.items() if np.isfinite(values).any()}
    if not known:
        return None
    return np.asarray(known.get(a, 0.0) - known.get(b, 0.0), float)
