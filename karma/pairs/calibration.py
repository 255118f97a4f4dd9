"""Calibrated label confidence: what an audit found of when labels are right, applied to a pair.

`karma audit-labels` fits a logistic model of a few facts about a pair on recorded judgments and writes it as
calibration.json; `karma binarize --calibration` and `pairs.calibration` take each pair's `label_confidence` from it.
The facts: gap of S_pref, kinship, p_flip (where the items behind the scores are known), and length difference,
ln(characters of chosen / characters of rejected). Decision: a fact beyond the range that the audit saw counts as the
nearest value seen, so that nothing is extrapolated; the file is plain JSON with a version, checked field by field.
Limit: S_pref depends on which models normalise it, and a judge's taste goes into the model, length above all: a
calibration holds for pools like the audited source. Without one, label confidence is from sampling error alone.

Paper: ours.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.special import expit

from karma.errors import InputError
from karma.files.reading import load_json

VERSION: Final = 1
Fact = Literal["s_pref_gap", "kinship", "p_flip", "length_difference"]
Real = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Term(_Strict):
    """One fact of the model: its coefficient a unit, and the range in which it was seen."""

    fact: Fact
    coefficient: Real
    lowest: Real
    highest: Real

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.lowest > self.highest:
            raise ValueError("lowest is above highest")
        return self


class Score(_Strict):
    """A Brier score on held-out prompts with its 95 % interval, clustered by prompt and by model."""

    value: Real
    low: Real
    high: Real


class HeldOut(_Strict):
    """How well the model told right labels from wrong ones on prompts that it was not fitted on."""

    n_prompts: Count
    n_decided: Count
    brier_calibrated: Score
    brier_sampling_error: Score | None
    brier_constant: Score


class Calibration(_Strict):
    """A logistic model: P(label right) = 1 / (1 + exp(-(intercept + sum of coefficient * fact))).

    Attributes:
        source: the judgments. score_table: what labelled. tie: judged values this close were equal, and left out.
        n_models, n_prompts, n_decided: what it was fitted on.
        terms: the facts it reads. held_out: what it was worth.
    """

    version: Literal[1]
    source: str
    score_table: str
    tie: Real
    n_models: Count
    n_prompts: Count
    n_decided: Count
    intercept: Real
    terms: Annotated[list[Term], Field(min_length=1)]
    held_out: HeldOut

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        names = [term.fact for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError("a fact stands in two terms")
        return self

    @property
    def facts(self) -> list[str]:
        """The facts that it reads."""
        return [term.fact for term in self.terms]

    @property
    def sentence(self) -> str:
        """What accounting.json says of label confidence."""
        return f"calibrated on {self.source} ({self.n_decided:,} decided comparisons of {self.n_models} models)"

    def compute(self, facts: dict[str, np.ndarray]) -> np.ndarray:
        """Return the probability that each label is right.

        Args:
            facts: from `compute_facts`, each (n,), at least those that the model reads.

        Example:
            >>> score = {"value": 0.2, "low": 0.1, "high": 0.3}
            >>> held = {"n_prompts": 9, "n_decided": 9, "brier_calibrated": score, "brier_sampling_error": None,
            ...         "brier_constant": score}
            >>> terms = [{"fact": "s_pref_gap", "coefficient": 4.0, "lowest": 0.0, "highest": 0.5}]
            >>> model = Calibration(version=1, source="x", score_table="t.csv", tie=0.02, n_models=3, n_prompts=9,
            ...                     n_decided=20, intercept=0.0, terms=terms, held_out=held)
            >>> model.compute({"s_pref_gap": np.array([0.0, 0.5, 0.9])}).round(3).tolist()  # never beyond .5
            [0.5, 0.881, 0.881]
        """
        return predict(self.intercept, self.terms, facts)


def predict(intercept: float, terms: list[Term], facts: dict[str, np.ndarray]) -> np.ndarray:
    """Return what a logistic model says, each fact kept within the range in which it was seen."""
    within = (term.coefficient * np.clip(facts[term.fact], term.lowest, term.highest) for term in terms)
    return np.asarray(expit(intercept + sum(within)), float)


def compute_facts(
    gap: np.ndarray,
    kinship: np.ndarray,
    confidence: np.ndarray | None,
    lengths: tuple[np.ndarray, np.ndarray] | None,
) -> dict[str, np.ndarray]:
    """Return what is known of pairs, by the names that calibrations use.

    Args:
        gap: S_pref of chosen less that of rejected, (n,). kinship: cosine, (n,).
        confidence: by sampling error alone, (n,), which is 1 - p_flip; None where it is unknown.
        lengths: characters of chosen and of rejected, (n,) each; an empty text counts as one. None: unknown.

    Example:
        >>> found = compute_facts(np.array([0.2]), np.array([0.9]), np.array([0.75]), (np.array([20]), np.array([10])))
        >>> {name: values.round(3).item() for name, values in found.items()}
        {'s_pref_gap': 0.2, 'kinship': 0.9, 'p_flip': 0.25, 'length_difference': 0.693}
    """
    facts = {"s_pref_gap": gap, "kinship": kinship}
    if confidence is not None:
        facts["p_flip"] = 1 - confidence
    if lengths is not None:
        chosen, rejected = (np.log(np.maximum(side, 1)) for side in lengths)
        facts["length_difference"] = chosen - rejected
    return facts


def load_calibration(path: str | Path) -> Calibration:
    """Read what `karma audit-labels` wrote as calibration.json.

    Raises:
        InputError: absent, no JSON, of another version, or a field that cannot be.
    """
    values = load_json(path)
    remedy = "make it with `karma audit-labels`"
    if not isinstance(values, dict) or "version" not in values:
        raise InputError(f"{path} is no calibration: it names no version; {remedy}")
    if values["version"] != VERSION:
        raise InputError(f"{path} is a calibration of version {values['version']!r}, read is {VERSION}: {remedy}")
    try:
        return Calibration.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its terms"
        raise InputError(f"{path} is no calibration: {where}: {first['msg']}; {remedy}") from None
