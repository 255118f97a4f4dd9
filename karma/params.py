"""The settings of an experiment: loaded, merged, validated, and traced to the file that set each value.

`params/base.yaml` holds every value; an experiment file states what differs. Maps merge key by key, lists are
replaced. The models below therefore have no defaults: a fact stands once, in base.yaml. A stage sees only the
settings it declares (`karma.stages`), so that changing one value reruns exactly the stages that read it.
"""

import difflib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from karma.errors import InputError
from karma.files import find_project_root

Strategy = Literal["rlaif", "k_score", "k_sim", "k_score_sim", "random", "least_kin"]
Method = Literal["sft", "dpo"]
Benchmark = Literal["ifeval", "mmlu_stem", "mmlu_pro", "hellaswag", "arc_easy", "arc_challenge"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


def _check_unique(values: list) -> list:
    repeated = sorted({str(v) for v in values if values.count(v) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is listed twice")
    return values


def _check_name(value: str) -> str:
    if not value or not all(c.isalnum() or c in "._-" for c in value) or value.startswith("."):
        raise ValueError("names become folders: use letters, digits, '.', '_' and '-'")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class RandomShape(_Strict):
    """The shape of a randomly initialised Llama."""

    hidden_size: Count
    layers: Count
    heads: Count


class ApiSource(_Strict):
    """A model behind an OpenAI-compatible server; the key stays in an environment variable."""

    base_url: str = Field(pattern=r"^https?://[^@\s]+$", description="ends before /chat/completions, mostly in /v1")
    model: Annotated[str, Field(min_length=1)]
    key_env: str | None = Field(
        default=None, pattern=r"^[A-Z][A-Z0-9_]*$", description="the variable's name, not the key"
    )


_SOURCES = ("hub", "path", "packaged", "perturbed", "random", "api")


class ModelSpec(_Strict):
    """Where a model comes from: exactly one of hub, path, packaged, perturbed, random, api."""

    hub: str | None = None
    revision: str | None = None
    path: str | None = None
    packaged: Literal["smollm2-135m"] | None = None
    perturbed: Name | None = None
    noise: float = Field(default=0.0, ge=0, description="std of the added noise / std of each weight matrix")
    noise_seed: int = 0
    drop_layers: list[int] = []
    random: RandomShape | None = None
    seed: int = 0
    api: ApiSource | None = None

    @model_validator(mode="after")
    def _check_one_source(self):
        given = [k for k in _SOURCES if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_SOURCES)} (got {given or 'none'})")
        if not self.perturbed and (self.noise or self.drop_layers):
            raise ValueError("noise and drop_layers belong to `perturbed: <model>`")
        if self.perturbed and not (self.noise or self.drop_layers):
            raise ValueError("a perturbed copy needs noise or drop_layers, or it is its father")
        return self


class Compute(_Strict):
    """Where and in what precision."""

    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["auto", "float32", "bfloat16"]
    threads: Count
    gpus_per_job: int = Field(ge=0)


class Benchmarks(_Strict):
    """What is asked, of whom, and how long an answer may be."""

    origin: Annotated[list[Benchmark], Field(min_length=1), AfterValidator(_check_unique)]
    policy: Annotated[list[Benchmark], Field(min_length=1), AfterValidator(_check_unique)]
    folder: str | None
    limit: Count | None
    batch_size: Count
    choice_tokens: Count
    descriptive_tokens: Count


class Scores(_Strict):
    """The score table that kinship is computed from."""

    table: str


class Kinship(_Strict):
    """Threshold and clustering."""

    tau: float = Field(ge=-1, le=1)
    distance: Literal["rmsd", "cosine"]
    linkage: Literal["average", "complete", "single", "ward"]
    cut: float = Field(gt=0)


class Pool(_Strict):
    """Prompts with responses: where they come from, or how they are sampled."""

    source: str
    revision: str | None
    excluded_origin_models: list[str]
    instructions: str | None
    models_per_prompt: int = Field(ge=2)
    max_new_tokens: Count
    temperature: float = Field(ge=0, le=5)
    top_p: float = Field(gt=0, le=1)
    batch_size: Count
    seed: int


class Annotation(_Strict):
    """What labels the RLAIF baseline."""

    source: Literal["recorded", "judge"]
    field: Literal["overall_score", "fine-grained_score", "mean_aspect"]
    judge: Name | None
    batch_size: Count


class Pairs(_Strict):
    """Which pairs are kept, and which rows stay out of training."""

    rejected: Literal["random_lower", "worst"]
    match_rows: Annotated[list[Strategy], AfterValidator(_check_unique)]
    held_out: float = Field(ge=0, lt=1)
    seed: int


class Lora(_Strict):
    """Low-rank adapters on the last layers only, so that the backward pass stops early."""

    rank: Count
    alpha: Count
    dropout: float = Field(ge=0, lt=1)
    last_layers: Count


class Training(_Strict):
    """Appendix A of the paper, by default."""

    epochs: float = Field(gt=0)
    per_device_batch_size: Count
    gradient_accumulation: Count
    devices: Count
    learning_rate: float = Field(gt=0, lt=1)
    warmup_steps: int = Field(ge=0)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    max_length: int = Field(ge=16)
    gradient_checkpointing: bool
    beta: float = Field(gt=0)
    loss_type: str
    lora: Lora | None


class Settings(_Strict):
    """One experiment's values, all of them."""

    name: Name
    seeds: Annotated[list[int], Field(min_length=1), AfterValidator(_check_unique)]
    strategies: Annotated[list[Strategy], Field(min_length=1), AfterValidator(_check_unique)]
    methods: Annotated[list[Method], Field(min_length=1), AfterValidator(_check_unique)]
    models: dict[Name, ModelSpec]
    origin_models: Annotated[list[Name], AfterValidator(_check_unique)]
    policies: Annotated[list[Name], AfterValidator(_check_unique)]
    compute: Compute
    benchmarks: Benchmarks
    scores: Scores
    kinship: Kinship
    pool: Pool
    annotation: Annotation
    pairs: Pairs
    training: Training

    @model_validator(mode="after")
    def _check_references(self):
        known = ", ".join(self.models) or "none"
        named = {"policies": self.policies}
        named["annotation.judge"] = [self.annotation.judge or "none"] if self.annotation.source == "judge" else []
        if self.scores.table == "measured" or self.pool.source == "generate":
            named["origin_models"] = self.origin_models
        for name, spec in self.models.items():
            named[f"models.{name}.perturbed"] = [spec.perturbed] if spec.perturbed else []
            if spec.perturbed == name or (spec.perturbed in self.models and self.models[spec.perturbed].perturbed):
                raise ValueError(f"models.{name}: perturb a model that is not itself perturbed")
        for key, names in named.items():
            for name in names:
                if name not in self.models:
                    raise ValueError(f"{key}: '{name}' is not a model of this experiment (models: {known})")
        loaded = {"policies": self.policies, "annotation.judge": named["annotation.judge"]}
        loaded |= {key: names for key, names in named.items() if key.startswith("models.")}
        for key, names in loaded.items():
            for name in names:
                if self.models[name].api:
                    raise ValueError(
                        f"{key}: '{name}' is behind an API: it can write and be evaluated, not be loaded here"
                    )
        if self.pool.source == "generate":
            if not self.pool.instructions:
                raise ValueError("pool.instructions: a generated pool needs a file of instructions")
            if self.pool.models_per_prompt > len(self.origin_models):
                raise ValueError(
                    f"pool.models_per_prompt: {self.pool.models_per_prompt} is more than the "
                    f"{len(self.origin_models)} origin models"
                )
        if self.scores.table == "measured" and len(self.origin_models) < 2:
            raise ValueError("origin_models: kinship needs at least two origin models to measure")
        return self


class View:
    """Settings as attributes, cut down to what a stage declares; anything else is a clear error."""

    def __init__(self, values: dict[str, Any], path: str, stage: str):
        self.__dict__.update({k: View(v, f"{path}{k}.", stage) if _is_branch(v) else v for k, v in values.items()})
        self._values, self._path, self._stage = values, path, stage

    def __getattr__(self, key: str):
        if key.startswith("__"):
            raise AttributeError(key)
        raise AttributeError(f"stage {self._stage} does not declare '{self._path}{key}': add it in karma/stages.py")

    def as_dict(self) -> dict[str, Any]:
        """Return the values below this point as plain dictionaries."""
        return self._values


def _is_branch(value: Any) -> bool:
    return isinstance(value, dict)


class Experiment:
    """An experiment's validated settings, with the file that set each value.

    Attributes:
        settings: the validated values.
        sources: dotted key -> file name that set it.
        path: the experiment's file. root: the clone's top folder. outputs: root / outputs / name.
    """

    def __init__(self, settings: Settings, sources: dict[str, str], path: Path, root: Path):
        self.settings, self.sources, self.path, self.root = settings, sources, path, root
        self.outputs = root / "outputs" / settings.name

    def select(self, keys: tuple[str, ...], stage: str = "?") -> View:
        """Return the values under the dotted `keys`, and nothing else, as attributes."""
        full: dict[str, Any] = self.settings.model_dump(mode="json")
        chosen: dict[str, Any] = {}
        for key in keys:
            node, target, parts = full, chosen, key.split(".")
            for part in parts[:-1]:
                node, target = node[part], target.setdefault(part, {})
            target[parts[-1]] = node[parts[-1]]
        return View(chosen, "", stage)

    def show(self, keys: tuple[str, ...]):
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
    """Load an experiment file over base.yaml.

    Args:
        path: a YAML file, relative to the project's root or the current folder; or a bare name in params/.

    Raises:
        InputError: unreadable file, unknown key (with the nearest valid name), wrong type, impossible value.
    """
    file, root = find_experiment_file(path)
    base_file = root / "params" / "base.yaml"
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source in dict.fromkeys([base_file, file]):
        _merge(merged, sources, _load_yaml(source), source.name, "")
    return Experiment(_validate(merged, file), sources, file, root)


@cache
def load_base() -> Settings:
    """Return base.yaml's values: from the clone, or from the installed wheel."""
    packaged = Path(str(files("karma") / "data" / "base.yaml"))
    path = packaged if packaged.is_file() else find_project_root() / "params" / "base.yaml"
    return _validate({**_load_yaml(path), "scores": {"table": "paper"}}, path)


def find_experiment_file(path: str | Path) -> tuple[Path, Path]:
    """Return the experiment's file and the clone it belongs to."""
    root = find_project_root()
    for candidate in (Path(path), root / path, root / "params" / f"{path}.yaml"):
        if candidate.is_file():
            return candidate.resolve(), root
    there = ", ".join(sorted(f"params/{p.name}" for p in (root / "params").glob("*.yaml") if p.stem != "base"))
    raise InputError(f"experiment '{path}' not found; there are {there}")


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        repeated = [k for k in keys if keys.count(k) > 1]
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"key '{repeated[0]}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=_UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path.name} must be a map of settings, as params/base.yaml is")
    return content


def _merge(into: dict, sources: dict[str, str], values: dict, file: str, prefix: str) -> None:
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if _is_branch(value) and _is_branch(into.get(key)) and key not in ("lora",) and prefix != "models.":
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


def _explain(error: Any) -> str:
    """Turn one pydantic error into: key, what was given, what was expected."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        model: type[BaseModel] | None = Settings
        for part in error["loc"][:-1]:
            field = model.model_fields.get(str(part)) if model else None
            model = _inner_model(field.annotation) if field else ModelSpec
        known = list(model.model_fields) if model is not None else []
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"unknown setting '{key}'; {hint}"
    if error["type"] == "missing":
        return f"'{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return message
    secret = key.endswith("key_env") or (key.endswith("base_url") and "@" in str(error["input"]))
    given = "not shown (it may hold a secret)" if secret else repr(error["input"])
    hint = " (write 5.0e-7 with a point: YAML reads 5e-7 as text)" if _looks_scientific(error["input"]) else ""
    return f"{key} is {given if len(given) < 80 else given[:77] + '...'}: {message}{hint}"


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _looks_scientific(value: Any) -> bool:
    if not isinstance(value, str) or "e" not in value.lower():
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
