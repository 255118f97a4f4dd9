"""CONTRIBUTING's worked examples: strategy, method and benchmark are added by the edits that it shows, and no other."""

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, copy_project, plain_environment
from tests.test_select_cli import pair_folder, policy

assert pair_folder and policy  # fixtures

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


PLACES = (  # of the code blocks, in their order
    ("vocabulary.py", "STRATEGIES = {"), ("strategies.py", "RULES: dict"), ("vocabulary.py", "METHODS = {"),
    ("training/trainers.py", "\nTRAINERS = {"), ("evaluation/items.py", "_READERS: dict"),
)  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("contributing"))
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    blocks = {kind: re.findall(rf"```{kind}\n(.*?)```", text, re.S) for kind in ("python", "csv", "yaml")}
    for (name, after), block in zip(PLACES, blocks["python"], strict=True):
        path = project / "karma" / name
        source = path.read_text("utf-8")
        place = source.index("{\n", source.index(after)) + 2
        path.write_text(source[:place] + block + source[place:], "utf-8")
    with (project / "karma/data/paper/benchmarks.csv").open("a", encoding="utf-8") as stream:
        stream.write(blocks["csv"][0])
    (project / "karma/evaluation/tasks/openbookqa.yaml").write_text(blocks["yaml"][0], "utf-8")
    (project / "items").mkdir()
    items = (ROOT / "karma/data/demo").glob("arc_easy*.jsonl")
    (project / "items" / "openbookqa.jsonl").write_bytes(next(items).read_bytes())
    return project


def call(project, *command):
    return subprocess.run(
        [sys.executable, *command], cwd=project, env=plain_environment(project), capture_output=True, text=True,
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
    result = call(project, "-m", "pytest", "-v", "-p", "no:cacheprovider", "tests/test_vocabulary.py")
    assert result.returncode == 0 and "[widest] PASSED" in result.stdout, result.stdout[-3000:]


BOTH = """
import sys
from karma.cli import app
for words in " ".join(sys.argv[1:]).split(" then "):
    app(words.split(), standalone_mode=False)
"""


def test_a_method_trains_a_policy_and_a_benchmark_is_answered(project, pair_folder, policy, tmp_path):
    """The first IPO loss is that of a policy that is its own reference: (1 / (2 beta)) squared."""
    settings = ("warmup_steps=0", "per_device_batch_size=4", "gradient_accumulation=1", "devices=1", "sample_tokens=4")
    result = call(project, "-c", BOTH, "train", "--pairs", str(pair_folder), "--policy", str(policy), "--method", "ipo",
                  "--dtype", "float32", "--out", str(tmp_path / "run"), *(w for s in settings for w in ("-p", s)), "then",
                  "evaluate", "--model", str(policy), "--benchmark", "openbookqa", "--benchmark-data", "items",
                  "--limit", "6", "--out", str(tmp_path / "scores"))  # fmt: skip
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["method"] == "ipo"
    assert record["history"][0]["loss"] == pytest.approx((1 / (2 * record["settings"]["beta"])) ** 2, rel=1e-3)
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["benchmarks"]["openbookqa"]["n"] == 6
