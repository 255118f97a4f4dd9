"""What another measure of kinship would do to labels: accuracy and gaps of the strategies that go by kinship.

The same judged models, the same sets and the same S_pref; only how alike two models are is measured otherwise
(`karma.scores.table.MEASURES`, with the table's weights). tau is moved on each measure's own scale so that it bars as
many pairs as the given one by the table's measure: the comparison is then of the measures, not of thresholds. Limit: a
small gap is what a measure that sees level is made to find; whether its labels are right as well is the question.

Paper: Eq. 1 (the cosine); the others and the comparison are ours.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from karma.kinship.sensitivity import match_tau
from karma.kinship.similarity import compute_kinship
from karma.labels.comparisons import Comparisons, build_comparisons
from karma.labels.sets import Sets, measure_strategies, pick_all
from karma.scores.normalise import compute_s_pref
from karma.scores.table import MEASURES, ScoreTable, set_kinship

BY_KINSHIP = ("k_sim", "k_score_sim", "k_sure", "least_kin")  # whose picks turn on kinship, beyond tau


def compare_measures(
    comparisons: Comparisons, table: ScoreTable, sets: Sets, *, tie: float, tau: float, seed: int
) -> pd.DataFrame:
    """Return what each measure of kinship makes of the strategies that go by it.

    Args:
        comparisons: of the judged models, by the table's own measure. table: of the same models, in the same order.
        sets: of models, from `karma.labels.sets.list_sets`. tie: judged values this close are equal.
        tau: least kinship of an eligible pair, by the table's measure. seed: of draws.

    Returns:
        One row a measure and strategy: measure, tau, then the columns of strategies.csv. Empty for sources whose pairs
        are labelled already.
    """
    judgments, rows = comparisons.judgments, []
    if judgments.labelled:
        return pd.DataFrame()
    upper = np.triu_indices(len(table.scores), k=1)
    n_barred = int((compute_kinship(table).to_numpy()[upper] < tau).sum())
    for measure in (table.measure, *(name for name in MEASURES if name != table.measure)):
        kinship = compute_kinship(set_kinship(table, measure))
        level = tau if measure == table.measure else match_tau(kinship.to_numpy()[upper], n_barred)
        other = build_comparisons(judgments, compute_s_pref(table), kinship)
        other = replace(other, confidence=comparisons.confidence)
        picks = {name: own for name, own in pick_all(other, sets, level, seed).items() if name in BY_KINSHIP}
        found = measure_strategies(other, picks, sets, tie)
        found.insert(0, "measure", measure)
        found.insert(1, "tau", level)
        rows.append(found)
    return pd.concat(rows, ignore_index=True)


def describe_measures(measures: pd.DataFrame) -> list[str]:
    """Say in a line a strategy what each measure gives: label accuracy, and how far apart the pairs are judged."""
    lines = []
    for strategy, rows in measures.groupby("strategy", sort=False) if len(measures) else ():
        told = [f"{row['measure']} {row['label_accuracy']:.3f} (gap {row['mean_truth_gap']:.3f})"
                for _, row in rows.iterrows() if row["n_decided"]]  # fmt: skip
        if told and strategy in ("k_sim", "k_score_sim"):
            lines.append(f"{strategy} by another measure of kinship: {', '.join(told)}")
    return lines
