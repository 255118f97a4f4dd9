"""`training.report_to`: TRL tells a tracker how a training goes; no number, identity or file of the run depends on it."""

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec

import pytest

from karma.errors import InputError
from karma.files.reading import load_json
from karma.models.load import compute_weights_digest
from karma.study.current import fingerprint_settings
from karma.study.experiment import load_experiment
from karma.study.sections import ModelSpec
from karma.study.stages import find_job
from karma.training.checks import check_pairs
from tests.conftest import CALL_LIMIT
from tests.test_select_cli import pair_folder, policy
from tests.test_train_cli import SMALL
from tests.test_training import describe_tiny, make_pairs, settings
from tests.test_turns import tokenizer

assert pair_folder and policy and tokenizer
SECRETS = {"WANDB_API_KEY": "wandb-secret-4711", "HF_TOKEN": "hf_secret4711", "COMET_API_KEY": "comet-secret-4711"}
STAND_IN = '''
"""A tracker of the shape that transformers' TrackioCallback calls: it writes down what it is told."""
import json, os
from contextvars import ContextVar
from types import SimpleNamespace
from pathlib import Path
context_vars = SimpleNamespace(current_space_id=ContextVar("space", default=None), current_run=ContextVar("run", default=None))
class _Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)
config, __version__ = _Config(), "0.43.0"
def _write(**entry):
    with (Path(os.environ["TRACKIO_DIR"]) / "told.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\\n")
def init(project, name=None, **how):
    _write(project=project, name=name, space=how.get("space_id"))
def log(values, **_):
    _write(values=values)
def finish():
    _write(end=True)
'''


def run(pairs, policy, out, tmp_path, *options, path=""):
    """`karma train` in a process of its own, offline."""
    environment = {**os.environ, **SECRETS, "HF_HUB_OFFLINE": "1", "TRACKIO_DIR": str(tmp_path / "told"),
                   "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")]))}  # fmt: skip
    environment.pop("KARMA_FORKS", None)
    words = ["--pairs", pairs, "--policy", policy, "--method", "dpo", "--dtype", "float32", "--out", out]
    small = [part for setting in (*SMALL, *options) for part in ("-p", setting)]
    return subprocess.run([sys.executable, "-m", "karma.cli", "train", *map(str, words), *small], env=environment,
                          text=True, capture_output=True, timeout=CALL_LIMIT, check=False)  # fmt: skip


@pytest.mark.parametrize("tracker", ["stand-in", pytest.param("trackio", marks=pytest.mark.heavy)])
def test_a_tracker_is_told_each_update_and_the_run_is_the_same(pair_folder, policy, tmp_path, tracker):
    if tracker == "trackio" and find_spec("trackio") is None:
        pytest.skip("trackio is missing: `make test-all` installs it")
    (tmp_path / "told").mkdir()
    path = ""
    if tracker == "stand-in":
        (tmp_path / "site" / "trackio").mkdir(parents=True)
        (tmp_path / "site" / "trackio" / "__init__.py").write_text(STAND_IN)
        path = str(tmp_path / "site")
    done = run(pair_folder, policy, tmp_path / "run", tmp_path, "report_to=trackio", path=path)
    assert done.returncode == 0, done.stderr
    record = load_json(tmp_path / "run" / "training.json")
    losses = [entry["loss"] for entry in record["history"]]
    if tracker == "stand-in":
        told = [json.loads(line) for line in (tmp_path / "told" / "told.jsonl").read_text().splitlines()]
        assert told[0] == {"project": "karma", "name": f"tiny-dpo-seed0-{record['identity'][:8]}", "space": None}
        assert [one["values"]["train/loss"] for one in told if "train/loss" in one.get("values", {})] == losses
    else:
        (file,) = [path for path in (tmp_path / "told").rglob("*.db") if path.stem.startswith("karma")]
        with sqlite3.connect(file) as store:
            assert store.execute("select count(*) from metrics").fetchone()[0] >= len(losses)
    plain = run(pair_folder, policy, tmp_path / "plain", tmp_path)
    assert plain.returncode == 0, plain.stderr
    other = load_json(tmp_path / "plain" / "training.json")
    assert (other["identity"], other["history"]) == (record["identity"], record["history"])
    weights = [
        compute_weights_digest({"m": ModelSpec(path=str(tmp_path / name / "model")).model_dump()}, "m")
        for name in ("run", "plain")
    ]
    assert weights[0] == weights[1]
    again = run(pair_folder, policy, tmp_path / "run", tmp_path)
    assert "holds this very training: nothing to do" in again.stdout
    for file in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
        assert not any(secret.encode() in file.read_bytes() for secret in SECRETS.values()), file.name


def test_what_is_not_installed_is_refused_before_anything_loads(tokenizer, monkeypatch):
    monkeypatch.setattr("karma.training.trainers.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"^training\.report_to: wandb is not installed: run `pip install wandb`, or set"
    ):
        check_pairs(make_pairs(4), tokenizer, "dpo", settings(report_to="wandb"))
    assert check_pairs(make_pairs(4), tokenizer, "dpo", settings())["pairs"] == 4


def test_it_is_no_part_of_an_identity_or_of_what_reruns_a_stage(tmp_path):
    runs = [describe_tiny(make_pairs(4), "dpo", settings(report_to=name), tmp_path) for name in ("none", "trackio")]
    assert runs[0].identity == runs[1].identity and runs[0].settings != runs[1].settings
    prints = []
    for name in ("none", "trackio"):
        (tmp_path / "own.yaml").write_text(f"extends: smoke\nname: x\ntraining: {{report_to: {name}}}\n")
        experiment = load_experiment(str(tmp_path / "own.yaml"))
        params = {"policy": experiment.settings.policies[0], "strategy": experiment.settings.strategies[0],
                  "method": experiment.settings.methods[0], "seed": "0"}  # fmt: skip
        prints.append(fingerprint_settings(find_job(experiment, "04_alignment_training", params)))
    assert prints[0] == prints[1]


@pytest.mark.parametrize("value", ["all", "http://key:secret@host", "tensorboard"])
def test_only_names_of_trackers_are_taken(value):
    with pytest.raises(ValueError, match="report_to"):
        settings(report_to=value)
