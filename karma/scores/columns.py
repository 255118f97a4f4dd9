"""Read the cells of a score table: text in, fractions of 1 out, every doubt an error that names the cell.

A column is in percent where its unit is declared so, where a cell carries a % sign, or where a value exceeds
1; else in fractions. A column that mixes the two is refused rather than guessed at: .64 beside 86.4 is
either a fraction or a very weak model, and both readings give plausible kinship. A column map may name a scale of its
own ([1, 10]) and say that lower is better; the kit's scores are fractions of which higher is better, always. Limit: a
percent column in which every model is below 1 % looks like fractions; declare its unit in a column map.
"""

import csv
import math
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from karma.errors import InputError, quote
from karma.files.numbers import parse_number
from karma.files.reading import check_file
from karma.files.yaml import load_yaml
from karma.study.fields import check_unique


def _read_unit(unit: object) -> object:
    """Refuse in one sentence what is no unit, where pydantic would say why it is none of the three."""
    if isinstance(unit, list | tuple) and len(unit) == 2 and all(type(end) in (int, float) for end in unit):
        if -math.inf < unit[0] < unit[1] < math.inf:
            return tuple(unit)
    elif unit in ("percent", "fraction"):
        return unit
    raise ValueError(f"{unit!r} is no unit: write percent, fraction, or a scale as [lowest, highest]")


Unit = Literal["percent", "fraction"] | tuple[float, float]
_TOP = {"percent": (0.0, 100.0), "fraction": (0.0, 1.0)}
UNSTATED = "unstated"  # a capability, or an answer form, that nobody told
ANSWER_FORMS = ("multiple choice", "descriptive", "completion", "free answer", UNSTATED)
Fact = Literal["developer", "base_model", "size_b", "family", "merged", "tuning_data", "repository"]


class Column(BaseModel):
    """Where one benchmark's scores stand in a foreign table, and what is known about the benchmark.

    `chance` is the score of guessing as the kit reads it: a fraction of 1, higher is better.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str
    unit: Annotated[Unit, BeforeValidator(_read_unit)]
    title: str
    capability: str
    answer_form: str = "multiple choice"
    chance: float | None = Field(default=None, ge=0, lt=1, allow_inf_nan=False)
    n_items: int | None = Field(default=None, ge=1, strict=True)
    direction: Literal["higher", "lower"] = "higher"  # which is better


class KinshipBy(BaseModel):
    """The measure and weights that a table's kinship was computed by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: Literal["cosine", "centred_cosine", "rmsd", "rank"] = "cosine"
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}


class ColumnMap(BaseModel):
    """How to read a foreign table: its benchmarks, facts about its models, how a model is named.

    Of several columns that name a model, the first is its repository; the others tell evaluations of it
    apart. What the kit writes beside a table of its own is such a map too, with what the CSV cannot say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    origin_model: Annotated[list[str], Field(min_length=1), AfterValidator(check_unique)]
    case_sensitive: bool = False
    benchmarks: dict[str, Column] = Field(min_length=1)
    facts: dict[Fact, str] = {}
    unknown: list[str] = []  # texts that stand for an unknown fact
    n_items_source: str | None = None
    kinship: KinshipBy = KinshipBy()
    notes: list[str] = []

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        column, n = Counter(benchmark.column for benchmark in self.benchmarks.values()).most_common(1)[0]
        if n > 1:
            raise ValueError(f"two benchmarks are read from column {quote(column)}")
        return self


def load_column_map(path: str | Path) -> ColumnMap:
    """Read a column map (YAML): for each benchmark its column and unit.

    Raises:
        InputError: unreadable file, a key that is unknown or missing, or a value that cannot be one.
    """
    content = load_yaml(path, "column map")
    try:
        columns = ColumnMap.model_validate(content)
        _check_words(columns)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"column map {path}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise InputError(f"column map {path}: {error}") from None
    return columns


def _check_words(columns: ColumnMap) -> None:
    """Raise a ValueError where a word of a map is none, or not among those known: it ends up in tables and figures."""
    for name, one in columns.benchmarks.items():
        where = f"benchmarks.{name}" if name.isprintable() else f"benchmarks, {quote(name)}"
        for key, text in (("its name", name), ("title", one.title), ("capability", one.capability)):
            if not text.strip() or not text.isprintable():
                raise ValueError(f"{where}: {key} is {quote(text)}: write some words, in one line")
        if one.answer_form not in ANSWER_FORMS:
            raise ValueError(f"{where}: answer_form is {quote(one.answer_form)}: choose from {', '.join(ANSWER_FORMS)}")
    if unknown := [name for name in columns.kinship.weights if name not in columns.benchmarks]:
        raise ValueError(f"kinship.weights: {quote(unknown[0])} is no benchmark of this map: correct the name")


def load_rows(path: str | Path) -> tuple[list[str], list[list[str]]]:
    """Read a CSV file as text: header and rows, all of the header's length, without blank lines.

    Raises:
        InputError: absent, empty or unreadable file, a repeated column, a row of another length.
    """
    name = Path(path).name
    if not os.path.lexists(path):
        raise InputError(f"score table {path} does not exist: give a CSV file, 'paper' or 'paper_four_digit'")
    if Path(path).is_file() and Path(path).suffix.casefold() not in ("", ".csv", ".txt"):
        raise InputError(f"score table {path} is no CSV file: give a table as .csv, 'paper' or 'paper_four_digit'")
    try:
        with check_file(path, "score table").open(encoding="utf-8-sig", newline="") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream, strict=True) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"score table {path} cannot be read as UTF-8 CSV: {error}") from None
    if odd := next((number for number, row in enumerate(rows, 1) if any("\0" in cell for cell in row)), None):
        raise InputError(f"{name}, row {odd} holds a zero byte: save the table again as UTF-8 text")
    if not rows:
        raise InputError(f"{name} is empty: its first line must name 'origin_model' and the benchmarks")
    header, body = rows[0], rows[1:]
    column, n = Counter(header).most_common(1)[0]
    if n > 1:
        raise InputError(f"{name}: column '{column}' stands twice: keep one of them")
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise InputError(
                f"{name}, row {number} ('{row[0]}'): {len(row)} cells where the header has {len(header)}: "
                "separate by commas, write decimals with a point"
            )
    return header, body


def compute_fractions(cells: dict[str, str], column: str, file: str, unit: Unit | None = None) -> dict[str, float]:
    """Turn one column of text into fractions.

    Args:
        cells: origin model -> text, such as "86.4", "86.4%" or "0.864".
        column: its benchmark, for messages.
        file: the table's name, for messages.
        unit: "percent", "fraction" or a scale (lowest, highest) where declared; None infers it from the values.

    Returns:
        Origin model -> score in [0, 1].

    Raises:
        InputError: a cell that is missing or not a number, percent mixed with fraction, a value out of range.

    Example:
        >>> compute_fractions({"GPT-4": "86.4%", "bard": "71.8"}, "mmlu_stem", "my.csv")
        {'GPT-4': 0.864, 'bard': 0.718}
        >>> compute_fractions({"GPT-4": "86.4%", "bard": "0.718"}, "mmlu_stem", "my.csv")
        Traceback (most recent call last):
        karma.errors.InputError: my.csv, column 'mmlu_stem' mixes percent (GPT-4: 86.4%) with fraction (bard: 0.718): write all of it in one unit, or declare it in a column map or by `karma read-scores --unit`

    Paper: Table 3 (five columns in percent, MMLU-Pro in fractions).
    """  # noqa: E501
    values = {m: _parse_cell(text, f"{file}, row '{m}', column '{column}'") for m, text in cells.items()}
    percent = [m for m in cells if cells[m].endswith("%") or values[m] > 1]
    fraction = [m for m in cells if 0 < values[m] <= 1 and not cells[m].endswith("%")]
    marked = [m for m in cells if cells[m].endswith("%")]
    if (unit is None and percent and fraction) or (unit == "fraction" and marked):
        one, other = percent[0], next((m for m in fraction), None)
        against = f"fraction ({other}: {cells[other]})" if other else "the declared unit, fraction"
        raise InputError(
            f"{file}, column '{column}' mixes percent ({one}: {cells[one]}) with {against}: "
            "write all of it in one unit, or declare it in a column map or by `karma read-scores --unit`"
        )
    unit = unit or ("percent" if percent else "fraction")
    low, high = _TOP[unit] if isinstance(unit, str) else unit
    for model, value in values.items():
        if not low <= value <= high:
            name = f"a score in {unit}" if isinstance(unit, str) else "its scale by the column map"
            raise InputError(
                f"{file}, row '{model}', column '{column}': {cells[model]} is out of range: "
                f"{name} lies between {low:g} and {high:g}; correct the cell"
                + ("" if 0 <= value <= high or isinstance(unit, tuple) else ", or name its scale in a column map")
            )
    if unit == "fraction":
        return values
    return {model: round((value - low) / (high - low), 15) for model, value in values.items()}


def _parse_cell(text: str, where: str) -> float:
    """Return the number in a cell; a % sign is allowed."""
    if not text:
        raise InputError(f"{where} is empty: add the score, remove the row, or choose --missing; nothing is filled in")
    try:
        value = parse_number(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {quote(text)} is not a number: write a score such as 86.4, or remove the row")
    return value
