"""docs/scores.md is run: its files are written, its commands executed in order, what they print compared."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from karma.cli import app
from karma.models.load import load_model, load_tokenizer
from karma.study.sections import ModelSpec
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "scores.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```", PAGE, flags=re.M | re.S)


def test_every_example_runs_and_prints_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("karma.figures.kinship_study.save_study_figures", lambda study, folder: [])
    models = ("own-7b", "own-13b", "their-chat", "tiny")
    rows = [{"source": "own", "instruction": f"Question {i}?", "completions": [
        {"model": m, "response": f"{m} on {i}"} for m in models]} for i in range(4)]  # fmt: skip
    Path("pool.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    models_here = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}).model_dump()}
    load_model(models_here, "tiny", "float32", "cpu").save_pretrained("model")
    load_tokenizer(models_here, "tiny").save_pretrained("model")
    told, n_compared = "", 0
    for kind, name, text in BLOCKS:
        if name:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text)
        elif kind == "sh":
            told = ""
            for line in text.splitlines():
                program, *words = shlex.split(line)
                result = CliRunner().invoke(app, words, catch_exceptions=False)
                assert program == "karma" and result.exit_code == 0, f"{line}\n{result.output}"
                told += result.output
        else:
            for line in text.splitlines():
                assert line in told.splitlines(), f"not printed: {line}\n{told}"
                n_compared += 1
    assert n_compared >= 12


@pytest.mark.parametrize("kind", ["csv", "yaml", "json", "sh", "text"])
def test_the_page_has_examples_of_each_kind(kind):
    assert any(block[0] == kind for block in BLOCKS)
