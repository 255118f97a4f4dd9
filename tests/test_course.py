"""The course: exercises checked against a study's files, student copies without solutions, a landing page that is true."""

import json
import re

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

import karma
from docs.course import build, notebooks
from karma.errors import InputError
from karma.results import exercises as checking
from karma.results.exercises import EXERCISES, check_exercise, explain_exercise
from karma.results.solutions import SOLVERS, Solution, solve
from karma.study.experiment import load_experiment
from tests.conftest import ROOT

STUDY = "params/smoke.yaml"
OPEN = {"06-1", "06-2"}  # a change of the study, with nothing to compare with
FALSE = {"tuple": ("nobody", "no one"), "str": "nothing"}


@pytest.fixture
def study(smoke, monkeypatch):
    monkeypatch.chdir(smoke)
    monkeypatch.setattr(checking, "_WRONG", type(checking._WRONG)())
    return load_experiment(STUDY)


def make_wrong(solution: Solution):
    return FALSE.get(type(solution.right).__name__, solution.high + 1)


def test_every_exercise_of_a_notebook_has_its_check_and_no_check_is_left_over():
    asked = {name for path in notebooks.NOTEBOOKS
             for name in notebooks.list_exercises(notebooks.read_notebook(path), path.stem[:2])}  # fmt: skip
    assert asked - OPEN == set(EXERCISES) == set(SOLVERS) and asked > OPEN
    assert all(len(set(exercise.hints)) == 2 for exercise in EXERCISES.values())


@pytest.mark.parametrize("name", EXERCISES)
def test_a_right_answer_is_told_so_and_a_wrong_one_gets_two_hints(study, name):
    solution = solve(name, STUDY)
    assert EXERCISES[name].form == {tuple: checking.PAIR, str: checking.NAME}.get(type(solution.right), checking.NUMBER)
    told = check_exercise(name, solution.right, STUDY)
    assert told.is_right and told == f"Right. {solution.text}" and repr(told) == told
    wrong = make_wrong(solution)
    feedback = [check_exercise(name, wrong, STUDY) for _ in range(3)]
    assert not any(each.is_right or solution.text in each for each in feedback)
    assert all(hint in each for hint, each in zip(EXERCISES[name].hints, feedback, strict=False))
    assert f'karma.explain_exercise("{name}")' in feedback[2]
    assert explain_exercise(name, STUDY) == solution.text


@pytest.mark.parametrize("name", EXERCISES)
def test_no_answer_and_an_answer_of_another_form_cost_no_hint(study, name):
    for empty in (None, ...):
        assert "Write your prediction first" in check_exercise(name, empty, STUDY)
    odd = 7 if isinstance(solve(name, STUDY).right, str | tuple) else "seven"
    assert "This one asks for" in check_exercise(name, odd, STUDY)
    assert "Hint 1 of 2" in check_exercise(name, make_wrong(solve(name, STUDY)), STUDY)


def test_solutions_say_what_the_study_found(study):
    held = json.loads((study.outputs / "runs/tiny-a/k_sim/sft/seed0/training.json").read_text())["held_out"]
    assert f"{held['accuracy']:.2f} on {held['n']} held-out pairs" in explain_exercise("04-1", STUDY)
    rows = (study.outputs / "kinship" / "kinship.csv").read_text().splitlines()
    assert f"of the {len(rows[1:]) * (len(rows[1:]) - 1) // 2} pairs" in explain_exercise("02-1", STUDY)


def test_a_number_that_was_computed_is_a_number(study):
    right = solve("02-1", STUDY).right
    assert (
        check_exercise("02-1", np.int64(right), STUDY).is_right
        and not check_exercise("02-1", np.bool_(True), STUDY).is_right
    )


def test_a_number_is_said_to_be_too_low_or_too_high_and_a_pair_to_be_turned(study):
    assert "too low" in check_exercise("05-2", 3, STUDY) and "too high" in check_exercise("05-2", 10**6, STUDY)
    assert "the other way round" in check_exercise("00-1", solve("00-1", STUDY).right[::-1], STUDY)


def test_what_a_study_lacks_is_named_with_what_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=r"outputs/paper/labels/strategies.csv is missing: run notebooks/09"):
        karma.check_exercise("09-1", "delta", "params/paper.yaml")
    with pytest.raises(InputError, match="there is no exercise '10-1'; there are 00-1, "):
        karma.check_exercise("10-1", 1)


@pytest.fixture(scope="module")
def course(smoke, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(smoke)
        out = tmp_path_factory.mktemp("course")
        assert build.build_course(load_experiment(STUDY), out) == []
    return out


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda p: p.stem)
def test_student_copies_have_no_solution_but_a_stub_and_a_check_for_each_exercise(course, smoke, monkeypatch, path):
    monkeypatch.chdir(smoke)
    number, copy = path.stem[:2], notebooks.read_notebook(course / "students" / path.name)
    whole = notebooks.read_notebook(path)
    solutions = [cell.source for cell in whole.cells if notebooks.has_tag(cell, "solution")]
    shown = "\n".join(cell.source for cell in copy.cells)
    assert solutions and not any(text in shown for text in solutions)
    assert not any(cell.get("outputs") for cell in copy.cells)
    for name in set(notebooks.list_exercises(whole, number)) - OPEN:
        stub, check = (next(c for c in copy.cells if c.id == f"{kind}-{name}") for kind in ("answer", "check"))
        assert "answer = ..." in stub.source and f'check_exercise("{name}", answer' in check.source
        shell = InteractiveShell.instance()
        shell.user_ns["experiment"] = STUDY
        assert shell.run_cell(stub.source).success
        assert "Write your prediction first" in shell.run_cell(check.source).result


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda p: p.stem)
def test_solutions_have_the_studys_outputs_and_the_computed_solutions(course, path, study):
    solved = notebooks.read_notebook(course / "solutions" / path.name)
    assert any(cell.get("outputs") for cell in solved.cells)
    last = solved.cells[-1].source
    for name in set(notebooks.list_exercises(notebooks.read_notebook(path), path.stem[:2])) - OPEN:
        assert str(explain_exercise(name, STUDY)) in last


def test_the_landing_pages_links_lead_somewhere_and_its_minutes_are_measured(course, smoke, monkeypatch):
    monkeypatch.chdir(smoke)
    page = (course / "index.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) > 20 and all((course / link).is_file() for link in links)
    assert "<!--" not in page and page.count("| **") == 0
    assert notebooks.read_notebook(course / "index.ipynb").cells[0].source == page
    record = json.loads((smoke / "outputs/smoke/kinship/provenance.json").read_text())["02_kinship_analysis"]
    assert record["device"] in page
    assert notebooks.measure(load_experiment(STUDY))


def test_a_plan_that_is_too_long_is_refused(monkeypatch):
    row = {"question": "?", "read": 50, "exercises": 8}
    with pytest.raises(karma.KarmaError, match="the plan of 90 minutes takes"):
        build.write_plan("90 minutes", [{**row, "number": f"{k:02}"} for k in range(10)])


def test_code_that_changed_since_the_study_ran_is_shown_without_outputs():
    path = notebooks.NOTEBOOKS[0]
    executed = notebooks.find_executed(load_experiment("params/smoke.yaml"), path).notebook
    now = notebooks.read_notebook(path)
    cell = next(c for c in now.cells if c.cell_type == "code" and "table = load_score_table" in c.source)
    cell.source += "\n# changed"
    joined, stale = notebooks.join_outputs(now, executed)
    assert stale == [cell.id]
    assert not next(c for c in joined.cells if c.id == cell.id).outputs
