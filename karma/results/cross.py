"""One square: every tuned policy against every strategy's held-out labels, and against the truth where it is known.

A policy's accuracy on its own held-out pairs says how easily its labels are learnt; a column here asks all policies the
same pairs with the same labels, whoever they were trained on. A pair is right where training made its preferred
response likelier against the other one (`karma.training.cross`). The column of the baseline holds the annotated
pairs; that of the truth all pairs of responses, of those the strategies name, that a program tells apart.
Limit: a row's cells share their prompts, so that they do not differ by as much as their intervals suggest.

Paper: none; ours.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from karma.figures.results import plot_square
from karma.figures.style import save_figure
from karma.labels.audit import CEILING
from karma.pairs.pairs import load_pairs, split_pairs
from karma.results.tables import Table, build_plain
from karma.statistics import compute_mean, compute_wilson
from karma.study.experiment import Experiment
from karma.study.stages import STAGES, Job
from karma.vocabulary import title_of, title_strategy

COLUMNS = ["method", "trained_on", "tested_on", "share", "low", "high", "n_pairs", "n_prompts", "n_runs"]
CAPTION = (
    "Trained on (rows) x tested on (columns): share of held-out pairs whose preferred response training made likelier "
    "against the other (95 % interval over prompts). A column asks every policy the same pairs."
)


def build_square(experiment: Experiment) -> pd.DataFrame:
    """Return the long form of the square, COLUMNS, one row a cell that was measured; policies and seeds are averaged.

    Args:
        experiment: whose; one without `benchmarks.held_out_pairs` gives no rows.
    """
    changes = dict(_load_changes(experiment))
    tests = dict(_list_tests(experiment)) if changes else {}
    rows = []
    for (method, trained_on), runs in changes.items():
        for tested_on, pairs in tests.items():
            found = [score_pairs(pairs, change) for change in runs]
            cell = dict(zip(COLUMNS, (method, trained_on, tested_on), strict=False))
            if len(pairs):
                rows.append({**cell, **summarise(pairs["row_id"], pd.concat(found, axis=1).mean(axis=1)),
                             "n_runs": len(runs)})  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def score_pairs(pairs: pd.DataFrame, change: pd.Series) -> pd.Series:
    """Return 1 for each pair whose preferred response became likelier against the other, 0 if less, half if neither.

    Args:
        pairs: row_id, preferred, other (response ids).
        change: of each response's log-probability by training, in nats, by (row_id, response_id).

    Example:
        >>> change = pd.Series([0.5, -1.0], index=[("p", "a"), ("p", "b")])
        >>> pairs = pd.DataFrame({"row_id": ["p", "p"], "preferred": ["a", "b"], "other": ["b", "a"]})
        >>> score_pairs(pairs, change).tolist()
        [1.0, 0.0]
    """
    sides = [
        change.loc[list(zip(pairs["row_id"], pairs[side], strict=True))].to_numpy() for side in ("preferred", "other")
    ]
    margin = sides[0] - sides[1]
    return pd.Series((margin > 0) + 0.5 * (margin == 0), index=pairs.index)


def summarise(row_ids: pd.Series, right: pd.Series) -> dict[str, float]:
    """Return the share right with its interval; pairs of one prompt are one cluster.

    Example:
        >>> found = summarise(pd.Series(["p", "p", "q", "r"]), pd.Series([1.0, 1.0, 0.0, 1.0]))
        >>> found["share"], found["n_pairs"], found["n_prompts"]
        (0.75, 4, 3)
    """
    of_prompt = right.groupby(row_ids.to_numpy())
    mean = compute_mean(of_prompt.sum(), of_prompt.size())
    n = len(right) if 0 < mean["value"] < 1 else of_prompt.ngroups
    error = mean["standard_error"] if of_prompt.ngroups > 1 else None
    low, high = compute_wilson(min(max(mean["value"], 0.0), 1.0), n, error)
    return {"share": mean["value"], "low": low, "high": high, "n_pairs": len(right), "n_prompts": of_prompt.ngroups}


def _load_changes(experiment: Experiment) -> Iterator[tuple[tuple[str, str], list[pd.Series]]]:
    """Yield (method, strategy) with what training changed in each of its runs, by (row_id, response_id)."""
    stage = STAGES["cross_evaluation"]
    found: dict[tuple[str, str], list[pd.Series]] = {}
    for job in (Job(experiment, stage, params) for params in stage.jobs(experiment.settings)):
        if job.products[0].is_file():
            table = pd.read_parquet(job.products[0]).set_index(["row_id", "response_id"])
            change = table["logps_after"] - table["logps_before"]
            found.setdefault((job.params["method"], job.params["strategy"]), []).append(change)
    yield from found.items()


def _list_tests(experiment: Experiment) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield what policies are tested on: name, then its held-out pairs as row_id, preferred, other."""
    s, names = experiment.settings, {}
    for name in s.strategies:
        folder = experiment.outputs / "pairs" / name
        table = split_pairs(load_pairs(folder), s.pairs.held_out, s.pairs.seed)[1].table.to_pandas()
        names[name] = table[["row_id", "chosen_id", "rejected_id"]].set_axis(["row_id", "preferred", "other"], axis=1)
    yield from names.items()
    path = experiment.outputs / "labels" / "responses.csv"
    if path.is_file():
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


def show_square(experiment: Experiment, written: Path, figures: Path) -> Iterator[Table]:
    """Save the square as a table and a figure among the report's, and yield the table; nothing where none was measured.

    Args:
        experiment: whose. written, figures: folders of the report's tables and figures.
    """
    long = build_square(experiment)
    if long.empty:
        return
    source = experiment.settings.annotation.source
    titles = {name: title_strategy(name, source) for name in experiment.settings.strategies} | {CEILING: CEILING}
    build_plain("square_long", CAPTION, long.set_index(COLUMNS[:3]), decimals=4).save(written)
    save_figure(plot_square(long, titles)[0], figures / "square")
    cells = [f"{row.share:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in long.itertuples()]
    wide = long.assign(cell=cells, method=long["method"].map(title_of), trained_on=long["trained_on"].map(titles))
    order = [titles[name] for name in dict.fromkeys(long["tested_on"])]
    frame = wide.assign(tested_on=long["tested_on"].map(titles)).pivot(
        index=["method", "trained_on"], columns="tested_on", values="cell"
    )
    sizes = long.drop_duplicates("tested_on").set_index("tested_on")["n_pairs"]
    note = "pairs: " + ", ".join(f"{titles[name]} {n}" for name, n in sizes.items())
    rows = wide.drop_duplicates(["method", "trained_on"])
    keys = pd.MultiIndex.from_frame(rows[["method", "trained_on"]])
    table = build_plain(
        "square", CAPTION, frame.reindex(index=keys, columns=order).rename_axis(columns=None), notes=(note,)
    )
    table.save(written)
    yield table
