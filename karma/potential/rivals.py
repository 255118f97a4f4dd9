"""What a metric's training gained over each rival's, and whether its lead over `random` depends on the data size.

Both are means over the same held-out pairs, or items of a benchmark (and seeds), tested against 0, corrected within
each table (Holm), with the verdicts of the report. A trend is the slope of the lead over log2 of the share kept: each
pair's own slope, averaged; so its interval is paired too. Decision: a share of 1 is no selection, since every metric
keeps the same pairs: it is in neither test. Limit: with one seed the noise of training is in no interval.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from karma.potential.outcomes import (
    CELL,
    compute_difference,
    compute_outcomes,
    find_outcomes,
    get_units,
    split_benchmarks,
)
from karma.statistics.intervals import compute_slopes, compute_two_way
from karma.statistics.verdicts import judge_family

PLACE = ["policy", "strategy", "method"]
ANEW = "m_ap_anew"  # where it is trained, what it gained over every other is asked for, too
TESTED = ["value", "low", "high", "n", "p_holm", "verdict"]
RIVALS = [*PLACE, "ratio", "metric", "rival", *TESTED]
TRENDS = [*PLACE, "metric", "ratios", *TESTED]


def compare_rivals(outcomes: pd.DataFrame, metric: str = "m_ap", all_against: str = "") -> pd.DataFrame:
    """Return what training on one metric's selections gained over training on each other metric's.

    Args:
        outcomes: from `karma.potential.outcomes.collect_selections`, or of benchmarks from `collect_answers`.
        metric: the one whose lead over every other is asked for; that of m_ap_anew always is.
        all_against: a control, over which every metric's lead is asked for besides; "": none.

    Returns:
        RIVALS, one row a (policy, strategy, method, ratio below 1, metric, rival), of benchmarks one each with a column
        `benchmark`: accuracy minus the rival's (share) with its 95 % interval, n pairs or items, p corrected for all
        rows (Holm), and the verdict on "it beats the rival".
    """
    rows = [{**asked, **row} for asked, whole in split_benchmarks(outcomes)
            for row in _iterate_rivals(whole, metric, all_against)]  # fmt: skip
    return _judge(rows, RIVALS, outcomes)


def compute_trends(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Return whether each metric's lead over `random` changes with the share of pairs kept.

    Args:
        outcomes: from `karma.potential.outcomes.collect_selections`, or of benchmarks from `collect_answers`.

    Returns:
        TRENDS, one row a (policy, strategy, method, metric) with two ratios below 1 or more, of benchmarks one each
        with a column `benchmark`: the change of the lead (share) a doubling of the pairs, with its 95 % interval, n
        pairs or items, p corrected for all rows (Holm), and the verdict on "the lead grows".
    """
    rows = [{**asked, **row} for asked, whole in split_benchmarks(outcomes) for row in _iterate_trends(whole)]
    return _judge(rows, TRENDS, outcomes)


def _iterate_rivals(whole: pd.DataFrame, metric: str, all_against: str) -> Iterator[dict[str, Any]]:
    for cell, part in whole[whole["ratio"] < 1].groupby(CELL, sort=False):
        key, right = dict(zip(CELL, cell, strict=True)), compute_outcomes(part)
        for rival in whole["metric"].unique():
            asked = (key["metric"] == metric and rival != ANEW) or key["metric"] == ANEW or rival == all_against
            other = find_outcomes(whole, {**key, "metric": rival}, part) if asked else None
            if other is not None:
                yield {**key, "rival": rival, **compute_difference(right, other)}


def _iterate_trends(whole: pd.DataFrame) -> Iterator[dict[str, Any]]:
    selected = whole[(whole["ratio"] < 1) & (whole["metric"] != "random")]
    for cell, own in selected.groupby([*PLACE, "metric"], sort=False):
        named = dict(zip([*PLACE, "metric"], cell, strict=True))
        leads: dict[float, pd.DataFrame] = {}
        for ratio, part in own.groupby("ratio"):
            lot = find_outcomes(whole, {**named, "ratio": ratio, "metric": "random"}, part)
            if lot is not None:
                leads[float(ratio)] = (compute_outcomes(part) - lot).dropna()  # type: ignore[arg-type]
        alike = {(tuple(lead.index), tuple(lead.columns)) for lead in leads.values()}
        if len(leads) < 2 or len(alike) > 1:
            continue
        units = get_units(next(iter(leads.values())))
        slopes = compute_slopes(np.stack([lead.to_numpy() for lead in leads.values()]), np.log2(list(leads)))
        ratios = ", ".join(f"{ratio:g}" for ratio in leads)
        yield {**named, "ratios": ratios, "n": int(units.sum()), **compute_two_way(slopes.T, units)}


def _judge(rows: list[dict[str, Any]], columns: list[str], outcomes: pd.DataFrame) -> pd.DataFrame:
    of_benchmarks = "benchmark" in outcomes
    judged = judge_family(rows, [row["n"] for row in rows], "items" if of_benchmarks else "pairs")
    columns = ["benchmark", *columns] if of_benchmarks else columns
    return pd.DataFrame([{**row, **more} for row, more in zip(rows, judged, strict=True)], columns=columns)
