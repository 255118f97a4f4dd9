"""docs/pools.md is run: its files are written, its commands executed in order, what they print compared; its settings hold."""

import re
import shlex
from pathlib import Path

import yaml
from typer.testing import CliRunner

from karma.cli import app
from karma.study.experiment import load_experiment
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "pools.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```", PAGE, flags=re.M | re.S)


def test_every_example_runs_and_prints_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told, n_compared = "", 0
    for kind, name, text in BLOCKS:
        if name:
            Path(name).write_text(text)
        elif kind == "sh":
            _, *words = shlex.split(text)
            result = CliRunner().invoke(app, words, catch_exceptions=False)
            assert result.exit_code == 0, result.output
            told = result.output
        elif kind == "text":
            assert text.strip() in told.splitlines(), told
            n_compared += 1
    assert n_compared == 2
    assert len(Path("pairs/overlaps.csv").read_text().splitlines()) == 3


def test_the_settings_it_shows_are_settings(tmp_path, monkeypatch):
    shown = [text for kind, _, text in BLOCKS if kind == "yaml"]
    both = {key: value for text in shown for key, value in yaml.safe_load(text).items()}
    file = ROOT / "params" / "demo.yaml"
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"extends": str(file), "name": "mine", **both, "trained_on": {"sft": None, "dpo": None}})
    )
    settings = load_experiment(path).settings
    assert (
        settings.pool.decontaminate.benchmarks == ["ifeval", "mmlu_stem", "arc_easy"]
        and settings.pool.source == "generate"
    )
    assert settings.affinity.quality == "truth" and settings.strategies == ["k_sim", "affinity", "random"]
