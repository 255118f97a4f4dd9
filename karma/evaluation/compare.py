"""Scores with intervals, and what training changed: differences on the same items.

Intervals of single scores are Wilson's, which stay inside [0, 1] and have width at 0 and 1. Differences are paired:
both models answered the same items, so the items' difficulty cancels. A prompt with several verifiable instructions
counts as one cluster.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import binomtest, norm


def build_score_frame(scores: dict) -> pd.DataFrame:
    """Turn scores.json into a table: value, 95 % interval, n, chance, unextracted share; one row a benchmark.

    Example:
        >>> one = {"value": 0.5, "n": 4, "chance": 0.25, "unextracted": 0.0, "standard_error": 0.29}
        >>> build_score_frame({"benchmarks": {"arc_easy": one}})["low"].round(2).item()
        0.15
    """
    rows = {}
    for name, score in scores["benchmarks"].items():
        interval = binomtest(round(score["value"] * score["n"]), score["n"]).proportion_ci(method="wilson")
        rows[name] = {"value": score["value"], "low": interval.low, "high": interval.high, "n": score["n"],
                      "chance": score["chance"], "unextracted": score["unextracted"]}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("benchmark")


def compare_answers(before: pa.Table, after: pa.Table, confidence: float = 0.95) -> pd.DataFrame:
    """Compare two models on the items both answered.

    Args:
        before, after: answers.parquet of each.
        confidence: of the interval.

    Returns:
        One row a benchmark: before, after, difference, low, high (of the difference), n (units), changed (items).

    Raises:
        ValueError: the two did not answer the same items.
    """
    key = ["benchmark", "item_id"]
    merged = before.to_pandas().merge(
        after.to_pandas(), on=key, suffixes=("_0", "_1"), how="outer", indicator=True
    )
    if (merged["_merge"] != "both").any():
        raise ValueError("the two evaluations have different items: evaluate both with the same settings")
    rows, z = {}, norm.ppf(0.5 + confidence / 2)
    for benchmark, items in merged.groupby("benchmark", sort=False):
        n, delta = items["n_0"].to_numpy(), (items["correct_1"] - items["correct_0"]).to_numpy()
        difference = delta.sum() / n.sum()
        error = np.sqrt(((delta - difference * n) ** 2).sum()) / n.sum()
        rows[benchmark] = {"before": items["correct_0"].sum() / n.sum(), "after": items["correct_1"].sum() / n.sum(),
                           "difference": difference, "low": difference - z * error, "high": difference + z * error,
                           "n": int(n.sum()), "changed": int((items["answer_0"] != items["answer_1"]).sum())}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("benchmark")
