"""Kinship by origin, as models declare it, and the title's question: are sons nearer to their fathers than strangers?

A declared base model, or merge parent, makes father and son; both must stand in the table. For each son its father's
place is told among the strangers: the share of them that is less akin to the son (half for equals), so that .5 is what
a stranger would get, whatever the scale of the measure. Two kinds of strangers, because sons have their fathers' size
and size shows in scores: all, and those of like size (within a fifth). The test permutes fathers, not sons: the many
sons of one father are one observation; among strangers of like size, fathers of like size change places. Kinship by
origin is 2^-d for d declared steps between two models (father and son 1/2, brothers 1/4, nothing declared 0).
Decision: what is declared is believed. Limit: a base model that is not in the table makes brothers, not fathers; the
leaderboard names no parents of its merges, so that these are counted and left out.

Paper: the title; the test is ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from karma.kinship.similarity import compute_profiles
from karma.scores.table import MEASURES, ScoreTable, set_kinship
from karma.statistics.intervals import compute_mean

LIKE_SIZE = 1.2
MAX_STEPS = 4
MAX_SONS = 1000  # asked for their strangers, drawn at random where there are more
KINDS = ("sons of a father in the table", "sons of a father who is not in the table",
         "merges whose parents are not declared", "their own base", "nothing declared")  # fmt: skip
_TOLD = dict(zip(KINDS[:2], ("with a base model in the table", "whose base model is not in the table"), strict=True))
STRANGERS = ("all strangers", "strangers of like size")
_MERGE = " (Merge)"  # what the Open LLM Leaderboard writes after a merge's own name, in place of its parents


@dataclass(frozen=True, eq=False)
class Lineage:
    """Who declares whom.

    Attributes:
        sons: one row a son and father in the table: son, father (row names), family (the father's repository), merged.
        repository, declared: of each row of the table: its repository, and the base models it declares.
        counts: rows of the table by what they declare.
    """

    sons: pd.DataFrame
    repository: pd.Series
    declared: dict[str, list[str]]
    counts: dict[str, int]


def trace_lineage(table: ScoreTable) -> Lineage:
    """Read fathers off the facts of a table: `base_model` (several: separated by , or ;), `merged`.

    Of several rows of one repository (precisions), the father is that which is named as the son is, else the first.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> trace_lineage(load_score_table("paper")).counts["sons of a father who is not in the table"]
        10
    """
    facts = table.facts.reindex(table.scores.index)
    names = table.scores.index.to_series().astype(str)
    repository = facts["repository"].fillna(names) if "repository" in facts else names
    rows: dict[str, list[str]] = {}
    for name, own in repository.items():
        rows.setdefault(own, []).append(str(name))
    declared, sons = {}, []
    counts = dict.fromkeys(KINDS, 0)
    for name, base, merged in zip(names, facts["base_model"], facts["merged"], strict=True):
        own = repository[name]
        parents = split_names(base)
        is_merge = str(merged).casefold() == "true" or any(parent.endswith(_MERGE) for parent in parents)
        declared[name] = [parent for parent in parents if parent != own and not parent.endswith(_MERGE)]
        found = [parent for parent in declared[name] if parent in rows]
        rest = name.removeprefix(own)
        for parent in found:
            father = next((row for row in rows[parent] if row.removeprefix(parent) == rest), rows[parent][0])
            sons.append((name, father, parent, is_merge))
        kind = 0 if found else 1 if declared[name] else 2 if is_merge else 3 if parents else 4
        counts[KINDS[kind]] += 1
    return Lineage(pd.DataFrame(sons, columns=["son", "father", "family", "merged"]), repository, declared, counts)


def compare_fathers(
    table: ScoreTable, lineage: Lineage, rng: np.random.Generator, n_permutations: int = 999
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test whether fathers are nearer to their sons than strangers are, by every measure of kinship.

    Args:
        table: n models. lineage: theirs. rng: of the permutations. n_permutations: of fathers.

    Returns:
        lineage.csv: measure, strangers, n_sons, n_fathers, nearer (mean share of strangers less akin than the father,
        in [0, 1]), low, high (95 %, clustered by father), expected (mean over permutations), p (one-sided). And one
        row a son: son, father, and a column a measure with its share among all strangers, then of like size.
    """
    sons = lineage.sons
    if len(sons) > MAX_SONS:
        sons = sons.iloc[np.sort(rng.choice(len(sons), MAX_SONS, replace=False))]
    place = pd.Series(np.arange(len(table.scores)), index=table.scores.index.astype(str))
    family, names = pd.factorize(sons["father"])
    size, measures = _list_sizes(table), (table.measure, *(name for name in MEASURES if name != table.measure))
    groups = (np.zeros(len(names), int), _group_sizes(size[place[names].to_numpy()]))
    rows, shares = [], sons[["son", "father"]].reset_index(drop=True)
    places = _place_fathers(table, measures, lineage, place[sons["son"]].to_numpy(), place[names].to_numpy(), size)
    for (measure, strangers), shown in places.items():
        own = shown[np.arange(len(sons)), family]
        test = _test_places(shown, own, family, groups[STRANGERS.index(strangers)], rng, n_permutations)
        rows.append({"measure": measure, "strangers": strangers, **test})
        shares[f"{measure}, {strangers}"] = own
    return pd.DataFrame(rows), shares


def _list_sizes(table: ScoreTable) -> np.ndarray:
    facts = table.facts.reindex(table.scores.index)
    return np.asarray(pd.to_numeric(facts["size_b"], errors="coerce"), float)


def _group_sizes(size: np.ndarray) -> np.ndarray:
    """Return a number for each size, the same for like ones; unknown sizes are a group of their own."""
    steps = np.round(np.log(np.where(size > 0, size, 1)) / np.log(LIKE_SIZE**2))
    return np.asarray(np.where(np.isfinite(size), steps, -999), int)


def _place_fathers(
    table: ScoreTable, measures: Sequence[str], lineage: Lineage, sons: np.ndarray, fathers: np.ndarray,
    size: np.ndarray,
) -> dict[tuple[str, str], np.ndarray]:  # fmt: skip
    """Return, for each measure and kind of strangers, sons x fathers: the share of strangers less akin to the son.

    Strangers of a son: every model but its own repository's, its fathers', and those that declare a base it declares.
    """
    profiles = {name: compute_profiles(set_kinship(table, name)) for name in measures}
    repository, everyone = lineage.repository.to_numpy(), np.arange(len(table.scores))
    bases = [lineage.declared[str(name)] for name in table.scores.index]
    brothers: dict[str, list[int]] = {}
    for row, named in enumerate(bases):
        for base in named:
            brothers.setdefault(base, []).append(row)
    rows_of = pd.Series(everyone).groupby(repository).indices
    shape = (len(sons), len(fathers))
    places = {(name, strangers): np.full(shape, np.nan) for name in measures for strangers in STRANGERS}
    for k, son in enumerate(sons):
        related = [rows_of[repository[son]], *(rows_of.get(base, ()) for base in bases[son]),
                   *(brothers[base] for base in bases[son])]  # fmt: skip
        is_stranger = np.ones(len(everyone), bool)
        is_stranger[np.concatenate([np.asarray(rows, int) for rows in related])] = False
        is_like = is_stranger & (size <= size[son] * LIKE_SIZE) & (size >= size[son] / LIKE_SIZE)
        for name, own in profiles.items():
            kin = own.compare(np.array([son]), everyone)[0]
            for strangers, mask in zip(STRANGERS, (is_stranger, is_like), strict=True):
                if mask.any():
                    places[name, strangers][k] = _share_below(kin[mask], kin[fathers])
    return places


def _share_below(strangers: np.ndarray, values: np.ndarray) -> np.ndarray:
    ordered = np.sort(strangers)
    below, upto = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return np.asarray((below + upto) / (2 * len(ordered)))


def _test_places(
    places: np.ndarray, own: np.ndarray, family: np.ndarray, groups: np.ndarray, rng: np.random.Generator, n: int
) -> dict[str, float]:
    """Return the mean place of the own father, with its interval, against fathers permuted within their group."""
    usable = np.isfinite(own)
    counts = {"n_sons": int(usable.sum()), "n_fathers": len(set(family[usable]))}
    if counts["n_fathers"] < 2:
        return {**counts, **dict.fromkeys(("nearer", "low", "high", "expected", "p"), np.nan)}
    sums, sizes = (np.bincount(family[usable], w) for w in (own[usable], None))
    found = compute_mean(sums[sizes > 0], sizes[sizes > 0])
    null, alike = np.empty(n), [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for draw in range(n):
        other = np.arange(places.shape[1])
        for inside in alike:
            other[inside] = rng.permutation(inside)
        null[draw] = places[usable, other[family[usable]]].mean()
    p = (1 + (null >= found["value"] - 1e-12).sum()) / (1 + n)
    return {**counts, "nearer": found["value"], "low": max(found["low"], 0.0), "high": min(found["high"], 1.0),
            "expected": float(null.mean()), "p": float(p)}  # fmt: skip


def compute_origin_kinship(lineage: Lineage, models: Sequence[str] | None = None) -> pd.DataFrame:
    """Return kinship by origin of every two rows: 2^-d for d declared steps, 1 for one repository, 0 beyond MAX_STEPS.

    Base models that are not in the table count as steps between their sons, and so do rows that are not asked about.

    Args:
        lineage: of a table. models: some of its rows; None: all.

    Example:
        >>> names = pd.Series({"a": "a", "b": "b", "c": "c", "d": "d"})
        >>> declared = {"a": [], "b": ["a"], "c": ["a"], "d": ["elsewhere"]}
        >>> compute_origin_kinship(Lineage(pd.DataFrame(), names, declared, {})).loc["b"].tolist()
        [0.5, 1.0, 0.25, 0.0]
    """
    near: dict[str, set[str]] = {}
    for name, parents in lineage.declared.items():
        for parent in parents:
            near.setdefault(lineage.repository[name], set()).add(parent)
            near.setdefault(parent, set()).add(lineage.repository[name])
    asked = lineage.repository if models is None else lineage.repository.loc[list(models)]
    rows = asked.groupby(asked, sort=False).groups
    square = pd.DataFrame(0.0, index=asked.index, columns=asked.index)
    for start, own in rows.items():
        steps, edge = {start: 0}, [start]
        for step in range(1, MAX_STEPS + 1):
            edge = [other for one in edge for other in near.get(one, ()) if other not in steps]
            steps |= dict.fromkeys(edge, step)
        for other, step in steps.items():
            if other in rows:
                square.loc[own, rows[other]] = 2.0**-step
    return square


def compute_data_kinship(table: ScoreTable, models: Sequence[str] | None = None) -> pd.DataFrame | None:
    """Return the share of declared tuning data that two models have in common; None where fewer than two declare any.

    Args:
        table: its facts name the data sets of a model in `tuning_data`, several with , or ;. models: some of its rows.

    Returns:
        Square, |shared| / |all| in [0, 1]; NaN where one of the two declares none, which is not the same as none.

    Example:
        >>> from dataclasses import replace
        >>> from karma.scores.read import load_score_table
        >>> table = load_score_table("paper")
        >>> facts = table.facts.assign(tuning_data=["x; y", "y", "z"] + [None] * 13)
        >>> found = compute_data_kinship(replace(table, facts=facts), table.scores.index[:4])
        >>> found.iloc[0].tolist()
        [1.0, 0.5, 0.0, nan]
    """
    names = table.scores.index if models is None else pd.Index(models)
    declared = [frozenset(split_names(value)) for value in table.facts["tuning_data"].reindex(names)]
    if sum(map(bool, declared)) < 2:
        return None
    shares = [[len(a & b) / len(a | b) if a and b else np.nan for b in declared] for a in declared]
    return pd.DataFrame(shares, index=names, columns=names.rename(None))


def split_names(declared: object) -> list[str]:
    """Return the names in a cell of facts, separated by , or ;.

    Example:
        >>> split_names("a/b; c"), split_names(None)
        (['a/b', 'c'], [])
    """
    return [] if pd.isna(declared) else [part.strip() for part in re.split(r"[,;]", str(declared)) if part.strip()]


def describe_lineage(tests: pd.DataFrame, lineage: Lineage) -> list[str]:
    """Say in a line or two whether sons are nearer to their fathers than strangers are."""
    told = ", ".join(f"{n:,} {_TOLD.get(kind, kind)}" for kind, n in lineage.counts.items() if n)
    lines = [f"lineage as declared: {told}"]
    for _, row in tests.dropna(subset=["nearer"]).iterrows():
        interval = f"[{row['low']:.1%}, {row['high']:.1%}]"
        null = f"another's base model: {row['expected']:.1%}, p = {row['p']:.3f}"
        lines.append(f"{row['measure']}: a base model is nearer to its offspring than {row['nearer']:.1%} of "
                     f"{row['strangers'].replace('strangers', 'unrelated models')} "
                     f"{interval} ({null}; {row['n_sons']:,} offspring of {row['n_fathers']:,} models)")  # fmt: skip
    return lines
