"""What a stage is made of: its notebook's code cells and every `karma` module they reach.

The sweep depends on this fingerprint, not on the `.ipynb`, so that saving a notebook in JupyterLab (new outputs, new
execution counts) reruns nothing, while an edit of its code, or of a module behind it, reruns the stage.
"""

import ast
import json
from pathlib import Path

import karma
from karma.errors import InputError
from karma.files import compute_digest, compute_file_digest
from karma.stages import Stage

PACKAGE = Path(karma.__file__).parent


def compute_stage_code(stage: Stage, root: Path) -> dict[str, object]:
    """Return {"notebook": digest of its code cells or None, "modules": {name: digest}}."""
    if not stage.has_notebook:
        return {"notebook": None, "modules": compute_modules(f"import karma.{stage.module}")}
    notebook = root / "notebooks" / f"{stage.name}.ipynb"
    if not notebook.is_file():
        raise InputError(f"{notebook} is missing: every stage of the sweep needs its notebook")
    source = read_code(notebook)
    return {"notebook": compute_digest(source), "modules": compute_modules(source, f"notebooks/{stage.name}.ipynb")}


def read_code(notebook: Path) -> str:
    """Return a notebook's code cells as one text, with lines of IPython's own (% and !) as comments."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return "\n".join(f"# {line}" if line.lstrip()[:1] in ("%", "!") else line for line in text.splitlines())


def compute_modules(source: str, where: str = "code") -> dict[str, str]:
    """Return every `karma` module that a piece of code reaches by imports, with the digest of its file.

    A package counts with its whole folder, for the data files in it (task YAMLs, the paper's tables).

    Example:
        >>> sorted(compute_modules("from karma.errors import InputError"))
        ['karma', 'karma.errors']
    """
    todo, found = _imports(source, "karma", where), {}
    while todo:
        name = todo.pop()
        path = _locate(name) if name else None
        if path is None or name in found:
            continue
        found[name] = _digest(path)
        text = (path / "__init__.py" if path.is_dir() else path).read_text("utf-8")
        todo |= _imports(text, name if path.is_dir() else name.rpartition(".")[0], str(path))
        todo.add(name.rpartition(".")[0])
    return dict(sorted(found.items()))


def _digest(path: Path) -> str:
    if path == PACKAGE:
        return compute_file_digest(path / "__init__.py")
    if not path.is_dir():
        return compute_file_digest(path)
    own = [p for p in path.iterdir() if p.is_file()] + [p for p in path.rglob("*.yaml")]
    return compute_digest(sorted([p.name, compute_file_digest(p)] for p in own if p.suffix != ".pyc"))


def _imports(source: str, package: str, where: str) -> set[str]:
    names = set()
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise InputError(f"{where}: line {error.lineno} is not valid Python: {error.msg}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).strip(".")
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    lazy = {f"karma.{n.rpartition('.')[2]}" for n in names if n.startswith("karma.") and n.count(".") == 1}
    names |= {karma._LAZY[n.removeprefix("karma.")] for n in lazy if n.removeprefix("karma.") in karma._LAZY}
    return {name for name in names if name == "karma" or name.startswith("karma.")}


def _locate(name: str) -> Path | None:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    if (path / "__init__.py").is_file():
        return path
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None
