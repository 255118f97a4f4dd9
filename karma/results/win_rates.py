"""The report's part on win rates: each training against the baseline's and the untrained policy, before a judge."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from karma.figures.win_rates import plot_win_rates
from karma.files.reading import load_json
from karma.labels.policies import BASELINE, UNTRAINED, split_names
from karma.results.pictures import show_picture
from karma.results.tables import build_plain
from karma.study.experiment import Experiment
from karma.study.stages import STAGES, Job
from karma.vocabulary import START_TITLE, title_of, title_strategy

CAPTION = (
    "Win rates on held-out prompts before the judge {judge}: how often a training's answer is preferred to the "
    "rival's, over both orders (95 % interval over prompts); at equal lengths: AlpacaEval 2's correction; consistency: "
    "both orders name the same winner."
)
FEW_CONSISTENT = 0.6  # as `karma.labels.tournament.LEAST_CONSISTENCY`


def collect_win_rates(experiment: Experiment) -> tuple[pd.DataFrame, list[str]]:
    """Return all policies' win rates with policy, strategy, method, seed and rival, and what to be wary of."""
    parts, notes = [], []
    for job in (Job(experiment, STAGES["pairwise_evaluation"], p) for p in _list_jobs(experiment)):
        path = job.folder / "win_rates.csv"
        if not path.is_file():
            notes.append(f"{job.params['policy']}: not judged yet: run pairwise_evaluation")
            continue
        parts.append(split_names(pd.read_csv(path)).assign(policy=job.params["policy"]))
        books = load_json(job.folder / "accounting.json")
        if UNTRAINED in books["judges_itself"]:
            notes.append(f"{job.params['policy']}, untrained, is the judge itself, and judges prefer their own answers")
        if books["n_unread"]:
            notes.append(f"{books['n_unread']} of {books['n_verdicts']} verdicts cannot be read")
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(), notes


def _list_jobs(experiment: Experiment) -> Iterator[dict[str, str]]:
    return STAGES["pairwise_evaluation"].jobs(experiment.settings)


def show_win_rates(experiment: Experiment, written: Path, figures: Path) -> Iterator[Any]:
    """Save the win rates as a table and a figure among the report's, and yield both; nothing where none is asked.

    Args:
        experiment: whose. written, figures: folders of the report's tables and figures.
    """
    rates, notes = collect_win_rates(experiment)
    if rates.empty:
        return
    source = experiment.settings.annotation.source
    titles = {UNTRAINED: START_TITLE, BASELINE: title_strategy(BASELINE, source)}
    names = {
        "training": [f"{title_of(row.method)} on {title_strategy(row.strategy, source)}, seed {row.seed}"
                     for row in rates.itertuples()],
        "against": [titles[rival] for rival in rates["rival"]],
    }  # fmt: skip
    shown = rates.assign(model_a=names["training"], model_b=names["against"])
    yield show_picture(plot_win_rates(shown), figures / "win_rates")
    columns = {"n_judged": "prompts", "win_rate": "win rate", "low": "low", "high": "high",
               "length_controlled": "at equal lengths", "lc_low": "lc low", "lc_high": "lc high",
               "consistency": "consistency", "n_ties": "ties", "judge_calls": "judge calls"}  # fmt: skip
    frame = rates.assign(**names).set_index(["policy", "training", "against"])[list(columns)].rename(columns=columns)
    if len(experiment.settings.seeds) == 1:
        notes.append("one seed: without training noise")
    if (rates["consistency"] < FEW_CONSISTENT).any():
        notes.append("where consistency is low, the judge sees places rather than answers")
    caption = CAPTION.format(judge=experiment.settings.win_rates.judge)
    table = build_plain("win_rates", caption, frame, notes=tuple(dict.fromkeys(notes)))
    table.save(written)
    yield table
