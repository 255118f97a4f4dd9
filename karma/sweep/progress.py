"""What a sweep is doing, read from Snakemake's events: states, progress with time left, one screen.

Where there is no terminal (a log file, continuous integration), a line is printed for each finished job instead.
"""

import json
import os
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from karma.params import Experiment
from karma.stages import STAGES, Job, find_job, list_jobs

console = Console()


def describe_needs(job: Job) -> str:
    """Say what a job needs: models, data, devices."""
    s = job.experiment.settings
    needs = [spec["hub"] or name for name, spec in job.models.items()]
    if job.stage.name == "pool":
        needs.append(s.pool.source if s.pool.source != "generate" else str(s.pool.instructions))
    if job.models:
        gpus = s.compute.gpus_per_job
        needs.append(
            f"{gpus} GPUs" if gpus else f"{s.compute.threads} CPU thread{'s' * (s.compute.threads > 1)}"
        )
    if job.stage.name == "04_alignment_training":
        t = s.training
        needs.append(f"{t.per_device_batch_size * t.gradient_accumulation * t.devices} pairs an update")
    return ", ".join(needs) or "files of earlier stages"


def read_events(experiment: Experiment, path: Path) -> dict[str, dict[str, Any]]:
    """Return the last known state of each job that Snakemake planned: label, status, reason, times, log."""
    states: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return states
    for line in path.read_text("utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # a line being written just now
            continue
        number = str(event.get("jobid", event.get("job_id")))
        if event["event"] == "job_info" and event.get("rule_name") != "all":
            name = event["rule_name"].removesuffix("_start")
            params = event.get("wildcards") or {}
            job = find_job(
                experiment, name, params if event["rule_name"] == name else {**params, "strategy": "start"}
            )
            log = experiment.outputs / ".sweep" / "logs" / f"{job.label}.log"
            states[number] = {"job": job, "label": job.label, "status": "running", "reason": event.get("reason", ""),
                              "started": event["time"], "ended": None, "log": log}  # fmt: skip
        elif number in states and event["event"] in ("job_finished", "job_error"):
            states[number]["status"] = "done" if event["event"] == "job_finished" else "failed"
            states[number]["ended"] = event["time"]
    return states


def show_progress(experiment: Experiment, events: Path, child: Popen) -> None:
    """Redraw the state until the child ends; where there is no terminal, print a line a finished job."""
    started, told = time.time(), set()
    total = len(list_jobs(experiment))
    with Live(console=console, refresh_per_second=2, transient=True, auto_refresh=False) as live:
        while child.poll() is None:
            time.sleep(0.5)
            states = read_events(experiment, events)
            if console.is_terminal:
                live.update(render(experiment, states, time.time() - started, True), refresh=True)
            else:
                _print_changes(states, told, _count_planned(events) or total)
    if not console.is_terminal:
        _print_changes(read_events(experiment, events), told, _count_planned(events) or total)


def _print_changes(states: dict[str, dict], told: set[str], total: int) -> None:
    for number, state in states.items():
        if state["ended"] and number not in told:
            told.add(number)
            seconds = state["ended"] - state["started"]
            print(
                f"[{len(told)}/{total}] {state['status']:<6} {state['label']} ({seconds:.0f} s)", flush=True
            )


def _count_planned(events: Path) -> int | None:
    """Return how many jobs Snakemake means to run, from its own statistics; None before it has told."""
    lines = events.read_text("utf-8").splitlines() if events.is_file() else []
    totals = [json.loads(line)["stats"]["total"] for line in lines if '"stats"' in line]
    return totals[-1] - 1 if totals else None  # without the rule `all`


def render(experiment: Experiment, states: dict[str, dict], elapsed: float, running: bool) -> Table:
    planned = {job.label for job in list_jobs(experiment)}
    table = Table("stage", "jobs", "done", "running", "failed", title=f"{experiment.settings.name}")
    for stage in STAGES.values():
        mine = [s for s in states.values() if s["job"].stage is stage]
        total = sum(label.split(".")[0] == stage.name for label in planned)
        if total:
            counts = [sum(s["status"] == status for s in mine) for status in ("done", "running", "failed")]
            table.add_row(stage.name, str(total), *(str(c) if c else "-" for c in counts))
    left = estimate_left(experiment, states, _count_planned(experiment.outputs / ".sweep" / "events.jsonl"))
    table.caption = f"{elapsed:.0f} s so far" + (f", about {left / 60:.0f} min left" if left else "")
    return table


def estimate_left(experiment: Experiment, states: dict[str, dict], planned: int | None) -> float | None:
    """Estimate the seconds left from the jobs finished so far (their mean), as many side by side as run now."""
    finished = [s["ended"] - s["started"] for s in states.values() if s["ended"]]
    running = sum(s["status"] == "running" for s in states.values())
    if not finished or not planned:
        return None
    return (planned - len(finished)) * sum(finished) / len(finished) / max(running, 1)


def shorten(reason: Any) -> str:
    text = " ".join(str(reason).split())
    return text if len(text) <= 90 else text[:87] + "..."


def find_last_line(path: Path) -> str:
    lines = (
        [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
        if path.is_file()
        else []
    )
    return lines[-1].strip() if lines else "no output"


def show_where(experiment: Experiment) -> None:
    for name in ("tables", "figures", "report.html"):
        path = experiment.outputs / name
        if path.exists():
            console.print(f"  {name:<12} {os.path.relpath(path)}", soft_wrap=True)
