"""What `karma run --dry-run` and `karma status` print: a line a stage, with what it takes, and what to type next.

Nothing here writes to disk. Hours of GPUs and of stages that were never measured are what jobs ask a scheduler for
(`karma.study.cluster`), generous by design, and said to be a bound.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Column, Table

from karma.commands.next_step import tell_next
from karma.study.cluster import estimate_billions, find_resources
from karma.study.experiment import Experiment
from karma.study.plan import plan_sweep
from karma.study.progress import JobState, console, explain_failure, find_elapsed, read_events, render, say_time
from karma.study.shares import SUFFIX
from karma.study.stages import STAGES, Job, list_jobs
from karma.study.sweep import is_running
from karma.study.times import Estimate, average_stages, count_beside, estimate_times
from karma.vocabulary import START

_BYTES = 2e9  # of a billion parameters, as most models of the Hub lie there (bfloat16)
_WHEEL_BYTES = 100e6  # of a packaged model


@dataclass(frozen=True)
class Download:
    """What a study fetches first.

    Attributes:
        name: of the model or the data. n_bytes: its size, about; None: data, whose size is not known before.

    Example:
        >>> [str(one) for one in (Download("a/b-3b", 6e9), Download("b's wheel", 1e8), Download("a/pool"))]
        ['a/b-3b (about 6 GB)', "b's wheel (about 100 MB)", 'a/pool (data)']
    """

    name: str
    n_bytes: float | None = None

    def __str__(self) -> str:
        if self.n_bytes is None:
            return f"{self.name} (data)"
        size = f"{self.n_bytes / 1e9:.0f} GB" if self.n_bytes >= 1e9 else f"{self.n_bytes / 1e6:.0f} MB"
        return f"{self.name} (about {size})"


def show_plan(
    experiment: Experiment, command: Sequence[str], until: str | None = None, elsewhere: bool = False,
    cores: int | None = None,
) -> None:  # fmt: skip
    """Print what a run would do, a line a stage.

    Args:
        experiment: whose. command: the words that run it. until: the last stage of it. elsewhere: whether to say what
            its jobs ask a scheduler for, too. cores: of this machine.
    """
    states, name = plan_sweep(experiment, until), experiment.settings.name
    out = Console(width=None if console.is_terminal else 220)
    if not states:
        out.print(f"{name}: everything is up to date; nothing was written")
        typer.echo(tell_after(experiment))
        return
    times, beside = (
        estimate_times(experiment, {state["label"]: state["job"] for state in states}),
        count_beside(experiment, cores),
    )
    fetched = list_downloads(experiment, states)
    rows = [
        _describe_stage(stage, group, times.sum_up(group, beside), fetched.get(stage, []), elsewhere)
        for stage, group in _group(states)
    ]
    columns = ["stage", "jobs", "what for", "why", "about", "each takes", "GPU hours", "downloads"]
    kept = [k for k in range(len(columns)) if any(row[k] for row in rows)]
    table = Table(*(Column(columns[k], no_wrap=k < 2, justify="right" if k in (1, 6) else "left") for k in kept),
                  title=f"{name}: {len(states)} jobs to do")  # fmt: skip
    for row in rows:
        table.add_row(*(row[k] for k in kept))
    out.print(table)
    for line in _sum_up(states, times, beside, fetched):
        out.print(line, soft_wrap=True, highlight=False)
    out.print("nothing was written, and nothing was run", highlight=False)
    typer.echo(tell_next(*command))


def show_status(experiment: Experiment) -> None:
    """Print how far the experiment is: of the sweep at work now, or of what lies in its folder."""
    events = experiment.outputs / ".sweep" / "events.jsonl"
    if is_running(experiment):
        console.print(
            render(experiment, read_events(experiment, events), find_elapsed(events), average_stages(experiment))
        )
        typer.echo(tell_next("karma", "status", _name(experiment)))
        return
    todo = {state["label"]: state for state in plan_sweep(experiment)}
    table = Table("stage", "done", "to do", "why", title=f"{experiment.settings.name}: no sweep is running")
    for stage in STAGES.values():
        jobs = [job for job in list_jobs(experiment) if job.stage is stage]
        missing = [todo[job.label] for job in jobs if job.label in todo]
        if jobs:
            done = str(len(jobs) - len(missing))
            table.add_row(stage.name, done, str(len(missing)) if missing else "-", _say_why(missing))
    Console(width=None if console.is_terminal else 160).print(table)
    for state in read_events(experiment, events).values():
        if state["status"] == "failed" and state["label"] in todo:
            console.print(f"failed last time: {explain_failure(state)}")
    if todo:
        left = estimate_times(experiment, {label: state["job"] for label, state in todo.items()})
        seconds = left.sum_up(list(todo.values()), count_beside(experiment))
        if seconds is not None:
            console.print(f"to do: about {say_time(seconds)}, {left.source}", soft_wrap=True, highlight=False)
        typer.echo(tell_next("karma", "run", _name(experiment)))
    else:
        typer.echo(tell_after(experiment))


def tell_after(experiment: Experiment) -> str:
    """Return what to type after a study has run: open its report, or where it has none yet, ask what is left."""
    page = experiment.outputs / "report.html"
    words = ("open", os.path.relpath(page)) if page.exists() else ("karma", "status", _name(experiment))
    return tell_next(*words)


def _name(experiment: Experiment) -> str:
    return os.path.relpath(experiment.path)


def _group(states: Sequence[JobState]) -> list[tuple[str, list[JobState]]]:
    """Return the jobs of each stage, those that help a stage apart."""
    groups: dict[str, list[JobState]] = {}
    for name in STAGES:
        for helps, suffix in ((False, ""), (True, SUFFIX)):
            if group := [s for s in states if s["job"].stage.name == name and s["helps"] == helps]:
                groups[name + suffix] = group
    return list(groups.items())


def _describe_stage(
    name: str, states: list[JobState], seconds: float | None, fetched: list[Download], elsewhere: bool
) -> list[str]:
    asked = [find_resources(state["job"]) for state in states]
    hours = max(one["runtime"] for one in asked) / 60
    about = say_time(seconds) if seconds is not None else f"up to {hours:.0f} h each" if elsewhere else "not measured"
    gpu_hours = count_gpu_hours(states)
    return [
        name, str(len(states)), describe_params(states), _say_why(states), about, describe_needs(states, elsewhere),
        f"up to {gpu_hours:,.0f}" if gpu_hours else "", ", ".join(map(str, fetched)),
    ]  # fmt: skip


def count_gpu_hours(states: Sequence[JobState]) -> float:
    """Return the GPU hours that jobs ask a scheduler for: a bound, not a measurement."""
    asked = [find_resources(state["job"]) for state in states]
    return float(sum(one["gpu"] * one["runtime"] for one in asked)) / 60


def describe_params(states: Sequence[JobState]) -> str:
    """Say what tells a stage's jobs from each other: the names where there are few, else how many of each.

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> jobs = [job for job in list_jobs(load_experiment("paper")) if job.stage.name == "04_alignment_training"]
        >>> describe_params([{"job": job} for job in jobs])
        '4 policies x 4 strategies x 2 methods'
    """
    plural = {"policy": "policies", "strategy": "strategies"}
    params = [state["job"].params for state in states]
    trained = [one for one in params if one.get("strategy") != START]
    before = [f"{len(params) - len(trained)} untrained"] if len(trained) < len(params) else []
    values = {key: list(dict.fromkeys(one[key] for one in trained)) for key in states[0]["job"].stage.per}
    many = {key: found for key, found in values.items() if len(found) > 1}
    if len(many) == 1 and len(text := ", ".join(*many.values())) <= 60:
        return ", ".join([*before, text])
    counts = [f"{len(found)} {plural.get(key, key.replace('_', ' ') + 's')}" for key, found in many.items()]
    whole = prod(len(found) for found in many.values()) == len(trained)
    return ", ".join([*before, *([" x ".join(counts)] if whole and counts else counts)])


def _say_why(states: Sequence[JobState]) -> str:
    """Return the reasons of a stage's jobs, each once: with how many jobs it is of, where there are several."""
    counts = Counter("after what it reads" if str(s["reason"]).startswith("after ") else _shorten(s["reason"])
                     for s in states)  # fmt: skip
    if len(counts) == 1:
        return next(iter(counts))
    shown = [f"{n} {reason}" for reason, n in counts.most_common(2)]
    return "; ".join([*shown, *([f"{len(counts) - 2} other reasons"] if len(counts) > 2 else [])])


def _shorten(reason: object) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= 90 else text[:87] + "..."


def describe_needs(states: Sequence[JobState], elsewhere: bool = False) -> str:
    """Say what each of a stage's jobs takes: devices, pairs an update, and what it asks a scheduler for."""
    job: Job = states[0]["job"]
    s, needs = job.experiment.settings, list[str]()
    asked = [find_resources(state["job"]) for state in states]
    if job.models:
        gpus = max(one["gpu"] for one in asked)
        needs.append(f"{gpus} GPUs" if gpus else f"{s.compute.threads} CPU thread{'s' * (s.compute.threads > 1)}")
    if job.stage.name == "04_alignment_training":
        t = s.training
        needs.append(f"{t.per_device_batch_size * t.gradient_accumulation * t.devices} pairs an update")
    if elsewhere:
        memory, hours = (max(one[key] for one in asked) for key in ("mem_mb", "runtime"))
        needs.append(f"at most {memory / 1024:.0f} GiB and {hours / 60:.1f} h")
    return ", ".join(needs)


def list_downloads(experiment: Experiment, states: Sequence[JobState]) -> dict[str, list[Download]]:
    """Return, by the stage that wants it first, the models and data that are not here yet.

    The Hub is not asked: a model's size is reckoned from its name, at two bytes a parameter.
    """
    from karma.models.describe import describe_model

    found: dict[str, list[Download]] = {}
    known: set[str] = set()
    for state in states:
        job, s = state["job"], experiment.settings
        for name, spec in job.models.items():
            if name not in known and (spec["hub"] or spec["packaged"]):
                known.add(name)
                here = describe_model(job.models, name)[1]
                if here == "not yet":
                    size = estimate_billions(name, {**spec, "path": None}) * _BYTES
                    found.setdefault(job.stage.name, []).append(Download(spec["hub"], size))
                elif here.startswith("no"):
                    found.setdefault(job.stage.name, []).append(Download(f"{name}'s wheel", _WHEEL_BYTES))
        for what in _list_data(job, s, experiment.root):
            if what not in known:
                known.add(what)
                found.setdefault(job.stage.name, []).append(Download(what))
    return found


def _list_data(job: Job, s: Any, root: Path) -> Iterator[str]:
    if job.stage.name == "pool" and s.pool.source != "generate" and not (root / s.pool.source).exists():
        yield str(s.pool.source)
    if job.stage.name in ("01_origin_evaluation", "05_policy_evaluation") and s.benchmarks.folder is None:
        yield "the benchmarks' items"


def _sum_up(
    states: Sequence[JobState], times: Estimate, beside: int, fetched: dict[str, list[Download]]
) -> Iterator[str]:
    seconds = times.sum_up(states, beside)
    if seconds is not None:
        yield f"time: about {say_time(seconds)}, {beside} side by side, {times.source}"
    elif times.whole is not None:
        yield f"time: about {say_time(times.whole)}, {times.source}"
    else:
        yield "time: not all of these jobs were ever measured; a run tells what is left once its first ones have ended"
    if gpus := count_gpu_hours(states):
        yield f"GPUs: up to {gpus:,.0f} hours are asked for; this is a bound, not a measurement"
    n = sum(map(len, fetched.values()))
    yield f"downloads: {n} of what the table names, kept for other studies" if n else "downloads: nothing"
