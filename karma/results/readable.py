"""Whether a study's files can be read, before anything is made of them: a report is refused in one line, or whole.

Decision: every table and record in the folders of a study's jobs is read once, in parts, as `karma push` reads what it
sends. What is absent is a gap of the report, and no fault; an empty pool counts as absent. Limit: what can be read
may still hold something else than its stage wrote.
"""

import csv
from pathlib import Path
from typing import Any

from karma.errors import InputError, quote, show_line
from karma.files.reading import check_file, check_text, load_json, open_parquet, read_text
from karma.study.experiment import Experiment
from karma.study.stages import list_jobs

_MAY_BE_EMPTY = ("pool.parquet", "annotations.parquet", "rewards.parquet")  # the report does without
_OBJECTS = ("scores.json", "training.json", "accounting.json", "annotation_cost.json")


def check_readable(experiment: Experiment) -> None:
    """Raise an InputError that names the first of a study's files that cannot be read, and the stage that makes it.

    Args:
        experiment: any, finished or not.

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> check_readable(load_experiment("paper"))  # nothing of it is on this disk
    """
    seen: set[Path] = set()
    for job in list_jobs(experiment):
        places = () if job.stage.draws else (job.folder, *job.folder.glob("*/seed*"))  # a selection's trainings
        for path in sorted(path for place in places if place.is_dir() for path in place.iterdir()):
            if path not in seen and path.suffix in _READERS and not path.name.startswith("."):
                seen.add(path)
                try:
                    _READERS[path.suffix](path)
                except InputError as error:
                    raise InputError(f"{error}; remove it and run {job.stage.name} again") from None


def _read_parquet(path: Path) -> None:
    import pyarrow as pa

    if path.name in _MAY_BE_EMPTY and path.stat().st_size == 0:
        return
    file = open_parquet(path)
    try:
        for batch in file.iter_batches():
            check_text(batch)
    except (pa.ArrowException, OSError) as error:
        reason = show_line((str(error).splitlines() or [type(error).__name__])[0][:160])
        raise InputError(f"{path} cannot be read as parquet ({reason})") from None


def _read_json(path: Path) -> None:
    content: Any = load_json(path)
    if path.name in _OBJECTS and not isinstance(content, dict):
        raise InputError(f"{path} is {quote(content)}: expected an object")


def _read_csv(path: Path) -> None:
    try:
        header = next(csv.reader(read_text(check_file(path)).splitlines(), strict=True), None)
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from None
    if not header:
        raise InputError(f"{path} is empty")


_READERS = {".parquet": _read_parquet, ".json": _read_json, ".csv": _read_csv}
