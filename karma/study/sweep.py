"""Start Snakemake, and clean up after a killed sweep.

Snakemake runs as a child in the experiment's folder. Before it starts, survivors of a killed sweep are ended (every
process of a sweep carries $KARMA_SWEEP, every job on a cluster its name), and the fingerprints of settings and code
that rules depend on are rewritten where they changed. This command's own lock, held by a live process or by nobody,
stands in for Snakemake's. Ctrl-C, SIGTERM and SIGHUP end the whole sweep, not this command alone.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from karma.errors import InterruptedSweep, KarmaError
from karma.study.cluster import Remote, build_options, cancel_survivors
from karma.study.current import save_fingerprints
from karma.study.devices import list_gpus
from karma.study.experiment import Experiment
from karma.study.forks import start_server
from karma.study.progress import (
    console,
    explain_failure,
    find_last_line,
    load_events,
    read_events,
    show_progress,
    show_where,
)
from karma.study.times import average_stages

HERE = Path(__file__).parent


def run_sweep(
    experiment: Experiment, cores: int | None = None, until: str | None = None, remote: Remote | None = None
) -> None:
    """Run every job that is missing or out of date; independent jobs go on when one fails.

    Args:
        experiment: what to run.
        cores: CPU cores to use; None takes all.
        until: a stage's name; nothing after it runs.
        remote: where jobs run; None: on this machine.

    Raises:
        KarmaError: another sweep of this experiment is at work, or jobs failed (their logs are named).
        InterruptedSweep: it was stopped; nothing of it is at work any more.
    """
    with _lock(experiment), _stopped_by_signals():
        _end_survivors(experiment)
        save_fingerprints(experiment)
        events = experiment.outputs / ".sweep" / "events.jsonl"
        events.unlink(missing_ok=True)
        known = average_stages(experiment)
        try:
            child = _start(experiment, events, cores, until, remote)
            show_progress(experiment, events, child, known)
        except BaseException as error:
            _end_survivors(experiment)
            if isinstance(error, KeyboardInterrupt):
                raise InterruptedSweep("interrupted; the same command goes on from here") from None
            raise
        if child.returncode:  # Snakemake itself may have been killed, and its jobs not
            _end_survivors(experiment)
    states = read_events(experiment, events)
    failed = [state for state in states.values() if state["status"] == "failed"]
    if failed:
        lines = "\n".join(f"  {explain_failure(state)}" for state in failed)
        raise KarmaError(f"{len(failed)} of {len(states)} jobs failed; the same command repeats only these\n{lines}")
    if child.returncode:
        raise KarmaError(f"the sweep stopped: {_first_error(experiment, events)}")
    done = f"{len(states)} jobs done" if states else "everything is up to date"
    console.print(f"{experiment.settings.name}: {done}")
    show_where(experiment)


def is_running(experiment: Experiment) -> bool:
    """Tell whether a sweep of this experiment is at work."""
    path = experiment.outputs / ".sweep" / "lock"
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def _lock(experiment: Experiment) -> Iterator[None]:
    folder = experiment.outputs / ".sweep"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            (folder / "pid").write_text(str(os.getpid()))
            yield
    except Timeout:
        pid = (folder / "pid").read_text("utf-8", "replace") if (folder / "pid").is_file() else "?"
        pid = pid if pid.isdecimal() else "?"
        raise KarmaError(
            f"another `karma run` of {experiment.settings.name} is at work (pid {pid}): wait, or end it"
        ) from None


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Turn SIGTERM (of a batch system) and SIGHUP (of a closed terminal) into an InterruptedSweep, once."""

    def stop(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # what is being ended is ended once
        name = signal.Signals(number).name
        raise InterruptedSweep(f"ended by {name}; the same command goes on from here", exit_code=128 + number)

    wanted = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in wanted}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup's
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_survivors(experiment: Experiment) -> None:
    """End everything of a sweep of this experiment: Snakemake, its jobs, their kernels, its jobs on a cluster."""
    cancel_survivors(experiment)
    survivors = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("KARMA_SWEEP") == str(experiment.outputs):
                process.kill()
                survivors.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    psutil.wait_procs(survivors, timeout=10)


def _start(
    experiment: Experiment, events: Path, cores: int | None, until: str | None, remote: Remote | None, *options: str
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ, "KARMA_EVENTS": str(events), "KARMA_EXPERIMENT": str(experiment.path),
        "KARMA_ROOT": str(experiment.root),
        "PYTHONPATH": _join_path(str(HERE / "plugins"), os.environ.get("PYTHONPATH")),
        "PATH": _join_path(str(Path(sys.executable).parent), os.environ.get("PATH")),
        "KARMA_UNTIL": until or "",
    }  # fmt: skip
    if "--dry-run" not in options:
        environment["KARMA_SWEEP"] = str(experiment.outputs)
    if remote:  # its jobs reach no server here, and get their devices from the scheduler
        environment.pop("KARMA_FORKS", None)
        environment["KARMA_SCHEDULED"] = remote.executor
    here = ["--cores", str(cores or "all"), "--resources", f"gpu={len(list_gpus())}"]
    place = build_options(experiment, remote) if remote else here
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(HERE / "Snakefile"),
        "--directory", str(experiment.outputs),
        *place, "--nolock", "--rerun-incomplete", "--keep-going", "--logger", "karma",
        "--rerun-triggers", "mtime", "input", *options,
    ]  # fmt: skip
    output = (experiment.outputs / ".sweep" / "snakemake.log").open("w")
    with ExitStack() as stack:
        alive = []
        wanted = "--dry-run" not in options and "KARMA_FORKS" not in os.environ  # who has a server shares it
        if wanted and sys.platform == "linux" and not remote and not list_gpus():
            alive = [stack.enter_context(start_server(environment, output))]  # it ends with Snakemake
        return subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=alive
        )


def _join_path(*parts: str | None) -> str:
    return os.pathsep.join(part for part in parts if part)


def _first_error(experiment: Experiment, events: Path) -> str:
    messages = [e["message"] for e in load_events(events) if e.get("level") == "ERROR" and e.get("message")]
    return (
        " ".join(messages[0].split()) if messages else find_last_line(experiment.outputs / ".sweep" / "snakemake.log")
    )
