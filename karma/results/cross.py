"""One square: every tuned policy against every strategy's held-out labels, and against the truth where it is known.

A policy's accuracy on its own held-out pairs says how easily its labels are learnt; a column here asks all policies the
same pairs with the same labels, whoever they were trained on. A pair is right where training made its preferred
response likelier against the other one (`karma.training.cross`). The column of the baseline holds the annotated
pairs; that of the truth all pairs of responses, of those the strategies name, that a program tells apart.
Limit: a row's cells share their prompts, so that they do not differ by as much as their intervals suggest.

Paper: none; ours.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from karma.figures.results import plot_square
from karma.labels.audit import CEILING
from karma.pairs.pairs import load_pairs, split_pairs
from karma.results.pictures import show_picture
from karma.results.tables import build_plain
from karma.statistics.intervals import compute_two_way, compute_wilson
from karma.study.experiment import Experiment
from karma.study.stages import STAGES, Job
from karma.vocabulary import title_of, title_strategy

COLUMNS = ["method", "trained_on", "tested_on", "share", "low", "high", "n_pairs", "n_prompts", "n_runs"]
CAPTION = (
    "Trained on (rows) x tested on (columns): share of held-out pairs whose preferred response training made likelier "
    "against the other (95 % interval over prompts). A column asks every policy the same pairs."
)


def build_square(experiment: Experiment) -> tuple[pd.DataFrame, list[str]]:
    """Return the long form of the square, COLUMNS, and what is missing from it, in words.

    A cell averages all policies and seeds; one of whose runs is missing, or was measured on other pairs, is left out.

    Args:
        experiment: whose; one without `benchmarks.held_out_pairs` gives no rows.
    """
    s, (changes, notes) = experiment.settings, _load_changes(experiment)
    tests = dict(_list_tests(experiment)) if changes else {}
    notes += [f"{name}: its pairs are missing: run 03" for name in s.strategies if changes and name not in tests]
    notes += [f"{name}: no pair is held out" for name, pairs in tests.items() if not len(pairs)]
    rows = []
    for (method, trained_on), runs in changes.items():
        for tested_on, pairs in tests.items():
            right = pd.concat([score_pairs(pairs, change) for change in runs], axis=1)
            if right.isna().to_numpy().any():
                notes.append(f"{method} on {trained_on}: not measured on {tested_on}'s pairs: run cross_evaluation")
            elif len(pairs):
                cell = {"method": method, "trained_on": trained_on, "tested_on": tested_on, "n_runs": len(runs)}
                rows.append({**cell, **summarise(pairs["row_id"], right)})
    if rows and len(s.seeds) == 1:
        notes.append("one seed: without training noise")
    return pd.DataFrame(rows, columns=COLUMNS), notes


def score_pairs(pairs: pd.DataFrame, change: pd.Series) -> pd.Series:
    """Return 1 for each pair whose preferred response became likelier against the other, 0 if less, half if neither.

    Args:
        pairs: row_id, preferred, other (response ids).
        change: of each response's log-probability by training, in nats, by (row_id, response_id).

    Returns:
        One value a pair; NaN where a response was not measured.

    Example:
        >>> change = pd.Series([0.5, -1.0], index=pd.MultiIndex.from_tuples([("p", "a"), ("p", "b")]))
        >>> pairs = pd.DataFrame({"row_id": ["p", "p", "q"], "preferred": ["a", "b", "a"], "other": ["b", "a", "b"]})
        >>> score_pairs(pairs, change).tolist()
        [1.0, 0.0, nan]
    """
    sides = (pd.MultiIndex.from_frame(pairs[["row_id", side]]) for side in ("preferred", "other"))
    preferred, other = (change.reindex(keys).to_numpy() for keys in sides)
    margin = preferred - other
    return pd.Series(np.where(np.isnan(margin), np.nan, (np.sign(margin) + 1) / 2), index=pairs.index)


def summarise(row_ids: pd.Series, right: pd.DataFrame) -> dict[str, float]:
    """Return the share right with its interval; pairs of one prompt are one cluster, trainings the second way.

    Args:
        row_ids: of each pair. right: (pairs, trainings), from `score_pairs`.

    Example:
        >>> found = summarise(pd.Series(["p", "p", "q", "r"]), pd.DataFrame([1.0, 1.0, 0.0, 1.0]))
        >>> found["share"], found["n_pairs"], found["n_prompts"]
        (0.75, 4, 3)
    """
    of_prompt = right.groupby(row_ids.to_numpy())
    mean, n = compute_two_way(of_prompt.sum().T, of_prompt.size()), of_prompt.ngroups
    inside = 0 < mean["value"] < 1 and n > 1  # else there is no error to go by: prompts count
    share, error = min(max(mean["value"], 0.0), 1.0), mean["standard_error"]
    low, high = compute_wilson(share, len(right) if inside else n, error if inside else None)
    if inside and right.shape[1] > 1:  # few trainings: Student's t, where it is wider
        low, high = min(low, max(mean["low"], 0.0)), max(high, min(mean["high"], 1.0))
    return {"share": mean["value"], "low": low, "high": high, "n_pairs": len(right), "n_prompts": n}


def _load_changes(experiment: Experiment) -> tuple[dict[tuple[str, str], list[pd.Series]], list[str]]:
    """Return what training changed in each run of (method, strategy), by (row_id, response_id), and what is missing."""
    stage = STAGES["cross_evaluation"]
    found: dict[tuple[str, str], list[pd.Series]] = {}
    missing: Counter[tuple[str, str]] = Counter()
    for job in (Job(experiment, stage, params) for params in stage.jobs(experiment.settings)):
        key = job.params["method"], job.params["strategy"]
        runs = found.setdefault(key, [])
        if job.products[0].is_file():
            table = pd.read_parquet(job.products[0]).set_index(["row_id", "response_id"])
            runs.append(table["logps_after"] - table["logps_before"])
        else:
            missing[key] += 1
    notes = [f"{method} on {strategy}: {n} of {n + len(found[method, strategy])} runs are missing"
             for (method, strategy), n in missing.items() if found[method, strategy]]  # fmt: skip
    return {key: runs for key, runs in found.items() if runs and not missing[key]}, notes


def _list_tests(experiment: Experiment) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield what policies are tested on: name, then its held-out pairs as row_id, preferred, other."""
    s, names = experiment.settings, {}
    for name in s.strategies:
        folder = experiment.outputs / "pairs" / name
        if (folder / "pairs.parquet").is_file():
            table = split_pairs(load_pairs(folder), s.pairs.held_out, s.pairs.seed)[1].table.to_pandas()
            columns = table[["row_id", "chosen_id", "rejected_id"]]
            names[name] = columns.set_axis(["row_id", "preferred", "other"], axis=1)
    yield from names.items()
    path = experiment.outputs / "labels" / "responses.csv"
    if s.labels.audit and path.is_file() and names:
        both = pd.concat(names.values())
        named = set(zip([*both["row_id"]] * 2, [*both["preferred"], *both["other"]], strict=True))
        yield CEILING, find_decided(pd.read_csv(path, dtype={"row_id": str, "response_id": str}), named)


def find_decided(responses: pd.DataFrame, named: set[tuple[str, str]]) -> pd.DataFrame:
    """Return the pairs of named responses to one prompt whose truths differ, the better one as `preferred`.

    Example:
        >>> responses = pd.DataFrame({"row_id": "p", "response_id": ["a", "b", "c"], "truth": [0.5, 1.0, 0.0]})
        >>> find_decided(responses, {("p", "a"), ("p", "b")}).to_dict("records")
        [{'row_id': 'p', 'preferred': 'b', 'other': 'a'}]
    """
    keys = [*zip(responses["row_id"], responses["response_id"], strict=True)]
    own = responses[[key in named for key in keys]].drop_duplicates(["row_id", "response_id"])
    both = own.merge(own, on="row_id", suffixes=("", "_other"))
    decided = both[both["truth"] > both["truth_other"]]
    frame = decided[["row_id", "response_id", "response_id_other"]].set_axis(["row_id", "preferred", "other"], axis=1)
    return frame.sort_values(["row_id", "preferred", "other"], ignore_index=True)


def show_square(experiment: Experiment, written: Path, figures: Path) -> Iterator[Any]:
    """Save the square as a table and a figure among the report's, and yield both; nothing where none was measured.

    Args:
        experiment: whose. written, figures: folders of the report's tables and figures.
    """
    long, notes = build_square(experiment)
    if long.empty:
        return
    source = experiment.settings.annotation.source
    titles = {name: title_strategy(name, source) for name in experiment.settings.strategies} | {CEILING: CEILING}
    build_plain("square_long", CAPTION, long.set_index(COLUMNS[:3]), decimals=4).save(written)
    yield show_picture(plot_square(long, titles), figures / "square")
    cells = [f"{row.share:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in long.itertuples()]
    wide = long.assign(cell=cells, method=long["method"].map(title_of), trained_on=long["trained_on"].map(titles))
    order = [titles[name] for name in dict.fromkeys(long["tested_on"])]
    frame = wide.assign(tested_on=long["tested_on"].map(titles)).pivot(
        index=["method", "trained_on"], columns="tested_on", values="cell"
    )
    sizes = long.drop_duplicates("tested_on").set_index("tested_on")["n_pairs"]
    notes = ["pairs: " + ", ".join(f"{titles[name]} {n}" for name, n in sizes.items()), *notes]
    rows = wide.drop_duplicates(["method", "trained_on"])
    keys = pd.MultiIndex.from_frame(rows[["method", "trained_on"]])
    table = build_plain(
        "square", CAPTION, frame.reindex(index=keys, columns=order).rename_axis(columns=None), notes=tuple(notes)
    )
    table.save(written)
    yield table
