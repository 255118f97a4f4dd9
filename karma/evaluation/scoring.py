"""From answers to scores, for models and for recorded answers alike.

A score carries what is needed to judge it: n, standard error, chance (IFEval: a floor measured on shuffled answers),
share of unreadable answers and of those that ran on, the value by first and by last statement. Standard errors treat an
item as one cluster, so that IFEval's instructions of one prompt do not count as independent; for items of one unit they
are the usual sqrt(b (1 - b) / (n - 1)).
"""

import math
from typing import Any

import pyarrow as pa

from karma.evaluation.extraction import LETTERS, extract_choice, read_answer
from karma.evaluation.ifeval import compute_floor, score_instructions
from karma.evaluation.protocol import CHOICE_PROMPT, CLOZE_CONTEXT, CLOZE_OPTION, STATEMENT, score_choice
from karma.files.reading import compute_digest

SCORE_OF_IFEVAL = "inst_level_loose"  # Table 3's GPT-4 value shows that this one of the four is meant
FOUR = ("prompt_level_strict", "prompt_level_loose", "inst_level_strict", "inst_level_loose")
LOUD = 0.10  # a larger share of unreadable answers, or of those that run on, says more about form than ability
MOVED = 0.01  # a larger change of a score by which statement counts is told

ANSWERS = pa.schema([
    ("benchmark", pa.string()), ("item_id", pa.string()), ("prompt", pa.string()), ("answer", pa.string()),
    ("extracted", pa.string()), ("correct", pa.int32()), ("n", pa.int32()),
])  # fmt: skip


def score_answer(benchmark: str, item: dict[str, Any], answer: str) -> dict[str, Any]:
    """Return the verdicts on one written answer, as lm-evaluation-harness's `process_results` gives them."""
    return score_instructions(item, [answer]) if benchmark == "ifeval" else score_choice(item, [answer])


def build_row(
    benchmark: str, item: dict[str, Any], prompt: str, answer: str, verdicts: dict[str, Any]
) -> dict[str, Any]:
    """Return one row of answers.parquet; `correct` and `n` count units (IFEval: instructions)."""
    row = {"benchmark": benchmark, "item_id": str(item["item_id"]), "prompt": prompt, "answer": answer}
    if benchmark == "ifeval":
        loose = verdicts[SCORE_OF_IFEVAL]
        return {**row, "extracted": None, "correct": sum(loose), "n": len(loose)}
    return {
        **row,
        "extracted": extract_choice(answer, item["options"]),
        "correct": int(verdicts["correct"]),
        "n": 1,
    }


def build_logprob_row(benchmark: str, item: dict[str, Any], prompt: str, logps: list[float]) -> dict[str, Any]:
    """Return one row of answers.parquet of a variant that compares options; the answer lists each option's nats.

    Args:
        benchmark, item, prompt: as for `build_row`.
        logps: one an option, as they are compared: `cloze` has them per character.
    """
    best = logps.index(max(logps))
    answer = ", ".join(f"{LETTERS[k]} {logp:.4f}" for k, logp in enumerate(logps))
    return {"benchmark": benchmark, "item_id": str(item["item_id"]), "prompt": prompt, "answer": answer,
            "extracted": LETTERS[best], "correct": int(best == item["answer"]), "n": 1}  # fmt: skip


def compute_score(
    benchmark: str, items: list[dict], rows: list[dict], verdicts: list[dict], protocol: str = "answer"
) -> dict[str, Any]:
    """Summarise a benchmark.

    Args:
        benchmark: its name.
        items, rows, verdicts: one each an item, in the same order.
        protocol: "answer", or "logprob" or "cloze" (where nothing was written that could run on).

    Returns:
        value, n (units), standard_error, chance, unextracted, details.
    """
    n = sum(row["n"] for row in rows)
    value = sum(row["correct"] for row in rows) / n
    score: dict[str, Any] = {
        "value": value,
        "n": n,
        "standard_error": compute_standard_error(rows),
        "chance": None,
        "unextracted": None,
    }
    if benchmark == "ifeval":
        details: dict[str, Any] = {measure: _average([v[measure] for v in verdicts]) for measure in FOUR}
        details["floor"] = compute_floor(items, [row["answer"] for row in rows])
        return {**score, "details": details}
    score["chance"] = sum(1 / len(item["options"]) for item in items) / n
    score["unextracted"] = sum(row["extracted"] is None for row in rows) / n
    return {**score, "details": compute_reading_details(items, rows) if protocol == "answer" else {}}


def compute_reading_details(items: list[dict], rows: list[dict]) -> dict[str, float]:
    """Return what depends on the reading: shares of answers in [0, 1] that run on or list several letters as right, and
    the value if of several statements the first counted (as it does) or the last.

    Example:
        >>> item = {"options": ["ice", "fire"], "answer": 0}
        >>> texts = ["The answer is (A). Still, the answer is (B).", "The answer is (A).\\nQuestion: What burns?"]
        >>> compute_reading_details([item, item], [{"answer": text} for text in texts])
        {'run_on': 0.5, 'listed': 0.0, 'by_first': 1.0, 'by_last': 0.5}
    """
    readings = [read_answer(row["answer"], item["options"]) for item, row in zip(items, rows, strict=True)]
    right = [LETTERS[item["answer"]] for item in items]
    return {
        "run_on": _average([reading.runs_on for reading in readings]),
        "listed": _average([reading.lists for reading in readings]),
        "by_first": _average([reading.first == letter for reading, letter in zip(readings, right, strict=True)]),
        "by_last": _average([reading.last == letter for reading, letter in zip(readings, right, strict=True)]),
    }


def _average(verdicts: list[Any]) -> float:
    flat = [x for verdict in verdicts for x in (verdict if isinstance(verdict, list) else [verdict])]
    return sum(flat) / len(flat)


def compute_standard_error(rows: list[dict[str, Any]]) -> float:
    """Return the standard error of units right / units, an item being one cluster.

    Example:
        >>> rows = [{"correct": c, "n": 1} for c in (1, 0, 0, 0)]
        >>> compute_standard_error(rows) == (0.25 * 0.75 / 3) ** 0.5
        True
    """
    n, n_items = sum(row["n"] for row in rows), len(rows)
    value = sum(row["correct"] for row in rows) / n
    squares = sum((row["correct"] - value * row["n"]) ** 2 for row in rows)
    return math.sqrt(squares * n_items / max(n_items - 1, 1)) / n


def compute_template_hash(benchmark: str, protocol: str = "answer") -> str:
    """Return the digest of what surrounds an item; it changes when the wording does."""
    if benchmark == "ifeval":
        return compute_digest("{prompt}")
    context = "{context}" if benchmark == "hellaswag" else CLOZE_CONTEXT
    texts = {"answer": CHOICE_PROMPT, "logprob": CHOICE_PROMPT + STATEMENT, "cloze": context + CLOZE_OPTION}
    return compute_digest(texts[protocol])


def _describe_task(benchmark: str, score: dict[str, Any]) -> str:
    """Say of a task of lm-evaluation-harness which of its metrics is the score, and what guessing gets."""
    task, details = score["task"], score["details"]
    lower = ", turned round: lower is better" if task["direction"] == "lower" else ""
    level = f"chance {score['chance']:.3f}" if score["chance"] is not None else "chance unknown"
    level = f"answers given to other items get {details['floor']:.3f}" if details.get("floor") is not None else level
    unscored = f", {details['unscored']} not scored by the task" if details.get("unscored") else ""
    error = "" if score["standard_error"] is not None else ", no standard error of the task's own"
    return (f"note: {benchmark}: {task['metric']} of task {task['name']}, version {score['task_version']}{lower}; "
            f"{score['n']} items{unscored}; {level}{error}")  # fmt: skip


def list_warnings(scores: dict[str, Any]) -> list[str]:
    """Return what a reader of scores.json must not overlook, one line each."""
    lines = []
    for benchmark, score in scores["benchmarks"].items():
        if "task" in score:
            lines.append(_describe_task(benchmark, score))
        if (score["unextracted"] or 0) > LOUD:
            lines.append(
                f"WARNING: {score['unextracted']:.0%} of the {benchmark} answers could not be read and count as wrong: "
                "this score says more about form than ability"
            )
        details = score.get("details") or {}
        if details.get("run_on", 0) > LOUD:
            lines.append(
                f"WARNING: {details['run_on']:.0%} of the {benchmark} answers run on into another question, before "
                "which they were cut: ask with the model's chat format, or stop generation there"
            )
        if abs(details.get("by_last", 0) - details.get("by_first", 0)) > MOVED:
            lines.append(
                f"note: {benchmark}: of several statements the first counts; by the last the score were "
                f"{details['by_last']:.3f} instead of {details['by_first']:.3f}"
            )
    if scores.get("chat_format") == "plain":
        lines.append(
            f"note: {scores['model']} has no chat template; it was asked in plain 'User: ... Assistant:' turns"
        )
    return lines
