"""The sections of an experiment, each setting with its type and its range.

They have no defaults but for `ModelSpec`, whose fields exclude each other: values stand in params/base.yaml.
"""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from karma.study.fields import (
    Arm,
    Count,
    Method,
    Metric,
    Name,
    Ratio,
    Seed,
    Share,
    Strategy,
    Strict,
    Threads,
    check_unique,
)


class RandomShape(Strict):
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


class ApiSource(Strict):
    """A model behind an OpenAI-compatible server; the key stays in an environment variable."""

    base_url: Annotated[str, AfterValidator(_check_url)] = Field(
        pattern=r"^https?://[^@?#\s]+$", description="ends before /chat/completions, mostly in /v1"
    )
    model: Annotated[str, Field(min_length=1)]
    key_env: str | None = Field(
        default=None, pattern=r"^[A-Z][A-Z0-9_]*$", description="the variable's name, not the key"
    )


def check_hub_name(value: str) -> str:
    """Raise where the Hub's own client would not ask for a name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(value)
    except HFValidationError:
        raise PydanticCustomError("hub", "no name on the Hub: expected OWNER/NAME") from None
    return value


def _check_revision(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", value) or ".." in value:
        raise PydanticCustomError("revision", "expected a commit, a branch or a tag, without spaces")
    return value


HubName = Annotated[str, AfterValidator(check_hub_name)]
Revision = Annotated[str, AfterValidator(_check_revision)]
PackagedName = Literal["smollm2-135m", "gemma-3-270m"]  # what each is: karma.models.made.PACKAGED
_SOURCES = ("hub", "path", "packaged", "perturbed", "random", "api")


class ModelSpec(Strict):
    """Where a model comes from: exactly one of hub, path, packaged, perturbed, random, api."""

    hub: HubName | None = None
    revision: Revision | None = None
    path: str | None = None
    packaged: PackagedName | None = None
    perturbed: Name | None = None
    noise: float = Field(default=0.0, ge=0, le=10**6, description="std of the added noise / std of each weight matrix")
    noise_seed: Seed = 0
    drop_layers: list[Annotated[int, Field(ge=0, le=10_000)]] = Field(default_factory=list)
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
            raise ValueError("a perturbed copy needs noise or drop_layers, or it is its base model")
        return self


class Resources(Strict):
    """What one job of a stage may take on a cluster; None: estimated from its models (`karma.study.cluster`)."""

    memory_gib: float | None = Field(default=None, gt=0, le=10**6, allow_inf_nan=False)
    hours: float | None = Field(default=None, gt=0, le=10**6, allow_inf_nan=False)
    gpus: int | None = Field(default=None, ge=0)
    partition: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,-]*$")


PLACEMENT = ("resources", "shards", "engine", "address")  # of compute: where work is done, not what; reruns nothing


class Compute(Strict):
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


class Scores(Strict):
    """The score table that kinship is computed from."""

    table: str
    columns: str | None
    missing: Literal["refuse", "drop_model", "drop_benchmark"]


class Kinship(Strict):
    """Threshold, measure and clustering."""

    tau: float = Field(ge=-1, le=1)
    measure: Literal["cosine", "centred_cosine", "rmsd", "rank"]
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    distance: Literal["rmsd", "cosine"]
    linkage: Literal["average", "complete", "single", "ward"]
    cut: float = Field(gt=0, le=10**6)


class Decontaminate(Strict):
    """What a pool's texts may share no run of words with (`karma.pool.decontamination`); off without benchmarks."""

    benchmarks: Annotated[list[str], AfterValidator(check_unique)]
    ngram: int = Field(ge=8, le=1000)
    share: Share


class Pool(Strict):
    """Prompts with responses: where they come from, or how they are sampled."""

    source: Annotated[str, Field(min_length=1)]
    revision: Revision | None
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


class Annotation(Strict):
    """What labels the RLAIF baseline."""

    source: Literal["recorded", "judge"]
    field: Literal["overall_score", "fine-grained_score", "mean_aspect"]
    judge: Name | None
    batch_size: Count


class Affinity(Strict):
    """What the strategy affinity takes for the quality of a response, and how much that weighs."""

    quality: Annotated[str, Field(pattern=r"^(s_pref|annotation|truth|.+\.parquet)$")]
    weight: Share


class DensityRatio(Strict):
    """Whose log-probabilities label the strategy density_ratio."""

    strong: Name | None
    weak: Name | None


class Pairs(Strict):
    """Which pairs are kept, and which rows stay out of training."""

    rejected: Literal["random_lower", "worst"]
    match_rows: Annotated[list[Strategy], AfterValidator(check_unique)]
    held_out: float = Field(ge=0, lt=1)
    seed: Seed
    curriculum_stages: int | None = Field(ge=1, le=127)
    max_length_ratio: float | None = Field(ge=1, le=10**6)
    min_confidence: float | None = Field(ge=0, le=1)
    calibration: str | None
    equal_numbers: Annotated[list[Strategy], AfterValidator(check_unique)]


_SOURCE = re.compile(r"score|annotation|truth|kinship(:[^:=,]+)?|.+\.parquet")


def _check_explicit(value: object) -> object:
    """Raise a ValueError where an explicit margin is neither of a source that is known, nor of several with weights."""
    known = "score, annotation, truth, kinship, kinship:CAPABILITY, or a .parquet table of row_id, response_id, score"
    if not isinstance(value, dict):
        if value not in ("score", "annotation"):
            raise ValueError("expected score, annotation, or several sources with their weights: {score: 1, truth: 1}")
        return value
    if not value:
        raise ValueError(f"expected one source or more with its weight: {known}")
    for source, weight in value.items():
        if not isinstance(source, str) or not _SOURCE.fullmatch(source):
            raise ValueError(f"'{source}' is no source: choose from {known}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 10**6:
            raise ValueError(f"'{source}' weighs {weight}: give a number above 0, up to 1000000")
    return {source: float(weight) for source, weight in value.items()}


class Potential(Strict):
    """Selecting pairs by alignment potential, and training on the selections; off without metrics."""

    metrics: Annotated[list[Metric], AfterValidator(check_unique)]
    ratios: Annotated[list[Ratio], Field(min_length=1), AfterValidator(check_unique)]
    strategies: Annotated[list[Strategy], AfterValidator(check_unique)]
    methods: Annotated[list[Method], Field(min_length=1), AfterValidator(check_unique)]
    on_benchmarks: bool
    explicit: Annotated[str | dict[str, float], BeforeValidator(_check_explicit)]
    combine: Literal["weights", "pareto"]
    implicit: Literal["absolute", "signed"]
    weight: float = Field(ge=0, le=100)
    batch_tokens: Count
    seed: Seed

    @property
    def sources(self) -> list[str]:
        """What the explicit margin is made of."""
        return [self.explicit] if isinstance(self.explicit, str) else list(self.explicit)

    @model_validator(mode="after")
    def _check_benchmarks(self) -> Self:
        if self.on_benchmarks and not self.metrics:
            raise ValueError("potential.on_benchmarks: name what is selected by in potential.metrics, or set it false")
        return self


class SelfPlay(Strict):
    """Pairs that a policy makes of its own answers, in rounds; off with rounds: 0."""

    rounds: int = Field(ge=0, le=1000)
    arms: Annotated[list[Arm], Field(min_length=1), AfterValidator(check_unique)]
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


class Labels(Strict):
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


class WinRates(Strict):
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
