"""The score table: origin models x benchmarks, checked when made, with what is known of each benchmark.

Scores are fractions in code, whatever unit a file uses, so that tables can be merged and compared with
chance. A doubtful table is refused, never repaired: min-max and cosine turn a wrong cell into a plausible
wrong answer for every model. Limit: a table is rectangular; a model without one score has no place in it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.scores.names import canonical_model_name

FACT_COLUMNS = ("developer", "base_model", "size_b", "family", "merged", "tuning_data")
PAPER_TABLES = files("karma") / "data" / "paper"
MEASURES = ("cosine", "centred_cosine", "rmsd", "rank")  # of kinship; what each is: karma.kinship.similarity


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of origin models on benchmarks.

    Attributes:
        scores: origin_model x benchmark, fractions in [0, 1].
        benchmarks: benchmark of `scores` x (title, capability, answer_form, chance or NaN).
        n_items: benchmark -> number of items behind each score, or None where unknown.
        n_items_source: "measured", or on what assumption.
        facts: origin_model x (developer, base_model, size_b in 1e9 parameters, family, merged, tuning_data), as
            declared; missing: unknown.
        notes: what a reader should know: averages that disagree, benchmarks left out.
        source: file or study the table comes from.
        case_sensitive: whether names that differ in capitals are different models.
        measure: of kinship between its models, one of MEASURES; the paper's is the cosine. It is the table's, so that
            pairs, intervals and figures of one table cannot speak of different kinships.
        weights: benchmark -> its weight in kinship; empty: all alike, as in the paper. S_pref knows no weights.

    Raises:
        InputError: fewer than two models, a repeated model, a missing or impossible score, a constant column.
    """

    scores: pd.DataFrame
    benchmarks: pd.DataFrame
    n_items: dict[str, int] | None = None
    n_items_source: str = "unknown"
    facts: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(FACT_COLUMNS)))
    notes: tuple[str, ...] = ()
    source: str = "memory"
    case_sensitive: bool = False
    measure: str = "cosine"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_models(self.scores.index, self.source, self.case_sensitive)
        check_scores(self.scores, self.source)


def set_kinship(
    table: ScoreTable, measure: str | None = None, weights: Mapping[str, float] | None = None
) -> ScoreTable:
    """Return the table with another measure of kinship, or other weights.

    Args:
        table: origin models x benchmarks.
        measure: one of MEASURES; None: the table's own.
        weights: of benchmarks, by name, or of capabilities, whose benchmarks share theirs alike (so that equal weights
            make capabilities count alike, however many benchmarks each has); None or empty: the table's own.

    Raises:
        InputError: an unknown measure or name, a benchmark without a weight, a weight below 0, or none above it.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> set_kinship(load_score_table("paper"), weights={"knowledge": 1, "reasoning": 1, "ifeval": 0}).weights
        ... # doctest: +NORMALIZE_WHITESPACE
        {'ifeval': 0.0, 'mmlu_stem': 0.5, 'mmlu_pro': 0.5, 'hellaswag': 0.3333333333333333,
        'arc_easy': 0.3333333333333333, 'arc_challenge': 0.3333333333333333}
    """
    if measure is not None and measure not in MEASURES:
        raise InputError(f"kinship.measure is '{measure}': choose from {', '.join(MEASURES)}")
    return replace(table, measure=measure or table.measure,
                   weights=_share_weights(table, weights) if weights else table.weights)  # fmt: skip


def _share_weights(table: ScoreTable, weights: Mapping[str, float]) -> dict[str, float]:
    """Return a weight for every benchmark: its own, else its share of its capability's."""
    capability = table.benchmarks["capability"]
    for name, weight in weights.items():
        if name not in capability.index and name not in set(capability):
            known = ", ".join([*capability.unique(), *capability.index])
            raise InputError(f"kinship.weights: '{name}' is no capability and no benchmark: choose from {known}")
        if not 0 <= weight < np.inf:
            raise InputError(f"kinship.weights: '{name}' weighs {weight}: give 0 or more")
    shared = capability[[name for name in capability.index if name not in weights]]
    found = {}
    for name in table.scores:
        if name not in weights and capability[name] not in weights:
            raise InputError(f"kinship.weights: '{name}' has no weight: name it or its capability "
                             f"('{capability[name]}'); 0 leaves it out")  # fmt: skip
        share = int((shared == capability[name]).sum())
        found[str(name)] = float(weights[name] if name in weights else weights[capability[name]] / share)
    if not any(found.values()):
        raise InputError("kinship.weights: all are 0: weigh at least one benchmark")
    return found


@cache
def _read_benchmarks() -> pd.DataFrame:
    with (PAPER_TABLES / "benchmarks.csv").open(encoding="utf-8") as stream:
        return pd.read_csv(stream, index_col="name").astype({"n_items": int})


def load_benchmarks() -> pd.DataFrame:
    """Return the paper's benchmarks: title, capability, answer_form, table3_unit, chance, n_items.

    Example:
        >>> load_benchmarks().loc["arc_easy", "capability"]
        'reasoning'

    Paper: Table 1 (capability, answer form), Table 3 (unit).
    """
    return _read_benchmarks().copy()


def describe_benchmarks(tasks: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return `load_benchmarks` with further benchmarks after them: tasks of lm-evaluation-harness.

    Args:
        tasks: benchmark -> title, capability, answer_form, chance (None: unknown).

    Example:
        >>> own = {"title": "Moral scenarios", "capability": "ethics", "answer_form": "multiple choice", "chance": 0.25}
        >>> describe_benchmarks({"mmlu_moral_scenarios": own})["capability"].iloc[-1]
        'ethics'
    """
    facts = ["title", "capability", "answer_form", "chance"]
    own = pd.DataFrame([[task[key] for key in facts] for task in tasks.values()], list(tasks), facts)
    own = own.assign(table3_unit="percent").astype({"chance": float})
    return pd.concat([load_benchmarks(), own]).rename_axis("name") if tasks else load_benchmarks()


def check_models(index: Iterable[str], file: str, case_sensitive: bool = False) -> None:
    """Raise an InputError where fewer than two models are named, or one twice (in the canonical spelling)."""
    seen: dict[str, str] = {}
    for name in map(str, index):
        key = name if case_sensitive else canonical_model_name(name)
        if not key:
            raise InputError(f"{file}: a row has no origin model: name it or remove it")
        if key in seen:
            raise InputError(f"{file}: '{name}' and '{seen[key]}' are the same origin model: keep one row")
        seen[key] = name
    if len(seen) < 2:
        raise InputError(f"{file}: {len(seen)} origin models, kinship needs at least two: add rows")


def check_scores(scores: pd.DataFrame, file: str) -> None:
    """Raise an InputError that names the first impossible cell, or a constant benchmark."""
    values = scores.to_numpy(dtype=float)
    for row, column in np.argwhere(~((values >= 0) & (values <= 1))):  # NaN too
        cell = f"{file}, row '{scores.index[row]}', column '{scores.columns[column]}'"
        raise InputError(f"{cell}: {values[row, column]} is no fraction in [0, 1]: correct the score")
    for name in scores.columns[np.ptp(values, axis=0) == 0]:
        value = scores[name].iloc[0]
        raise InputError(f"{file}: all models score {value:.4g} on '{name}', min-max is undefined: leave it out")
