"""Write the course into `course/`: student copies, solutions apart, and a landing page. `make course`.

A student's copy is the notebook without its cells tagged `solution`, with a cell to answer in and a cell that checks
behind each exercise. The solutions hold the same notebooks with the outputs of a finished study, and each solution as
that study decides it. Minutes are measured: running from the study's provenance, reading from the words.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from docs.course import notebooks as own
from karma.errors import InputError, KarmaError
from karma.results.exercises import EXERCISES, explain_exercise
from karma.study.experiment import Experiment

TEXTS = Path(__file__).parent
COPIES = {"students": "students", "solutions": "solutions"}  # of each notebook: heading -> folder
WORDS_A_MINUTE = 180
MINUTES_A_CELL = 0.5  # to look at code and what it shows
MINUTES_AN_EXERCISE = 4
PLANS = {  # plan -> minutes, and what is done: (notebook, "read" or "read and exercises")
    "90 minutes": (90, (("00", True), ("02", True), ("03", False), ("09", True))),
    "A half day": (240, (("00", True), ("01", False), ("02", True), ("03", True), ("04", True), ("05", False),
                         ("06", False), ("09", True))),
}  # fmt: skip


def build_course(experiment: Experiment, out: Path) -> list[str]:
    """Write the course; return what is out of date in the study shown.

    Args:
        experiment: the finished study that solutions and minutes come from. out: folder, replaced.
    """
    shutil.rmtree(out, ignore_errors=True)
    stale = list[str]()
    for path in own.NOTEBOOKS:
        number, notebook = path.stem[:2], own.read_notebook(path)
        _save(build_student_copy(notebook, number), out / "students" / path.name)
        solved, changed = build_solutions(notebook, own.find_executed(experiment, path), number, experiment)
        _save(solved, out / "solutions" / path.name)
        stale += [f"{path.name} ({len(changed)} cells)"] if changed else []
    text = write_landing_page(experiment)
    (out / "index.md").write_text(text, "utf-8")
    _save(new_notebook(cells=[new_markdown_cell(text, id="landing")]), out / "index.ipynb")
    return stale


def list_rows(experiment: Experiment, measured: dict[str, own.Measured]) -> list[dict[str, Any]]:
    """Return what the landing page says of each notebook, in order."""
    rows = []
    for path in own.NOTEBOOKS:
        executed = None if path.stem in measured else own.find_executed(experiment, path)
        minutes = measured[path.stem].minutes if path.stem in measured else executed and executed.minutes
        rows.append(describe(own.read_notebook(path), path, minutes))
    return rows


def build_student_copy(notebook: Any, number: str) -> Any:
    """Return a notebook without solutions, with a stub and a check behind each exercise."""
    cells = []
    for cell in notebook.cells:
        if own.has_tag(cell, "solution"):
            continue
        if cell.cell_type == "markdown" and "## Exercises" in cell.source:
            cells += _write_exercises(cell.source, own.list_exercises(notebook, number), notebook)
        else:
            cells.append(cell)
    return new_notebook(cells=cells, metadata=notebook.metadata)


def _write_exercises(text: str, exercises: dict[str, str], notebook: Any) -> list[Any]:
    named = ", experiment" if "experiment" in own.read_parameters(notebook) else ""
    before, title, _ = text.partition("## Exercises")
    told = "Predict first. A wrong answer costs nothing, and the first two get a hint."
    cells = [new_markdown_cell(f"{before}{title}\n\n{told}", id="exercises")]
    for name, question in exercises.items():
        cells.append(new_markdown_cell(f"**Exercise {name}.** {question}", id=f"question-{name}"))
        if name not in EXERCISES:  # open: a change of the study, with nothing to compare with
            cells.append(new_markdown_cell("*Your prediction, and what you saw:*", id=f"answer-{name}"))
            continue
        form = EXERCISES[name]
        stub = f"answer = ...  # {form.form}, for example {form.example}"
        check = f'from karma import check_exercise\n\ncheck_exercise("{name}", answer{named})'
        cells += [new_code_cell(stub, id=f"answer-{name}", metadata={"tags": ["exercise"]}),
                  new_code_cell(check, id=f"check-{name}", metadata={"tags": ["check"]})]  # fmt: skip
    return cells


def build_solutions(
    notebook: Any, executed: own.Executed | None, number: str, experiment: Experiment
) -> tuple[Any, list[str]]:
    """Return a notebook with a study's outputs and computed solutions, and the cells that are out of date."""
    filled, stale = fill_outputs(notebook, executed)
    text = f"## Solutions\n\nAs the study *{experiment.settings.name}* decides them.\n\n"
    text += write_solutions(notebook, number, experiment)
    filled.cells.append(new_markdown_cell(text, id="solutions", metadata={"tags": ["solution"]}))
    return filled, stale


def fill_outputs(notebook: Any, executed: own.Executed | None) -> tuple[Any, list[str]]:
    """Return a notebook without solutions and with a study's outputs, and the cells that are out of date."""
    stale = list[str]()
    if executed is not None:
        notebook, stale = own.join_outputs(notebook, executed.notebook)
        own.set_parameters(notebook, executed.parameters)
    cells = [cell for cell in notebook.cells if not own.has_tag(cell, "solution")]
    return new_notebook(cells=cells, metadata=notebook.metadata), stale


def write_solutions(notebook: Any, number: str, experiment: Experiment) -> str:
    """Return the solutions of a notebook's exercises as a study decides them, as Markdown."""
    return "\n\n".join(f"**{name}.** {solve_here(name, experiment)}" for name in own.list_exercises(notebook, number))


def solve_here(name: str, experiment: Experiment) -> str:
    """Return an exercise's solution in this study, or why this study has none."""
    if name not in EXERCISES:
        return "Open: it asks for a change of the study. Try it, and compare with your prediction."
    try:
        return str(explain_exercise(name, experiment.path))
    except InputError as error:
        return f"This study does not decide it: {error}."


def describe(notebook: Any, path: Path, minutes: float | None) -> dict[str, Any]:
    """Return what the landing page says of a notebook."""
    question, goal = own.read_goal(notebook)
    exercises = len(own.list_exercises(notebook, path.stem[:2])) * MINUTES_AN_EXERCISE
    read = own.count_words(notebook) / WORDS_A_MINUTE + MINUTES_A_CELL * own.count_code(notebook)
    return {"number": path.stem[:2], "name": path.name, "question": question, "goal": goal, "read": read,
            "exercises": exercises, "run": minutes}  # fmt: skip


def write_landing_page(experiment: Experiment, copies: Mapping[str, str] = COPIES) -> str:
    """Return index.md: a map, goals, prerequisites, minutes, plans and misconceptions.

    Args:
        experiment: the study shown. copies: of each notebook, heading -> folder; where to begin is the first's.
    """
    measured = own.measure(experiment)
    rows, run = list_rows(experiment, measured), max(measured.values(), key=lambda m: m.date, default=None)
    lines = [f"| | question | {' | '.join(copies)} | read | run | exercises |", "|---" * (5 + len(copies)) + "|"]
    for row in rows:
        links = " | ".join(f"[open]({folder}/{row['name']})" for folder in copies.values())
        lines.append(f"| {row['number']} | {row['question']} | {links} | {row['read']:.0f} min | "
                     f"{_say_minutes(row['run'])} | {row['exercises']} min |")  # fmt: skip
    said = (f"Minutes to read are words at {WORDS_A_MINUTE} a minute and {MINUTES_A_CELL:g} a code cell; an exercise "
            f"counts {MINUTES_AN_EXERCISE}. Minutes to run: 00 was run when this page was written, ")  # fmt: skip
    said += "of the others no study is finished here yet." if run is None else (
            f"the others are the median of a stage's jobs in the study *{experiment.settings.name}*, of {run.date} "
            f"({run.device}).")  # fmt: skip
    goals = [f"- **{r['number']}** You {r['goal']}" for r in rows if r["goal"]]
    parts = {
        "MAP": "\n".join(lines) + "\n\n" + said,
        "GOALS": "\n".join(goals),
        "FOLDER": next(iter(copies.values())),
        "PLANS": "\n\n".join(write_plan(name, rows) for name in PLANS),
        "MISCONCEPTIONS": (TEXTS / "misconceptions.md").read_text("utf-8").partition("\n")[2].strip(),
    }
    text = (TEXTS / "landing.md").read_text("utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    return text


def write_plan(name: str, rows: list[dict[str, Any]]) -> str:
    """Return a plan as a table whose minutes add up to what is left for talk."""
    total, steps = PLANS[name]
    by_number = {row["number"]: row for row in rows}
    lines, used = [f"### {name}", "", "| notebook | do | minutes |", "|---|---|---|"], 0
    for number, solves in steps:
        row = by_number[number]
        minutes = round(row["read"] + solves * row["exercises"])
        used += minutes
        lines.append(f"| {number} {row['question']} | {'read, and solve' if solves else 'read'} | {minutes} |")
    if used > total:
        raise KarmaError(f"the plan of {name} takes {used} minutes: leave something out of PLANS")
    return "\n".join([*lines, f"| | talk, questions, a break | {total - used} |"])


def _say_minutes(minutes: float | None) -> str:
    return "-" if minutes is None else "under 1 min" if minutes < 0.95 else f"{minutes:.0f} min"


def _save(notebook: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def main() -> None:
    """Build the course from the command line."""
    own.build_from_shell(build_course, own.ROOT / "course", "index.md", __doc__, needed=False)
    print("next: make lab")


if __name__ == "__main__":
    main()
