"""Write the book: `make book`. Sphinx on all notebooks as a finished study ran them, method pages, reference, glossary.

The pages are gathered in build/book/source from the files that are true already (notebooks, docs/, docstrings, the
course), so that nothing stands twice. Decision: any warning fails the build, a link that leads nowhere among them;
after it every page is searched for scripts, styles and pictures that a reader would fetch from a network.
"""

import base64
import inspect
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat

import karma
from docs.course import build as course
from docs.course import notebooks as own
from karma.errors import InputError, KarmaError
from karma.study.experiment import Experiment

HERE = Path(__file__).parent
ROOMS = ("errors", "files", "vocabulary", "statistics", "strategies", "scores", "kinship", "pool", "pairs", "labels",
         "models", "training", "evaluation", "potential", "self_play", "results", "study")  # fmt: skip
LEXERS = ("python", "json", "yaml", "sh", "bash", "text", "console", "toml")
_FENCE = re.compile(r"^(\s*```)(\w+)[^\n`]*$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")
_ANCHOR = re.compile(r"""<a\b[^>]*\bhref=["'](?!https?:|mailto:|#)[^"']*["'][^>]*>(.*?)</a>""", re.DOTALL)
_FETCHED = re.compile(
    r"""<(?:script|link|img|iframe|video|audio|source)\b[^>]*\b(?:src|href)=["']((?:https?:)?//[^"']+)"""
)
_IMPORTED = re.compile(r"""(?:@import\s+|url\()["']?((?:https?:)?//[^"')]+)""")


def build_sources(experiment: Experiment, out: Path) -> list[str]:
    """Gather the book's pages in a folder; return the notebooks whose code has changed since the study ran.

    Raises:
        InputError: the study has no finished job; nothing is written then.
    """
    run = max(own.measure(experiment).values(), key=lambda m: m.date, default=None)
    if run is None:
        raise InputError(f"{experiment.settings.name} has no finished job: run it, or name another with --study")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(HERE / "static", out / "_static")
    shutil.copy(HERE / "conf.py", out)
    stale, gallery, solutions = [], list[str](), ["# Solutions\n"]
    for path in own.NOTEBOOKS:
        notebook, number = own.read_notebook(path), path.stem[:2]
        filled, changed = course.fill_outputs(notebook, own.find_executed(experiment, path))
        stale += [path.name] if changed else []
        solutions.append(f"## {number}\n\n{course.write_solutions(notebook, number, experiment)}\n")
        gallery += write_figures(filled, path.stem, out / "gallery")
        for cell in filled.cells:
            cell.source = mend_links(cell.source, out, path.parent) if cell.cell_type == "markdown" else cell.source
            unlink_outputs(cell)
        (out / "notebooks").mkdir(exist_ok=True)
        nbformat.write(filled, out / "notebooks" / path.name)
    (out / "solutions.md").write_text("\n".join(solutions), "utf-8")
    (out / "course.md").write_text(course.write_landing_page(experiment, {"shown": "notebooks"}), "utf-8")
    pages = sorted(p for p in (own.ROOT / "docs").glob("*.md"))
    for page in pages:
        (out / page.name).write_text(mend_fences(mend_links(page.read_text("utf-8"), out, page.parent)), "utf-8")
    parts = {
        "RUN": f"the study *{experiment.settings.name}*, finished on {run.date} ({run.device}).",
        "NOTEBOOKS": "\n".join(f"notebooks/{path.stem}" for path in own.NOTEBOOKS),
        "PAGES": "\n".join(page.stem for page in pages), "GALLERY": "\n".join(gallery),
        "NAMES": "\n".join(write_name(name) for name in karma.__all__ if name != "__version__"),
        "MODULES": "\n".join(f"api/{room}" for room in ROOMS),
    }  # fmt: skip
    for page in sorted((HERE / "pages").glob("*.md")):
        text = page.read_text("utf-8")
        for name, part in parts.items():
            text = text.replace(f"<!-- {name} -->", part)
        (out / page.name).write_text(text, "utf-8")
    (out / "api").mkdir()
    for room in ROOMS:
        (out / "api" / f"{room}.md").write_text(write_room(room), "utf-8")
    return stale


def write_name(name: str) -> str:
    """Return the directive that documents a public name, under the module it comes from."""
    value = getattr(karma, name)
    kind = "autoexception" if isinstance(value, type) else "autofunction"
    return f".. {kind}:: karma.{name}\n   :no-index:\n"


def write_room(room: str) -> str:
    """Return the page of a package: its modules, each with its public functions and classes."""
    folder = Path(karma.__file__).parent
    names = [room] if (folder / f"{room}.py").is_file() else [f"{room}.{p.stem}" for p in
             sorted((folder / room).glob("[a-z]*.py"))]  # fmt: skip
    lines = [f"# karma.{room}", ""]
    for name in names:
        module = import_module(f"karma.{name}")
        if not any(_is_public(module, member) for member in vars(module)):
            continue
        lines += [f"## karma.{name}", "", "```{eval-rst}", f".. automodule:: karma.{name}", "   :members:", "```", ""]
    return "\n".join(lines)


def _is_public(module: Any, name: str) -> bool:
    value = getattr(module, name)
    known = inspect.isfunction(value) or inspect.isclass(value)
    return known and not name.startswith("_") and value.__module__ == module.__name__


def write_figures(notebook: Any, stem: str, folder: Path) -> list[str]:
    """Write a notebook's figures as files; return Markdown that shows them, with a link to where each is explained."""
    folder.mkdir(exist_ok=True)
    found = list[str]()
    title = own.read_goal(notebook)[0]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                name = f"{stem}-{len(found) + 1}.png"
                (folder / name).write_bytes(base64.b64decode(picture))
                found.append(f"[![{title} (figure {len(found) + 1})](gallery/{name})](notebooks/{stem}.ipynb)\n")
    return [f"## {stem[:2]} {title}\n", *found] if found else []


def mend_fences(text: str) -> str:
    """Return Markdown whose code blocks name a language that Sphinx can colour, or text."""
    return _FENCE.sub(lambda m: m[1] + (m[2] if m[2] in LEXERS else "text"), text)


def mend_links(text: str, out: Path, folder: Path) -> str:
    """Return Markdown without links to files that are no page of the book: they stay as text."""
    pages = {p.name for p in (own.ROOT / "docs").glob("*.md")} | {p.name for p in own.NOTEBOOKS}

    def mend(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        name = target.partition("#")[0].rpartition("/")[2]
        if picture and (folder / target).is_file():
            (out / "pictures").mkdir(exist_ok=True)
            shutil.copy(folder / target, out / "pictures")
            return f"![{label}](/pictures/{name})"
        if name not in pages or picture:
            return label
        return f"[{label}](/{'notebooks/' if name.endswith('.ipynb') else ''}{name})"

    return _LINK.sub(mend, text)


def unlink_outputs(cell: Any) -> None:
    """Leave of links in a cell's outputs to files of the study, which the book has not, the text."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/html" in data:
            data["text/html"] = _ANCHOR.sub(r"\1", data["text/html"])
        if "text/markdown" in data:
            data["text/markdown"] = _LINK.sub(r"\2", data["text/markdown"])


def find_fetched(folder: Path) -> list[str]:
    """Return what a reader's browser would fetch from a network, page by page."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css"):
            pattern = _FETCHED if path.suffix == ".html" else _IMPORTED
            found += [f"{path.relative_to(folder)}: {address}" for address in pattern.findall(path.read_text("utf-8"))]
    return found


def build_book(experiment: Experiment, out: Path) -> list[str]:
    """Build the book into `out`/html; return the notebooks that are out of date.

    Raises:
        KarmaError: Sphinx warned of something, or a page would fetch something from a network.
    """
    stale = build_sources(experiment, out / "source")
    options = ["-W", "--keep-going", "-n", "-q", "-E", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *options, str(out / "source"), str(out / "html")]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{own.ROOT}", "HF_HUB_OFFLINE": "1"}
    shutil.rmtree(out / "html", ignore_errors=True)
    if subprocess.run(command, env=environment, check=False).returncode:
        raise KarmaError("the book has faults: see the lines above")
    if fetched := find_fetched(out / "html"):
        raise KarmaError("the book would fetch from a network:\n" + "\n".join(fetched))
    return stale


def main() -> None:
    """Build the book from the command line."""
    own.build_from_shell(build_book, own.ROOT / "build" / "book", "html/index.html", __doc__)


if __name__ == "__main__":
    main()
