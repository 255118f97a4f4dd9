"""All finished rounds of a study's self-play, as one table: what each arm gained, over rounds and over data.

Round 0 is the untrained policy, measured on the same held-out prompts and pairs. Decision: a round that is not there
yet is left out of the table and named by `find_missing`, never filled in.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.files.reading import load_json
from karma.statistics.intervals import compute_mean, compute_slopes
from karma.statistics.verdicts import SMALLEST, judge_family
from karma.study.experiment import Experiment
from karma.study.stages import STAGES, Job

COLUMNS = [
    "policy", "arm", "round", "scorer", "n_pairs", "score", "score_low", "score_high", "n_prompts", "gain", "gain_low",
    "gain_high", "preference", "preference_low", "preference_high", "n_held_out", "shortfalls",
]  # fmt: skip
TRENDS = ["policy", "arm", "rounds", "change", "low", "high", "n_prompts", "p_holm", "verdict"]


def list_rounds(experiment: Experiment) -> list[Job]:
    """Return the self-play jobs of an experiment, arm by arm, rounds in order."""
    stage = STAGES["08_self_play"]
    return [Job(experiment, stage, params) for params in stage.jobs(experiment.settings)]


def load_rounds(experiment: Experiment) -> pd.DataFrame:
    """Load what every finished round measured.

    Returns:
        COLUMNS, one row a round, and one for round 0 of each arm that has begun. `n_pairs`: pairs trained on in all
        rounds so far; `gain`: score minus the untrained policy's, paired over prompts; 95 % intervals.
    """
    rows = [row for job in list_rounds(experiment) for row in _read_round(job)]
    frame = pd.DataFrame(rows, columns=COLUMNS).sort_values(["policy", "arm", "round"], kind="stable")
    frame["n_pairs"] = frame.groupby(["policy", "arm"])["n_pairs"].cumsum()
    return frame.reset_index(drop=True)


def compute_trends(experiment: Experiment) -> pd.DataFrame:
    """Return whether the score of held-out prompts grows over the rounds: the share followed, or the scorer's unit.

    Each arm is asked twice: from the untrained policy (round 0) on, and over its trained rounds alone, where more than
    the first training must have gained something.

    Returns:
        TRENDS, one row an arm and span of finished rounds: the change of the score a round (each prompt's own slope,
        averaged) with its 95 % interval over prompts (t), p corrected for all rows (Holm), and the verdict on "it
        grows". The interval holds no noise of training: there is one training a round.
    """
    scores: dict[tuple[str, str], dict[int, list[float]]] = {}
    for job in list_rounds(experiment):
        if (job.folder / "self_play.json").is_file():
            record = load_json(job.folder / "self_play.json")
            own = scores.setdefault((record["policy"], record["arm"]), {0: record["start"]["by_prompt"]})
            own[record["round"]] = record["after"]["by_prompt"]
    rows: list[dict[str, Any]] = []
    for (policy, arm), by_round in scores.items():
        for span in (sorted(by_round), sorted(set(by_round) - {0})):
            if len(span) > 1:
                slopes = compute_slopes(np.array([by_round[r] for r in span]), np.array(span, float))
                rows.append({"policy": policy, "arm": arm, "rounds": f"{span[0]} to {span[-1]}",
                             "n_prompts": len(slopes), **compute_mean(slopes)})  # fmt: skip
    is_share = experiment.settings.self_play.scorer == "instructions"  # of others no difference is too small to count
    judged = judge_family(rows, [row["n_prompts"] for row in rows], "prompts", SMALLEST if is_share else 0.0)
    found = [{**row, **more, "change": row["value"]} for row, more in zip(rows, judged, strict=True)]
    return pd.DataFrame(found, columns=TRENDS)


def find_missing(experiment: Experiment) -> list[str]:
    """Name the rounds that are not there yet."""
    return [job.label for job in list_rounds(experiment) if not (job.folder / "self_play.json").is_file()]


def _read_round(job: Job) -> Iterator[dict[str, Any]]:
    path = job.folder / "self_play.json"
    if not path.is_file():
        return
    record = load_json(path)
    try:
        no_gain = {"value": 0.0, "interval": [0.0, 0.0]}
        if record["round"] == 1:
            yield _build_row(record, 0, 0, record["start"], no_gain, [])
        n_pairs = record["n_base_pairs"] + record["n_added_pairs"]
        yield _build_row(record, record["round"], n_pairs, record["after"], record["difference"], record["shortfalls"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no record of a round ({error!r}): run {job.label} again") from error


def _build_row(
    record: dict, number: int, n_pairs: int, measured: dict, gain: dict, shortfalls: list[str]
) -> dict[str, Any]:
    score, preference = measured["score"], measured["preference"]
    return {
        "policy": record["policy"], "arm": record["arm"], "round": number, "scorer": record["scorer"],
        "n_pairs": n_pairs, "score": score["value"], "score_low": score["interval"][0],
        "score_high": score["interval"][1], "n_prompts": score["n"], "gain": gain["value"],
        "gain_low": gain["interval"][0], "gain_high": gain["interval"][1], "preference": preference["accuracy"],
        "preference_low": preference["interval"][0], "preference_high": preference["interval"][1],
        "n_held_out": preference["n"], "shortfalls": "; ".join(shortfalls),
    }  # fmt: skip
