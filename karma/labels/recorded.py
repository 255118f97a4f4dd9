"""The audit of recorded judgments: one call from a source and a score table to every table, and the words for them.

Min-max, S_pref and kinship run over the models that have both scores and judgments; `sensitivity.csv` says how the
accuracies move with the tie cut, and where the whole table normalises (whose labels are sure stays as it is). Decision:
every comparison is in the books (decided, judged ties, equal S_pref add up), and so is every judgment. Limit: any
number of prompts leaves an interval wide where models are few.

Paper: ours; Eq. 1 to 3 make the labels.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.files.writing import atomic_path, save_json
from karma.kinship.similarity import MAX_SQUARE, compute_kinship
from karma.kinship.uncertainty import (
    compute_label_confidence,
    compute_pair_uncertainty,
    draw_tables,
    limit_draws,
)
from karma.labels.affinity import compare_affinities, describe_affinities
from karma.labels.agreement import measure_agreement
from karma.labels.calibration import CalibrationAudit, describe_calibration, fit_calibration
from karma.labels.comparisons import Comparisons, build_comparisons, measure_models, measure_slices, measure_surface
from karma.labels.judgments import Judgments
from karma.labels.kinships import (
    build_outcomes,
    compare_kinships,
    describe_kinships,
    list_kinships,
    load_answers,
    save_kinships,
)
from karma.labels.layouts import load_judgments
from karma.labels.matching import match_models
from karma.labels.measures import compare_measures, describe_measures
from karma.labels.sets import list_sets, measure_strategies, pick_all
from karma.scores.normalise import compute_s_pref
from karma.scores.read import load_score_table
from karma.scores.table import ScoreTable
from karma.study.sections import Labels as LabelSettings

TIES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
FEW_MODELS = 30
BY_CONSTRUCTION = "rlaif is labelled by these very judgments: its accuracy is 1 by construction, and no evidence"


@dataclass(frozen=True, eq=False)
class RecordedAudit:
    """What an audit of recorded judgments found.

    Attributes:
        accuracy: label_accuracy.csv, slices of model pairs. strategies: strategies.csv, sets of models.
        sensitivity: by tie cut and normalisation. models: who is mislabelled. surface: gap x kinship.
        books: accounting.json. source: for captions.
        calibration: calibration.json and its curve; None where there is too little, `books` says of what.
        measures: measures.csv, strategies by other measures of kinship.
        affinities: affinity.csv, pairing by texts beside pairing by kinship; empty where no text was measured.
        kinships: kinships.csv, what kinship by score, origin and behaviour tells of responses and labels.
    """

    accuracy: pd.DataFrame
    strategies: pd.DataFrame
    sensitivity: pd.DataFrame
    models: pd.DataFrame
    surface: pd.DataFrame
    agreement: pd.DataFrame
    books: dict[str, Any]
    source: str
    calibration: CalibrationAudit | None = None
    measures: pd.DataFrame = field(default_factory=pd.DataFrame)
    affinities: pd.DataFrame = field(default_factory=pd.DataFrame)
    kinships: pd.DataFrame = field(default_factory=pd.DataFrame)


def audit_recorded(
    judgments: Judgments,
    table: ScoreTable,
    *,
    tie: float = 0.02,
    prefer: str | None = None,
    tau: float = 0.1,
    seed: int = 0,
    beside: Judgments | None = None,
    answers: Path | None = None,
) -> RecordedAudit:
    """Hold the labels that a score table gives against recorded judgments.

    Args:
        judgments: from `karma.labels.layouts.load_judgments`. table: scores of origin models, more than are judged.
        tie: judged values this close are equal, in the source's unit. prefer: a precision, where a model has several.
        tau: least kinship of an eligible pair, for strategies. seed: of sets, draws and the bootstrap.
        beside: another judge's judgments of the same responses, to agree with people's votes.
        answers: a file of recorded answers of the same models to shared items, for kinship by behaviour.

    Raises:
        InputError: a tie below 0, models that cannot be matched, or nothing to compare.
    """
    if not 0 <= tie < np.inf:
        raise InputError(f"--tie {tie}: expected 0 or more")
    if beside is not None and judgments.votes is None:
        raise InputError(
            f"--beside {beside.source}: {judgments.source} has no votes on pairs to agree with: leave it out"
        )
    match = match_models(judgments.models, table, prefer)
    names, rows = list(match.rows), list(match.rows.values())
    kept = judgments.keep(names)
    small, constant = _restrict(table, names, rows)
    comparisons = build_comparisons(kept, compute_s_pref(small), compute_kinship(small))
    _check_tie(comparisons, tie)
    if small.n_items is not None:
        comparisons = _add_flips(comparisons, small, tau, seed)
    sets = list_sets(kept.answered, seed)
    picks = pick_all(comparisons, sets, tau, seed)
    strategies = measure_strategies(comparisons, picks, sets, tie)
    accuracy = measure_slices(comparisons, tie)
    measures = compare_measures(comparisons, small, sets, tie=tie, tau=tau, seed=seed)
    affinities = compare_affinities(comparisons, sets, tie=tie, tau=tau, seed=seed)
    parts = []
    for cut in sorted({*TIES, tie}):
        own = strategies if cut == tie else measure_strategies(comparisons, picks, sets, cut)
        every = accuracy if cut == tie else measure_slices(comparisons, cut).head(1)
        parts.append(_stack("tie", cut, every, own))
    whole = compute_s_pref(table)[rows].set_axis(names)
    kin = compute_kinship(table, rows).set_axis(names).set_axis(names, axis=1)
    over_all = replace(build_comparisons(kept, whole, kin), confidence=comparisons.confidence)
    moved = measure_strategies(over_all, pick_all(over_all, sets, tau, seed), sets, tie)
    parts.append(_stack("normalised by", "judged models", accuracy, strategies))
    parts.append(_stack("normalised by", "whole table", measure_slices(over_all, tie).head(1), moved))
    try:
        calibration, said = fit_calibration(comparisons, tie, Path(table.source).name, seed), "calibration.json"
    except InputError as error:  # a small source is audited all the same
        calibration, said = None, str(error)
    books = _keep_books(kept, comparisons, tie) | {
        "table": table.source, "n_models_in_table": len(table.scores), "matched": match.rows,
        "unmatched": match.unmatched, "n_unmatched": len(match.unmatched), "constant_benchmarks": constant,
        "tie": tie, "tau": tau, "seed": seed, "n_sets": len(sets.members), "set_size": int(sets.members.shape[1]),
        "prompts_without_set": int((sets.pattern_of < 0).sum()), "calibration": said,
    }  # fmt: skip
    return RecordedAudit(accuracy, strategies, pd.concat(parts, ignore_index=True), measure_models(comparisons, tie),
                         measure_surface(comparisons, tie), measure_agreement(comparisons, beside, tie), books,
                         kept.source, calibration, measures, affinities,
                         _ask_kinships(kept, table, match.rows, small, answers, tie, seed))  # fmt: skip


def _check_tie(comparisons: Comparisons, tie: float) -> None:
    """Raise an InputError where no comparison is decided: every share of none would be NaN."""
    apart = np.abs(comparisons.margin[:, comparisons.has_preference])
    n, largest = int(np.count_nonzero(~np.isnan(apart))), float(np.nanmax(apart, initial=0.0))
    if n and largest <= tie:
        raise InputError(f"--tie {tie:g}: none of {n:,} comparisons differs by more, the largest by {largest:g}: give "
                         "less, or judgments that differ")  # fmt: skip


def _ask_kinships(
    judgments: Judgments, table: ScoreTable, rows: dict[str, str], small: ScoreTable, answers: Path | None, tie: float,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Return what every kinship of the judged models tells; nothing of votes, which are of pairs and not of responses.

    By score among the judged models, as everything else here; by origin in the whole table, where ancestors stand.
    """
    known = None if answers is None else load_answers(answers, judgments.models)
    if judgments.values is None or judgments.labelled or len(rows) < 3:
        return pd.DataFrame()
    own = {name: name for name in rows}
    by_origin = {key: square for key, square in list_kinships(table, rows).items() if key[0] == "origin"}
    kinships = list_kinships(small, own, known) | by_origin
    outcomes = build_outcomes(judgments.texts, judgments.values, compute_s_pref(small), judgments.cluster, tie)
    return compare_kinships(outcomes, kinships, seed)


def audit_study_source(labels: LabelSettings, root: Path) -> RecordedAudit | None:
    """Audit the source that a study names in `labels.judgments`; None where it names none.

    Args:
        labels: the study's section. root: the project's folder, where relative paths begin.
    """
    if labels.judgments is None or labels.scores is None:
        return None
    source, scores = (
        str(root / name) if (root / name).exists() else name for name in (labels.judgments, labels.scores)
    )
    table = load_score_table(scores, labels.columns)
    return audit_recorded(load_judgments(source), table, tie=labels.tie, prefer=labels.prefer)


def _restrict(table: ScoreTable, names: list[str], rows: list[str]) -> tuple[ScoreTable, list[str]]:
    """Return the table of the judged models, without benchmarks on which they are all equal, and the names of those."""
    scores = table.scores.loc[rows].set_axis(pd.Index(names, name="origin_model"))
    constant = [str(name) for name in scores if scores[name].nunique() == 1]
    if len(constant) == scores.shape[1]:
        raise InputError(f"{table.source}: the judged models are equal on every benchmark: S_pref is undefined")
    kept = [name for name in scores if name not in constant]
    n_items = None if table.n_items is None else {name: table.n_items[name] for name in kept}
    facts = table.facts.reindex(rows).set_axis(scores.index)
    return replace(table, scores=scores[kept], benchmarks=table.benchmarks.loc[kept], n_items=n_items, facts=facts,
                   case_sensitive=True), constant  # fmt: skip


def _add_flips(comparisons: Comparisons, table: ScoreTable, tau: float, seed: int) -> Comparisons:
    draws = draw_tables(table, np.random.default_rng(seed), limit_draws(len(table.scores)))
    found = compute_pair_uncertainty(table, draws, tau).set_index(["chosen", "rejected"])["p_flip"]
    names = comparisons.judgments.models
    sides = [[names[i] for i in comparisons.pairs[side]] for side in ("chosen", "rejected")]
    flips = found.loc[pd.MultiIndex.from_arrays(sides)].to_numpy()
    sure = compute_label_confidence(table, seed).to_numpy() if len(names) <= MAX_SQUARE else None
    return replace(comparisons, pairs=comparisons.pairs.assign(p_flip=flips), confidence=sure)


def _stack(setting: str, value: object, accuracy: pd.DataFrame, strategies: pd.DataFrame) -> pd.DataFrame:
    columns = ["strategy", "n_decided", "label_accuracy", "low", "high"]
    first = accuracy.head(1).rename(columns={"slice": "strategy"})
    both = pd.concat([first[columns], strategies[columns]], ignore_index=True)
    both.insert(0, "setting", setting)
    both.insert(1, "value", str(value))
    return both


def _keep_books(judgments: Judgments, comparisons: Comparisons, tie: float) -> dict[str, Any]:
    judged = np.isfinite(comparisons.margin)
    n_equal = int((judged & ~comparisons.has_preference).sum())
    n_decided = int(comparisons.find_decided(tie).sum())
    return {
        "source": judgments.source, "layout": judgments.layout, "unit": judgments.unit, **judgments.counts,
        "n_models": len(judgments.models), "n_prompts": len(judgments.prompts), "n_comparisons": int(judged.sum()),
        "decided": n_decided, "judged_tie": int(judged.sum()) - n_equal - n_decided, "equal_s_pref": n_equal,
        "rlaif_by_construction": _is_own_judge(judgments),
    }  # fmt: skip


def _is_own_judge(judgments: Judgments) -> bool:
    """Tell whether the annotations that label `rlaif` are the judgments that it is held against."""
    given, values = judgments.annotations, judgments.values
    return given is not None and values is not None and np.array_equal(given, values, equal_nan=True)


def save_recorded(audit: RecordedAudit, folder: Path) -> None:
    """Write the tables, accounting.json and calibration.json, each whole; what is not known is an empty cell."""
    tables = {"label_accuracy": audit.accuracy, "strategies": audit.strategies, "sensitivity": audit.sensitivity,
              "models": audit.models, "surface": audit.surface}  # fmt: skip
    if len(audit.agreement):
        tables["agreement"] = audit.agreement
    if len(audit.measures):
        tables["measures"] = audit.measures
    if len(audit.affinities):
        tables["affinity"] = audit.affinities
    for name, frame in tables.items():
        with atomic_path(folder / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
    save_kinships(audit.kinships, folder)
    save_json(audit.books, folder / "accounting.json")
    for name in ("reliability.csv", "calibration.json"):  # an earlier audit's must not pass for this one's
        (folder / name).unlink(missing_ok=True)
    if audit.calibration:
        with atomic_path(folder / "reliability.csv") as temporary:
            audit.calibration.curve.to_csv(temporary, index=False)
        save_json(audit.calibration.model.model_dump(mode="json"), folder / "calibration.json")


def describe_recorded(audit: RecordedAudit) -> list[str]:
    """Say in a few lines what was found, what was left out, and what to be wary of."""
    books, every = audit.books, audit.accuracy.iloc[0]
    lines = [
        f"{books['n_models']} models with scores and judgments, {books['n_prompts']:,} prompts ({books['layout']})"
    ]
    if books["unmatched"]:
        lines.append(f"{books['n_unmatched']} judged models without scores: {', '.join(books['unmatched'])}")
    lines += [f"note: all judged models are equal on {name}: it is left out" for name in books["constant_benchmarks"]]
    lines.append(f"{books['judgments_in']:,} judgments: {books['used']:,} used, {books['missing_preference']:,} "
                 f"without a preference, {books.get('unmatched_model', 0):,} of models without scores")  # fmt: skip
    lines.append(f"{books['n_comparisons']:,} comparisons: {books['decided']:,} decided, {books['judged_tie']:,} "
                 f"judged equal (within {books['tie']:g}), {books['equal_s_pref']:,} with equal S_pref")  # fmt: skip
    lines.append(f"label accuracy, all pairs: {_show(every)}")
    lines += [f"{row['strategy']}: {_show(row)}" for _, row in audit.strategies.iterrows()]
    lines += [*describe_measures(audit.measures), *describe_affinities(audit.affinities)]
    lines += describe_kinships(audit.kinships)
    lines += [f"agreement with a vote, {row['on']}: {row['judge']} {row['agreement']:.3f} [{row['low']:.3f}, "
              f"{row['high']:.3f}] of {row['n_votes']:,} votes" for _, row in audit.agreement.iterrows()]  # fmt: skip
    if books["rlaif_by_construction"]:
        lines.append(f"note: {BY_CONSTRUCTION}")
    found = audit.calibration
    lines.append(describe_calibration(found.model) if found else f"note: {books['calibration']}")
    whole = audit.sensitivity.query("setting == 'normalised by' and value == 'whole table'")
    own = audit.sensitivity.query("setting == 'normalised by' and value == 'judged models'")
    moved = zip(own["strategy"], own["label_accuracy"], whole["label_accuracy"], strict=True)
    if not own["label_accuracy"].equals(whole["label_accuracy"]):
        text = ", ".join(f"{name} {one:.3f} -> {other:.3f}" for name, one, other in moved)
        lines.append(f"if the whole table normalises (min and max of {books['n_models_in_table']:,} models): {text}")
    if books["n_models"] < FEW_MODELS:
        lines.append(
            f"note: {books['n_models']} models are few: the intervals say so, and more prompts do not narrow them"
        )
    return lines


def _show(row: pd.Series) -> str:
    if not row["n_decided"]:
        return "nothing decided"
    return f"{row['label_accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {int(row['n_decided']):,} decided"
