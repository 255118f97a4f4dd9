"""The paper's own numbers: its tables as printed, and the published study in the shape of a measured one.

Decision: printed cells stay text until they are computed with. The paper does not say how many items it asked; a count
explains a group of four-digit values (a benchmark's, by one method) if most of them are fractions of it and luck would
hardly do that for any of the counts tried. A group that no count explains has none, and no interval.

Paper: Tables 2, 3 and 4.
"""

import math
import re
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd
from scipy import stats

from karma.results.study import RESULT_COLUMNS, RUN_KEYS, Study
from karma.scores.read import load_score_table
from karma.scores.table import load_benchmarks
from karma.statistics.intervals import ALPHA

MOST_ITEMS = 5000  # counts tried; of 10,000 items every four-digit number is a fraction
LEAST_SHARE = 2 / 3  # of a group's values that a count must explain


def load_published() -> Study:
    """Return the paper's own numbers as a study: Table 4's 32 runs and Table 3's origin scores.

    Item counts are those its fractions allow (`find_items`), NaN where none explains them: its intervals rest on an
    inference.

    Paper: Tables 3 and 4.

    Example:
        >>> study = load_published()
        >>> len(study.results), study.policies[0], len(study.gaps)
        (160, 'Llama-3.1-3B', 0)
    """
    printed = load_printed("table4")
    long = printed.melt(["benchmark", "policy", "method"], var_name="strategy", value_name="value")
    long["benchmark"] = [normalise_benchmark(b) for b in long["benchmark"]]
    long["value"], long["method"] = long["value"].astype(float), long["method"].str.lower()
    items = find_items()
    long["n"] = [items[key] or math.nan for key in zip(long["benchmark"], long["method"], strict=True)]
    long["standard_error"] = (long["value"] * (1 - long["value"]) / long["n"]) ** 0.5
    long["chance"] = long["benchmark"].map(load_benchmarks()["chance"])
    long = long.assign(seed=0, unextracted=None, folder="")[RESULT_COLUMNS]
    unique = {k: tuple(dict.fromkeys(long[k])) for k in ("policy", "strategy", "method", "benchmark")}
    empty = pd.DataFrame
    return Study(
        name="published", policies=unique["policy"], strategies=unique["strategy"], methods=unique["method"],
        seeds=(0,), benchmarks=unique["benchmark"], results=long, trainings=empty(columns=RUN_KEYS),
        origins=empty(), scores=load_score_table("paper_four_digit"), pairs=empty(),
        costs={"annotation": None}, gaps=empty(columns=["what", "file", "made_by"]),
    )  # fmt: skip


def load_printed(table: str) -> pd.DataFrame:
    """Return one of the paper's tables as text, cell by cell as printed (`table2`, `table3`, `table4`)."""
    return pd.read_csv(str(files("karma") / "data" / "paper" / f"{table}.csv"), dtype=str)


@cache
def find_items() -> dict[tuple[str, str], int | None]:
    """Return the number of items behind each group of Table 4's values, by (benchmark, method); None: unknown.

    Example:
        >>> found = find_items()
        >>> found["mmlu_pro", "dpo"], found["arc_easy", "sft"], found["arc_easy", "dpo"], found["mmlu_stem", "dpo"]
        (488, 1000, 2376, None)
    """
    printed = load_printed("table4")
    groups = printed.groupby([printed["benchmark"].map(normalise_benchmark), printed["method"].str.lower()])
    return {key: infer_items(rows.iloc[:, 3:].astype(float).stack()) for key, rows in groups}


def infer_items(values: pd.Series) -> int | None:
    """Return the count whose fractions the four-digit `values` are, if one explains them beyond luck.

    Of a count n, luck makes a four-digit number a fraction with probability n / 10,000; the binomial p of the distinct
    values is corrected for all counts tried (Bonferroni).

    Example:
        >>> infer_items(pd.Series([k / 431 for k in range(20, 400, 30)]).round(4)), infer_items(pd.Series([0.1234]))
        (431, None)
    """
    own = values.drop_duplicates().to_numpy()
    counts = np.arange(2, MOST_ITEMS + 1)
    nearest = np.rint(own[:, None] * counts) / counts
    fits = (np.abs(nearest - own[:, None]) <= 0.5e-4 + 1e-12).sum(axis=0)
    p = stats.binom.sf(fits - 1, len(own), counts * 1e-4) * len(counts)
    best = int(np.lexsort((counts, p))[0])
    return int(counts[best]) if p[best] < ALPHA and fits[best] >= LEAST_SHARE * len(own) else None


def normalise_benchmark(text: str) -> str:
    """Map the spellings of Tables 2 and 4 to the kit's names.

    Example:
        >>> [normalise_benchmark(t) for t in ("MMLU", "MMLU-pro", "ARC-Easy", "IFeval")]
        ['mmlu_stem', 'mmlu_pro', 'arc_easy', 'ifeval']
    """
    name = text.casefold().replace("-", "_")
    return "mmlu_stem" if name == "mmlu" else name


def compute_size(model: str) -> float | None:
    """Read a model's size in billions of parameters from its name.

    Example:
        >>> compute_size("Llama-2-13b-chat"), compute_size("smollm2-135m"), compute_size("GPT-4")
        (13.0, 0.135, None)
    """
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([bm])(?![a-z])", model.casefold())
    return float(found[1]) / (1 if found[2] == "b" else 1000) if found else None
