"""report.html: one self-contained page from an executed notebook, and `karma report`.

nbconvert renders the outputs and the prose; code stays in the notebook. Around it goes a small page of
our own (data/report/): contents, sortable tables, a print style. Decision: nothing is fetched, neither
scripts nor fonts, so that the page reads the same offline and in ten years; its content policy lets a
browser run the page's own script alone. Limit: equations are not
typeset (nbconvert would fetch MathJax), so notebook 06 holds none.
"""

import logging
import os
import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from karma import __version__
from karma.errors import InputError
from karma.files.reading import load_json
from karma.files.writing import atomic_path
from karma.results.furnish import furnish
from karma.results.study import Study
from karma.study.escape import escape_html
from karma.study.stages import Job, find_job

ACTIVE = "script, iframe, frame, object, embed, link, meta, base, form, applet, portal"
NOT_SHOWN = "not-in-report"  # a cell's tag
_PARTS = files("karma") / "data" / "report"


def run(job: Job) -> None:
    """Write report.html of the executed notebook 06: what stage 06 does after its notebook."""
    export_html(job.executed_notebook, job.folder / "report.html")


def export_html(executed_notebook: str | Path, out: str | Path) -> Path:
    """Write an executed notebook as one page: no code, contents, figures in the file, sortable tables.

    Args:
        executed_notebook: a notebook with outputs.
        out: the HTML file. Relative links in the notebook hold from its folder.

    Returns:
        `out`.

    Raises:
        InputError: the notebook is missing, or was never executed.
    """
    import nbformat

    path, out = Path(executed_notebook), Path(out)
    if not path.is_file():
        raise InputError(f"{path} does not exist: run `karma notebook 06_results EXPERIMENT` first")
    notebook = nbformat.read(path, as_version=4)
    if not any(cell.get("outputs") for cell in notebook.cells):
        raise InputError(f"{path} has no outputs, expected an executed notebook: run it first")
    with atomic_path(out) as temporary:
        temporary.write_text(render_page(notebook), "utf-8")
    return out


def show_links(study: Study, folder: Path) -> Any:
    """Return each folder with links to its records, and the executed notebooks, for a notebook's cell.

    Args:
        study: a measured study.
        folder: where report.html will lie.
    """
    from IPython.display import HTML

    assert study.folder is not None
    rows = []
    for path in sorted(study.folder.glob("**/provenance.json")):
        where = path.parent.relative_to(study.folder).as_posix()
        names = [n for n in ("training.json", "scores.json", "accounting.json") if (path.parent / n).is_file()]
        links = [_link(path.parent / name, name, folder) for name in [*names, "provenance.json"]]
        rows.append({"folder": where, "records": " ".join(links), "stages": ", ".join(load_json(path))})
    notebooks = sorted((study.folder / "notebooks").glob("*.ipynb"))
    rows.append(
        {
            "folder": "notebooks",
            "records": " ".join(_link(p, p.stem, folder) for p in notebooks),
            "stages": "",
        }
    )
    heads = "".join(f"<th>{escape_html(name)}</th>" for name in rows[0])
    lines = [
        f"<td>{escape_html(r['folder'])}</td><td>{r['records']}</td><td>{escape_html(r['stages'])}</td>" for r in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    caption = "<caption>Every folder and its records.</caption>"
    head = f'<table class="dataframe" id="records">{caption}<thead><tr>{heads}</tr></thead>'
    return HTML(f"{head}<tbody>{body}</tbody></table>")


def _link(path: Path, text: str, folder: Path) -> str:
    return f'<a href="{quote(os.path.relpath(path, folder), safe="/+")}">{escape_html(text)}</a>'


def render_page(notebook: Any) -> str:
    """Return the page of a notebook object with outputs as HTML; cells tagged NOT_SHOWN are left out."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    exporter.log = logging.getLogger("karma.results.page")
    exporter.log.setLevel(logging.ERROR)  # it warns of pictures without a text, which get theirs below
    notebook = notebook.copy()
    notebook.cells = [cell for cell in notebook.cells if NOT_SHOWN not in cell.metadata.get("tags", [])]
    return build_page(exporter.from_notebook_node(notebook)[0])


def build_page(html: str) -> str:
    """Return the whole page around a body: what is alive in it is taken out, what it lacks is added.

    Args:
        html: of headings, texts, tables and `karma.results.pictures`.
    """
    import jinja2
    from bs4 import BeautifulSoup
    from markupsafe import Markup

    body = BeautifulSoup(html, "html.parser")
    for kind in body.select(f"{ACTIVE}, style[scoped], .anchor-link"):
        kind.decompose()
    for tag in body.find_all(True):
        _disarm(tag)
    contents = furnish(body)
    title = body.h1.get_text() if body.h1 else "KARMA"
    parts = {name: (_PARTS / f"page.{name}").read_text("utf-8") for name in ("css", "js")}
    cite, page = (jinja2.Environment(autoescape=escape).from_string((_PARTS / f"{name}.j2").read_text("utf-8"))
                  for name, escape in (("cite.bib", False), ("page.html", True)))  # fmt: skip
    bibliography = cite.render(version=__version__)
    safe = {"css": parts["css"], "script": f"\n{parts['js']}\n", "body": str(body)}
    digest = b64encode(sha256(safe["script"].encode()).digest()).decode()
    marked = {name: Markup(text) for name, text in safe.items()}
    cited = f"data:text/plain;base64,{b64encode(bibliography.encode()).decode()}"
    return page.render(title=title, contents=contents, digest=digest, footer="Made by the KARMA kit.",
                       bibliography=bibliography, cited=cited, **marked)  # fmt: skip


def _disarm(tag: Any) -> None:
    """Take from a tag what a browser would run or fetch; outputs are escaped where they are made, this is the fence."""
    for name, value in [*tag.attrs.items()]:
        text = "".join(str(value).split()).lower()
        fetches = name in ("src", "srcset", "poster", "background", "data") and not text.startswith("data:image/")
        runs = name in ("href", "xlink:href", "action", "formaction") and re.match(r"(javascript|data|vbscript):", text)
        if name.lower().startswith("on") or name == "srcdoc" or fetches or runs:
            del tag[name]


def open_results(experiment: str | Path) -> Job:
    """Open stage 06 in the kit's figure style; unlike other stages it starts although files are missing."""
    import matplotlib.pyplot as plt

    from karma.figures.style import set_style
    from karma.study.current import check_settings
    from karma.study.experiment import load_experiment

    set_style()
    plt.rcParams["figure.dpi"] = 160  # a page that is printed shows what the notebook shows
    pd.set_option("display.max_colwidth", None)
    job = find_job(load_experiment(experiment), "06_results", {})
    check_settings(job)
    return job
