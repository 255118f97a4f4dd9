"""The section `training` of an experiment: what all methods share, and the sections that methods have of their own.

A section stands under its method's name, with its learning rate among its numbers; `Training.of` leaves the others out,
so that what one method is set to is no part of another's identity. Values stand in params/base.yaml.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from karma.study.fields import (
    Count,
    Ratio,
    Strict,
)

REPORTS = ("report_to",)  # of training: who is told how it goes; reruns nothing


class Lora(Strict):
    """Low-rank adapters on the last layers only, so that the backward pass stops early."""

    rank: Count
    alpha: Count
    dropout: float = Field(ge=0, lt=1)
    last_layers: Count


Rate = Annotated[float, Field(gt=0, lt=1)]  # a learning rate


class Simpo(Strict):
    """SimPO's own numbers (its beta is not DPO's)."""

    learning_rate: Rate
    beta: float = Field(gt=0, le=10**6)
    gamma_ratio: float = Field(ge=0, le=10**6, description="target margin / beta")


class Orpo(Strict):
    """ORPO's own numbers; beta is its paper's lambda."""

    learning_rate: Rate
    beta: float = Field(gt=0, le=10**6)


class Kto(Strict):
    """KTO's own numbers; the weights are of desirable (chosen) and undesirable (rejected) responses."""

    learning_rate: Rate
    beta: float = Field(gt=0, le=10**6)
    desirable_weight: float = Field(ge=0, le=10**6)
    undesirable_weight: float = Field(ge=0, le=10**6)


class Refilter(Strict):
    """Which share of the pairs an epoch trains on, ranked by the policy as it is then (`karma.training.refilter`)."""

    metric: Literal["random", "implicit_small", "implicit_large", "m_ap", "m_ap_signed"]
    ratio: Ratio
    every: Literal["epoch"]
    weight: float = Field(default=1.0, ge=0, le=100, description="w of z(explicit) - w z(implicit)")
    implicit: Literal["absolute", "signed"] = "absolute"


REFILTERED = ("sft", "dpo", "cdpo", "simpo", "orpo", "kto")  # methods whose trainer has one row a pair


class RewardModel(Strict):
    """A reward model's own numbers."""

    learning_rate: Rate
    centring: float = Field(ge=0, le=10**6, description="coefficient of the squared sum of a pair's rewards")


class Online(Strict):
    """What a method's own are that samples answers itself and is rewarded for them: GRPO, RLOO."""

    learning_rate: Rate
    beta: float = Field(ge=0, le=10**6, description="of the KL from the policy before training")
    generations: int = Field(ge=2, le=10_000, description="answers sampled a prompt")
    temperature: float = Field(gt=0, le=5)
    max_new_tokens: Count
    epsilon: float = Field(gt=0, lt=1)
    iterations: Count
    reward: dict[Literal["instructions", "reward_model"], Annotated[float, Field(gt=0, le=10**6)]]
    reward_model: Annotated[str, Field(min_length=1)] | None

    @model_validator(mode="after")
    def _check_reward_model(self) -> Self:
        if ("reward_model" in self.reward) != (self.reward_model is not None):
            raise ValueError("reward_model: name a model where reward weighs one, and none elsewhere")
        return self


class Training(Strict):
    """Appendix A of the paper, by default."""

    epochs: float = Field(gt=0, le=10**6)
    per_device_batch_size: Count
    gradient_accumulation: Count
    devices: Count
    learning_rate: Rate
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
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]  # at half, a label says nothing
    smooth_by_confidence: bool
    simpo: Simpo
    orpo: Orpo
    kto: Kto
    reward_model: RewardModel
    grpo: Online
    rloo: Online
    lora: Lora | None
    merge_adapter: bool
    checkpoint_steps: int = Field(ge=0, le=10**9)
    sample_tokens: int = Field(ge=0, le=10**6)
    refilter: Refilter | None
    accelerate: str | None
    report_to: Literal["none", "trackio", "wandb", "mlflow", "comet_ml", "swanlab"]

    def of(self, method: str) -> dict[str, Any]:
        """Return the settings that a method is trained with: those of other methods' sections are left out.

        A section named after the method holds what is its own, its learning rate among it.
        """
        own = self.as_dict()
        sections = {name for name, value in type(self).model_fields.items() if value.annotation in METHOD_SECTIONS}
        section = own.get(method) if method in sections else None
        kept = {name: value for name, value in own.items() if name not in sections - {method}}
        return kept | ({"learning_rate": section["learning_rate"]} if section else {})

    def find_refilter_fault(self, methods: Iterable[str], staged: bool) -> str:
        """Say why pairs cannot be ranked anew between epochs as set; "" where they can, or need not.

        Args:
            methods: what is trained. staged: whether the pairs are a curriculum.
        """
        if self.refilter is None:
            return ""
        if self.epochs <= 1:
            return f"training.refilter ranks pairs between epochs: set training.epochs above 1 (it is {self.epochs:g})"
        if self.accelerate:
            return "training.refilter ranks pairs in one process: set training.accelerate to null"
        if staged:
            return "training.refilter knows no curriculum's order: set pairs.curriculum_stages to null"
        if others := [method for method in methods if method not in REFILTERED]:
            return f"training.refilter is for {', '.join(REFILTERED)}, not for {others[0]}"
        return ""


METHOD_SECTIONS = (Simpo, Orpo, Kto, RewardModel, Online)  # of `training`: a method's own numbers, under its name
