"""What a foreign table of scores says, as far as it can be told: which column names models, which hold scores.

`karma read-scores` shows the result before anyone computes with it. Only what can be read off is taken: a column of
numbers in 0 to 100 is a benchmark, an average is not, and what is known of a benchmark by its name (the paper's, and
those of the shipped column maps) is said. The rest is set aside by name, never in silence. Limit: any column of such
numbers is taken for scores, a rank or a price too; `--ignore` names it, a column map says it all.
"""

import math
import re
from collections.abc import Collection
from pathlib import Path

from karma.errors import InputError, quote, show_line
from karma.files.numbers import parse_number
from karma.scores.columns import UNSTATED, Column, ColumnMap, Fact, Unit, compute_fractions
from karma.scores.missing import is_missing
from karma.scores.read import ASSUMED_ITEMS, MAPS, find_column_map
from karma.scores.table import load_benchmarks

_NAMES = ("origin_model", "fullname", "model_name", "model", "name")
_AVERAGES = {"average", "avg", "mean", "average_score", "overall", "total"}
_FACTS: dict[str, Fact] = {
    "developer": "developer", "organization": "developer", "base_model": "base_model", "size_b": "size_b",
    "params_b": "size_b", "params": "size_b", "family": "family", "architecture": "family", "merged": "merged",
    "tuning_data": "tuning_data", "repository": "repository",
}  # fmt: skip


def simplify(text: str) -> str:
    """Return a heading as a name: lower case, words joined by underscores.

    Example:
        >>> simplify("#Params (B)"), simplify("Average ⬆️"), simplify("MMLU-PRO Raw")
        ('params_b', 'average', 'mmlu_pro_raw')
    """
    return re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")


def understand(
    header: list[str], rows: list[list[str]], file: str, ignore: Collection[str] = (), unit: Unit | None = None
) -> tuple[ColumnMap, dict[str, str]]:
    """Tell what a table's columns hold.

    Args:
        header, rows: text, as of `karma.scores.columns.load_rows`. file: the table's name, for messages.
        ignore: columns that are no benchmarks. unit: of all columns; None: by the numbers of each.

    Returns:
        A column map; and the columns set aside, each with the reason.

    Raises:
        InputError: no column of names or of scores, columns of one name, a column of two units, or one of a known
            benchmark that holds something else than scores.

    Example:
        >>> rows = [["a", "Llama", "61.5", "0.30", "45.7"], ["b", "Qwen", "70.0", "0.55", "62.5"]]
        >>> columns, aside = understand(["Model", "Chat?", "GSM8K", "My Test", "Average"], rows, "t.csv")
        >>> {name: (one.unit, one.capability) for name, one in columns.benchmarks.items()}
        {'gsm8k': ('percent', 'reasoning'), 'my_test': ('fraction', 'unstated')}
        >>> aside
        {'Chat?': 'no numbers', 'Average': 'an average'}
    """
    if unknown := [name for name in ignore if name not in header]:
        raise InputError(f"--ignore {unknown[0]}: {file} has no such column; it has {', '.join(header)}")
    text = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    names = _find_names(header, text, file)
    facts: dict[Fact, str] = {}
    aside = dict.fromkeys(ignore, "as asked")
    benchmarks: dict[str, Column] = {}
    catalogue = load_catalogue()
    for heading in header:
        if heading in names or heading in aside:
            continue
        name = simplify(heading)
        if name in _FACTS and _FACTS[name] not in facts:
            facts[_FACTS[name]] = heading
        elif name in _AVERAGES:
            aside[heading] = "an average"
        elif reason := _find_reason(text[heading], where := f"{file}, column '{heading}'"):
            if name in catalogue and reason != "empty":  # a known benchmark's is a mistake, and no other kind of column
                raise InputError(
                    f"{where}: a cell is {_find_odd(text[heading])}: correct it, or leave it out with --ignore"
                )
            aside[heading] = reason
        elif not name or name in benchmarks:
            raise InputError(f"{file}: columns '{heading}' and another make one name, '{name}': rename one, or leave "
                             "one out (--ignore)")  # fmt: skip
        else:
            benchmarks[name] = _describe(heading, name, text, names, file, unit, catalogue.get(name))
    if not benchmarks:
        why = "; ".join(f"'{name}': {reason}" for name, reason in aside.items())
        raise InputError(f"{file}: no column of scores ({why or 'no other column'}): give one number a model and test")
    assumed = ASSUMED_ITEMS if all(b.n_items for b in benchmarks.values()) else None
    return ColumnMap(origin_model=names, benchmarks=benchmarks, facts=facts, n_items_source=assumed,
                     case_sensitive=len(names) > 1 or names[0] == "fullname"), aside  # fmt: skip


def recognise(header: list[str]) -> str | None:
    """Return the shipped column map all of whose columns a table has, or None.

    Example:
        >>> recognise(["fullname", "Precision", "ARC"]) is None
        True
    """
    for path in sorted(MAPS.iterdir(), key=str):
        columns = find_column_map(Path(str(path)).stem)
        named = {*columns.origin_model, *columns.facts.values(), *(b.column for b in columns.benchmarks.values())}
        if named <= set(header):
            return Path(str(path)).stem
    return None


def load_catalogue() -> dict[str, Column]:
    """Return what is known of benchmarks by name: those of the shipped column maps, and the paper's."""
    found: dict[str, Column] = {}
    for path in sorted(MAPS.iterdir(), key=str):
        found |= find_column_map(Path(str(path)).stem).benchmarks
    for name, row in load_benchmarks().iterrows():
        chance = None if row["chance"] != row["chance"] else float(row["chance"])
        found[str(name)] = Column(column=str(name), unit="fraction", title=row["title"], chance=chance,
                                  capability=row["capability"], answer_form=row["answer_form"],
                                  n_items=int(row["n_items"]))  # fmt: skip
    return found


def _find_names(header: list[str], text: dict[str, list[str]], file: str) -> list[str]:
    """Return the column that names models; with a precision beside it where names alone repeat."""
    named = {simplify(name): name for name in reversed(header)}
    first = next((named[name] for name in _NAMES if name in named), None)
    if first is None and _find_reason(text[header[0]], f"{file}, column '{header[0]}'") == "no numbers":
        first = header[0]
    if first is None:
        raise InputError(f"{file}: no column names the models: call one of {', '.join(header[:6])} 'origin_model'")
    repeats = len(set(text[first])) < len(text[first])
    return [first, named["precision"]] if repeats and "precision" in named else [first]


def _find_reason(cells: list[str], where: str) -> str | None:
    """Return why a column cannot be scores, or None."""
    values = []
    for cell in cells:
        if not is_missing(cell):
            try:
                values.append(parse_number(cell.removesuffix("%")))
            except ValueError:
                return "no numbers"
    if not values:
        return "empty"
    if not all(map(math.isfinite, values)):
        value = next(value for value in values if not math.isfinite(value))
        raise InputError(f"{where}: a cell is {value}: write a finite number, or leave the column out with --ignore")
    odd = [value for value in values if not 0 <= value <= 100]
    return f"{odd[0]:g} is outside 0 to 100: name its scale in a column map" if odd else None


def _find_odd(cells: list[str]) -> str:
    """Return the first cell that is no score."""
    return quote(next(cell for cell in cells if not is_missing(cell) and _find_reason([cell], "")))


def _describe(
    heading: str, name: str, text: dict[str, list[str]], names: list[str], file: str, unit: Unit | None,
    known: Column | None,
) -> Column:  # fmt: skip
    models = zip(text[names[0]], text[heading], strict=True)
    cells = {f"{model} ({row})": cell for row, (model, cell) in enumerate(models, 2) if not is_missing(cell)}
    compute_fractions(cells, heading, file, unit)  # refuses what mixes units
    is_percent = any(cell.endswith("%") or parse_number(cell) > 1 for cell in cells.values())
    unit = unit or ("percent" if is_percent else "fraction")
    if known is None:
        return Column(
            column=heading,
            unit=unit,
            title=show_line(" ".join(heading.split())),
            capability=UNSTATED,
            answer_form=UNSTATED,
        )
    return known.model_copy(update={"column": heading, "unit": unit})
