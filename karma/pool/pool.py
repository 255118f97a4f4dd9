"""The pool: prompts with responses of several origin models, read in batches from wherever they lie.

A source is a Hub id, a parquet or JSON-lines file, a folder of them, a saved `datasets` folder, or rows in
memory. All are read as one stream of `ResponseBatch`es of a fixed number of rows, so that memory does not
grow with the pool; from parquet only the columns a decision needs are decoded. What a source cannot mean is
refused with its file and line. Limit: a JSON array, or an object printed over several lines, is read whole, by Python.

Paper: section 3.1 (UltraFeedback as the pool; UltraLM-65B excluded because it has no scores).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from karma.errors import InputError
from karma.files.places import find_sample
from karma.files.writing import atomic_path
from karma.pool.parts import BATCH_ROWS, Part, cut_lines, cut_parquet, open_rows
from karma.pool.responses import ResponseBatch, build_batch
from karma.pool.rows import (
    COMPLETION,
    POOL_SCHEMA,
    batch_rows,
    clean_row,
    count_lines,
    first_line,
    has_lines,
    read_json,
)


@dataclass(frozen=True)
class ResponsePool:
    """A pool that can be read any number of times.

    Attributes:
        name: Hub id, file name or "rows in memory"; stated in the data card.
        revision: the Hub commit, or None.
        n_rows: prompts, where known before reading (for JSON lines, the lines).
        read: annotation field, None, QUESTIONS or EVERYTHING -> Arrow batches of up to BATCH_ROWS rows, in
            UltraFeedback's shape.
        cut: number of workers -> parts of its files, in order, for each to be read by itself (`karma.pool.parts`); None
            where that is not possible.
    """

    name: str
    revision: str | None
    n_rows: int | None
    read: Callable[[str | None], Iterator[pa.RecordBatch]]
    cut: Callable[[int], Iterator[Part]] | None = None

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
        source: a Hub id ("openbmb/UltraFeedback"), a file or folder, rows in UltraFeedback's shape, or "sample", the
            24 prompts with four answers each that come with the package (params/sample.yaml).
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
            "rows in memory", None, len(rows), lambda _: batch_rows(enumerate(rows, 1), "row", BATCH_ROWS)
        )
    path = find_sample(source, "pool.jsonl") or Path(source)
    if path.exists():
        if revision:
            raise InputError(f"{source} is a local path: a revision belongs to a Hub id")
        return _open_path(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and path.suffix not in (".parquet", ".json", ".jsonl"):
        return _open_hub(str(source), revision)
    raise InputError(f"pool {source} does not exist: give a file, a folder or a Hub id such as openbmb/UltraFeedback")


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
            writer.write_table(pa.Table.from_pylist([clean_row(r, f"row {n}") for r in chunk], POOL_SCHEMA))
    return n


def _check_keys(row: dict[str, Any], n: int) -> None:
    unknown = [k for k in row if k not in POOL_SCHEMA.names]
    for completion in row.get("completions") or []:
        unknown += [k for k in completion or {} if COMPLETION.get_field_index(k) < 0]
    if unknown:
        raise InputError(f"row {n}: '{unknown[0]}' has no place in UltraFeedback's row shape; leave it out")


def _open_path(path: Path) -> ResponsePool:
    if path.is_dir():
        files = _list_pool_files(path)
        if not files:
            return _open_saved(path)
        pools = [_open_path(file) for file in files]
        total = sum(p.n_rows or 0 for p in pools) if all(p.n_rows is not None for p in pools) else None
        cuts = [p.cut for p in pools if p.cut]
        return ResponsePool(
            path.name,
            None,
            total,
            lambda field: (b for p in pools for b in p.read(field)),
            (lambda n: (part for cut in cuts for part in cut(n))) if len(cuts) == len(pools) else None,
        )
    if path.suffix == ".parquet":
        n_rows = open_rows(path).metadata.num_rows
        return ResponsePool(path.name, None, n_rows, Part(path, 0, n_rows).read, partial(cut_parquet, path))
    if path.suffix in (".jsonl", ".json"):
        if has_lines(path):
            n_rows = count_lines(path) if path.suffix == ".jsonl" else None
            return ResponsePool(
                path.name, None, n_rows, Part(path, 0, path.stat().st_size).read, partial(cut_lines, path)
            )
        return ResponsePool(
            path.name, None, None, lambda _: batch_rows(read_json(path, halves=True), f"{path.name}: line", BATCH_ROWS)
        )
    raise InputError(f"{path} is no pool: expected .parquet, .jsonl or .json")


def _list_pool_files(folder: Path) -> list[Path]:
    if (folder / "pool.parquet").is_file():
        return [folder / "pool.parquet"]
    parquet, lines = sorted(folder.glob("*.parquet")), sorted(folder.glob("*.jsonl"))
    if parquet and lines:
        raise InputError(f"{folder} holds both {parquet[0].name} and {lines[0].name}: name the file that is the pool")
    return parquet or lines


def _open_saved(folder: Path) -> ResponsePool:
    if not (folder / "state.json").is_file():
        raise InputError(f"{folder} holds no pool: expected .parquet or .jsonl files, or a saved `datasets` folder")
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # it raises many kinds; each becomes one line
        raise InputError(f"{folder} is no saved `datasets` folder that can be read: {first_line(error)}") from error
    return _wrap_dataset(saved, folder.name, None)


def _open_hub(name: str, revision: str | None) -> ResponsePool:
    import datasets

    from karma.study.experiment import load_base

    pinned = load_base().pool
    if revision is None and name == pinned.source:
        revision = pinned.revision
    try:
        rows = datasets.load_dataset(name, revision=revision, split="train")
    except Exception as error:  # the Hub client raises many kinds; each becomes one line
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} (revision {revision or 'main'}) cannot be loaded from the Hub: {reason}") from error
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
