"""Rows of a pool as they come from JSON or Python: parsed, types checked, put into the schema.

Whatever a row cannot mean is refused with the line it stands on. Numbers written as text and ratings of
"N/A" are what UltraFeedback has and are read as such; a lone surrogate (half a character, which UTF-8
cannot hold) is replaced and said.
"""

import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from karma.errors import InputError, quote, show_line
from karma.files.numbers import parse_number
from karma.files.reading import check_file, parse_json
from karma.pool.responses import ASPECTS

BUFFER_BYTES = 1 << 20
_TEXT, _NUMBER = pa.string(), pa.float64()
_RATING = pa.struct([("Rating", _TEXT), ("Rationale", _TEXT), ("Type", pa.list_(_TEXT)),
                     ("Rationale For Rating", _TEXT)])  # fmt: skip
COMPLETION = pa.struct([
    ("model", _TEXT), ("principle", _TEXT), ("custom_system_prompt", _TEXT), ("response", _TEXT),
    ("critique", _TEXT),
    ("overall_score", _NUMBER), ("fine-grained_score", _NUMBER),
    ("annotations", pa.struct([(a, _RATING) for a in ASPECTS])),
])  # fmt: skip
POOL_SCHEMA = pa.schema([
    ("source", _TEXT), ("instruction", _TEXT), ("models", pa.list_(_TEXT)),
    ("completions", pa.list_(COMPLETION)),
    ("correct_answers", pa.list_(_TEXT)), ("incorrect_answers", pa.list_(_TEXT)),
])  # fmt: skip
NEEDED = ("model", "response", "custom_system_prompt")


def batch_rows(rows: Iterator[tuple[int, Any]], where: str, size: int) -> Iterator[pa.RecordBatch]:
    """Turn (number, row) into Arrow batches of `size` rows; errors name `where` and the number."""
    stream = iter(rows)
    while chunk := list(islice(stream, size)):
        cleaned = [clean_row(row, f"{where} {number}") for number, row in chunk]
        yield pa.RecordBatch.from_pylist(cleaned, POOL_SCHEMA)


def clean_row(row: Any, where: str) -> dict[str, Any]:
    """Check the types of one row, and write its numbers and ratings the way the schema has them."""
    if not isinstance(row, dict):
        raise InputError(f"{where} is {type(row).__name__}, expected an object with instruction and completions")
    for key in ("instruction", "completions"):
        if key not in row:
            raise InputError(f"{where} has no '{key}'; it has {', '.join(map(str, row)) or 'nothing'}")
    completions = row["completions"]
    if not isinstance(completions, (list, tuple, type(None))):
        raise InputError(f"{where}: completions is {type(completions).__name__}, expected a list")
    cleaned: dict[str, Any] = {key: _clean_text(row.get(key), f"{where}: {key}") for key in ("source", "instruction")}
    for key in ("models", "correct_answers", "incorrect_answers"):
        values = row.get(key)
        cleaned[key] = [_clean_text(v, f"{where}: {key}") for v in values] if isinstance(values, list) else None
    cleaned["completions"] = None if completions is None else [_clean_completion(c, where) for c in completions]
    return cleaned


def _clean_completion(completion: Any, where: str) -> dict[str, Any] | None:
    if completion is None:
        return None
    if not isinstance(completion, dict):
        raise InputError(f"{where}: a completion is {type(completion).__name__}, expected {{model, response, ...}}")
    for key in ("model", "response"):
        if key not in completion:
            raise InputError(f"{where}: a completion has no '{key}'; it has {', '.join(completion) or 'nothing'}")
    cleaned: dict[str, Any] = {
        k: _clean_text(completion.get(k), f"{where}: {k}") for k in (*NEEDED, "principle", "critique")
    }
    for name in ("overall_score", "fine-grained_score"):
        cleaned[name] = _clean_number(completion.get(name, completion.get(name.replace("-", "_"))))
    annotations = completion.get("annotations")
    if isinstance(annotations, dict):
        cleaned["annotations"] = {a: _clean_rating(annotations.get(a), where) for a in ASPECTS}
    return cleaned


def _clean_rating(rating: Any, where: str) -> dict[str, Any] | None:
    if not isinstance(rating, dict):
        return None
    kinds = rating.get("Type")
    texts = {k: _clean_text(rating.get(k), f"{where}: {k}") for k in ("Rationale", "Rationale For Rating")}
    value = None if rating.get("Rating") is None else str(rating["Rating"])
    return {**texts, "Rating": value, "Type": [str(k) for k in kinds] if isinstance(kinds, list) else None}


def _clean_number(value: Any) -> float | None:
    """Read a score; "N/A" and the like are no annotation."""
    try:
        return None if value is None or isinstance(value, bool) else parse_number(str(value))
    except (TypeError, ValueError, OverflowError):
        return None


def _clean_text(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"{where} is {quote(value, 60)} ({type(value).__name__}), expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        warnings.warn(f"{where} holds half a character (a lone surrogate), written as '?'", stacklevel=2)
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def check_start(path: Path) -> bytes:
    """Return a file's first bytes; raise where it cannot be read, is empty, or is UTF-16."""
    try:
        with check_file(path).open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not start.strip():
        raise InputError(f"{path} is empty")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is UTF-16: save it as UTF-8")
    return start


def count_lines(path: Path) -> int:
    """Return the number of line ends, for a progress bar."""
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(BUFFER_BYTES), b""))


def has_lines(path: Path) -> bool:
    """Tell whether a file of JSON holds a row a line, and not an array, or an object printed over several lines."""
    text = check_start(path).lstrip(b"\xef\xbb\xbf \t\r\n")
    with path.open("rb") as stream:
        return not text.startswith(b"[") and stream.readline().strip() not in (b"{", b"\xef\xbb\xbf{")


def read_json(path: Path, halves: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of JSON lines, a JSON array, or one object printed over several lines.

    Args:
        path: a file's. halves: whether lone surrogates are let through, as `clean_row` replaces them.
    """
    if not has_lines(path):
        content = decode_json(path.read_bytes(), path.name, halves)
        yield from enumerate(content if isinstance(content, list) else [content], 1)
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, decode_json(line, f"{path.name}: line {number}", halves)


def decode_json(line: bytes, where: str, halves: bool = False) -> Any:
    """Parse one JSON value; what is wrong with it is an InputError that says where."""
    try:
        return parse_json(line.decode("utf-8-sig"), unique=True, halves=halves)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 (byte {line[error.start]:#04x}): convert the file") from error
    except ValueError as error:
        if str(error).startswith("key "):
            raise InputError(f"{where}: {error}") from error
        raise InputError(f"{where} is not valid JSON ({first_line(error)}): put it right, or fetch it again") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return show_line(str(error).splitlines()[0][:160]) if str(error) else type(error).__name__
