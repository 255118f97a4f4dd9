"""Select from a pair set: which pairs are candidates, what their explicit margins are, and the books of the rest.

`karma.potential` knows numbers only; here they meet the pairs. The result is a pair set like any other, in the order of
the one it was selected from, with three more columns (explicit_margin, implicit_margin, potential) and every pair that
was left out counted.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from karma.errors import InputError
from karma.pairs.pairs import PairSet
from karma.pool.annotations import AnnotationTable
from karma.potential.margins import (
    POOLS,
    RANKINGS,
    Candidates,
    build_candidates,
    compute_explicit_margin,
    compute_implicit_margin,
    select,
)
from karma.potential.objectives import Objectives, combine_margins, score_models
from karma.study.experiment import load_base
from karma.vocabulary import METRICS

COLUMNS = ("explicit_margin", "implicit_margin", "potential")
SOURCES = ("score", "kinship", "annotation")  # of the explicit margin
_BOTH = ("chosen", "rejected")


def is_signed(metric: str) -> bool:
    """Tell whether a metric wants margins without the absolute value."""
    if metric not in RANKINGS:
        raise InputError(f"metric '{metric}' is unknown: choose from {', '.join(RANKINGS)}")
    return POOLS.get(metric) == "signed"


def select_pairs(
    pairs: PairSet, policy: str, metric: str = "m_ap", *, ratio: float | None = None, k: int | None = None,
    models: dict[str, dict[str, Any]] | None = None, cache: Path | None = None,
) -> PairSet:  # fmt: skip
    """Keep the pairs that a policy can still learn from; margins, weight and seed are base.yaml's.

    Args:
        pairs: a pair set with scores. policy: "smollm2-135m", a folder, a Hub id, or a name in `models`.
        metric: one of `karma.potential.margins.RANKINGS`. ratio: share kept; or k: how many.
        models: name -> specification, for a policy of another kind. cache: folder of kept log-probabilities.

    Returns:
        The selection, in the order of `pairs`, with COLUMNS and its books.

    Raises:
        InputError: an unknown metric or policy, or an impossible size.

    Example:
        >>> from karma.pairs.build import build_pairs
        >>> from karma.pool.pool import load_pool
        >>> from karma.scores.read import load_score_table
        >>> from karma.study.sections import ModelSpec
        >>> tiny = ModelSpec.model_validate({"random": {"hidden_size": 32, "layers": 1, "heads": 2}}).model_dump()
        >>> rows = [{"source": "s", "instruction": f"{k}?", "completions": [
        ...     {"model": m, "response": f"{m} says {k}"} for m in ("gpt-4", "bard", "alpaca-7b")]} for k in range(5)]
        >>> pairs = build_pairs(load_pool(rows), load_score_table("paper"), "k_sim", tau=0.1, seed=0)
        >>> kept = select_pairs(pairs, "tiny", ratio=0.4, models={"tiny": tiny})
        >>> len(kept), kept.accounting.dropped["not_selected"]
        (2, 3)

    Paper: arXiv 2503.01864.
    """
    from karma.models.describe import name_model
    from karma.potential.logps import measure_logps

    base = load_base()
    specs, policy = (models, policy) if models else name_model(policy)
    asked = measure_logps(pairs.table, specs, policy, base.compute, base.training.max_length,
                          base.potential.batch_tokens, cache)  # fmt: skip
    form = base.potential.implicit
    pool = gather_candidates(pairs.table, find_scores(pairs.table), asked.logps, asked.lengths,
                             weight=base.potential.weight, form=form, signed=is_signed(metric))  # fmt: skip
    places = select(pool, metric, ratio, k, base.potential.seed)
    made = {"metric": metric, "rule": METRICS[metric].rule, "ratio": ratio, "k": len(places),
            "candidates": int(pool.fit.sum()), "weight": base.potential.weight, "policy": policy}  # fmt: skip
    return build_selection(pairs, pool, places, made)


def find_unusable(pairs: pa.Table) -> list[str]:
    """Return for each pair why it can teach nothing: "empty_text", "identical_responses", or ""."""
    texts = [[(m[-1]["content"] or "").strip() for m in pairs[side].to_pylist()] for side in _BOTH]
    return ["identical_responses" if a == b and a else "" if a and b else "empty_text"
            for a, b in zip(*texts, strict=True)]  # fmt: skip


def find_scores(
    pairs: pa.Table, source: str = "score", s_pref: Mapping[str, float] | None = None,
    annotations: AnnotationTable | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the scores of chosen and rejected that an explicit margin is made of.

    Args:
        pairs: a pair set's table.
        source: "score", the pairs' own (S_pref; of rlaif and public sets the annotation); "kinship", S_pref of the
            origin models, whatever the pairs' own scores are; "annotation", those of single responses.
        s_pref: origin model -> S_pref, for "kinship".
        annotations: for "annotation".

    Returns:
        (n, 2), NaN where there is none.

    Raises:
        InputError: an unknown source, or what it needs is not given.
    """
    if source not in SOURCES:
        raise InputError(f"explicit margin from '{source}': choose from {', '.join(SOURCES)}")
    if source == "annotation":
        if annotations is None:
            raise InputError("an explicit margin from annotations needs a table of them")
        return np.stack(annotations.score_pairs(pairs), 1)
    if source == "kinship":
        if s_pref is None:
            raise InputError("an explicit margin from kinship needs a score table of the origin models")
        return score_models(pairs, s_pref)
    return np.stack([pairs[f"{side}_score"].to_numpy().astype(float) for side in _BOTH], 1)


def gather_candidates(
    pairs: pa.Table, scores: np.ndarray | Objectives, logps: np.ndarray, lengths: np.ndarray, *, weight: float,
    form: str = "absolute", signed: bool = False, reference_logps: np.ndarray | None = None,
) -> Candidates:  # fmt: skip
    """Turn scores and log-probabilities of a pair set into the pool that every metric chooses from.

    Args:
        pairs: the set's table.
        scores: (n, 2) from `find_scores`, or several sources' (`karma.potential.objectives`).
        logps, lengths: (n, 2) from `karma.potential.logps.measure_logps`.
        weight: w of the potential. form: of the implicit margin. signed: margins for m_ap_signed.
        reference_logps: (n, 2), for the dpo form.

    Raises:
        InputError: a signed metric with the dpo form.
    """
    if signed and form == "dpo":
        raise InputError("m_ap_signed takes the length-normalised margin: leave out the dpo form")
    implicit = compute_implicit_margin(logps, lengths, "signed" if signed else form, reference_logps)
    row_ids, unusable = pairs["row_id"].to_pylist(), find_unusable(pairs)
    if not isinstance(scores, Objectives):
        return build_candidates(row_ids, compute_explicit_margin(scores, signed), implicit, weight, unusable)
    margins = scores.compute_margins(signed)
    stacked = np.stack(list(margins.values()), 1)
    explicit = np.where(np.isfinite(stacked).all(axis=1), 0.0, np.nan)
    fit = build_candidates(row_ids, explicit, implicit, weight, unusable).fit
    if fit.any():  # z-scores and fronts are the candidates' own
        explicit[fit] = combine_margins(stacked[fit], list(scores.weights.values()), scores.combine)
    found = build_candidates(row_ids, explicit, implicit, weight, unusable)
    return replace(found, objectives=margins, by_draw=scores.sorts)


def build_selection(pairs: PairSet, candidates: Candidates, places: np.ndarray, settings: dict[str, Any]) -> PairSet:
    """Return the selected part of a pair set.

    Args:
        pairs: the set. candidates: its pool. places: positions to keep, from `karma.potential.select`.
        settings: how they were selected, for the books and the card.

    Returns:
        The pairs kept, with COLUMNS; books that count the others as not selected, or by why they were no candidates.
    """
    values = zip(COLUMNS, (candidates.explicit, candidates.implicit, candidates.potential), strict=True)
    table = pairs.table.select([c for c in pairs.table.column_names if c not in COLUMNS])
    for name, column in values:
        table = table.append_column(name, pa.array(column, pa.float64(), from_pandas=True))
    dropped = pairs.accounting.dropped + candidates.counts
    dropped["not_selected"] += int(candidates.fit.sum()) - len(places)
    books = replace(pairs.accounting, pairs_out=len(places), dropped=+dropped,
                    settings={**pairs.accounting.settings, **settings})  # fmt: skip
    books.check()
    return PairSet(table.take(pa.array(places)), books)


def describe_selection(metric: str, rule: str, n_kept: int, candidates: Candidates) -> str:
    """Say in one sentence what a metric kept.

    Example:
        >>> pool = build_candidates(["a", "b"], np.array([1.0, 2.0]), np.array([0.3, 0.1]), 1.0)
        >>> describe_selection("explicit_large", "the largest explicit margins", 1, pool)
        'explicit_large: 1 of 2 candidate pairs, the largest explicit margins'
    """
    return f"{metric}: {n_kept:,} of {int(candidates.fit.sum()):,} candidate pairs, {rule}"
