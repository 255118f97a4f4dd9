"""Prompts of a study to look at: every answer with its origin model, the truth, what the judge gave, and who chose it.

The page shows one prompt at a time (data/report/page.js); without a script all of them stand below each other.
Decision: prompts are taken at even distances through the pool, so that nobody has picked them. Limit: MOST_PROMPTS
prompts, and answers cut at MOST_CHARACTERS; a study whose pool lies elsewhere (the Hub) has none to show.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from karma.pool.responses import compute_response_id, compute_row_id, index_responses
from karma.study.escape import escape_html
from karma.study.experiment import Experiment
from karma.vocabulary import title_strategy

MOST_PROMPTS, MOST_CHARACTERS = 40, 1500


@dataclass(frozen=True)
class Browser:
    """Prompts with their answers; HTML in a notebook and on the page.

    Attributes:
        prompts: in the pool's order, from `collect_prompts`.
    """

    prompts: list[dict[str, Any]]

    def _repr_html_(self) -> str:
        return f'<div class="browser">{"".join(map(_write_prompt, self.prompts))}</div>' if self.prompts else ""


def collect_prompts(experiment: Experiment, most: int = MOST_PROMPTS) -> list[dict[str, Any]]:
    """Return prompts with their answers, and what is known of each; an empty list where the pool is not on disk.

    Args:
        experiment: whose. most: prompts.

    Returns:
        instruction, kinds ("wrong": the truth contradicts a label, "right": it confirms one and contradicts none,
        "differ": strategies take different pairs) and answers: model, text, truth (share or None), judge (score or
        None), marks (title of a strategy -> "chosen" or "rejected").
    """
    outputs, s = experiment.outputs, experiment.settings
    path = outputs / "pool" / "pool.parquet"
    if not path.is_file() or path.stat().st_size == 0:
        return []
    pool = pq.read_table(path, columns=["source", "instruction", "completions"])
    rows = pool.take(np.unique(np.linspace(0, max(pool.num_rows - 1, 0), most).astype(int))).to_pylist()
    judge = _load_numbers(outputs / "pool" / "annotations.parquet", "score")
    truth = _load_numbers(outputs / "labels" / "responses.csv", "truth")
    pairs = {title_strategy(name, s.annotation.source): _load_pairs(outputs / "pairs" / name) for name in s.strategies}
    return [_build_prompt(row, judge, truth, pairs) for row in rows]


def _load_numbers(path: Path, column: str) -> dict[tuple[str, str], float]:
    if not path.is_file() or path.stat().st_size == 0:
        return {}
    ids = {"row_id": str, "response_id": str}
    table = pd.read_csv(path, dtype=ids) if path.suffix == ".csv" else pd.read_parquet(path)
    return index_responses(table, column)


def _load_pairs(folder: Path) -> dict[str, tuple[str, str]]:
    path = folder / "pairs.parquet"
    if not path.is_file():
        return {}
    table = pd.read_parquet(path, columns=["row_id", "chosen_id", "rejected_id"])
    return dict(zip(table["row_id"], zip(table["chosen_id"], table["rejected_id"], strict=True), strict=True))


def _build_prompt(row: dict[str, Any], judge: dict, truth: dict, pairs: dict[str, dict]) -> dict[str, Any]:
    row_id, answers = compute_row_id(row), []
    taken = {title: own[row_id] for title, own in pairs.items() if row_id in own}
    for one in row["completions"]:
        key = compute_response_id(one["model"], one["response"])
        marks = {title: ("chosen", "rejected")[ids.index(key)] for title, ids in taken.items() if key in ids}
        answers.append({"model": one["model"], "text": one["response"] or "", "truth": truth.get((row_id, key)),
                        "judge": judge.get((row_id, key)), "marks": marks})  # fmt: skip
    gaps = [truth.get((row_id, a), np.nan) - truth.get((row_id, b), np.nan) for a, b in taken.values()]
    kinds = ["wrong"] if any(gap < 0 for gap in gaps) else ["right"] if any(gap > 0 for gap in gaps) else []
    kinds += ["differ"] if len(set(taken.values())) > 1 else []
    return {"instruction": row["instruction"] or "", "kinds": kinds, "answers": answers}


def _write_prompt(prompt: dict[str, Any]) -> str:
    kinds, answers = " ".join(prompt["kinds"]), "".join(map(_write_answer, prompt["answers"]))
    words = f'<p class="instruction"><strong>Prompt</strong> {escape_html(prompt["instruction"])}</p>'
    return f'<article class="prompt" data-kinds="{kinds}">{words}<div class="answers">{answers}</div></article>'


def _write_answer(answer: dict[str, Any]) -> str:
    text = answer["text"]
    shown = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} [...]"
    measures = [f"{what} {answer[key]:.2f}" for key, what in (("truth", "truth"), ("judge", "judge"))
                if answer[key] is not None]  # fmt: skip
    marks = "".join(
        f'<li class="mark" data-side="{side}">{escape_html(title)}: {side}</li>'
        for title, side in answer["marks"].items()
    )
    return (
        f'<div class="answer"><strong>{escape_html(answer["model"] or "no model named")}</strong>'
        f'<p class="measures">{", ".join(measures) or "neither checked nor judged"}</p>'
        f'<p class="text">{escape_html(shown) or "(blank)"}</p><ul class="marks">{marks}</ul></div>'
    )
