"""Parquet files of one schema laid end to end: row groups copied as bytes, their places in the footer moved.

Processes that each write a part of a pair set encode and compress it themselves, and one process only copies: the
result has the bytes that a single writer would have made of the same row groups. pyarrow can read a footer but not move
what it says, so that the footer (Thrift's compact protocol, of the Parquet format) is read and written here; row groups
are kept as bytes, about 2 KB each. Decision: fields are copied as they are found, so that a newer pyarrow's pass
through; only places in the file are known by number. Limit: files with page indexes or bloom filters, which lie behind
the row groups, are refused.
"""

import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from karma.errors import KarmaError

MAGIC = b"PAR1"
BLOCK_BYTES = 1 << 20
# Numbers of fields in FileMetaData, RowGroup, ColumnChunk and ColumnMetaData (parquet.thrift).
N_ROWS, ROW_GROUPS = 3, 4
COLUMNS, GROUP_PLACE, ORDINAL = 1, 5, 7
CHUNK_PLACE, CHUNK_FACTS, INDEX_PLACES = 2, 3, (4, 6)
PAGE_PLACES, BLOOM_PLACE = (9, 10, 11), 14
# Types of the compact protocol.
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
MAX_ORDINAL = 32767  # 16 bits; further row groups have none


class Field(NamedTuple):
    """A field of a Thrift structure: its number, its type in the compact protocol, its value."""

    number: int
    kind: int
    value: Any


class Joined:
    """A parquet file that grows by the row groups of others, to be finished and closed.

    Example:
        >>> import tempfile, pyarrow as pa, pyarrow.parquet as pq
        >>> folder = Path(tempfile.mkdtemp())
        >>> for i in range(2):
        ...     pq.write_table(pa.table({"x": [2 * i, 2 * i + 1]}), folder / f"{i}.parquet")
        >>> both = Joined(folder / "both.parquet")
        >>> for i in range(2):
        ...     both.add(folder / f"{i}.parquet")
        >>> both.finish()
        >>> both.close()
        >>> pq.read_table(folder / "both.parquet")["x"].to_pylist()
        [0, 1, 2, 3]
    """

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._footer: list[Field] | None = None
        self._groups: list[bytes] = []
        self._n_rows = 0
        self._stream.write(MAGIC)

    def close(self) -> None:
        """Close the file, finished or not."""
        self._stream.close()

    def add(self, path: Path) -> None:
        """Append a file's row groups.

        Raises:
            KarmaError: no parquet file, one cut short, or one with indexes.
        """
        with path.open("rb") as stream:
            footer, end = _read_footer(stream, path)
            moved = self._stream.tell() - len(MAGIC)
            _copy(stream, self._stream, len(MAGIC), end - len(MAGIC), path)
        fields = {field.number: field.value for field in footer}
        for group in fields[ROW_GROUPS][1]:
            self._groups.append(_encode_struct(_move_group(group, moved, len(self._groups), path)))
        self._n_rows += fields[N_ROWS]
        self._footer = self._footer or footer

    def finish(self) -> None:
        """Write the footer: the first file's, with all row groups.

        Raises:
            KarmaError: nothing was added.
        """
        if self._footer is None:
            raise KarmaError("nothing was written: a parquet file is joined of one part or more")
        content = bytearray()
        groups = _encode_list_head(len(self._groups), STRUCT) + b"".join(self._groups)
        known = {N_ROWS: _encode_integer(self._n_rows), ROW_GROUPS: groups}
        last = 0
        for number, kind, value in self._footer:
            content += _encode_field_head(number - last, number, kind)
            content += known.get(number) or _encode(kind, value)
            last = number
        content.append(0)
        self._stream.write(content + struct.pack("<I", len(content)) + MAGIC)
        self._stream.flush()


def _read_footer(stream: Any, path: Path) -> tuple[list[Field], int]:
    """Return the footer's fields and where it starts."""
    size = stream.seek(0, 2)
    stream.seek(max(size - 8, 0))
    tail = stream.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length + 12 > size:
        raise KarmaError(f"{path} is no whole parquet file: it was cut off")
    stream.seek(size - 8 - length)
    return _Reader(stream.read(length)).read_struct(), size - 8 - length


def _copy(source: Any, target: Any, start: int, n: int, path: Path) -> None:
    """Append `n` bytes from `start` on, within the system where it can: five times as fast, as they never come here."""
    if n < 0:
        raise KarmaError(f"{path} is no whole parquet file: it was cut off")
    target.flush()
    place, end = start, start + n
    with suppress(OSError, AttributeError):  # another file system, or a system without
        while place < end and (done := os.copy_file_range(
            source.fileno(), target.fileno(), end - place, place, target.tell()
        )):  # fmt: skip
            place += done
            target.seek(done, os.SEEK_CUR)
    source.seek(place)
    while place < end and (block := source.read(min(end - place, BLOCK_BYTES))):
        target.write(block)
        place += len(block)
    if place < end:
        raise KarmaError(f"{path} was cut off while it was read ({place - start} bytes)")


def _move_group(group: list[Field], moved: int, place: int, path: Path) -> list[Field]:
    """Return a row group's fields for its new place, `moved` bytes further on."""
    changed: dict[int, Any] = {}
    for number, _, value in group:
        if number == COLUMNS:
            changed[number] = (STRUCT, [_move_chunk(chunk, moved, path) for chunk in value[1]])
        elif number == GROUP_PLACE:
            changed[number] = value + moved
        elif number == ORDINAL:
            changed[number] = place
    kept = (field for field in group if field.number != ORDINAL or place <= MAX_ORDINAL)
    return [field._replace(value=changed.get(field.number, field.value)) for field in kept]


def _move_chunk(chunk: list[Field], moved: int, path: Path) -> list[Field]:
    found = []
    for field in chunk:
        if field.number in INDEX_PLACES:
            raise KarmaError(f"{path} has page indexes: write it without, to be joined")
        if field.number == CHUNK_PLACE:
            field = field._replace(value=field.value + moved if field.value else 0)  # 0: not said, as pyarrow leaves it
        if field.number == CHUNK_FACTS:
            field = field._replace(value=[_move_fact(fact, moved, path) for fact in field.value])
        found.append(field)
    return found


def _move_fact(fact: Field, moved: int, path: Path) -> Field:
    if fact.number == BLOOM_PLACE:
        raise KarmaError(f"{path} has bloom filters: write it without, to be joined")
    return fact._replace(value=fact.value + moved) if fact.number in PAGE_PLACES else fact


class _Reader:
    """Reads the compact protocol: structures as lists of fields, lists as (type of elements, elements)."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 0

    def read_struct(self) -> list[Field]:
        found: list[Field] = []
        number = 0
        while head := self._take(1)[0]:
            number = number + (head >> 4) if head >> 4 else self._read_integer()
            found.append(Field(number, head & 15, self._read(head & 15, inside=False)))
        return found

    def _read(self, kind: int, inside: bool) -> Any:
        if kind in (TRUE, FALSE):  # a field's truth is its type; a list's elements are bytes
            return self._take(1) if inside else kind == TRUE
        if kind == BYTE:
            return self._take(1)
        if kind == DOUBLE:
            return self._take(8)
        if kind == BINARY:
            return self._take(self._read_size())
        if kind in (LIST, SET):
            head = self._take(1)[0]
            n = head >> 4 if head >> 4 < 15 else self._read_size()
            return head & 15, [self._read(head & 15, inside=True) for _ in range(n)]
        if kind == STRUCT:
            return self.read_struct()
        if kind in (4, 5, 6):  # integers of 16, 32, 64 bits
            return self._read_integer()
        raise KarmaError(f"a parquet footer holds a field of type {kind}, which is not known here")

    def _take(self, n: int) -> bytes:
        self._place += n
        return self._content[self._place - n : self._place]

    def _read_size(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _read_integer(self) -> int:
        value = self._read_size()
        return (value >> 1) ^ -(value & 1)


def _encode(kind: int, value: Any) -> bytes:
    if kind in (TRUE, FALSE):
        return value if isinstance(value, bytes) else b""
    if kind in (BYTE, DOUBLE):
        return bytes(value)
    if kind == BINARY:
        return _encode_size(len(value)) + bytes(value)
    if kind in (LIST, SET):
        inner, values = value
        return _encode_list_head(len(values), inner) + b"".join(_encode(inner, one) for one in values)
    return _encode_struct(value) if kind == STRUCT else _encode_integer(value)


def _encode_struct(fields: Iterable[Field]) -> bytes:
    content, last = bytearray(), 0
    for number, kind, value in fields:
        content += _encode_field_head(number - last, number, kind) + _encode(kind, value)
        last = number
    return bytes(content) + b"\0"


def _encode_field_head(step: int, number: int, kind: int) -> bytes:
    return bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _encode_integer(number)


def _encode_list_head(n: int, kind: int) -> bytes:
    return bytes([n << 4 | kind]) if n < 15 else bytes([0xF0 | kind]) + _encode_size(n)


def _encode_size(value: int) -> bytes:
    content = bytearray()
    while value > 127:
        content.append(value & 127 | 128)
        value >>= 7
    return bytes([*content, value])


def _encode_integer(value: int) -> bytes:
    return _encode_size(value << 1 ^ (-1 if value < 0 else 0))
