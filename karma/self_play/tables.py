"""A round's tables for people: answers with their scores, rewritten prompts, margins, and what was gained."""

from typing import Any

import pandas as pd

from karma.evaluation.prompts import Prompt
from karma.pairs.pairs import PairSet
from karma.self_play.evolution import Attempt
from karma.self_play.rounds import Played
from karma.self_play.selection import MARGINS
from karma.study.escape import style


def show_answers(played: Played, place: int):
    """Return one prompt's answers with their scores, escaped, and styled so that whole texts can be read."""
    frame = pd.DataFrame({"answer": played.answers[place], "score": played.scores[place]})
    return style(frame).format(precision=2).set_properties(**{"white-space": "pre-wrap", "text-align": "left"})


def describe_margins(pairs: PairSet) -> pd.DataFrame:
    """Return a pool of pairs with its margins and potential, best first."""
    frame = pairs.table.select(["prompt", "chosen_score", "rejected_score", *MARGINS]).to_pandas()
    frame["prompt"] = [turns[-1]["content"][:60] for turns in frame["prompt"]]
    return frame.sort_values("potential", ascending=False).reset_index(drop=True)


def describe_prompts(prompts: list[Prompt], attempts: list[Attempt]) -> pd.DataFrame:
    """Return each rewriting with its verdict (strategy, before, after, verdict); of the control, its fresh prompts."""
    rows = [(a.strategy, a.prompt.topic, a.topic, a.verdict) for a in attempts]
    rows = rows or [("fresh", "", prompt.topic, "kept") for prompt in prompts]
    return pd.DataFrame(rows, columns=["strategy", "before", "after", "verdict"])


def describe_gain(before: dict[str, Any], after: dict[str, Any]) -> pd.DataFrame:
    """Return score and preference of the untrained and of the trained policy, each with interval and n."""
    rows = []
    for name, measured in (("untrained", before), ("trained", after)):
        score, preference = measured["score"], measured["preference"]
        rows.append((name, "score", score["value"], *score["interval"], score["n"]))
        rows.append((name, "preference", preference["accuracy"], *preference["interval"], preference["n"]))
    return pd.DataFrame(rows, columns=["policy", "what", "value", "low", "high", "n"]).set_index(["what", "policy"])
