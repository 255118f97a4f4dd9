"""Scores with intervals, and what training changed: differences on the same items.

Intervals of single scores are Wilson's, which stay inside [0, 1] and have width at 0 and 1. Differences are paired:
both models answered the same items, so the items' difficulty cancels. A prompt with several verifiable instructions
counts as one cluster.
"""

import numpy as np
import pandas as pd
import pyarrow as pa

from karma.statistics.intervals import compute_mean, compute_wilson


def build_score_frame(scores: dict) -> pd.DataFrame:
    """Turn scores.json into a table, one row a benchmark.

    Args:
        scores: what `karma.evaluation.runner.evaluate` returns.

    Returns:
        value, low, high (95 %), n (units), chance, floor (IFEval: of shuffled answers), unextracted (share).

    Example:
        >>> one = {"value": 0.5, "n": 4, "chance": 0.25, "unextracted": 0.0, "standard_error": 0.29}
        >>> build_score_frame({"benchmarks": {"arc_easy": one}})["low"].round(2).item()
        0.15
    """
    rows = {}
    for name, score in scores["benchmarks"].items():
        low, high = compute_wilson(score["value"], score["n"], score["standard_error"])
        rows[name] = {"value": score["value"], "low": low, "high": high, "n": score["n"], "chance": score["chance"],
                      "floor": score.get("details", {}).get("floor"), "unextracted": score["unextracted"]}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("benchmark")


def format_scores(scores: dict) -> str:
    """Write the table of scores as text, in percent, for the shell."""
    frame = build_score_frame(scores)
    shares = [c for c in frame.columns if c != "n"]
    text = frame.astype(object)
    text[shares] = frame[shares].astype(float).map(lambda x: "none" if np.isnan(x) else f"{100 * x:.1f} %")
    return text.to_markdown(colalign=("left", *["right"] * len(text.columns)), disable_numparse=True)


def compare_answers(before: pa.Table, after: pa.Table) -> pd.DataFrame:
    """Compare two models on the items both answered.

    Args:
        before, after: answers.parquet of each.

    Returns:
        One row a benchmark: before, after, difference, low, high (95 %, of the difference), n (units), changed (items);
        without numbers where a score is no mean over items.

    Raises:
        ValueError: the two did not answer the same items.
    """
    key = ["benchmark", "item_id"]
    merged = before.to_pandas().merge(after.to_pandas(), on=key, suffixes=("_0", "_1"), how="outer", indicator=True)
    if (merged["_merge"] != "both").any():
        raise ValueError("the two evaluations have different items: evaluate both with the same settings")
    rows = {}
    for benchmark, items in merged.groupby("benchmark", sort=False):
        n, delta = items["n_0"].to_numpy(), (items["correct_1"] - items["correct_0"]).to_numpy()
        found = compute_mean(delta, n)
        rows[benchmark] = {"before": items["correct_0"].sum(skipna=False) / n.sum(),
                           "after": items["correct_1"].sum(skipna=False) / n.sum(),
                           "difference": found["value"], "low": found["low"], "high": found["high"],
                           "n": int(n.sum()), "changed": (items["answer_0"] != items["answer_1"]).sum()}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("benchmark")
