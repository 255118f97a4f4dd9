"""report.html: one self-contained page from an executed notebook, and `karma report`.

nbconvert renders the outputs and the prose; code stays in the notebook. Around it goes a small page of
our own (data/report/): contents, sortable tables, a print style. Decision: nothing is fetched, neither
scripts nor fonts, so that the page reads the same offline and in ten years. Limit: equations are not
typeset (nbconvert would fetch MathJax), so notebook 06 holds none.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from karma.errors import InputError
from karma.files import atomic_path

_PARTS = files("karma") / "data" / "report"


def export_html(executed_notebook: str | Path, out: str | Path) -> Path:
    """Write an executed notebook as one page: no code, with contents, figures inside the file, sortable tables.

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


def render_page(notebook: Any) -> str:
    """Return the page of a notebook object as HTML."""
    import jinja2
    from bs4 import BeautifulSoup
    from markupsafe import Markup
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    body = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "lxml").body
    for kind in body.select("script, .anchor-link"):
        kind.decompose()
    contents = _number_headings(body)
    for table in body.select("table"):
        del table["border"], table["style"]
        table.wrap(body.new_tag("div", attrs={"class": "table"}))
    title = body.h1.get_text() if body.h1 else "KARMA"
    parts = {name: (_PARTS / f"page.{name}").read_text("utf-8") for name in ("css", "js")}
    page = jinja2.Environment(autoescape=True).from_string((_PARTS / "page.html.j2").read_text("utf-8"))
    safe = {"css": parts["css"], "script": parts["js"], "body": str(body)}
    marked = {name: Markup(text) for name, text in safe.items()}
    return page.render(title=title, contents=contents, footer="Made by the KARMA kit.", **marked)


def _number_headings(body: Any) -> list[tuple[str, str]]:
    """Give every h2 an id of its own, and every picture the heading above it as its text; return the contents."""
    contents, heading = [], ""
    for tag in body.find_all(["h1", "h2", "h3", "img"]):
        if tag.name == "img":
            tag["alt"] = heading
            continue
        heading = tag.get_text().strip()
        if tag.name == "h2":
            tag["id"] = f"section-{len(contents) + 1}"
            contents.append((tag["id"], heading))
    return contents
