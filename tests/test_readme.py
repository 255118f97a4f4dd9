"""The README: every command and example runs, every path exists, no value is said twice differently."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from karma.study.experiment import load_base, load_experiment
from tests.conftest import ROOT, plain_environment, project_environment, run_karma

README = (ROOT / "README.md").read_text()


def fenced(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README, flags=re.M | re.S)


COMMANDS = [line for block in fenced("sh") for line in block.splitlines() if line.strip()]
MODELS = ("gpt-4", "bard", "llama-2-7b-chat", "alpaca-7b")


@pytest.fixture
def project(smoke) -> Path:
    """The smoke project with what the README's reader has: a pool, recorded answers and responses of their own."""
    items = (smoke / "karma/data/demo/arc_easy.jsonl").read_text().splitlines()
    answers = [{"item_id": json.loads(item)["id"], "answer": "The answer is (A)."} for item in items]
    (smoke / "my_answers.jsonl").write_text("\n".join(json.dumps(answer) for answer in answers))
    rows = [{"source": "mine", "instruction": f"Name {i} fruits.", "completions": [{"model": m, "response": f"{m} names {i}"} for m in MODELS]}
            for i in range(10)]  # fmt: skip
    (smoke / "my_pool.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name in "ab":
        rows = [{"prompt": f"Name {i} fruits.", "response": f"{name} names {i}"} for i in range(4)]
        (smoke / f"my_responses_{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return smoke


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 8 and "make demo" in README and "make test" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(project, command):
    program, *words = shlex.split(command.replace("params/demo.yaml", "params/smoke.yaml"))
    before = {path: path.read_bytes() for path in project.glob("outputs/smoke/pairs/*/pairs.parquet")}
    if program == "karma":
        result = run_karma(project, *words)
    else:  # a kernel without the kit's help, as in JupyterLab
        result = subprocess.run([sys.executable, "-m", program, *words], cwd=project, env=plain_environment(project),
                                text=True, capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, f"{command}\n{result.stdout[-1500:]}\n{result.stderr[-1500:]}"
    assert before and {path: path.read_bytes() for path in before} == before, "the same pairs, however they are made"


@pytest.mark.parametrize("code", fenced("python"))
def test_the_python_example_runs(project, code):
    result = subprocess.run([sys.executable, "-c", code], cwd=project, env=project_environment(project), text=True,
                            capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("10 ")


def test_the_yaml_example_is_a_valid_experiment(tmp_path):
    (example,) = fenced("yaml")
    (tmp_path / "mine.yaml").write_text(example)
    assert load_experiment(tmp_path / "mine.yaml").settings.name == yaml.safe_load(example)["name"]


def test_every_linked_file_exists():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)|src=\"([^\"]+)\"", README):
        assert (ROOT / (link[0] or link[1])).is_file(), link


def test_the_tree_is_the_tree():
    (tree,) = [block for block in re.findall(r"^```\n(.*?)^```", README, flags=re.M | re.S) if "notebooks/" in block]
    for name in re.findall(r"^([a-z]+)/", tree, flags=re.M):
        assert (ROOT / name).is_dir(), name


def test_pure_modules_import_no_torch():
    """In turn, so that the module that brings it is named."""
    code = """import sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(f"karma.{name}")
    print(name, [m for m in ("torch", "transformers", "trl", "datasets") if m in sys.modules])"""
    pure = ("scores.read", "kinship.study", "pairs.build", "pairs.quality_gap", "potential.margins",
            "potential.selection", "potential.study", "results.claims")  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code, *pure], text=True, capture_output=True, check=True)
    assert result.stdout.splitlines() == [f"{name} []" for name in pure]


def test_a_wheel_brings_the_command_and_its_data(tmp_path):
    """Built without the network from the installed backend, unpacked, and used outside of any clone."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")], cwd=ROOT,
                   check=True, capture_output=True)  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site")], check=True)
    assert "karma = karma.cli:main" in next((tmp_path / "site").glob("*.dist-info/entry_points.txt")).read_text()
    (tmp_path / "away").mkdir()
    rows = [{"source": "mine", "instruction": "Hi", "completions": [{"model": m, "response": m} for m in MODELS]}]
    (tmp_path / "away" / "pool.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KARMA")} | {
        "PYTHONPATH": str(tmp_path / "site")
    }
    result = subprocess.run([sys.executable, "-m", "karma.cli", "binarize", "--pool", "pool.jsonl", "--strategy", "k_sim", "--out", "pairs"],
                            cwd=tmp_path / "away", env=environment, text=True, capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "away" / "pairs" / "pairs.parquet").is_file()


def test_base_yaml_says_what_every_value_is():
    """Each value's line carries a comment with its unit or its source."""
    load_base()
    bare = [line for line in (ROOT / "params" / "base.yaml").read_text().splitlines()
            if re.match(r"\s+\w+: \S", line) and "#" not in line]  # fmt: skip
    assert not bare


def test_the_example_is_put_between_its_markers_and_twice_is_once():
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "docs" / "make_readme.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    once = made.insert_example(README, "the example")
    assert f"{made.BEGIN}\n\nthe example\n\n{made.END}" in once and made.insert_example(once, "the example") == once
    assert once.split(made.BEGIN)[0] == README.split(made.BEGIN)[0]
    assert once.split(made.END)[1] == README.split(made.END)[1]
    with pytest.raises(made.InputError, match="put both where the example is to stand"):
        made.insert_example("# a README without markers", "the example")
