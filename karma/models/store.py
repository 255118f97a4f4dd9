"""What a model was asked and said, kept in one folder: shards of about 1,000 prompts, not a file a prompt.

A record (key -> JSON) lies in a shard, a parquet file named by the digest of its keys, with a digest of its content
inside: a shard cut short or altered is set aside and its records are made again. While a shard is being made, each
answer is a line of a journal beside it, with a digest of its own, so that a killed job asks nothing twice; the
complete journal is sealed into the shard. Records are found by key, however a set of prompts was grouped; a folder of
<key>.json files, as older versions kept, is still read. Decision: who makes a shard holds its lock and has claimed its
keys in the journal, so that jobs side by side ask each key once and share the shards out; nobody waits for another
key. Limit: locks are `flock`'s, which NFSv4 passes on; where a disk has none, jobs side by side may ask twice.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import BaseFileLock, Timeout

from karma.errors import InputError
from karma.files.locks import open_lock
from karma.files.reading import compute_digest, load_json
from karma.files.writing import atomic_path
from karma.models.journal import Journal, Record, Tail, read_line, told

SHARD, JOURNAL, OLD = ".parquet", ".jsonl", ".json"
DIGEST = b"karma.digest"  # of a shard's metadata


class AnswerStore:
    """Records by key, in one folder that many jobs may use side by side.

    Args:
        folder: of one model's weights; made when something is kept.

    Example:
        >>> from tempfile import mkdtemp
        >>> store = AnswerStore(Path(mkdtemp()))
        >>> with store.fill(["k1", "k2"]) as journal:
        ...     for key in sorted(journal.todo):
        ...         journal.keep(key, {"answers": [key.upper()]})
        >>> AnswerStore(store.folder).find(["k2", "k3"])
        {'k2': {'answers': ['K2']}}
        >>> [path.suffix for path in store.folder.iterdir() if not path.name.startswith(".")]
        ['.parquet']
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._places: dict[str, str] = {}  # key -> file
        self._shards: dict[str, list[str]] = {}  # shard -> its keys
        self._journals: dict[str, Tail] = {}
        self._names: set[str] = set()  # of the last look

    def find(self, keys: Iterable[str]) -> dict[str, Record]:
        """Return the records of those keys that are kept; what has been altered on the disk is not."""
        wanted, found = dict.fromkeys(keys), dict[str, Record]()
        if any(key not in self._places for key in wanted):
            self.refresh()
        for _ in range(3):  # a record may move from a journal into its shard while it is being looked up
            files: dict[str, list[str]] = {}
            for key in wanted:
                if key not in found and key in self._places:
                    files.setdefault(self._places[key], []).append(key)
            if not files:
                break
            for name, some in files.items():
                found |= self._read(name, some)
            if len(found) < len(wanted):
                self.refresh()
        return found

    def lacks(self, keys: Sequence[str]) -> bool:
        """Tell whether a shard of these keys is still to be made: one has no record, or a journal is not sealed."""
        if any(key not in self._places for key in keys):
            self.refresh()
        return compute_digest(list(keys)) + JOURNAL in self._journals or any(key not in self._places for key in keys)

    @contextmanager
    def fill(self, keys: Sequence[str]) -> Iterator[Journal | None]:
        """Give the journal of a shard, or None while another job makes it; at the end of the block it is sealed.

        Raises:
            KarmaError: the folder cannot be written, for example since the disk is full; what is kept stays.
        """
        name = compute_digest(list(keys))
        lock = self._take(name)
        if lock is None:
            yield None
            return
        journal = None
        try:
            with self._alone():
                self.refresh()
                journal = Journal(self.folder / f"{name}{JOURNAL}", self._claim(name + JOURNAL, keys))
            yield journal
            with self._alone():
                self._seal(name + JOURNAL, keys)
            with suppress(OSError):
                Path(lock.lock_file).unlink()  # its maker is the last who needs it: nothing of the shard is missing
        finally:
            if journal:
                journal.close()
            lock.release()

    def _take(self, name: str) -> BaseFileLock | None:
        with told(self.folder):
            # A file made here also lets a network disk's client look at the folder anew, before claims are read.
            lock = open_lock(self.folder / f".{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return None
            return lock

    def refresh(self) -> None:
        """Read what has appeared in the folder since the last look."""
        try:
            names = {entry.name for entry in os.scandir(self.folder) if not entry.name.startswith(".")}
        except FileNotFoundError:
            return
        for name in self._journals.keys() - names:  # sealed by now
            self._forget(name)
        for name in names - self._names:
            if name.endswith(SHARD) and name not in self._shards:
                self._open_shard(name)
            elif name.endswith(OLD):
                self._places.setdefault(name.removesuffix(OLD), name)
        for name in names:
            if name.endswith(JOURNAL):
                self._follow(name)
        self._names = names

    def _open_shard(self, name: str) -> None:
        try:
            with pq.ParquetFile(self.folder / name) as file:
                keys = file.read(["key"])["key"].to_pylist()
        except FileNotFoundError:
            return
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            self._set_aside(name, str(error))
            return
        if compute_digest(keys) != name.removesuffix(SHARD):
            self._set_aside(name, "its keys are not those of its name")
            return
        self._shards[name] = keys
        self._places |= dict.fromkeys(keys, name)

    def _follow(self, name: str) -> None:
        tail = self._journals.setdefault(name, Tail())
        try:
            with (self.folder / name).open("rb") as stream:
                stream.seek(tail.n_bytes)
                for line in stream:
                    if not line.endswith(b"\n"):  # being written, or cut short
                        break
                    value = read_line(line) or {}
                    tail.claims |= set(value.get("claims", ()))
                    if "key" in value:
                        tail.offsets[value["key"]] = tail.n_bytes
                        if self._places.get(value["key"]) not in self._shards:
                            self._places[value["key"]] = name
                    tail.n_bytes += len(line)
        except FileNotFoundError:
            self._forget(name)

    def _read(self, name: str, keys: list[str]) -> dict[str, Record]:
        """Return records out of one file; where they cannot be used, they are as if they had never been."""
        path, found = self.folder / name, dict[str, Record]()
        try:
            if name in self._shards:
                found = self._read_shard(path, set(keys))
            elif name in self._journals:
                with path.open("rb") as stream:
                    for key in keys:
                        stream.seek(self._journals[name].offsets[key])
                        if value := read_line(stream.readline()):
                            found[key] = value["record"]
            else:
                found = {key: load_json(path) for key in keys}
        except FileNotFoundError:
            self._forget(name)
        except (pa.ArrowException, InputError, OSError, KeyError, ValueError) as error:
            if name in self._shards:
                self._set_aside(name, str(error))
        for key in keys:
            if key not in found and self._places.get(key) == name:
                del self._places[key]
        return found

    def _read_shard(self, path: Path, keys: set[str]) -> dict[str, Record]:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(["key", "record"])
            told = (file.schema_arrow.metadata or {}).get(DIGEST, b"").decode()
        names, records = table["key"].to_pylist(), table["record"].to_pylist()
        if compute_digest("\n".join([*names, *records])) != told:
            raise ValueError("its content is not what its digest says")
        return {key: json.loads(text) for key, text in zip(names, records, strict=True) if key in keys}

    def _claim(self, name: str, keys: Sequence[str]) -> list[str]:
        """Return the keys of a shard that nobody has answered and no other live job has claimed."""
        missing = dict.fromkeys(key for key in keys if key not in self._places)
        for other, tail in self._journals.items():
            common = tail.claims & missing.keys()
            if other != name and common and self._is_at_work(other):
                for key in common:
                    del missing[key]
        return list(missing)

    def _is_at_work(self, journal: str) -> bool:
        try:
            with open_lock(self.folder / f".{journal.removesuffix(JOURNAL)}.lock", timeout=0):
                return False
        except Timeout:
            return True

    def _seal(self, name: str, keys: Sequence[str]) -> None:
        """Turn a journal into a shard: the records of it that lie in no other one."""
        self.refresh()
        if name not in self._journals:
            return
        records = self._read(name, [key for key in dict.fromkeys(keys) if self._places.get(key) == name])
        if records:
            texts = [json.dumps(record, allow_nan=False) for record in records.values()]
            table = pa.table({"key": list(records), "record": texts})
            table = table.replace_schema_metadata({DIGEST: compute_digest("\n".join([*records, *texts]))})
            shard = self.folder / f"{compute_digest(list(records))}{SHARD}"
            with told(shard), atomic_path(shard) as temporary:
                pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
            self._shards[shard.name] = list(records)
            self._places |= dict.fromkeys(records, shard.name)
        (self.folder / name).unlink(missing_ok=True)
        self._journals.pop(name, None)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock under which keys are claimed and shards sealed: for a moment, never while asking."""
        with told(self.folder), open_lock(self.folder / ".lock"):
            yield

    def _set_aside(self, name: str, reason: str) -> None:
        reason = reason.splitlines()[0] if reason else "unreadable"
        print(f"note: {self.folder / name} is damaged ({reason}): set aside as {name}.broken, and its answers are made "
              "again", file=sys.stderr)  # fmt: skip
        with suppress(OSError):
            (self.folder / name).rename(self.folder / f"{name}.broken")
        self._forget(name)

    def _forget(self, name: str) -> None:
        tail = self._journals.pop(name, None)
        for key in self._shards.pop(name, list(tail.offsets) if tail else []):
            if self._places.get(key) == name:
                del self._places[key]


class MemoryStore:
    """The same for as long as it lives, where nothing is to be kept on disk."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self.todo: set[str] = set()

    def find(self, keys: Iterable[str]) -> dict[str, Record]:
        """Return the records of those keys that are known."""
        return {key: self._records[key] for key in keys if key in self._records}

    def lacks(self, keys: Sequence[str]) -> bool:
        """Tell whether a key has no record."""
        return any(key not in self._records for key in keys)

    @contextmanager
    def fill(self, keys: Sequence[str]) -> Iterator["MemoryStore"]:
        """Give what records are put into."""
        self.todo = {key for key in keys if key not in self._records}
        yield self

    def keep(self, key: str, record: Record) -> None:
        """Take a record."""
        self._records[key] = record

    def sync(self) -> None:
        """Nothing to write."""


def open_store(cache: Path | None, *folders: str) -> AnswerStore | MemoryStore:
    """Return the store of a folder below a cache; None: one in memory."""
    return MemoryStore() if cache is None else AnswerStore(cache.joinpath(*folders))
