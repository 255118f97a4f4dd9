"""The fork server of a sweep: what a fork is, how it ends, and that nothing stays behind."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from karma.files.reading import load_json
from karma.study.forks import CLIENT, start_server
from tests.conftest import CALL_LIMIT, ROOT, copy_project, is_at_work, project_environment, run_plain, wait_until
from tests.test_sweep import add_cell

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the fork server is for Linux: sweeps elsewhere start plain processes"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("forks"))


@pytest.fixture(scope="module")
def server(project):
    environment = project_environment(project)
    with (project / "server.log").open("w") as log, start_server(environment, log):
        yield environment


def run_client(environment: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLIENT, "cli", *args], env=environment, cwd=environment["KARMA_ROOT"], text=True,
                          capture_output=True, timeout=CALL_LIMIT, check=False)  # fmt: skip


def find_servers(address: str) -> list[psutil.Process]:
    """Return the server of an address and its forks, which have its command line."""
    found = (p for p in psutil.process_iter(["cmdline", "status"]) if address in (p.info["cmdline"] or []))
    return [p for p in found if p.info["status"] != psutil.STATUS_ZOMBIE]


def test_a_fork_prints_and_ends_as_the_command_does(server, project):
    forked, plain = run_client(server, "models", "params/smoke.yaml"), run_plain(project, "models", "params/smoke.yaml")
    assert forked.returncode == 0 and forked.stdout == plain.stdout and "tiny-c" in forked.stdout
    wrong = run_client(server, "models", "params/none.yaml")
    assert (wrong.returncode, wrong.stderr) == (2, run_plain(project, "models", "params/none.yaml").stderr)


def test_a_job_and_its_kernel_are_forks_and_their_core_seconds_are_counted(server, project):
    source = (
        "import ipykernel, json, sys, time\nassert 'trl.trainer.dpo_trainer' in sys.modules\nwhile time.process_time() < 5: pass\n"
        "place = json.load(open(ipykernel.get_connection_file()))\n"
        "assert place['transport'] == 'ipc', 'a port that another kernel may have taken, too'"
    )
    before = add_cell(project, "02_kinship_analysis", source)
    (project / "params" / "table.yaml").write_text(
        "name: table\nmodels: {m: {random: {hidden_size: 8, layers: 1, heads: 1}}}\npolicies: [m]\nscores: {table: paper}\n"
    )
    result = run_client(server, "notebook", "02_kinship_analysis", "params/table.yaml")
    (project / "notebooks" / "02_kinship_analysis.ipynb").write_text(before)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    record = load_json(project / "outputs/table/kinship/provenance.json")["02_kinship_analysis"]
    assert record["core_seconds"] > 5  # the kernel's; the job itself takes one or two
    executed = (project / "outputs/table/notebooks/02_kinship_analysis.ipynb").read_text()
    assert '"image/png"' in executed, "figures are shown in the notebook, as in a plain kernel"


def test_a_kernel_that_is_killed_is_reported_as_such(server, project):
    before = add_cell(project, "02_kinship_analysis", "import os\nos.kill(os.getpid(), 9)")
    result = run_client(server, "notebook", "02_kinship_analysis", "params/table.yaml")
    (project / "notebooks" / "02_kinship_analysis.ipynb").write_text(before)
    assert result.returncode == 1
    assert "the kernel died: out of memory, or killed" in result.stderr and "Traceback" not in result.stderr


def test_a_killed_asker_takes_its_job_and_its_kernel_with_it(server, project, tmp_path):
    source = f"import os, pathlib, time\npathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\ntime.sleep({10 * CALL_LIMIT})"
    before = add_cell(project, "02_kinship_analysis", source)
    command = [*CLIENT, "cli", "notebook", "02_kinship_analysis", "params/table.yaml"]
    asker = subprocess.Popen(command, env=server, cwd=project, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(tmp_path.iterdir()) or asker.poll() is not None)
    kernel = psutil.Process(int(next(tmp_path.iterdir()).name))
    os.kill(asker.pid, signal.SIGKILL)
    asker.wait()
    (project / "notebooks" / "02_kinship_analysis.ipynb").write_text(before)
    wait_until(lambda: not is_at_work(kernel))
    assert not is_at_work(kernel)
    wait_until(lambda: len(find_servers(server["KARMA_FORKS"])) == 1)
    assert len(find_servers(server["KARMA_FORKS"])) == 1, "the server alone is left: no job, no kernel"


def test_without_a_server_the_client_becomes_the_command(server):
    result = run_client({**server, "KARMA_FORKS": "/nowhere/forks"}, "--help")
    assert result.returncode == 0 and "karma run params/demo.yaml" in result.stdout


def test_a_server_that_ends_too_early_is_said(server, tmp_path):
    address = str(tmp_path / "forks")
    with socket.socket(socket.AF_UNIX) as fake:
        fake.bind(address)
        fake.listen()
        client = subprocess.Popen(
            [*CLIENT, "cli", "--help"], env={**server, "KARMA_FORKS": address}, stderr=subprocess.PIPE, text=True
        )
        fake.accept()[0].close()
        _, said = client.communicate(timeout=CALL_LIMIT)
    assert client.returncode == 1 and said.startswith("karma: the sweep's fork server ended before this job")
    assert "Traceback" not in said


def test_the_server_ends_with_the_sweep_and_leaves_nothing(tmp_path):
    environment = project_environment(ROOT)
    with (tmp_path / "server.log").open("w") as log, start_server(environment, log):
        address = environment["KARMA_FORKS"]
        wait_until(lambda: Path(address).exists())
        assert len(find_servers(address)) == 1
    wait_until(lambda: not find_servers(address))
    assert not find_servers(address) and not Path(address).parent.exists()
