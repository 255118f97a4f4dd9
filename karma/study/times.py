"""How long a study takes, before it is run: by its own last run, else by a recorded one of the same stages.

`times.json` holds runs that were measured, each with its date and its processor; `make readme` writes them
(docs/make_readme.py). Decision: an estimate says where it comes from, and there is none rather than a guess where no
run of these models is known: a job that asks or trains models borrows the demo's time only where its models, settings
and, of a training, its method are the demo's. Limit: seconds are of the processor that was measured, with as many jobs
side by side.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from karma.errors import InputError
from karma.files.writing import save_json
from karma.study.experiment import Experiment, load_experiment
from karma.study.progress import JobState
from karma.study.provenance import compute_minutes, group_by_stage, load_finished, load_records
from karma.study.stages import Job, list_jobs
from karma.vocabulary import find_method

REFERENCE = "demo"  # whose times stand in for those of another study of the embedded model
EMBEDDED = "smollm2-135m"


@dataclass(frozen=True)
class Estimate:
    """How long jobs take.

    Attributes:
        seconds: job's label -> seconds of that job; jobs of which nothing is known are left out.
        source: whose times these are, for people; "" where there are none.
        whole: seconds of the whole study from its first job to its last, where a recorded run has as many jobs.
    """

    seconds: dict[str, float]
    source: str
    whole: float | None = None

    def sum_up(self, states: Sequence[JobState], beside: int) -> float | None:
        """Return the seconds that jobs take with so many side by side; None where one of them is not known.

        Example:
            >>> Estimate({"a": 30.0, "b": 50.0}, "").sum_up([{"label": "a"}, {"label": "b"}], 2)
            40.0
        """
        if any(state["label"] not in self.seconds for state in states):
            return None
        return sum(self.seconds[state["label"]] for state in states) / max(min(beside, len(states)), 1)


def estimate_times(experiment: Experiment, jobs: Mapping[str, Job]) -> Estimate:
    """Return how long jobs will take, by the study's own last run, else by a recorded one.

    Args:
        experiment: whose. jobs: label -> job; helpers have labels of their own.
    """
    own = load_records(experiment)
    by_kind = _average(experiment, own)
    recorded = next((run for run in load_times() if run["experiment"] == experiment.settings.name), None)
    borrowed = next((run for run in load_times() if run["experiment"] == REFERENCE), None)
    alike = _list_alike(experiment) if borrowed else {}
    found, sources = dict[str, float](), list[str]()
    for label, job in jobs.items():
        stage, kind = job.stage.name, _find_kind(job)
        if label in own or kind in by_kind:
            found[label] = float(own[label]["seconds"]) if label in own else by_kind[kind]
            sources.append("by the last run here")
        elif recorded and stage in recorded["stages"]:
            found[label] = recorded["stages"][stage]
            sources.append(f"as measured on {recorded['device']}")
        elif borrowed and stage in borrowed["stages"] and kind in alike and (alike[kind] or not job.models):
            found[label] = borrowed["stages"][stage]
            sources.append(f"by the {REFERENCE}'s jobs on {borrowed['device']}")
    whole = recorded["minutes"] * 60 if recorded and recorded["n_jobs"] == len(jobs) else None
    if recorded and whole is not None and len(found) < len(jobs):
        sources.append(f"as measured on {recorded['device']}")
    return Estimate(found, "; ".join(dict.fromkeys(sources)), whole)


def average_stages(experiment: Experiment) -> dict[str, float]:
    """Return stage -> the mean seconds of its jobs, for stages of which each job's time is known before they run."""
    jobs = {job.label: job for job in list_jobs(experiment)}
    try:
        seconds = estimate_times(experiment, jobs).seconds
    except InputError:  # a damaged record of a job: an estimate is no reason to stop a sweep
        return {}
    unknown = {job.stage.name for label, job in jobs.items() if label not in seconds}
    stages: dict[str, list[float]] = {}
    for label, took in seconds.items():
        stages.setdefault(jobs[label].stage.name, []).append(took)
    return {name: fmean(few) for name, few in stages.items() if name not in unknown}


Kind = tuple[str, str]  # what decides how long a job takes, beside models and settings: stage, and a training's method


def _find_kind(job: Job) -> Kind:
    return job.stage.name, find_method(job.params["method"]) if job.stage.name == "04_alignment_training" else ""


def _average(experiment: Experiment, records: dict[str, dict[str, Any]]) -> dict[Kind, float]:
    found: dict[Kind, list[float]] = {}
    for job in list_jobs(experiment):
        if job.label in records:
            found.setdefault(_find_kind(job), []).append(float(records[job.label]["seconds"]))
    return {kind: fmean(seconds) for kind, seconds in found.items()}


def _list_alike(experiment: Experiment) -> dict[Kind, bool]:
    """Return each kind of the demo's jobs, and whether this study's models and settings for it are the demo's."""
    try:
        reference = load_experiment(experiment.root / "params" / f"{REFERENCE}.yaml")
    except InputError:  # a project without the demo
        return {}
    models = experiment.settings.models.values()
    embedded = all(model.perturbed or model.packaged == EMBEDDED for model in models)
    found: dict[Kind, bool] = {}
    for job in list_jobs(reference):
        if (kind := _find_kind(job)) not in found:
            own, theirs = (study.select(job.stage.reads, job.stage.name).as_dict() for study in (experiment, reference))
            found[kind] = embedded and own == theirs
    return found


def count_beside(experiment: Experiment, cores: int | None = None) -> int:
    """Return how many of a study's jobs this machine runs side by side."""
    return max((cores or os.cpu_count() or 1) // experiment.settings.compute.threads, 1)


@cache
def load_times() -> list[dict[str, Any]]:
    """Return the recorded runs, the newest of each study first.

    Example:
        >>> {"experiment", "date", "device", "stages"} <= set(load_times()[0])
        True
    """
    found: list[dict[str, Any]] = json.loads((files("karma") / "study" / "times.json").read_text("utf-8"))
    return sorted(found, key=lambda run: run["date"], reverse=True)


def describe_times(experiment: Experiment) -> dict[str, Any]:
    """Return what `times.json` keeps of a finished study: when, on what, how long, and each stage's mean seconds.

    Raises:
        InputError: a job has not been run.
    """
    records = load_finished(experiment)
    values = list(records.values())
    stages = {name: fmean(float(one["seconds"]) for one in few) for name, few in group_by_stage(records).items()}
    return {
        "experiment": experiment.settings.name,
        "date": max(datetime.fromisoformat(record["finished_at"]) for record in values).date().isoformat(),
        "device": " and ".join(sorted({record["device"] for record in values})),
        "commit": " and ".join(sorted({record["commit"].removesuffix("+changes")[:9] for record in values})),
        "n_jobs": len(values),
        "minutes": round(compute_minutes(values), 1),
        "core_minutes": round(sum(record["core_seconds"] for record in values) / 60, 1),
        "stages": {name: round(seconds, 1) for name, seconds in stages.items()},
    }


def save_times(run: dict[str, Any], path: Path) -> None:
    """Put a run among the recorded ones, in the place of an earlier one of the same study on the same device."""
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else []
    others = [one for one in kept if (one["experiment"], one["device"]) != (run["experiment"], run["device"])]
    save_json(sorted([*others, run], key=lambda one: (one["experiment"], one["date"])), path)
