"""The Response Quality Gap: how unlike the two responses of a pair are, measured from several sides.

The paper argues that pairs by kin models have a small gap in coherence, complexity and reasoning, and that
small gaps teach more. It does not measure the gap. Here every pair gets, as differences without a sign:

    length      |log2(words chosen / words rejected)|                           doublings
    complexity  |readability grade chosen - rejected| (Automated Readability)     US school grades
    lexical     1 - |shared words| / |all words|                                 0..1
    judge       |annotation chosen - rejected|                                   the annotator's units
    embedding   1 - cosine of the two texts' embeddings                          0..2

and a strategy is compared with a baseline on the prompts both have, so that the prompts' own difficulty
cancels. All comparisons of a call, measures x strategies x baselines, are one family of tests (Holm). Decision: the
judge's gap is not compared where a side's pairs were selected by these very annotations (rlaif): that would be
circular. Limit: none of these is coherence or reasoning; the judge comes closest, where there is one.

Paper: section 1 and 2.1 (Response Quality Gap).
"""

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from karma.errors import InputError
from karma.pool.affinity import grade_text
from karma.pool.annotations import AnnotationTable
from karma.pool.draws import compute_draws
from karma.pool.words import list_words, share_words
from karma.statistics.intervals import ALPHA, compute_interval, compute_mean, compute_p_value
from karma.statistics.verdicts import adjust_holm, compute_needed_n

UNITS = {"length": "doublings", "complexity": "school grades", "lexical": "share of words", "judge": "points",
         "embedding": "1 - cosine"}  # fmt: skip
SELECTED_BY = {"judge": "rlaif"}  # measure -> the strategy that picks its pairs by it
SMALL = 0.2  # standard deviations; the smallest difference worth telling (Cohen's small effect); ours
COLUMNS = ["measure", "strategy", "baseline", "n", "mean", "baseline_mean", "difference", "low", "high", "effect",
           "p_holm", "needed_n", "gap"]  # fmt: skip
Embed = Callable[[list[str]], np.ndarray]


def compute_gaps(
    pairs: pa.Table, annotations: AnnotationTable | None = None, embed: Embed | None = None
) -> pd.DataFrame:
    """Measure every pair of a set.

    Args:
        pairs: in the shape of `karma.pairs.binarizer.PAIR_SCHEMA`.
        annotations: scores of single responses, for the judge's gap.
        embed: texts -> array (texts, dimensions), for the embedding gap; None: not measured
            (`karma.models.embed.find_embedding`).

    Returns:
        One row a pair, index row_id, one column a measure that could be taken; NaN where one text gives none.

    Example:
        >>> message = lambda text: [[{"role": "assistant", "content": text}]]
        >>> one = pa.table({"row_id": ["0" * 32], "chosen": message("a b c d"), "rejected": message("a b")})
        >>> compute_gaps(one)[["length", "lexical"]].iloc[0].to_dict()
        {'length': 1.0, 'lexical': 0.5}
    """
    chosen, rejected = (get_texts(pairs[name]) for name in ("chosen", "rejected"))
    words = [[t.split() for t in texts] for texts in (chosen, rejected)]
    counts = np.array([[max(len(w), 1) for w in side] for side in words], float).reshape(2, -1)
    gaps = {
        "length": np.abs(np.log2(counts[0] / counts[1])),
        "lexical": np.array([1 - share_words(*map(list_words, both)) for both in zip(chosen, rejected, strict=True)]),
    }
    if has_readability():
        grades = {text: grade_text(text) for text in {*chosen, *rejected}}
        gaps["complexity"] = np.abs([grades[a] - grades[b] for a, b in zip(chosen, rejected, strict=True)])
    if annotations is not None and len(annotations):
        scores = annotations.score_pairs(pairs)
        gaps["judge"] = np.abs(scores[0] - scores[1])
    if embed is not None:
        gaps["embedding"] = 1 - _cosine_rows(np.asarray(embed(chosen)), np.asarray(embed(rejected)))
    ids = pd.Index(pairs["row_id"].to_pylist(), name="row_id")
    return pd.DataFrame({k: gaps[k] for k in UNITS if k in gaps}, index=ids, dtype=float)


def has_readability() -> bool:
    """Tell whether textstat is installed, which measures complexity."""
    return find_spec("textstat") is not None


def sample_rows(pairs: pa.Table, n: int, seed: int) -> pa.Table:
    """Return at most about n pairs, drawn by (seed, row_id): the same prompts from every strategy's set.

    Args:
        pairs: with a column row_id.
        n: how many of the set's rows to aim at.
        seed: of the draw.
    """
    if pairs.num_rows <= n:
        return pairs
    keys = np.array([int(i[:16], 16) for i in pairs["row_id"].to_pylist()], np.uint64)
    share = compute_draws(seed, "gap sample", keys).astype(float) / 2.0**64
    return pairs.filter(pa.array(share < n / pairs.num_rows))


def compare_gaps(gaps: Mapping[str, pd.DataFrame], *baselines: str) -> pd.DataFrame:
    """Compare each strategy's gaps with those of baselines, prompt by prompt.

    Args:
        gaps: strategy -> its gaps, from `compute_gaps`.
        baselines: keys of `gaps`, e.g. "random"; of two baselines the comparison stands once, with the first.

    Returns:
        COLUMNS, one row a (baseline, measure, strategy): n prompts both have, mean, the baseline's mean there,
        difference with its 95 % interval (paired t, not corrected), effect (Cohen's d, standard deviations pooled),
        p_holm over all rows, needed_n (prompts that would show an effect of SMALL with 80 % power at the corrected
        level, by today's spread), a verdict in words.

    Raises:
        InputError: a baseline is not among the gaps.
    """
    rows: list[dict[str, Any]] = []
    for place, baseline in enumerate(baselines):
        if baseline not in gaps:
            raise InputError(f"baseline '{baseline}' has no gaps: choose from {', '.join(gaps)}")
        others = [name for name in gaps if name not in baselines[: place + 1]]
        for measure, strategy in product((m for m in UNITS if m in gaps[baseline]), others):
            if measure in gaps[strategy] and SELECTED_BY.get(measure) not in (strategy, baseline):
                sides = [_by_row(gaps[name][measure]) for name in (strategy, baseline)]
                both = pd.concat(sides, axis=1, join="inner").dropna().to_numpy().T
                rows.append({"measure": measure, "strategy": strategy, "baseline": baseline, **_compare(*both)})
    for row, p in zip(rows, adjust_holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    n_tests = sum(not math.isnan(row["p"]) for row in rows)
    judged = [{**row, **_judge(row, n_tests)} for row in rows]
    return pd.DataFrame(judged, columns=COLUMNS).astype({"needed_n": "Int64"})


def get_texts(messages: pa.ChunkedArray | pa.Array) -> list[str]:
    """Return the text of single-turn message lists."""
    texts: list[str] = pc.struct_field(pc.list_flatten(messages), "content").to_pylist()
    return texts


def _compare(own: np.ndarray, other: np.ndarray) -> dict[str, float]:
    n = len(own)
    if n < 2:
        names = ("mean", "baseline_mean", "difference", "low", "high", "effect", "p", "spread", "standard_error", "df")
        return {"n": n, **dict.fromkeys(names, math.nan)}
    spread = math.sqrt((own.var(ddof=1) + other.var(ddof=1)) / 2)
    found = compute_mean(own - other)
    value = found.pop("value")
    p = compute_p_value(value, found["standard_error"], found["df"])
    return {"n": n, "mean": own.mean(), "baseline_mean": other.mean(), "difference": value, **found,
            "effect": value / spread if spread else 0.0, "spread": spread, "p": p}  # fmt: skip


def _judge(row: Mapping[str, Any], n_tests: int) -> dict[str, Any]:
    """Return the verdict at a level that holds for all tests at once, and the n that would show a small effect."""
    if math.isnan(row["p"]):
        return {"gap": "too few prompts", "needed_n": None}
    smallest, error = SMALL * row["spread"], row["standard_error"]
    needed = compute_needed_n(row["n"], error, smallest, n_tests) if error else None
    if row["p_holm"] < ALPHA:
        return {"gap": "narrower" if row["difference"] < 0 else "wider", "needed_n": needed}
    if not error:
        return {"gap": "the same", "needed_n": None}
    low, high = compute_interval(row["difference"], error, row["df"], n_tests)
    same = -smallest < low and high < smallest
    return {"gap": f"no difference larger than {SMALL} SD" if same else "cannot tell", "needed_n": needed}


def _by_row(values: pd.Series) -> pd.Series:
    """One value a prompt: the mean of those of a repeated row."""
    return values.groupby(level=0).mean()


def _cosine_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.divide((a * b).sum(axis=1), norms, out=np.full(len(a), np.nan), where=norms > 0))
