"""The score table of a study: measured by stage 01, the paper's, or a file, as its settings say.

For measured models the father of a perturbed copy is its base model and family; nothing else is known of
them. A benchmark on which all measured models are equal is left out and noted, because asking again costs
hours and min-max cannot use it; in a file it is refused.
"""

from dataclasses import replace

import pandas as pd
import pyarrow.parquet as pq

from karma.files import load_json
from karma.scores import ScoreTable, build_score_table, load_score_table
from karma.stages import Job


def load_study_table(job: Job) -> ScoreTable:
    """Return the score table that stage 02's job works on.

    Raises:
        InputError: see `karma.scores.load_score_table` and `build_score_table`.
    """
    source = job.settings.scores.table
    if source != "measured":
        file = job.experiment.root / source
        return load_score_table(file if file.is_file() else source)
    table = build_score_table(
        {origin.params["origin_model"]: load_json(origin.folder / "scores.json") for origin in job.inputs},
        drop_constant=True,
    )
    bases = {o.params["origin_model"]: _find_base(o.params["origin_model"], o.models) for o in job.inputs}
    facts = table.facts.assign(base_model=pd.Series(bases), family=pd.Series(bases))
    return replace(table, facts=facts)


def _find_base(name: str, models: dict[str, dict]) -> str:
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
