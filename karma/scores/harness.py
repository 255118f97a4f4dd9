"""Scores out of the result files of evaluation harnesses: lm-evaluation-harness, lighteval, and this kit's own.

Each file is one model's. Every metric becomes a column `task/metric`, so that a column map may name any of them;
without one, a task's usual metric is taken (`karma.scores.metrics`) and shown. A group that has a score of its own
stands for its subtasks. A task that models answered on other items, by another version or with other shots, is
refused: such scores are not comparable. Limit: of several files with one model's task the last by name counts, as
both harnesses name files by date; subtasks whose group has no score stay benchmarks of their own.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma.errors import InputError, quote, show_line
from karma.files.reading import load_json
from karma.scores.columns import UNSTATED, Column, ColumnMap
from karma.scores.metrics import PREFERRED, choose_metric
from karma.scores.understand import load_catalogue, simplify

FILES = ("results*.json", "scores.json")
_BESIDE = ("alias", "name", "sample_len", "samples", " ")  # what lm-eval writes among metrics


@dataclass(frozen=True)
class Score:
    """One metric of one task of one model.

    Attributes:
        value: as the file has it. n_items: behind it, None where unknown. setup: what must be alike among models.
        lower: whether lower is better.
    """

    value: float
    n_items: int | None
    setup: tuple[str, ...]
    lower: bool = False


def find_result_files(path: Path) -> list[Path]:
    """Return the result files below a folder, by name; a file is itself.

    Raises:
        InputError: a folder without any.
    """
    if path.is_file():
        return [path]
    found = sorted({file for pattern in FILES for file in path.rglob(pattern)}, key=lambda p: (p.name, str(p)))
    if not found:
        raise InputError(f"{path} holds no result file: expected {' or '.join(FILES)} of lm-eval, lighteval or karma")
    return found


def read_results(
    files: Iterable[Path], ignore: Collection[str] = ()
) -> tuple[list[str], list[list[str]], ColumnMap, dict[str, str]]:
    """Read result files as a table of text.

    Args:
        files: of `find_result_files`. ignore: tasks to leave out.

    Returns:
        header, rows (a missing score is an empty cell), a column map, and what was set aside, each with the reason.

    Raises:
        InputError: a file of no known kind, anything but a number where one must stand (but in tasks to leave out), or
            models that were not evaluated alike.
    """
    models: dict[str, dict[str, dict[str, Score]]] = {}
    aside: dict[str, str] = {}
    for file in files:
        model, found = _read_file(file, ignore)
        known = models.setdefault(model, {})
        aside |= {f"{task} of {model}": "an older result" for task in sorted(found.keys() & known.keys())}
        known |= found
    tasks = sorted({task for known in models.values() for task in known} - set(ignore))
    if unknown := [task for task in ignore if not any(task in known for known in models.values())]:
        raise InputError(f"--ignore {unknown[0]}: no model has such a task; there are {', '.join(tasks)}")
    benchmarks: dict[str, Column] = {}
    catalogue = load_catalogue()
    for task in tasks:
        having = {model: known[task] for model, known in models.items() if task in known}
        metric = _choose_metric(having)
        if metric is None:
            aside[task] = "no metric between 0 and 1 that all its models have"
            continue
        own = {model: scores[metric] for model, scores in having.items()}
        _check_alike(task, own)
        one, name = next(iter(own.values())), simplify(task)
        base = catalogue.get(name)
        title, capability, form = (
            (base.title, base.capability, base.answer_form) if base else (show_line(task), UNSTATED, UNSTATED)
        )
        benchmarks[name] = Column(column=f"{task}/{metric}", unit="fraction", title=title, capability=capability,
                                  answer_form=form, chance=base.chance if base else None, n_items=one.n_items,
                                  direction="lower" if one.lower else "higher")  # fmt: skip
    if not benchmarks:
        raise InputError(
            f"{len(models)} result files hold no score between 0 and 1: give files of finished evaluations"
        )
    columns = sorted({f"{task}/{metric}" for known in models.values() for task in tasks if task in known
                      for metric in known[task]})  # fmt: skip
    rows = [[model, *(_show(known, column) for column in columns)] for model, known in models.items()]
    counted = "measured" if all(b.n_items for b in benchmarks.values()) else None
    read = ColumnMap(origin_model=["origin_model"], case_sensitive=True, benchmarks=benchmarks, n_items_source=counted)
    return ["origin_model", *columns], rows, read, aside


def _show(known: dict[str, dict[str, Score]], column: str) -> str:
    task, _, metric = column.rpartition("/")
    score = known.get(task, {}).get(metric)
    return "" if score is None else repr(score.value)


def _choose_metric(found: dict[str, dict[str, Score]]) -> str | None:
    """Return the metric that every model of a task has, in [0, 1] and the usual one."""
    shared = set.intersection(*(set(scores) for scores in found.values()))
    fit = [m for m in shared if all(0 <= scores[m].value <= 1 for scores in found.values())]
    return choose_metric(fit) if fit else None


def _check_alike(task: str, own: dict[str, Score]) -> None:
    first = next(iter(own))
    for model, score in own.items():
        for one, other in zip(own[first].setup, score.setup, strict=True):
            if one != other:
                raise InputError(f"{task}: '{first}' has {one}, '{model}' has {other}: evaluate both alike, or leave "
                                 f"it out (--ignore {task})")  # fmt: skip


def _read_file(file: Path, ignore: Collection[str]) -> tuple[str, dict[str, dict[str, Score]]]:
    """Return a file's model and its tasks."""
    content = load_json(file)
    kind = content if isinstance(content, dict) else {}
    own = "model" in kind and isinstance(kind.get("benchmarks"), dict)
    if not own and not isinstance(kind.get("results"), dict):
        raise InputError(f"{file}: no result file of lm-eval, lighteval or karma: it has no 'results'")
    try:
        general = _read_map(kind, "config_general")
        if own:
            model, tasks = kind["model"], dict(_read_own(kind, ignore))
        elif general:
            model = general.get("model_name") or _read_map(general, "model_config").get("model_name")
            tasks = dict(_read_lighteval(kind, ignore))
        else:
            model, tasks = kind.get("model_name"), dict(_read_lm_eval(kind, ignore))
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None
    if not model:
        raise InputError(f"{file}: the result file does not name its model: add 'model_name' to it")
    if not isinstance(model, str):
        raise InputError(f"{file}: its model is {quote(model)}: write the name as text")
    return model, tasks


def _read_own(content: dict[str, Any], ignore: Collection[str]) -> Iterator[tuple[str, dict[str, Score]]]:
    for name in content["benchmarks"]:
        one = _read_map(content["benchmarks"], name, "benchmarks, ")
        if name in ignore:
            yield name, {}
            continue
        n = _read_count(one.get("n"), f"{name}, n")
        if n is None:
            raise ValueError(f"{name}: it has no n, the number of items: evaluate again")
        setup = (f"{n} items", f"version {one.get('task_version')}", f"prompt {one.get('template_hash')}")
        yield name, {"score": Score(_read_number(one.get("value"), f"{name}, value"), n, setup)}


def _read_lm_eval(content: dict[str, Any], ignore: Collection[str]) -> Iterator[tuple[str, dict[str, Score]]]:
    results = content["results"]
    subtasks = {group: _read_parts(parts, group) for group, parts in _read_map(content, "group_subtasks").items()}
    samples, higher, versions, shots = (
        _read_map(content, key) for key in ("n-samples", "higher_is_better", "versions", "n-shot")
    )
    below = {group: [*_list_below(subtasks, group, (group,))] for group in subtasks}
    scored = {task: _list_numbers(results, task, strict=task not in ignore) for task in results}
    covered = {one for group in subtasks if scored.get(group) for one in below[group]}
    for task, values in scored.items():
        if not values or task in covered:
            continue
        leaves = [one for one in below.get(task, []) if not subtasks.get(one)] or [task]
        if task in ignore:
            yield task, {}
            continue
        counts = [_read_map(samples, leaf, "n-samples, ").get("effective") for leaf in leaves]
        n_items = _add_up(counts, f"n-samples, {task}, effective")
        setup = (f"{n_items} items", f"version {versions.get(task)}", f"{shots.get(task)} shots")
        known = _read_map(higher, task, "higher_is_better, ")
        yield task, {m: Score(v, n_items, setup, known.get(m.split(",")[0]) is False) for m, v in values.items()}


def _list_below(subtasks: dict[str, list[str]], group: str, above: tuple[str, ...]) -> Iterator[str]:
    for child in subtasks.get(group, []):
        if child in above:
            raise ValueError(f"group_subtasks: {child} is a part of itself: correct the file")
        yield child
        yield from _list_below(subtasks, child, (*above, child))


def _read_lighteval(content: dict[str, Any], ignore: Collection[str]) -> Iterator[tuple[str, dict[str, Score]]]:
    configs, versions = _read_map(content, "config_tasks"), _read_map(content, "versions")
    counts = {
        _name_task(task)[0]: _read_map(configs, task, "config_tasks, ").get("effective_num_docs") for task in configs
    }
    named = {task: _name_task(task) for task in content["results"] if task != "all"}
    averaged = {name.removesuffix(":_average") for name, _ in named.values() if name.endswith(":_average")}
    for task, (name, shots) in named.items():
        group, shown = name.partition(":")[0], name.removesuffix(":_average")
        if group in averaged and not name.endswith(":_average"):
            continue
        if shown in ignore:
            yield shown, {}
            continue
        parts = [name] if group not in averaged else [part for part in counts if part.startswith(f"{group}:")]
        n_items = _add_up([counts.get(part) for part in parts], f"config_tasks, {task}, effective_num_docs")
        setup = (f"{n_items} items", f"version {versions.get(task)}", f"{shots} shots")
        values = _list_numbers(content["results"], task, strict=True)
        yield shown, {m: Score(value, n_items, setup) for m, value in values.items()}


def _name_task(task: str) -> tuple[str, str]:
    """Return the name and the shots of `suite|name|shots|truncated`, `name|shots` or `suite|name`."""
    parts = task.split("|")
    shots = next((part for part in parts[1:] if part.isdigit()), "?")
    words = [part for part in parts if not part.isdigit()]
    return words[-1] if words else task, shots


# --- what may stand where --------------------------------------------------------------------------------------------


def _read_map(values: dict[str, Any], key: str, where: str = "") -> dict[str, Any]:
    """Return a map within a map, empty where it is absent or null; anything else is a ValueError that names it."""
    found = values.get(key)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{where}{key} is {quote(found)}: expected an object")
    return found or {}


def _read_parts(parts: object, group: str) -> list[str]:
    if parts is None or (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
        return parts or []
    raise ValueError(f"group_subtasks, {group} is {quote(parts)}: expected a list of names")


def _read_count(value: object, where: str) -> int | None:
    """Return a number of items; None where it is absent or 0."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value % 1 == 0
    if value is not None and (not whole or not 0 <= value < 2**53):  # type: ignore[operator]
        raise ValueError(f"{where} is {quote(value)}: expected a whole number of items")
    return int(value) or None if value is not None else None  # type: ignore[call-overload]


def _read_number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where} is {quote(value)}: expected a finite number")
    return float(value)


def _add_up(counts: list[Any], where: str) -> int | None:
    """Return the number of items of all parts, or None where one is unknown."""
    known = [_read_count(n, where) or 0 for n in counts]
    return sum(known) if known and min(known) > 0 else None


def _list_numbers(results: dict[str, Any], task: str, *, strict: bool) -> dict[str, float]:
    """Return a task's metrics without standard errors, names and what else stands beside them.

    Where strict, a usual metric that is no number is refused, and any of lm-eval's ("metric,filter") that is none:
    the next one would be taken in its place, for all models.
    """
    found = {}
    for name, value in _read_map(results, task, "results, ").items():
        if "stderr" in name or name in _BESIDE:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if strict and (name.split(",")[0] in PREFERRED or ("," in name and not is_number)):
            found[name] = _read_number(value, f"{task}: {name}")
        elif is_number and math.isfinite(value):
            found[name] = float(value)
    return found
