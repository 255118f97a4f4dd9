"""Where shards are answered: in this process, or by Ray's workers (`compute.engine`).

A worker is an actor that opens one model (transformers, vLLM's engine, a server's client) and keeps it for its life; it
answers whole shards into the store, which lies on a disk that every node sees. A worker that is lost (its node, its
memory, its engine) costs what it had not yet written to the journal: its shard goes to a new worker, at most N_TRIES
times. Decision: that is counted here, not by Ray's own restarts, so that one rule holds for dead nodes, killed
processes and failed engines alike, and the last reason is told. Numbers do not depend on the engine: batches are the
same, and device and precision are those of a worker, not of the machine that asks.
Limit: progress is told a shard at a time.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

from karma.errors import InputError, KarmaError
from karma.models.journal import UnwritableError
from karma.models.load import choose_device, choose_dtype
from karma.models.shards import (
    LONGEST_PAUSE_S,
    SIZE,
    Advance,
    Asker,
    Batch,
    Done,
    Recipe,
    Shard,
    Share,
    answer_here,
    answer_shard,
    cut_shards,
    list_keys,
)
from karma.models.store import AnswerStore, MemoryStore
from karma.study.sections import Compute
from karma.study.workers import connect

N_TRIES = 3  # workers that a shard may cost
SEEN_S = 30  # until what a worker wrote must be seen here: network disks remember a folder's listing for a while
PASSED_ON = ("KARMA_CACHE", "KARMA_ROOT", "HF_HOME", "HF_HUB_OFFLINE")


def answer(
    asker: Asker, recipe: Recipe, store: AnswerStore | MemoryStore, batches: Iterable[Batch], compute: Compute,
    advance: Advance = lambda n: None, share: Share | None = None,
) -> Done:  # fmt: skip
    """Answer batches where `compute.engine` says, and yield each shard when it is complete.

    Args:
        asker: who answers in this process. recipe: how a worker elsewhere opens the same.
        store: where records are kept; what is not kept on disk is answered here.
        batches: all that is asked. compute: engine, address, GPUs and threads of a worker.
        advance: hears of prompts done. share: as of `karma.models.shards.answer_here`.

    Yields:
        The shard, key -> seconds of each piece that was asked now, and key -> record of all its pieces.
    """
    if compute.engine == "ray" and isinstance(store, AnswerStore) and not share:
        return answer_by_ray(recipe, store, cut_shards(batches), compute, advance)
    return answer_here(asker, store, cut_shards(batches), advance, share)


def choose_place(compute: Compute) -> tuple[str, str]:
    """Return (device, dtype) of the computation: this machine's, or under Ray a worker's, which may have what it lacks.

    Example:
        >>> from karma.study.experiment import load_base
        >>> choose_place(load_base().compute.model_copy(update={"device": "cpu", "dtype": "float32"}))
        ('cpu', 'float32')
    """
    if compute.engine != "ray":
        device = choose_device(compute.device)
        return device, choose_dtype(compute.dtype, device)
    if "auto" not in (compute.device, compute.dtype):
        return compute.device, compute.dtype
    return _ask_a_worker(compute.device, compute.dtype, compute.address, compute.threads, compute.gpus_per_job)


@cache
def _ask_a_worker(device: str, dtype: str, address: str | None, threads: int, gpus: int) -> tuple[str, str]:
    def choose() -> tuple[str, str]:
        found = choose_device(device)
        return found, choose_dtype(dtype, found)

    ray = connect(address)
    try:
        return ray.get(ray.remote(choose).options(num_cpus=threads, num_gpus=gpus).remote())
    except ray.exceptions.RayTaskError as error:
        raise InputError(f"engine ray: {error.cause}") from None


def answer_by_ray(
    recipe: Recipe, store: AnswerStore, shards: Sequence[Shard], compute: Compute, advance: Advance
) -> Done:
    """Answer shards by Ray's workers, and yield each when it is complete; without any to answer, Ray is not started.

    Raises:
        InputError: Ray is missing, or what a worker was given cannot be used.
        UnwritableError: a worker's disk is full.
        KarmaError: a shard was lost with N_TRIES workers.
    """
    todo: list[Shard] = []
    for shard in shards:
        keys = list_keys(shard)
        records = {} if store.lacks(keys) else store.find(keys)
        if len(records) == len(set(keys)):
            yield shard, {}, records
        else:
            todo.append(shard)
    if todo:
        if recipe not in _crews:
            _crews[recipe] = _Crew(replace(recipe), store, compute)
            finalize(recipe, _crews[recipe].dismiss)
        for crew in [crew for other, crew in _crews.items() if other is not recipe]:
            crew.dismiss()  # or its idle workers would keep their places from this one's
        yield from _crews[recipe].answer(todo, advance)


class _Crew:
    """The workers that have opened a recipe; they are kept between calls, since loading a model takes minutes."""

    def __init__(self, recipe: Recipe, store: AnswerStore, compute: Compute):
        self.ray, self.recipe, self.store, self.compute = connect(compute.address), recipe, store, compute
        variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._actor = self.ray.remote(_Worker).options(
            num_cpus=compute.threads, num_gpus=compute.gpus_per_job, scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables}, max_restarts=0,
        )  # fmt: skip
        self._folder = str(store.folder.resolve())
        self._idle: list[Any] = []
        self._at_work: dict[Any, tuple[Any, Shard]] = {}
        self._tries: dict[str, int] = {}
        self._told = False

    def answer(self, shards: list[Shard], advance: Advance) -> Done:
        n_prompts = sum(piece.n for shard in shards for batch in shard for piece in batch)
        size = min(SIZE, ceil(n_prompts / (2 * self._count_places())))  # few prompts are work for all workers too
        todo = deque(cut_shards((batch for shard in shards for batch in shard), size))
        try:
            while todo or self._at_work:
                self._hand_out(todo)
                ready, _ = self.ray.wait(list(self._at_work), num_returns=1)
                for reference in ready:
                    took, reason = self._collect(reference)  # may raise; the worker is dismissed then with the others
                    actor, shard = self._at_work.pop(reference)
                    keys = list_keys(shard)
                    records = self._find(keys) if reason is None else {}
                    if len(records) == len(set(keys)):
                        self._idle.append(actor)
                        advance(sum({p.key: p.n for batch in shard for p in batch if p.key in took}.values()))
                        yield shard, took, records
                        continue
                    self.ray.kill(actor)
                    self._count_try(shard, reason or f"its answers are not in {self.store.folder} as this machine sees "
                                    "it: put the project on a disk that every node has at the same place")  # fmt: skip
                    todo.append(shard)
        finally:
            if self._at_work:  # something failed, or nobody wants the rest
                self.dismiss()

    def dismiss(self) -> None:
        """End all workers; what they have written stays."""
        for actor in [*self._idle, *(actor for actor, _ in self._at_work.values())]:
            if self.ray.is_initialized():
                self.ray.kill(actor)
        self._idle.clear()
        self._at_work.clear()

    def _hand_out(self, todo: deque[Shard]) -> None:
        n_places = self._count_places()
        while todo and (self._idle or len(self._at_work) < n_places):
            actor = self._idle.pop() if self._idle else self._actor.remote(self.recipe, self._folder, str(Path.cwd()))
            shard = todo.popleft()
            self._at_work[actor.answer.remote(shard)] = (actor, shard)
        while self._idle and len(self._idle) + len(self._at_work) > n_places:  # one waits for this one's place
            self.ray.kill(self._idle.pop())

    def _count_places(self) -> int:
        """Return how many workers fit into the cluster as it is now, at most `compute.shards` where that is set."""
        n = 0
        for node in self.ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            fits = [int(has.get("CPU", 0) // self.compute.threads)]
            if self.compute.gpus_per_job:
                fits.append(int(has.get("GPU", 0) // self.compute.gpus_per_job))
            n += min(fits)
        needs = f"{self.compute.threads} CPUs and {self.compute.gpus_per_job} GPUs"
        if not n and not self.compute.address:
            raise InputError(f"engine ray: a worker needs {needs}, which this machine has not: lower compute.threads "
                             "or compute.gpus_per_job, or join a cluster by compute.address")  # fmt: skip
        if not n and not self._told:
            self._told = True
            print(f"note: no node of the cluster has {needs}: waiting for one", file=sys.stderr)
        return max(1, min(n, self.compute.shards) if self.compute.shards > 1 else n)

    def _collect(self, reference: Any) -> tuple[dict[str, float], str | None]:
        """Return what a worker asked, or why it was lost."""
        try:
            return self.ray.get(reference), None
        except self.ray.exceptions.RayTaskError as error:
            for kind in (InputError, UnwritableError):  # as bad on another worker
                if isinstance(error.cause, kind):
                    raise kind(f"on a Ray worker: {error.cause}") from None
            return {}, f"{type(error.cause).__name__}: {error.cause}"
        except self.ray.exceptions.RayError as error:
            return {}, f"the worker died: {error}"

    def _count_try(self, shard: Shard, reason: str) -> None:
        name = list_keys(shard)[0]
        self._tries[name] = self._tries.get(name, 0) + 1
        if self._tries[name] >= N_TRIES:
            n = sum(piece.n for batch in shard for piece in batch)
            raise KarmaError(f"a shard of {n} prompts was lost with {N_TRIES} of Ray's workers, the last time since "
                             f"{' '.join(reason.split())[:300]}; what was answered is kept: lower the batch size, or "
                             "give a worker more memory, and run the same command again")  # fmt: skip

    def _find(self, keys: list[str]) -> dict[str, Any]:
        deadline = time.monotonic() + SEEN_S
        records = self.store.find(keys)
        while len(records) < len(set(keys)) and time.monotonic() < deadline:
            time.sleep(0.2)
            records = self.store.find(keys)
        return records


_crews: WeakKeyDictionary[Recipe, _Crew] = WeakKeyDictionary()


class _Worker:
    """A model that answers shards, in a process of Ray's."""

    def __init__(self, recipe: Recipe, folder: str, root: str):
        self.recipe, self.store, self.root = recipe, AnswerStore(Path(folder)), root
        self.asker: Asker | None = None

    def answer(self, shard: Shard) -> dict[str, float]:
        """Answer what a shard lacks; return key -> seconds of each piece asked."""
        if self.asker is None:
            os.chdir(self.root)
            self.asker = self.recipe.open()
        took: dict[str, float] = {}
        keys = list_keys(shard)
        while True:
            took |= answer_shard(self.asker, self.store, shard) or {}
            if not self.store.lacks(keys):
                return took
            time.sleep(LONGEST_PAUSE_S)  # another job is at it
