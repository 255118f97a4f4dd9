"""The report's section on self-play: what each arm gained, where a study has such rounds.

Decision: a study without self-play gets no section at all, instead of an empty one.
"""

from pathlib import Path

from karma.figures.self_play import plot_rounds
from karma.figures.style import save_figure
from karma.results.tables import build_plain
from karma.self_play.curves import compute_trends, find_missing, list_rounds, load_rounds
from karma.study.experiment import Experiment

TEXT = """## Self-play: what the policy learnt from its own answers

In each round the policy answers prompts several times, best is paired with worst, and it is trained on base pairs and,
in every arm as many, pairs of new prompts: prompts that it evolved itself, or, in the control arm, fresh ones. Score
and preference are those of held-out prompts and pairs that nothing was made from, with 95 % intervals over prompts or
pairs, which hold no noise of training. Preference is the share of pairs that training moved towards the better answer;
one half is a coin, and the untrained policy. Arms whose intervals overlap much cannot be told apart by these prompts.
"""


def show_self_play(experiment: Experiment, folder: Path) -> None:
    """Show the section in a notebook, and save its table and one figure a policy.

    Args:
        experiment: the study.
        folder: `tables/self_play.*` and `figures/self_play_<policy>.*` go below it.
    """
    from IPython.display import Markdown, display

    if not list_rounds(experiment):
        return
    rounds, missing = load_rounds(experiment), find_missing(experiment)
    display(Markdown(TEXT))
    for policy, own in rounds.groupby("policy", sort=False):
        save_figure(plot_rounds(own)[0], folder / "figures" / f"self_play_{policy}")
    notes = (*(f"not there yet: {label}" for label in missing), *sorted(set(rounds["shortfalls"]) - {""}))
    frame = rounds.drop(columns=["scorer", "shortfalls"]).set_index(["policy", "arm", "round"])
    caption = "Self-play: held-out score, gain over the untrained policy and held-out preference, with 95 % intervals."
    table = build_plain("self_play", caption, frame, decimals=3, notes=notes)
    trends = compute_trends(experiment).set_index(["policy", "arm", "rounds"])
    caption = "Self-play: does the score of held-out prompts grow? Its change a round, paired over the prompts."
    corrected = "p_holm: corrected for all rows; one training a round, so without the noise of training"
    for made in (table, build_plain("self_play_trends", caption, trends, notes=(corrected,))):
        made.save(folder / "tables")
        display(made)
