"""Text of others, made harmless where people look at it: HTML, Markdown, LaTeX, spreadsheets.

Names of models come from score tables, prompts and answers from pools and models: any of them may hold a script, a
remote picture, a LaTeX command or a formula. Decision: what is read by programs (parquet, JSON, the CSV files beside
them) keeps every byte; what is read by people (executed notebooks, report.html, cards, tables/) goes through here,
whole, so that no caller must remember which column is whose. Limit: a web address stays readable as text, and some
viewers make a link of it; nothing is fetched before somebody clicks.
"""

import html
import re
from typing import TYPE_CHECKING, Any

from karma.files.reading import compute_digest

if TYPE_CHECKING:
    import pandas as pd

# An underscore inside of a word marks nothing, and a bracket that nothing hangs on is one; a link's or a picture's has.
_MARKDOWN = re.compile(r"[\\`*|~$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")
_LEADING = re.compile(r"(?:[-+=#]+|\d+(?=[.)]))(?=[.)]?(?:\s|$))")  # what begins a list, a heading or a rule
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          **{mark: f"\\{mark}" for mark in "&%$#_{}"}}  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBERS = re.compile(r"[+-]?[\d\s.,%()\[\];-]*(to [\d\s.,%+-]*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def flatten(text: object) -> str:
    """Return a text on one line, without control characters and without marks that turn its direction.

    Example:
        >>> flatten("one\\r\\n\\x1b[31mtwo")
        'one [31mtwo'
    """
    return " ".join(_CONTROL.sub(" ", str(text)).split())


def escape_html(text: object) -> str:
    """Return a text for HTML, inside of a tag's quotes too.

    Example:
        >>> escape_html("<script>")
        '&lt;script&gt;'
    """
    return html.escape(str(text), quote=True)


def escape_markdown(text: object) -> str:
    """Return a text as one line of Markdown, in a sentence or a table's cell, that shows as it is.

    Example:
        >>> print(escape_markdown("k_sim ![x](https://a.b/c.png) <b>|"))
        k_sim ![x\\](https://a.b/c.png) &lt;b&gt;\\|
    """
    escaped = _MARKDOWN.sub(lambda mark: f"\\{mark[0]}", html.escape(flatten(text), quote=False))
    if begins := _LEADING.match(escaped):
        at = begins.end() if escaped[0].isdecimal() else 0
        escaped = f"{escaped[:at]}\\{escaped[at:]}"
    return escaped


def quote_code(text: object) -> str:
    """Return a text as Markdown's code, in as many backticks as it takes.

    Example:
        >>> quote_code("a `b`")
        '`` a `b` ``'
    """
    flat = flatten(text)
    runs = re.findall("`+", flat)
    if not runs:
        return f"`{flat}`"
    fence = "`" * (max(map(len, runs)) + 1)
    return f"{fence} {flat} {fence}"


def escape_latex(text: object) -> str:
    """Return a text for LaTeX, on one line.

    Example:
        >>> print(escape_latex("\\\\input{x} 5 %"))
        \\textbackslash{}input\\{x\\} 5 \\%
    """
    return "".join(_LATEX.get(character, character) for character in flatten(text))


def escape_formula(value: object) -> object:
    """Return a cell that a spreadsheet shows as it is: a text that it would compute begins with an apostrophe.

    Numbers, as text too, stay: none of them is computed.

    Example:
        >>> [escape_formula(cell) for cell in ("=1+1", "-0.01 to +0.02", -0.5)]
        ["'=1+1", '-0.01 to +0.02', -0.5]
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) and not _NUMBERS.fullmatch(value):
        return f"'{value}"
    return value


def escape_frame(frame: "pd.DataFrame", escape: Any) -> "pd.DataFrame":
    """Return a table with `escape` done to every text in it, heads and index included.

    Args:
        frame: any. escape: of this module.

    Example:
        >>> import pandas as pd
        >>> escape_frame(pd.DataFrame({"<a>": ["=x", 1]}), escape_formula)["<a>"].tolist()
        ["'=x", 1]
    """

    def one(cell: object) -> object:
        return cell if _is_number(cell) else escape(cell)

    done = frame.map(one)
    for axis in ("index", "columns"):
        labels = getattr(done, axis)
        if len(labels):
            labels = labels.map(lambda label: tuple(map(one, label)) if isinstance(label, tuple) else one(label))
        names = [None if name is None else escape(name) for name in labels.names]
        setattr(done, axis, labels.set_names(names))
    return done


def write_markdown(frame: "pd.DataFrame", **options: Any) -> str:
    """Return a table in Markdown, every text in it escaped.

    Args:
        frame: any. **options: of `DataFrame.to_markdown`.
    """
    return str(escape_frame(frame, escape_markdown).to_markdown(disable_numparse=True, **options))


def style(frame: "pd.DataFrame") -> Any:
    """Return `frame.style` with every text escaped, whatever it is told later; for tables in notebooks.

    The same table is the same page, byte for byte: its cells are named by its content.

    Example:
        >>> import pandas as pd
        >>> "<b>" in style(pd.DataFrame({"<b>": ["<b>"]}, index=["<b>"])).format("{}!").to_html()
        False
    """
    from pandas.io.formats.style import Styler

    class Escaped(Styler):  # type: ignore[misc]  # pandas carries no types
        def format(self, *args: Any, **options: Any) -> Any:
            return super().format(*args, **{**options, "escape": options.get("escape") or "html"})

        def format_index(self, *args: Any, **options: Any) -> Any:
            return super().format_index(*args, **{**options, "escape": options.get("escape") or "html"})

        def set_caption(self, caption: str) -> Any:
            return super().set_caption(escape_html(caption))

    shown = frame.map(lambda cell: cell if _is_number(cell) or isinstance(cell, str) else str(cell))
    for axis in ("index", "columns"):
        names = [None if name is None else escape_html(name) for name in getattr(shown, axis).names]
        setattr(shown, axis, getattr(shown, axis).set_names(names))
    return Escaped(shown, uuid=compute_digest(shown.to_csv())[:8]).format_index().format_index(axis="columns")


def _is_number(cell: object) -> bool:
    import numpy as np
    import pandas as pd

    return cell is None or cell is pd.NA or isinstance(cell, bool | int | float | np.number | np.bool_)
