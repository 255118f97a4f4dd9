"""Fixtures that many tests share."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from xdist.scheduler import LoadFileScheduling

from karma.study.devices import list_gpus
from karma.study.forks import CLIENT, start_server

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: pytest's processes and the jobs they start share the cores
STUDY_LIMIT = 3600  # seconds; limits end what hangs, so they are many times what a slow, busy machine takes
CALL_LIMIT = 1200  # seconds, of one call of a command or one wait for another process


class _Together(LoadFileScheduling):
    """Keeps a file's tests in one of pytest's processes, and the files that share the smoke study in the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        shared = (
            "test_book.py",
            "test_course.py",
            "test_notebooks.py",
            "test_readme.py",
            "test_recorded.py",
            "test_sweep.py",
        )
        return "smoke" if file.endswith(shared) else file


LONG = ("notebooks", "readme", "sweep", "training_runs", "contributing", "forks", "training", "self_play", "figures",
        "report", "train_cli", "kinship_study", "evaluation", "coverage", "claims")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that no process is left with one at the end."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling:
    """Tell pytest-xdist how to share out the tests (its own groups do nothing under pytest 9.2)."""
    return _Together(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Start a fork server, of which commands, kernels and sweeps are forks, once for all of pytest's processes.

    It imports torch, transformers and TRL with the first that ask for it. Elsewhere than on Linux, and beside a GPU,
    they are plain processes.
    """
    if hasattr(config, "workerinput") or sys.platform != "linux" or list_gpus():
        return
    stack, environment = ExitStack(), project_environment(ROOT)
    config.add_cleanup(stack.close)
    with Path(os.devnull).open("w") as nowhere:
        stack.enter_context(start_server(environment, nowhere))
    os.environ["KARMA_FORKS"] = environment["KARMA_FORKS"]


def change_base(section: str, **values: object) -> Any:
    """Return a section of base.yaml's settings with some values changed, validated as an experiment's are."""
    from karma.study.experiment import load_base

    whole = getattr(load_base(), section)
    return type(whole).model_validate({**whole.model_dump(), **values})


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real samples; a test that needs it skips, saying so, where it is missing (never in CI)."""
    folder = Path(os.environ.get("KARMA_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        message = f"real samples are missing: set KARMA_REAL_DATA to their folder (looked in {folder})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


def copy_project(target: Path) -> Path:
    """Copy what a sweep needs, the package included, so that a test may edit it; its demo is the tests' study."""
    for name in ("karma", "notebooks", "params"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT / "tests" / "study.yaml", target / "params" / "demo.yaml")
    return target


def run_karma(project: Path, *args: str, timeout: float = CALL_LIMIT) -> subprocess.CompletedProcess[str]:
    """Run the `karma` command in a copied project, as a fork where there is a server: of the code as it is here."""
    return subprocess.run(
        [*CLIENT, "cli", *args], cwd=project, env=project_environment(project), text=True, capture_output=True,
        timeout=timeout, check=False,
    )  # fmt: skip


def run_plain(project: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the `karma` command of a copied project, the project's own code, in a process that imports for itself."""
    return subprocess.run(
        [sys.executable, "-m", "karma.cli", *args], cwd=project, env=plain_environment(project), text=True,
        capture_output=True, timeout=CALL_LIMIT, check=False,
    )  # fmt: skip


def project_environment(project: Path) -> dict[str, str]:
    """Return an environment in which `karma` is the copied project's package, offline."""
    return {
        **os.environ,
        "PYTHONPATH": str(project),
        "KARMA_ROOT": str(project),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }


def plain_environment(project: Path) -> dict[str, str]:
    """Return the same without the fork server, for what edits the copied package or needs processes of its own."""
    return {name: value for name, value in project_environment(project).items() if name != "KARMA_FORKS"}


def list_kept(folder: Path) -> dict[str, dict[str, Any]]:
    """Return key -> record of every answer kept below a folder, in shards and in journals of unfinished ones."""
    import pyarrow.parquet as pq

    found = {}
    for path in folder.rglob("*.jsonl"):
        with suppress(FileNotFoundError):  # sealed by now: its shard is read below
            lines = path.read_text("utf-8").splitlines(True)
            values = [json.loads(line)["value"] for line in lines if line.endswith("\n")]
            found |= {value["key"]: value["record"] for value in values if "key" in value}
    shards = [p for p in folder.rglob("*.parquet") if not any(part[0] == "." for part in p.relative_to(folder).parts)]
    for path in shards:  # those being written lie in hidden folders
        table = pq.read_table(path).to_pydict()
        found |= {key: json.loads(text) for key, text in zip(table["key"], table["record"], strict=True)}
    return found


@contextmanager
def start_child(work: Callable[..., object], *args: object) -> Iterator[BaseProcess]:
    """Give a process that does `work(*args)`, to be waited for; at the end of the block it is killed (-9).

    A fork of this one, which has imported everything; a new one where torch cannot fork after a backward pass.
    """
    how = "fork" if sys.platform == "linux" and not list_gpus() else "spawn"
    child = multiprocessing.get_context(how).Process(target=work, args=args)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def wait_until(happened: Callable[[], object]) -> None:
    """Wait for another process to do something; return, for the test to say what is missing, at the limit of a call."""
    deadline = time.monotonic() + CALL_LIMIT
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.005)


def is_at_work(process: psutil.Process) -> bool:
    """Tell whether a process has not ended; one that has and was not waited for (a zombie) is not at work."""
    with suppress(psutil.NoSuchProcess):  # it may end while it is looked at
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An OpenAI-compatible server at work, its key in TEST_KEY, which is asked again without waiting."""
    from karma.models import api
    from tests.chat_server import KEY, ChatServer

    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(api, "_backoff", lambda state: 0.01)
    with ChatServer() as running:
        yield running
        running.shutdown()


Karma = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copied project in which the smoke study has run, once for all tests that read its files."""
    project = copy_project(tmp_path_factory.mktemp("smoke"))
    result = run_karma(project, "run", "params/smoke.yaml", timeout=STUDY_LIMIT)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return project
