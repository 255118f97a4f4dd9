"""The smoke study on a real slurmd with two pretended GPUs: side by side, killed, resumed, equal to the local run."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from karma.study.cluster import name_jobs
from tests.cluster.node import find_missing, start_node
from tests.conftest import STUDY_LIMIT, copy_project, plain_environment, run_karma, wait_until

pytestmark = pytest.mark.heavy
RESOURCES = {"annotation": {"memory_gib": 6, "hours": 0.5, "gpus": 2, "partition": "main"}}
PROFILE = {"executor": "slurm", "jobs": 4, "latency-wait": 30, "slurm-init-seconds-before-status-checks": 2}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    if missing := find_missing():
        pytest.skip(missing)
    with start_node(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture
def project(tmp_path) -> Path:
    """The smoke study as an experiment of a cluster: a GPU a job, two a training; and a profile that looks often."""
    project = copy_project(tmp_path / "project")
    study = {
        "extends": "smoke",
        "name": "cluster",
        "compute": {"gpus_per_job": 1, "device": "cpu", "resources": RESOURCES},
    }
    (project / "params" / "cluster.yaml").write_text(yaml.safe_dump(study))
    (project / "profile").mkdir()
    (project / "profile" / "config.yaml").write_text(yaml.safe_dump(PROFILE))
    return project


def list_queue(*options: str) -> list[list[str]]:
    asked = subprocess.run(
        ["squeue", "--me", "--noheader", *options, "--format", "%i %T %j"], capture_output=True, text=True
    )
    return [line.split(None, 2) for line in asked.stdout.splitlines()]


def read_starts(project: Path) -> list[tuple[float, float]]:
    """Return the time at which each finished job began and ended, by its own provenance."""
    from datetime import datetime

    spans = []
    for path in (project / "outputs" / "cluster").rglob("provenance.json"):
        for record in json.loads(path.read_text()).values():
            end = datetime.fromisoformat(record["finished_at"]).timestamp()
            spans.append((end - record["seconds"], end))
    return spans


def collect(project: Path, study: str) -> dict[str, object]:
    """Return what must be equal: the bytes of pairs, and the scores and training losses without what a clock says."""
    folder, found = project / "outputs" / study, {}
    for path in sorted(folder.glob("pairs/*/pairs.parquet")):
        found[str(path.relative_to(folder))] = path.read_bytes()
    for path in sorted(folder.rglob("scores.json")):
        found[str(path.relative_to(folder))] = json.loads(path.read_text())["benchmarks"]
    for path in sorted(folder.rglob("training.json")):
        found[str(path.relative_to(folder))] = [step.get("loss") for step in json.loads(path.read_text())["history"]]
    return found


def test_the_smoke_study_on_slurm_killed_and_resumed_equals_the_local_one(node, project):
    command = [sys.executable, "-m", "karma.cli", "run", "params/cluster.yaml", "--profile", "profile"]
    environment = plain_environment(project)
    most, queue, scores = 0, [], project / "outputs" / "cluster"
    sweep = subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def in_the_middle() -> bool:
        nonlocal most, queue
        queue = list_queue()
        most = max(most, sum(state == "RUNNING" for _, state, _ in queue))
        pairs_made = list(scores.glob("pairs/*/pairs.parquet"))
        return sweep.poll() is not None or (
            most >= 2 and pairs_made and any(state == "RUNNING" for _, state, _ in queue)
        )

    wait_until(in_the_middle)
    assert sweep.poll() is None, (scores / ".sweep" / "snakemake.log").read_text()[-3000:]
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    prefix = name_jobs_of(scores)
    left = [number for number, _, name in list_queue() if name.startswith(prefix)]
    assert left, "no job of the killed sweep was left in the queue"

    result = subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True, timeout=STUDY_LIMIT)
    log = (scores / ".sweep" / "snakemake.log").read_text()
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:] + log[-6000:]
    ended = {number: state for number, state, _ in list_queue("--states", "all")}
    assert {ended[number] for number in left} <= {"CANCELLED", "COMPLETED"} and "CANCELLED" in ended.values(), ended
    assert [row for row in list_queue() if row[2].startswith(prefix)] == []
    spans = read_starts(project)
    assert most >= 2 and any(a < c < b for a, b in spans for c, _ in spans), "no two jobs were side by side"

    devices = set()
    for path in scores.rglob("provenance.json"):
        for stage, record in json.loads(path.read_text()).items():
            devices.add((stage, record["visible_devices"]))
    assert ("annotation", "0,1") in devices and ("03_binarization", None) in devices
    assert {seen for stage, seen in devices if stage == "01_origin_evaluation"} <= {"0", "1"}

    again = subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True, timeout=STUDY_LIMIT)
    assert again.returncode == 0 and "everything is up to date" in again.stdout

    local = run_karma(project, "run", "params/smoke.yaml", timeout=STUDY_LIMIT)
    assert local.returncode == 0, local.stderr[-2000:]
    there, here = collect(project, "cluster"), collect(project, "smoke")
    assert len(here) > 20 and there == here


def name_jobs_of(outputs: Path) -> str:
    from types import SimpleNamespace

    return name_jobs(SimpleNamespace(outputs=outputs))  # type: ignore[arg-type]


def test_a_job_that_fails_on_slurm_is_told_in_a_line(node, project):
    study = {
        "extends": "smoke",
        "name": "cluster",
        "compute": {"device": "cpu", "resources": {"pool": {"memory_gib": 10**6}}},
    }
    (project / "params" / "cluster.yaml").write_text(yaml.safe_dump(study))
    command = [
        sys.executable,
        "-m",
        "karma.cli",
        "run",
        "params/cluster.yaml",
        "--profile",
        "profile",
        "--until",
        "pool",
    ]
    result = subprocess.run(
        command, cwd=project, env=plain_environment(project), text=True, capture_output=True, timeout=300
    )
    assert result.returncode == 1
    assert re.search(r"emory|not available|submit", result.stderr), result.stderr
    assert "Traceback" not in result.stderr
