"""Several jobs for one stage's prompts (`compute.shards: N`): the stage's own job, and N - 1 that help it.

A helper is a job of the sweep that waits for what its stage waits for, answers what is free, begins with the shards
that are its own (index modulo N), and writes none of the stage's files. Decision: the stage does not wait for its
helpers. All of them take shards from one store, so a helper that the scheduler starts late, or never, costs nothing,
and another number of shards is no other input, which would rerun the stage and all that follows. Limit: a helper that
fails is a failed job of the sweep, though the stage may have done its work.
"""

import re
from collections.abc import Mapping
from importlib import import_module

from karma.errors import InputError
from karma.study.devices import hold_devices
from karma.study.experiment import Experiment, load_experiment
from karma.study.stages import Job, find_job, list_jobs
from karma.vocabulary import START

SUFFIX = "_shard"  # of the helpers' rule


def answer_share(name: str, experiment: str, params: Mapping[str, object], part: str) -> Job:
    """Answer a share of a job's prompts.

    Args:
        name, experiment, params: of the job, as of `karma.study.execute.run_stage`.
        part: "k/N", k from 0.

    Raises:
        InputError: no such job, one that has no prompts to share, or another form of `part`.
    """
    job = find_job(load_experiment(experiment), name, params)
    if not job.stage.shares:
        raise InputError(f"{name} has no prompts to share: it has one job")
    found = re.fullmatch(r"([0-9]{1,9})/([1-9][0-9]{0,8})", part)
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(f"--shard {part}: expected k/N with k from 0 to N - 1, for example 1/4")
    job.check_inputs()
    with hold_devices(job.experiment.settings.compute.gpus_per_job if job.models else 0):
        import_module(f"karma.{job.stage.shares}").answer_share(job, int(found[1]), int(found[2]))
    return job


def count_helpers(experiment: Experiment) -> int:
    """Return how many jobs help a stage; with Ray, whose workers share, none."""
    compute = experiment.settings.compute
    return compute.shards - 1 if compute.engine == "local" else 0


def list_markers(experiment: Experiment, until: str | None = None) -> list[str]:
    """Return the files, below the experiment's folder, that helpers leave: of the jobs that are to be done.

    Args:
        experiment: whose. until: a stage's name; jobs of others are left out.
    """
    n, stale = count_helpers(experiment), dict[str, bool]()
    return [
        f"{place_marker(job)}/{k}of{n + 1}"
        for job in list_jobs(experiment)
        if n and job.stage.shares and (not until or job.stage.name == until) and _is_stale(job, stale)
        for k in range(1, n + 1)
    ]


def place_marker(job: Job) -> str:
    """Return the folder of a job's markers: a folder a parameter, since names may hold dots.

    Example:
        >>> untrained = {"policy": "tiny-a", "strategy": "start"}
        >>> place_marker(find_job(load_experiment("smoke"), "05_policy_evaluation", untrained))
        '.sweep/shards/05_policy_evaluation/tiny-a/start'
    """
    values = [job.params["policy"], START] if job.params.get("strategy") == START else job.params.values()
    return "/".join([".sweep/shards", job.stage.name, *values])


def _is_stale(job: Job, known: dict[str, bool]) -> bool:
    """Tell whether the sweep will run a job, as Snakemake tells: a file is missing, or older than what made it."""
    if job.label not in known:
        marks = job.experiment.outputs / ".sweep"
        sources = [path for needed in job.inputs for path in needed.products]
        sources += [marks / "settings" / f"{job.label}.json", marks / "code" / f"{job.stage.name}.json"]
        known[job.label] = (
            any(_is_stale(needed, known) for needed in job.inputs)
            or not all(path.exists() for path in [*job.products, *sources])
            or min(path.stat().st_mtime for path in job.products) < max(path.stat().st_mtime for path in sources)
        )
    return known[job.label]
