"""What the report shows where a study has it, in the report's order; a new section is a row here and its function."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from karma.results.cross import show_square
from karma.results.labels import show_labels
from karma.results.premise import show_premise
from karma.results.rewards import show_reward_models
from karma.results.selections import show_held_out, show_on_benchmarks
from karma.results.self_play import show_self_play
from karma.results.stability import show_stability
from karma.results.win_rates import show_win_rates
from karma.study.experiment import Experiment

SECTIONS: dict[Callable[[Experiment, Path, Path], Any], tuple[str, str]] = {
    show_labels: (
        "Are the labels right?",
        "Where programs can check what a prompt asked for, they say which of two responses is better. The truth itself "
        "is the most that any label can reach, a coin the least that is of use."),
    show_premise: (
        "Are the responses of kin less unlike?",
        "The premise of kinship, over every two origin models of the pool: if it holds, gaps between their responses "
        "grow as kinship falls."),
    show_square: (
        "What was learnt: trained on one data set, tested on another",
        "Every policy is asked every data set's held-out pairs. A surprise would be a column that its own data set "
        "does not lead."),
    show_stability: (
        "How stable are trainings?",
        "How far trainings of one data set lie apart over seeds, how often their loss jumps, and how far they move "
        "from the untrained policy."),
    show_reward_models: (
        "Reward models: whose labels each rates right",
        "A surprise would be one that is right where lengths are alike and not elsewhere."),
    show_win_rates: (
        "Win rates before a judge",
        "A surprise would be a win rate that falls to one half at equal lengths."),
    show_held_out: (
        "The selection study: alignment potential against random selection",
        "Policies trained on a part of a pair set, chosen by a metric, beside a part drawn at random. M_AP against "
        "each rival, and whether a lead over random changes with the data, are corrected for their number (Holm)."),
    show_on_benchmarks: (
        "The selection study on the benchmarks",
        "The same policies, asked the policies' benchmarks; every metric against random and against M_AP, corrected "
        "for their number (Holm)."),
    show_self_play: (
        "Self-play: what the policy learnt from its own answers",
        "In each round the policy answers prompts several times, best is paired with worst, and it is trained on base "
        "pairs and, in every arm as many, pairs of new prompts: prompts that it evolved itself, or, in the control "
        "arm, fresh ones. Held-out prompts and pairs are never trained on."),
}  # fmt: skip


def show_sections(experiment: Experiment, written: Path, figures: Path) -> Iterator[Any]:
    """Write each section's tables and figures, and yield what is shown of it: heading, figures, tables.

    Args:
        experiment: the study. written, figures: folders of the report's tables and figures.
    """
    from IPython.display import Markdown

    for show, (heading, text) in SECTIONS.items():
        if shown := list(show(experiment, written, figures)):
            yield Markdown(f"## {heading}\n\n{text}")
            yield from shown
