"""What `karma read-scores` does: read scores from any source, show what was understood, write the kit's table."""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import typer

from karma.commands.next_step import tell_next
from karma.commands.options import Columns, Missing, check_out_file, default
from karma.errors import InputError, quote
from karma.scores.cards import add_cards, load_cards
from karma.scores.columns import UNSTATED, ColumnMap, load_column_map, load_rows
from karma.scores.harness import find_result_files, read_results
from karma.scores.read import build_mapped, find_column_map, find_own_map, merge_score_tables, save_score_table
from karma.scores.table import ScoreTable
from karma.scores.understand import recognise, understand

N_SHOWN = 5
MAX_ASIDE = 12


def read_scores(
    files: Annotated[
        list[str],
        typer.Argument(
            help="CSV tables, or result files and folders of lm-eval, lighteval or karma.", metavar="FILE..."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The table to write, TABLE.csv; its column map lies beside it.")],
    columns: Columns = None,
    missing: Missing = default("scores", "missing"),
    ignore: Annotated[list[str] | None, typer.Option(help="A column or task that is no benchmark; may repeat.")] = None,
    unit: Annotated[
        str | None, typer.Option(help="percent or fraction: of all columns; default: by the numbers of each.")
    ] = None,
    cards: Annotated[
        Path | None, typer.Option(help="Model cards, for lineage: a folder of README.md files, or JSON lines.")
    ] = None,
) -> None:
    """Read scores of any models on anything: `karma read-scores my.csv --out table.csv`.

    Then `karma binarize --scores table.csv`, and every other command that takes --scores.
    """
    for line in run_read_scores(files, out, columns, missing, ignore or [], unit, cards):
        typer.echo(line)


def run_read_scores(
    files: list[str], out: Path, columns: str | None, missing: str, ignore: list[str], unit: Any = None,
    cards: Path | None = None,
) -> Iterator[str]:  # fmt: skip
    """Read, show and write; yield what to tell the user: the `karma read-scores` command.

    Raises:
        InputError: a file that cannot be read, or tables that do not belong together; nothing has been written then.
    """
    if out.suffix != ".csv" or out.is_dir():
        raise InputError(f"--out {out}: name the table to write, e.g. table.csv")
    check_out_file(out, *files, columns, cards)
    check_out_file(find_own_map(out), *files, columns, cards)
    if unit not in (None, "percent", "fraction"):
        raise InputError(f"--unit {unit}: choose percent or fraction")
    paths = [Path(name) for name in files]
    if absent := [path for path in [*paths, *([cards] if cards else [])] if not path.exists()]:
        raise InputError(f"{absent[0]} does not exist: give a CSV file, or a result file or folder")
    given = None if columns is None else find_column_map(columns)
    told = load_cards(cards) if cards is not None else {}
    tables, lines = list[ScoreTable](), list[str]()  # what is told is told when all has been read
    results = [file for path in paths if path.suffix.casefold() != ".csv" for file in find_result_files(path)]
    if results:
        name = f"{len(results)} result files" if len(results) > 1 else results[0].name
        header, rows, found, aside = read_results(results, ignore)
        tables.append(build_mapped(header, rows, name, given or found, missing))
        lines += _describe(tables[-1], given or found, {} if given else aside)
    for path in paths:
        if path.suffix.casefold() == ".csv":
            header, rows = load_rows(path)
            own = find_own_map(path)
            known = given or (load_column_map(own) if own.is_file() else None)
            if known is None and (shipped := recognise(header)):
                lines.append(f"{path.name} has the columns of {shipped}: read by this map")
                known = find_column_map(shipped)
            found, aside = (known, {}) if known else understand(header, rows, path.name, ignore, unit)
            tables.append(build_mapped(header, rows, str(path), found, missing))
            lines += _describe(tables[-1], found, aside)
    table = reduce(merge_score_tables, tables)
    yield from lines
    if len(tables) > 1:
        yield f"together {len(table.scores):,} origin models"
    if cards is not None:
        table, n = add_cards(table, told)
        yield f"{len(told):,} model cards, of {n:,} of the {len(table.scores):,} models"
    save_score_table(replace(table, source=out.name), out)
    yield f"written: {out}, described in {find_own_map(out).name}"
    yield tell_next(
        "karma", "kinship", "--scores", out, "--out", "KINSHIP", why="who is kin to whom, and how sure that is"
    )


def _describe(table: ScoreTable, columns: ColumnMap, aside: dict[str, str]) -> Iterator[str]:
    """Say what was understood of a source: benchmarks, what is left aside, the first rows."""
    n_models, n = table.scores.shape
    by = " and ".join(f"'{name}'" for name in columns.origin_model)
    yield f"{table.source}: {n_models:,} origin models (by column {by}) x {n} benchmarks"
    for name in table.scores:
        one, scores = columns.benchmarks[str(name)], table.scores[name]
        unit = one.unit if isinstance(one.unit, str) else f"scale {one.unit[0]:g} to {one.unit[1]:g}"
        chance = "chance unknown" if one.chance is None else f"chance {one.chance:g}"
        items = f"{one.n_items:,} items" if one.n_items else "items unknown"
        lower = ", lower is better" if one.direction == "lower" else ""
        yield (f"  {name}: column {quote(one.column)}, {unit}{lower}, {one.capability}, {chance}, {items}; "
               f"{scores.min():.3f} to {scores.max():.3f}")  # fmt: skip
    yield from (f"note: {note}" for note in table.notes)
    for place, (name, reason) in enumerate(aside.items()):
        if place == MAX_ASIDE:
            yield f"left aside: {len(aside) - MAX_ASIDE} more"
            break
        yield f"left aside: '{name}' ({reason})"
    if n_unstated := sum(columns.benchmarks[str(name)].capability == UNSTATED for name in table.scores):
        yield f"note: the capability of {n_unstated} benchmarks is not known: say it in the column map beside the table"
    yield from table.scores.head(N_SHOWN).round(3).to_string(max_cols=8).splitlines()
