"""A Slurm of one node on this machine, with two pretended GPUs, for tests: root, Debian's slurm-wlm and munge, no more."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

SETTINGS = Path("/etc/slurm")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sinfo", "sbatch", "squeue")
MARK = "ClusterName=karmatest"  # of a configuration that is ours to replace
START_LIMIT = 60  # seconds until the node is idle


def find_missing() -> str:
    """Say what a node cannot be made without; empty: nothing."""
    if os.geteuid() != 0:
        return "a Slurm node needs root"
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"a Slurm node needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    configuration = SETTINGS / "slurm.conf"
    if configuration.is_file() and MARK not in configuration.read_text():
        return f"{configuration} is this machine's own: it is not replaced"
    return ""


def write_settings(host: str, folder: Path) -> None:
    """Write /etc/slurm: the job's own srun looks nowhere else."""
    memory_mb = psutil.virtual_memory().total // 2**20 * 9 // 10
    node = f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory_mb} Gres=gpu:2 State=UNKNOWN"
    lines = [
        MARK, f"SlurmctldHost={host}(127.0.0.1)", "AuthType=auth/munge", "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none", "SelectType=select/cons_tres", "SelectTypeParameters=CR_Core_Memory", "SlurmUser=root",
        f"StateSaveLocation={folder}/ctld", f"SlurmdSpoolDir={folder}/slurmd", f"SlurmctldPidFile={folder}/ctld.pid",
        f"SlurmdPidFile={folder}/slurmd.pid", "ReturnToService=2", "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none", "SchedulerParameters=sched_interval=2", "MinJobAge=7200",
        "GresTypes=gpu", node, f"PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP",
    ]  # fmt: skip
    SETTINGS.mkdir(exist_ok=True)
    (SETTINGS / "slurm.conf").write_text("\n".join(lines) + "\n")
    (SETTINGS / "gres.conf").write_text("Name=gpu File=/dev/tty0\nName=gpu File=/dev/tty1\n")
    for name in ("ctld", "slurmd"):
        (folder / name).mkdir(parents=True, exist_ok=True)


@contextmanager
def start_node(folder: Path) -> Iterator[None]:
    """Give an idle node; at the end it is gone, with its configuration."""
    host = os.uname().nodename.split(".")[0]
    write_settings(host, folder)
    Path("/run/munge").mkdir(exist_ok=True)
    if not Path("/etc/munge/munge.key").is_file():
        subprocess.run(["mungekey", "--create"], check=True)
    munged = subprocess.Popen(["munged", "--foreground", "--force", "--socket", "/run/munge/munge.socket.2"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    servers = [munged]
    try:
        for name in ("slurmctld", "slurmd"):
            with (folder / f"{name}.log").open("w") as log:
                servers.append(subprocess.Popen([name, "-D"], stdout=log, stderr=subprocess.STDOUT))
        deadline, state = time.monotonic() + START_LIMIT, ""
        while "idle" not in state:
            if time.monotonic() > deadline:
                logs = "\n".join((folder / f"{name}.log").read_text()[-800:] for name in ("slurmctld", "slurmd"))
                raise RuntimeError(f"the Slurm node is not idle after {START_LIMIT} s ({state}):\n{logs}")
            time.sleep(0.5)
            state = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True).stdout
        yield
    finally:
        for server in reversed(servers):  # slurmd does not end on TERM while a job is at work
            server.kill()
            server.wait()
        shutil.rmtree(SETTINGS)
