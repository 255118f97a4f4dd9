"""Nearest kin of every model against the bare matrix product and argmax, in the same run; and a whole large study.

    python bench/kinship.py [--models 10000] [--study-models 20000] [--check]

The reference is what the task cannot do without if it is done in one go: a float32 product of the whole
table with itself, then argmax. Ours works in float64, in blocks, and leaves a model's kinship with itself
out. Each is timed in a process of its own, taking turns, so that one's memory is not another's; the median
of five counts. The study is `karma read-scores` and `karma kinship` of a CSV of 20,000 models on 12 benchmarks, a
process each as a user starts them: tables, clusters, the page to search in, and figures; once.
"""

import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import Ratio, conclude, read_options

from karma.scores.table import ScoreTable, load_benchmarks

GOAL_TIME, GOAL_GIB = 3.0, 1.0
GOAL_STUDY_S, GOAL_STUDY_GIB = 60, 2
N_BENCHMARKS, N_REPEATS = 6, 5
N_STUDY_BENCHMARKS, FAMILY = 12, 50  # models of one family score alike


def build_scores(n_models: int) -> ScoreTable:
    known = load_benchmarks().head(N_BENCHMARKS)
    scores = pd.DataFrame(np.random.default_rng(0).random((n_models, N_BENCHMARKS)), columns=known.index)
    return ScoreTable(scores, known)


def run_bare(table: ScoreTable) -> None:
    values = table.scores.to_numpy(dtype=np.float32)
    (values @ values.T).argmax(axis=1)


def run_ours(table: ScoreTable) -> None:
    from karma.kinship.similarity import compute_nearest_kin

    compute_nearest_kin(table)


def measure(task, n_models: int, connection) -> None:
    """Send the seconds of one run, and the process's peak memory in GiB."""
    run_ours(build_scores(20))  # imports, BLAS threads
    scores = build_scores(n_models)
    started = time.perf_counter()
    task(scores)
    connection.send((time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def measure_apart(task, n_models: int) -> tuple[float, float]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(task, n_models, sender))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def run_study(n_models: int) -> tuple[float, float]:
    """Return the seconds of both commands, and the larger of their peaks in GiB."""
    rng = np.random.default_rng(0)
    family = rng.integers(0, max(n_models // FAMILY, 2), n_models)
    ability = rng.uniform(15, 75, (family.max() + 1, N_STUDY_BENCHMARKS))[family] + rng.normal(0, 8, (n_models, 1))
    scores = (ability + rng.normal(0, 4, ability.shape)).clip(2, 99).round(2)
    table = pd.DataFrame(scores, columns=[f"benchmark {k}" for k in range(N_STUDY_BENCHMARKS)])
    table.insert(0, "Model", [f"owner{f}/model-{k}" for k, f in enumerate(family)])
    with tempfile.TemporaryDirectory() as folder:
        table.to_csv(f"{folder}/my.csv", index=False)
        started = time.perf_counter()
        for words in (["read-scores", "my.csv", "--unit", "percent", "--out", "table.csv"],
                      ["kinship", "--scores", "table.csv", "--out", "kinship"]):  # fmt: skip
            subprocess.run([sys.executable, "-m", "karma.cli", *words], cwd=folder, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        written = {path.name for path in Path(folder, "kinship").rglob("*")}
    assert {"branches.png", "figure4_pca.png", "clusters.csv", "nearest_kin.csv", "models.html"} <= written, written
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main() -> int:
    options = read_options(__doc__, models=10_000, study_models=20_000)
    study_s, study_gib = run_study(options.study_models)  # first: the peak is of all processes so far
    bare, ours = [], []
    for _ in range(N_REPEATS):
        bare.append(measure_apart(run_bare, options.models))
        ours.append(measure_apart(run_ours, options.models))
    bare_s, ours_s = float(np.median([b[0] for b in bare])), float(np.median([o[0] for o in ours]))
    peak_gib = max(o[1] for o in ours)
    size = f"{options.models:,} models x {N_BENCHMARKS} benchmarks"
    print(f"{size}: bare float32 {bare_s:.3f} s, nearest kin {ours_s:.3f} s, peak {peak_gib:.2f} GiB")
    print(f"study: {options.study_models:,} models x {N_STUDY_BENCHMARKS} benchmarks, read and analysed with figures")
    found = [
        Ratio("nearest kin / bare product and argmax", ours_s / bare_s, GOAL_TIME),
        Ratio("peak memory / GiB", peak_gib, GOAL_GIB),
        Ratio("study / s", study_s, GOAL_STUDY_S, form=".1f"),
        Ratio("study, peak memory / GiB", study_gib, GOAL_STUDY_GIB),
    ]
    return conclude(found, options.check)


if __name__ == "__main__":
    sys.exit(main())
