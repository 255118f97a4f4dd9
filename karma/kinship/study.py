"""The kinship folder of a score table: every table and figure of stage 2, from one call.

`build_study` and `save_study` are what `karma kinship` and notebook 02 run. Up to 500 models all pairs are kept
(`kinship.csv`, square); above, only each model's nearest kin (`nearest_kin.csv`) and cluster (`clusters.csv`), since a
square of 10,000 models fills a gigabyte. Tables of more than 40 models, of which a notebook shows the first, can be
searched (`models.html`). Limit: uncertainty needs the number of items behind each score; where it is unknown those
parts are None.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from karma.files.writing import atomic_path, save_json
from karma.kinship.clusters import (
    DISTANCES,
    LargeTree,
    Pca,
    compute_clusters,
    compute_large_tree,
    compute_pca,
    compute_trees,
    describe_large_tree,
)
from karma.kinship.lineage import Lineage, compare_fathers, describe_lineage, trace_lineage
from karma.kinship.mantel import compute_kin_agreement, compute_mantel_table
from karma.kinship.measures import describe_traps, find_traps
from karma.kinship.sensitivity import compute_sensitivity, sweep_tau
from karma.kinship.similarity import MAX_SQUARE, compute_choices, compute_kinship, compute_nearest_kin, list_pairs
from karma.kinship.uncertainty import (
    compute_choice_uncertainty,
    compute_pair_uncertainty,
    compute_s_pref_intervals,
    draw_tables,
    limit_draws,
)
from karma.scores.normalise import compute_below_chance, compute_normalized, compute_s_pref
from karma.scores.read import save_score_table
from karma.scores.table import ScoreTable, set_kinship
from karma.strategies import build_sets
from karma.study.searchable import write_searchable
from karma.vocabulary import KINSHIP_STRATEGIES

MAX_LISTED = 20
MAX_SHOWN = 40  # models in a notebook's table; more can be searched
SET_SIZE = 4  # UltraFeedback's number of responses a prompt


@dataclass(frozen=True, eq=False)
class KinshipStudy:
    """What stage 2 found.

    Attributes:
        table, tau, cut: what went in.
        normalized: n models x m benchmarks, in [0, 1].
        s_pref: n models; columns s_pref and, where n_items is known, low and high (95 %).
        nearest: origin_model -> nearest_kin, kinship.
        pca: principal components of `normalized`.
        agreement: how often nearest kin share a base model, a family, a developer, against chance; a model
            evaluated anew, in another precision, is not its own kin.
        kinship, pairs, choices, trees, mantel, sensitivity, taus, traps: None above 500 models.
        clusters: n models, a column a tree. large: tree and branches above 500 models, else None.
        choice_uncertainty: None where n_items is unknown, or above 500 models.
        lineage, fathers, sons: who declares whom, and whether fathers are nearer to their sons than strangers
            (`karma.kinship.lineage`); None where no model declares a father in the table.
        n_sets: sets of four models that `sensitivity` and `choice_uncertainty` look at.
        n_draws: bootstrap draws asked for: fewer than wanted above 100 models, to bound memory.
        n_discarded: bootstrap draws left out because min-max was undefined.
    """

    table: ScoreTable
    tau: float
    cut: float
    normalized: pd.DataFrame
    s_pref: pd.DataFrame
    nearest: pd.DataFrame
    pca: Pca
    agreement: pd.DataFrame
    kinship: pd.DataFrame | None = None
    pairs: pd.DataFrame | None = None
    choices: dict[str, tuple[str, str] | None] | None = None
    trees: dict[str, tuple[pd.DataFrame, np.ndarray]] | None = None
    clusters: pd.DataFrame | None = None
    large: LargeTree | None = None
    mantel: pd.DataFrame | None = None
    sensitivity: pd.DataFrame | None = None
    taus: pd.DataFrame | None = None
    choice_uncertainty: pd.DataFrame | None = None
    traps: pd.DataFrame | None = None
    lineage: Lineage | None = None
    fathers: pd.DataFrame | None = None
    sons: pd.DataFrame | None = None
    n_sets: int = 0
    n_draws: int = 0
    n_discarded: int = 0


def build_study(
    table: ScoreTable,
    *,
    tau: float,
    distance: str,
    linkage: str,
    cut: float,
    measure: str | None = None,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    n_draws: int = 2000,
    tell: Callable[[str], None] = lambda said: None,
) -> KinshipStudy:
    """Compute stage 2.

    Args:
        table: origin models x benchmarks.
        tau: lowest kinship of an eligible pair, in [-1, 1].
        distance: of the dendrograms: rmsd or cosine.
        linkage: average, complete, single or ward.
        cut: distance below which branches are one cluster.
        measure, weights: of kinship (`karma.scores.table.set_kinship`); None: the table's own.
        seed: of bootstrap and permutations.
        n_draws: bootstrap draws.
        tell: is told what is done next, of what takes long.

    Raises:
        InputError: a setting out of range.
    """
    table = set_kinship(table, measure, weights)
    rng = np.random.default_rng(seed)
    tell(f"nearest kin of {len(table.scores):,} models")
    normalized = compute_normalized(table)
    nearest = compute_nearest_kin(table)
    s_pref = compute_s_pref(table).to_frame()
    agreement = _compute_agreement(table, nearest, rng)
    study = KinshipStudy(table, tau, cut, normalized, s_pref, nearest, compute_pca(normalized), agreement)
    study = _add_lineage(study, np.random.default_rng(seed))  # a generator of its own: no other draw moves
    if len(table.scores) > MAX_SQUARE:
        tell(f"dendrograms of {len(table.scores):,} models")
        large = compute_large_tree(table, distance, linkage, cut, seed)
        return replace(study, large=large, clusters=large.clusters)
    tell("dendrograms, Mantel's tests and other choices of the same rules")
    kinship, trees = compute_kinship(table), compute_trees(table, distance, linkage)
    sets = build_sets(len(table.scores), SET_SIZE, rng)
    study = replace(
        study, kinship=kinship, trees=trees, choices=compute_choices(table, tau), n_sets=len(sets),
        clusters=pd.DataFrame({g: compute_clusters(z, cut, d.index) for g, (d, z) in trees.items()}),
        mantel=compute_mantel_table(table, DISTANCES, rng), taus=sweep_tau(kinship),
        sensitivity=compute_sensitivity(table, sets, tau), pairs=list_pairs(table, tau),
        traps=find_traps(table),
    )  # fmt: skip
    if table.n_items is not None:
        n_draws = limit_draws(len(table.scores), n_draws)
        tell(f"bootstrap of {n_draws:,} tables, for the intervals")
        draws = draw_tables(table, rng, n_draws)
        study = replace(
            study, s_pref=compute_s_pref_intervals(table, draws), n_draws=n_draws, n_discarded=draws.n_discarded,
            pairs=compute_pair_uncertainty(table, draws, tau),
            choice_uncertainty=compute_choice_uncertainty(table, draws, sets, tau),
        )  # fmt: skip
    return study


def _add_lineage(study: KinshipStudy, rng: np.random.Generator) -> KinshipStudy:
    lineage = trace_lineage(study.table)
    if lineage.sons.empty:
        return study
    fathers, sons = compare_fathers(study.table, lineage, rng)
    return replace(study, lineage=lineage, fathers=fathers, sons=sons)


def _compute_agreement(table: ScoreTable, nearest: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return how often nearest kin share a base model, a family and a developer."""
    facts = table.facts.reindex(table.scores.index)
    names = facts["repository"] if "repository" in facts else facts.index.to_series()
    others = nearest[names.to_numpy() != names[nearest["nearest_kin"]].to_numpy()]  # not itself, evaluated anew
    labels = ("base_model", "family", "developer")
    agreement = {label: compute_kin_agreement(others, facts[label], rng) for label in labels}
    return pd.DataFrame(agreement).T.rename_axis("label")


def save_study(study: KinshipStudy, folder: str | Path) -> None:
    """Write the tables of a study; the names are those other stages read."""
    folder = Path(folder)
    save_score_table(study.table, folder / "scores.csv")
    tables = {
        "scores_normalized.csv": study.normalized, "s_pref.csv": study.s_pref[["s_pref"]],
        "s_pref_intervals.csv": study.s_pref if "low" in study.s_pref else None, "nearest_kin.csv":
        study.nearest, "kin_agreement.csv": study.agreement, "pca.csv": study.pca.positions, "kinship.csv":
        study.kinship, "pairs.csv": study.pairs, "clusters.csv": study.clusters, "mantel.csv": study.mantel,
        "sensitivity.csv": study.sensitivity, "tau.csv": study.taus, "choices.csv": study.choice_uncertainty,
        "lineage.csv": study.fathers, "sons.csv": study.sons, "traps.csv": study.traps,
        "branches.csv": None if study.large is None else study.large.branches,
    }  # fmt: skip
    for name, frame in tables.items():
        if frame is None:
            (folder / name).unlink(missing_ok=True)  # of an earlier run with fewer models
            continue
        with atomic_path(folder / name) as temporary:
            frame.to_csv(temporary, index=not isinstance(frame.index, pd.RangeIndex))
    save_json(describe_study(study), folder / "strategies.json")
    if len(study.s_pref) > MAX_SHOWN:
        write_searchable(list_models(study), folder / "models.html", f"{len(study.s_pref):,} origin models")
    else:
        (folder / "models.html").unlink(missing_ok=True)


def list_models(study: KinshipStudy) -> pd.DataFrame:
    """Return a row a model, the highest S_pref first: S_pref, nearest kin, cluster, known facts, scores in percent."""
    facts = study.table.facts.reindex(study.s_pref.index)
    known = [name for name in ("base_model", "size_b") if facts[name].notna().any()]
    clusters = study.clusters if study.clusters is not None else pd.DataFrame(index=study.s_pref.index)
    clusters = clusters[[name for name in ("total", "branch") if name in clusters]].rename(columns={"total": "cluster"})
    front = study.s_pref[["s_pref"]].join(study.nearest).round(3)
    rows = front.join(clusters).join(facts[known]).join(study.table.scores.mul(100).round(1))
    return rows.sort_values("s_pref", ascending=False, kind="stable").rename_axis("origin_model")


def describe_study(study: KinshipStudy) -> dict[str, Any]:
    """Return what strategies.json holds: settings, each strategy's pick, and what to be wary of."""
    below = compute_below_chance(study.table).stack()
    zero = study.normalized.index[~study.normalized.any(axis=1)].tolist()
    picks = None
    if study.pairs is not None and study.choices is not None:
        pairs = study.pairs.set_index(["chosen", "rejected"])
        picks = {s: _describe_pick(pairs, study.choices[s]) for s in KINSHIP_STRATEGIES}
    n_pairs = len(study.s_pref) * (len(study.s_pref) - 1) // 2
    eligible = None if study.pairs is None else int(study.pairs["eligible"].sum())
    return {
        "source": study.table.source,
        "n_origin_models": len(study.s_pref),
        "tau": study.tau,
        "measure": study.table.measure,
        "weights": dict(study.table.weights),
        "n_pairs": n_pairs,
        "n_eligible_pairs": eligible,
        "strategies": picks,
        "n_items": study.table.n_items,
        "n_items_source": study.table.n_items_source,
        "n_draws": study.n_draws,
        "n_draws_discarded": study.n_discarded,
        "notes": list(study.table.notes),
        "last_everywhere": zero,
        "below_chance": [{"origin_model": m, "benchmark": b} for m, b in below.index[below]],
    }


def summarize(study: KinshipStudy) -> list[str]:
    """Say in a few lines what was found and what to be wary of."""
    facts = describe_study(study)
    lines = [f"note: {note}" for note in facts["notes"]]
    below = facts["below_chance"]
    if len(below) > MAX_LISTED:
        lines.append(f"warning: {len(below)} cells are at or below chance; strategies.json lists them")
        below = []
    lines += [f"warning: {c['origin_model']} is at or below chance on {c['benchmark']}" for c in below]
    for model in facts["last_everywhere"]:
        lines.append(f"warning: {model} is last on every benchmark: kinship 0 to all others")
    if facts["n_eligible_pairs"] is not None:
        n_kin, n_pairs = facts["n_eligible_pairs"], facts["n_pairs"]
        lines.append(f"{n_kin} of {n_pairs} pairs have a kinship of at least {study.tau:g}")
    for strategy, pick in (facts["strategies"] or {}).items():
        text = f"{pick['chosen']} > {pick['rejected']} (kinship {pick['kinship']:.4f})" if pick else "no pair"
        lines.append(f"{strategy}: {text}")
    if study.pairs is not None and "coin_flip" in study.pairs:
        lines.append(
            f"{int(study.pairs['coin_flip'].sum())} of {len(study.pairs)} preferences flip in 10 % of redraws or more"
        )
    lines += [] if study.traps is None else describe_traps(study.traps)
    lines += [] if study.large is None else describe_large_tree(study.large, study.cut)
    for label, row in study.agreement.dropna().iterrows():
        lines.append(f"nearest kin share a {label} in {row['shared']:.1%} of {row['n']:,.0f} models "
                     f"(by chance {row['expected']:.1%}, p = {row['p']:.3f})")  # fmt: skip
    if study.lineage is not None and study.fathers is not None:
        lines += describe_lineage(study.fathers, study.lineage)
    return lines


def _describe_pick(pairs: pd.DataFrame, pick: tuple[str, str] | None) -> dict[str, Any] | None:
    if pick is None:
        return None
    row = pairs.loc[pick]
    values = {"kinship": row["kinship"], "s_pref_gap": row["gap"], "p_flip": row.get("p_flip")}
    numbers = {k: None if v is None else float(v) for k, v in values.items()}
    return {"chosen": pick[0], "rejected": pick[1], **numbers}
