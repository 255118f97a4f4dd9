"""The score table of a study: measured by stage 01, the paper's, or a file, as its settings say.

For measured models the father of a perturbed copy is its base model and family; nothing else is known of
them. A benchmark on which all measured models are equal is left out and noted, because asking again costs
hours and min-max cannot use it; in a file it is refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from karma.errors import InputError
from karma.files.reading import load_json
from karma.scores.read import _read_facts, load_score_table
from karma.scores.table import ScoreTable, describe_benchmarks, set_kinship
from karma.study.stages import Job


def load_study_table(job: Job) -> ScoreTable:
    """Return the score table that stage 02's job works on.

    Raises:
        InputError: see `karma.scores.load_score_table` and `build_score_table`.
    """
    return set_kinship(_load_table(job), job.settings.kinship.measure, job.settings.kinship.weights)


def _load_table(job: Job) -> ScoreTable:
    asked, root = job.settings.scores, job.experiment.root
    if asked.table != "measured":
        table, columns = (str(root / name) if name and (root / name).is_file() else name
                          for name in (asked.table, asked.columns))  # fmt: skip
        return load_score_table(table, columns, asked.missing)
    table = build_score_table(
        {origin.params["origin_model"]: load_json(origin.folder / "scores.json") for origin in job.inputs},
        drop_constant=True,
    )
    bases = {o.params["origin_model"]: _find_base(o.params["origin_model"], o.models) for o in job.inputs}
    facts = table.facts.assign(base_model=pd.Series(bases), family=pd.Series(bases))
    return replace(table, facts=facts)


def _find_base(name: str, models: dict[str, dict[str, Any]]) -> str:
    return (models.get(name) or {}).get("perturbed") or name


def load_example_answers(job: Job, benchmark: str = "arc_easy") -> pd.DataFrame | None:
    """Return one benchmark item with every origin model's answer, or None where the scores were not measured.

    Returns:
        origin_model -> prompt, answer, extracted, correct: the item on which the models disagree most.
    """
    if job.settings.scores.table != "measured":
        return None
    columns = ["benchmark", "item_id", "prompt", "answer", "extracted", "correct"]
    frames = []
    for origin in job.inputs:
        answers = pq.read_table(origin.folder / "answers.parquet", columns=columns).to_pandas()
        frames.append(answers.assign(origin_model=origin.params["origin_model"]))
    answers = pd.concat(frames)
    chosen = answers[answers["benchmark"] == benchmark]
    chosen = answers if chosen.empty else chosen
    spread = chosen.groupby("item_id")["correct"].std().fillna(0)
    item = chosen[chosen["item_id"] == spread.idxmax()]
    return item.set_index("origin_model")[["prompt", "answer", "extracted", "correct"]]


def build_score_table(measured: Mapping[str, Mapping[str, Any]], drop_constant: bool = False) -> ScoreTable:
    """Assemble a table from the scores.json of each origin model.

    Args:
        measured: origin model -> its scores.json.
        drop_constant: leave out, and note, benchmarks on which all models are equal; else they are refused.

    Returns:
        The table, with each benchmark's own number of items.

    Raises:
        InputError: models scored on other benchmarks, on another number of items, or by another task version.
    """
    first = next(iter(measured), None)
    if first is None:
        raise InputError("no origin model was measured: run 01_origin_evaluation for at least two")
    asked = measured[first]["benchmarks"]
    names, known = list(asked), describe_benchmarks({b: one["task"] | {"chance": one["chance"]}
                                                     for b, one in asked.items() if "task" in one})  # fmt: skip
    for model, result in measured.items():
        if set(result["benchmarks"]) != set(names):
            odd = sorted(set(result["benchmarks"]) ^ set(names))[0]
            raise InputError(f"only one of '{first}' and '{model}' was scored on '{odd}': evaluate both alike")
        for name, key in product(names, ("n", "task_version", "template_hash", "shots")):
            one, other = (measured[m]["benchmarks"][name].get(key) for m in (first, model))
            if one != other:
                raise InputError(f"{name}: '{first}' has {key} {one}, '{model}' has {other}: evaluate both alike")
        for name in names:
            one, other = ((measured[m]["benchmarks"][name].get("task") or {}).get("metric") for m in (first, model))
            if one != other:
                raise InputError(f"{name}: '{first}' has metric {one}, '{model}' has {other}: evaluate both alike")
    rows = {m: {b: float(r["benchmarks"][b]["value"]) for b in names} for m, r in measured.items()}
    scores = pd.DataFrame(rows).T.rename_axis("origin_model")
    constant = [b for b in names if drop_constant and len(measured) > 1 and scores[b].nunique() == 1]
    if constant and len(constant) == len(names):
        raise InputError("all origin models are equal on every benchmark, kinship is undefined: ask more items")
    notes = tuple(f"{b}: all models score {scores[b].iloc[0]:.4f}; it is left out" for b in constant)
    kept = [b for b in names if b not in constant]
    n_items = {b: int(measured[first]["benchmarks"][b]["n"]) for b in kept}
    facts = _read_facts(scores)
    return ScoreTable(scores[kept], known.loc[kept], n_items, "measured", facts, notes, source="measured")
