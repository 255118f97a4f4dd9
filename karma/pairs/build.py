"""Build pairs of a pool: one strategy or several in one pass, in memory or streamed to folders.

`build_pairs` holds its pairs in memory; `save_pair_sets` streams a pool of any size to disk, and all folders appear or
none. The same input gives the same bytes, whatever the number of processes.

Paper: section 2.3 (which two) and 2.4 (which is chosen, Eq. 3).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from karma.files.reading import compute_digest
from karma.pairs.accounting import Accounting
from karma.pairs.binarizer import Binarizer
from karma.pairs.curriculum import compute_stages
from karma.pairs.folder import open_all
from karma.pairs.pairs import PairSet
from karma.pairs.parallel import is_shared_out, save_parts
from karma.pairs.publish import publish_all
from karma.pairs.rules import Rules
from karma.pool.pool import ResponsePool
from karma.scores.table import ScoreTable
from karma.strategies import BY_TEXT


def build_pairs(
    pool: ResponsePool, scores: ScoreTable | None, strategy: str, *, tau: float, seed: int, **options: Any
) -> PairSet:
    """Build one strategy's pairs in memory.

    Args:
        pool: from `load_pool`.
        scores: the origin models' scores; None only for rlaif and density_ratio.
        strategy: rlaif, k_score, k_sim, k_score_sim, delta, random, least_kin, k_sure, affinity or density_ratio.
        tau: least kinship of an eligible pair (cosine, -1..1); delta has none.
        seed: of the draws.
        **options: further fields of `karma.pairs.rules.Rules`.

    Returns:
        The pairs in the pool's order, with their accounting.

    Raises:
        InputError: malformed pool, an origin model without scores, an impossible setting.

    Example:
        >>> from karma.pool.pool import load_pool
        >>> from karma.scores.read import load_score_table
        >>> answers = [("gpt-4", "Four."), ("alpaca-7b", "5"), ("bard", "It is four.")]
        >>> row = {"source": "s", "instruction": "2+2?",
        ...        "completions": [{"model": m, "response": r} for m, r in answers]}
        >>> pairs = build_pairs(load_pool([row]), load_score_table("paper"), "k_sim", tau=0.1, seed=0)
        >>> pairs.table.select(["chosen_model", "rejected_model"]).to_pylist()
        [{'chosen_model': 'gpt-4', 'rejected_model': 'bard'}]
    """
    return build_pair_sets(pool, scores, [strategy], tau=tau, seed=seed, **options)[strategy]


def build_pair_sets(
    pool: ResponsePool,
    scores: ScoreTable | None,
    strategies: Sequence[str],
    *,
    match_rows: bool = False,
    **rules: Any,
) -> dict[str, PairSet]:
    """Build several strategies' pairs in one pass over the pool.

    Args:
        pool, scores: as for `build_pairs`.
        strategies: their names.
        match_rows: keep only the rows that all of them keep.
        **rules: fields of `karma.pairs.rules.Rules`; tau and seed are needed.
    """
    binarizer = Binarizer(scores, strategies, Rules(**rules), match_rows)
    parts: dict[str, list[pa.Table]] = {s: [] for s in strategies}
    for tables in binarizer.run(pool):
        for strategy, table in tables.items():
            parts[strategy].append(table)
    _record_settings(binarizer, pool)
    overlaps = binarizer.left_out.take()
    return {s: PairSet(pa.concat_tables(parts[s]), binarizer.books[s], overlaps) for s in strategies}


def save_pair_sets(
    pool: ResponsePool,
    scores: ScoreTable | None,
    folders: dict[str, Path],
    *,
    match_rows: bool = False,
    n_stages: int | None = None,
    command: str = "",
    check: Callable[[Accounting], None] = lambda accounting: None,
    progress: Callable[[int], None] = lambda n_rows: None,
    engine: str = "local",
    cores: int = 1,
    address: str | None = None,
    **rules: Any,
) -> dict[str, Accounting]:
    """Stream a pool of any size to pair folders, all strategies in one pass; all folders appear, or none.

    Args:
        pool, scores: as for `build_pairs`.
        folders: strategy -> folder to write.
        match_rows: as for `build_pair_sets`.
        n_stages: stages of a curriculum (`karma.pairs.curriculum`) to sort each set into; None: the pool's order.
        command: what made the sets, for the cards.
        check: called with each finished accounting before any folder appears; may raise.
        progress: called with the number of rows read so far.
        engine: local, or ray: parts of the pool's files are worked on by a Ray cluster.
        cores: local: processes that share out a large pool's files; a small one is done in this process.
        address: ray: of a running cluster (`karma.study.workers.connect`); None: one of its own.
        **rules: fields of `karma.pairs.rules.Rules`.
    """
    binarizer = Binarizer(scores, list(folders), Rules(**rules), match_rows)
    shared_out = is_shared_out(pool, engine, cores)
    if n_stages is not None:
        compute_stages(0, n_stages)  # an impossible number is said now, not after the last row
    with open_all(folders) as targets:
        if shared_out:
            save_parts(binarizer, pool, targets, progress, engine=engine, cores=cores, address=address)
        else:
            for tables in binarizer.run(pool):
                overlaps = binarizer.left_out.take()
                for strategy, table in tables.items():
                    targets[strategy].write(table)
                    targets[strategy].list_overlaps(overlaps)
                progress(next(iter(binarizer.books.values())).rows_in)
        _record_settings(binarizer, pool)
        for accounting in binarizer.books.values():
            check(accounting)
            accounting.settings["curriculum_stages"] = n_stages
        for strategy, target in targets.items():
            target.prepare(binarizer.books[strategy], command, n_stages)
        publish_all([target.place for target in targets.values()])
    return binarizer.books


def _record_settings(binarizer: Binarizer, pool: ResponsePool) -> None:
    scores = binarizer.scores
    settings = binarizer.rules.as_dict() | {
        "pool": pool.name,
        "revision": pool.revision,
        "score_table": None if scores is None else Path(scores.source).name,
        "score_table_digest": None if scores is None else compute_digest(scores.scores.to_csv()),
        "origin_models": None if scores is None else len(scores.scores),
        "curriculum_stages": None,
        "match_rows": sorted(binarizer.strategies) if binarizer.match_rows else None,
    }
    for strategy, accounting in binarizer.books.items():
        given = binarizer.rules.calibration
        of_scores = given.sentence if given else binarizer.origins.confidence_source
        rated = {"rlaif": "annotations", "density_ratio": "density ratios"}
        unknown = f"unknown: labels are {rated[strategy]}" if strategy in rated else None
        own = binarizer.rules.describe_affinity() if strategy in BY_TEXT else {}
        accounting.settings = settings | {"label_confidence": unknown or of_scores} | own
