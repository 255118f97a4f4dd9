"""Notebooks: the house style's rules on every one, and the ones that stand alone executed."""

import ast
import json
import re

import nbformat
import papermill
import pytest

from karma.errors import InputError
from karma.study.execute import check_parameters
from karma.study.stages import STAGES
from tests.conftest import CALL_LIMIT, ROOT, run_karma

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def cells(path, kind, tag=None):
    notebook = nbformat.read(path, as_version=4)
    chosen = [c for c in notebook.cells if c.cell_type == kind]
    return [c for c in chosen if tag is None or tag in c.metadata.get("tags", [])]


def code_lines(cell):
    return [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_every_stage_has_its_notebook():
    stems = {p.stem for p in NOTEBOOKS}
    assert {s.name for s in STAGES.values() if s.has_notebook} <= stems and "00_karma_in_one_page" in stems


@each_notebook
def test_the_first_cell_asks_a_question_and_says_what_is_read_and_written(path):
    first = nbformat.read(path, as_version=4).cells[0]
    title, *_ = first.source.splitlines()
    assert first.cell_type == "markdown" and title.startswith("# ") and title.endswith("?")
    assert all(word in first.source.lower() for word in ("reads", "writes", "section"))
    assert re.search(r"minute|second", first.source.lower())


@each_notebook
def test_it_is_short_and_its_cells_are_small(path):
    assert len(nbformat.read(path, as_version=4).cells) <= 30
    lengths = [len(code_lines(c)) for c in cells(path, "code")]
    assert max(lengths) <= 20
    assert sorted(lengths)[len(lengths) // 2] <= 6


@each_notebook
def test_there_is_one_parameters_cell_of_literals(path):
    (parameters,) = cells(path, "code", "parameters")
    for node in ast.parse(parameters.source).body:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)


@each_notebook
def test_functions_stand_in_lessons_only(path):
    for cell in cells(path, "code"):
        if not {"lesson", "solution"} & set(cell.metadata.get("tags", [])):
            assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(ast.parse(cell.source)))


@each_notebook
def test_there_is_a_lesson_with_an_assert_limits_exercises_and_solutions(path):
    lessons = cells(path, "code", "lesson")
    assert lessons and any("assert " in c.source for c in lessons)
    assert all("assert" in c.source for c in lessons)
    prose = "\n".join(c.source for c in cells(path, "markdown"))
    assert "## Limits" in prose and "## Exercises" in prose and cells(path, "code", "solution")


@each_notebook
def test_it_is_stripped_and_plain(path):
    for cell in cells(path, "code"):
        assert not cell.outputs and cell.execution_count is None
        assert not any(bad in cell.source for bad in ("sys.path", "!pip", "%pip", "os.chdir"))
    notebook = json.loads(path.read_text())
    assert "papermill" not in notebook["metadata"] and notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not any("papermill" in c["metadata"] for c in notebook["cells"])


@each_notebook
def test_imports_stand_in_one_cell(path):
    importing = [
        c
        for c in cells(path, "code")
        if any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.parse(c.source).body)
    ]
    assert len(importing) == 1


def test_an_unknown_parameter_is_refused_by_name():
    with pytest.raises(InputError, match="has no parameter 'stratgy'; it has experiment, strategy"):
        check_parameters(ROOT / "notebooks" / "03_binarization.ipynb", {"stratgy": "k_sim"})


def test_one_page_runs_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")  # where JupyterLab starts its kernel
    papermill.execute_notebook(ROOT / "notebooks" / "00_karma_in_one_page.ipynb", tmp_path / "out.ipynb",
                               progress_bar=False, execution_timeout=CALL_LIMIT)  # fmt: skip


def test_a_notebook_whose_input_is_missing_names_the_one_to_run_first(tmp_path, smoke):
    (smoke / "params" / "empty.yaml").write_text(
        (smoke / "params" / "smoke.yaml").read_text().replace("name: smoke", "name: empty")
    )
    result = run_karma(smoke, "notebook", "04_alignment_training", "params/empty.yaml", "-p", "policy=tiny-a", "-p", "strategy=k_sim",
                       "-p", "method=dpo", "-p", "seed=0")  # fmt: skip
    (smoke / "params" / "empty.yaml").unlink()
    assert result.returncode == 2
    assert "run notebooks/03_binarization.ipynb strategy=k_sim first" in result.stderr


@pytest.mark.parametrize("figure", ["origins/tiny-a/figures/scores", "runs/tiny-a/k_sim/dpo/seed0/figures/training",
                                    "runs/tiny-a/k_sim/dpo/seed0/figures/evaluation",
                                    "selections/tiny-a/k_sim+m_ap-0.4/figures/choices", "figures/selections",
                                    "figures/selection_benchmarks",
                                    "figures/premise", "labels/figures/label_accuracy", "labels/figures/model_truth"])  # fmt: skip
def test_figures_are_pictures(smoke, figure):
    from matplotlib.image import imread

    for suffix in (".png", ".svg"):
        assert (smoke / "outputs/smoke" / figure).with_suffix(suffix).stat().st_size > 1000
    pixels = imread((smoke / "outputs/smoke" / figure).with_suffix(".png"))
    assert pixels[..., :3].std() > 0.02  # not a blank page
