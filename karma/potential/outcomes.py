"""Who was right on what: the outcomes of trainings on selections, on held-out pairs and on items of benchmarks.

One table holds either: a row a training and what it was asked, `right` out of `n` units. A held-out pair is one unit,
right where training moved the policy towards the chosen response; an item is one unit, or a cluster of them: an IFEval
prompt has as many as it has instructions. So a benchmark is compared by the code that compares held-out pairs. Both
are the same for all selections, and every difference is paired by pair or item, and by seed. Decision: what one side
lacks is left out of a difference, and its n says so. Limit: whether an evaluation is of the weights that lie beside it
is not checked here; `karma status` knows.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from karma.files.reading import load_json
from karma.statistics.exact import widen_unchanged
from karma.statistics.intervals import compute_two_way, compute_wilson
from karma.study.benchmark_settings import name_benchmark
from karma.study.experiment import Experiment
from karma.study.stages import STAGES, Job
from karma.vocabulary import START

CELL = ["policy", "strategy", "metric", "ratio", "method"]
RUN_COLUMNS = [*CELL, "seed", "n_pairs", "n_candidates", "same_data_as"]
ASKED = ["row_id", "right", "n"]  # of pair or item: its id, what was right of it, its units


def collect_selections(experiment: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read every training on a selection that is finished, and its outcomes on the held-out pairs.

    Returns:
        One row a training (RUN_COLUMNS), and one row a training and held-out pair: CELL, seed and ASKED; right is 1
        where the margin is above 0, 1/2 where nothing moved.
    """
    found = [run for job in _list_jobs(experiment, "07_alignment_potential") for run in _read_runs(job)]
    runs = pd.DataFrame([row for row, _ in found], columns=RUN_COLUMNS)
    return runs, _stack([outcomes for _, outcomes in found], [*CELL, "seed", *ASKED])


def _read_runs(job: Job) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    s = job.experiment.settings
    for method in s.potential.methods:
        for seed in s.seeds:
            folder: Path = job.folder / method / f"seed{seed}"
            if not (folder / "held_out.parquet").is_file() or not (folder / "training.json").is_file():
                continue
            record, books = load_json(folder / "training.json"), load_json(job.folder / "accounting.json")
            key = {**job.params, "ratio": float(job.params["ratio"]), "method": method, "seed": seed}
            anew = record.get("refilter")  # then it has all candidates, and trains an epoch on its share
            n_pairs = anew["epochs"][0]["n_kept"] if anew else record["n_train_pairs"]
            row = {**key, "n_pairs": n_pairs, "n_candidates": books["settings"].get("candidates"),
                   "same_data_as": record["same_data_as"]}  # fmt: skip
            pairs = pq.read_table(folder / "held_out.parquet", columns=["row_id", "margin"]).to_pandas()
            right = (pairs["margin"] > 0) + 0.5 * (pairs["margin"] == 0)
            yield row, pd.DataFrame({**key, "row_id": pairs["row_id"], "right": right, "n": 1})


def collect_answers(experiment: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the answers of every policy trained on a selection, and of the untrained ones.

    Returns:
        One row a training and item: benchmark, CELL, seed and ASKED; and one row an untrained policy and item: policy,
        benchmark and ASKED. The first is empty where a study does not ask (`potential.on_benchmarks`).
    """
    trained = [
        _read_answers(job, **{**job.params, "ratio": float(job.params["ratio"]), "seed": int(job.params["seed"])})
        for job in _list_jobs(experiment, "selection_evaluation")
    ]
    evaluations = _list_jobs(experiment, "05_policy_evaluation")
    starts = [job for job in evaluations if job.params["strategy"] == START]
    untrained = [_read_answers(job, policy=job.params["policy"]) for job in starts]
    return (
        _stack(trained, ["benchmark", *CELL, "seed", *ASKED]),
        _stack(untrained, ["benchmark", "policy", *ASKED]),
    )


def _read_answers(job: Job, **key: Any) -> pd.DataFrame:
    """Return the outcomes of one evaluation, of the benchmarks that the study asks now; no row where it is missing."""
    path = job.folder / "answers.parquet"
    if not path.is_file():
        return pd.DataFrame()
    rows = pq.read_table(path, columns=["benchmark", "item_id", "correct", "n"]).to_pandas()
    asked = [name_benchmark(benchmark) for benchmark in job.experiment.settings.benchmarks.policy]
    rows = rows[rows["benchmark"].isin(asked)]
    return rows.rename(columns={"item_id": "row_id", "correct": "right"}).assign(**key)


def _list_jobs(experiment: Experiment, stage: str) -> Iterator[Job]:
    return (Job(experiment, STAGES[stage], params) for params in STAGES[stage].jobs(experiment.settings))


def _stack(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    there = [part for part in parts if len(part)]
    return pd.concat(there, ignore_index=True)[columns] if there else pd.DataFrame(columns=columns)


def split_benchmarks(outcomes: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield what outcomes are of, {"benchmark": its name}, with its part; of held-out pairs {} with the whole."""
    if "benchmark" not in outcomes:
        yield {}, outcomes
        return
    for name, part in outcomes.groupby("benchmark", sort=False):
        yield {"benchmark": str(name)}, part


def compute_outcomes(part: pd.DataFrame) -> pd.DataFrame:
    """Return what was right of each pair or item, by seed: index (row_id, n), a column a seed.

    Args:
        part: one cell's outcomes, of one benchmark or of the held-out pairs.
    """
    return part.groupby(["row_id", "n", "seed"])["right"].mean().unstack("seed")


def find_outcomes(outcomes: pd.DataFrame, key: Mapping[str, Any], part: pd.DataFrame) -> pd.DataFrame | None:
    """Return the outcomes of another cell in the same seeds; None for the cell itself, or where seeds are missing.

    Args:
        outcomes: of one benchmark or of the held-out pairs. key: CELL of the other. part: the cell's own outcomes.
    """
    if key["metric"] == part["metric"].iloc[0]:
        return None
    cell = pd.Series({name: key[name] for name in CELL})
    others = outcomes[(outcomes[CELL] == cell).all(axis=1) & outcomes["seed"].isin(part["seed"])]
    return compute_outcomes(others) if set(others["seed"]) == set(part["seed"]) else None


def find_untrained(untrained: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame | None:
    """Return the untrained policy's outcomes, the same in every seed of a cell; None where it was not asked.

    Args:
        untrained: from `collect_answers`. part: a cell's outcomes on one benchmark.
    """
    first = part.iloc[0]
    own = untrained[(untrained["policy"] == first["policy"]) & (untrained["benchmark"] == first["benchmark"])]
    return compute_outcomes(own.merge(part[["seed"]].drop_duplicates(), how="cross")) if len(own) else None


def get_units(right: pd.DataFrame) -> np.ndarray:
    """Return how many units each row of outcomes holds, from `compute_outcomes`."""
    return right.index.get_level_values("n").to_numpy(float)


def compute_difference(right: pd.DataFrame, baseline: pd.DataFrame | None) -> dict[str, float]:
    """Return the mean of right minus baseline, paired by pair or item and by seed (`compute_two_way`).

    Args:
        right, baseline: from `compute_outcomes`; without a baseline everything is NaN.

    Returns:
        As `compute_two_way`, with an exact interval where nothing changed; n: the units compared; clusters: the pairs
        or items that hold them.
    """
    both = (right - baseline).dropna() if baseline is not None else right[:0]
    if both.empty:
        return {**dict.fromkeys(("value", "standard_error", "low", "high", "df"), float("nan")), "n": 0}
    units = get_units(both)
    return {**widen_unchanged(compute_two_way(both.T, units), len(both)), "n": int(units.sum())}


def compute_share(right: pd.DataFrame) -> dict[str, float]:
    """Return the share of units that are right, with its 95 % interval (Wilson) over pairs or items, and seeds.

    Args:
        right: from `compute_outcomes`.

    Returns:
        accuracy, low, high, n (units).

    Example:
        >>> index = pd.MultiIndex.from_tuples([("p", 2), ("q", 2), ("r", 2), ("s", 2)], names=["row_id", "n"])
        >>> found = compute_share(pd.DataFrame({0: [2.0, 2.0, 0.0, 0.0]}, index=index))  # four prompts, not eight units
        >>> found["accuracy"], found["n"], round(found["low"], 3) == round(compute_wilson(0.5, 4)[0], 3)
        (0.5, 8, True)
    """
    right = right.dropna()
    units = get_units(right)
    found, n = compute_two_way(right.T, units), int(units.sum())
    several = right.shape[1] > 1
    clustered = (found["standard_error"], 1, found["df"] if several else np.inf) if several or n > len(right) else ()
    inside = 0 < found["value"] < 1  # else there is no error to go by: clusters count
    low, high = compute_wilson(found["value"], n if inside else len(right), *clustered)
    return {"accuracy": found["value"], "low": low, "high": high, "n": n}
