"""Who agrees with people: the labels by S_pref, the longer response, another judge such as GPT-4, another person.

Each vote of a person that is no tie is a case. A judge that decides the comparison agrees with it or not; so does
another person, as the share of the comparison's other votes that are the same (MT-Bench's agreement of two judges,
drawn at random, on a question drawn at random). People's agreement with each other and GPT-4's with them are what a
label could reach. Decision: beside each judge's own comparisons stand those that all judges decide, since a judge may
be asked the easy ones only. Limit: votes of one comparison count as one prompt's; who voted is not kept.

Source: the measure is section 4.2's of MT-Bench (arXiv 2306.05685, setup without ties).
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.labels.comparisons import Comparisons
from karma.labels.judgments import Judgments
from karma.statistics.intervals import compute_comparison_share

COLUMNS = ["judge", "on", "n_comparisons", "n_votes", "agreement", "low", "high"]
LABELS, LONGER, OTHER, ANOTHER = "S_pref", "the longer response", "the other judge", "another person"
OWN, SHARED = "all that it decides", "what all decide"


def measure_agreement(comparisons: Comparisons, beside: Judgments | None = None, tie: float = 0.02) -> pd.DataFrame:
    """Return how often each judge agrees with a person's vote.

    Args:
        comparisons: of votes on pairs. beside: another judge's judgments of the same responses.
        tie: values of the other judge this close are equal.

    Returns:
        COLUMNS, for each judge on its own comparisons and on those of all; agreement is a share of votes with a 95 %
        interval clustered by prompt and by model. Judges that decide nothing are left out; no row for values.

    Raises:
        InputError: the other judge knows none of these comparisons.

    Example:
        >>> from karma.labels.comparisons import build_comparisons
        >>> from karma.labels.judgments import build_votes
        >>> votes = [("p", "p", "a", "b", vote) for vote in (1.0, 1.0, -1.0, 0.0)]
        >>> rows = pd.DataFrame(votes, columns=["prompt", "group", "first", "second", "vote"])
        >>> kin = pd.DataFrame([[1.0, 0.5], [0.5, 1.0]], index=["a", "b"], columns=["a", "b"])
        >>> both = build_comparisons(build_votes(rows, "x", "own"), pd.Series({"a": 1.0, "b": 0.0}), kin)
        >>> measure_agreement(both)[["judge", "n_votes", "agreement"]].round(2).values.tolist()[:2]
        [['S_pref', 3, 0.67], ['another person', 3, 0.33]]
    """
    votes = comparisons.judgments.votes
    if votes is None:
        return pd.DataFrame(columns=COLUMNS)
    cases = _orient(comparisons, votes)
    agreed = {name: own for name, own in _ask_judges(comparisons, cases, beside, tie) if np.isfinite(own).any()}
    shared = np.logical_and.reduce([np.isfinite(own) for own in agreed.values()])
    rows = [{"judge": name, "on": on, **_measure(comparisons, cases, own, np.isfinite(own) & among)}
            for on, among in ((OWN, np.ones(len(cases), bool)), (SHARED, shared)) for name, own in agreed.items()
            if among.any()]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def _orient(comparisons: Comparisons, votes: pd.DataFrame) -> pd.DataFrame:
    """Return the compared pairs that have a vote: prompt, pair, votes for and against the pair's `chosen` model."""
    pair = comparisons.pair_of[votes["first"], votes["second"]]
    same = comparisons.pairs["chosen"].to_numpy()[pair] == votes["first"].to_numpy()
    ups, downs = votes["n_first"].to_numpy(), votes["n_second"].to_numpy()
    cases = pd.DataFrame({"prompt": votes["prompt"], "pair": pair, "up": np.where(same, ups, downs),
                          "down": np.where(same, downs, ups)})  # fmt: skip
    return cases[cases["up"] + cases["down"] > 0].reset_index(drop=True)


def _ask_judges(
    comparisons: Comparisons, cases: pd.DataFrame, beside: Judgments | None, tie: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each judge with the votes of each case that it agrees with, NaN where it does not decide."""
    up, down = (cases[side].to_numpy(float) for side in ("up", "down"))
    sides = [comparisons.pairs[side].to_numpy()[cases["pair"]] for side in ("chosen", "rejected")]

    def side_with(margin: np.ndarray) -> np.ndarray:
        return np.select([margin > 0, margin < 0], [up, down], np.nan)

    yield LABELS, side_with(comparisons.pairs["gap"].to_numpy()[cases["pair"]])
    lengths = [comparisons.judgments.lengths[cases["prompt"], side] for side in sides]
    yield LONGER, side_with(lengths[0] - lengths[1])
    if beside is not None:
        margin = _look_up(comparisons, cases, beside)
        yield OTHER, side_with(np.where(np.abs(margin) > tie, margin, np.nan))
    others = up + down - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        yield ANOTHER, np.where(others > 0, (up * (up - 1) + down * (down - 1)) / others, np.nan)


def _look_up(comparisons: Comparisons, cases: pd.DataFrame, beside: Judgments) -> np.ndarray:
    """Return what another judge thinks of the chosen model's response less what it thinks of the other's."""
    own = comparisons.judgments
    prompt, model = (pd.Series(range(len(names)), names) for names in (beside.prompts, beside.models))
    at = prompt.reindex([own.prompts[i] for i in cases["prompt"]]).to_numpy()
    sides = [model.reindex([own.models[i] for i in comparisons.pairs[side].to_numpy()[cases["pair"]]]).to_numpy()
             for side in ("chosen", "rejected")]  # fmt: skip
    known = np.isfinite([at, *sides]).all(axis=0)
    margin, places = np.full(len(cases), np.nan), [part[known].astype(int) for part in (at, *sides)]
    if beside.values is not None:
        margin[known] = beside.values[places[0], places[1]] - beside.values[places[0], places[2]]
    elif beside.votes is not None:
        gaps = beside.votes.set_index(["prompt", "first", "second"])["gap"]
        keys = [pd.MultiIndex.from_arrays([places[0], *order]) for order in (places[1:], places[:0:-1])]
        margin[known] = gaps.reindex(keys[0]).fillna(-gaps.reindex(keys[1]).set_axis(keys[0])).to_numpy()
    if not np.isfinite(margin).any():
        raise InputError(f"{beside.source} judges none of the comparisons of {own.source}: prompts and models must be "
                         "named alike in both")  # fmt: skip
    return margin


def _measure(comparisons: Comparisons, cases: pd.DataFrame, agreed: np.ndarray, mask: np.ndarray) -> dict[str, object]:
    """Return a judge's agreement on some cases, each vote counted once."""
    some, hits = cases[mask], agreed[mask]
    units, cluster = (some["up"] + some["down"]).to_numpy(float), comparisons.judgments.cluster[some["prompt"]]
    sides = [comparisons.pairs[side].to_numpy()[some["pair"]] for side in ("chosen", "rejected")]
    n_models = len(comparisons.s_pref)
    found = compute_comparison_share(
        *(np.bincount(cluster, counts) for counts in (hits, units)),
        *(sum(np.bincount(side, counts, n_models) for side in sides) for counts in (hits, units)),
    )
    return {"n_comparisons": len(some), "n_votes": int(units.sum()), "agreement": found["value"], "low": found["low"],
            "high": found["high"]}  # fmt: skip
