"""Where a folder's files came from: settings and who set them, models, commit, versions, device, inputs' digests."""

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from karma.errors import InputError
from karma.files.locks import open_own_lock
from karma.files.reading import compute_digest, compute_file_digest, load_json, load_object
from karma.files.writing import save_json
from karma.study.experiment import Experiment
from karma.study.stages import Job, list_jobs

RECORDED = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "lm-eval",
    "datasets",
    "pyarrow",
    "pandas",
    "numpy",
    "karma-kit",
)
VECTORS = {"amx_tile": "AMX", "avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}


def read_clock() -> tuple[float, float]:
    """Return seconds of wall time, and of processor time with that of ended children (kernels); differences count."""
    times = os.times()
    return times.elapsed, times.user + times.system + times.children_user + times.children_system


def save_provenance(job: Job, started: tuple[float, float], command: str = "") -> None:
    """Write where a folder's files came from, beside what other stages wrote there.

    Args:
        job: whose. started: `read_clock()` at its start. command: as it was typed.
    """
    seconds, core_seconds = (now - then for now, then in zip(read_clock(), started, strict=True))
    path = job.folder / "provenance.json"
    own = {
        "params": job.params,
        "settings": job.settings.as_dict(),
        "set_by": job.experiment.show(job.stage.reads)["set by"].to_dict(),
        "models": job.models,
        "commit": find_commit(job.experiment.root),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED}},
        "device": describe_device(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),  # set by a scheduler, a sweep or the user; else None
        "inputs": {_relative(p, job.experiment.root): compute_file_digest(p) for j in job.inputs for p in j.products},
        "command": command,
        "seconds": round(seconds, 3),
        "core_seconds": round(core_seconds, 3),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with open_own_lock(f"provenance-{compute_digest(str(path.resolve()))}"):
        record = load_json(path) if path.is_file() else {}  # stages that share a folder may end together
        save_json({**record, job.stage.name: own}, path)


def load_records(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return what `save_provenance` kept of a study's finished jobs, by the job's label.

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> load_records(load_experiment("params/paper.yaml"))
        {}
    """
    found = {}
    for job in list_jobs(experiment):
        path = job.folder / "provenance.json"
        if path.is_file() and (record := load_object(path).get(job.stage.name)):
            found[job.label] = record
    return found


def list_unfinished(experiment: Experiment) -> list[str]:
    """Return the labels of a study's jobs without a record, in the order of its graph.

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> "02_kinship_analysis" in list_unfinished(load_experiment("params/paper.yaml"))
        True
    """
    found = load_records(experiment)
    return [job.label for job in list_jobs(experiment) if job.label not in found]


def load_finished(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the records of a study whose jobs have all been run, as `load_records` does.

    Raises:
        InputError: a job has not been run.
    """
    if missing := list_unfinished(experiment):
        where = f"params/{experiment.path.name}"
        raise InputError(f"{missing[0]} has not been run: run `karma run {where}` first")
    return load_records(experiment)


def group_by_stage(records: Mapping[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return stage -> its jobs' records, of `load_records`.

    Example:
        >>> {stage: len(few) for stage, few in group_by_stage({"pool": {}, "x.k_sim": {}, "x.delta": {}}).items()}
        {'pool': 1, 'x': 2}
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for label, record in records.items():
        found.setdefault(label.partition(".")[0], []).append(record)
    return found


def compute_minutes(records: Iterable[dict[str, Any]]) -> float:
    """Return the minutes from the first job's start to the last one's end, of `load_records`.

    Example:
        >>> ends = ("2026-11-26T20:00:00+00:00", "2026-11-26T20:03:00+00:00")
        >>> compute_minutes([{"finished_at": end, "seconds": 60.0} for end in ends])
        4.0
    """
    found = [
        (datetime.fromisoformat(record["finished_at"]), timedelta(seconds=record["seconds"])) for record in records
    ]
    return (max(end for end, _ in found) - min(end - took for end, took in found)).total_seconds() / 60


def find_commit(root: Path) -> str:
    """Return the clone's commit, with "+changes" where tracked files differ from it."""

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "HEAD")
    return (commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")) or "not a git clone"


def describe_device(cpu: bool = False) -> str:
    """Name the processor, its cores and its widest vectors, or the CUDA devices, that this machine shows.

    Vectors decide how fast a CPU is here, and may decide a rounding; where ATEN_CPU_CAPABILITY holds torch to narrower
    ones, that is said.

    Args:
        cpu: the processor, even where there are CUDA devices.
    """
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if gpus and not cpu:
        return ", ".join(g.read_text().split("Model:")[1].splitlines()[0].strip() for g in gpus)
    facts = _read_processor()
    flags = find_vectors() or set()
    vectors = next((title for flag, title in VECTORS.items() if flag in flags), "")
    held = os.environ.get("ATEN_CPU_CAPABILITY")
    parts = [facts.get("model name") or platform.processor() or platform.machine(), f"{os.cpu_count()} cores", vectors]
    return ", ".join(part for part in parts if part) + (f" (torch held to {held})" if held else "")


def find_vectors() -> set[str] | None:
    """Return which of `VECTORS` this machine's processor has; None where the system does not tell."""
    flags = _read_processor().get("flags")
    return None if flags is None else set(flags.split()) & set(VECTORS)


def _read_processor() -> dict[str, str]:
    """Return what Linux says of the first core; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = [line.partition(":")[::2] for line in info.read_text().splitlines()] if info.is_file() else []
    return {key.strip(): value.strip() for key, value in reversed(lines)}


def _relative(path: Path, root: Path | None = None) -> str:
    return os.path.relpath(path, root or Path.cwd())
