"""What a stage is made of: its notebook's code cells and every `karma` module they reach.

The sweep depends on this fingerprint, not on the `.ipynb`, so that saving a notebook in JupyterLab (new outputs, new
execution counts) reruns nothing, while an edit of its code, or of a module behind it, reruns the stage.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import karma
from karma.errors import InputError
from karma.files.reading import compute_digest, compute_file_digest
from karma.study.stages import Job, Stage

PACKAGE = Path(karma.__file__).parent
# What no number depends on: words, colours, cards, the command line; and the study's own machinery, whose effect on a
# stage is its settings and inputs, which have a fingerprint of their own. Only a stage that draws counts them.
SHOWN = (
    "karma.vocabulary",
    "karma.figures",
    "karma.commands",
    "karma.cli",
    "karma.pairs.card",
    "karma.training.card",
    "karma.training.progress",
    "karma.study",
)


def compute_stage_code(stage: Stage, root: Path) -> dict[str, object]:
    """Return {"notebook": digest of its code cells or None, "modules": {name: digest}}."""
    module = f"import karma.{stage.module}" if stage.module else ""
    if not stage.has_notebook:
        return {"notebook": None, "modules": compute_modules(module)}
    notebook = root / "notebooks" / f"{stage.name}.ipynb"
    if not notebook.is_file():
        raise InputError(f"{notebook} is missing: every stage of the sweep needs its notebook")
    source = read_code(notebook)
    modules = compute_modules(f"{source}\n{module}", f"notebooks/{stage.name}.ipynb", draws=stage.draws)
    return {"notebook": compute_digest(source), "modules": modules}


def compute_code(job: Job) -> str:
    """Return a digest of the code a job is made of: its notebook's cells and the modules that they reach."""
    return compute_digest(compute_stage_code(job.stage, job.experiment.root))


def find_changed_code(stage: Stage, root: Path, before: Mapping[str, Any]) -> list[str]:
    """Return what of a stage's code differs from its fingerprint of before; empty if there is none.

    Only what that fingerprint names is read: as long as none of it has changed, it reaches the same modules.

    Args:
        stage: whose. root: the clone's. before: of `compute_stage_code`.

    Example:
        >>> from karma.study.stages import STAGES
        >>> find_changed_code(STAGES["pool"], Path("."), {"notebook": None, "modules": {"karma.errors": "another"}})
        ['karma.errors']
    """
    changed = []
    if before.get("notebook"):
        notebook = root / "notebooks" / f"{stage.name}.ipynb"
        if not notebook.is_file() or compute_digest(read_code(notebook)) != before["notebook"]:
            changed.append(f"notebooks/{notebook.name}")
    for name, digest in before.get("modules", {}).items():
        path = None if name == "karma.data" else _locate(name)
        now = _digest_data() if name == "karma.data" else _digest(path) if path else None
        if now != digest:
            changed.append(name)
    return changed


def read_code(notebook: Path) -> str:
    """Return a notebook's code cells as one text, with lines of IPython's own (% and !) as comments.

    Solutions of exercises are left out: nothing is made of them, so that a better sentence there reruns nothing.
    """
    cells = [c for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    counted = [c for c in cells if "solution" not in c.get("metadata", {}).get("tags", [])]
    text = "\n\n".join("".join(cell["source"]) for cell in counted)
    return "\n".join(f"# {line}" if line.lstrip()[:1] in ("%", "!") else line for line in text.splitlines())


def compute_modules(source: str, where: str = "code", draws: bool = False) -> dict[str, str]:
    """Return every `karma` module that a piece of code reaches by imports, with the digest of its file.

    A package counts with the files in it that are not modules of their own (task YAMLs), and the package's data with
    every module, but for the demo's, which settings name, and the report page's, which no number depends on. Without
    `draws`, what only shows or runs (`SHOWN`) is left out; so are packages that hold nothing but a docstring, and the
    list of public names.

    Example:
        >>> sorted(compute_modules("from karma.errors import InputError"))
        ['karma.data', 'karma.errors']
    """
    todo, seen, found = set(_imports(source, "karma", where)), set[str](), {"karma.data": _digest_data()}
    while todo:
        name = todo.pop()
        path = _locate(name) if name else None
        if path is None or name in seen or not (draws or _counts(name)):
            continue
        seen.add(name)
        if path != PACKAGE and not (path.is_dir() and _is_bare(path)):
            found[name] = _digest(path)
        parent = name.rpartition(".")[0]
        sources = [path / "__init__.py", *filter(_is_loose_code, _list_loose(path))] if path.is_dir() else [path]
        for source_path in sources:
            package = name if path.is_dir() else parent
            todo |= _imports(source_path.read_text("utf-8"), package, str(source_path))
        todo.add(parent)
    return dict(sorted(found.items()))


def _counts(name: str) -> bool:
    return not any(name == shown or name.startswith(f"{shown}.") for shown in SHOWN)


def _is_bare(package: Path) -> bool:
    """Tell whether a package's own file is a docstring only, and nothing loose lies in it."""
    body = ast.parse((package / "__init__.py").read_text("utf-8")).body
    return len(body) == 1 and isinstance(body[0], ast.Expr) and not _list_loose(package)


def _list_loose(package: Path) -> list[Path]:
    """Return the files of a package that are part of it without being modules: data, and code that YAML names."""
    if package == PACKAGE:
        return []
    inside = [p for p in sorted(package.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    return [p for p in inside if p.suffix in (".yaml", ".csv") or _is_loose_code(p)]


def _is_loose_code(path: Path) -> bool:
    return path.suffix == ".py" and not (path.parent / "__init__.py").is_file()


def _digest(path: Path) -> str:
    if not path.is_dir():
        return compute_file_digest(path)
    files = [path / "__init__.py", *_list_loose(path)]
    return compute_digest([[p.relative_to(path).as_posix(), compute_file_digest(p)] for p in files])


def _digest_data() -> str:
    shown = {"demo", "report"}  # the demo's files are named by settings; no number depends on the page
    files = [p for p in sorted((PACKAGE / "data").rglob("*")) if p.is_file() and not shown & set(p.parts)]
    return compute_digest([[p.name, compute_file_digest(p)] for p in files if p.suffix not in (".py", ".pyc")])


@cache
def _imports(source: str, package: str, where: str) -> frozenset[str]:
    names = set()
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise InputError(f"{where}: line {error.lineno} is not valid Python: {error.msg}") from None
    for node in _walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).strip(".")
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    lazy = {f"karma.{n.rpartition('.')[2]}" for n in names if n.startswith("karma.") and n.count(".") == 1}
    names |= {karma._LAZY[n.removeprefix("karma.")] for n in lazy if n.removeprefix("karma.") in karma._LAZY}
    return frozenset(name for name in names if name == "karma" or name.startswith("karma."))


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            yield from _walk(node)


def _locate(name: str) -> Path | None:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    if (path / "__init__.py").is_file():
        return path
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None
