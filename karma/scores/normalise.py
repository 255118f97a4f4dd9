"""Min-max normalisation and S_pref (Eq. 2 of the paper).

S_pref(M_i) = mean over benchmarks of (b_i - min_j b_j) / (max_j b_j - min_j b_j), min and max over the
table's origin models: a model's S_pref depends on the company it is in, so tables are merged before they are
normalised. Limit: the equation weighs the benchmarks alike, whatever their number of items or chance level.
"""

import pandas as pd

from karma.scores.table import ScoreTable

DECIMALS = 12


def compute_normalized(table: ScoreTable) -> pd.DataFrame:
    """Return min-max normalised scores: 0 for a benchmark's weakest origin model, 1 for its strongest.

    Paper: section 2.4, Figure 3.
    """
    low, high = table.scores.min(), table.scores.max()
    return (table.scores - low) / (high - low)


def compute_s_pref(table: ScoreTable) -> pd.Series:
    """Return S_pref of each origin model, in [0, 1], in the table's order.

    Rounded to 12 decimals, so that two equal means stay equal in whatever order their terms were added.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> float(round(compute_s_pref(load_score_table("paper"))["GPT-4"], 4))
        0.9899

    Paper: Eq. 2.
    """
    return compute_normalized(table).mean(axis=1).round(DECIMALS).rename("s_pref")


def compute_below_chance(table: ScoreTable) -> pd.DataFrame:
    """Tell for each cell whether it is at or below its benchmark's chance level; False where that is unknown.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> int(compute_below_chance(load_score_table("paper")).to_numpy().sum())
        5
    """
    return table.scores.le(table.benchmarks["chance"].astype(float), axis="columns")
