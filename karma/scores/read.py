"""Load, merge and save score tables.

A table is a CSV of the paper's benchmarks, one of other benchmarks with a column map, or the shipped Table 3. Tables
are merged before they are normalised, since a model's S_pref depends on the company it is in. Beside a CSV that the kit
writes lies a column map of its own (`scores.csv`, `scores.columns.yaml`) with what a CSV cannot say: what the
benchmarks are, how many items were asked, how kinship is measured. It is found and read with the table, so that a table
means the same wherever it is named; a table that has grown away from it is refused.
"""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pandas as pd
import yaml

from karma.errors import InputError
from karma.files.places import find_sample
from karma.files.writing import atomic_path
from karma.scores.columns import Column, ColumnMap, KinshipBy, Unit, compute_fractions, load_column_map, load_rows
from karma.scores.missing import drop_missing
from karma.scores.names import canonical_model_name
from karma.scores.normalise import compute_s_pref
from karma.scores.table import FACT_COLUMNS, PAPER_TABLES, ScoreTable, check_models, load_benchmarks

AVERAGE_COLUMN = "average_score"
MAPS = files("karma") / "data" / "column_maps"
PRINTED_ROUNDING = 0.005
ASSUMED_ITEMS = "assumed: the full benchmark's number of items"


def load_score_table(
    path: str | Path, columns: str | Path | ColumnMap | None = None, missing: str = "refuse"
) -> ScoreTable:
    """Load a score table.

    Args:
        path: a CSV file (`origin_model`, then one column a benchmark; percent or fractions); or "paper"
            (Table 3 as printed), "paper_four_digit" (the same with MMLU-Pro to four digits), or "sample" (the models
            of the package's own pool, params/sample.yaml).
        columns: a column map, its YAML file or the name of a shipped one (open_llm_leaderboard_v1, _v2), for a table
            with other benchmarks or column names; None: the map beside the file, where there is one.
        missing: what becomes of empty cells: refuse, drop_model or drop_benchmark.

    Returns:
        The table, in fractions, with a note on what was left out.

    Raises:
        InputError: one line that names the cell and the remedy.

    Example:
        >>> load_score_table("paper").scores.shape
        (16, 6)

    Paper: Table 3.
    """
    if str(path) in ("paper", "paper_four_digit"):
        return _load_paper(four_digit=str(path) == "paper_four_digit")
    path = find_sample(path, "scores.csv") or path
    header, rows = load_rows(path)
    own = find_own_map(path)
    if columns is None and own.is_file():
        columns = load_column_map(own)
        _check_described(header, columns, Path(path).name, own.name)
    if columns is None:
        return _build_from_rows(header, rows, str(path), {}, missing)
    return build_mapped(header, rows, str(path), find_column_map(columns), missing)


def find_own_map(path: str | Path) -> Path:
    """Return where the column map of a table that the kit has written lies.

    Example:
        >>> find_own_map("outputs/demo/kinship/scores.csv").as_posix()
        'outputs/demo/kinship/scores.columns.yaml'
    """
    return Path(path).with_suffix(".columns.yaml")


def find_column_map(columns: str | Path | ColumnMap) -> ColumnMap:
    """Return a column map from its file, or a shipped one from its name.

    Raises:
        InputError: neither; or a map that cannot be read.
    """
    if isinstance(columns, ColumnMap):
        return columns
    shipped = Path(str(MAPS / f"{columns}.yaml"))
    if shipped.is_file() or Path(columns).is_file():
        return load_column_map(shipped if shipped.is_file() else columns)
    known = ", ".join(sorted(Path(str(m)).stem for m in MAPS.iterdir()))
    raise InputError(f"column map {columns} does not exist: give a YAML file, or one of {known}")


def _check_described(header: list[str], columns: ColumnMap, file: str, own: str) -> None:
    """Raise where a table has a column that its own map does not tell of: it was added by hand."""
    told = {*columns.origin_model, *(b.column for b in columns.benchmarks.values()), *columns.facts.values()}
    if odd := [name for name in header if name not in told | {AVERAGE_COLUMN}]:
        raise InputError(f"{file} has a column '{odd[0]}' of which {own} says nothing: describe it there, or read the "
                         "table anew with `karma read-scores`")  # fmt: skip


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


def _build_from_rows(
    header: list[str], rows: list[list[str]], path: str, units: dict[str, Unit], missing: str = "refuse"
) -> ScoreTable:
    """Assemble a table whose columns bear the paper's benchmark names."""
    file, known = Path(path).name, load_benchmarks()
    if header[0] != "origin_model":
        raise InputError(
            f"{file}: the first column is '{header[0]}', expected 'origin_model': rename it, read the file with "
            "`karma read-scores`, or give its --columns"
        )
    cells = pd.DataFrame(rows, columns=header).set_index("origin_model")
    check_models(cells.index, file)
    extra = {AVERAGE_COLUMN, *FACT_COLUMNS}
    names = {c: c.casefold().replace("-", "_").replace(" ", "_") for c in header[1:] if c not in extra}
    unknown = [c for c, name in names.items() if name not in known.index]
    if unknown or not names:
        raise InputError(
            f"{file}: {f'unknown benchmark {unknown[0]!r}' if unknown else 'no benchmark column'}: known are "
            f"{', '.join(known.index)}; remove the column, describe it in a column map (--columns), or read the table "
            "with `karma read-scores`"
        )
    twice = [c for c in names if list(names.values()).count(names[c]) > 1]
    if twice:
        raise InputError(f"{file}: {' and '.join(twice)} are the same benchmark: keep one column")
    cells, notes = drop_missing(cells, names, missing, file)
    names = {c: name for c, name in names.items() if c in cells}
    scores = pd.DataFrame({
        name: compute_fractions(cells[c].to_dict(), name, file, units.get(name)) for c, name in names.items()
    }).rename_axis("origin_model")  # fmt: skip
    n_items = {b: int(known.loc[b, "n_items"]) for b in scores}
    facts = _read_facts(cells)
    table = ScoreTable(scores, known.loc[list(scores)], n_items, ASSUMED_ITEMS, facts, tuple(notes), source=file)
    if AVERAGE_COLUMN in cells:
        table = replace(table, notes=(*notes, *_check_average(table, cells[AVERAGE_COLUMN].to_dict())))
    return table


def build_mapped(
    header: list[str], rows: list[list[str]], path: str, columns: ColumnMap, missing: str = "refuse"
) -> ScoreTable:
    """Assemble a table of any benchmarks by a column map; columns it does not name are not read.

    Args:
        header, rows: text, as of `karma.scores.columns.load_rows`. path: the table's name, for messages.
        columns: the map. missing: as of `load_score_table`.

    Raises:
        InputError: a column that is not there, or a cell that cannot be read.
    """
    file = Path(path).name
    wanted = [*columns.origin_model, *(b.column for b in columns.benchmarks.values())]
    wanted += columns.facts.values()
    absent = [c for c in wanted if c not in header]
    if absent:
        raise InputError(f"{file} has no column '{absent[0]}', which the column map names: correct the map")
    if not columns.benchmarks:
        raise InputError(f"{file}: the column map names no benchmark: describe at least one")
    cells = pd.DataFrame(rows, columns=header)
    cells.index = pd.Index(map(" ".join, cells[columns.origin_model].to_numpy()), name="origin_model")
    check_models(cells.index, file, columns.case_sensitive)
    cells, notes = drop_missing(cells, {b.column: 0 for b in columns.benchmarks.values()}, missing, file)
    kept = {name: b for name, b in columns.benchmarks.items() if b.column in cells}
    scores = pd.DataFrame({n: _read_column(cells[b.column].to_dict(), n, file, b) for n, b in kept.items()})
    described = pd.DataFrame({n: b.model_dump() for n, b in kept.items()}).T.rename_axis("name")
    counts = {n: b.n_items for n, b in kept.items() if b.n_items}
    n_items = counts if len(counts) == len(kept) else None
    known = cells.rename(columns={v: k for k, v in columns.facts.items()}).replace(columns.unknown, "")
    repository = known["repository" if "repository" in columns.facts else columns.origin_model[0]]
    described["chance"] = described["chance"].astype(float)
    return ScoreTable(
        scores.rename_axis("origin_model"), described, n_items,
        columns.n_items_source or ("column map" if n_items else "unknown"),
        _read_facts(known).assign(repository=repository), (*columns.notes, *notes), source=file,
        case_sensitive=columns.case_sensitive, measure=columns.kinship.measure, weights=columns.kinship.weights,
    )  # fmt: skip


def _read_column(cells: dict[str, str], name: str, file: str, column: Column) -> dict[str, float]:
    """Return one benchmark's scores as fractions of which higher is better."""
    found = compute_fractions(cells, name, file, column.unit)
    return found if column.direction == "higher" else {model: round(1 - s, 15) for model, s in found.items()}


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
        known = load_origin_models().reindex(columns=list(FACT_COLUMNS))
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
    n_items, source = table.n_items, table.n_items_source
    if table.n_items is None or other.n_items is None:
        n_items, source = None, "unknown"
    elif table.n_items != other.n_items:  # a wide interval for some models, a narrow one for none
        n_items = {name: min(n, other.n_items[name]) for name, n in table.n_items.items()}
        source = f"{table.n_items_source}; {other.n_items_source}: the smaller number of each benchmark"
    return replace(table, scores=scores, facts=facts, source=f"{table.source} + {other.source}", n_items=n_items,
                   n_items_source=source, notes=(*table.notes, *other.notes))  # fmt: skip


def save_score_table(table: ScoreTable, path: str | Path) -> None:
    """Write a table as CSV in fractions, and its column map beside it; `load_score_table` reads the same back.

    What is known of the models stands in columns after the benchmarks.
    """
    facts = table.facts.reindex(index=table.scores.index, columns=[*FACT_COLUMNS, "repository"])
    named = facts["repository"].notna() & (facts["repository"] != facts.index)
    facts = facts.dropna(axis="columns", how="all") if named.any() else facts[[*FACT_COLUMNS]].dropna(axis=1, how="all")
    with atomic_path(path) as temporary:
        table.scores.join(facts).to_csv(temporary)
    own = find_own_map(path)
    with atomic_path(own) as temporary:
        temporary.write_text(f"# What {Path(path).name} holds. Correct here what is wrong; keep the two together.\n"
                             + yaml.safe_dump(_describe(table, facts), sort_keys=False, allow_unicode=True, width=1000),
                             "utf-8")  # fmt: skip


def _describe(table: ScoreTable, facts: pd.DataFrame) -> dict[str, object]:
    """Return the column map of a table of the kit, without what are its defaults."""
    benchmarks = {}
    for name, row in table.benchmarks.loc[list(table.scores)].iterrows():
        chance = None if pd.isna(row["chance"]) else float(row["chance"])
        n_items = None if table.n_items is None else table.n_items[str(name)]
        benchmarks[str(name)] = Column(column=str(name), unit="fraction", title=row["title"], chance=chance,
                                       capability=row["capability"], answer_form=row["answer_form"],
                                       n_items=n_items)  # fmt: skip
    columns = ColumnMap(
        origin_model=["origin_model"], case_sensitive=table.case_sensitive, benchmarks=benchmarks,
        facts={name: name for name in facts}, n_items_source=table.n_items_source, notes=list(table.notes),
        kinship=KinshipBy.model_validate(
            {"measure": table.measure, "weights": {n: w for n, w in table.weights.items() if n in table.scores}}
        ),
    )  # fmt: skip
    return columns.model_dump(exclude_defaults=True)


def _check_average(table: ScoreTable, cells: dict[str, str]) -> tuple[str, ...]:
    """Compare a printed average with Eq. 2; return a note on every row that does not round to print."""
    printed = pd.Series(compute_fractions(cells, AVERAGE_COLUMN, table.source))
    gap = (compute_s_pref(table) - printed).abs()
    off = gap[gap > PRINTED_ROUNDING + 1e-9]
    if off.empty:
        return ()
    rows = ", ".join(f"{m} by {g:.4f}" for m, g in off.items())
    return (f"{AVERAGE_COLUMN} is no benchmark and is not used; it differs from Eq. 2 for {rows}",)
