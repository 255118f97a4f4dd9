"""What a run would do, read from what lies there: nothing is written, and Snakemake is not started.

The rules are Snakemake's, as `karma run` uses them: a job runs where one of its files is missing or was left
unfinished, where something it reads is newer than what it made and not the same as what it read then, where it reads
other files than then, and where a job that it waits for runs. What a run would write before it starts (the
fingerprints of settings and code) is compared in memory, so that a plan can say which setting or module it is.

Decision: the two are held against each other in tests/test_sweep.py, change by change; Snakemake alone decides what a
run does. Limit: a plan trusts a stage's fingerprint of code as long as none of the modules it names has changed.
"""

import hashlib
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from karma.errors import InputError
from karma.study.current import check_claim, find_changes, fingerprint_settings
from karma.study.experiment import Experiment
from karma.study.fingerprint import compute_stage_code, find_changed_code
from karma.study.progress import JobState
from karma.study.shares import count_helpers, place_marker
from karma.study.stages import Job, Stage, list_jobs

_LARGEST_SUMMED = 1_000_000  # bytes: Snakemake keeps checksums of smaller files
_LONGEST_NAME = 254  # letters of a record's file name


def plan_sweep(experiment: Experiment, until: str | None = None) -> list[JobState]:
    """Return the jobs that a run would do, each with its reason, in the order of the stages; write nothing.

    Args:
        experiment: whose. until: a stage's name; nothing after it counts.

    Raises:
        InputError: its outputs are another experiment's, or a notebook is missing.
    """
    check_claim(experiment)
    for job in (jobs := list_jobs(experiment)):
        notebook = experiment.root / "notebooks" / f"{job.stage.name}.ipynb"
        if job.stage.has_notebook and not notebook.is_file():
            raise InputError(f"{notebook} is missing: every stage of the sweep needs its notebook")
    reasons = _Study(experiment, jobs, until).find_reasons()
    states = [_build_state(job, job.label, reasons[job.label]) for job in jobs if job.label in reasons]
    n = count_helpers(experiment)
    for job in jobs:
        if n and job.label in reasons and job.stage.shares and (not until or job.stage.name == until):
            states += [_build_state(job, f"{job.label}.shard{k}", "answers a share", True) for k in range(1, n + 1)
                       if not (experiment.outputs / place_marker(job) / f"{k}of{n + 1}").is_file()]  # fmt: skip
    return states


def _build_state(job: Job, label: str, reason: str, helps: bool = False) -> JobState:
    log = job.experiment.outputs / ".sweep" / "logs" / f"{label}.log"
    return {"job": job, "label": label, "status": "planned", "reason": reason, "started": 0.0, "ended": None,
            "log": log, "told": "", "helps": helps}  # fmt: skip


class _Study:
    """A study's files as a run would find them, each looked at once."""

    def __init__(self, experiment: Experiment, jobs: list[Job], until: str | None) -> None:
        self.experiment, self.now = experiment, time.time()
        self.jobs = {job.label: job for job in jobs}
        self.targets = {label for label, job in self.jobs.items() if not until or job.stage.name == until}
        self.waits = {label: [other.label for other in job.inputs] for label, job in self.jobs.items()}
        self.code: dict[str, str] = {}
        self.dates: dict[Path, float | None] = {}

    def find_reasons(self) -> dict[str, str]:
        """Return the label of each job that would run, with why."""
        wanted, todo = set(self.targets), list(self.targets)
        while todo:
            new = set(self.waits[todo.pop()]) - wanted
            wanted |= new
            todo += new
        order = [label for label in self._sort() if label in wanted]
        reasons: dict[str, str] = {}
        while True:
            before = len(reasons)
            for label in order:  # what waits for a job that runs, runs
                again = [other for other in self.waits[label] if other in reasons]
                own = "" if again or label in reasons else self._find_own(label)
                if label not in reasons and (again or own):
                    reasons[label] = self._find_missing(self.jobs[label]) or own or f"after {again[0]}"
            for label in reversed(order):  # and a job whose files are gone runs where one that runs waits for it
                for other in self.waits[label] if label in reasons else ():
                    if other not in reasons and (missing := self._find_missing(self.jobs[other])):
                        reasons[other] = missing
            if len(reasons) == before:
                return reasons

    def _sort(self) -> list[str]:
        """Return the labels so that none comes before what it waits for."""
        from graphlib import TopologicalSorter

        return [label for label in TopologicalSorter(self.waits).static_order() if label in self.jobs]

    def _find_own(self, label: str) -> str:
        """Say why a job would run by itself; "": for no reason of its own."""
        job = self.jobs[label]
        if missing := self._find_missing(job):
            return missing if label in self.targets else ""
        if any(_name_record(self.unfinished, self._name(path)).is_file() for path in job.products):
            return "was stopped midway"
        oldest = min(date for path in job.products if (date := self._date(path)) is not None)
        records = [_read_record(self.records, self._name(path)) for path in job.products]
        for reason in (self._find_settings(job, oldest, records), self._find_code(job, oldest, records)):
            if reason:
                return reason
        for path in (product for other in job.inputs for product in other.products):
            date = self._date(path)
            if date is not None and date > oldest and not _is_same(self._name(path), path, records):
                return f"{self._name(path)} is newer"
        return self._find_other_inputs(job, records)

    def _find_missing(self, job: Job) -> str:
        absent = [path for path in job.products if self._date(path) is None]
        if len(absent) == len(job.products):
            return "not made yet"
        return f"{self._name(absent[0])} is missing" if absent else ""

    def _find_settings(self, job: Job, oldest: float, records: list[dict[str, Any]]) -> str:
        path = self.marks / "settings" / f"{job.label}.json"
        text = json.dumps(fingerprint_settings(job), indent=1, sort_keys=True)
        there = path.read_text("utf-8") if path.is_file() else None
        if there == text and (self._date(path) or 0.0) <= oldest:
            return ""
        if _is_recorded(self._name(path), text.encode(), records):
            return ""
        changes = find_changes(job) if there != text else []
        return f"changed: {', '.join(changes)}" if changes else "its settings are newer"

    def _find_code(self, job: Job, oldest: float, records: list[dict[str, Any]]) -> str:
        path = self.marks / "code" / f"{job.stage.name}.json"
        before = _read_json(path)
        changes = find_changed_code(job.stage, self.experiment.root, before) if before else ["its code"]
        if not changes and (self._date(path) or 0.0) <= oldest:
            return ""
        text = self._read_code(job.stage) if changes else path.read_text("utf-8")
        if _is_recorded(self._name(path), text.encode(), records):
            return ""
        return f"changed: {', '.join(changes)}" if changes else "its code is newer"

    def _read_code(self, stage: Stage) -> str:
        if stage.name not in self.code:
            self.code[stage.name] = json.dumps(compute_stage_code(stage, self.experiment.root), indent=1)
        return self.code[stage.name]

    def _find_other_inputs(self, job: Job, records: list[dict[str, Any]]) -> str:
        marks = [f".sweep/settings/{job.label}.json", f".sweep/code/{job.stage.name}.json"]
        now = sorted({*marks, *(self._name(path) for other in job.inputs for path in other.products)})
        before = [record["input"] for record in records if record.get("input") is not None]
        return "it reads other files than before" if any(sorted(set(one)) != now for one in before) else ""

    def _date(self, path: Path) -> float | None:
        """Return when a file was made, of a folder what Snakemake noted there; a date to come is now; None: absent."""
        if path not in self.dates:
            stamp = path / ".snakemake_timestamp"
            try:
                self.dates[path] = min((stamp if stamp.is_file() else path).stat().st_mtime, self.now)
            except OSError:
                self.dates[path] = None
        return self.dates[path]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.experiment.outputs).as_posix()

    @property
    def marks(self) -> Path:
        return self.experiment.outputs / ".sweep"

    @cached_property
    def records(self) -> Path:
        return self.experiment.outputs / ".snakemake" / "metadata"

    @cached_property
    def unfinished(self) -> Path:
        return self.experiment.outputs / ".snakemake" / "incomplete"


# --- what Snakemake noted of a file -----------------------------------------------------------------------------------


def _name_record(folder: Path, name: str) -> Path:
    """Return where Snakemake keeps what it noted of a file: by its name in base 64, in folders where that is long."""
    text = urlsafe_b64encode(name.encode()).decode()
    parts = [text[k : k + _LONGEST_NAME] for k in range(0, len(text), _LONGEST_NAME)]
    return folder.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])


def _read_record(folder: Path, name: str) -> dict[str, Any]:
    return _read_json(_name_record(folder, name))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _list_sums(name: str, records: list[dict[str, Any]]) -> Iterator[str | None]:
    for record in records:
        found = (record.get("input_checksums") or {}).get(name)
        yield found if found is None or ":" in found else f"sha256:{found}"


def _is_recorded(name: str, content: bytes, records: list[dict[str, Any]]) -> bool:
    """Tell whether a job read this very content when it made its files."""
    sums = set(_list_sums(name, records))
    return len(content) <= _LARGEST_SUMMED and sums == {f"sha256:{hashlib.sha256(content).hexdigest()}"}


def _is_same(name: str, path: Path, records: list[dict[str, Any]]) -> bool:
    if path.is_dir() or path.stat().st_size > _LARGEST_SUMMED:
        return False
    return _is_recorded(name, path.read_bytes(), records)
