"""What the report shows where a study has it, in the report's order; a new section is a line here and its function."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from karma.results.cross import show_square
from karma.results.labels import show_labels
from karma.results.premise import show_premise
from karma.results.rewards import show_reward_models
from karma.results.selections import show_selections
from karma.results.stability import show_stability
from karma.results.win_rates import show_win_rates
from karma.study.experiment import Experiment

SECTIONS = (
    show_stability, show_premise, show_labels, show_square, show_reward_models, show_win_rates, show_selections,
)  # fmt: skip


def show_sections(experiment: Experiment, written: Path, figures: Path) -> Iterator[Any]:
    """Write each section's tables and figures, and yield what is shown of it: texts, figures, tables.

    Args:
        experiment: the study. written, figures: folders of the report's tables and figures.
    """
    for show in SECTIONS:
        yield from show(experiment, written, figures)
