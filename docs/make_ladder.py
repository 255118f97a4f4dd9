"""The README's ladder: what a reader gets for how long a wait. Called by docs/make_readme.py.

What takes seconds is done and timed, as processor time of one core; what takes minutes is read from
karma/study/times.json, from the first job to the last. Limit: both are of the machines that they name.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from karma import load_experiment
from karma.commands.show import count_gpu_hours, list_downloads
from karma.errors import InputError
from karma.study.experiment import Experiment
from karma.study.plan import plan_sweep
from karma.study.progress import say_time
from karma.study.stages import list_jobs

ROOT = Path(__file__).parent.parent
STUDIES = {
    "smoke": ("`make smoke`", "the same graph with tiny random models: every kind of file"),
    "demo": ("`make demo`", "{origin_models} origin models, {strategies} strategies, {trainings} trainings, a report"),
}


def time_quick_things() -> list[list[str]]:
    """Do what the ladder's first rows say; return these rows, each with the time that it took here."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), flags=re.M | re.S)
    with TemporaryDirectory() as folder:
        report = ["-m", "karma.cli", "report", "paper", "--out", folder]
        notebook = ["-m", "papermill", "notebooks/00_karma_in_one_page.ipynb", f"{folder}/00.ipynb"]
        rows = [
            ("the lines above", "a pair to read", ["-c", code]),
            ("`karma report paper`", "the published tables computed again, with intervals", report),
            ("`make lab`, notebook 00", "the method on one page, a label checked", notebook),
        ]
        return [[typed, got, _clock(words)] for typed, got, words in rows]


def _clock(words: list[str]) -> str:
    """Return the processor time of a command and its children, which what else is at work changes little."""
    before = os.times()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{words[:2]} ended with {done.returncode}: {done.stderr[-500:]}")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return f"{say_time(max(spent, 1.0))} of one core"


def build_ladder(quick: list[list[str]], times: list[dict[str, Any]], device: str, today: str) -> str:
    """Return the ladder as Markdown.

    Args:
        quick: of `time_quick_things`. times: of times.json. device, today: where and when `quick` was timed.
    """
    nothing = "nothing"
    rows = [[*row, f"{device} ({today})", nothing] for row in quick]
    for name, (typed, got) in STUDIES.items():
        filled = got.format(**count_parts(load_experiment(f"params/{name}.yaml")))
        for run in (run for run in times if run["experiment"] == name):
            took = f"{run['minutes']:.0f} min ({run['n_jobs']} jobs)"
            rows.append([typed, filled, took, f"{run['device']} ({run['date']})", nothing])
    paper = load_experiment("params/paper.yaml")
    states = plan_sweep(paper)
    fetched = [one for few in list_downloads(paper, states).values() for one in few]
    size = sum(one.n_bytes or 0 for one in fetched) / 1e9
    rows.append(["`karma run params/paper.yaml`", f"the paper's {count_parts(paper)['trainings']} trainings",
                 f"not run; up to {count_gpu_hours(states):,.0f} GPU hours",
                 f"GPUs, {paper.settings.compute.gpus_per_job} a job",
                 f"about {size:.0f} GB of models, and data"])  # fmt: skip
    columns = ["you type", "you get", "it takes", "on", "it downloads"]
    table = pd.DataFrame(rows, columns=columns).set_index("you type")
    return f"{table.to_markdown(disable_numparse=True)}\n\n{describe_size()}"


def count_parts(experiment: Experiment) -> dict[str, int]:
    """Return how many origin models, strategies and trainings a study has."""
    settings = experiment.settings
    trainings = sum(job.stage.name == "04_alignment_training" for job in list_jobs(experiment))
    return {
        "origin_models": len(settings.origin_models),
        "strategies": len(settings.strategies),
        "trainings": trainings,
    }


def describe_size() -> str:
    """Say what the set-up puts on the disk, of this environment as it is."""
    import torch

    site = Path(pd.__file__).parents[1]
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file() and not path.is_symlink()) / 1e9
    build = "torch's build for CPUs" if torch.version.cuda is None else f"torch's build for CUDA {torch.version.cuda}"
    return (
        "The set-up comes before and is not counted: packages, the embedded model and the benchmark items, "
        f"{size:.1f} GB on the disk with {build} (PyPI's for Linux brings CUDA along and is larger)."
    )
