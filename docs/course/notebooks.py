"""The notebooks as a class and a book need them: with the outputs of a finished study, their exercises, their minutes.

What a reader sees is today's text of `notebooks/` with the outputs that the study's own executed copies hold, cell by
cell. Decision: outputs are taken only for a cell whose code is still the same, so that no picture is shown beside code
that did not make it; what is out of date is named. Limit: of a stage with many jobs one is shown.
"""

import argparse
import ast
import copy
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import nbformat

from karma.errors import InputError, KarmaError
from karma.study.execute import execute_notebook
from karma.study.experiment import Experiment, load_experiment
from karma.study.outputs import tidy_outputs
from karma.study.provenance import group_by_stage, load_records
from karma.study.recorded import find_shown
from karma.study.stages import STAGES, find_job

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
STUDIES = ("params/demo.yaml", "params/smoke.yaml")  # the first that is finished is shown
_EXERCISE = re.compile(r"^(\d+)\. (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Measured:
    """How long a stage's jobs took in a study, as its provenance says."""

    minutes: float
    n_jobs: int
    device: str
    date: str


@dataclass(frozen=True)
class Executed:
    """A notebook as it was run: with its outputs, its parameters, and the minutes that it took."""

    notebook: Any
    parameters: dict[str, Any]
    minutes: float | None


def find_study(needed: bool = True) -> Experiment:
    """Return the study to show: the demo where it has a report, else the smoke study.

    Args:
        needed: whether one has to be finished; else the demo as it is.

    Raises:
        InputError: neither is there; the message says how to get one.
    """
    for name in STUDIES:
        experiment = load_experiment(ROOT / name)
        if (experiment.outputs / "report.html").is_file():
            return experiment
    if not needed:
        return load_experiment(ROOT / STUDIES[0])
    raise InputError("no finished study: run `karma demo --recorded FILE`, `make demo` or `make smoke` first")


def build_from_shell(
    build: Callable[[Experiment, Path], list[str]], out: Path, page: str, described: str | None, needed: bool = True
) -> None:
    """Build what a command line asks for, name what is out of date, and say where to begin reading.

    Args:
        build: writes into a folder and returns what has changed since the study ran. out: the folder, unless --out says
            another. page: where to begin, relative to it. described: for --help. needed: as of `find_study`.
    """
    parser = argparse.ArgumentParser(description=described)
    parser.add_argument("--study", help="experiment whose outputs are shown (default: the demo, else smoke)")
    parser.add_argument("--out", type=Path, default=out)
    asked = parser.parse_args()
    try:
        experiment = load_experiment(asked.study) if asked.study else find_study(needed)
        stale = build(experiment, asked.out)
    except KarmaError as error:
        sys.exit(f"{out.name}: {error}")
    for name in stale:
        print(f"note: {name}: code has changed since this study ran, so what it changed has no outputs")
    print(f"written: {asked.out / page} (the study {experiment.settings.name})")


def read_notebook(path: Path) -> Any:
    """Return a notebook of format 4."""
    return nbformat.read(path, as_version=4)


def has_tag(cell: Any, *tags: str) -> bool:
    """Tell whether a cell has one of these tags."""
    return bool({*tags} & {*cell.metadata.get("tags", [])})


def read_parameters(notebook: Any) -> dict[str, Any]:
    """Return what a notebook's `parameters` cell sets."""
    cell = next(c for c in notebook.cells if has_tag(c, "parameters"))
    body = [node for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in body if isinstance(node.targets[0], ast.Name)}


def find_executed(experiment: Experiment, path: Path) -> Executed | None:
    """Return the run of a notebook that is nearest to its default parameters; None where the study has none.

    A notebook that is no stage of a study (00) is run here, in less than a minute, and so is 06 of a recorded study.
    """
    parameters = read_parameters(read_notebook(path))
    if path.stem not in STAGES:
        return _run(path, parameters)
    job = find_shown(experiment, path.stem, parameters)
    if job is None and path.stem == "06_results" and (experiment.outputs / "report.html").is_file():
        job = find_job(experiment, path.stem, {})  # of a recorded study, which has the report alone; it loads no model
        execute_notebook(job, {"experiment": str(experiment.path)})
    if job is None:
        return None
    values = {"experiment": f"params/{experiment.path.name}", **job.params}
    return Executed(tidy_outputs(read_notebook(job.executed_notebook)), values, None)


@cache
def _run_once(path: Path) -> tuple[Any, float]:
    from nbclient import NotebookClient

    notebook, started = read_notebook(path), time.monotonic()
    quiet = ["--IPKernelApp.log_level=ERROR"]
    where = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=600, resources=where, extra_arguments=quiet).execute()
    return notebook, (time.monotonic() - started) / 60


def _run(path: Path, parameters: dict[str, Any]) -> Executed:
    notebook, minutes = _run_once(path)
    return Executed(tidy_outputs(copy.deepcopy(notebook)), parameters, minutes)


def join_outputs(notebook: Any, executed: Any) -> tuple[Any, list[str]]:
    """Return a notebook with the outputs of its executed copy, and the ids of cells whose code has changed since.

    Args:
        notebook: as it is now. executed: as papermill left it.
    """
    joined, stale = copy.deepcopy(notebook), []
    done = {cell.source.strip(): cell for cell in executed.cells if cell.cell_type == "code"}
    for cell in joined.cells:
        if cell.cell_type != "code" or has_tag(cell, "parameters", "solution"):
            continue
        old = done.get(cell.source.strip())  # an id is a place, and places move
        if old is None:
            stale.append(cell.id)
            continue
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    return joined, stale


def set_parameters(notebook: Any, values: dict[str, Any]) -> None:
    """Write values into a notebook's `parameters` cell, those that it has, as the shown job had them."""
    cell = next(c for c in notebook.cells if has_tag(c, "parameters"))
    known = read_parameters(notebook)
    cell.source = "\n".join(f"{key} = {_literal(values.get(key, old), old)}" for key, old in known.items())


def _literal(value: Any, old: Any) -> str:
    return f'"{value}"' if isinstance(old, str) else repr(value if old is None else type(old)(value))


def list_exercises(notebook: Any, number: str) -> dict[str, str]:
    """Return id -> question of a notebook's exercises, from its section of that name."""
    text = next(c.source for c in notebook.cells if c.cell_type == "markdown" and "## Exercises" in c.source)
    return {f"{number}-{n}": asked for n, asked in _EXERCISE.findall(text.split("## Exercises")[1])}


def read_goal(notebook: Any) -> tuple[str, str]:
    """Return a notebook's question (its title) and what a reader knows at the end (its own sentence)."""
    first = notebook.cells[0].source
    title = first.splitlines()[0].removeprefix("# ").partition(" · ")[2]
    goal = re.search(r"At the end you (.+?\.)(?:\s|$)", first)
    return title, goal[1] if goal else ""


def measure(experiment: Experiment) -> dict[str, Measured]:
    """Return stage -> how long one of its jobs took (median), from the study's provenance."""
    return {
        name: Measured(median(r["seconds"] for r in records) / 60, len(records), records[0]["device"],
                       max(r["finished_at"] for r in records)[:10])
        for name, records in group_by_stage(load_records(experiment)).items() if name in STAGES
    }  # fmt: skip


def count_words(notebook: Any) -> int:
    """Return the words of prose that a reader has before them."""
    return sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")


def count_code(notebook: Any) -> int:
    """Return the code cells that a reader has before them."""
    return sum(cell.cell_type == "code" and not has_tag(cell, "solution") for cell in notebook.cells)
