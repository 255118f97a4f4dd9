"""CONTRIBUTING's worked example: a strategy is added by the two edits that it shows, and by no other."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, copy_project, project_environment

USE = """
import pytest
from karma.pairs.build import build_pairs
from karma.pool.pool import load_pool
from karma.scores.read import load_score_table

answers = [{"model": m, "response": m} for m in ("gpt-4", "bard", "alpaca-7b", "llama-2-7b-chat")]
pool = load_pool([{"source": "s", "instruction": "?", "completions": answers}])
pair = build_pairs(pool, load_score_table("paper"), "widest", tau=0.1, seed=0).table.to_pylist()[0]
assert (pair["chosen_model"], pair["rejected_model"]) == ("gpt-4", "alpaca-7b"), pair
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("contributing"))
    row, rule = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)
    for name, after, text in (("vocabulary.py", "STRATEGIES = {\n", row), ("strategies.py", "-> ", rule)):
        path = project / "karma" / name
        source = path.read_text("utf-8")
        start = source.index("RULES: dict") if name == "strategies.py" else source.index(after)
        place = source.index("{\n", start) + 2
        path.write_text(source[:place] + text + source[place:], "utf-8")
    return project


def call(project, *command):
    return subprocess.run(
        [sys.executable, *command], cwd=project, env=project_environment(project), capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_two_edits_make_a_strategy_that_builds_pairs_and_is_offered(project):
    built = call(project, "-c", USE)
    assert built.returncode == 0, built.stderr
    shown = call(project, "-m", "karma.cli", "binarize", "--help")
    assert "widest" in shown.stdout


def test_tables_figures_claims_and_cards_take_it_up(project):
    (project / "tests").mkdir()
    for name in ("__init__.py", "study_files.py", "study.yaml", "test_vocabulary.py"):
        (project / "tests" / name).write_text((ROOT / "tests" / name).read_text("utf-8"), "utf-8")
    result = call(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_vocabulary.py")
    assert result.returncode == 0, result.stdout[-3000:]
    assert "widest" in call(project, "-m", "pytest", "--collect-only", "-q", "tests/test_vocabulary.py").stdout
