"""How good a reward model is: accuracy on held-out pairs, and what of it may be length.

A pair is right where the chosen response has the larger reward (ties count half); its margin is the difference of the
two rewards, in the model's own unit. Longer responses are often preferred, by annotators and by what learns from them
(arXiv 2310.03716), so beside the accuracy stand: how often the longer response has the larger reward, how often it is
the chosen one, Spearman's correlation of the two differences, and the accuracy among pairs of like length.
Decision: length is counted in characters, which no tokenizer changes; of like length are pairs whose longer response
has at most `LIKE` times the other's. Limit: an accuracy among pairs of like length says what is left without length,
not that length is why the rest was right.

Paper: arXiv 2203.02155 for the pairs; the measures of length are ours.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike

from karma.models.rewards import score_responses
from karma.statistics.intervals import compute_spearman, compute_wilson
from karma.training.held_out import summarise_margins

LIKE = 1.2  # times: pairs of like length
LEAST = 4  # pairs that a correlation's interval takes


def measure_rewards(model: Any, tokenizer: Any, pairs: pa.Table, progress: str) -> pa.Table:
    """Return one row a held-out pair: both rewards, both lengths in characters, and the margin.

    Args:
        model: a reward model. tokenizer: its own. pairs: the held-out pairs. progress: what to call the bar.
    """
    prompts = [prompt for prompt in pairs["prompt"].to_pylist() for _ in range(2)]
    sides = zip(pairs["chosen"].to_pylist(), pairs["rejected"].to_pylist(), strict=True)
    responses = [response for both in sides for response in both]
    rewards = score_responses(model, tokenizer, prompts, responses, progress=progress).double().reshape(-1, 2)
    lengths = np.array([count_length(response) for response in responses], int).reshape(-1, 2)
    columns = {f"{side}_{what}": values[:, k].tolist() for k, side in enumerate(("chosen", "rejected"))
               for what, values in (("reward", rewards), ("characters", lengths))}  # fmt: skip
    return pa.table({"row_id": pairs["row_id"], **columns, "margin": (rewards[:, 0] - rewards[:, 1]).tolist()})


def count_length(response: list[dict[str, str]]) -> int:
    """Return a response's characters."""
    return sum(len(message["content"] or "") for message in response)


def summarise_rewards(measured: pa.Table) -> dict[str, Any]:
    """Return accuracy and mean margin as `summarise_margins`, and under `length` what `compare_length` says.

    Args:
        measured: from `measure_rewards`.
    """
    found = summarise_margins(torch.tensor(measured["margin"].to_pylist(), dtype=torch.float64))
    chosen, rejected = (measured[f"{side}_characters"].to_numpy() for side in ("chosen", "rejected"))
    return {**found, "length": compare_length(measured["margin"].to_numpy(), chosen, rejected)}


def compare_length(margins: ArrayLike, chosen: ArrayLike, rejected: ArrayLike) -> dict[str, Any]:
    """Set margins beside lengths, one pair a prompt.

    Args:
        margins: reward of the chosen response less that of the rejected one, (n,). chosen, rejected: their characters.

    Returns:
        longer_preferred (share of pairs of unequal length whose longer response has the larger reward), longer_chosen
        (whose longer response is the chosen one), like_length (accuracy among pairs of like length), each with value,
        low, high, n; correlation (Spearman's, of margin and ln(chosen / rejected)) with value, low, high, n. Values are
        None where there is nothing to count.

    Example:
        >>> found = compare_length([1.0, -1.0, 2.0, 0.5], [90, 10, 101, 50], [10, 90, 100, 50])
        >>> [found[name]["value"] for name in ("longer_preferred", "longer_chosen", "like_length")]
        [1.0, 0.6666666666666666, 1.0]
    """
    margin, first, second = (np.asarray(values, float) for values in (margins, chosen, rejected))
    gap = np.log(np.maximum(first, 1)) - np.log(np.maximum(second, 1))
    right = (np.sign(margin) + 1) / 2
    uneven, like = gap != 0, np.abs(gap) <= math.log(LIKE)
    return {
        "longer_preferred": describe_share(np.where(gap > 0, right, 1 - right)[uneven]),
        "longer_chosen": describe_share((gap > 0)[uneven]),
        "like_length": describe_share(right[like]),
        "correlation": _correlate(margin, gap),
    }


def describe_share(hits: ArrayLike) -> dict[str, Any]:
    """Return a share of independent pairs with its Wilson interval: value, low, high, n; None of none.

    Example:
        >>> describe_share([1, 1, 0.5, 0])["value"], describe_share([])
        (0.625, {'value': None, 'low': None, 'high': None, 'n': 0})
    """
    own = np.asarray(hits, float)
    if not len(own):
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = compute_wilson(float(own.mean()), len(own))
    return {"value": float(own.mean()), "low": low, "high": high, "n": len(own)}


def _correlate(margin: np.ndarray, gap: np.ndarray) -> dict[str, Any]:
    if len(margin) < LEAST or np.ptp(margin) == 0 or np.ptp(gap) == 0:
        return {"value": None, "low": None, "high": None, "n": len(margin)}
    return {**dict(zip(("value", "low", "high"), compute_spearman(margin, gap), strict=True)), "n": len(margin)}


def describe_rewards(held: dict[str, Any]) -> str:
    """Say in one sentence what length has to do with a reward model's preferences.

    Example:
        >>> share, none = {"value": 0.75, "low": 0.5, "high": 0.9, "n": 16}, describe_share([])
        >>> length = {"longer_preferred": share, "longer_chosen": share, "like_length": none}
        >>> print(describe_rewards({"length": length}))
        prefers the longer response in 0.75 [0.50, 0.90] of 16 pairs (its labels: 0.75); no pair of like length
    """
    length = held["length"]
    longer, labels, like = (length[name] for name in ("longer_preferred", "longer_chosen", "like_length"))
    if not longer["n"]:
        return "was asked no pair of unequal length"
    shown = f"[{longer['low']:.2f}, {longer['high']:.2f}]"
    said = (f"prefers the longer response in {longer['value']:.2f} {shown} of {longer['n']} pairs (its labels: "
            f"{labels['value']:.2f})")  # fmt: skip
    if not like["n"]:
        return f"{said}; no pair of like length"
    shown = f"[{like['low']:.2f}, {like['high']:.2f}]"
    return f"{said}; accuracy {like['value']:.2f} {shown} on {like['n']} pairs of like length"
