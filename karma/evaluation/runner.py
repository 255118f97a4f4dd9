"""Evaluate one model on benchmarks, and keep every answer.

lm-evaluation-harness builds the requests, applies the chat format and scores; `CachedModel` answers. A score carries
what is needed to repeat it: n, standard error, chance, share of unreadable answers, task version, prompt hash,
precision, batch size, generation settings. Limit: standard errors treat IFEval's instructions as independent.
"""

import logging
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from karma.evaluation.items import load_items
from karma.evaluation.protocol import CHOICE_PROMPT, extract_choice
from karma.files import atomic_path, compute_digest, save_json
from karma.generation import CachedModel

SCORE_OF_IFEVAL = "inst_level_loose"  # Table 3's GPT-4 value shows that this one of the four is meant


def evaluate(model: CachedModel, benchmarks: list[str], settings: Any, root: Path) -> tuple[dict, pa.Table]:
    """Ask a model every item of the benchmarks.

    Args:
        model: who answers.
        benchmarks: names, see `karma.evaluation.items`.
        settings: the experiment's `benchmarks` (folder, limit, choice_tokens, descriptive_tokens).
        root: the project's root, from which a relative folder counts.

    Returns:
        The scores (as in scores.json) and the answers, one row an item.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its notes on how it was called mean nothing to a reader
    where = {"folder": str(root / settings.folder) if settings.folder else None, "limit": settings.limit}
    manager = TaskManager(include_path=str(Path(__file__).parent / "tasks"), include_defaults=False, metadata=where)
    tasks = manager.load([f"karma_{benchmark}" for benchmark in benchmarks])["tasks"]
    for benchmark in benchmarks:
        tasks[f"karma_{benchmark}"].set_config("generation_kwargs", _generation(benchmark, settings))
    result = simple_evaluate(
        model=model, tasks=list(tasks.values()), task_manager=manager, apply_chat_template=True, bootstrap_iters=0,
        log_samples=True,
    )  # fmt: skip
    scores, rows = {}, []
    for benchmark in benchmarks:
        samples = sorted(result["samples"][f"karma_{benchmark}"], key=lambda s: s["doc_id"])
        answers = [_read(benchmark, sample) for sample in samples]
        rows += answers
        scores[benchmark] = _summarise(benchmark, answers, samples, result, settings)
    return _describe(model, scores), pa.Table.from_pylist(rows, schema=ANSWERS)


ANSWERS = pa.schema([
    ("benchmark", pa.string()), ("item_id", pa.string()), ("prompt", pa.string()), ("answer", pa.string()),
    ("extracted", pa.string()), ("correct", pa.int32()), ("n", pa.int32()),
])  # fmt: skip


def _generation(benchmark: str, settings: Any) -> dict[str, Any]:
    tokens = settings.descriptive_tokens if benchmark == "ifeval" else settings.choice_tokens
    return {"until": [], "do_sample": False, "max_gen_toks": tokens}


def _read(benchmark: str, sample: dict[str, Any]) -> dict[str, Any]:
    item, answer = sample["doc"], sample["resps"][0][0]
    row = {"benchmark": benchmark, "item_id": str(item["item_id"]), "prompt": sample["arguments"][0][0], "answer": answer}
    if benchmark == "ifeval":
        verdicts = sample[SCORE_OF_IFEVAL]
        return {**row, "extracted": None, "correct": sum(verdicts), "n": len(verdicts)}
    extracted = extract_choice(answer, item["options"])
    return {**row, "extracted": extracted, "correct": int(sample["correct"]), "n": 1}


def _summarise(benchmark: str, answers: list[dict], samples: list[dict], result: dict, settings: Any) -> dict:
    n = sum(row["n"] for row in answers)
    value = sum(row["correct"] for row in answers) / n
    choice = benchmark != "ifeval"
    details = {} if choice else {m: result["results"]["karma_ifeval"][f"{m},none"] for m in _FOUR}
    return {
        "value": value,
        "n": n,
        "standard_error": math.sqrt(value * (1 - value) / max(n - 1, 1)),
        "chance": sum(1 / len(s["doc"]["options"]) for s in samples) / n if choice else None,
        "unextracted": sum(row["extracted"] is None for row in answers) / n if choice else None,
        "task_version": result["versions"][f"karma_{benchmark}"],
        "template_hash": compute_digest(CHOICE_PROMPT if choice else "{prompt}"),
        "shots": 0,
        "generation": _generation(benchmark, settings),
        "details": details,
    }


_FOUR = ("prompt_level_strict", "prompt_level_loose", "inst_level_strict", "inst_level_loose")


def _describe(model: CachedModel, scores: dict[str, dict]) -> dict[str, Any]:
    return {
        "model": model.name, "weights_digest": model.digest, "backend": "transformers", "device": model.model_device,
        "dtype": model.dtype, "batch_size": model.batch_size, "threads": model.threads,
        "seconds": round(model.seconds, 3), "prompt_tokens": model.prompt_tokens, "new_tokens": model.new_tokens,
        "n_asked": model.n_asked, "n_cached": model.n_cached, "benchmarks": scores,
    }  # fmt: skip


def save_evaluation(scores: dict[str, Any], answers: pa.Table, folder: Path) -> None:
    """Write scores.json and answers.parquet."""
    with atomic_path(folder / "answers.parquet") as temporary:
        pq.write_table(answers, temporary)
    save_json(scores, folder / "scores.json")


def show_item(benchmark: str, settings: Any, root: Path) -> dict[str, Any]:
    """Return a benchmark's first item, for a reader to see what is asked."""
    return load_items(benchmark, root / settings.folder if settings.folder else None, 1)[0]
