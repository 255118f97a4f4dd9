"""Docstrings as this package writes them, made into what Sphinx reads: plain text, sections, formulas, examples.

The kit's docstrings are text for people: bars and stars are letters, an indented formula is shown as it stands, and an
example may hold any character. Each would mean something else to reStructuredText.
"""

import inspect
import re
from typing import Any

_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Paper|Note):?(\s.*)?$")
_PLURAL = re.compile(r"`([^`]+)`(?=\w)")
_MARKS = re.compile(r"(?<![\\`])(\*\*?|\||(?<=\w)_(?!\w))(?!`)")


def mend(lines: list[str], is_module: bool) -> list[str]:
    """Return a docstring's lines with marks escaped, formulas literal and examples whole.

    Example:
        >>> mend(["The gap |a - b|:", "", "    a - b", "", "More."], True)
        ['The gap \\\\|a - b\\\\|:', '', '::', '', '    a - b', '', 'More.']
    """
    made, part, literal = list[str](), "", False
    for line in lines:
        section = _SECTION.match(line)
        part = section[1] if section else part
        in_example = part == "Example"
        if part in ("Returns", "Yields"):
            line = line.replace("`", "")  # what stands before its first colon is read as a type
        elif not section and in_example and line.strip() and not line.startswith("    "):
            line = f"    {line}"  # a line that was cut within a text of the example
        indented = line.startswith("    ") and is_module and not in_example
        if indented and not literal:
            made += [*([""] if made and made[-1] else []), "::", ""]
        elif literal and line and not indented and made[-1]:
            made.append("")
        literal = indented or (literal and not line)
        made.append(line if literal or in_example else _MARKS.sub(r"\\\1", _PLURAL.sub(r"\1", line)))
    return made


def _process(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    text = getattr(value, "__doc__", None) or ""
    if "\u2028" in text:  # which ended a line for Sphinx, within a text of an example
        lines[:] = inspect.cleandoc(text.replace("\u2028", " ")).split("\n")
    lines[:] = mend(lines, what == "module")


def setup(app: Any) -> dict[str, bool]:
    """Look at every docstring before its sections are read."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
