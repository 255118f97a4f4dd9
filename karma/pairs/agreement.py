"""Agreement: how often the kinship label is the label that annotation would have given.

Among pairs whose two responses are annotated: the annotations agree where chosen is rated higher, disagree
where rejected is, and tie where they are equal. The share that agrees is taken of the pairs that do not
tie; ties are shown beside it. The same counting says what annotation would have cost. Limit: the annotator
is a judge too; agreement with it is not truth.

Paper: the comparison is ours; section 4 compares the trained policies instead.
"""

import math
from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd
import pyarrow as pa

from karma.pool.annotations import AnnotationTable
from karma.pool.pool import ResponsePool
from karma.pool.responses import BYTES_PER_TOKEN, count_bytes
from karma.statistics.intervals import compute_wilson


def compute_agreement(pairs: pa.Table, annotations: AnnotationTable, by_models: bool = False) -> pd.DataFrame:
    """Count agreement of the kinship label with the annotations.

    Args:
        pairs: in the shape of `karma.pairs.binarizer.PAIR_SCHEMA`.
        annotations: scores of single responses.
        by_models: one row for each (chosen_model, rejected_model), else one row in all.

    Returns:
        n (annotated pairs), agree, disagree, tie, share (of the untied), low and high (95 %, Wilson).
    """
    chosen, rejected = annotations.score_pairs(pairs)
    rated = np.isfinite(chosen) & np.isfinite(rejected)
    frame = pairs.select(["chosen_model", "rejected_model"]).to_pandas()[rated]
    sign = np.sign(chosen - rejected)[rated]
    frame = frame.assign(agree=sign > 0, disagree=sign < 0, tie=sign == 0, n=1)
    counts = ["n", "agree", "disagree", "tie"]
    if by_models:
        table = frame.groupby(["chosen_model", "rejected_model"])[counts].sum().reset_index()
        table = table.sort_values(
            ["n", "chosen_model", "rejected_model"], ascending=[False, True, True], ignore_index=True
        )
    else:
        table = frame[counts].sum().to_frame().T
    table[counts] = table[counts].astype(int)
    intervals = [_compute_share(a, a + d) for a, d in zip(table["agree"], table["disagree"], strict=True)]
    table[["share", "low", "high"]] = np.array(intervals, float).reshape(-1, 3)
    return table


def _compute_share(k: int, n: int) -> tuple[float, float, float]:
    return (k / n, *compute_wilson(k / n, n)) if n else (math.nan, math.nan, math.nan)


def compute_overlap(sets: Mapping[str, pa.Table], of: str = "pair") -> pd.DataFrame:
    """Return, for each two strategies, the share of the prompts both have on which they decide the same.

    Args:
        sets: strategy -> pairs.
        of: "chosen" (the same response is chosen) or "pair" (chosen and rejected are the same).

    Returns:
        A square table of shares, 1 on the diagonal, NaN where two strategies share no prompt.

    Example:
        >>> one, other = ({"row_id": ["r"], "chosen_id": ["a"], "rejected_id": [x]} for x in "bc")
        >>> sets = {"k_score": pa.table(one), "k_sim": pa.table(other)}
        >>> [float(compute_overlap(sets, of).loc["k_score", "k_sim"]) for of in ("chosen", "pair")]
        [1.0, 0.0]
    """
    columns = ["chosen_id"] if of == "chosen" else ["chosen_id", "rejected_id"]
    frames = {
        s: t.select(["row_id", *columns]).to_pandas().drop_duplicates("row_id").set_index("row_id")
        for s, t in sets.items()
    }
    shares = pd.DataFrame(np.nan, index=list(sets), columns=list(sets))
    for a, b in product(sets, repeat=2):
        both = frames[a].join(frames[b], rsuffix="_other", how="inner")
        if len(both):
            shares.loc[a, b] = np.logical_and.reduce([both[c] == both[f"{c}_other"] for c in columns]).mean()
    return shares


def compute_cost_saved(pool: ResponsePool) -> dict[str, int]:
    """Count what annotating every response once would take, and kinship does not.

    Returns:
        calls (one a response), prompt_tokens (instruction and response, estimated as UTF-8 bytes / 4;
        the judge's own instructions come on top).
    """
    calls = n_bytes = 0
    for batch in pool.batches():
        calls += len(batch.row)
        n_bytes += int(count_bytes(batch.response).sum() + count_bytes(batch.instruction)[batch.row].sum())
    return {"calls": calls, "prompt_tokens": n_bytes // BYTES_PER_TOKEN}
