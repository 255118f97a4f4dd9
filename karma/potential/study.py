"""The selection study: what each metric would keep, where they agree, and what training on each selection gave.

Held-out pairs are the same for all selections of a pair set, so two trainings are compared pair by pair: the share of
held-out pairs whose chosen response training moved the policy towards, and its difference from `random` at the same
ratio, method and seed. Decision: intervals are over the held-out pairs and, where several were trained, over the seeds
(`karma.statistics.compute_two_way`). Limit: with one seed the noise of training itself is in none of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from karma.errors import InputError
from karma.files import load_json
from karma.potential.margins import POOLS, RANKED_AS, Candidates, select
from karma.potential.selection import gather_candidates
from karma.statistics import compute_spearman, compute_two_way, compute_wilson
from karma.study.experiment import Experiment
from karma.study.stages import STAGES, Job
from karma.vocabulary import METRICS

N_PERMUTATIONS = 400  # behind an overlap by chance
CELL = ["policy", "strategy", "metric", "ratio", "method"]
RUN_COLUMNS = [*CELL, "seed", "n_pairs", "n_candidates", "same_data_as"]
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


def gather_pools(
    pairs: pa.Table, scores: np.ndarray, annotated: np.ndarray, logps: np.ndarray, lengths: np.ndarray, weight: float,
    form: str,
) -> dict[str, Candidates]:  # fmt: skip
    """Build the pools that a study's metrics choose from, all over the same pairs.

    Args:
        pairs: the set's table. scores, annotated: (n, 2) from `karma.potential.selection.find_scores`, the study's
            explicit source and the annotations. logps, lengths: (n, 2) from `karma.potential.logps.measure_logps`.
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
        metric -> positions (k,), without metrics whose pool has fewer than k candidates.
    """
    return {m: choose(pools, m, seed, k=k) for m in METRICS if pools[find_pool(m)].fit.sum() >= k}


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


def has_study(experiment: Experiment) -> bool:
    """Tell whether an experiment selects pairs at all."""
    return bool(experiment.settings.potential.metrics)


def collect_selections(experiment: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read every training on a selection that is finished.

    Returns:
        One row a training (RUN_COLUMNS), and one row a training and held-out pair (CELL, seed, row_id, margin).
    """
    jobs = (Job(experiment, stage, p) for stage in [STAGES["07_alignment_potential"]]
            for p in stage.jobs(experiment.settings))  # fmt: skip
    found = [run for job in jobs for run in _read_runs(job)]
    runs = pd.DataFrame([row for row, _ in found], columns=RUN_COLUMNS)
    margins = pd.concat([m for _, m in found]) if found else pd.DataFrame(columns=[*CELL, "seed", "row_id", "margin"])
    return runs, margins.reset_index(drop=True)


def _read_runs(job: Job) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    s = job.experiment.settings
    for method in s.potential.methods:
        for seed in s.seeds:
            folder: Path = job.folder / method / f"seed{seed}"
            if not (folder / "held_out.parquet").is_file() or not (folder / "training.json").is_file():
                continue
            record, books = load_json(folder / "training.json"), load_json(job.folder / "accounting.json")
            key = {**job.params, "ratio": float(job.params["ratio"]), "method": method, "seed": seed}
            row = {**key, "n_pairs": record["n_train_pairs"], "n_candidates": books["settings"].get("candidates"),
                   "same_data_as": record["same_data_as"]}  # fmt: skip
            yield row, pq.read_table(folder / "held_out.parquet").to_pandas().assign(**key)


def compare_selections(runs: pd.DataFrame, margins: pd.DataFrame) -> pd.DataFrame:
    """Return each selection's held-out preference accuracy, and its difference from `random` on the same pairs.

    Args:
        runs, margins: from `collect_selections`.

    Returns:
        One row a CELL: COLUMNS; accuracy in [0, 1] with its 95 % interval (Wilson, over n held-out pairs and the
        seeds), the paired difference from `random` with its 95 % interval (t), NaN where there is no `random` to
        compare with.
    """
    rows: list[dict[str, Any]] = []
    for cell, part in margins.groupby(CELL, sort=False):
        key = dict(zip(CELL, cell, strict=True))
        right = compute_outcomes(part)
        same = (runs[CELL] == pd.Series(key)).all(axis=1)
        found = compute_two_way(right.T)
        several = (found["standard_error"], 1, found["df"]) if right.shape[1] > 1 else ()
        low, high = compute_wilson(found["value"], len(right), *several)
        lot = find_outcomes(margins, {**key, "metric": "random"}, part)
        rows.append({**key, "n_pairs": int(runs.loc[same, "n_pairs"].iloc[0]), "n_seeds": int(same.sum()),
                     "accuracy": found["value"], "low": low, "high": high, "n": len(right),
                     **_name(compute_difference(right, lot))})  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def compare_metrics(margins: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Return how two metrics' trainings differ on the same held-out pairs, where both have the same seeds.

    Args:
        margins: from `collect_selections`. first, second: metrics.

    Returns:
        One row a (policy, strategy, ratio, method): held-out accuracy of each, n pairs, and first minus second with its
        95 % interval (t, paired over the pairs).
    """
    rows: list[dict[str, Any]] = []
    for cell, part in margins[margins["metric"] == first].groupby(CELL, sort=False):
        key = dict(zip(CELL, cell, strict=True))
        right, other = compute_outcomes(part), find_outcomes(margins, {**key, "metric": second}, part)
        if other is not None:
            rows.append({**{k: v for k, v in key.items() if k != "metric"}, first: float(right.to_numpy().mean()),
                         second: float(other.to_numpy().mean()), "n": len(right),
                         **_name(compute_difference(right, other))})  # fmt: skip
    return pd.DataFrame(rows)


def compute_outcomes(part: pd.DataFrame) -> pd.DataFrame:
    """Return each held-out pair's outcome by seed (pairs x seeds): 1 right, 0 wrong, 1/2 where nothing moved."""
    right = (part["margin"] > 0) + 0.5 * (part["margin"] == 0)
    return right.groupby([part["row_id"], part["seed"]]).mean().unstack("seed")


def find_outcomes(margins: pd.DataFrame, key: Mapping[str, Any], part: pd.DataFrame) -> pd.DataFrame | None:
    """Return the outcomes of another cell in the same seeds; None for the cell itself, or where seeds are missing."""
    if key["metric"] == part["metric"].iloc[0]:
        return None
    others = margins[(margins[CELL] == pd.Series(key)).all(axis=1) & margins["seed"].isin(part["seed"])]
    return compute_outcomes(others) if set(others["seed"]) == set(part["seed"]) else None


def compute_difference(right: pd.DataFrame, baseline: pd.DataFrame | None) -> dict[str, float]:
    """Return the mean of right minus baseline, paired by held-out pair and seed, as `karma.statistics.compute_two_way`.

    Args:
        right, baseline: pairs x seeds, from `compute_outcomes`; without a baseline everything is NaN.
    """
    if baseline is None:
        return dict.fromkeys(("value", "standard_error", "low", "high", "df"), float("nan"))
    return compute_two_way((right - baseline).dropna().T)


def _name(found: Mapping[str, float]) -> dict[str, float]:
    return {"difference": found["value"], "difference_low": found["low"], "difference_high": found["high"]}
