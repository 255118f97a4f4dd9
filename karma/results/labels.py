"""The report's part on labels: what stage 09 measured, where a study audits its labels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from karma.figures.labels import plot_label_accuracy, title_labels
from karma.files.reading import load_json
from karma.labels.recorded import BY_CONSTRUCTION
from karma.results.equal_sets import list_once
from karma.results.pictures import show_picture
from karma.results.tables import build_plain
from karma.study.experiment import Experiment

CAPTION = (
    "Are the labels right? Of the pairs that programs can decide, the share whose chosen response follows more of its "
    "prompt's instructions (95 % interval over prompts); truth: the ceiling."
)


RECORDED = (
    "Recorded judgments ({source}; {unit}): of the pairs picked in sets of {set_size} of {n_models} models on "
    "{n_prompts} prompts, the share whose chosen response is judged better (95 % interval, clustered by prompt and by "
    "model)."
)


def show_labels(experiment: Experiment, written: Path, figures: Path) -> Iterator[Any]:
    """Save the audit's table and figure among the report's, and yield both; nothing where labels are not audited.

    Args:
        experiment: whose. written, figures: folders of the report's tables and figures.
    """
    path = experiment.outputs / "labels" / "strategies.csv"
    if not experiment.settings.labels.audit or not path.is_file():
        return
    audit, notes = list_once(pd.read_csv(path), experiment)
    source = experiment.settings.annotation.source
    yield show_picture(plot_label_accuracy(audit, source), figures / "label_accuracy")
    names = audit["strategy"].map(lambda name: title_labels(name, source))
    frame = audit.assign(strategy=names).set_index("strategy")
    table = build_plain("labels", CAPTION, frame, notes=notes)
    table.save(written)
    yield table
    yield from _show_recorded(path.parent / "recorded", written, figures)


def _show_recorded(folder: Path, written: Path, figures: Path) -> Iterator[Any]:
    """Save and yield what recorded judgments say of each strategy's labels, where the study names a source."""
    if not (folder / "strategies.csv").is_file():
        return
    strategies, books = pd.read_csv(folder / "strategies.csv"), load_json(folder / "accounting.json")
    axes = plot_label_accuracy(strategies, "recorded", "the judge")
    yield show_picture(axes, figures / "recorded_label_accuracy")
    names = strategies["strategy"].map(lambda name: title_labels(name, "recorded"))
    caption = RECORDED.format(**books) + (f" Note: {BY_CONSTRUCTION}." if books.get("rlaif_by_construction") else "")
    table = build_plain("recorded_labels", caption, strategies.assign(strategy=names).set_index("strategy"))
    table.save(written)
    yield table
