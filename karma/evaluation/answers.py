"""Recorded answers: score what someone logged elsewhere, without asking any model.

The file holds JSON lines of {"item_id" or "prompt", "answer"}, optionally with "benchmark" where it covers several. A
prompt may be the full prompt of this kit or the bare question (IFEval: the prompt), spaces apart. Nothing is guessed:
lines that match no item, repeated lines and items without an answer are counted and named; two different answers to one
item are refused. The score is over the items that have an answer, and its n says how many.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from karma.errors import InputError
from karma.evaluation.ifeval import check_items
from karma.evaluation.items import load_items
from karma.evaluation.protocol import write_choice_prompt
from karma.evaluation.scoring import (
    ANSWERS,
    build_row,
    compute_score,
    compute_template_hash,
    score_answer,
)
from karma.files.reading import compute_file_digest, load_json_lines

_NAMED = 10  # ids listed of each kind; the counts are exact


@dataclass
class Matching:
    """What became of a file's lines.

    Attributes:
        answers: item_id -> answer.
        lines: of this benchmark. unknown: what they name, where no item has it. repeated, missing: item ids.
    """

    answers: dict[str, str] = field(default_factory=dict)
    lines: int = 0
    unknown: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """Return the counts, and the first names of each kind."""
        counts: dict[str, Any] = {"lines": self.lines, "answered": len(self.answers)}
        for kind in ("unknown", "repeated", "missing"):
            counts |= {kind: len(getattr(self, kind)), f"{kind}_first": getattr(self, kind)[:_NAMED]}
        return counts

    def list_problems(self, benchmark: str) -> list[str]:
        """Return one line for each kind of problem there is."""
        meaning = {"unknown": "lines match no item", "repeated": "lines repeat an item's answer",
                   "missing": "items have no answer and are left out of the score"}  # fmt: skip
        lines = []
        for kind, text in meaning.items():
            names = getattr(self, kind)
            more = ", ..." if len(names) > _NAMED else ""
            if names:
                lines.append(f"{benchmark}: {len(names)} {text}: {', '.join(names[:_NAMED])}{more}")
        return lines


def score_recorded(
    path: Path, benchmarks: list[str], folder: Path | None, limit: int | None = None
) -> tuple[dict[str, Any], pa.Table]:
    """Score a file of recorded answers.

    Args:
        path: JSON lines.
        benchmarks: names; more than one only where each line says which is meant.
        folder: benchmark data; None for the Hub's. limit: items a benchmark.

    Returns:
        scores (as in scores.json, with "recorded" in each benchmark's details) and answers.

    Raises:
        InputError: an unusable line, two answers to one item, or no line that matches.
    """
    lines = list(_read_lines(path, benchmarks))
    scores, rows = {}, []
    for benchmark in benchmarks:
        items = {item["item_id"]: item for item in load_items(benchmark, folder, limit)}
        if benchmark == "ifeval":
            check_items(list(items.values()))
        matching = match_answers([line for line in lines if line["benchmark"] == benchmark], benchmark, items)
        if not matching.answers:
            raise InputError(f"{path}: none of its lines matches an item of {benchmark}: is the benchmark right?")
        answered = [items[i] for i in items if i in matching.answers]
        verdicts = [score_answer(benchmark, item, matching.answers[item["item_id"]]) for item in answered]
        new = [build_row(benchmark, item, write_prompt(benchmark, item), matching.answers[item["item_id"]], verdict)
               for item, verdict in zip(answered, verdicts, strict=True)]  # fmt: skip
        score = compute_score(benchmark, answered, new, verdicts)
        score["details"]["recorded"] = matching.describe()
        scores[benchmark] = score | {"protocol": "answer", "task_version": None, "shots": None, "generation": {},
                                     "template_hash": compute_template_hash(benchmark)}  # fmt: skip
        scores[benchmark]["problems"] = matching.list_problems(benchmark)
        rows += new
    return _describe(path, scores), pa.Table.from_pylist(rows, schema=ANSWERS)


def write_prompt(benchmark: str, item: dict[str, Any]) -> str:
    """Write an item as a user turn, without any model's chat format."""
    return item["prompt"] if benchmark == "ifeval" else write_choice_prompt(item)


def match_answers(lines: list[dict[str, Any]], benchmark: str, items: dict[str, dict]) -> Matching:
    """Find each line's item, by id or else by prompt.

    Raises:
        InputError: a prompt that several items share, or two different answers to one item.
    """
    by_prompt: dict[str, set[str]] = {}
    for item_id, item in items.items():
        for text in {write_prompt(benchmark, item), item.get("question", "")} - {""}:
            by_prompt.setdefault(_squeeze(text), set()).add(item_id)
    found = Matching(lines=len(lines))
    for line in lines:
        if line["item_id"] is not None:
            ids = {line["item_id"]} & set(items)
        else:
            ids = by_prompt.get(_squeeze(line["prompt"]), set())
        if len(ids) > 1:
            shared = ", ".join(sorted(ids)[:3])
            raise InputError(f"{line['where']}: items {shared} share this prompt: give item_id, or the full prompt")
        if not ids:
            name = line["item_id"] if line["item_id"] is not None else repr(_squeeze(line["prompt"])[:50])
            found.unknown.append(f"{name} (line {line['number']})")
            continue
        item_id = ids.pop()
        if item_id in found.answers:
            if found.answers[item_id] != line["answer"]:
                raise InputError(f"{line['where']}: a second, different answer to item {item_id}: keep one")
            found.repeated.append(item_id)
        found.answers[item_id] = line["answer"]
    found.missing = [item_id for item_id in items if item_id not in found.answers]
    return found


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _read_lines(path: Path, benchmarks: list[str]) -> Iterator[dict[str, Any]]:
    for number, row in load_json_lines(path):
        yield {**_read_line(row, f"{path}: line {number}", benchmarks), "number": number}


def _read_line(row: Any, where: str, benchmarks: list[str]) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("answer"), str):
        raise InputError(
            f'{where}: expected {{"item_id" or "prompt": ..., "answer": text}} (an empty text is an answer)'
        )
    item_id, prompt = row.get("item_id"), row.get("prompt")
    if item_id is None and not isinstance(prompt, str):
        raise InputError(f"{where} has neither item_id nor prompt")
    benchmark = row.get("benchmark", benchmarks[0] if len(benchmarks) == 1 else None)
    if benchmark is None:
        raise InputError(f"{where} has no `benchmark`, and {len(benchmarks)} are asked for: give one --benchmark")
    return {"item_id": None if item_id is None else str(item_id), "prompt": prompt, "answer": row["answer"],
            "benchmark": benchmark, "where": where}  # fmt: skip


def _describe(path: Path, scores: dict[str, dict]) -> dict[str, Any]:
    problems = [problem for score in scores.values() for problem in score.pop("problems")]
    return {
        "model": path.stem, "weights_digest": None, "answers_digest": compute_file_digest(path), "backend": "recorded",
        "chat_format": None, "device": None, "dtype": None, "batch_size": None, "threads": None, "seconds": None,
        "prompt_tokens": None, "new_tokens": None, "problems": problems, "benchmarks": scores,
    }  # fmt: skip
