"""How far a data set's trainings lie apart from seed to seed: the stability that the paper's summary claims.

The spread is the standard deviation over seeds of a policy's total (the mean over its benchmarks, a share in [0, 1]),
pooled over policies: s^2 = sum of squared deviations from each policy's own mean / (trainings - policies). Its interval
is chi-square's; against RLAIF the two variances are compared by F, corrected for the rows of the table (Holm).
Decision: totals, not single benchmarks, since the claim is about outcomes. Limit: both tests take totals for normal;
three seeds of one policy are two degrees of freedom, whose interval spans a factor of twelve.

Paper: section 1 and its summary ("more consistent"); it trained nothing twice.
"""

from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import f

from karma.results.study import Study
from karma.results.tables import Table, build_plain
from karma.statistics.intervals import ALPHA, compute_spread_interval
from karma.statistics.verdicts import adjust_holm, judge
from karma.vocabulary import BASELINE, START

SMALLEST_LOG = 0.1  # a spread a tenth smaller or larger, or less, is no difference
COLUMNS = ["n", "spread", "low", "high", "ratio", "ratio_low", "ratio_high", "p_holm", "verdict"]
CAPTION = "Spread over seeds of a policy's total (standard deviation, share), with 95 % interval, and beside RLAIF's."


def compute_spread(study: Study) -> pd.DataFrame:
    """Return each data set's spread over seeds, by method, and its ratio to RLAIF's.

    Args:
        study: measured, with two seeds or more; else the frame is empty.

    Returns:
        Index (method, strategy), COLUMNS: n trainings, spread and its 95 % interval, ratio to RLAIF's spread with its
        95 % interval (NaN for RLAIF, and where one of both is 0), p corrected for all rows, and the verdict on
        "it spreads less than RLAIF's".
    """
    trained = study.results[study.results["method"] != START]
    runs = trained.pivot_table("value", ["method", "strategy", "policy", "seed"], "benchmark")
    totals = runs.reindex(columns=list(study.benchmarks)).mean(axis=1, skipna=False).dropna()
    found: dict[tuple[str, str], tuple[float, int, int]] = {}
    for method, strategy in product(study.methods, study.strategies):
        own = totals[(totals.index.get_level_values("method") == method)
                     & (totals.index.get_level_values("strategy") == strategy)]  # fmt: skip
        apart = own - own.groupby("policy").transform("mean")
        df = len(own) - own.index.get_level_values("policy").nunique()
        if df > 0:
            found[method, strategy] = float((apart**2).sum()) / df, df, len(own)
    rows = {key: _describe(*own, found.get((key[0], BASELINE)) if key[1] != BASELINE else None)
            for key, own in found.items()}  # fmt: skip
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    frame = pd.DataFrame(rows.values(), index=pd.MultiIndex.from_tuples(rows, names=["method", "strategy"]))
    return _judge(frame)[COLUMNS]


def _describe(variance: float, df: int, n: int, baseline: tuple[float, int, int] | None) -> dict[str, float]:
    """Return a spread with its interval, and its ratio to the baseline's."""
    low, high = compute_spread_interval(float(np.sqrt(variance)), df)
    row = {"n": n, "spread": float(np.sqrt(variance)), "low": low, "high": high, "df": df}
    if baseline is None or not variance or not baseline[0]:
        return {**row, **dict.fromkeys(("ratio", "ratio_low", "ratio_high", "p"), np.nan)}
    ratio = variance / baseline[0]
    tail = f.cdf(ratio, df, baseline[1])
    return {**row, "ratio": float(np.sqrt(ratio)), **_bound(ratio, df, baseline[1], 1), "df_baseline": baseline[1],
            "p": float(2 * min(tail, 1 - tail))}  # fmt: skip


def _bound(ratio: float, df: int, df_baseline: int, n_tests: int) -> dict[str, float]:
    """Return the interval of a ratio of spreads, from that of their variances, corrected for a family."""
    level = ALPHA / n_tests / 2
    low, high = (float(np.sqrt(ratio / f.ppf(q, df, df_baseline))) for q in (1 - level, level))
    return {"ratio_low": low, "ratio_high": high}


def _judge(frame: pd.DataFrame) -> pd.DataFrame:
    """Add what follows for "it spreads less than RLAIF's", corrected for all rows."""
    frame = frame.assign(p_holm=adjust_holm(frame["p"]), verdict="")
    n_tests = int(frame["p"].notna().sum())
    for key, row in frame[frame["p"].notna()].iterrows():
        bounds = _bound(row["ratio"] ** 2, row["df"], row["df_baseline"], n_tests)
        low, high = -np.log(bounds["ratio_high"]), -np.log(bounds["ratio_low"])
        verdict = judge(-np.log(row["ratio"]), row["p_holm"], (low, high), SMALLEST_LOG, f"{row['n']:.0f} trainings")
        frame.loc[key, "verdict"] = verdict
    return frame


def build_spread(study: Study) -> list[Table]:
    """Return the table of spreads, or nothing where no policy was trained twice."""
    frame = compute_spread(study)
    if frame.empty:
        return []
    notes = (f"verdict: does it spread less than {study.title(BASELINE)}'s? p_holm: corrected for all rows",
             "a difference: of the logarithm of the two spreads")  # fmt: skip
    titled = frame.rename(index=study.title, level="strategy")
    return [build_plain("spread", CAPTION, titled, decimals=4, notes=notes)]
