"""The settings of an experiment: loaded, merged, validated, and traced to the file that set each value.

`params/base.yaml` holds every value; an experiment file states what differs, from base.yaml or from the experiment that
it `extends`. Maps merge key by key, an empty one clears, lists are replaced. What may be said is in
`karma.study.settings`. A stage sees only the settings it declares (`karma.study.stages`), so that changing one value
reruns exactly the stages that read it.
"""

import difflib
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from karma.errors import InputError, quote
from karma.files.places import find_project_root
from karma.files.yaml import load_yaml
from karma.study.sections import ModelSpec
from karma.study.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    from pydantic_core import ErrorDetails


class View:
    """Settings as attributes, cut down to what a stage declares; anything else is a clear error.

    A section that is declared whole is the validated object itself (`karma.study.settings`); of one that is declared in
    part there is a view again. Both answer `as_dict`.

    Args:
        section: the validated settings. keys: dotted, below it. stage: whose. path: of the section, with a last dot.
    """

    def __init__(self, section: BaseModel, keys: tuple[str, ...], stage: str, path: str = "") -> None:
        below: dict[str, list[str]] = {}
        for key in keys:
            name, _, rest = key.partition(".")
            below.setdefault(name, []).append(rest)
        self._section, self._stage, self._path, self._names = section, stage, path, tuple(below)
        for name, inside in below.items():
            value = getattr(section, name)
            self.__dict__[name] = value if "" in inside else View(value, tuple(inside), stage, f"{path}{name}.")

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        raise AttributeError(
            f"stage {self._stage} does not declare '{self._path}{key}': add it in karma/study/stages.py"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the values below this point as JSON can hold them."""
        whole = self._section.model_dump(mode="json", include=set(self._names))
        parts = {name: self.__dict__[name] for name in self._names}
        return {name: part.as_dict() if isinstance(part, View) else whole[name] for name, part in parts.items()}


def _is_branch(value: Any) -> bool:
    return isinstance(value, dict)


class Experiment:
    """An experiment's validated settings, with the file that set each value.

    Attributes:
        settings: the validated values.
        sources: dotted key -> file name that set it.
        path: the experiment's file. root: the clone's top folder. outputs: root / outputs / name.
    """

    def __init__(self, settings: Settings, sources: dict[str, str], path: Path, root: Path) -> None:
        self.settings, self.sources, self.path, self.root = settings, sources, path, root
        self.outputs = root / "outputs" / settings.name

    def select(self, keys: tuple[str, ...], stage: str = "?") -> View:
        """Return the values under the dotted `keys`, and nothing else, as attributes.

        Example:
            >>> chosen = load_experiment("smoke").select(("training", "benchmarks.limit"))
            >>> type(chosen.training).__name__, chosen.benchmarks.as_dict()
            ('Training', {'limit': 28})
        """
        return View(self.settings, keys, stage)

    def show(self, keys: tuple[str, ...]) -> "pd.DataFrame":
        """Return the values under `keys` as a table: setting, value, file that set it."""
        import pandas as pd

        chosen = [(k, v) for k, v in _leaves(self.select(keys).as_dict())]
        rows = [(key, str(value), self._source(key)) for key, value in chosen]
        return pd.DataFrame(rows, columns=["setting", "value", "set by"]).set_index("setting")

    def _source(self, key: str) -> str:
        while key and key not in self.sources:
            key = key.rpartition(".")[0]
        return self.sources.get(key, "default")


def load_experiment(path: str | Path) -> Experiment:
    """Load an experiment file over base.yaml, and over the experiment that it extends, if it names one.

    Args:
        path: a YAML file, relative to the project's root or the current folder; or a bare name in params/.

    Raises:
        InputError: unreadable file, unknown key (with the nearest valid name), wrong type, impossible value, files that
            extend each other.

    Example:
        >>> experiment = load_experiment("params/paper.yaml")
        >>> experiment.settings.training.warmup_steps, experiment.show(("training",)).loc["training.beta", "set by"]
        (500, 'base.yaml')
    """
    file, root = find_experiment_file(path)
    base_file = root / "params" / "base.yaml"
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, values in dict([(base_file, _load_yaml(base_file)), *_load_chain(file)]).items():
        _merge(merged, sources, values, source.name, "")
    return Experiment(_validate(merged, file), sources, file, root)


def _load_chain(file: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return an experiment file and those it builds on, each with its values, the last one's father first."""
    chain: dict[Path, dict[str, Any]] = {}
    while True:
        chain[file] = values = _load_yaml(file)
        father = values.pop("extends", None)
        if father is None:
            return [*chain.items()][::-1]
        if not isinstance(father, str):
            raise InputError(f"{file.name}: extends is {father!r}: name one experiment, e.g. `extends: demo`")
        beside = file.parent / father
        file = find_experiment_file(beside if beside.is_file() else father)[0]
        if file in chain:
            circle = " extends ".join(each.name for each in [*chain, file])
            raise InputError(f"{circle}: a circle; let one of them stand alone")
        name = _load_yaml(file).get("name")
        for each, own in chain.items():
            if name and own.get("name", name) == name:  # it would write over the other's outputs
                raise InputError(
                    f"{each.name} extends {file.name} and has its name, {name!r}: give it a name of its own"
                )


@cache
def load_base() -> Settings:
    """Return base.yaml's values: from the clone, or from the installed wheel."""
    packaged = Path(str(files("karma") / "data" / "base.yaml"))
    path = packaged if packaged.is_file() else find_project_root() / "params" / "base.yaml"
    values = _load_yaml(path)
    return _validate({**values, "scores": {**values["scores"], "table": "paper"}}, path)


def find_experiment_file(path: str | Path) -> tuple[Path, Path]:
    """Return the experiment's file and the clone it belongs to."""
    root = find_project_root()
    for candidate in (Path(path), root / path, root / "params" / f"{path}.yaml"):
        if candidate.is_file():
            return candidate.resolve(), root
    there = ", ".join(sorted(f"params/{p.name}" for p in (root / "params").glob("*.yaml") if p.stem != "base"))
    raise InputError(f"experiment '{path}' not found; there are {there}")


def _load_yaml(path: Path) -> dict[str, Any]:
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path.name} must be a map of settings, as params/base.yaml is")
    return content


def _merge(into: dict[str, Any], sources: dict[str, str], values: dict[str, Any], file: str, prefix: str) -> None:
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if value and _is_branch(value) and _is_branch(into.get(key)) and key not in ("lora",) and prefix != "models.":
            _merge(into[key], sources, value, file, f"{dotted}.")
            continue
        into[key] = value
        for leaf in [dotted, *(f"{dotted}.{k}" for k, _ in _leaves(value))]:
            sources[leaf] = file


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if _is_branch(values):
        for key, value in values.items():
            if _is_branch(value) and value:
                yield from _leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value


def _validate(values: dict[str, Any], file: Path) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{file.name}: {'; '.join(_explain(e) for e in error.errors())}") from None


def _explain(error: "ErrorDetails") -> str:
    """Turn one pydantic error into: key, what was given, what was expected."""
    loc = [part for part in error["loc"] if not str(part).startswith("<")]  # "<task>": which of two kinds was read
    key = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        model: type[BaseModel] | None = Settings
        for part in loc[:-1]:
            if isinstance(part, int):
                continue  # a list's entries are its model's
            field = model.model_fields.get(str(part)) if model else None
            model = _inner_model(field.annotation) if field else ModelSpec
        known = list(model.model_fields) if model is not None else []
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"unknown setting '{key}'; {hint}"
    if error["type"] == "missing":
        return f"'{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if error["type"] == "value_error" and isinstance(error["input"], dict) and _is_section(loc):  # not shown whole
        told = message.startswith(f"{loc[0]}.")
        return message if told else f"{key}{'.' if re.match('[a-z_]+: ', message) else ': '}{message}"
    secret = key.endswith("key_env") or (key.endswith("base_url") and {*"@?#"} & {*str(error["input"])})
    given = "not shown (it may hold a secret)" if secret else quote(error["input"])
    hint = " (write 5.0e-7 with a point: YAML reads 5e-7 as text)" if _looks_scientific(error["input"]) else ""
    return f"{key} is {given}: {message}{hint}"


def _is_section(loc: list[Any]) -> bool:
    """Tell whether a place in the settings is one of the kit's sections, and no value that a user writes."""
    model: type[BaseModel] | None = Settings
    for part in loc:
        field = model.model_fields.get(str(part)) if model else None
        model = _inner_model(field.annotation) if field else ModelSpec if model is ModelSpec else None
    return model is not None


def _inner_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _inner_model(part))), None)


def _looks_scientific(value: object) -> bool:
    if not isinstance(value, str) or "e" not in value.lower():
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
