"""A table of thousands of rows that can be searched and sorted, in one file that fetches nothing.

ITables draws it with DataTables, whose script and style stand in the page (a megabyte, once). In a notebook that
somebody reads live the page's table is shown; in one that runs headless, whose outputs are kept, the first rows as
plain text and where the page lies, so that no executed notebook grows by a megabyte. Every text of the table is
escaped. Limit: a browser holds some tens of thousands of rows well, not millions.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma.files.writing import atomic_path
from karma.study.escape import escape_html, style

if TYPE_CHECKING:
    import pandas as pd

LIVE = ("JPY_SESSION_NAME", "VSCODE_PID")  # what JupyterLab and VS Code set for a kernel that somebody opened
_OPTIONS: dict[str, Any] = {
    "maxBytes": 0, "allow_html": False, "connected": False, "display_logo_when_loading": False,
    "classes": "display compact", "lengthMenu": [25, 100, 1000], "format_floats_in_python": False, "showIndex": True,
}  # fmt: skip


def write_searchable(frame: "pd.DataFrame", path: Path, title: str) -> None:
    """Write a page with a table that can be searched and sorted, whole, with all that it needs.

    Args:
        frame: rows to show, the index as first column. path: of the page. title: of the page.
    """
    page = (f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape_html(title)}</title></head>"
            f"<body style='font-family: sans-serif'>\n<h1>{escape_html(title)}</h1>\n{_build_table(frame)}\n"
            "</body></html>\n")  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def show_searchable(frame: "pd.DataFrame", page: Path, n: int = 40) -> Any:
    """Return what a notebook displays of a long table: to be searched where somebody reads live, else the first rows.

    Args:
        frame: the table. page: where `write_searchable` wrote it. n: rows of the plain table.
    """
    if len(frame) > n and any(name in os.environ for name in LIVE):
        from IPython.display import HTML

        return HTML(_build_table(frame))  # type: ignore[no-untyped-call]
    if len(frame) > n:
        print(f"the first {n} of {len(frame):,} rows; {page.name} has all of them, to be searched")
    return style(frame.head(n)).format(precision=3, na_rep="")


def _build_table(frame: "pd.DataFrame") -> str:
    """Return HTML: DataTables, and the table as data for it."""
    from itables.javascript import generate_init_offline_itables_html, to_html_datatable
    from itables.options import dt_bundle

    return generate_init_offline_itables_html(dt_bundle) + to_html_datatable(frame, **_OPTIONS)
