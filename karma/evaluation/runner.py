"""Evaluate one model on benchmarks, and keep every answer.

lm-evaluation-harness builds the requests, applies the chat format and scores; `CachedModel` answers;
`karma.evaluation.scoring` turns verdicts into scores (of the harness's own tasks: `karma.evaluation.harness_score`). A
score carries what is needed to repeat it: task version, prompt hash, backend, precision, batch size, generation
settings.
"""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from karma.errors import InputError
from karma.evaluation.answer_text import STOPS
from karma.evaluation.harness import choose_items, load_task
from karma.evaluation.harness_score import BOOTSTRAPS, score_task
from karma.evaluation.items import load_items
from karma.evaluation.packaged import find_items
from karma.evaluation.protocol import normalize_logps
from karma.evaluation.scoring import (
    ANSWERS,
    build_logprob_row,
    build_row,
    compute_score,
    compute_template_hash,
)
from karma.files.places import find_project_root
from karma.files.writing import atomic_path, save_json
from karma.models.ask import CachedModel
from karma.study.benchmark_settings import HarnessTask

PROTOCOLS = ("answer", "logprob", "cloze")
CORRECT = ANSWERS.get_field_index("correct")  # a share of an item where tasks are among the benchmarks, else 0, 1, 2...


class Asked(Protocol):
    """What is asked and how long an answer may be: the part of `Benchmarks` that a stage declares."""

    @property
    def folder(self) -> str | None:
        """Local files, or `packaged`; None: the Hub's."""

    @property
    def limit(self) -> int | None:
        """Items a benchmark; None: all."""

    @property
    def limits(self) -> dict[str, int]:
        """Another limit of some benchmarks, by name."""

    @property
    def choice_tokens(self) -> int:
        """New tokens of a choice."""

    @property
    def descriptive_tokens(self) -> int:
        """New tokens of an IFEval answer."""


def evaluate(
    model: CachedModel, benchmarks: Sequence[str | HarnessTask], settings: Asked, root: Path, protocol: str = "answer",
    every: int = 1,
) -> tuple[dict, pa.Table]:  # fmt: skip
    """Ask a model the items of the benchmarks.

    Args:
        model: who answers.
        benchmarks: names, see `karma.evaluation.items`; or tasks of lm-evaluation-harness.
        settings: the experiment's `benchmarks` (folder, limit, limits, choice_tokens, descriptive_tokens).
        root: the project's root, from which a relative folder counts.
        protocol: how the kit's choice benchmarks are asked: "answer" (the paper's: a written answer), "logprob" (the
            likeliest letter) or "cloze" (the likeliest option per character, without chat format). IFEval has no
            options and is answered all the same, and a task is asked as it says.
        every: 1 asks all items, 4 the first of each four.

    Returns:
        The scores (as in scores.json) and the answers, one row an item.

    Raises:
        InputError: items or tasks that cannot be loaded, or an unknown protocol.

    Example:
        >>> from karma.files.places import find_project_root
        >>> from karma.study.experiment import load_experiment
        >>> smoke = load_experiment("smoke").settings
        >>> asked = smoke.benchmarks.model_copy(update={"limit": 2})
        >>> models = {"tiny-a": smoke.models["tiny-a"].model_dump(mode="json")}
        >>> model = CachedModel(models, "tiny-a", smoke.compute, batch_size=2)
        >>> scores, answers = evaluate(model, ["arc_easy"], asked, find_project_root())
        >>> scores["benchmarks"]["arc_easy"]["n"], answers.num_rows
        (2, 2)
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol '{protocol}': choose {' or '.join(PROTOCOLS)}")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its notes on how it was called mean nothing to a reader
    own = [one for one in benchmarks if isinstance(one, str)]
    tasks = [one for one in benchmarks if isinstance(one, HarnessTask)]
    loaded = [(one, load_task(one, settings, root)) for one in tasks]  # what cannot be asked is told before any answer
    if not model.backend.has_logprobs and (far := [one.task for one in tasks if not one.chat]):
        raise InputError(
            f"{far[0]}: model '{model.name}' is behind an API, which is asked in turns: set its `chat` to true"
        )
    scores, rows = _evaluate_own(model, own, settings, root, protocol, every)
    more, further = _evaluate_tasks(model, loaded, settings, every)
    scores |= more
    schema = ANSWERS.set(CORRECT, pa.field("correct", pa.float64())) if tasks else ANSWERS
    order = [one if isinstance(one, str) else one.benchmark for one in benchmarks]
    answers = pa.Table.from_pylist(rows + further, schema=schema)
    return _describe(model, {name: scores[name] for name in order}), answers


def _evaluate_own(
    model: CachedModel, benchmarks: list[str], settings: Asked, root: Path, protocol: str, every: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the scores and answers of the kit's own benchmarks."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    if not benchmarks:
        return {}, []
    ways = {name: _find_protocol(name, protocol) for name in benchmarks}
    names = {name: f"karma_{name}" + ("" if way == "answer" else f"_{way}") for name, way in ways.items()}
    folder = find_items(settings.folder, root)
    where = {"folder": str(folder) if folder else None, "limit": settings.limit, "limits": settings.limits,
             "every": every}  # fmt: skip
    manager = TaskManager(include_path=str(Path(__file__).parent / "tasks"), include_defaults=False, metadata=where)
    tasks = manager.load(list(names.values()))["tasks"]
    for benchmark, task in names.items():
        if ways[benchmark] == "answer":
            tasks[task].set_config("generation_kwargs", _generation(benchmark, settings))
    results: dict[str, Any] = {}
    for chat in (True, False):  # one call has one chat format for all its tasks
        some = {names[benchmark]: chat for benchmark, way in ways.items() if (way != "cloze") == chat}
        if some:
            asked = {"tasks": {task: tasks[task] for task in some}, "groups": {}, "group_map": {}}
            result = lm_eval.evaluate(model, asked, apply_chat_template=chat, bootstrap_iters=0)
            results |= dict.fromkeys(some, result)
    scores, rows = {}, []
    for benchmark, task in names.items():
        samples = sorted(results[task]["samples"][task], key=lambda s: s["doc_id"])
        answers = [_read(benchmark, sample, ways[benchmark]) for sample in samples]
        rows += answers
        score = compute_score(benchmark, [s["doc"] for s in samples], answers, samples, protocol)
        scores[benchmark] = score | {
            "protocol": ways[benchmark],
            "task_version": results[task]["versions"][task],
            "template_hash": compute_template_hash(benchmark, ways[benchmark]),
            "shots": 0,
            "generation": _generation(benchmark, settings) if ways[benchmark] == "answer" else {},
        }
    return scores, rows


def _evaluate_tasks(
    model: CachedModel, loaded: list[tuple[HarnessTask, Any]], settings: Asked, every: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the scores and answers of the harness's own tasks, asked as they say."""
    import lm_eval

    scores: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for one, task in loaded:
        n_items, name = len(task.eval_docs), one.benchmark
        chosen = {name: choose_items(n_items, settings.limits.get(name, settings.limit), every)}
        asked = {"tasks": {name: task}, "groups": {}, "group_map": {}}
        result = lm_eval.evaluate(
            model, asked, samples=chosen, apply_chat_template=one.chat, bootstrap_iters=BOOTSTRAPS
        )
        scores[name], more = score_task(one, task, result)
        rows += more
    return scores, rows


def limit_policies(benchmarks: Any) -> Any:
    """Return how policies are asked: as origin models are, but for `policy_limits`.

    Args:
        benchmarks: the part of an experiment's `benchmarks` that the stage reads, `policy_limits` among it.

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> limit_policies(load_experiment("demo").select(("benchmarks",)).benchmarks).limits["arc_easy"]
        50
    """
    values = {name: getattr(benchmarks, name) for name in benchmarks.as_dict()}
    return SimpleNamespace(**{**values, "limits": values["limits"] | values["policy_limits"]})


def _find_protocol(benchmark: str, protocol: str) -> str:
    """Return how a benchmark is asked: a descriptive one has no options to compare, whatever is set."""
    return "answer" if benchmark == "ifeval" else protocol


def _generation(benchmark: str, settings: Asked) -> dict[str, Any]:
    if benchmark == "ifeval":
        return {"until": [], "do_sample": False, "max_gen_toks": settings.descriptive_tokens}
    return {"until": [*STOPS], "do_sample": False, "max_gen_toks": settings.choice_tokens}


def _read(benchmark: str, sample: dict[str, Any], protocol: str) -> dict[str, Any]:
    item, prompt = sample["doc"], sample["arguments"][0][0]
    if protocol == "answer":
        return build_row(benchmark, item, prompt, sample["resps"][0][0], sample)
    logps = [logp for logp, _ in sample["filtered_resps"]]
    return build_logprob_row(benchmark, item, prompt, normalize_logps(item, logps) if protocol == "cloze" else logps)


def _describe(model: CachedModel, scores: dict[str, dict]) -> dict[str, Any]:
    chats = any(score["protocol"] not in ("cloze", "harness") for score in scores.values())
    return {
        "model": model.name, "weights_digest": model.digest, "backend": model.backend.name,
        "chat_format": model.backend.chat_format if chats else None, "device": model.model_device, "dtype": model.dtype,
        "batch_size": model.batch_size, "threads": model.threads, "seconds": round(model.seconds, 3),
        "prompt_tokens": model.prompt_tokens, "new_tokens": model.new_tokens, "n_asked": model.n_asked,
        "n_cached": model.n_cached, "benchmarks": scores,
    }  # fmt: skip


def save_evaluation(scores: dict[str, Any], answers: pa.Table, folder: Path) -> None:
    """Write scores.json, answers.parquet and unread.csv (the answers that no letter could be read from)."""
    with atomic_path(folder / "answers.parquet") as temporary:
        pq.write_table(answers, temporary)
    unread = [row for row in answers.to_pylist() if row["extracted"] is None and row["benchmark"] != "ifeval"]
    with (
        atomic_path(folder / "unread.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, ["benchmark", "item_id", "answer"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(unread)
    save_json(scores, folder / "scores.json")


def show_item(benchmarks: Sequence[str | HarnessTask], settings: Asked, root: Path) -> dict[str, Any]:
    """Return the first item of a study's first choice benchmark, for a reader to see what is asked.

    A study whose benchmarks are all tasks of the harness's shows an item of the demo's ARC-Easy.
    """
    own = [one for one in benchmarks if isinstance(one, str) and one != "ifeval"]
    if not own:
        return load_items("arc_easy", find_project_root() / "karma" / "data" / "demo", 1)[0]
    return load_items(own[0], find_items(settings.folder, root), 1)[0]
