"""The report's part on the premise: are the responses of kin less unlike? Stage 03 measures it, 09 adds the truth."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from karma.figures.pairs import plot_premise
from karma.pairs.premise import PARTS, average_models, measure_truths, relate_gaps, trace_gaps
from karma.results.pictures import show_picture
from karma.results.tables import build_plain
from karma.study.experiment import Experiment

CAPTION = (
    "Is the premise true of this pool? Mantel's r of the mean response gap of each two origin models with 1 - kinship, "
    "and with their difference in S_pref (positive: the premise holds)."
)
CURVE = "Mean gap of the response pairs whose models' kinship reaches tau (95 % interval, clustered by prompt)."


def show_premise(experiment: Experiment, written: Path, figures: Path) -> Iterator[Any]:
    """Save tables and figure of the premise among the report's, and yield both; nothing where 03 has not run.

    All strategies are of one pool, so that the first folder that holds the measures is as good as any.

    Args:
        experiment: whose. written, figures: folders of the report's tables and figures.
    """
    s, outputs = experiment.settings, experiment.outputs
    folders = [outputs / "pairs" / name / "premise" for name in s.strategies]
    folder = next((f for f in folders if all((f / f"{part}.csv").is_file() for part in PARTS)), None)
    if folder is None:
        return
    tests, curve, models = (pd.read_csv(folder / f"{part}.csv") for part in PARTS)
    responses = outputs / "labels" / "responses.csv"
    if s.labels.audit and responses.is_file():
        truths = measure_truths(pd.read_csv(responses, dtype={"row_id": str, "response_id": str}), models)
        means = average_models(truths)[["one", "other", "truth"]]
        models = models.merge(means, on=["one", "other"], how="left")
        tests, curve = relate_gaps(models), pd.concat([curve, trace_gaps(truths)], ignore_index=True)
    if len(curve):
        yield show_picture(plot_premise(tests, curve, models, s.kinship.tau), figures / "premise")
    build_plain("premise_curve", CURVE, curve.set_index(["measure", "tau"]), decimals=4).save(written)
    table = build_plain("premise", CAPTION, tests.set_index(["relation", "measure"]))
    table.save(written)
    yield table
