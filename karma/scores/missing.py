"""Missing cells of a score table: refused, or their model or their benchmark left out, and counted in a note.

A missing score is never filled in: min-max and cosine would turn the guess into a plausible kinship of every model.
Which of the two to leave out is the user's to say, for it decides who can be paired at all. Limit: one rule for the
whole table; a benchmark that most models lack takes most models with it under drop_model.
"""

from collections.abc import Iterable

import pandas as pd

from karma.errors import InputError

RULES = ("refuse", "drop_model", "drop_benchmark")
_EMPTY = {"", "-", "–", "—", "nan", "na", "n/a", "null", "none"}  # what tables write
MAX_NAMED = 5


def drop_missing(cells: pd.DataFrame, columns: Iterable[str], rule: str, file: str) -> tuple[pd.DataFrame, list[str]]:
    """Leave out the models or the benchmarks of missing cells.

    Args:
        cells: origin_model x columns of text.
        columns: those of `cells` that hold scores.
        rule: one of RULES; refuse changes nothing, for the cell is refused where it is read.
        file: the table's name, for messages.

    Returns:
        The cells that are left, and a note on what is not.

    Raises:
        InputError: an unknown rule, or nothing would be left.

    Example:
        >>> cells = pd.DataFrame({"x": ["1", "2", ""], "y": ["3", "-", "4"]}, index=["a", "b", "c"])
        >>> drop_missing(cells, ["x", "y"], "drop_model", "t.csv")[1]
        ['2 of 3 models lack a score and are left out: b, c']
        >>> drop_missing(cells.drop(columns="y"), ["x"], "drop_benchmark", "t.csv")
        Traceback (most recent call last):
        karma.errors.InputError: t.csv: every benchmark lacks a score of some model: choose --missing drop_model
    """
    if rule not in RULES:
        raise InputError(f"missing is '{rule}': choose from {', '.join(RULES)}")
    names = list(columns)
    empty = cells[names].map(is_missing)
    if rule == "refuse" or not empty.to_numpy().any():
        return cells, []
    axis = 1 if rule == "drop_model" else 0
    lacking = empty.any(axis=axis)
    gone = [str(name) for name in lacking.index[lacking]]
    kind, other = ("model", "drop_benchmark") if axis else ("benchmark", "drop_model")
    if len(gone) == len(lacking):
        whose = "some benchmark" if axis else "some model"
        raise InputError(f"{file}: every {kind} lacks a score of {whose}: choose --missing {other}")
    named = ", ".join(gone[:MAX_NAMED]) + (f" and {len(gone) - MAX_NAMED:,} more" if len(gone) > MAX_NAMED else "")
    lacks = "lack a score and are" if len(gone) > 1 else "lacks a score and is"
    note = f"{len(gone):,} of {len(lacking):,} {kind}s {lacks} left out: {named}"
    return (cells[~lacking.to_numpy()] if axis else cells.drop(columns=gone)), [note]


def is_missing(cell: str) -> bool:
    """Tell whether a cell's text stands for no score.

    Example:
        >>> is_missing(" N/A "), is_missing("0")
        (True, False)
    """
    return cell.strip().casefold() in _EMPTY
