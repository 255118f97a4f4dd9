"""Shards: about 1,000 prompts (or pairs), answered by one function wherever that runs, into one store.

A batch is what is computed together, since a batch's company changes the rounding of its answers: it is a piece with
one key. Behind an API, where it changes nothing, each prompt is a piece and a batch is asked side by side. Shards are
consecutive batches; they are cut from all that a stage asks, not from what is missing, so that every job and worker
cuts the same ones. `answer_shard` does the work here, in a job of the sweep's array (`Share`) and in a Ray actor
(`karma.models.placement`). Decision: a job that finds a shard taken goes on to the next and comes back, so that jobs
side by side share the work without a plan. Limit: what a stage asks is one shard below 1,000 prompts, for one job.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from karma.models.store import AnswerStore, MemoryStore, Record

SIZE = 1000  # prompts or pairs a shard, at least
LONGEST_PAUSE_S = 1.0  # between looks at a shard that another job is making
Advance = Callable[[int], Any]


@dataclass(frozen=True)
class Piece:
    """What is asked together and kept as one record.

    Attributes:
        key: names its content. asked: what an `Asker` needs, as JSON can hold it. n: its prompts or pairs.
    """

    key: str
    asked: dict[str, Any]
    n: int


Batch = list[Piece]  # asked side by side
Shard = list[Batch]


class Asker(Protocol):
    """What answers a piece."""

    def load(self) -> None:
        """Load the model now, if it is not, so that its loading is not timed as answering."""

    def ask(self, piece: Piece, advance: Advance) -> Record:
        """Return the record to be kept; `advance` hears of prompts or pairs done."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a worker elsewhere opens its asker: "module:function" and what it takes, as JSON can hold it.

    Workers that have opened it live as long as it does.
    """

    function: str
    options: dict[str, Any]

    def open(self) -> Asker:
        """Open it here."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)(**self.options)


class Share:
    """One job of several that answer a stage's prompts side by side: where it begins, so that they seldom meet.

    Args:
        number: of this job, from 0. n: how many there are.
    """

    def __init__(self, number: int, n: int):
        self.number, self.n = number, n

    def order(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return all shards, the job's own ones (index modulo n) first, then those of the jobs after it.

        Example:
            >>> shards = [[[Piece(key, {}, 1)]] for key in "ABC"]
            >>> [list_keys(shard) for shard in Share(1, 2).order(shards)]
            [['B'], ['A'], ['C']]
        """
        places = sorted(range(len(shards)), key=lambda i: ((i - self.number) % self.n, i))
        return [shards[i] for i in places]


def cut_shards(batches: Iterable[Batch], size: int = 0) -> list[Shard]:
    """Cut batches into shards of at least `size` (0: SIZE) prompts, the last one of the rest.

    Example:
        >>> batches = [[Piece("a", {}, 600)], [Piece("b", {}, 600)], [Piece("c", {}, 600)]]
        >>> [[batch[0].key for batch in shard] for shard in cut_shards(batches)]
        [['a', 'b'], ['c']]
    """
    shards: list[Shard] = []
    n = size = size or SIZE
    for batch in batches:
        if n >= size:
            shards.append([])
            n = 0
        shards[-1].append(batch)
        n += sum(piece.n for piece in batch)
    return shards


def list_keys(shard: Shard) -> list[str]:
    """Return the keys of a shard's pieces, in their order."""
    return [piece.key for batch in shard for piece in batch]


def answer_shard(
    asker: Asker, store: AnswerStore | MemoryStore, shard: Shard, advance: Advance = lambda n: None
) -> dict[str, float] | None:
    """Answer what a shard lacks, into the store.

    Args:
        asker: who answers. store: where records are kept. shard: its batches.
        advance: hears of prompts done.

    Returns:
        Key -> seconds of each piece asked now; None: another job is at this shard.
    """
    took: dict[str, float] = {}
    with store.fill(list_keys(shard)) as journal:
        if journal is None:
            return None
        for batch in shard:
            todo = list({piece.key: piece for piece in batch if piece.key in journal.todo - took.keys()}.values())
            if not todo:
                continue
            asker.load()
            started = time.perf_counter()

            def ask(piece: Piece) -> None:
                journal.keep(piece.key, asker.ask(piece, advance))

            _map_side_by_side(ask, todo)
            journal.sync()
            took |= dict.fromkeys((piece.key for piece in todo), (time.perf_counter() - started) / len(todo))
    return took


def _map_side_by_side(function: Callable[[Any], Any], values: Sequence[Any]) -> None:
    """Call in threads; after a failure nothing new is started, and what was asked already is kept."""
    if len(values) == 1:
        function(values[0])
        return
    pool = ThreadPoolExecutor(max_workers=len(values))
    try:
        for future in [pool.submit(function, value) for value in values]:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


Done = Iterator[tuple[Shard, dict[str, float], dict[str, Record]]]  # shard, seconds of what was asked now, records


def answer_here(
    asker: Asker, store: AnswerStore | MemoryStore, shards: Sequence[Shard], advance: Advance = lambda n: None,
    share: Share | None = None,
) -> Done:  # fmt: skip
    """Answer shards in this process, and yield each when it is complete, as `karma.models.placement.answer` does.

    Args:
        asker, store, advance: as of `answer_shard`. shards: all of a stage's.
        share: this job only helps: it answers what is free, waits for nothing, and yields what it finds complete.
    """
    took: dict[str, float] = {}
    waiting, pause_s = share.order(shards) if share else list(shards), 0.01
    while waiting:
        left = []
        for shard in waiting:
            keys = list_keys(shard)
            if store.lacks(keys):
                took |= answer_shard(asker, store, shard, advance) or {}
            records = store.find(keys)
            if len(records) < len(set(keys)):  # another job is at it, or it was altered and is to be made again
                left.append(shard)
            else:
                yield shard, {key: took.pop(key) for key in keys if key in took}, records
        if share:
            return
        if len(left) == len(waiting):
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        waiting = left
