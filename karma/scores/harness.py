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

from karma.errors import InputError
from karma.files.reading import load_json
from karma.scores.columns import Column, ColumnMap
from karma.scores.metrics import choose_metric
from karma.scores.understand import UNSTATED, load_catalogue, simplify

FILES = ("results*.json", "scores.json")


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
        InputError: a file of no known kind, or models that were not evaluated alike.
    """
    models: dict[str, dict[str, dict[str, Score]]] = {}
    aside: dict[str, str] = {}
    for file in files:
        model, found = _read_file(file)
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
            (base.title, base.capability, base.answer_form) if base else (task, UNSTATED, UNSTATED)
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


def _read_file(file: Path) -> tuple[str, dict[str, dict[str, Score]]]:
    """Return a file's model and its tasks."""
    content = load_json(file)
    kind = content if isinstance(content, dict) else {}
    if isinstance(kind.get("benchmarks"), dict) and "model" in kind:
        return str(kind["model"]), {
            name: {"score": Score(float(b["value"]), int(b["n"]), (
                f"{b['n']} items", f"version {b.get('task_version')}", f"prompt {b.get('template_hash')}"))}
            for name, b in kind["benchmarks"].items()
        }  # fmt: skip
    if not isinstance(kind.get("results"), dict):
        raise InputError(f"{file}: no result file of lm-eval, lighteval or karma: it has no 'results'")
    general = kind.get("config_general") or {}
    if general:
        model = general.get("model_name") or (general.get("model_config") or {}).get("model_name")
        tasks = dict(_read_lighteval(kind))
    else:
        model, tasks = kind.get("model_name"), dict(_read_lm_eval(kind))
    if not model:
        raise InputError(f"{file}: the result file does not name its model: add 'model_name' to it")
    return str(model), tasks


def _read_lm_eval(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Score]]]:
    results, subtasks = content["results"], content.get("group_subtasks") or {}
    samples, higher = content.get("n-samples") or {}, content.get("higher_is_better") or {}

    def list_leaves(task: str) -> list[str]:
        return [leaf for child in subtasks.get(task) or [] for leaf in list_leaves(child)] or [task]

    scored = {task: _list_numbers(values) for task, values in results.items()}
    covered = {below for group in subtasks if scored.get(group) for below in _list_below(subtasks, group)}
    for task, values in scored.items():
        if not values or task in covered:
            continue
        n_items = _add_up((samples.get(leaf) or {}).get("effective") for leaf in list_leaves(task))
        setup = (f"{n_items} items", f"version {(content.get('versions') or {}).get(task)}",
                 f"{(content.get('n-shot') or {}).get(task)} shots")  # fmt: skip
        lower = {m: (higher.get(task) or {}).get(m.split(",")[0]) is False for m in values}
        yield task, {m: Score(value, n_items, setup, lower[m]) for m, value in values.items()}


def _list_below(subtasks: dict[str, list[str]], group: str) -> Iterator[str]:
    for child in subtasks.get(group) or []:
        yield child
        yield from _list_below(subtasks, child)


def _read_lighteval(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Score]]]:
    counts = {_name_task(task)[0]: (config or {}).get("effective_num_docs")
              for task, config in (content.get("config_tasks") or {}).items()}  # fmt: skip
    named = {task: _name_task(task) for task in content["results"] if task != "all"}
    averaged = {name.removesuffix(":_average") for name, _ in named.values() if name.endswith(":_average")}
    for task, (name, shots) in named.items():
        group = name.partition(":")[0]
        if group in averaged and not name.endswith(":_average"):
            continue
        parts = [name] if group not in averaged else [part for part in counts if part.startswith(f"{group}:")]
        n_items = _add_up(counts.get(part) for part in parts)
        setup = (f"{n_items} items", f"version {(content.get('versions') or {}).get(task)}", f"{shots} shots")
        values = _list_numbers(content["results"][task])
        yield name.removesuffix(":_average"), {m: Score(value, n_items, setup) for m, value in values.items()}


def _add_up(counts: Iterable[int | None]) -> int | None:
    """Return the number of items of all parts, or None where one is unknown."""
    known = [n or 0 for n in counts]
    return sum(known) if known and min(known) > 0 else None


def _name_task(task: str) -> tuple[str, str]:
    """Return the name and the shots of `suite|name|shots|truncated`, `name|shots` or `suite|name`."""
    parts = task.split("|")
    shots = next((part for part in parts[1:] if part.isdigit()), "?")
    words = [part for part in parts if not part.isdigit()]
    return words[-1] if words else task, shots


def _list_numbers(values: object) -> dict[str, float]:
    """Return a task's metrics without standard errors, names and what is no number."""
    found = values.items() if isinstance(values, dict) else ()
    return {
        str(name): float(value) for name, value in found
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        and "stderr" not in str(name) and name not in ("sample_len", "samples")
    }  # fmt: skip
