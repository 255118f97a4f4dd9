"""What a pool is held against: the items of benchmarks, and lists of texts of one's own.

Paper: ours; the benchmarks are those of Table 1.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from karma.errors import InputError, quote
from karma.evaluation.items import load_items
from karma.evaluation.packaged import find_items
from karma.evaluation.protocol import ENDING_QUESTION
from karma.files.reading import load_json_lines, read_lines
from karma.pool.decontamination import Items, build_items
from karma.vocabulary import BENCHMARKS


def load_benchmark_texts(
    names: Sequence[str], folder: str | None, root: Path, *, ngram: int, share: float
) -> Items | None:
    """Read what a pool is to be held against.

    Args:
        names: benchmarks, or files of texts (as `load_instructions` reads them); none: None.
        folder: where the benchmarks' items lie (`packaged`, a folder, or None for the Hub). root: for relative paths.
        ngram, share: see `karma.pool.decontamination`.

    Raises:
        InputError: neither a benchmark nor a file, or items that cannot be read.

    Example:
        >>> load_benchmark_texts(["mmlu"], None, Path("."), ngram=13, share=0.0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        karma.errors.InputError: decontaminate: 'mmlu' is neither a file nor one of ifeval, mmlu_stem, ...
    """
    if not names:
        return None
    check_names(names, root)
    texts: list[tuple[str, str, str]] = []
    for name in dict.fromkeys(names):
        if name in BENCHMARKS:
            texts += [(name, item["item_id"], read_item(item)) for item in load_items(name, find_items(folder, root))]
        else:
            own = load_instructions(root / name)
            texts += [(Path(name).name, str(number), text) for number, text in enumerate(own, 1)]
    said = ", ".join(dict.fromkeys(benchmark for benchmark, _, _ in texts))
    return build_items(texts, ngram=ngram, share=share, source=said)


def check_names(names: Sequence[str], root: Path) -> None:
    """Raise an InputError where one is neither a benchmark nor a file."""
    for name in names:
        if name not in BENCHMARKS and not _is_file(root / name):
            raise InputError(f"decontaminate: {quote(name)} is neither a file nor one of {', '.join(BENCHMARKS)}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that cannot be one
        return False


def read_item(item: dict[str, Any]) -> str:
    """Return an item's text: its prompt, or its question and its right answer.

    Example:
        >>> read_item({"question": "Which is hot?", "options": ["ice", "fire"], "answer": 1})
        'Which is hot? fire'
    """
    if "prompt" in item:
        return str(item["prompt"])
    return f"{item['question'].removesuffix(ENDING_QUESTION)} {item['options'][item['answer']]}"


def load_instructions(path: Path) -> list[str]:
    """Read instructions, a line each: plain text, or JSON with `instruction`, `prompt` or `question`.

    Raises:
        InputError: unreadable, empty, or a JSON line without any of the three.
    """
    found = list(_read_instructions(path))
    if not found:
        raise InputError(f"contaminated instructions {path}: the file is empty")
    return found


def _read_instructions(path: Path) -> Iterator[str]:
    if path.suffix != ".jsonl":
        for number, line in read_lines(path):
            if "\0" in line:
                raise InputError(f"{path}: line {number} holds a zero byte: give text, an instruction a line")
            yield line
        return
    for number, row in load_json_lines(path):
        fields = row if isinstance(row, dict) else {}
        text = next((fields[k] for k in ("instruction", "prompt", "question") if k in fields), None)
        if not isinstance(text, str):
            raise InputError(f"{path}: line {number} is no JSON with instruction, prompt or question: "
                             "give one of the three, a text")  # fmt: skip
        yield text
