"""Label accuracy over all pairs of models: how often the model of higher S_pref wrote the response judged better.

A comparison is a prompt with an unordered pair of models that both have a judged response to it. S_pref labels it
(Eq. 3); it is *decided* where the judged values differ by more than `tie` and the S_pref differ, and right where the
judged one agrees: label accuracy = right / decided. The rest (judged ties, equal S_pref) is counted beside.
Everything about a label hangs on the pair of models, so that a slice (by gap of S_pref, by kinship, by p_flip) is a set
of pairs. Decision: intervals are clustered by prompt and by model (`compute_comparison_share`).
Limit: S_pref and kinship are held fixed, as facts of these models; with others min and max would move.

Paper: ours; Eq. 2 and 3 in section 2.4 make the labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.kinship.similarity import rank_pairs
from karma.labels.judgments import Judgments
from karma.statistics.intervals import compute_comparison_share

S_PREF_CUTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
KINSHIP_CUTS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
FLIP_CUTS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
KIN = 0.95  # least kinship of the slice s_pref_gap_in_kin
COLUMNS = ["slice", "low_edge", "high_edge", "n_model_pairs", "n_comparisons", "n_decided", "label_accuracy", "low",
           "high"]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Comparisons:
    """All comparisons of a source, by prompt and pair of models.

    Attributes:
        judgments: of the models that have scores, and no others.
        s_pref: (models,), in [0, 1]. kinship: models x models, cosine.
        pairs: a row a pair: chosen, rejected (positions; chosen has the higher S_pref, or the first name), gap (of
            S_pref), kinship, and p_flip where the scores' sampling error is known.
        margin: prompts x pairs, judged value of chosen less that of rejected; NaN where not both are judged.
        confidence: models x models, probability that a label survives the scores' sampling error; None: unknown.
    """

    judgments: Judgments
    s_pref: np.ndarray
    kinship: np.ndarray
    pairs: pd.DataFrame
    margin: np.ndarray
    confidence: np.ndarray | None = None

    @cached_property
    def pair_of(self) -> np.ndarray:
        """Return the row of `pairs` of every two models: models x models, -1 on the diagonal."""
        found = np.full((len(self.s_pref), len(self.s_pref)), -1)
        one, other = self.pairs["chosen"].to_numpy(), self.pairs["rejected"].to_numpy()
        found[one, other] = found[other, one] = np.arange(len(self.pairs))
        return found

    @cached_property
    def has_preference(self) -> np.ndarray:
        """Tell which pairs differ in S_pref."""
        return np.asarray(self.pairs["gap"].to_numpy() > 0)

    def find_right(self, tie: float) -> np.ndarray:
        """Tell which comparisons are decided and right, prompts x pairs."""
        return np.asarray((self.margin > tie) & self.has_preference)

    def find_decided(self, tie: float) -> np.ndarray:
        """Tell which comparisons are decided, prompts x pairs."""
        return np.asarray((np.abs(self.margin) > tie) & self.has_preference)


def build_comparisons(judgments: Judgments, s_pref: pd.Series, kinship: pd.DataFrame) -> Comparisons:
    """Put the judged values of all pairs beside their labels.

    Args:
        judgments: of at least two models. s_pref: model -> S_pref, of each of them. kinship: models x models, likewise.

    Raises:
        InputError: no prompt has two judged responses.

    Example:
        >>> from karma.labels.judgments import build_values
        >>> rows = pd.DataFrame([("p", "a", 0.2), ("p", "b", 0.9)], columns=["prompt", "model", "value"])
        >>> kin = pd.DataFrame([[1.0, 0.5], [0.5, 1.0]], index=["a", "b"], columns=["a", "b"])
        >>> both = build_comparisons(build_values(rows, "x", "own", "share"), pd.Series({"a": 1.0, "b": 0.0}), kin)
        >>> both.margin.round(2).tolist(), both.find_right(0.02).tolist()
        ([[-0.7]], [[False]])
    """
    names = judgments.models
    place = {name: i for i, name in enumerate(names)}
    ranked = rank_pairs(s_pref[names], kinship.loc[names, names])
    pairs = ranked.assign(**{side: ranked[side].map(place) for side in ("chosen", "rejected")})
    pairs["gap"] = pairs["gap"].round(12)  # of two rounded numbers: .3 - .2 belongs to the bin that begins at .1
    chosen, rejected = pairs["chosen"].to_numpy(), pairs["rejected"].to_numpy()
    if judgments.values is not None:
        margin = judgments.values[:, chosen] - judgments.values[:, rejected]
    else:
        margin = np.full((len(judgments.prompts), len(pairs)), np.nan)
        row = np.full((len(names), len(names)), -1)
        row[chosen, rejected] = row[rejected, chosen] = np.arange(len(pairs))
        votes = judgments.votes
        assert votes is not None
        at = row[votes["first"], votes["second"]]
        turned = chosen[at] != votes["first"].to_numpy()
        margin[votes["prompt"], at] = np.where(turned, -1, 1) * votes["gap"].to_numpy()
    if not np.isfinite(margin).any():
        raise InputError(f"{judgments.source}: no prompt has judged responses of two of the models with scores")
    return Comparisons(
        judgments, s_pref[names].to_numpy(float), kinship.loc[names, names].to_numpy(float), pairs, margin
    )


def measure_pairs(comparisons: Comparisons, mask: np.ndarray, tie: float) -> dict[str, float | int]:
    """Return the counts and the accuracy, with its interval, of a set of model pairs.

    Args:
        comparisons: all. mask: (pairs,), which pairs. tie: judged values this close are equal.

    Returns:
        n_model_pairs (with a comparison), n_comparisons, n_decided, label_accuracy, low, high (NaN: nothing decided).
    """
    margin = comparisons.margin[:, mask]
    judged = np.isfinite(margin)
    right, decided = comparisons.find_right(tie)[:, mask], comparisons.find_decided(tie)[:, mask]
    pairs, n_models = comparisons.pairs[mask], len(comparisons.s_pref)
    by_model = [
        sum(np.bincount(pairs[side], counts.sum(axis=0), n_models) for side in ("chosen", "rejected"))
        for counts in (right, decided)
    ]
    found = compute_comparison_share(
        *(sum_clusters(comparisons, counts.sum(axis=1)) for counts in (right, decided)), *by_model
    )
    return {"n_model_pairs": int(judged.any(axis=0).sum()), "n_comparisons": int(judged.sum()),
            "n_decided": int(decided.sum()), "label_accuracy": found["value"], "low": found["low"],
            "high": found["high"]}  # fmt: skip


def sum_clusters(comparisons: Comparisons, by_prompt: np.ndarray) -> np.ndarray:
    """Add up what belongs to one cluster of prompts."""
    return np.bincount(comparisons.judgments.cluster, by_prompt)


def slice_pairs(comparisons: Comparisons) -> Iterator[tuple[str, float, float, np.ndarray]]:
    """Yield (slice, low edge, high edge, pairs in it): all, then bins [low, high), the last of each kind closed."""
    pairs = comparisons.pairs
    everything = np.ones(len(pairs), bool)
    yield "all", np.nan, np.nan, everything
    is_kin = pairs["kinship"].to_numpy() >= KIN
    kinds: list[tuple[str, str, tuple[float, ...], np.ndarray]] = [
        ("s_pref_gap", "gap", S_PREF_CUTS, everything), ("kinship", "kinship", KINSHIP_CUTS, everything),
        ("s_pref_gap_in_kin", "gap", S_PREF_CUTS, is_kin),
    ]  # fmt: skip
    if "p_flip" in pairs:
        kinds.append(("p_flip", "p_flip", FLIP_CUTS, everything))
    for name, column, cuts, among in kinds:
        for low, high, inside in cut_pairs(pairs[column].to_numpy(), cuts):
            yield name, low, high, inside & among


def cut_pairs(values: np.ndarray, cuts: tuple[float, ...]) -> Iterator[tuple[float, float, np.ndarray]]:
    """Yield each bin [low, high), the last one closed, with who is in it.

    Example:
        >>> [inside.tolist() for _, _, inside in cut_pairs(np.array([0.5, 1.0, 0.2]), (0.0, 0.5, 1.0))]
        [[False, False, True], [True, True, False]]
    """
    for low, high in pairwise(cuts):
        yield low, high, (values >= low) & ((values < high) | ((values == high) & (high == cuts[-1])))


def measure_slices(comparisons: Comparisons, tie: float) -> pd.DataFrame:
    """Return label_accuracy.csv: COLUMNS, empty bins included."""
    rows = [{"slice": name, "low_edge": low, "high_edge": high, **measure_pairs(comparisons, mask, tie)}
            for name, low, high, mask in slice_pairs(comparisons)]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def measure_surface(comparisons: Comparisons, tie: float) -> pd.DataFrame:
    """Return the accuracy over gap of S_pref and kinship at once: the four edges of a cell, then its counts."""
    rows = []
    for low, high, by_gap in cut_pairs(comparisons.pairs["gap"].to_numpy(), S_PREF_CUTS):
        for least, most, by_kin in cut_pairs(comparisons.pairs["kinship"].to_numpy(), KINSHIP_CUTS):
            edges = {"gap_low": low, "gap_high": high, "kinship_low": least, "kinship_high": most}
            rows.append({**edges, **measure_pairs(comparisons, by_gap & by_kin, tie)})
    return pd.DataFrame(rows)


def measure_models(comparisons: Comparisons, tie: float) -> pd.DataFrame:
    """Return who is mislabelled: for each model, how often labels of its comparisons are wrong, and which way.

    Returns:
        model, s_pref, judged (mean value; of votes, the mean share won), n_comparisons, n_decided, label_accuracy, low,
        high (clustered by prompt and by opponent), overrated and underrated (shares of its decided comparisons in
        which the label called its response the better or the worse one, wrongly). Most mislabelled first.
    """
    right, decided = comparisons.find_right(tie), comparisons.find_decided(tie)
    rows = []
    for place, name in enumerate(comparisons.judgments.models):
        chosen = comparisons.pairs["chosen"].to_numpy() == place
        mask = chosen | (comparisons.pairs["rejected"].to_numpy() == place)
        found = compute_comparison_share(
            sum_clusters(comparisons, right[:, mask].sum(axis=1)),
            sum_clusters(comparisons, decided[:, mask].sum(axis=1)),
            right[:, mask].sum(axis=0), decided[:, mask].sum(axis=0),
        )  # fmt: skip
        n, wrong = int(decided[:, mask].sum()), decided & ~right
        over, under = int(wrong[:, chosen].sum()), int(wrong[:, mask & ~chosen].sum())
        rows.append({
            "model": name, "s_pref": comparisons.s_pref[place],
            "judged": _compute_judged(comparisons, mask, chosen, place),
            "n_comparisons": int(np.isfinite(comparisons.margin[:, mask]).sum()), "n_decided": n,
            "label_accuracy": found["value"], "low": found["low"], "high": found["high"],
            "overrated": over / n if n else np.nan, "underrated": under / n if n else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values(["label_accuracy", "model"], ignore_index=True)


def _compute_judged(comparisons: Comparisons, mask: np.ndarray, chosen: np.ndarray, place: int) -> float:
    if comparisons.judgments.values is not None:
        return float(np.nanmean(comparisons.judgments.values[:, place]))
    won = (1 + np.where(chosen[mask], 1, -1) * comparisons.margin[:, mask]) / 2
    return float(np.nanmean(won))
