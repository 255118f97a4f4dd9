"""A sweep beyond one machine: what jobs ask for, what Snakemake is given, what is cancelled. No scheduler is needed."""

import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.study import cluster
from karma.study.cluster import build_options, cancel_survivors, find_remote, find_resources, has_accounting, name_jobs
from karma.study.devices import hold_devices, list_gpus
from karma.study.experiment import load_experiment
from karma.study.progress import explain_failure
from karma.study.stages import find_job
from tests.conftest import ROOT

RUN = {"policy": "smollm2-135m", "strategy": "k_score", "method": "dpo", "seed": "0"}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Write an experiment that extends another one; return it loaded."""

    def write(extends="demo", **values):
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump({"extends": extends, "name": "own", **values}))
        return load_experiment(path)

    return write


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a shell script on the path under a program's name."""

    def write(name, text):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
        return path.parent

    return write


def test_what_is_not_said_is_estimated_from_the_largest_model(study):
    """By hand: 8 GiB + 3B x 16 GiB and 1 h + 3B x 4 h to train whole weights; 6 GiB and 2 h a billion to ask them."""
    experiment = study("paper")
    policies = experiment.settings.policies
    run = {**RUN, "policy": next(name for name in policies if "3b" in name.lower())}
    trained = find_resources(find_job(experiment, "04_alignment_training", run))
    whole = not experiment.settings.training.lora
    assert trained["mem_mb"] == (8 + 3 * (16 if whole else 6)) * 1024 and trained["runtime"] == (1 + 3 * 4) * 60
    asked = find_resources(find_job(experiment, "05_policy_evaluation", run))
    assert asked["mem_mb"] == (8 + 3 * 6) * 1024 and asked["runtime"] == (1 + 3 * 2) * 60
    assert asked["gpu"] == experiment.settings.compute.gpus_per_job and "slurm_partition" not in asked


def test_a_perturbed_copy_is_as_large_as_its_father_and_lora_needs_no_optimizer_of_all_weights(study):
    experiment = study()
    small = find_resources(find_job(experiment, "04_alignment_training", RUN))
    assert small["mem_mb"] == round((8 + 0.135 * 6) * 1024)
    perturbed = next(n for n in experiment.settings.origin_models if experiment.settings.models[n].perturbed)
    assert (
        find_resources(find_job(experiment, "01_origin_evaluation", {"origin_model": perturbed}))["mem_mb"]
        == small["mem_mb"]
    )


def test_what_a_stage_is_given_replaces_each_estimate_alone(study):
    own = {
        "04_alignment_training": {"memory_gib": 64, "gpus": 2, "partition": "a100"},
        "03_binarization": {"hours": 0.5},
    }
    experiment = study(compute={"resources": own, "gpus_per_job": 1})
    training = find_job(experiment, "04_alignment_training", RUN)
    assert find_resources(training) == {
        "gpu": 2,
        "mem_mb": 65536,
        "runtime": round(60 * (1 + 4 * 0.135)),
        "slurm_partition": "a100",
    }
    assert find_resources(find_job(experiment, "03_binarization", {"strategy": "k_score"})) == {
        "gpu": 0,
        "mem_mb": 8192,
        "runtime": 30,
    }


def test_resources_rerun_nothing(study):
    from karma.study.current import fingerprint_settings

    plain = study()
    moved = study(
        compute={
            "resources": {"04_alignment_training": {"memory_gib": 64}},
            "engine": "ray",
            "shards": 4,
            "address": "auto",
        }
    )
    other = study(compute={"threads": 2})
    one, two, three = (fingerprint_settings(find_job(e, "04_alignment_training", RUN)) for e in (plain, moved, other))
    assert one == two and one != three


@pytest.mark.parametrize("resources, words", [
    ({"04_training": {"hours": 1}}, "'04_training' is no stage"), ({"pool": {"memory_gib": 0}}, "greater than 0"),
    ({"pool": {"gpu": 1}}, "unknown setting"), ({"pool": {"partition": "a b;rm"}}, "match pattern"),
    ({"pool": {"hours": float("inf")}}, "finite"), ({"pool": {"gpus": -1}}, "greater than or equal to 0"),
])  # fmt: skip
def test_a_wrong_resource_is_refused_before_anything_runs(study, tmp_path, resources, words):
    with pytest.raises(InputError, match=words) as caught:
        study(compute={"resources": resources})
        cluster.check_resources(study(compute={"resources": resources}).settings.compute.resources)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments, words", [
    (["--executor", "nosuch"], "no such plugin here: pip install snakemake-executor-plugin-nosuch"),
    (["--executor", "a; b"], "no such plugin"), (["--executor", "local"], "give --cores N"),
    (["--jobs", "3"], "with --executor or --profile"), (["--profile", "nowhere"], "there is no config.yaml"),
    (["--jobs", "0"], "should be greater than"),
])  # fmt: skip
def test_a_wrong_cluster_is_one_line(arguments, words):
    result = CliRunner().invoke(app, ["run", str(ROOT / "params/smoke.yaml"), *arguments])
    text = result.stderr or str(result.exception)
    assert words in " ".join(text.replace("│", " ").split()) and (
        result.exit_code == 2 or isinstance(result.exception, InputError)
    )


def test_slurm_without_sbatch_or_plugin_says_what_to_do(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'karma-kit\[cluster\]'"):
        find_remote("slurm", None, None)
    monkeypatch.setattr(cluster, "find_spec", lambda name: True)
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="there is no sbatch here"):
        find_remote("slurm", None, None)


def test_a_profile_says_the_executor_and_an_option_overrides_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: True)
    (tmp_path / "config.yaml").write_text("executor: lsf\njobs: 7\n")
    assert (
        find_remote(None, tmp_path, None).executor == "lsf"
        and find_remote("htcondor", tmp_path, None).executor == "htcondor"
    )
    options = build_options(load_experiment("smoke"), find_remote(None, tmp_path, None))
    assert options == ["--executor", "lsf", "--profile", str(tmp_path)]
    assert build_options(load_experiment("smoke"), find_remote(None, tmp_path, 3))[-2:] == ["--jobs", "3"]
    (tmp_path / "config.yaml").write_text("[a]")
    with pytest.raises(InputError, match="must be a map"):
        find_remote(None, tmp_path, None)


def test_slurm_is_asked_by_squeue_where_accounting_does_not_answer(program, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: True)
    program("sbatch", "exit 0")
    program("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    experiment = load_experiment("smoke")
    assert not has_accounting()
    options = build_options(experiment, find_remote("slurm", None, 2))
    assert (
        options[options.index("--slurm-status-command") + 1] == "squeue" and options[options.index("--jobs") + 1] == "2"
    )
    assert options[options.index("--slurm-jobname-prefix") + 1] == name_jobs(experiment)
    program("sacct", "exit 0")
    assert has_accounting() and "--slurm-status-command" not in build_options(
        experiment, find_remote("slurm", None, None)
    )


def test_only_this_studys_jobs_are_cancelled(program, tmp_path):
    experiment = SimpleNamespace(outputs=tmp_path / "outputs" / "mine")
    other = SimpleNamespace(outputs=tmp_path / "outputs" / "other")
    assert name_jobs(experiment) != name_jobs(other)
    program(
        "squeue",
        f"echo '11 {name_jobs(experiment)}_a'; echo '12 {name_jobs(other)}_b'; echo '13 train'; echo '14_[1-2] {name_jobs(experiment)}_c'",
    )
    program("scancel", f'echo "$@" > {tmp_path}/cancelled')
    assert cancel_survivors(experiment) == 2
    assert (tmp_path / "cancelled").read_text().split() == ["11", "14_[1-2]"]


def test_devices_are_the_schedulers(monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda self: True)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([1, 2, 3, 4]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert list_gpus() == ["0", "1", "2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert list_gpus() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert list_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("KARMA_SCHEDULED", "slurm")
    with hold_devices(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"


def test_a_local_job_holds_devices_that_it_may_use(monkeypatch, tmp_path):
    monkeypatch.setattr("karma.study.devices.list_gpus", lambda: ["2", "3"])
    monkeypatch.setenv("KARMA_CACHE", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.delenv("KARMA_SCHEDULED", raising=False)
    with hold_devices(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
        assert len(list(tmp_path.glob("cuda-*-2.lock"))) == 1


def test_a_job_that_never_began_is_explained_by_what_the_executor_told_not_by_an_old_log(tmp_path):
    log = tmp_path / "pool.log"
    state = {
        "label": "pool",
        "log": log,
        "started": time.time(),
        "told": "SLURM-job '3' failed, SLURM status is: 'OUT_OF_MEMORY'. \nmore",
    }
    assert "OUT_OF_MEMORY'." in explain_failure(state).splitlines()[0]
    log.write_text("karma: of another day\n")
    os.utime(log, (1, 1))
    assert "another day" not in explain_failure(state)
    log.write_text("karma: a reason\n")
    assert "a reason" in explain_failure(state) and "OUT_OF" not in explain_failure(state)
