"""Pair sets that are the same pairs under several names: one column, one test.

Where the best-scoring and the nearest-kin responses of every prompt are the same, strategies name the same pairs; a
training of them is kept once (`same_data_as`), and two columns of the same numbers, or two tests in a family, would
count one finding twice. Decision: sets are compared by a digest of their prompts, chosen, rejected and confidences, not
by their scores. Limit: sets that differ in a single pair are different sets; the square, of which some are not
trained, and selections by a margin, whose scores may differ all the same, are listed under each name.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from karma.files.reading import compute_digest
from karma.results.study import RUN_KEYS, Study
from karma.study.experiment import Experiment
from karma.vocabulary import title_strategy

COLUMNS = ["row_id", "chosen_id", "rejected_id", "label_confidence"]


def digest_pairs(path: Path) -> str | None:
    """Return a digest of a pairs.parquet's pairs, whatever their order; None where it is missing."""
    if not path.is_file():
        return None
    table = pd.read_parquet(path).reindex(columns=COLUMNS).sort_values(COLUMNS[:3])
    return compute_digest(table.astype(str).to_numpy().tolist())


def find_equal(experiment: Experiment) -> dict[str, str]:
    """Return each strategy whose pairs an earlier one already has, with that one's name."""
    first: dict[str, str] = {}
    found = {}
    for name in experiment.settings.strategies:
        digest = digest_pairs(experiment.outputs / "pairs" / name / "pairs.parquet")
        if digest is not None and first.setdefault(digest, name) != name:
            found[name] = first[digest]
    return found


def list_once(rows: pd.DataFrame, experiment: Experiment) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return rows without those whose `strategy` has the pairs of an earlier one, and a note for each such strategy."""
    source, equal = experiment.settings.annotation.source, find_equal(experiment)
    notes = (f"{title_strategy(name, source)}: the pairs of {title_strategy(kept, source)} here, listed once"
             for name, kept in equal.items())  # fmt: skip
    return rows[~rows["strategy"].isin(set(equal))], tuple(notes)


def merge_equal(study: Study, experiment: Experiment) -> Study:
    """Return a study with one name for equal pair sets: "K_sim = K_(score,sim) here".

    Args:
        study: measured, from `karma.results.study.collect_results`. experiment: whose.
    """
    source = experiment.settings.annotation.source
    equal = {name: kept for name, kept in find_equal(experiment).items() if name in study.strategies}
    if not equal:
        return study
    kept = tuple(dict.fromkeys(equal.get(name, name) for name in study.strategies))
    titles = dict(study.titles)
    for name in kept:
        alike = [name, *(other for other, first in equal.items() if first == name)]
        if len(alike) > 1:
            titles[name] = f"{' = '.join(title_strategy(each, source) for each in alike)} here"
    trained = {(equal.get(s, s), m) for s in study.strategies for m in study.methods if (s, m) not in study.untrained}
    return replace(
        study, strategies=kept, titles=titles, same=equal,
        results=_merge(study.results, equal, [*RUN_KEYS, "benchmark"]),
        trainings=_merge(study.trainings, equal, RUN_KEYS, first="same_data_as"),
        untrained=frozenset((s, m) for s in kept for m in study.methods) - trained,
        costs={**study.costs, "results": study.results, "trainings": study.trainings},
    )  # fmt: skip


def _merge(rows: pd.DataFrame, equal: dict[str, str], keys: list[str], first: str = "") -> pd.DataFrame:
    """Rename and keep one row a key: that of the kept name, or the one that was trained (`first` is missing)."""
    later = rows["strategy"].isin(equal)
    if first in rows:
        later = rows[first].notna()
    renamed = rows.assign(strategy=rows["strategy"].replace(equal))
    chosen = renamed.iloc[later.to_numpy().argsort(kind="stable")].drop_duplicates(keys)
    return chosen.sort_index()
