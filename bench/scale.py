"""Pairs of a million rows by one process, by two, and by two Ray workers; and the memory that they take.

    python bench/scale.py [--rows 1000000] [--repeats 2] [--check]

Lengths as in bench/binarize.py, a tenth of the rows ten times. The floor reads the columns that binarization reads and
writes its tables again, in one process. Each is a run of its own, taking turns, the start of its processes included;
the best of the repeats counts. Memory is the sum over the process and all that it started (what several share counts
once), with 2 processes, in runs of their own: to look at it ten times a second holds their page faults up, by half of
their time. A Ray cluster of two workers is started before, and not timed; without Ray its lines are left out.
"""

import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from binarize import RULES, make_pool, read_and_write
from common import Ratio, conclude, read_options

STRATEGY = "k_sim"
GOALS = {
    "2 processes / 1 process, speed": 1.6,
    "Ray with 2 workers / 2 processes, speed": 0.8,
    "1 process / read and write, time": 2.0,
    "memory of ten times the rows / memory": 1.3,
    "memory of ten times the rows / memory, curriculum": 1.5,
    "JSON lines / parquet, time": 3.0,
}
AT_LEAST = ("speed",)  # the others are at most


def binarize(pool: Path, out: Path, **options) -> None:
    import karma.pairs.parallel
    from karma.pairs.build import save_pair_sets
    from karma.pool.pool import load_pool
    from karma.scores.read import load_score_table

    karma.pairs.parallel.SMALL_ROWS = 0  # two processes are two, however few the rows
    save_pair_sets(load_pool(pool), load_score_table("paper"), {STRATEGY: out / STRATEGY}, **RULES, **options)


def measure(work, *args, is_watched: bool = False, **options) -> dict[str, float]:
    """Run in a fresh process; return seconds, or the peak memory in MiB of it and of what it starts."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(sender, work, args, options))
    child.start()
    sender.close()
    peaks = [0.0]
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(child.pid, peaks, done))
    if is_watched:
        watcher.start()
    try:
        seconds = receiver.recv()
        return {"peak_mib": max(peaks)} if is_watched else {"seconds": seconds}
    finally:
        done.set()
        if is_watched:
            watcher.join()
        child.join()


def _watch(pid: int, peaks: list[float], done: threading.Event) -> None:
    root = psutil.Process(pid)
    while not done.wait(0.1):
        total = 0
        with suppress(psutil.Error):
            for one in (root, *root.children(recursive=True)):
                with suppress(psutil.Error):
                    total += one.memory_full_info().pss
        peaks.append(total / 2**20)


def _report(sender, work, args, options) -> None:
    import karma.pairs.build  # noqa: F401
    from karma.scores.read import load_score_table

    load_score_table("paper")  # imports are not what is measured in this process; those of others are
    connect_before(options)
    if work is read_and_write:
        load_tables(args[1])
    start = time.perf_counter()
    work(*args, **options)
    sender.send(time.perf_counter() - start)


def connect_before(options) -> None:
    """Join the cluster before the clock starts, and have its workers import what they need."""
    if options.get("engine") == "ray":
        from karma.study.workers import connect

        ray = connect(options["address"])
        warm = ray.remote(num_cpus=1)(lambda: __import__("karma.pairs.parallel") and time.sleep(1))
        ray.get([warm.remote() for _ in range(2)])


def load_tables(out: Path) -> None:
    import binarize
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(out / STRATEGY / "pairs.parquet")
    binarize.TABLES[STRATEGY] = [pa.Table.from_batches([b]) for b in file.iter_batches(4096)]


def repeat(source: Path, target: Path, n: int) -> None:
    """Write the same rows n times: what a row costs does not depend on whether it was seen."""
    from karma.pairs.join import Joined

    joined = Joined(target)
    for _ in range(n):
        joined.add(source)
    joined.finish()
    joined.close()


def write_lines(pool: Path, lines: Path) -> None:
    import pyarrow.parquet as pq

    with lines.open("w") as stream:
        for batch in pq.ParquetFile(pool).iter_batches(2048):
            stream.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())


def start_cluster():
    """Start a Ray cluster of two workers for the runs to join; None where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        return None
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as the processes that they are compared with; Ray's own choice is 15
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})


def main() -> int:
    options = read_options(__doc__, rows=1_000_000, repeats=2)
    best: dict[str, float] = {}
    peak: dict[str, float] = {}

    def add(name: str, work, *args, **keywords) -> None:
        found = measure(work, *args, **keywords)
        if "seconds" in found:
            best[name] = min(best.get(name, found["seconds"]), found["seconds"])
        peak.update({name: found["peak_mib"]} if "peak_mib" in found else {})
        print(f"{name}: " + ", ".join(f"{what} {value:.1f}" for what, value in found.items()), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool, small, lines = folder / "pool.parquet", folder / "small.parquet", folder / "small.jsonl"
        make_pool(small, options.rows // 10)
        repeat(small, pool, 10)
        write_lines(small, lines)
        cluster = start_cluster()
        for _ in range(options.repeats):
            add("one", binarize, pool, folder, cores=1)
            add("two", binarize, pool, folder, cores=2)
            if cluster:
                add("ray", binarize, pool, folder, engine="ray", address=cluster.address)
            add("parquet", binarize, small, folder, cores=1)
            add("lines", binarize, lines, folder, cores=1)
        if cluster:
            cluster.shutdown()
        for source, before in ((pool, ""), (small, "small ")):
            add(f"{before}two", binarize, source, folder, is_watched=True, cores=2)
            add(f"{before}curriculum", binarize, source, folder, is_watched=True, cores=2, n_stages=3)
        binarize(small, folder, cores=1)
        add("floor", read_and_write, small, folder, [STRATEGY])
    ratios = {
        "2 processes / 1 process, speed": best["one"] / best["two"],
        "1 process / read and write, time": best["parquet"] / best["floor"],
        "memory of ten times the rows / memory": peak["two"] / peak["small two"],
        "memory of ten times the rows / memory, curriculum": peak["curriculum"] / peak["small curriculum"],
        "JSON lines / parquet, time": best["lines"] / best["parquet"],
    }
    if "ray" in best:
        ratios["Ray with 2 workers / 2 processes, speed"] = best["two"] / best["ray"]
    print(json.dumps({"rows": options.rows, "seconds": best, "peak_mib": peak}))
    found = [Ratio(f"scale: {what}", value, GOALS[what], what.endswith(AT_LEAST)) for what, value in ratios.items()]
    return conclude(found, options.check)


if __name__ == "__main__":
    sys.exit(main())
