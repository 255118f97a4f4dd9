"""The report's section on self-play: what each arm gained, where a study has such rounds.

Decision: a study without self-play gets no section at all, instead of an empty one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from karma.figures.self_play import plot_rounds
from karma.results.pictures import show_picture
from karma.results.tables import build_plain
from karma.self_play.curves import compute_trends, find_missing, list_rounds, load_rounds
from karma.study.experiment import Experiment


def show_self_play(experiment: Experiment, written: Path, figures: Path) -> Iterator[Any]:
    """Save tables and one figure a policy among the report's, and yield them; nothing where there is no self-play.

    Args:
        experiment: the study. written, figures: folders of the report's tables and figures.
    """
    if not list_rounds(experiment):
        return
    rounds, missing = load_rounds(experiment), find_missing(experiment)
    for policy, own in rounds.groupby("policy", sort=False):
        yield show_picture(plot_rounds(own), figures / f"self_play_{policy}")
    notes = (*(f"not there yet: {label}" for label in missing), *sorted(set(rounds["shortfalls"]) - {""}))
    frame = rounds.drop(columns=["scorer", "shortfalls"]).set_index(["policy", "arm", "round"])
    caption = "Self-play: held-out score, gain over the untrained policy and held-out preference, with 95 % intervals."
    table = build_plain("self_play", caption, frame, decimals=3, notes=notes)
    trends = compute_trends(experiment).set_index(["policy", "arm", "rounds"])
    caption = "Self-play: does the score of held-out prompts grow? Its change a round, paired over the prompts."
    corrected = "p_holm: corrected for all rows; one training a round, so without the noise of training"
    for made in (table, build_plain("self_play_trends", caption, trends, notes=(corrected,))):
        made.save(written)
        yield made
