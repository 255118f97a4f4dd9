"""Where a folder's files came from: settings and who set them, models, commit, versions, device, inputs' digests."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from karma.files import compute_file_digest, load_json, save_json
from karma.study.stages import Job

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


def save_provenance(job: Job, seconds: float, command: str = "") -> None:
    """Write where a folder's files came from, beside what other stages wrote there."""
    path = job.folder / "provenance.json"
    record = load_json(path) if path.is_file() else {}
    record[job.stage.name] = {
        "params": job.params,
        "settings": job.settings.as_dict(),
        "set_by": job.experiment.show(job.stage.reads)["set by"].to_dict(),
        "models": job.models,
        "commit": find_commit(job.experiment.root),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED}},
        "device": describe_device(),
        "inputs": {_relative(p, job.experiment.root): compute_file_digest(p) for j in job.inputs for p in j.products},
        "command": command,
        "seconds": round(seconds, 3),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    save_json(record, path)


def find_commit(root: Path) -> str:
    """Return the clone's commit, with "+changes" where tracked files differ from it."""

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "HEAD")
    return (commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")) or "not a git clone"


def describe_device() -> str:
    """Name the processor and how many cores, or the CUDA devices, that this machine shows."""
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if gpus:
        return ", ".join(g.read_text().split("Model:")[1].splitlines()[0].strip() for g in gpus)
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _relative(path: Path, root: Path | None = None) -> str:
    return os.path.relpath(path, root or Path.cwd())
