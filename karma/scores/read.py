"""Load, merge and save score tables.

A table is a CSV of the paper's benchmarks, one of other benchmarks with a column map, or the shipped Table 3. Tables
are merged before they are normalised, since a model's S_pref depends on the company it is in.
"""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pandas as pd

from karma.errors import InputError
from karma.files import atomic_path, load_json
from karma.scores.columns import ColumnMap, Unit, compute_fractions, load_column_map, load_rows
from karma.scores.names import canonical_model_name
from karma.scores.normalise import compute_s_pref
from karma.scores.table import FACT_COLUMNS, PAPER_TABLES, ScoreTable, check_models, load_benchmarks

AVERAGE_COLUMN = "average_score"
PRINTED_ROUNDING = 0.005
ASSUMED_ITEMS = "assumed: the full benchmark's number of items"


def load_score_table(path: str | Path, columns: str | Path | ColumnMap | None = None) -> ScoreTable:
    """Load a score table.

    Args:
        path: a CSV file (`origin_model`, then one column a benchmark; percent or fractions); or "paper"
            (Table 3 as printed), or "paper_four_digit" (the same with MMLU-Pro to four digits).
        columns: a column map, its YAML file or the name of a shipped one (open_llm_leaderboard_v2), for a table with
            other benchmarks or column names.

    Returns:
        The table, in fractions.

    Raises:
        InputError: one line that names the cell and the remedy.

    Example:
        >>> load_score_table("paper").scores.shape
        (16, 6)

    Paper: Table 3.
    """
    if str(path) in ("paper", "paper_four_digit"):
        return _load_paper(four_digit=str(path) == "paper_four_digit")
    header, rows = load_rows(path)
    if isinstance(columns, str | Path):
        shipped = Path(str(files("karma") / "data" / "column_maps" / f"{columns}.yaml"))
        columns = load_column_map(shipped if shipped.is_file() else columns)
    if columns is None:
        return _count_own_items(_build_from_rows(header, rows, str(path), units={}), Path(path).parent)
    return _build_mapped(header, rows, str(path), columns)


def _load_paper(four_digit: bool) -> ScoreTable:
    """Read the shipped Table 3, whose units are declared; overlay MMLU-Pro's four digits where asked."""
    header, rows = load_rows(str(PAPER_TABLES / "table3.csv"))
    name = "paper, Table 3"
    if four_digit:
        at = header.index("mmlu_pro")
        digits = dict(load_rows(str(PAPER_TABLES / "table3_four_digit.csv"))[1])
        rows = [[*row[:at], digits[row[0]], *row[at + 1 :]] for row in rows]
        name += " with MMLU-Pro to four digits (the same group's ZEBRA repository)"
    units = load_benchmarks()["table3_unit"].to_dict()
    return replace(_build_from_rows(header, rows, name, units), source=name)


def _build_from_rows(header: list[str], rows: list[list[str]], path: str, units: dict[str, Unit]) -> ScoreTable:
    """Assemble a table whose columns bear the paper's benchmark names."""
    file, known = Path(path).name, load_benchmarks()
    if header[0] != "origin_model":
        raise InputError(f"{file}: the first column is '{header[0]}', expected 'origin_model': rename it")
    cells = pd.DataFrame(rows, columns=header).set_index("origin_model")
    check_models(cells.index, file)
    extra = {AVERAGE_COLUMN, *FACT_COLUMNS}
    names = {c: c.casefold().replace("-", "_").replace(" ", "_") for c in header[1:] if c not in extra}
    unknown = [c for c, name in names.items() if name not in known.index]
    if unknown or not names:
        raise InputError(
            f"{file}: {f'unknown benchmark {unknown[0]!r}' if unknown else 'no benchmark column'}: known are "
            f"{', '.join(known.index)}; remove the column, or describe it in a column map (--columns)"
        )
    twice = [c for c in names if list(names.values()).count(names[c]) > 1]
    if twice:
        raise InputError(f"{file}: {' and '.join(twice)} are the same benchmark: keep one column")
    scores = pd.DataFrame({
        name: compute_fractions(cells[c].to_dict(), name, file, units.get(name)) for c, name in names.items()
    }).rename_axis("origin_model")  # fmt: skip
    n_items = {b: int(known.loc[b, "n_items"]) for b in scores}
    facts = _read_facts(cells)
    table = ScoreTable(scores, known.loc[list(scores)], n_items, ASSUMED_ITEMS, facts, source=file)
    if AVERAGE_COLUMN in cells:
        table = replace(table, notes=_check_average(table, cells[AVERAGE_COLUMN].to_dict()))
    return table


def _count_own_items(table: ScoreTable, folder: Path) -> ScoreTable:
    """Take the numbers of items from the study that wrote the table, where its strategies.json lies beside it."""
    path = folder / "strategies.json"
    facts = load_json(path) if path.is_file() else {}
    if not isinstance(facts, dict) or facts.get("n_origin_models") != len(table.scores) or "n_items" not in facts:
        return table
    counts = facts["n_items"]
    if counts is not None and set(counts) != set(table.scores):
        return table
    n_items = None if counts is None else {name: int(counts[name]) for name in table.scores}
    return replace(table, n_items=n_items, n_items_source=str(facts.get("n_items_source")))


def _build_mapped(header: list[str], rows: list[list[str]], path: str, columns: ColumnMap) -> ScoreTable:
    """Assemble a table of other benchmarks by a column map; columns it does not name are not read."""
    file = Path(path).name
    wanted = [*columns.origin_model, *(b.column for b in columns.benchmarks.values())]
    wanted += columns.facts.values()
    absent = [c for c in wanted if c not in header]
    if absent:
        raise InputError(f"{file} has no column '{absent[0]}', which the column map names: correct the map")
    cells = pd.DataFrame(rows, columns=header)
    cells.index = pd.Index(cells[columns.origin_model].agg(" ".join, axis=1), name="origin_model")
    check_models(cells.index, file, columns.case_sensitive)
    scores = pd.DataFrame({
        name: compute_fractions(cells[b.column].to_dict(), name, file, b.unit)
        for name, b in columns.benchmarks.items()
    }).rename_axis("origin_model")  # fmt: skip
    described = pd.DataFrame({n: b.model_dump() for n, b in columns.benchmarks.items()}).T.rename_axis("name")
    counts = {n: b.n_items for n, b in columns.benchmarks.items() if b.n_items}
    n_items = counts if len(counts) == len(columns.benchmarks) else None
    known = cells.rename(columns={v: k for k, v in columns.facts.items()}).replace(columns.unknown, "")
    facts = _read_facts(known).assign(repository=cells[columns.origin_model[0]])
    described["chance"] = described["chance"].astype(float)
    return ScoreTable(scores, described, n_items, "column map" if n_items else "unknown", facts, source=file,
                      case_sensitive=columns.case_sensitive)  # fmt: skip


def load_origin_models() -> pd.DataFrame:
    """Return what is known of the paper's origin models: developer, base_model, size_b, family, source.

    Missing where unknown: GPT-4, GPT-3.5 and Bard have no published base or size.

    Example:
        >>> load_origin_models().loc["Vicuna-33b", "base_model"]
        'LLaMA-33b'
    """
    with (PAPER_TABLES / "origin_models.csv").open(encoding="utf-8") as stream:
        return pd.read_csv(stream, index_col="origin_model")


def _read_facts(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the models' facts: from its own columns where it has such, else the paper's."""
    facts = cells.reindex(columns=list(FACT_COLUMNS)).replace("", None)
    if not set(FACT_COLUMNS) & set(cells):
        known = load_origin_models()[list(FACT_COLUMNS)]
        known.index = known.index.map(canonical_model_name)
        facts = known.reindex([canonical_model_name(str(m)) for m in cells.index]).set_axis(cells.index)
    size_b = pd.to_numeric(facts["size_b"], errors="coerce")
    facts["size_b"] = size_b.where(size_b > 0)  # tables write 0 or -1 where it is unknown
    return facts


def merge_score_tables(table: ScoreTable, other: ScoreTable) -> ScoreTable:
    """Return the rows of both tables; both must hold the same benchmarks.

    Min, max, and with them every S_pref and cosine, are then taken over all rows.

    Raises:
        InputError: other benchmarks, or a model that stands in both.
    """
    odd = sorted(set(table.scores) ^ set(other.scores))
    if odd:
        raise InputError(f"only one of {table.source} and {other.source} has '{odd[0]}': add the column, or remove it")
    names, others = ({canonical_model_name(m) for m in t.scores.index} for t in (table, other))
    if names & others:
        twice = min(names & others)
        raise InputError(f"'{twice}' stands in {table.source} and in {other.source}: rename or remove one row")
    scores = pd.concat([table.scores, other.scores[list(table.scores)]])
    facts = pd.concat([t.facts.astype(object).reindex(t.scores.index) for t in (table, other)])
    return replace(table, scores=scores, facts=facts, source=f"{table.source} + {other.source}",
                   notes=(*table.notes, *other.notes))  # fmt: skip


def save_score_table(table: ScoreTable, path: str | Path) -> None:
    """Write a table as CSV in fractions, so that `load_score_table` reads the same numbers back."""
    with atomic_path(path) as temporary:
        table.scores.to_csv(temporary)


def _check_average(table: ScoreTable, cells: dict[str, str]) -> tuple[str, ...]:
    """Compare a printed average with Eq. 2; return a note on every row that does not round to print."""
    printed = pd.Series(compute_fractions(cells, AVERAGE_COLUMN, table.source))
    gap = (compute_s_pref(table) - printed).abs()
    off = gap[gap > PRINTED_ROUNDING + 1e-9]
    if off.empty:
        return ()
    rows = ", ".join(f"{m} by {g:.4f}" for m, g in off.items())
    return (f"{AVERAGE_COLUMN} is no benchmark and is not used; it differs from Eq. 2 for {rows}",)
