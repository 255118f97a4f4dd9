"""The pool: prompts with responses of several origin models, read in batches from wherever they lie.

A source is a Hub id, a parquet or JSON-lines file, a folder of them, a saved `datasets` folder, or rows in memory. All
are read as one stream of `ResponseBatch`es of a fixed number of rows, so that memory does not grow with the pool; from
parquet only the columns a decision needs are decoded. What a source cannot mean is refused with its file and line.
Limit: JSON lines are parsed by Python, about ten times slower than parquet; save a large pool once with `save_pool`.

Paper: section 4.1 (UltraFeedback as the pool; UltraLM-65B excluded because it has no scores).
"""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from karma.errors import InputError
from karma.files import atomic_path
from karma.responses import ASPECTS, ResponseBatch, build_batch, compute_response_id, compute_row_id

__all__ = ["ResponsePool", "compute_response_id", "compute_row_id", "load_pool", "save_pool"]

BATCH_ROWS = 4096
BUFFER_BYTES = 1 << 20
_TEXT, _NUMBER = pa.string(), pa.float64()
_RATING = pa.struct([("Rating", _TEXT), ("Rationale", _TEXT), ("Type", pa.list_(_TEXT)),
                     ("Rationale For Rating", _TEXT)])  # fmt: skip
_COMPLETION = pa.struct([
    ("model", _TEXT), ("principle", _TEXT), ("custom_system_prompt", _TEXT), ("response", _TEXT), ("critique", _TEXT),
    ("overall_score", _NUMBER), ("fine-grained_score", _NUMBER), ("annotations", pa.struct([(a, _RATING) for a in ASPECTS])),
])  # fmt: skip
POOL_SCHEMA = pa.schema([
    ("source", _TEXT), ("instruction", _TEXT), ("models", pa.list_(_TEXT)), ("completions", pa.list_(_COMPLETION)),
    ("correct_answers", pa.list_(_TEXT)), ("incorrect_answers", pa.list_(_TEXT)),
])  # fmt: skip
_NEEDED = ("model", "response", "custom_system_prompt")


@dataclass(frozen=True)
class ResponsePool:
    """A pool that can be read any number of times.

    Attributes:
        name: Hub id, file name or "rows in memory"; stated in the data card.
        revision: the Hub commit, or None.
        n_rows: prompts, where known before reading (for JSON lines, the lines).
        read: annotation field or None -> Arrow batches in UltraFeedback's row shape, at most BATCH_ROWS rows each.
    """

    name: str
    revision: str | None
    n_rows: int | None
    read: Callable[[str | None], Iterator[pa.RecordBatch]]

    def batches(self, annotation: str | None = None) -> Iterator[ResponseBatch]:
        """Yield the pool in order, with one recorded annotation field if asked.

        Raises:
            InputError: the source is malformed, or holds no rows.
        """
        n = 0
        for rows in self.read(annotation):
            n += rows.num_rows
            yield build_batch(rows, annotation, self.name)
        if not n:
            raise InputError(f"{self.name} holds no rows: a pool needs at least one prompt with responses")


def load_pool(source: str | Path | Iterable[dict[str, Any]], revision: str | None = None) -> ResponsePool:
    """Open a pool; rows are read when they are needed.

    Args:
        source: a Hub id ("openbmb/UltraFeedback"), a file or folder, or rows in UltraFeedback's shape.
        revision: a Hub commit; for UltraFeedback the one pinned in base.yaml, unless given.

    Raises:
        InputError: there is nothing there, or it is no pool.

    Example:
        >>> answers = [{"model": "a", "response": "Yes."}, {"model": "b", "response": "No."}]
        >>> pool = load_pool([{"source": "s", "instruction": "Really?", "completions": answers}])
        >>> [batch.response.to_pylist() for batch in pool.batches()]
        [['Yes.', 'No.']]
    """
    if not isinstance(source, (str, Path)):
        rows = list(source)
        return ResponsePool(
            "rows in memory", None, len(rows), lambda _: _batch_rows(enumerate(rows, 1), "row")
        )
    path = Path(source)
    if path.exists():
        if revision:
            raise InputError(f"{source} is a local path: a revision belongs to a Hub id")
        return _open_path(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and path.suffix not in (".parquet", ".json", ".jsonl"):
        return _open_hub(str(source), revision)
    raise InputError(
        f"pool {source} does not exist: give a file, a folder or a Hub id such as openbmb/UltraFeedback"
    )


def save_pool(rows: Iterable[dict[str, Any]], path: str | Path) -> int:
    """Write rows as parquet in UltraFeedback's shape, atomically.

    Args:
        rows: dictionaries with instruction and completions; keys outside UltraFeedback's shape are refused.
        path: the file to write.

    Returns:
        The number of rows written.
    """
    n, stream = 0, iter(rows)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, POOL_SCHEMA) as writer:
        while chunk := list(islice(stream, BATCH_ROWS)):
            for row in chunk:
                n += 1
                _check_keys(row, n)
            writer.write_table(pa.Table.from_pylist([_clean(r, f"row {n}") for r in chunk], POOL_SCHEMA))
    return n


def _check_keys(row: dict[str, Any], n: int) -> None:
    unknown = [k for k in row if k not in POOL_SCHEMA.names]
    for completion in row.get("completions") or []:
        unknown += [k for k in completion or {} if _COMPLETION.get_field_index(k) < 0]
    if unknown:
        raise InputError(f"row {n}: '{unknown[0]}' has no place in UltraFeedback's row shape; leave it out")


def _open_path(path: Path) -> ResponsePool:
    if path.is_dir():
        files = _list_pool_files(path)
        if not files:
            return _open_saved(path)
        parts = [_open_path(file) for file in files]
        total = sum(p.n_rows or 0 for p in parts) if all(p.n_rows is not None for p in parts) else None
        return ResponsePool(path.name, None, total, lambda field: (b for p in parts for b in p.read(field)))
    if path.suffix == ".parquet":
        n_rows = _open_parquet(path).metadata.num_rows
        return ResponsePool(path.name, None, n_rows, lambda field: _read_parquet(path, field))
    if path.suffix in (".jsonl", ".json"):
        _read_start(path)
        return ResponsePool(
            path.name,
            None,
            _count_lines(path),
            lambda _: _batch_rows(_parse_json(path), f"{path.name}: line"),
        )
    raise InputError(f"{path} is no pool: expected .parquet, .jsonl or .json")


def _list_pool_files(folder: Path) -> list[Path]:
    if (folder / "pool.parquet").is_file():
        return [folder / "pool.parquet"]
    parquet, lines = sorted(folder.glob("*.parquet")), sorted(folder.glob("*.jsonl"))
    if parquet and lines:
        raise InputError(
            f"{folder} holds both {parquet[0].name} and {lines[0].name}: name the file that is the pool"
        )
    return parquet or lines


def _open_saved(folder: Path) -> ResponsePool:
    if not (folder / "state.json").is_file():
        raise InputError(
            f"{folder} holds no pool: expected .parquet or .jsonl files, or a saved `datasets` folder"
        )
    import datasets

    return _wrap_dataset(datasets.load_from_disk(str(folder)), folder.name, None)


def _open_hub(name: str, revision: str | None) -> ResponsePool:
    import datasets

    from karma.params import load_base

    pinned = load_base().pool
    if revision is None and name == pinned.source:
        revision = pinned.revision
    try:
        rows = datasets.load_dataset(name, revision=revision, split="train")
    except Exception as error:  # the Hub client raises many kinds; each becomes one line
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} (revision {revision or 'main'}) cannot be loaded from the Hub: {reason}"
        ) from error
    return _wrap_dataset(rows, name, revision)


def _wrap_dataset(rows: Any, name: str, revision: str | None) -> ResponsePool:
    if not hasattr(rows, "with_format") or not hasattr(rows, "num_rows") or isinstance(rows.num_rows, dict):
        raise InputError(f"{name} has several splits: save or name one of them")
    arrow = rows.with_format("arrow")
    return ResponsePool(
        name,
        revision,
        rows.num_rows,
        lambda _: (b for t in arrow.iter(BATCH_ROWS) for b in t.combine_chunks().to_batches()),
    )


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(
            path, pre_buffer=False, buffer_size=BUFFER_BYTES
        )  # pre-buffering keeps what it read
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path} cannot be read as parquet ({_first_line(error)}): was it cut off?"
        ) from error


def _read_parquet(path: Path, annotation: str | None) -> Iterator[pa.RecordBatch]:
    file = _open_parquet(path)
    wanted = {*_NEEDED, annotation, (annotation or "").replace("-", "_")}
    leaves = []
    for leaf in (file.schema.column(i).path for i in range(len(file.schema))):
        parts = leaf.split(".")
        rating = annotation == "mean_aspect" and "annotations" in parts and parts[-1] == "Rating"
        if parts[0] in ("source", "instruction") or (
            parts[0] == "completions" and (parts[-1] in wanted or rating)
        ):
            leaves.append(leaf)
    if not any(leaf.startswith("completions") for leaf in leaves):
        leaves += ["completions"]  # absent or oddly typed: the reader downstream says what is wrong
    try:
        yield from file.iter_batches(BATCH_ROWS, columns=leaves)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path} cannot be read as parquet ({_first_line(error)}): was it cut off?"
        ) from error


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not start.strip():
        raise InputError(f"{path} is empty")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path} is UTF-16: save it as UTF-8")
    return start


def _count_lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(BUFFER_BYTES), b""))


def _parse_json(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of JSON lines, a JSON array, or one object printed over several lines."""
    text = _read_start(path).lstrip(b"\xef\xbb\xbf \t\r\n")
    with path.open("rb") as stream:
        if text.startswith(b"[") or _is_broken_first_line(stream):
            stream.seek(0)
            content = _decode_json(stream.read(), f"{path.name}")
            yield from enumerate(content if isinstance(content, list) else [content], 1)
            return
        stream.seek(0)
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, _decode_json(line, f"{path.name}: line {number}")


def _is_broken_first_line(stream: Any) -> bool:
    """Tell whether the first line is no JSON by itself and the file is small enough to be one printed object."""
    first = stream.readline()
    try:
        json.loads(first)
    except ValueError:
        return first.strip() in (b"{", b"\xef\xbb\xbf{")
    return False


def _decode_json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 (byte {line[error.start]:#04x}): convert the file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON ({_first_line(error)}): was it cut off?") from error


def _batch_rows(rows: Iterator[tuple[int, Any]], where: str) -> Iterator[pa.RecordBatch]:
    stream = iter(rows)
    while chunk := list(islice(stream, BATCH_ROWS)):
        cleaned = [_clean(row, f"{where} {number}") for number, row in chunk]
        yield pa.RecordBatch.from_pylist(cleaned, POOL_SCHEMA)


def _clean(row: Any, where: str) -> dict[str, Any]:
    """Check the types of one row, and write its numbers and ratings the way the schema has them."""
    if not isinstance(row, dict):
        raise InputError(
            f"{where} is {type(row).__name__}, expected an object with instruction and completions"
        )
    for key in ("instruction", "completions"):
        if key not in row:
            raise InputError(f"{where} has no '{key}'; it has {', '.join(map(str, row)) or 'nothing'}")
    completions = row["completions"]
    if not isinstance(completions, (list, tuple, type(None))):
        raise InputError(f"{where}: completions is {type(completions).__name__}, expected a list")
    cleaned: dict[str, Any] = {
        key: _clean_text(row.get(key), f"{where}: {key}") for key in ("source", "instruction")
    }
    for key in ("models", "correct_answers", "incorrect_answers"):
        values = row.get(key)
        cleaned[key] = (
            [_clean_text(v, f"{where}: {key}") for v in values] if isinstance(values, list) else None
        )
    cleaned["completions"] = (
        None if completions is None else [_clean_completion(c, where) for c in completions]
    )
    return cleaned


def _clean_completion(completion: Any, where: str) -> dict[str, Any] | None:
    if completion is None:
        return None
    if not isinstance(completion, dict):
        raise InputError(
            f"{where}: a completion is {type(completion).__name__}, expected {{model, response, ...}}"
        )
    for key in ("model", "response"):
        if key not in completion:
            raise InputError(
                f"{where}: a completion has no '{key}'; it has {', '.join(completion) or 'nothing'}"
            )
    cleaned: dict[str, Any] = {
        k: _clean_text(completion.get(k), f"{where}: {k}") for k in (*_NEEDED, "principle", "critique")
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
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _clean_text(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InputError(f"{where} is {value!r:.60} ({type(value).__name__}), expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        warnings.warn(f"{where} holds half a character (a lone surrogate), written as '?'", stacklevel=2)
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
