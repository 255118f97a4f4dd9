"""Every method in one sweep, on tiny models: each trains, is evaluated, and has a line in the report."""

import json

import pytest
import yaml

from karma.vocabulary import METHODS, title_of
from tests.conftest import copy_project, run_karma

pytestmark = pytest.mark.heavy  # a training and an evaluation of each method

RL = {"learning_rate": 1e-3, "generations": 4, "max_new_tokens": 8, "reward": {"instructions": 1.0}}
STUDY = {
    "extends": "smoke", "name": "every_method", "strategies": ["k_sim", "random"],
    "methods": [*METHODS, "distil"], "recipes": {"distil": ["sft", "dpo", "grpo"]},
    "trained_on": {name: ["k_sim"] for name in [*METHODS, "distil"]},
    "training": {"grpo": RL, "rloo": RL, "merge_adapter": False},
    "potential": {"metrics": [], "on_benchmarks": False}, "self_play": {"rounds": 0}, "benchmarks": {"held_out_pairs": False},
    "annotation": {"source": "recorded", "judge": None},
}  # fmt: skip


def test_it_trains_is_evaluated_and_has_a_line_in_the_report(tmp_path):
    project = copy_project(tmp_path / "project")
    (project / "params" / "every_method.yaml").write_text(yaml.safe_dump(STUDY))
    done = run_karma(project, "run", "params/every_method.yaml")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    outputs = project / "outputs" / "every_method"
    steps = [f"distil-{k}-{name}" for k, name in enumerate(["sft", "dpo", "grpo"], 1)]
    report = (outputs / "report.html").read_text("utf-8")
    for method in [*METHODS, *steps]:
        folder = outputs / "runs" / "tiny-a" / "k_sim" / method / "seed0"
        record = json.loads((folder / "training.json").read_text("utf-8"))
        assert record["n_updates"] > 0 and record["history"], method
        measured = "reward_scores.json" if method == "reward_model" else "scores.json"
        assert (folder / measured).is_file(), method
        assert title_of(method) in report, method
    first = json.loads((outputs / "runs/tiny-a/k_sim/distil-1-sft/seed0/training.json").read_text("utf-8"))
    assert (
        first["same_data_as"]
        or json.loads((outputs / "runs/tiny-a/k_sim/sft/seed0/training.json").read_text("utf-8"))["same_data_as"]
    )  # trained once
