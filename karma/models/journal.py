"""The journal of a shard that is being made: a line an answer, each with its own digest.

What is a line is not lost with the process that wrote it, and what was synced not with its machine. A line cut short,
by a kill or a full disk, or altered since, says nothing, and its answer is asked for again. Decision: JSON lines, since
they are whole as soon as they end and a person can read them; the shard, a parquet file, is written when all are there.
Limit: one writer; `karma.models.store` sees to it.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from karma.errors import KarmaError
from karma.files.reading import compute_digest

Record = dict[str, Any]


class UnwritableError(KarmaError):
    """A disk that is full or refuses: no other worker would fare better."""


@dataclass
class Tail:
    """A journal as far as it has been read: bytes, the keys it was to answer, where each answer's line begins."""

    n_bytes: int = 0
    claims: set[str] = field(default_factory=set)
    offsets: dict[str, int] = field(default_factory=dict)


class Journal:
    """The records of a shard that is being made, one line each.

    Attributes:
        todo: the keys that are this process's to ask.
    """

    def __init__(self, path: Path, todo: Sequence[str]):
        self.path, self.todo = path, set(todo)
        self._lock, self._file = Lock(), -1
        if todo:
            with told(path):
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            if self._n_bytes and os.pread(self._file, 1, self._n_bytes - 1) != b"\n":
                self._write(b"\n")  # ends a line that a kill cut short
            self._write(_write_line({"claims": list(todo)}))
            self.sync()

    @property
    def _n_bytes(self) -> int:
        return os.fstat(self._file).st_size

    def keep(self, key: str, record: Record) -> None:
        """Append a record; from now on a killed process does not lose it."""
        self._write(_write_line({"key": key, "record": record}))

    def sync(self) -> None:
        """Write what was appended to the disk; from now on a dead machine does not lose it."""
        with told(self.path):
            os.fsync(self._file)

    def _write(self, line: bytes) -> None:
        with self._lock, told(self.path):
            before = self._n_bytes
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._file, line[written:])
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, before)
                raise

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise UnwritableError(f"{path} cannot be written: {error.strerror}: make room or give another folder; what "
                              "was answered before is kept, and the same command goes on from there"
                              ) from error  # fmt: skip


def _write_line(value: Record) -> bytes:
    text = json.dumps(value, allow_nan=False)
    return f'{{"digest": "{compute_digest(text)}", "value": {text}}}\n'.encode()


def read_line(line: bytes) -> Record | None:
    """Return what a line of a journal says, None where it is not what was written."""
    try:
        said = json.loads(line)
        return said["value"] if compute_digest(json.dumps(said["value"])) == said["digest"] else None
    except (ValueError, KeyError, TypeError):
        return None
