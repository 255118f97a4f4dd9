"""What an experiment may say: every setting with its type and its range, and what must fit together.

The models have no defaults but for `ModelSpec`, whose fields exclude each other: values stand in params/base.yaml.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from karma.vocabulary import ARMS, BENCHMARKS, METHODS, METRICS, STRATEGIES


def _known(names: Collection[str]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"choose from {', '.join(names)}")
        return value

    return AfterValidator(check)


Strategy = Annotated[str, _known(STRATEGIES)]
Method = Annotated[str, _known(METHODS)]
Metric = Annotated[str, _known(METRICS)]
Arm = Annotated[str, _known(ARMS)]


def _check_unique(values: list[object]) -> list[object]:
    repeated = sorted({str(v) for v in values if values.count(v) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is listed twice")
    return values


def _check_name(value: str) -> str:
    if not value or not all(c.isalnum() or c in "._-" for c in value) or value.startswith("."):
        raise ValueError("names become folders: use letters, digits, '.', '_' and '-'")
    if len(value.encode()) > 100:
        raise ValueError("names become folders: use at most 100 letters")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
Share = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator takes
Threads = Annotated[int, Field(ge=1, le=1024)]  # more of them than a machine gives ends the process


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return self.model_dump(mode="json")


class RandomShape(_Strict):
    """The shape of a randomly initialised Llama."""

    hidden_size: Annotated[int, Field(ge=2, le=100_000)]
    layers: Annotated[int, Field(ge=1, le=1000)]
    heads: Annotated[int, Field(ge=1, le=1000)]

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of 2 x {self.heads} heads")
        return self


def _check_url(value: str) -> str:
    """Raise where a server's address has no host, or no port that can be one."""
    try:
        parts = urlsplit(value)
        whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole or not value.isprintable():
        raise ValueError("expected http://HOST:PORT/v1 or the like")
    return value


class ApiSource(_Strict):
    """A model behind an OpenAI-compatible server; the key stays in an environment variable."""

    base_url: Annotated[str, AfterValidator(_check_url)] = Field(
        pattern=r"^https?://[^@?#\s]+$", description="ends before /chat/completions, mostly in /v1"
    )
    model: Annotated[str, Field(min_length=1)]
    key_env: str | None = Field(
        default=None, pattern=r"^[A-Z][A-Z0-9_]*$", description="the variable's name, not the key"
    )


PackagedName = Literal["smollm2-135m", "gemma-3-270m"]  # what each is: karma.models.made.PACKAGED
_SOURCES = ("hub", "path", "packaged", "perturbed", "random", "api")


class ModelSpec(_Strict):
    """Where a model comes from: exactly one of hub, path, packaged, perturbed, random, api."""

    hub: str | None = None
    revision: str | None = None
    path: str | None = None
    packaged: PackagedName | None = None
    perturbed: Name | None = None
    noise: float = Field(default=0.0, ge=0, le=10**6, description="std of the added noise / std of each weight matrix")
    noise_seed: Seed = 0
    drop_layers: list[Annotated[int, Field(ge=0, le=10_000)]] = []
    random: RandomShape | None = None
    seed: Seed = 0
    api: ApiSource | None = None

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        given = [k for k in _SOURCES if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_SOURCES)} (got {given or 'none'})")
        if not self.perturbed and (self.noise or self.drop_layers):
            raise ValueError("noise and drop_layers belong to `perturbed: <model>`")
        if self.perturbed and not (self.noise or self.drop_layers):
            raise ValueError("a perturbed copy needs noise or drop_layers, or it is its father")
        return self


class Resources(_Strict):
    """What one job of a stage may take on a cluster; None: estimated from its models (`karma.study.cluster`)."""

    memory_gib: float | None = Field(default=None, gt=0, le=10**6, allow_inf_nan=False)
    hours: float | None = Field(default=None, gt=0, le=10**6, allow_inf_nan=False)
    gpus: int | None = Field(default=None, ge=0)
    partition: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,-]*$")


PLACEMENT = ("resources", "shards", "engine", "address")  # of compute: where work is done, not what; reruns nothing


class Compute(_Strict):
    """Where and in what precision."""

    backend: Literal["transformers", "vllm"]
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["auto", "float32", "bfloat16"]
    threads: Threads
    gpus_per_job: int = Field(ge=0, le=1024)
    resources: dict[str, Resources]
    shards: Count
    engine: Literal["local", "ray"]
    address: str | None


PACKAGED_ITEMS = "packaged"  # as benchmarks.folder: the items of a wheel, see karma.evaluation.packaged
MEASURED = "measured"  # as a task's chance


def _read_chance(chance: object) -> object:
    """Refuse in one sentence what is no chance level, where pydantic would say why it is neither of two."""
    is_number = isinstance(chance, int | float) and not isinstance(chance, bool)
    if chance is None or chance == MEASURED or (is_number and 0 <= float(str(chance)) < 1):
        return chance
    raise ValueError(f"write a fraction from 0 to below 1, or {MEASURED}")


def _read_unit(unit: object) -> object:
    if unit in ("percent", "fraction"):
        return unit
    is_scale = isinstance(unit, list) and len(unit) == 2 and all(isinstance(end, int | float) for end in unit)
    if isinstance(unit, list) and is_scale and unit[0] < unit[1]:
        return unit
    raise ValueError("write percent, fraction, or a scale as [lowest, highest]")


class HarnessTask(_Strict):
    """A task of lm-evaluation-harness as a benchmark (`karma.evaluation.harness`).

    Attributes:
        task: its name there. name: the benchmark's here; None: the task's. title, capability: in tables and figures.
        metric: one of the task's, or "metric,filter"; None: its usual one.
        chance: the score of guessing, a fraction of which higher is better; "measured": computed from the items.
        unit: of the metric. direction: which is better; None: as the task says.
        shots: examples before an item; None: the task's own number. chat: whether to ask in the chat format.
        include_path: a folder of task YAMLs. data: a file of items, or a folder of one file a split; None: packaged
            items where `benchmarks.folder` says so, else the Hub's.
    """

    task: Annotated[str, Field(min_length=1)]
    name: Name | None = None
    title: Annotated[str, Field(min_length=1)] | None = None
    capability: Annotated[str, Field(min_length=1)] = "unstated"
    metric: Annotated[str, Field(min_length=1)] | None = None
    chance: Annotated[float | Literal["measured"] | None, BeforeValidator(_read_chance)] = None
    unit: Annotated[Literal["percent", "fraction"] | list[float], BeforeValidator(_read_unit)] = "fraction"
    direction: Literal["higher", "lower"] | None = None
    shots: Annotated[int, Field(ge=0, le=1000)] | None = None
    chat: bool = False
    include_path: str | None = None
    data: str | None = None

    @model_serializer(mode="wrap")
    def _leave_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write what was said only, so that another field of this model reruns nothing."""
        fields = type(self).model_fields
        return {key: value for key, value in dump(self).items() if value != fields[key].default}

    @property
    def benchmark(self) -> str:
        """The benchmark's name: in limits, tables and files."""
        return self.name or self.task

    @field_validator("task", "name")
    @classmethod
    def _check_free(cls, value: str | None) -> str | None:
        if value in BENCHMARKS:
            raise ValueError("that is a benchmark of the kit: write it without a map, or give the task another `name`")
        return value

    @model_validator(mode="after")
    def _check_named(self) -> Self:
        try:
            _check_name(self.benchmark)
        except ValueError as error:
            raise ValueError(f"{self.benchmark!r}: {error}; give the task a `name`") from None
        return self


def _find_kind(value: object) -> str:
    return "<task>" if isinstance(value, dict | HarnessTask) else "<name>"


def _check_benchmark(value: str) -> str:
    if value not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise ValueError(f"choose from {known}, or write a map {{task: ...}} for a task of lm-evaluation-harness")
    return value


def name_benchmark(benchmark: "str | HarnessTask") -> str:
    """Return a benchmark's name, whichever way it is asked for.

    Example:
        >>> name_benchmark("arc_easy"), name_benchmark(HarnessTask(task="truthfulqa_mc2"))
        ('arc_easy', 'truthfulqa_mc2')
    """
    return benchmark if isinstance(benchmark, str) else benchmark.benchmark


def _check_names(values: "list[str | HarnessTask]") -> "list[str | HarnessTask]":
    _check_unique([name_benchmark(value) for value in values])
    return values


AnyBenchmark = Annotated[
    Annotated[str, AfterValidator(_check_benchmark), Tag("<name>")] | Annotated[HarnessTask, Tag("<task>")],
    Discriminator(_find_kind),
]


class Benchmarks(_Strict):
    """What is asked, of whom, and how long an answer may be."""

    origin: Annotated[list[AnyBenchmark], Field(min_length=1), AfterValidator(_check_names)]
    policy: Annotated[list[AnyBenchmark], Field(min_length=1), AfterValidator(_check_names)]
    folder: str | None
    protocol: Literal["answer", "logprob", "cloze"]
    limit: Count | None
    limits: dict[str, Count]
    policy_limits: dict[str, Count]
    batch_size: Count
    choice_tokens: Count
    descriptive_tokens: Count
    held_out_pairs: bool

    @property
    def tasks(self) -> dict[str, HarnessTask]:
        """The tasks of lm-evaluation-harness among the benchmarks, by the benchmark's name."""
        return {one.benchmark: one for one in (*self.origin, *self.policy) if isinstance(one, HarnessTask)}

    @field_validator("policy")
    @classmethod
    def _check_alike(cls, policy: list[AnyBenchmark], info: ValidationInfo) -> list[AnyBenchmark]:
        origin = {name_benchmark(one): one for one in info.data.get("origin", [])}
        for one in policy:
            if (other := origin.get(name_benchmark(one), one)) != one:
                name = name_benchmark(other)
                raise ValueError(f"'{name}' is another benchmark in benchmarks.origin: give one of them a `name`")
        return policy

    @field_validator("limits", "policy_limits")
    @classmethod
    def _check_limits(cls, limits: dict[str, int], info: ValidationInfo) -> dict[str, int]:
        asked = [*info.data.get("origin", []), *info.data.get("policy", [])]
        known = list(dict.fromkeys([*BENCHMARKS, *map(name_benchmark, asked)]))
        if unknown := [name for name in limits if name not in known]:
            raise ValueError(f"'{unknown[0]}' is no benchmark here: choose from {', '.join(known)}")
        return limits


class Scores(_Strict):
    """The score table that kinship is computed from."""

    table: str
    columns: str | None
    missing: Literal["refuse", "drop_model", "drop_benchmark"]


class Kinship(_Strict):
    """Threshold, measure and clustering."""

    tau: float = Field(ge=-1, le=1)
    measure: Literal["cosine", "centred_cosine", "rmsd", "rank"]
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    distance: Literal["rmsd", "cosine"]
    linkage: Literal["average", "complete", "single", "ward"]
    cut: float = Field(gt=0, le=10**6)


class Decontaminate(_Strict):
    """What a pool's texts may share no run of words with (`karma.pool.decontamination`); off without benchmarks."""

    benchmarks: Annotated[list[str], AfterValidator(_check_unique)]
    ngram: int = Field(ge=8, le=1000)
    share: Share


class Pool(_Strict):
    """Prompts with responses: where they come from, or how they are sampled."""

    source: str
    revision: str | None
    excluded_origin_models: list[str]
    instructions: str | None
    n_prompts: Count | None
    models_per_prompt: int = Field(ge=2, le=10_000)
    max_new_tokens: Count
    temperature: float = Field(ge=0, le=5)
    top_p: float = Field(gt=0, le=1)
    batch_size: Count
    seed: Seed
    decontaminate: Decontaminate
    near_duplicates: float | None = Field(ge=0.5, le=1)


class Annotation(_Strict):
    """What labels the RLAIF baseline."""

    source: Literal["recorded", "judge"]
    field: Literal["overall_score", "fine-grained_score", "mean_aspect"]
    judge: Name | None
    batch_size: Count


class Affinity(_Strict):
    """What the strategy affinity takes for the quality of a response, and how much that weighs."""

    quality: Annotated[str, Field(pattern=r"^(s_pref|annotation|truth|.+\.parquet)$")]
    weight: Share


class DensityRatio(_Strict):
    """Whose log-probabilities label the strategy density_ratio."""

    strong: Name | None
    weak: Name | None


class Pairs(_Strict):
    """Which pairs are kept, and which rows stay out of training."""

    rejected: Literal["random_lower", "worst"]
    match_rows: Annotated[list[Strategy], AfterValidator(_check_unique)]
    held_out: float = Field(ge=0, lt=1)
    seed: Seed
    curriculum_stages: int | None = Field(ge=1, le=127)
    max_length_ratio: float | None = Field(ge=1, le=10**6)
    min_confidence: float | None = Field(ge=0, le=1)
    calibration: str | None
    equal_numbers: Annotated[list[Strategy], AfterValidator(_check_unique)]


class Lora(_Strict):
    """Low-rank adapters on the last layers only, so that the backward pass stops early."""

    rank: Count
    alpha: Count
    dropout: float = Field(ge=0, lt=1)
    last_layers: Count


class Simpo(_Strict):
    """SimPO's own two numbers (its beta is not DPO's)."""

    beta: float = Field(gt=0, le=10**6)
    gamma_ratio: float = Field(ge=0, le=10**6, description="target margin / beta")


class Training(_Strict):
    """Appendix A of the paper, by default."""

    epochs: float = Field(gt=0, le=10**6)
    per_device_batch_size: Count
    gradient_accumulation: Count
    devices: Count
    learning_rate: float = Field(gt=0, lt=1)
    warmup_steps: int = Field(ge=0, le=10**9)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    max_length: int = Field(ge=16, le=10**9)
    gradient_checkpointing: bool
    beta: float = Field(gt=0, le=10**6)
    loss_type: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sft",
        "sigmoid_norm",
    ]
    label_smoothing: Share
    smooth_by_confidence: bool
    simpo: Simpo
    lora: Lora | None
    merge_adapter: bool
    checkpoint_steps: int = Field(ge=0, le=10**9)
    sample_tokens: int = Field(ge=0, le=10**6)
    accelerate: str | None


class Potential(_Strict):
    """Selecting pairs by alignment potential, and training on the selections; off without metrics."""

    metrics: Annotated[list[Metric], AfterValidator(_check_unique)]
    ratios: Annotated[list[Ratio], Field(min_length=1), AfterValidator(_check_unique)]
    strategies: Annotated[list[Strategy], AfterValidator(_check_unique)]
    methods: Annotated[list[Method], Field(min_length=1), AfterValidator(_check_unique)]
    on_benchmarks: bool
    explicit: Literal["score", "annotation"]
    implicit: Literal["absolute", "signed"]
    weight: float = Field(ge=0, le=100)
    batch_tokens: Count
    seed: Seed

    @model_validator(mode="after")
    def _check_benchmarks(self) -> Self:
        if self.on_benchmarks and not self.metrics:
            raise ValueError("potential.on_benchmarks: name what is selected by in potential.metrics, or set it false")
        return self


class SelfPlay(_Strict):
    """Pairs that a policy makes of its own answers, in rounds; off with rounds: 0."""

    rounds: int = Field(ge=0, le=1000)
    arms: Annotated[list[Arm], Field(min_length=1), AfterValidator(_check_unique)]
    method: Method
    prompts: str
    scorer: Literal["instructions", "judge", "reward_model"]
    scorer_model: Name | None
    base_prompts: Count
    held_out_prompts: int = Field(ge=2, le=10**9)
    fresh_prompts: Count
    candidate_pairs: Count
    samples: int = Field(ge=2, le=10_000)
    max_new_tokens: Count
    temperature: float = Field(gt=0, le=5)
    top_p: float = Field(gt=0, le=1)
    batch_size: Count
    length_factor: float = Field(ge=1, le=10**6)
    select_ratio: float = Field(gt=0, le=1)
    weight: float = Field(ge=0, le=10**6)
    base_pairs: Count
    added_pairs: Count
    seed: Seed

    @model_validator(mode="after")
    def _check_scorer(self) -> Self:
        if (self.scorer == "instructions") == (self.scorer_model is not None):
            raise ValueError("scorer_model: name a model for judge and reward_model, and none for instructions")
        return self


class Labels(_Strict):
    """Stage 09: every pair's label against what a program can check, and a source of recorded judgments beside."""

    audit: bool
    judgments: str | None
    scores: str | None
    columns: str | None
    prefer: str | None
    tie: float = Field(ge=0, le=10**6)

    @model_validator(mode="after")
    def _check_judgments(self) -> Self:
        if (self.judgments is None) != (self.scores is None):
            raise ValueError("labels.judgments and labels.scores: name both, or neither")
        if self.judgments and not self.audit:
            raise ValueError("labels.judgments is shown by stage 09: set labels.audit, or run `karma audit-labels`")
        return self


class WinRates(_Strict):
    """Every training's answers against the baseline's and the untrained policy's; off without a judge."""

    judge: Name | None
    n_prompts: Count | None
    max_new_tokens: Count
    temperature: float = Field(ge=0, le=5)
    top_p: float = Field(gt=0, le=1)
    batch_size: Count
    reply_tokens: Count
    tie: float = Field(ge=0, lt=1)
    seed: Seed


class Settings(_Strict):
    """One experiment's values, all of them."""

    name: Name
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_check_unique)]
    strategies: Annotated[list[Strategy], AfterValidator(_check_unique)]
    methods: Annotated[list[Method], Field(min_length=1), AfterValidator(_check_unique)]
    trained_on: dict[Method, Annotated[list[Strategy], AfterValidator(_check_unique)] | None]
    models: dict[Name, ModelSpec]
    origin_models: Annotated[list[Name], AfterValidator(_check_unique)]
    policies: Annotated[list[Name], AfterValidator(_check_unique)]
    compute: Compute
    benchmarks: Benchmarks
    scores: Scores
    kinship: Kinship
    pool: Pool
    annotation: Annotation
    density_ratio: DensityRatio
    affinity: Affinity
    pairs: Pairs
    training: Training
    potential: Potential
    self_play: SelfPlay
    labels: Labels
    win_rates: WinRates

    @property
    def has_annotations(self) -> bool:
        """Tell whether single responses may have annotations: the pool's own, or a judge's, made for rlaif."""
        return self.annotation.source == "recorded" or self.reads_annotations

    @property
    def reads_annotations(self) -> bool:
        """Tell whether pairs are made by annotations of single responses."""
        by_affinity = "affinity" in self.strategies and self.affinity.quality == "annotation" and self.affinity.weight
        return "rlaif" in self.strategies or bool(by_affinity)

    def list_trained(self, method: str) -> list[str]:
        """Return the strategies whose pairs a method trains on: all of them, or those that `trained_on` names."""
        named = self.trained_on.get(method)
        return [strategy for strategy in self.strategies if named is None or strategy in named]

    def _check_trained_on(self) -> None:
        for method, names in self.trained_on.items():
            if names is None:  # takes back what an experiment that this one extends says
                continue
            if method not in self.methods:
                raise ValueError(f"trained_on: '{method}' is not among the methods of this experiment")
            if unknown := [name for name in names if name not in self.strategies]:
                raise ValueError(f"trained_on.{method}: '{unknown[0]}' is not among the strategies of this experiment")

    def _check_smoothing(self) -> None:
        """Raise a ValueError where labels are to be smoothed by a confidence that they will not have."""
        every = self.training.smooth_by_confidence
        by, smoothed = ("training.smooth_by_confidence", self.methods) if every else ("method cdpo", ["cdpo"])
        trained = {name for method in smoothed if method in self.methods for name in self.list_trained(method)}
        for name in ("rlaif", "density_ratio"):
            if name in trained:
                raise ValueError(
                    f"{by}: {name}'s labels are of unknown confidence: leave {name} out of strategies, or of trained_on"
                )
        if self.self_play.rounds and (every or self.self_play.method == "cdpo"):
            raise ValueError(f"{by}: self-play's pairs have no label confidence: train them by dpo, unsmoothed")

    def _check_loss(self) -> None:
        """Raise a ValueError where DPO's loss cannot be computed as set, which a training would find after hours."""
        methods = {*self.methods, *([self.self_play.method] if self.self_play.rounds else [])}
        training = self.training
        if not methods & {"dpo", "cdpo"}:
            return
        if training.loss_type == "exo_pair" and not training.label_smoothing:
            raise ValueError("training.loss_type exo_pair needs training.label_smoothing above 0 (its paper: 1.0e-3)")
        if training.loss_type == "robust" and training.label_smoothing >= 0.5:
            raise ValueError("training.loss_type robust needs training.label_smoothing below 0.5")
        if training.loss_type != "sigmoid" and (training.smooth_by_confidence or "cdpo" in methods):
            raise ValueError("training.loss_type: labels are smoothed by confidence (method cdpo) with sigmoid only")

    def _check_backend(self, named: dict[str, list[str]]) -> None:
        """Raise a ValueError where vLLM would be asked for a model that is made in memory, after hours of work."""
        if self.compute.backend != "vllm":
            return
        for key in ("policies", "origin_models"):
            for name in named.get(key, []):
                if self.models[name].perturbed or self.models[name].random:
                    raise ValueError(f"compute.backend: vllm cannot load '{name}', which is made in memory ({key})")
        if self.policies and self.training.lora and not self.training.merge_adapter:
            raise ValueError("compute.backend: vllm loads whole weights only: set training.merge_adapter to true")

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        if not self.strategies and not self.self_play.rounds:
            raise ValueError("strategies: name at least one, or set self_play.rounds for a study of self-play alone")
        self._check_trained_on()
        self._check_smoothing()
        self._check_loss()
        known = ", ".join(self.models) or "none"
        named = {"policies": self.policies, "self_play.scorer_model": []}
        if self.self_play.rounds and self.self_play.scorer_model:
            named["self_play.scorer_model"] = [self.self_play.scorer_model]
        if "density_ratio" in self.strategies:
            both = self.density_ratio
            if not both.strong or not both.weak or both.strong == both.weak:
                raise ValueError("density_ratio: name two models, density_ratio.strong and density_ratio.weak")
            named |= {"density_ratio.strong": [both.strong], "density_ratio.weak": [both.weak]}
        named["annotation.judge"] = [self.annotation.judge or "none"] if self.annotation.source == "judge" else []
        named["win_rates.judge"] = [self.win_rates.judge] if self.win_rates.judge else []
        if self.strategies and (self.scores.table == "measured" or self.pool.source == "generate"):
            named["origin_models"] = self.origin_models
        for name, spec in self.models.items():
            named[f"models.{name}.perturbed"] = [spec.perturbed] if spec.perturbed else []
            if spec.perturbed == name or (spec.perturbed in self.models and self.models[spec.perturbed].perturbed):
                raise ValueError(f"models.{name}: perturb a model that is not itself perturbed")
        for key, names in named.items():
            for name in names:
                if name not in self.models:
                    raise ValueError(f"{key}: '{name}' is not a model of this experiment (models: {known})")
        if unknown := [s for s in self.potential.strategies if s not in self.strategies]:
            raise ValueError(f"potential.strategies: '{unknown[0]}' is not among the strategies of this experiment")
        if self.potential.metrics and self.potential.explicit == "annotation" and not self.has_annotations:
            raise ValueError("potential.explicit: a judge's annotations are made only where rlaif is a strategy")
        if "m_ap_annotated" in self.potential.metrics and not self.has_annotations:
            raise ValueError("potential.metrics: m_ap_annotated reads annotations; a judge's are made only for rlaif")
        loaded = {key: named[key] for key in ("policies", "self_play.scorer_model")}
        loaded |= {key: names for key, names in named.items() if key.startswith(("models.", "density_ratio."))}
        for key, names in loaded.items():
            for name in names:
                if self.models[name].api:
                    raise ValueError(
                        f"{key}: '{name}' is behind an API: it can write and be evaluated, not be loaded here"
                    )
        self._check_backend(named)
        if self.pool.source == "generate":
            if not self.pool.instructions:
                raise ValueError("pool.instructions: a generated pool needs a file of instructions")
            if self.pool.models_per_prompt > len(self.origin_models):
                raise ValueError(
                    f"pool.models_per_prompt: {self.pool.models_per_prompt} is more than the "
                    f"{len(self.origin_models)} origin models"
                )
        if "affinity" in self.strategies and self.affinity.quality == "truth" and not self.pool.instructions:
            raise ValueError("affinity.quality: truth needs the pool's verifiable prompts: name pool.instructions")
        if self.win_rates.judge and not self.pairs.held_out:
            raise ValueError("win_rates.judge: no prompt is held out: set pairs.held_out above 0")
        if self.labels.audit and not self.pool.instructions:
            raise ValueError("labels.audit: name the file of the pool's verifiable prompts in pool.instructions")
        if self.strategies and self.scores.table == "measured" and len(self.origin_models) < 2:
            raise ValueError("origin_models: kinship needs at least two origin models to measure")
        return self
