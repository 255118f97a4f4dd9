"""Read recorded judgments in the layouts in which others publish them, and in the kit's own.

`load_judgments` tells the layout from the files and their keys (`LAYOUTS`); what it cannot be is an error that names
what is there. Decision: a value that is absent or null is no judgment and is counted; NaN where a number is due, or one
out of range, is an error, because a sum would carry it on in silence. Limit: AlpacaEval's models are compared through
one baseline's answers, so their values know nothing of how two answers compare when both lose to it.

Sources: AlpacaEval (github.com/tatsu-lab/alpaca_eval, results/), UltraFeedback (arXiv 2310.01377).
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from karma.errors import InputError, quote
from karma.files.reading import check_file, open_parquet, read_parquet
from karma.labels.judgments import Judgments, build_values, count_characters, get_field, shorten
from karma.labels.votes import PANDALM, read_arena, read_pair_folders, read_pandalm
from karma.pool.affinity import TRAITS, measure_complexity
from karma.pool.annotations import AnnotationTable, load_annotations
from karma.pool.pool import ResponsePool, load_pool
from karma.pool.responses import to_hex
from karma.pool.rows import read_json

Row = dict[str, Any]
LAYOUTS = {
    "alpaca_eval": "AlpacaEval's results folder, or rows with instruction, generator_2 and preference",
    "ultrafeedback": "UltraFeedback's rows (instruction, completions with model, response and annotations)",
    "study": "a study's folder with its pool and annotations.parquet",
    "responses": "labels/responses.csv of a study: row_id, model, truth",
    "pandalm": PANDALM,
    "mt_bench": "MT-Bench's or Chatbot Arena's votes: question_id, model_a, model_b, winner",
    "pairs": "a pair folder, or a folder of them, whose pairs.parquet has a column truth",
}
FIRST_ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
HUB: dict[str, tuple[str, str | None]] = {  # id -> split, and the one file of it that holds judgments
    "tatsu-lab/alpaca_eval": ("train", "alpaca_eval_annotations_alpaca_eval_gpt4.json"),
    "lmsys/mt_bench_human_judgments": ("human", None),
}


def load_judgments(
    source: str | Path, *, annotator: str | None = None, field: str = "overall_score",
    annotations: Path | None = None, texts: bool = False,
) -> Judgments:  # fmt: skip
    """Load recorded judgments from a folder, a file or the Hub.

    Args:
        source: what to read, in one of LAYOUTS; a Hub id may name its split: lmsys/mt_bench_human_judgments:gpt4_pair.
        annotator: AlpacaEval: whose annotations, a folder's name; None: weighted_alpaca_eval_gpt4_turbo, else the
            only one there.
        field: UltraFeedback: overall_score, fine-grained_score or mean_aspect.
        annotations: a parquet table of row_id, response_id, score by another annotator, for `rlaif`, where the source
            names responses by id (ultrafeedback, study, responses).
        texts: measure the responses' complexity, where their texts are recorded (a third of a millisecond each).

    Raises:
        InputError: nothing there, an unknown layout, or a judgment that cannot be one.
    """
    path, name = Path(source), str(source).rstrip("/")
    table = None if annotations is None else load_annotations(annotations)
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(:\w+)?", name) or path.suffix:
            raise InputError(f"judgments {source} do not exist: give a folder, a file or a Hub id")
        judgments = _read_hub(name, field, table, texts)
    elif path.is_dir():
        judgments = _read_folder(path, annotator, field, table, texts)
    else:
        judgments = _read_file(path, field, table, texts)
    if table is not None and judgments.annotations is None:
        raise InputError(f"{name}: its responses have no ids, so {table.name} cannot be looked up in: leave it out")
    if texts and (judgments.complexity is None or judgments.values is None):
        raise InputError(f"{name}: its responses have no texts that could be measured ({judgments.layout}): leave out "
                         "--affinity")  # fmt: skip
    return judgments


def _read_folder(
    path: Path, annotator: str | None, field: str, table: AnnotationTable | None, texts: bool
) -> Judgments:
    pool = next((p for p in (path / "pool.parquet", path / "pool" / "pool.parquet") if p.is_file()), None)
    if pool is not None:
        judged = pool.parent / "annotations.parquet"
        judge = load_annotations(judged) if judged.is_file() else None
        return _read_pool(load_pool(pool), str(path), field, table, judge, texts)
    folders = [path, *sorted(p for p in path.iterdir() if p.is_dir())]
    if sets := [p for p in folders if (p / "pairs.parquet").is_file()]:
        return read_pair_folders(sets, str(path))
    results = path / "results" if (path / "results").is_dir() else path
    if any(results.glob("*/*/annotations.json")):
        return _read_alpaca_eval(results, annotator, texts)
    if (path / "state.json").is_file() or any(p.suffix in (".parquet", ".jsonl") for p in path.iterdir()):
        return _read_pool(load_pool(path), path.name, field, table, None, texts)
    inside = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
    raise InputError(f"{path} has no layout that is known (in it: {inside}): expected {'; '.join(LAYOUTS.values())}")


def _read_file(path: Path, field: str, table: AnnotationTable | None, texts: bool) -> Judgments:
    if path.suffix == ".csv":
        return _read_responses(path, table)
    if path.suffix == ".parquet":
        if "completions" in open_parquet(path).schema_arrow.names:
            return _read_pool(load_pool(path), path.name, field, table, None, texts)
        return read_rows(read_parquet(path).to_pylist(), path.name)
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"{path}: expected a folder, or a .json, .jsonl, .parquet or .csv file")
    rows = [row for _, row in read_json(path)]
    if rows and isinstance(rows[0], dict) and "completions" in rows[0]:
        return _read_pool(load_pool(path), path.name, field, table, None, texts)
    return read_rows(rows, path.name)


def _read_hub(name: str, field: str, table: AnnotationTable | None, texts: bool) -> Judgments:
    if name == "openbmb/UltraFeedback":
        return _read_pool(load_pool(name), name, field, table, None, texts)
    import datasets

    name, _, asked = name.partition(":")
    split, file = HUB.get(name, ("train", None))
    split = asked or split
    try:
        if file is not None:
            rows = datasets.load_dataset("json", data_files=f"hf://datasets/{name}/{file}", split=split)
        else:
            rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the Hub client raises many kinds; each becomes one line
        raise InputError(f"{name} cannot be loaded from the Hub ({shorten(error)}): give a local copy") from error
    if "completions" in rows.column_names:
        return _read_pool(load_pool(rows), name, field, table, None, texts)
    return read_rows(list(rows), name)


def read_rows(rows: list[Any], source: str) -> Judgments:
    """Read rows of one file, whose layout their keys tell.

    Raises:
        InputError: no row, a row that is no object, or keys of no known layout.

    Example:
        >>> row = {"question_id": 1, "turn": 1, "model_a": "x", "model_b": "y", "winner": "model_b"}
        >>> read_rows([row], "votes.jsonl").votes["gap"].tolist()
        [-1.0]
    """
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{source}: expected objects, one a judgment; it holds {'others' if rows else 'no rows'}")
    readers: dict[tuple[str, ...], Callable[[list[Row], str], Judgments]] = {
        ("generator_2", "instruction", "preference"): _read_annotations,
        ("cmp_key", "instruction"): read_pandalm,
        ("model_a", "model_b", "winner"): read_arena,
    }
    for keys, read in readers.items():
        if all(any(key in row for row in rows) for key in keys):
            return read(rows, source)
    there = ", ".join(map(str, list(rows[0])[:8])) or "no keys"
    raise InputError(f"{source} has no layout that is known (keys: {there}): expected {'; '.join(LAYOUTS.values())}")


# --- values of single responses -------------------------------------------------------------------------------------


def _read_alpaca_eval(results: Path, annotator: str | None, measure: bool) -> Judgments:
    found = Counter(p.parent.name for p in results.glob("*/*/annotations.json"))
    chosen = annotator or (FIRST_ANNOTATOR if FIRST_ANNOTATOR in found else next(iter(found)))
    if chosen not in found or (annotator is None and chosen != FIRST_ANNOTATOR and len(found) > 1):
        raise InputError(f"{results}: annotations are by {', '.join(sorted(found))}: name one with --annotator")
    rows: list[Row] = []
    for path in sorted(results.glob(f"*/{chosen}/annotations.json")):
        model = path.parent.parent.name
        outputs = path.parent.parent / "model_outputs.json"
        texts = {str(row.get("instruction")): row.get("output") for row in _load(outputs)} if outputs.is_file() else {}
        own = _load(path)
        for row in own:
            get_field(row, "instruction", str(path))
            for key in ("generator_1", "generator_2"):
                _check_name(row, key, str(path))
        if not any("preference" in row for row in own):
            raise InputError(f"{path}: no row has a 'preference': expected AlpacaEval's annotations")
        rows += [{**row, "generator_2": model, "output_2": texts.get(str(row.get("instruction")), row.get("output_2"))}
                 for row in own]  # fmt: skip
    return _read_annotations(rows, str(results), by=chosen, measure=measure)


def _load(path: Path) -> list[Row]:
    rows = [row for _, row in read_json(path)]
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects")
    return rows


def _read_annotations(rows: list[Row], source: str, by: str = "the annotator", measure: bool = False) -> Judgments:
    for row in rows:
        _check_name(row, "generator_1", source)
    baselines = {str(row["generator_1"]) for row in rows if row.get("generator_1") is not None}
    if len(baselines) > 1:
        names = " and ".join(sorted(map(str, baselines))[:2])
        raise InputError(f"{source}: judged against {names}: only values against one baseline can be compared")
    baseline = next(iter(baselines), "the baseline")
    flat = [
        {"prompt": get_field(row, "instruction", source), "model": get_field(row, "generator_2", source),
         "value": _get_number(row, "preference", 1, 2, f"{source}: preference of '{shorten(row['instruction'])}'"),
         "length": count_characters(row.get("output_2")), "text": row.get("output_2")}
        for row in rows
    ]  # fmt: skip
    frame = pd.DataFrame(flat).assign(group=lambda f: f["prompt"], value=lambda f: f["value"] - 1)
    if measure:
        frame = _add_traits(frame, pa.array([row.get("output_2") for row in rows], pa.string()))
    unit = f"probability of beating {baseline}, by {by}"
    return build_values(frame, source, "alpaca_eval", unit, what="instruction")


def _add_traits(frame: pd.DataFrame, texts: pa.Array) -> pd.DataFrame:
    """Add what affinity measures of each text; a text that is not recorded has no traits."""
    known = texts.is_valid().to_numpy(zero_copy_only=False)
    measured = np.where(known[:, None], measure_complexity(texts), np.nan)
    return frame.assign(**{f"trait_{name}": measured[:, k] for k, name in enumerate(TRAITS)})


def _read_pool(
    pool: ResponsePool, source: str, field: str, table: AnnotationTable | None, judge: AnnotationTable | None,
    measure: bool = False,
) -> Judgments:  # fmt: skip
    parts = []
    for batch in pool.batches(None if judge else field):
        named = batch.model >= 0
        rows, responses = batch.row_digest[batch.row[named]], batch.response_digest[named]
        value = judge.look_up(rows, responses) if judge else batch.annotation[named]
        asked = pc.fill_null(batch.instruction, "").take(pa.array(batch.row[named]))
        parts.append(pd.DataFrame({
            "prompt": to_hex(rows).to_pylist(), "group": asked.to_pylist(), "value": value,
            "model": [batch.model_names[m] for m in batch.model[named]],
            "length": pc.utf8_length(batch.response).to_numpy(False)[named].astype(float),
            "annotation": table.look_up(rows, responses) if table else value,
        }))  # fmt: skip
        if measure:
            parts[-1] = _add_traits(parts[-1], batch.response.filter(pa.array(named)))
    unit = f"score by {judge.name}" if judge else field
    return build_values(pd.concat(parts), source, "study" if judge else "ultrafeedback", unit, what="row")


def _read_responses(path: Path, table: AnnotationTable | None) -> Judgments:
    try:
        rows = pd.read_csv(check_file(path))
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as CSV: {shorten(error)}") from error
    if missing := [name for name in ("row_id", "model", "truth") if name not in rows]:
        raise InputError(f"{path} has no column '{missing[0]}': expected {LAYOUTS['responses']}")
    truth = pd.to_numeric(rows["truth"], errors="coerce").replace([math.inf, -math.inf], math.nan)
    if len(odd := rows["truth"][truth.isna() & rows["truth"].notna()]):
        raise InputError(
            f"{path}: truth of row {odd.index[0] + 1} is {quote(odd.iloc[0])}: expected a number, or nothing"
        )
    usable = rows["usable"].astype(bool) if "usable" in rows else pd.Series(True, rows.index)
    frame = pd.DataFrame({"prompt": rows["row_id"], "model": rows["model"], "value": truth.where(usable)})
    if table is not None and "response_id" in rows:
        frame["annotation"] = table.look_up_ids(rows["row_id"].tolist(), rows["response_id"].tolist())
    return build_values(frame, path.name, "responses", "share of instructions followed", what="row")


def _check_name(row: Row, key: str, source: str) -> None:
    """Raise where a model's name is something else than text; it may be absent."""
    if not isinstance(row.get(key), str | None):
        raise InputError(f"{source}: {key} is {quote(row[key])}, expected a text")


def _get_number(row: Row, key: str, low: float, high: float, what: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN too
        raise InputError(f"{what} is {quote(value)}: expected {low:g} to {high:g}, or null where there is none")
    return float(value)
