"""The report's part on reward models: what each says of labels, truth and length, where a study trains some.

Every number is that of `reward_evaluation`, in a run's reward_scores.json; here they stand side by side, one row a
reward model. Decision: trainings by several seeds are rows of their own, since a mean of theirs would hide a head that
was not learnt. Limit: intervals hold the held-out prompts, not the noise of training.

Paper: none; ours.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from karma.figures.rewards import plot_reward_models
from karma.files.reading import load_json
from karma.results.pictures import show_picture
from karma.results.tables import build_plain
from karma.study.experiment import Experiment
from karma.study.stages import STAGES, Job
from karma.vocabulary import title_strategy

KEYS = ["policy", "strategy", "method", "seed"]
COLUMNS = [*KEYS, "measure", "value", "low", "high", "n"]
LENGTH = {"longer_preferred": "prefers the longer", "longer_chosen": "its labels do", "like_length": "of like length"}
CAPTION = (
    "Reward models on held-out prompts: share of each data set's pairs whose chosen response is rated higher; of the "
    "truth, the response that follows more instructions (and the longer one, for comparison); of its own data set, how "
    "often the longer response is rated higher, how often it is the chosen one, accuracy where the longer has at most "
    "1.2 times the other's characters, Spearman's correlation of reward and length differences; and what the best of n "
    "by reward gains in truth. 95 % intervals over prompts, without the noise of training."
)


def collect_rewards(experiment: Experiment) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what reward models were measured to be: COLUMNS, one row a measure; and the best of n, by run.

    Args:
        experiment: whose; one without reward models gives no rows.
    """
    s, stage = experiment.settings, STAGES["reward_evaluation"]
    titles = {name: title_strategy(name, s.annotation.source) for name in s.strategies}
    rows: list[dict[str, Any]] = []
    best: list[dict[str, Any]] = []
    for job in (Job(experiment, stage, params) for params in stage.jobs(s)):
        if not job.products[0].is_file():
            continue
        key, scores = {k: job.params[k] for k in KEYS}, load_json(job.products[0])
        rows += [{**key, "measure": measure, **found} for measure, found in _list_measures(scores, key, titles)]
        best += [{**key, **row} for row in scores["best_of_n"]]
    return pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(best)


def _list_measures(scores: dict[str, Any], key: dict[str, str], titles: dict[str, str]) -> Iterator[tuple[str, dict]]:
    for name, found in scores["pairs"].items():
        low, high = found["interval"]
        yield f"{titles[name]}'s pairs", {"value": found["accuracy"], "low": low, "high": high, "n": found["n"]}
    if truth := scores["truth"]:
        pick = {"n": truth["n_pairs"]}
        yield "truth", {**{k: truth[k] for k in ("value", "low", "high")}, **pick}
        yield "truth, by length", {**{k: truth["longer"][k] for k in ("value", "low", "high")}, **pick}
    length = scores["pairs"][key["strategy"]]["length"]
    yield from ((title, length[name]) for name, title in LENGTH.items())
    yield "correlation with length", length["correlation"]
    if scores["best_of_n"]:
        last = scores["best_of_n"][-1]
        yield f"gain of best of {last['n']}", {"value": last["gain"], "low": last["gain_low"],
                                                "high": last["gain_high"], "n": last["n_prompts"]}  # fmt: skip


def show_reward_models(experiment: Experiment, written: Path, figures: Path) -> Iterator[Any]:
    """Save the table and the figure of a study's reward models, and yield both; nothing where it has none.

    Args:
        experiment: whose. written, figures: folders of the report's tables and figures.
    """
    long, best = collect_rewards(experiment)
    if long.empty:
        return
    build_plain("reward_models_long", CAPTION, long.set_index([*KEYS, "measure"]), decimals=4).save(written)
    source = experiment.settings.annotation.source
    shown = [frame.assign(run=frame[KEYS].agg("/".join, axis=1),
                          strategy_title=frame["strategy"].map(lambda name: title_strategy(name, source)))
             for frame in (long, best) if len(frame)]  # fmt: skip
    signed = shown[0]["measure"].str.startswith(("correlation", "gain"))
    figure = plot_reward_models(shown[0][~signed & shown[0]["value"].notna()], shown[1] if len(best) else best)
    yield show_picture(figure, figures / "reward_models")
    cells = ["none" if pd.isna(row.value) else f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}], {row.n}"
             for row in long.itertuples()]  # fmt: skip
    keys = ["policy", "strategy_title", "seed"]
    wide = shown[0].assign(cell=cells).pivot(index=keys, columns="measure", values="cell")
    order = pd.MultiIndex.from_frame(shown[0].drop_duplicates(keys)[keys])
    frame = wide.reindex(index=order, columns=list(dict.fromkeys(long["measure"]))).rename_axis(columns=None)
    notes = ("each cell ends with its number of pairs, or of prompts", "rewards have no unit: only their order is used")
    table = build_plain(
        "reward_models", CAPTION, frame.rename_axis(index={"strategy_title": "trained on"}), notes=notes
    )
    table.save(written)
    yield table
