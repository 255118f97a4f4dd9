"""What a sweep is doing, read from Snakemake's events: states, progress with time left, one screen.

Where there is no terminal (a log file, continuous integration), a line is printed for each job that begins and each
that ends instead, with the time left.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from subprocess import Popen
from typing import Any, TypedDict

from rich.console import Console
from rich.live import Live
from rich.table import Table

from karma.errors import InputError
from karma.study.experiment import Experiment
from karma.study.shares import SUFFIX
from karma.study.stages import STAGES, Job, find_job, list_jobs
from karma.vocabulary import START

console = Console()


class JobState(TypedDict):
    """What Snakemake has told of one job; times in seconds since the epoch, `ended` None while it runs."""

    job: Job
    label: str
    status: str
    reason: object
    started: float
    ended: float | None
    log: Path
    told: str  # by the executor, of a job that failed
    helps: bool  # another job, by answering a share of its prompts


def read_events(experiment: Experiment, path: Path) -> dict[str, JobState]:
    """Return the last known state of each job that Snakemake planned: label, status, reason, times, log."""
    states: dict[str, JobState] = {}
    for event in load_events(path):
        number = str(event.get("jobid", event.get("job_id")))
        if event["event"] == "job_info" and event.get("rule_name") != "all":
            rule, params = str(event.get("rule_name")).removesuffix(SUFFIX), event.get("wildcards")
            name = rule.removesuffix("_start")
            params = (dict(params) if isinstance(params, dict) else {}) | ({} if rule == name else {"strategy": START})
            part = params.pop("shard", None)
            try:
                job = find_job(experiment, name, params)
            except InputError:  # the experiment has changed since, and has this job no more
                continue
            label = f"{job.label}.shard{part}" if part else job.label
            log = experiment.outputs / ".sweep" / "logs" / f"{label}.log"
            states[number] = {
                "job": job, "label": label, "status": "running", "reason": event.get("reason", ""), "told": "",
                "started": event["time"], "ended": None, "log": log, "helps": bool(part),
            }  # fmt: skip
        elif number in states and event["event"] in ("job_finished", "job_error"):
            states[number]["status"] = "done" if event["event"] == "job_finished" else "failed"
            states[number]["ended"] = max(event["time"], states[number]["started"])  # a clock may be put back
            states[number]["told"] = str(event.get("rule_msg") or "")
    return states


def load_events(path: Path) -> list[dict[str, Any]]:
    """Return Snakemake's events; a line being written just now, or one that is no event, is none of them."""
    events = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else []:
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event and isinstance(event.get("time"), int | float):
                events.append(event)
    return events


def find_elapsed(events: Path) -> float:
    """Return the seconds since a sweep's first event; 0 before there is one, or where the clock was put back."""
    first = load_events(events)[:1]
    return max(time.time() - first[0]["time"], 0.0) if first else 0.0


def show_progress(experiment: Experiment, events: Path, child: Popen[bytes], known: Mapping[str, float]) -> None:
    """Redraw the state until the child ends; where there is no terminal, print a line a finished job.

    Args:
        experiment: whose sweep. events: Snakemake's, so far. child: Snakemake. known: stage -> seconds of a job before.
    """
    started = time.monotonic()
    told: set[tuple[str, str]] = set()
    if not console.is_terminal:
        print(f"{experiment.settings.name}: planning, logs in {_log_folder(experiment)}", flush=True)
    with Live(console=console, refresh_per_second=2, transient=True, auto_refresh=False) as live:
        while child.poll() is None:
            time.sleep(0.5)
            states = read_events(experiment, events)
            if console.is_terminal:
                live.update(render(experiment, states, time.monotonic() - started, known), refresh=True)
            else:
                _print_changes(states, read_plan(events), told, known)
    if not console.is_terminal:
        _print_changes(read_events(experiment, events), read_plan(events), told, known)


def _print_changes(
    states: dict[str, JobState], plan: dict[str, int], told: set[tuple[str, str]], known: Mapping[str, float]
) -> None:
    for line in list_changes(states, plan, told, time.time(), known):
        print(line, flush=True)


def list_changes(
    states: dict[str, JobState], plan: dict[str, int], told: set[tuple[str, str]], now: float,
    known: Mapping[str, float],
) -> Iterator[str]:  # fmt: skip
    """Yield a line for each job that has begun or ended since the last call, and remember it.

    Args:
        states: from `read_events`. plan: stage -> jobs to run. told: what was said before; added to. now: the time.
        known: stage -> seconds of a job before.
    """
    total = sum(plan.values()) or len(states)
    own = {number: state for number, state in states.items() if not state["helps"]}
    for number, state in states.items():
        if (number, "started") not in told:
            told.add((number, "started"))
            yield f"[{sum(what == 'ended' for _, what in told)}/{total}] started {state['label']}"
        if state["ended"] and (number, "ended") not in told:
            told.add((number, "ended"))
            done, seconds = sum(what == "ended" for _, what in told), state["ended"] - state["started"]
            left = estimate_left(own, {rule: n for rule, n in plan.items() if not rule.endswith(SUFFIX)}, now, known)
            said = _say_left(left) if done < total else ""
            yield f"[{done}/{total}] {state['status']:<7} {state['label']} ({say_time(seconds)}{said})"


def read_plan(events: Path) -> dict[str, int]:
    """Return how many jobs of each rule Snakemake means to run, from its own statistics; empty before it has told.

    Rules are stages; those that help a stage have its name with a suffix.
    """
    told = [event["stats"] for event in load_events(events) if isinstance(event.get("stats"), dict)]
    plan: dict[str, int] = {}
    for rule, count in (told[-1] if told else {}).items():
        if rule not in ("all", "total") and isinstance(count, int):
            plan[rule.removesuffix("_start")] = plan.get(rule.removesuffix("_start"), 0) + count
    return plan


def render(experiment: Experiment, states: dict[str, JobState], elapsed: float, known: Mapping[str, float]) -> Table:
    """Draw one screen: jobs of each stage that are up to date or done, at work, failed, to do; and the time left.

    Args:
        experiment: whose. states: from `read_events`. elapsed: seconds. known: stage -> seconds of a job before.
    """
    jobs, plan = list_jobs(experiment), read_plan(experiment.outputs / ".sweep" / "events.jsonl")
    own = {number: state for number, state in states.items() if not state["helps"]}
    table = Table("stage", "jobs", "done", "running", "failed", "to do", title=experiment.settings.name)
    for stage in STAGES.values():
        total = sum(job.stage is stage for job in jobs)
        mine = [state["status"] for state in own.values() if state["job"].stage is stage]
        running, failed, done = (mine.count(status) for status in ("running", "failed", "done"))
        to_do = plan.get(stage.name, 0) - len(mine)
        if total:
            counts = (total - plan.get(stage.name, 0) + done, running, failed, to_do)
            table.add_row(stage.name, str(total), *(str(count) if count else "-" for count in counts))
    left = estimate_left(own, {rule: n for rule, n in plan.items() if not rule.endswith(SUFFIX)}, time.time(), known)
    now = ", ".join(state["label"] for state in states.values() if state["status"] == "running")
    table.caption = (
        f"{elapsed:.0f} s so far{_say_left(left)}\nat work: {now or 'nothing yet'}\nlogs: {_log_folder(experiment)}"
    )
    return table


def _say_left(seconds: float | None) -> str:
    return "" if seconds is None else f", about {say_time(seconds)} left"


def say_time(seconds: float) -> str:
    """Say a time in the unit that people would.

    Example:
        >>> say_time(42.3), say_time(1000), say_time(9000)
        ('42 s', '17 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _log_folder(experiment: Experiment) -> str:
    return os.path.relpath(experiment.outputs / ".sweep" / "logs")


def estimate_left(
    states: dict[str, JobState], plan: dict[str, int], now: float, known: Mapping[str, float]
) -> float | None:
    """Estimate the seconds left: a stage's mean so far, as many side by side as run now.

    Of a stage that has ended no job it takes the time of before, and where that is unknown the mean of all jobs so far.

    Args:
        states: from `read_events`. plan: stage -> jobs to run. now: the time; what a running job has behind it counts.
        known: stage -> seconds of a job before (`karma.study.times.average_stages`).

    Returns:
        Seconds; None where nothing has ended and a stage's time is unknown.
    """
    took: dict[str, list[float]] = {}
    for state in states.values():
        if state["ended"]:
            took.setdefault(state["job"].stage.name, []).append(state["ended"] - state["started"])
    ended = [seconds for few in took.values() for seconds in few]
    mean = {
        **dict.fromkeys(plan, fmean(ended) if ended else nan),
        **known,
        **{k: fmean(few) for k, few in took.items()},
    }
    left = sum((count - len(took.get(name, ()))) * mean[name] for name, count in plan.items())
    running = [state for state in states.values() if state["status"] == "running"]
    for state in running:
        left -= min(max(now - state["started"], 0.0), mean.get(state["job"].stage.name, 0.0))
    return None if isnan(left) or not plan else max(left, 0.0) / max(len(running), 1)


def find_last_line(path: Path) -> str:
    """Return a log's last line that says something."""
    lines = [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()] if path.is_file() else []
    return lines[-1].strip() if lines else "no output"


def explain_failure(state: JobState) -> str:
    """Say in two lines why a job failed and where more is: its log's last line, or what the executor told.

    A job that never began, or was ended from outside, says nothing in its log; what lies there may be of another day.
    """
    log = state["log"]
    own = log.is_file() and log.stat().st_mtime >= state["started"] - 1
    last = find_last_line(log) if own and log.stat().st_size else ""
    told = " ".join(state["told"].split("\n")[0].split())
    return f"{state['label']}: {last or told or 'no output'}\n    log {log}"


def show_where(experiment: Experiment) -> None:
    """Print where tables, figures, report and the newest curves of self-play lie."""
    curves = experiment.outputs.glob("self_play/*/*/*/figures/rounds.png")
    found = {name: experiment.outputs / name for name in ("tables", "figures", "report.html")}
    found["self-play"] = max(curves, key=lambda path: path.stat().st_mtime, default=experiment.outputs / "self-play")
    for name, path in found.items():
        if path.exists():
            console.print(f"  {name:<12} {os.path.relpath(path)}", soft_wrap=True)
