"""Parts of a pool's files, each read by itself: what several processes, or several machines, share out.

A part names consecutive rows of one file and holds none of them. Whoever reads a file, whole or in parts, gets batches
that end where the file's rows reach a multiple of BATCH_ROWS, so that nothing made of them depends on how the file was
shared out, nor on its row groups. JSON lines are parsed by Arrow a batch at a time; a batch that Arrow cannot read, or
in which something is left out, is read by Python, which says what is wrong and where. Limit: a parquet row group that
two parts share is decoded from its beginning by both.

Paper: none; ours.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from karma.errors import InputError
from karma.files.reading import check_text, open_parquet
from karma.pool.rows import BUFFER_BYTES, COMPLETION, NEEDED, POOL_SCHEMA, batch_rows, decode_json, first_line

BATCH_ROWS = 4096
PART_ROWS = 4 * BATCH_ROWS  # at least: a part costs a file, an opening and a message
MOST_PART_ROWS = 64 * BATCH_ROWS  # what a lost worker costs at most, were it not for larger row groups
EVERYTHING = "everything"  # in place of an annotation field: all that a row has, to copy it
QUESTIONS = "questions"  # in place of an annotation field: source and instruction alone
_MAX_BLOCK = 1 << 30  # bytes of JSON that Arrow is given at once
# UltraFeedback's column has a hyphen, copies of it an underscore.
_ALIAS = "fine_grained_score"
_JSON_SCHEMA = POOL_SCHEMA.set(
    POOL_SCHEMA.get_field_index("completions"),
    pa.field("completions", pa.list_(pa.struct([*COMPLETION, pa.field(_ALIAS, pa.float64())]))),
)


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a file.

    Attributes:
        path: .parquet, or JSON lines.
        start, stop: rows of a parquet file; bytes of JSON lines.
        line: JSON lines: the lines before it.
    """

    path: Path
    start: int
    stop: int
    line: int = 0

    def read(self, field: str | None) -> Iterator[pa.RecordBatch]:
        """Yield its rows in UltraFeedback's shape, up to BATCH_ROWS at a time.

        Args:
            field: the recorded annotation to read besides, None, QUESTIONS or EVERYTHING.

        Raises:
            InputError: the file is malformed.
        """
        return _read_parquet(self, field) if self.path.suffix == ".parquet" else _read_lines(self)


def cut_parquet(path: Path, n_workers: int) -> Iterator[Part]:
    """Yield the parts in which a parquet file is shared out, whole batches each.

    Args:
        path: the file. n_workers: who will read them; some parts each, so that all end at about the same time.
    """
    metadata = open_rows(path).metadata
    largest = max((metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)), default=0)
    share = min(max(metadata.num_rows // (24 * n_workers), PART_ROWS), MOST_PART_ROWS)
    size = -(-max(share, largest // 2) // BATCH_ROWS) * BATCH_ROWS  # of a large row group two parts: see the limit
    bounds = [*range(0, metadata.num_rows, size), metadata.num_rows]
    yield from (Part(path, start, stop) for start, stop in pairwise(bounds))


def cut_lines(path: Path, n_workers: int) -> Iterator[Part]:
    """Yield the parts in which JSON lines are shared out, whole batches each; the file is read to find its lines."""
    start = line = n_rows = number = place = 0
    with path.open("rb", BUFFER_BYTES) as stream:
        for number, text in enumerate(stream, 1):
            place += len(text)
            n_rows += not text.isspace()
            if n_rows == PART_ROWS:
                yield Part(path, start, place, line)
                start, line, n_rows = place, number, 0
    if n_rows:
        yield Part(path, start, place, line)


def open_rows(path: Path) -> pq.ParquetFile:
    """Open a parquet file to be read a row group at a time.

    Raises:
        InputError: it cannot be read.
    """
    # pre-buffering would keep every row group it has read
    return open_parquet(path, pre_buffer=False, buffer_size=BUFFER_BYTES)


def _read_parquet(part: Part, field: str | None) -> Iterator[pa.RecordBatch]:
    file = open_rows(part.path)
    groups, first = list[int](), 0
    n_skipped = 0  # rows before the part in its first row group
    for i in range(file.metadata.num_row_groups):
        last = first + file.metadata.row_group(i).num_rows
        if first < part.stop and last > part.start:
            n_skipped = n_skipped if groups else part.start - first
            groups.append(i)
        first = last
    leaves = _list_leaves(file, field)
    try:
        batches = map(check_text, file.iter_batches(BATCH_ROWS, row_groups=groups, columns=leaves))
        yield from _align(_cut_out(batches, n_skipped, part.stop - part.start), part.start)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{part.path} cannot be read as parquet ({first_line(error)}): was it cut off?") from error


def _list_leaves(file: pq.ParquetFile, field: str | None) -> list[str] | None:
    """Return the columns that a decision needs; None for all."""
    if field == EVERYTHING:
        return None
    wanted = {*NEEDED, field, (field or "").replace("-", "_")}
    leaves = []
    for leaf in (file.schema.column(i).path for i in range(len(file.schema))):
        parts = leaf.split(".")
        rating = field == "mean_aspect" and "annotations" in parts and parts[-1] == "Rating"
        mine = parts[0] == "completions" and field != QUESTIONS and (parts[-1] in wanted or rating)
        if mine or parts[0] in ("source", "instruction"):
            leaves.append(leaf)
    if field != QUESTIONS and not any(leaf.startswith("completions") for leaf in leaves):
        leaves += ["completions"]  # absent or oddly typed: the reader downstream says what is wrong
    return leaves


def _cut_out(batches: Iterable[pa.RecordBatch], n_skipped: int, n_rows: int) -> Iterator[pa.RecordBatch]:
    """Leave out the first rows, and end after `n_rows` further ones."""
    for batch in batches:
        piece = batch.slice(n_skipped, n_rows)
        n_skipped, n_rows = max(n_skipped - batch.num_rows, 0), n_rows - piece.num_rows
        if piece.num_rows:
            yield piece
        if not n_rows:
            return


def _align(batches: Iterable[pa.RecordBatch], row: int) -> Iterator[pa.RecordBatch]:
    """Cut batches anew where the rows of the file, of which `row` lie before them, reach a multiple of BATCH_ROWS."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        place = 0
        while place < batch.num_rows:
            waiting.append(batch.slice(place, BATCH_ROWS - row % BATCH_ROWS))
            place, row = place + waiting[-1].num_rows, row + waiting[-1].num_rows
            if not row % BATCH_ROWS:
                yield _concatenate(waiting)
                waiting = []
    if waiting:
        yield _concatenate(waiting)


def _concatenate(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _read_lines(part: Part) -> Iterator[pa.RecordBatch]:
    where, waiting, place = f"{part.path.name}: line", list[tuple[int, bytes]](), part.start
    try:
        with part.path.open("rb", BUFFER_BYTES) as stream:
            stream.seek(part.start)
            for number, line in enumerate(stream, part.line + 1):
                place += len(line)
                if line.strip():
                    waiting.append((number, line))
                if waiting and (len(waiting) == BATCH_ROWS or place >= part.stop):
                    yield _parse_lines(waiting, where)
                    waiting = []
                if place >= part.stop:
                    return
    except OSError as error:
        raise InputError(f"{part.path} cannot be read: {error.strerror}") from error
    raise InputError(f"{part.path} became shorter while it was read: leave a pool as it is until its pairs are made")


def _parse_lines(lines: list[tuple[int, bytes]], where: str) -> pa.RecordBatch:
    found = _parse_plain([line for _, line in lines])
    if found is not None:
        return found
    rows = ((number, decode_json(line, f"{where} {number}", halves=True)) for number, line in lines)
    (batch,) = batch_rows(rows, where, BATCH_ROWS)
    return batch


def _parse_plain(lines: list[bytes]) -> pa.RecordBatch | None:
    """Parse lines by Arrow; None where Python must look: not UTF-8, another type, a key left out, two rows a line."""
    lines = [lines[0].removeprefix(b"\xef\xbb\xbf"), *lines[1:]]
    block = b"".join(lines)
    if len(block) > _MAX_BLOCK or not all(line.lstrip().startswith(b"{") for line in lines):  # Arrow dies of `null`
        return None
    try:
        block.decode("utf-8")  # Arrow would not look
        table = pj.read_json(
            io.BytesIO(block),
            pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pj.ParseOptions(explicit_schema=_JSON_SCHEMA, unexpected_field_behavior="ignore"),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    flat = pc.list_flatten(table["completions"].combine_chunks())
    texts = [pc.struct_field(flat, name) for name in ("model", "response")]
    is_whole = all(not column.null_count for column in (table["instruction"], table["completions"], flat, *texts))
    if table.num_rows != len(lines) or not is_whole or pc.struct_field(flat, _ALIAS).null_count < len(flat):
        return None
    return table.cast(POOL_SCHEMA).combine_chunks().to_batches()[0]
