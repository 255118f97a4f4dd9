"""The house keeps its shape: no import circle, no logic in package files, few rooms, and a training that needs few."""

import ast
import re
from dataclasses import fields
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from karma.cli import COMMANDS, _build
from karma.study.experiment import load_base
from karma.study.fingerprint import compute_stage_code
from karma.study.stages import STAGES
from karma.vocabulary import Method, Metric, Strategy
from tests.conftest import ROOT

PACKAGE = ROOT / "karma"
FILES = {
    ".".join(["karma", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if not {"plugins", "tasks"} & set(path.parts)
}


def find_imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, inside of functions too; not those for a type checker."""
    tree = ast.parse(path.read_text("utf-8"))
    unread = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
              for inner in ast.walk(node)}  # fmt: skip
    found = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("karma")
            and id(node) not in unread
        ):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in FILES else node.module for name in names}
    return found - {"karma"}


IMPORTS = {name: find_imports(path) for name, path in FILES.items() if name != "karma"}


def test_no_module_is_in_an_import_circle():
    assert list(TopologicalSorter(IMPORTS).static_order())


def test_no_package_is_in_an_import_circle():
    rooms: dict[str, set[str]] = {}
    for name, imported in IMPORTS.items():
        own = name.split(".")[1]
        rooms.setdefault(own, set()).update(other.split(".")[1] for other in imported if other.split(".")[1] != own)
    assert list(TopologicalSorter(rooms).static_order())


def test_a_circle_would_be_found():
    with pytest.raises(CycleError):
        TopologicalSorter({**IMPORTS, "karma.files.reading": {"karma.study.stages"}}).prepare()


def test_there_are_few_rooms():
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 23, sorted(entries)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_package_files_hold_a_docstring_only(path):
    (only,) = ast.parse(path.read_text("utf-8")).body
    assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant)


def test_a_training_is_made_of_few_modules_and_of_nothing_that_only_shows():
    modules = compute_stage_code(STAGES["04_alignment_training"], ROOT)["modules"]
    # 20, and what methods have of their own: losses, trainers, rewards, ranking between epochs by potential.margins; the
    # checkers that reward sampled answers, with what reads prompts and answers; alarms of hacked rewards; recipes;
    # the locks under which the cache's model is made
    assert len(modules) <= 45, sorted(modules)
    for stage in STAGES.values():
        if not stage.draws:
            reached = compute_stage_code(stage, ROOT)["modules"]
            assert not [name for name in reached if name.startswith(("karma.figures", "karma.commands", "karma.vocab"))]


def test_what_makes_numbers_reads_only_words_of_the_vocabulary():
    """An edit of the vocabulary reruns nothing but what draws, so nothing else may compute with what stands there."""
    more = {field.name for kind in (Strategy, Method, Metric) for field in fields(kind) if field.type is not str}
    assert more == {"role", "learns_from", "start_loss", "makes"}
    reached = {
        name for stage in STAGES.values() if not stage.draws for name in compute_stage_code(stage, ROOT)["modules"]
    }
    readers = [name for name in sorted(reached) if name in IMPORTS and "karma.vocabulary" in IMPORTS[name]]
    assert "karma.potential.study" in readers
    for name in readers:
        read = {
            node.attr for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))) if isinstance(node, ast.Attribute)
        }
        assert not read & more, name


def read_sentences() -> list[tuple[str, str]]:
    """Return (module, text) of every string of the package that has a space, docstrings left out."""
    found = []
    for name, path in FILES.items():
        tree = ast.parse(path.read_text("utf-8"))
        documented = ast.Module | ast.ClassDef | ast.FunctionDef
        docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                      if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
        found += [(name, node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)
                  and isinstance(node.value, str) and " " in node.value and id(node) not in docstrings]  # fmt: skip
    return found


def test_remedies_name_commands_options_and_settings_that_exist():
    commands = {name: _build(name, getattr(import_module(f"karma.commands.{file}"), name.replace("-", "_")))
                for name, file in COMMANDS.items()}  # fmt: skip
    options = {option for command in commands.values() for param in command.params for option in param.opts}
    options |= {"--debug", "--help", "--no-deps", "--head", "--config"}  # the last three are pip's, Ray's and TRL's
    settings = load_base().as_dict()
    n_named = 0
    for module, text in read_sentences():
        for name in re.findall(r"`karma ([a-z_-]+)", text):
            assert name in commands, (module, text)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
            assert option in options, (module, text)
            n_named += 1
        for name, option in re.findall(r"`karma ([a-z_-]+) (--[a-z-]+)", text):
            assert option in {o for param in commands[name].params for o in param.opts}, (module, text)
        for section, key in re.findall(r"\b([a-z_]+)\.([a-z_]+)\b(?!\()", text):
            if isinstance(settings.get(section), dict) and key not in ("csv", "json", "parquet"):
                assert key in settings[section], (module, text)
                n_named += 1
    assert n_named > 40, "no remedy was read"
