"""The selection study: what each metric would keep, where they agree, and what training on each selection gave.

Held-out pairs are the same for all selections of a pair set, so two trainings are compared pair by pair: the share of
held-out pairs whose chosen response training moved the policy towards, and its difference from `random` at the same
ratio, method and seed; where a study asks them, items of benchmarks in the same way (`karma.potential.outcomes`).
Decision: intervals are over the held-out pairs, or items, and, where several were trained, over the seeds
(`compute_two_way`). Limit: with one seed the noise of training itself is in none of them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from karma.errors import InputError
from karma.potential.margins import DECIMALS, POOLS, RANKED_AS, Candidates, compute_z, select
from karma.potential.objectives import Objectives, combine_margins, compute_fronts
from karma.potential.outcomes import (
    CELL,
    compute_difference,
    compute_outcomes,
    compute_share,
    find_outcomes,
    find_untrained,
    split_benchmarks,
)
from karma.potential.selection import gather_candidates
from karma.statistics.intervals import compute_mean, compute_spearman
from karma.study.fields import is_anew
from karma.study.sections import Potential
from karma.study.training_settings import Refilter, Training
from karma.vocabulary import METRICS

N_PERMUTATIONS = 400  # behind an overlap by chance
COLUMNS = [
    *CELL,
    "n_pairs",
    "n_seeds",
    "accuracy",
    "low",
    "high",
    "n",
    "difference",
    "difference_low",
    "difference_high",
]
CHANGES = ["change", "change_low", "change_high"]  # from the untrained policy; of benchmarks only


def gather_pools(
    pairs: pa.Table, scores: np.ndarray | Objectives, annotated: np.ndarray, logps: np.ndarray, lengths: np.ndarray,
    weight: float, form: str,
) -> dict[str, Candidates]:  # fmt: skip
    """Build the pools that a study's metrics choose from, all over the same pairs.

    Args:
        pairs: the set's table. scores: the study's explicit sources. annotated: (n, 2) from
            `karma.potential.selection.find_scores`, the annotations.
        logps, lengths: (n, 2) from `karma.potential.logps.measure_logps`.
        weight: w of the potential. form: of the implicit margin.

    Returns:
        "plain" for most metrics; "signed" for m_ap_signed; "annotated" for m_ap_annotated (no candidates if none is).
    """
    return {
        "plain": gather_candidates(pairs, scores, logps, lengths, weight=weight, form=form),
        "signed": gather_candidates(pairs, scores, logps, lengths, weight=weight, signed=True),
        "annotated": gather_candidates(pairs, annotated, logps, lengths, weight=weight, form=form),
    }


def find_pool(metric: str) -> str:
    """Return the name of the pool that a metric chooses from.

    Example:
        >>> [find_pool(metric) for metric in ("random", "m_ap", "m_ap_signed", "m_ap_annotated")]
        ['plain', 'plain', 'signed', 'annotated']
    """
    return POOLS.get(metric, "plain")


def choose(pools: Mapping[str, Candidates], metric: str, seed: int, **size: Any) -> np.ndarray:
    """Select by a metric of METRICS from its own pool.

    Args:
        pools: from `gather_pools`. metric: a key of METRICS. seed: of `random`. **size: ratio or k.

    Returns:
        Positions, ascending, as `karma.potential.select`.

    Raises:
        InputError: no pair has what the metric reads, or an impossible size.
    """
    name = find_pool(metric)
    if not pools[name].fit.any():
        raise InputError(
            f"{metric}: of {len(pools[name].reasons)} pairs none is a candidate ({dict(pools[name].counts)})"
        )
    return select(pools[name], RANKED_AS.get(metric, metric), seed=seed, **size)


def choose_by_each(pools: Mapping[str, Candidates], k: int, seed: int) -> dict[str, np.ndarray]:
    """Return what every metric would keep.

    Args:
        pools: from `gather_pools`. k: pairs kept. seed: of `random`.

    Returns:
        metric -> positions (k,), without metrics whose pool has fewer than k candidates, and without those that choose
        anew before every epoch: they begin as the metric they repeat.
    """
    kept = [m for m in METRICS if not is_anew(m) and pools[find_pool(m)].fit.sum() >= k]
    return {m: choose(pools, m, seed, k=k) for m in kept}


def find_trained(candidates: Candidates, metric: str, places: np.ndarray) -> np.ndarray:
    """Return the pairs that a training is given: the selection; all candidates where it ranks them anew itself.

    Args:
        candidates: the metric's pool. metric: a key of METRICS. places: what it keeps, or keeps first.
    """
    return np.flatnonzero(candidates.fit) if is_anew(metric) else places


def plan_training(training: Training, metric: str, ratio: float, potential: Potential) -> Training:
    """Return a training's settings for the pairs of a metric: ranked anew before every epoch, or not at all.

    Args:
        training, potential: the experiment's. metric: a key of METRICS. ratio: share kept.

    Example:
        >>> from karma.study.experiment import load_base
        >>> base = load_base()
        >>> plan_training(base.training, "m_ap_anew", 0.4, base.potential).refilter.metric
        'm_ap'
    """
    how = {"metric": RANKED_AS.get(metric), "ratio": ratio, "every": "epoch", "weight": potential.weight,
           "implicit": potential.implicit}  # fmt: skip
    return training.model_copy(update={"refilter": Refilter.model_validate(how) if is_anew(metric) else None})


def compute_overlap(choices: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return the share of one metric's pairs that another keeps too (square, all metrics keep equally many).

    Example:
        >>> compute_overlap({"a": np.array([0, 1]), "b": np.array([1, 2])}).to_numpy().tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    sets = {name: set(places.tolist()) for name, places in choices.items()}
    shares = {a: {b: len(sets[a] & sets[b]) / max(len(sets[a]), 1) for b in sets} for a in sets}
    return pd.DataFrame(shares).T.loc[list(sets), list(sets)]


def count_contradictions(signed: Candidates) -> pd.DataFrame:
    """Count candidates by what the label says and what the policy already prefers.

    Args:
        signed: candidates with signed margins.

    Returns:
        Rows: the policy finds the chosen response likelier a token, the rejected one, or neither; columns: the label's
        score says chosen, rejected, or neither; counts of pairs.
    """
    names = {1: "chosen", -1: "rejected", 0: "neither"}
    sides = [pd.Series(np.sign(m[signed.fit])).map(names) for m in (signed.implicit, signed.explicit)]
    order = list(names.values())
    counts = pd.crosstab(*sides).reindex(index=order, columns=order, fill_value=0)
    return counts.rename_axis(index="policy finds likelier", columns="scores say better")


def compare_potentials(first: Candidates, second: Candidates, ratio: float) -> dict[str, Any]:
    """Compare two potentials of the same pairs, e.g. over kinship margins and over a judge's.

    Args:
        first, second: candidates of the same table. ratio: share kept of the pairs that both can rank.

    Returns:
        n pairs both rank, Spearman's correlation with its 95 % interval (Fisher's z with Bonett and Wright's error;
        None below 5 pairs or without spread), the overlap of what they keep, and the overlap by chance: where the
        second one's explicit margins are dealt out anew among the pairs, since both may share the implicit ones.
    """
    both = first.fit & second.fit
    n, k = int(both.sum()), int(np.floor(ratio * both.sum() + 1e-9))
    empty = {"n": n, "correlation": None, "low": None, "high": None, "overlap": None, "overlap_by_chance": None}
    if n < 5 or not k:
        return empty
    pools = [_restrict(c, both) for c in (first, second)]
    values = [c.potential for c in pools]
    kept = [set(select(c, "m_ap", k=k).tolist()) for c in pools]
    found = {
        **empty,
        "overlap": len(kept[0] & kept[1]) / k,
        "overlap_by_chance": _permute_explicit(pools[0], pools[1], k),
    }
    if min(np.ptp(v) for v in values) == 0:
        return found
    return {**found, **dict(zip(("correlation", "low", "high"), compute_spearman(*values), strict=True))}


def _permute_explicit(first: Candidates, second: Candidates, k: int) -> float:
    """Return the mean overlap of what both keep when the second's explicit margins are permuted."""
    rng, kept = np.random.default_rng(0), set(select(first, "m_ap", k=k).tolist())
    found = []
    for _ in range(N_PERMUTATIONS):
        lot = replace(second, explicit=rng.permutation(second.explicit))
        found.append(len(kept & set(select(lot, "m_ap", k=k).tolist())) / k)
    return float(np.mean(found))


def _restrict(pool: Candidates, mask: np.ndarray) -> Candidates:
    ids = [i for i, kept in zip(pool.row_ids, mask, strict=True) if kept]
    return Candidates(ids, pool.explicit[mask], pool.implicit[mask], pool.weight, pool.reasons[mask])


def compare_objectives(pool: Candidates, weights: Mapping[str, float], k: int, seed: int) -> pd.DataFrame:
    """Return what each way to weigh several sources gives up of the others: the mean margin of what it would keep.

    Args:
        pool: candidates with several objectives. weights: source -> weight. k: pairs kept. seed: of draws.

    Returns:
        One row a selection (by M_AP over each source alone, over the weighted sum, by Pareto rank, and at random) and
        source: selection, source, value (the mean margin of what is kept, in standard deviations above the candidates'
        mean), low, high (95 %, over the pairs kept), margin (the same mean in the source's own unit), and on_front (no
        other selection has a larger mean for one source and a smaller one for none).
    """
    fit = pool.fit
    names = [name for name in weights if name in pool.objectives]
    raw = np.stack([pool.objectives[name] for name in names], 1)
    z = np.full(raw.shape, np.nan)
    z[fit] = np.stack([compute_z(raw[fit, s], f"margin of {name}") for s, name in enumerate(names)], 1)
    z = z.round(DECIMALS)
    kept: dict[str, np.ndarray] = {}
    for name, own, combine in _list_ways(names, weights):
        explicit = np.full(len(raw), np.nan)
        explicit[fit] = combine_margins(raw[fit][:, [names.index(s) for s in own]], list(own.values()), combine)
        ranked = replace(pool, explicit=explicit, by_draw=combine == "pareto")
        kept[name] = select(ranked, "m_ap", k=k, seed=seed)
    kept["random"] = select(pool, "random", k=k, seed=seed)
    means = {name: [compute_mean(z[places, s]) for s in range(len(names))] for name, places in kept.items()}
    first = compute_fronts(np.round([[one["value"] for one in row] for row in means.values()], DECIMALS)) == 1
    return pd.DataFrame([
        {"selection": name, "source": source, **{key: means[name][s][key] for key in ("value", "low", "high")},
         "margin": float(raw[kept[name], s].mean()), "on_front": bool(on_front)}
        for (name, on_front) in zip(kept, first, strict=True) for s, source in enumerate(names)])  # fmt: skip


def _list_ways(names: list[str], weights: Mapping[str, float]) -> list[tuple[str, dict[str, float], str]]:
    """Return (name, weights, how to combine) of every selection that is compared."""
    alone = [(f"{name} alone", {name: 1.0}, "weights") for name in names]
    return [*alone, *((how, dict(weights), how) for how in ("weights", "pareto"))] if len(names) > 1 else alone


def compare_selections(
    runs: pd.DataFrame, outcomes: pd.DataFrame, untrained: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return how right each selection's policy is, and its difference from `random` on the same pairs or items.

    Args:
        runs: from `karma.potential.outcomes.collect_selections`. outcomes: from there, of the held-out pairs, or from
            `collect_answers`, of the benchmarks. untrained: from `collect_answers`.

    Returns:
        One row a CELL (a benchmark and CELL): COLUMNS; accuracy in [0, 1] with its 95 % interval (Wilson, over n pairs
        or items and the seeds), the paired difference from `random` with its 95 % interval (t), NaN where there is no
        `random` to compare with. Of benchmarks, the change from the untrained policy besides (CHANGES).
    """
    rows: list[dict[str, Any]] = []
    for asked, whole in split_benchmarks(outcomes):
        for cell, part in whole.groupby(CELL, sort=False):
            key = dict(zip(CELL, cell, strict=True))
            right = compute_outcomes(part)
            kept = runs.loc[(runs[CELL] == pd.Series(key)).all(axis=1), "n_pairs"]
            lot = find_outcomes(whole, {**key, "metric": "random"}, part)
            start = find_untrained(untrained, part) if untrained is not None else None
            rows.append({**asked, **key, "n_pairs": kept.max(), "n_seeds": right.shape[1], **compute_share(right),
                         **_name("difference", compute_difference(right, lot)),
                         **_name("change", compute_difference(right, start))})  # fmt: skip
    columns = ["benchmark", *COLUMNS, *CHANGES] if "benchmark" in outcomes else COLUMNS
    return pd.DataFrame(rows, columns=columns)


def compare_metrics(outcomes: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return how two metrics' trainings differ on the same held-out pairs, where both have the same seeds.

    Args:
        outcomes: from `karma.potential.outcomes.collect_selections`. first, second: metrics.

    Returns:
        One row a (policy, strategy, ratio, method): held-out accuracy of each, n pairs, and first minus second with its
        95 % interval (t, paired over the pairs).
    """
    rows: list[dict[str, Any]] = []
    for cell, part in outcomes[outcomes["metric"] == first].groupby(CELL, sort=False):
        key = dict(zip(CELL, cell, strict=True))
        right, other = compute_outcomes(part), find_outcomes(outcomes, {**key, "metric": second}, part)
        if other is not None:
            rows.append({**{k: v for k, v in key.items() if k != "metric"}, first: float(right.to_numpy().mean()),
                         second: float(other.to_numpy().mean()), "n": len(right),
                         **_name("difference", compute_difference(right, other))})  # fmt: skip
    return pd.DataFrame(rows)


def _name(what: str, found: Mapping[str, float]) -> dict[str, float]:
    return {what: found["value"], f"{what}_low": found["low"], f"{what}_high": found["high"]}
