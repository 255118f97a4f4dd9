"""The kinds of values that settings are made of: names, shares, counts, words of the vocabulary; their base class."""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from karma.vocabulary import ARMS, METHODS, METRICS, STRATEGIES


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


def is_anew(metric: str) -> bool:
    """Tell whether a metric ranks the pairs again before every epoch (`karma.training.refilter`).

    Example:
        >>> is_anew("m_ap_anew"), is_anew("m_ap")
        (True, False)
    """
    return metric.endswith("_anew")


def check_unique(values: list[object]) -> list[object]:
    """Raise a ValueError where a value stands twice."""
    repeated = sorted({str(v) for v in values if values.count(v) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is listed twice")
    return values


def check_name(value: str) -> str:
    """Raise a ValueError where a name cannot be a folder's."""
    if not value or not all(c.isalnum() or c in "._-" for c in value) or value.startswith("."):
        raise ValueError("names become folders: use letters, digits, '.', '_' and '-'")
    if len(value.encode()) > 100:
        raise ValueError("names become folders: use at most 100 letters")
    return value


Name = Annotated[str, AfterValidator(check_name)]
Share = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator takes
Threads = Annotated[int, Field(ge=1, le=1024)]  # more of them than a machine gives ends the process


class Strict(BaseModel):
    """A part of an experiment: no field beside its own, none converted, none changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return self.model_dump(mode="json")
