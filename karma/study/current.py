"""Whether a job reads what the sweep took the fingerprint of: settings, code, and files that settings name.

A sweep writes fingerprints when it starts, Snakemake compares their times with the outputs', and a job reads the
experiment's file itself, maybe hours later. Without more, tau .95 set while a sweep runs and put back before it ends
would leave pairs of .95 that pass as those of .1. So every job of a sweep compares when it starts (its kernel again,
when it reads the settings) and when it ends, and fails where they differ: its outputs go, and the same command makes
them again. A notebook run by hand is nobody's business but its reader's: where it differs from the last sweep's
fingerprint, that is forgotten, so that the next sweep makes its outputs anew.

Decision: a file is read again only where its size or time differ from what the sweep saw; digests of a model's weights
would cost a job minutes. Limit: a file rewritten in place with its old time is not noticed by a job, only by a sweep.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from karma.errors import InputError, KarmaError
from karma.files.reading import compute_file_digest
from karma.files.writing import remove_leftovers, save_if_changed
from karma.study.benchmark_settings import PACKAGED_ITEMS
from karma.study.experiment import Experiment, load_experiment
from karma.study.fingerprint import compute_stage_code, find_changed_code
from karma.study.progress import console
from karma.study.sections import PLACEMENT
from karma.study.stages import STAGES, Job, list_jobs
from karma.study.training_settings import REPORTS

Seen = list[int]  # size in bytes and time in nanoseconds; a folder's files one after the other


def save_fingerprints(experiment: Experiment) -> None:
    """Rewrite, where they changed, the fingerprints of settings and code that the sweep's rules depend on."""
    claim_outputs(experiment)
    for place, inside, _ in os.walk(experiment.outputs):
        if any(name.startswith(".") for name in inside):
            remove_leftovers(place)
    _date_now(experiment)
    folder, seen = experiment.outputs / ".sweep", dict[str, Seen]()
    for stage in STAGES.values():
        code = compute_stage_code(stage, experiment.root)
        save_if_changed(json.dumps(code, indent=1), folder / "code" / f"{stage.name}.json")
    for job in list_jobs(experiment):
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        seen |= {name: _look(experiment.root / name) for name in _list_files(job)}
        text = json.dumps(fingerprint_settings(job), indent=1, sort_keys=True)
        save_if_changed(text, folder / "settings" / f"{job.label}.json")
    save_if_changed(json.dumps(seen, indent=1, sort_keys=True), folder / "seen.json")


def claim_outputs(experiment: Experiment) -> None:
    """Write down whose a study's outputs are; two experiments with one name would overwrite each other's.

    Raises:
        InputError: they are another file's, which still has this name.
    """
    check_claim(experiment)
    save_if_changed(os.path.relpath(experiment.path, experiment.root), experiment.outputs / ".sweep" / "experiment")


def check_claim(experiment: Experiment) -> None:
    """Raise an InputError where a study's outputs are another file's, which still has this name; write nothing."""
    owner, root = experiment.outputs / ".sweep" / "experiment", experiment.root
    mine = os.path.relpath(experiment.path, root)
    before = owner.read_text("utf-8").strip() if owner.is_file() else mine
    if before != mine and (root / before).is_file():
        try:
            name = load_experiment(root / before).settings.name
        except InputError:
            name = ""
        if name == experiment.settings.name:
            raise InputError(
                f"{mine}: its name, '{name}', is that of {before}, whose files lie in outputs/{name}: give it another"
            )


def fingerprint_settings(job: Job) -> dict[str, Any]:
    """Return what a job reads: settings, models, and the contents of files that its settings name."""
    digests = {name: _digest(str(p := job.experiment.root / name), tuple(_look(p))) for name in _list_files(job)}
    return {**_read_settings(job), "files": digests}


def _read_settings(job: Job) -> dict[str, Any]:
    values = job.settings.as_dict()
    for section, keys in (("compute", PLACEMENT), ("training", REPORTS)):
        for key in keys:
            values.get(section, {}).pop(key, None)
    return {"settings": values, "models": job.models}


@contextmanager
def stay_current(job: Job) -> Iterator[None]:
    """Fail where a job of a sweep reads, at its start or at its end, anything but what the sweep's fingerprint says.

    Raises:
        KarmaError: what was changed; the job's outputs are not to be kept.
    """
    claim_outputs(job.experiment)
    if not _is_swept(job):
        if find_changes(job) + find_changed_code(job.stage, job.experiment.root, _load_code(job)):
            _fingerprint_of(job).unlink(missing_ok=True)
        yield
        return
    before = _fingerprint_of(job).read_text("utf-8") if _fingerprint_of(job).is_file() else ""
    _refuse(job, find_changes(job) + find_changed_code(job.stage, job.experiment.root, _load_code(job)))
    looks = {name: _look(job.experiment.root / name) for name in _list_files(job)}
    yield
    now = Job(load_experiment(job.experiment.path), job.stage, job.params)
    written = [name for name, look in looks.items() if _look(job.experiment.root / name) != look]
    changed = written + find_changes(now) + find_changed_code(job.stage, job.experiment.root, _load_code(job))
    if before and (not _fingerprint_of(job).is_file() or before != _fingerprint_of(job).read_text("utf-8")):
        changed.append("the fingerprint itself, by another sweep,")
    _refuse(job, changed)


def check_settings(job: Job) -> None:
    """Raise a KarmaError where a kernel of a sweep reads other settings than the sweep's fingerprint says."""
    if _is_swept(job):
        _refuse(job, find_changes(job))


def find_changes(job: Job) -> list[str]:
    """Return what of a job's settings, models and files differs from the sweep's fingerprint; empty if there is none.

    Example:
        >>> from karma.study.stages import find_job
        >>> find_changes(find_job(load_experiment("paper"), "03_binarization", {"strategy": "k_sim"}))
        []
    """
    path = _fingerprint_of(job)
    if not path.is_file():
        return []
    try:
        told = json.loads(path.read_text("utf-8"))
        before, digests = {"settings": told["settings"], "models": told["models"]}, dict(told["files"])
    except (ValueError, KeyError, TypeError):
        return [f"{path.name} (damaged)"]
    now = json.loads(json.dumps(_read_settings(job)))
    return [*_compare(before, now, ""), *_compare_files(job, digests)]


def _compare(before: Any, now: Any, key: str) -> Iterator[str]:
    """Yield each setting that differs: its dotted name, what it was, what it is."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            yield from _compare(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield f"{key.removeprefix('settings.')} ({before!r} -> {now!r})"


def _compare_files(job: Job, digests: dict[str, str]) -> Iterator[str]:
    try:
        seen = json.loads((job.experiment.outputs / ".sweep" / "seen.json").read_text("utf-8"))
    except (OSError, ValueError):
        seen = {}
    names = _list_files(job)
    yield from (name for name in digests if name not in names)
    for name in names:
        path = job.experiment.root / name
        look = _look(path)
        if name not in digests or (look != seen.get(name) and _digest(str(path), tuple(look)) != digests[name]):
            yield name


def _date_now(experiment: Experiment) -> None:
    """Give files of the study that are dated in the future the time of now: a job that reads one would never be done.

    Raises:
        InputError: one is another user's, and cannot be given a time.
    """
    now, folder = time.time_ns(), experiment.outputs / ".sweep"
    ours = [path for job in list_jobs(experiment) for path in job.products]
    ours += [path / ".snakemake_timestamp" for path in ours]
    ours += [*folder.glob("settings/*.json"), *folder.glob("code/*.json")]
    early = [path for path in ours if path.exists() and path.stat().st_mtime_ns > now]
    for path in early:
        told = f"{os.path.relpath(path, experiment.root)} is dated in the future ({_tell_date(path)})"
        try:
            os.utime(path, ns=(now, now))
        except OSError as error:
            raise InputError(
                f"{told}: every job that reads it would run each time; set its time with touch ({error.strerror})"
            ) from None
        if path == early[0]:
            more = f", and {len(early) - 1} more" if len(early) > 1 else ""
            console.print(f"note: {told}{more}: dated now, so that what is made of it runs once", soft_wrap=True)


def _tell_date(path: Path) -> str:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    except (ValueError, OverflowError):
        return "very far"


def _list_files(job: Job) -> list[str]:
    """Return the files and folders that a job's settings name and that are here."""
    values, root = job.settings.as_dict(), job.experiment.root
    places = (("benchmarks", "folder"), ("pool", "instructions"), ("scores", "table"), ("pool", "source"),
              ("self_play", "prompts"), ("pairs", "calibration"), ("training", "accelerate"), ("labels", "judgments"),
              ("labels", "scores"), ("labels", "columns"), ("scores", "columns"))  # fmt: skip
    named = [values.get(section, {}).get(key) for section, key in (*places, ("affinity", "quality"))]
    explicit = values.get("potential", {}).get("explicit")
    named += [source for source in explicit if source.endswith(".parquet")] if isinstance(explicit, dict) else []
    named += values.get("pool", {}).get("decontaminate", {}).get("benchmarks", [])
    if table := values.get("scores", {}).get("table"):
        named.append(str(Path(table).with_suffix(".columns.yaml")))  # what `karma read-scores` says of its columns
    named += [spec["path"] for spec in job.models.values()]
    for one in (*values.get("benchmarks", {}).get("origin", []), *values.get("benchmarks", {}).get("policy", [])):
        named += [one.get("include_path"), one.get("data")] if isinstance(one, dict) else []
    named += ["karma/data/demo/held_out.jsonl"] if named[0] == PACKAGED_ITEMS else []  # part of the packaged items
    return [name for name in dict.fromkeys(named) if name and (root / name).exists()]


def _look(path: Path) -> Seen:
    if path.is_dir():
        return [value for inside in sorted(path.rglob("*")) if inside.is_file() for value in _look(inside)]
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


@lru_cache(maxsize=256)
def _digest(path: str, look: tuple[int, ...]) -> str:
    """Return a file's digest; jobs of one sweep name the same files."""
    return compute_file_digest(path)


def _is_swept(job: Job) -> bool:
    return os.environ.get("KARMA_SWEEP") == str(job.experiment.outputs)


def _fingerprint_of(job: Job) -> Path:
    return job.experiment.outputs / ".sweep" / "settings" / f"{job.label}.json"


def _load_code(job: Job) -> dict[str, Any]:
    try:
        code: dict[str, Any] = json.loads(
            (job.experiment.outputs / ".sweep" / "code" / f"{job.stage.name}.json").read_text("utf-8")
        )
    except (OSError, ValueError):
        return {}
    return code


def _refuse(job: Job, changed: list[str]) -> None:
    if changed:
        some = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise KarmaError(
            f"{job.label}: {some} changed since this sweep began: its outputs would pass as those of before; "
            "let the sweep end, then the same command takes up what changed"
        )
