"""What a metric's training gained over each rival's, and whether its lead over `random` depends on the data size.

Both are means over the same held-out pairs (and seeds), tested against 0, corrected within each table (Holm), with the
verdicts of the report. A trend is the slope of the lead over log2 of the share kept: each pair's own slope, averaged;
so its interval is paired too. Decision: a share of 1 is no selection, since every metric keeps the same pairs: it is in
neither test. Limit: with one seed the noise of training is in no interval.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from karma.potential.study import CELL, compute_difference, compute_outcomes, find_outcomes
from karma.statistics import compute_slopes, compute_two_way, judge_family

PLACE = ["policy", "strategy", "method"]
TESTED = ["value", "low", "high", "n", "p_holm", "verdict"]
RIVALS = [*PLACE, "ratio", "metric", "rival", *TESTED]
TRENDS = [*PLACE, "metric", "ratios", *TESTED]


def compare_rivals(margins: pd.DataFrame, metric: str = "m_ap") -> pd.DataFrame:
    """Return what training on one metric's selections gained over training on each other metric's.

    Args:
        margins: from `karma.potential.study.collect_selections`. metric: the one whose lead is asked for.

    Returns:
        RIVALS, one row a (policy, strategy, method, ratio below 1, rival): held-out accuracy minus the rival's (share)
        with its 95 % interval, n pairs, p corrected for all rows (Holm), and the verdict on "it beats the rival".
    """
    return _judge(list(_iterate_rivals(margins, metric)), RIVALS)


def compute_trends(margins: pd.DataFrame) -> pd.DataFrame:
    """Return whether each metric's lead over `random` changes with the share of pairs kept.

    Args:
        margins: from `karma.potential.study.collect_selections`.

    Returns:
        TRENDS, one row a (policy, strategy, method, metric) with two ratios below 1 or more: the change of the lead
        (share of held-out pairs) a doubling of the pairs, with its 95 % interval, n pairs, p corrected for all rows
        (Holm), and the verdict on "the lead grows".
    """
    return _judge(list(_iterate_trends(margins)), TRENDS)


def _iterate_rivals(margins: pd.DataFrame, metric: str) -> Iterator[dict[str, Any]]:
    own = margins[(margins["metric"] == metric) & (margins["ratio"] < 1)]
    for cell, part in own.groupby(CELL, sort=False):
        key, right = dict(zip(CELL, cell, strict=True)), compute_outcomes(part)
        for rival in margins["metric"].unique():
            other = find_outcomes(margins, {**key, "metric": rival}, part)
            if other is not None:
                yield {**key, "rival": rival, "n": len(right), **compute_difference(right, other)}


def _iterate_trends(margins: pd.DataFrame) -> Iterator[dict[str, Any]]:
    selected = margins[(margins["ratio"] < 1) & (margins["metric"] != "random")]
    for cell, own in selected.groupby([*PLACE, "metric"], sort=False):
        named = dict(zip([*PLACE, "metric"], cell, strict=True))
        leads: dict[float, pd.DataFrame] = {}
        for ratio, part in own.groupby("ratio"):
            key = {**named, "ratio": ratio, "metric": "random"}
            lot = find_outcomes(margins, {name: key[name] for name in CELL}, part)
            if lot is not None:
                leads[float(ratio)] = compute_outcomes(part) - lot  # type: ignore[arg-type]
        alike = {(tuple(lead.index), tuple(lead.columns)) for lead in leads.values()}
        if len(leads) < 2 or len(alike) > 1:
            continue
        slopes = compute_slopes(np.stack([lead.to_numpy() for lead in leads.values()]), np.log2(list(leads)))
        ratios = ", ".join(f"{ratio:g}" for ratio in leads)
        yield {**named, "ratios": ratios, "n": len(slopes), **compute_two_way(slopes.T)}


def _judge(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    judged = judge_family(rows, [row["n"] for row in rows], "pairs")
    return pd.DataFrame([{**row, **more} for row, more in zip(rows, judged, strict=True)], columns=columns)
