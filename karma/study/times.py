"""How long a study takes, before it is run: by its own last run, else by a recorded one of the same stages.

`times.json` holds runs that were measured, each with its date and its processor; `make readme` writes them
(docs/make_readme.py). Decision: an estimate says where it comes from, and there is none rather than a guess where no
run of these models is known. Limit: seconds are of the processor that was measured, with as many jobs side by side.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from karma.files.writing import save_json
from karma.study.experiment import Experiment
from karma.study.progress import JobState
from karma.study.provenance import compute_minutes, group_by_stage, load_finished, load_records
from karma.study.stages import Job

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


def estimate_times(experiment: Experiment, states: Sequence[JobState]) -> Estimate:
    """Return how long jobs will take, by the study's own last run, else by a recorded one."""
    own = load_records(experiment)
    by_stage = _average_stages(own)
    recorded = next((run for run in load_times() if run["experiment"] == experiment.settings.name), None)
    borrowed = next((run for run in load_times() if run["experiment"] == REFERENCE), None)
    found, sources = dict[str, float](), list[str]()
    for state in states:
        job, label = state["job"], state["label"]
        stage = job.stage.name
        if label in own or stage in by_stage:
            found[label] = float(own[label]["seconds"]) if label in own else by_stage[stage]
            sources.append("by the last run here")
        elif recorded and stage in recorded["stages"]:
            found[label] = recorded["stages"][stage]
            sources.append(f"as measured on {recorded['device']}")
        elif borrowed and stage in borrowed["stages"] and _loads_embedded_only(job):
            found[label] = borrowed["stages"][stage]
            sources.append(f"by the {REFERENCE}'s jobs on {borrowed['device']}")
    whole = recorded["minutes"] * 60 if recorded and recorded["n_jobs"] == len(states) else None
    if recorded and whole is not None and len(found) < len(states):
        sources.append(f"as measured on {recorded['device']}")
    return Estimate(found, "; ".join(dict.fromkeys(sources)), whole)


def _average_stages(records: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return stage -> the mean seconds of its jobs."""
    return {stage: fmean(float(one["seconds"]) for one in few) for stage, few in group_by_stage(records).items()}


def _loads_embedded_only(job: Job) -> bool:
    compute = job.experiment.settings.compute
    alike = all(spec["perturbed"] or spec["packaged"] == EMBEDDED for spec in job.models.values())
    return alike and compute.backend == "transformers" and compute.device != "cuda"


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
    return {
        "experiment": experiment.settings.name,
        "date": max(datetime.fromisoformat(record["finished_at"]) for record in values).date().isoformat(),
        "device": " and ".join(sorted({record["device"] for record in values})),
        "commit": " and ".join(sorted({record["commit"].removesuffix("+changes")[:9] for record in values})),
        "n_jobs": len(values),
        "minutes": round(compute_minutes(values), 1),
        "core_minutes": round(sum(record["core_seconds"] for record in values) / 60, 1),
        "stages": {name: round(seconds, 1) for name, seconds in _average_stages(records).items()},
    }


def save_times(run: dict[str, Any], path: Path) -> None:
    """Put a run among the recorded ones, in the place of an earlier one of the same study on the same device."""
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else []
    others = [one for one in kept if (one["experiment"], one["device"]) != (run["experiment"], run["device"])]
    save_json(sorted([*others, run], key=lambda one: (one["experiment"], one["date"])), path)
