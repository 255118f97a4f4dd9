"""Table 2 with its uncertainty: each mean over a data set's runs, and the Total, with a 95 % interval.

A mean is a weighted sum of scores (`karma.results.estimates`): its error is that of the items, which the runs share,
prompts with several instructions as one cluster, and of the seeds where several were trained. Decision: where the
number of items of any part is unknown, as in some of the paper's, there is no interval. Limit: with one seed the
noise of training is not in it.

Paper: Table 2, which has no intervals.
"""

import numpy as np

from karma.results.estimates import Estimate, compute_mean
from karma.results.study import Study
from karma.results.tables import (
    HELD_OUT,
    TOTAL,
    Table,
    build_plain,
    build_table2,
    note_shared_benchmarks,
    title_columns,
)

CAPTION = (
    "Table 2's means with 95 % intervals (share in [0, 1]): items clustered by prompt, and seeds where several were "
    "trained."
)


def compute_means(study: Study) -> dict[tuple[str, str], Estimate]:
    """Return the means that Table 2 shows, with their errors, by (title of the row, strategy); gaps are left out.

    Args:
        study: measured, whole or not, or the published one.

    Example:
        >>> from karma.results.published import load_published
        >>> found = compute_means(load_published())
        >>> found["MMLU-Pro", "rlaif"].n, round(found["MMLU-Pro", "rlaif"].value, 4)
        (488, 0.1419)
        >>> found["Total", "rlaif"].interval  # some of its parts have an unknown number of items
        (nan, nan)
    """
    shown, results = build_table2(study).frame, study.compared_results
    titles = study.title_benchmarks("table2")
    rows = {title: [name] for name, title in titles.items()} | {TOTAL: list(titles)}
    return {
        (row, strategy): compute_mean(
            study, results[(results["strategy"] == strategy) & results["benchmark"].isin(rows[row])]
        )
        for row in shown.index if not row.startswith(HELD_OUT)
        for strategy, column in title_columns(study).items() if not np.isnan(shown.loc[row, column])
    }  # fmt: skip


def build_means(study: Study) -> Table:
    """Return Table 2's means as text with their intervals.

    Example:
        >>> from karma.results.published import load_published
        >>> build_means(load_published()).frame.loc["MMLU-Pro", "RLAIF"]
        '0.142 [0.112, 0.172]'
    """
    shown, found = build_table2(study).frame, compute_means(study)
    shown = shown[~shown.index.str.startswith(HELD_OUT)]
    frame = shown.astype(object).where(shown.isna())
    columns = title_columns(study)
    for (row, strategy), estimate in found.items():
        low, high = np.clip(estimate.interval, 0, 1)
        interval = "(items unknown)" if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"
        frame.loc[row, columns[strategy]] = f"{estimate.value:.3f} {interval}"
    notes = [f"errors: {basis}" for basis in dict.fromkeys(estimate.basis for estimate in found.values())]
    if len(study.seeds) == 1:
        notes.append("one seed: without training noise")
    notes += note_shared_benchmarks(study)
    return build_plain("table2_intervals", CAPTION, frame, notes=tuple(notes))
