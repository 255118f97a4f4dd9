"""A sweep's jobs on a cluster: what each may take, how Snakemake submits them, how a killed sweep's are cancelled.

A job's memory and run time are `compute.resources` of its stage; what is not said there is estimated from the size of
its models. Decision: the estimates are generous and simple enough to be redone by hand (docs/scale.md), since what is
asked for too little ends a job, and what is asked for too much only lets it wait. Limit: a size is read from a model's
name or files; a model behind another name counts as UNKNOWN_BILLIONS.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from karma.errors import InputError
from karma.files.reading import compute_digest
from karma.study.experiment import Experiment
from karma.study.sections import Resources
from karma.study.stages import STAGES, Job

PROFILES = Path(__file__).parent / "profiles"
TRAINING = ("04_alignment_training", "07_alignment_potential", "08_self_play", "selection_evaluation")
UNKNOWN_BILLIONS = 8.0  # parameters of a model whose name tells none
BASE_GIB, BASE_HOURS = 8.0, 1.0  # of a job without a model
TRAINED_GIB, LOADED_GIB = 16.0, 6.0  # a billion parameters: weights, gradients, Adam; weights and activations
TRAINED_HOURS, ASKED_HOURS = 4.0, 2.0  # a billion parameters


@dataclass(frozen=True)
class Remote:
    """Where a sweep's jobs run, if not here.

    Attributes:
        executor: a Snakemake executor's name. profile: a folder with Snakemake's config.yaml.
        jobs: submitted at a time; None: what the profile says, else 100.
    """

    executor: str
    profile: Path | None
    jobs: int | None


def find_remote(executor: str | None, profile: Path | None, jobs: int | None) -> Remote | None:
    """Return where a sweep's jobs run; None: on this machine.

    Args:
        executor: a name, as `slurm`; None: what the profile says. profile: a folder; None: the kit's of that name,
            if there is one. jobs: submitted at a time.

    Raises:
        InputError: no such profile, its executor is not installed, or `jobs` without either.

    Example:
        >>> find_remote(None, None, None) is None
        True
    """
    if executor is None and profile is None:
        if jobs is not None:
            raise InputError(f"--jobs {jobs}: jobs submitted at a time, with --executor or --profile; here, --cores N")
        return None
    if profile is None and (PROFILES / str(executor)).is_dir():
        profile = PROFILES / str(executor)
    if profile is not None:
        executor = executor or _read_profile(profile).get("executor", "local")
    if executor in ("local", "dryrun", "touch"):
        raise InputError(
            f"executor '{executor}' runs jobs here: leave --executor and --profile out, and give --cores N"
        )
    module = f"snakemake_executor_plugin_{str(executor).replace('-', '_')}"
    if not str(executor).replace("-", "_").isidentifier() or find_spec(module) is None:
        remedy = (
            "pip install 'karma-kit[cluster]'" if executor == "slurm" else f"pip install {module.replace('_', '-')}"
        )
        raise InputError(f"executor '{executor}': Snakemake has no such plugin here: {remedy}")
    if executor == "slurm" and not shutil.which("sbatch"):
        raise InputError("executor 'slurm': there is no sbatch here: run this where jobs are submitted from")
    return Remote(str(executor), profile, jobs)


def _read_profile(profile: Path) -> dict[str, Any]:
    """Return a profile's settings; Snakemake itself checks what they mean."""
    for name in ("config.v9+.yaml", "config.yaml"):
        if (profile / name).is_file():
            try:
                values = yaml.safe_load((profile / name).read_text("utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise InputError(f"{profile / name}: {' '.join(str(error).split())}") from None
            if isinstance(values, dict):
                return values
            raise InputError(f"{profile / name} must be a map of Snakemake's options, as karma/study/profiles/slurm's")
    raise InputError(f"--profile {profile}: there is no config.yaml: copy karma/study/profiles/slurm and change it")


def build_options(experiment: Experiment, remote: Remote) -> list[str]:
    """Return Snakemake's options for a sweep whose jobs run elsewhere."""
    options = ["--executor", remote.executor]
    if remote.profile is not None:
        options += ["--profile", str(remote.profile.resolve())]
    if remote.jobs is not None or remote.profile is None or "jobs" not in _read_profile(remote.profile):
        options += ["--jobs", str(remote.jobs or 100)]
    if remote.executor == "slurm":
        options += ["--slurm-jobname-prefix", name_jobs(experiment)]
        options += ["--slurm-logdir", str(experiment.outputs / ".sweep" / "slurm")]
        if not has_accounting():  # its plugin would wait for ever
            options += ["--slurm-status-command", "squeue"]
    return options


def name_jobs(experiment: Experiment) -> str:
    """Return what the names of a study's jobs begin with: of this study in this folder, and no other's."""
    return f"karma-{compute_digest(str(experiment.outputs.resolve()))}"


def has_accounting() -> bool:
    """Tell whether Slurm's accounting answers; where it is switched off, `sacct` is there and fails."""
    if not shutil.which("sacct"):
        return False
    asked = subprocess.run(["sacct", "--noheader", "--starttime", "now"], capture_output=True, timeout=60)
    return asked.returncode == 0


def cancel_survivors(experiment: Experiment) -> int:
    """Cancel what a killed sweep of this study left in Slurm's queue; return how many jobs that were."""
    if not shutil.which("squeue"):
        return 0
    command = ["squeue", "--me", "--noheader", "--format", "%i %j"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    rows = [line.split(None, 1) for line in listed.stdout.splitlines()]
    mine = [row[0] for row in rows if len(row) == 2 and row[1].startswith(name_jobs(experiment))]
    if mine:
        subprocess.run(["scancel", *mine], capture_output=True, timeout=60, check=False)
    return len(mine)


def find_resources(job: Job) -> dict[str, Any]:
    """Return what a job may take, by Snakemake's names.

    Returns:
        `gpu` (devices), `mem_mb`, `runtime` (minutes) and, where the experiment names one, `slurm_partition`.

    Raises:
        InputError: `compute.resources` names a stage that is none.

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> from karma.study.stages import find_job
        >>> find_resources(find_job(load_experiment("smoke"), "02_kinship_analysis", {}))
        {'gpu': 0, 'mem_mb': 8192, 'runtime': 60}
    """
    compute = job.experiment.settings.compute
    check_resources(compute.resources)
    said = compute.resources.get(job.stage.name, Resources())
    trains = job.stage.name in TRAINING and not job.experiment.settings.training.lora
    billions = max((estimate_billions(name, spec) for name, spec in _list_loaded(job)), default=0.0)
    memory_gib = said.memory_gib or BASE_GIB + billions * (TRAINED_GIB if trains else LOADED_GIB)
    hours = said.hours or BASE_HOURS + billions * (TRAINED_HOURS if job.stage.name in TRAINING else ASKED_HOURS)
    gpus = (compute.gpus_per_job if job.models else 0) if said.gpus is None else said.gpus
    found = {"gpu": gpus, "mem_mb": round(memory_gib * 1024), "runtime": max(round(hours * 60), 1)}
    return found | ({"slurm_partition": said.partition} if said.partition else {})


def check_resources(resources: dict[str, Resources]) -> None:
    """Raise an InputError where `compute.resources` names a stage that is none."""
    if unknown := [name for name in resources if name not in STAGES]:
        raise InputError(f"compute.resources: '{unknown[0]}' is no stage; there are {', '.join(STAGES)}")


def _list_loaded(job: Job) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the models that a job loads: a perturbed copy is as large as the model it is made from, an API none."""
    for name, spec in job.models.items():
        if not spec["perturbed"] and not spec["api"]:
            path = job.experiment.root / spec["path"] if spec["path"] else None
            yield name, {**spec, "path": path}


def estimate_billions(name: str, spec: dict[str, Any]) -> float:
    """Return a model's parameters in billions: of its shape or files, else as its name says.

    Example:
        >>> hub = dict.fromkeys(("hub", "path", "packaged", "random"))
        >>> [estimate_billions("x", hub | {"hub": name}) for name in ("org/Llama-3.2-3B-Instruct", "org/smol-135m")]
        [3.0, 0.135]
        >>> estimate_billions("mystery", hub | {"hub": "org/mystery"}) == UNKNOWN_BILLIONS
        True
    """
    if spec["random"]:
        return float(12 * spec["random"]["hidden_size"] ** 2 * spec["random"]["layers"]) / 1e9
    if spec["path"] and (weights := sum(file.stat().st_size for file in Path(spec["path"]).glob("*.safetensors"))):
        return weights / 2e9  # two bytes a parameter; of float32 it is twice, and so is what it takes
    for text in (spec["hub"], spec["packaged"], name, str(spec["path"] or "")):
        if found := re.findall(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)(b|m)(?![a-z0-9])", (text or "").lower()):
            times, number, unit = found[-1]
            return int(times or 1) * float(number) / (1 if unit == "b" else 1000)
    return UNKNOWN_BILLIONS
