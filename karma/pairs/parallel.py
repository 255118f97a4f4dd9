"""Pairs made by several processes, or by Ray, part by part: the bytes that one process makes.

A worker gets the name of a part (`karma.pool.parts`), never its rows. It reads, decides, encodes and compresses, into
files of its own in the hidden folder beside the output; back come counts. One process lays these files end to end in
the pool's order (`karma.pairs.join`), at most AHEAD parts a worker under way. Decision: everything counted is a sum of
whole numbers or a list in the pool's order, so that nothing depends on who did what when. A part begun twice, because
its worker died, is taken once. Limit: only pools of parquet files or JSON lines are shared out; under Ray they and the
output lie on a disk that every node sees.

Paper: none; ours.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from karma.errors import InputError, KarmaError
from karma.pairs.accounting import Accounting
from karma.pairs.binarizer import Binarizer, find_truthfulqa
from karma.pairs.folder import PairFile, PairFolder, PairPart
from karma.pool.duplicates import Duplicates, Signed, find_duplicates, sign_prompts
from karma.pool.parts import PART_ROWS, QUESTIONS, Part
from karma.pool.pool import ResponsePool
from karma.pool.responses import build_batch

SMALL_ROWS = 250_000  # a smaller pool is done before other processes have begun and paid for themselves
AHEAD = 2  # parts under way for each worker: one that it works on, one that waits
MAX_RETRIES = 5  # of a part whose Ray worker or node died
Result = TypeVar("Result")
Work = Callable[["Job", Part], Any]
Spread = Callable[[Iterable[Work]], Iterator[Any]]  # does a part's work on each, and yields what comes of it in order


@dataclass(frozen=True)
class Job:
    """What every part is done with: the rules, the pool's name for errors, and the folder for files."""

    binarizer: Binarizer
    pool: str
    spool: Path


@dataclass(frozen=True)
class PartPairs:
    """What came of a part: strategy -> its books, strategy -> its pairs, and what is listed as left out."""

    books: dict[str, Accounting]
    pairs: dict[str, PairPart]
    overlaps: pa.Table | None = None


def is_shared_out(pool: ResponsePool, engine: str, cores: int) -> bool:
    """Tell whether a pool is worth more than this process.

    Raises:
        InputError: an engine that there is not, or Ray for a pool without files.
    """
    if engine not in ("local", "ray"):
        raise InputError(f"engine '{engine}': choose local or ray")
    if cores < 1:
        raise InputError(f"{cores} cores: give 1 or more")
    if engine == "ray" and pool.cut is None:
        raise InputError(f"engine ray: {pool.name} has no files to share out: give parquet files or JSON lines")
    return engine == "ray" or (pool.cut is not None and cores > 1 and (pool.n_rows or 0) >= SMALL_ROWS)


def count_cores() -> int:
    """Return how many cores this process may use: of the machine, and its affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def save_parts(
    binarizer: Binarizer,
    pool: ResponsePool,
    targets: dict[str, PairFolder],
    progress: Callable[[int], None],
    *,
    engine: str,
    cores: int,
    address: str | None,
) -> None:
    """Fill the pair folders, and the binarizer's books, with what workers make of a pool's parts.

    Args:
        binarizer, pool, targets: strategy -> folder being written.
        progress: called with the number of rows done so far.
        engine: local (processes of this machine) or ray. cores: of local. address: of ray.

    Raises:
        InputError: a malformed pool, as in one process. KarmaError: a worker was killed.
    """
    hidden = next(iter(targets.values())).hidden
    job = Job(copy(binarizer), pool.name, Path(tempfile.mkdtemp(prefix="parts.", dir=hidden.absolute())))
    opened = _open_ray(job, pool, address) if engine == "ray" else _open_processes(job, pool, cores)
    with opened as spread:
        if binarizer.rules.drop_truthfulqa:
            for questions in spread(repeat(find_questions)):
                binarizer.truthfulqa |= questions
        work = partial(make_pairs, truthfulqa=frozenset(binarizer.truthfulqa))
        works: Iterable[Work] = repeat(work)
        if binarizer.rules.near_duplicates is not None:
            signed = list(spread(repeat(sign_part)))
            works = share_duplicates(work, signed, binarizer.rules.near_duplicates)
        n_rows = 0
        for found in spread(works):
            for strategy, target in targets.items():
                target.take(found.pairs[strategy])
                target.list_overlaps(found.overlaps)
                binarizer.books[strategy].add(found.books[strategy])
            n_rows = next(iter(binarizer.books.values())).rows_in
            progress(n_rows)
    if not n_rows:
        raise InputError(f"{pool.name} holds no rows: a pool needs at least one prompt with responses")


def find_questions(job: Job, part: Part) -> set[str]:
    """Return TruthfulQA's questions in a part."""
    return find_truthfulqa(part.read(QUESTIONS), job.pool)


def sign_part(job: Job, part: Part) -> Signed:
    """Return the signatures of a part's prompts."""
    signed = [sign_prompts(build_batch(rows, None, job.pool)) for rows in part.read(None)]
    return Signed(*(np.concatenate([getattr(one, name) for one in signed]) for name in ("digest", "minima")))


def share_duplicates(work: Callable[..., Any], signed: list[Signed], threshold: float) -> Iterator[Work]:
    """Yield the work on each part with what near-duplicates are among its own rows, in the pool's order."""
    every, start = find_duplicates(signed, threshold), 0
    for part in signed:
        yield partial(work, duplicates=every.cut(start, len(part.digest)))
        start += len(part.digest)


def make_pairs(job: Job, part: Part, truthfulqa: Iterable[str] = (), duplicates: Duplicates | None = None) -> PartPairs:
    """Make a part's pairs, a file a strategy in a folder of its own, so that a second attempt disturbs no first one."""
    binarizer, folder = job.binarizer, Path(tempfile.mkdtemp(dir=job.spool))
    binarizer.truthfulqa, binarizer.left_out.duplicates = set(truthfulqa), duplicates
    binarizer.take_books()
    binarizer.left_out.take()  # of an attempt that failed
    files = {strategy: PairFile(folder / f"{strategy}.parquet") for strategy in binarizer.strategies}
    for rows in part.read(binarizer.annotation):
        for strategy, table in binarizer.binarize(build_batch(rows, binarizer.annotation, job.pool)).items():
            files[strategy].write(table)
    for file in files.values():
        file.close()
    made = {s: PairPart(f.path, f.facts, f.lengths) for s, f in files.items()}
    return PartPairs(binarizer.take_books(), made, binarizer.left_out.take())


def _cut(pool: ResponsePool, n_workers: int) -> Iterator[Part]:
    assert pool.cut is not None, "asked before (is_shared_out)"
    return (replace(part, path=part.path.absolute()) for part in pool.cut(n_workers))  # workers start elsewhere


def _take_in_order(
    parts: Iterable[Part], n_ahead: int, submit: Callable[[Part], Result], waiting: deque[Result]
) -> Iterator[Result]:
    """Submit parts, at most `n_ahead` before their turn, and yield what was submitted in order."""
    for part in parts:
        waiting.append(submit(part))
        if len(waiting) == n_ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


_own: list[Job] = []  # of a worker process: what it was started with


@contextmanager
def _open_processes(job: Job, pool: ResponsePool, cores: int) -> Iterator[Spread]:
    """Start processes, which end with this one; they share what they import, where the system can fork."""
    n_workers = max(1, min(cores, -(-(pool.n_rows or 1) // PART_ROWS)))
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload([__name__])
    ending, kept = context.Pipe(duplex=False)
    workers = ProcessPoolExecutor(n_workers, context, initializer=_start, initargs=(job, ending))

    def spread(works: Iterable[Work]) -> Iterator[Any]:
        turn = iter(works)

        def submit(part: Part) -> Future[Any]:
            return workers.submit(_do, next(turn), part)

        parts = _cut(pool, n_workers)
        first = list(zip(islice(parts, 1), turn, strict=False))
        begun = deque(submit(part) for part in islice(parts, AHEAD * n_workers - 1))
        yield from (work(job, part) for part, work in first)  # by this process, while the others start
        for future in _take_in_order(parts, AHEAD * n_workers, submit, begun):
            yield future.result()

    try:
        yield spread
    except BrokenProcessPool:
        raise KarmaError("a worker process was killed, perhaps for want of memory: nothing was kept; "
                         "fewer processes (--cores) need less of it") from None  # fmt: skip
    finally:
        kept.close()
        workers.shutdown(cancel_futures=True)
        ending.close()


def _start(job: Job, ending: Connection) -> None:
    """Prepare a worker process: of one core, to end with its parent or when that says so, not by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    _own[:] = [job]
    threading.Thread(target=_end, args=(ending,), daemon=True).start()


def _end(ending: Connection) -> None:
    """Wait for the end of the pipe that the parent alone holds open, whatever this process is at."""
    with suppress(EOFError, OSError):
        ending.recv_bytes()
    os._exit(0)


def _do(work: Work, part: Part) -> Any:
    return work(_own[0], part)


@contextmanager
def _open_ray(job: Job, pool: ResponsePool, address: str | None) -> Iterator[Spread]:
    """Join a cluster, or start one; a part whose worker dies is begun again elsewhere."""
    from karma.study.workers import connect

    ray = connect(address)
    n_workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    remote = ray.remote(max_retries=MAX_RETRIES, num_cpus=1)(_do_on_ray)
    given, waiting = ray.put(job), deque[Any]()

    def spread(works: Iterable[Work]) -> Iterator[Any]:
        turn = iter(works)

        def submit(part: Part) -> Any:
            return remote.remote(given, next(turn), part)

        for reference in _take_in_order(_cut(pool, n_workers), AHEAD * n_workers, submit, waiting):
            yield ray.get(reference)

    try:
        yield spread
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise KarmaError(f"engine ray: a part was not done ({reason}): nothing was kept") from None
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _do_on_ray(job: Job, work: Work, part: Part) -> Any:
    return work(job, part)
