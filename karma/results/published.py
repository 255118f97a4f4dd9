"""The paper's own numbers: its tables as printed, and the published study in the shape of a measured one.

Decision: printed cells stay text until they are computed with. Limit: item counts are an inference from the printed
fractions (`PUBLISHED_ITEMS`), and so is every interval that rests on them.

Paper: Tables 2, 3 and 4.
"""

import re
from importlib.resources import files

import pandas as pd

from karma.results.study import RESULT_COLUMNS, RUN_KEYS, Study
from karma.scores.read import load_score_table
from karma.scores.table import load_benchmarks

# Items that make Table 4's four-digit values possible fractions (karma.results.audit); not the full benchmarks.
PUBLISHED_ITEMS = {"mmlu_stem": 500, "mmlu_pro": 488, "ifeval": 834, "arc_easy": 1000, "arc_challenge": 1172}


def load_published() -> Study:
    """Return the paper's own numbers as a study: Table 4's 32 runs and Table 3's origin scores.

    Item counts are those its fractions allow (PUBLISHED_ITEMS): its intervals rest on an inference.

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
    long["n"] = long["benchmark"].map(PUBLISHED_ITEMS)
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
