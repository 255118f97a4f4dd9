"""The trainer of a method, configured: what differs from TRL's defaults is written out here and nowhere else.

`TRAINERS` holds all that differs by method; a new one is an entry there, its function, and a row of
`karma.vocabulary.METHODS`.
SFT and DPO are TRL's stable trainers with cheaper forward passes (`karma.training.forward`); SimPO, ORPO and KTO are
losses of ours on DPO's (`karma.training.pairwise`), since what TRL has of them is experimental or not for pairs; GRPO
and RLOO are TRL's as they are (`karma.training.rl`).
Decision: full fine-tuning in bfloat16 keeps float32 weights and computes in bfloat16 (autocast), because at usual
learning rates an update is smaller than bfloat16's rounding of the weight it changes.

Paper: section 3.3 and Appendix A; the others' are in `karma.vocabulary.METHODS`.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from karma.errors import InputError
from karma.pairs.pairs import CONFIDENCE
from karma.study.training_settings import Lora, Online, Training
from karma.training.rl import INSTRUCTIONS, build_online, check_online, list_instructions

warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing", FutureWarning)  # TRL 1.16 sets the old name
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DPO_LOSSES = get_args(Training.model_fields["loss_type"].annotation)


@dataclass(frozen=True)
class Reference:
    """The untrained policy, for a method that compares with it; what rewards answers, for one that samples them.

    Attributes:
        model: a second model, where the policy itself cannot serve (FSDP, full fine-tuning).
        file: where its log-probabilities are kept. scratch: a folder that all processes see, for its pass.
        rewards: functions with their weights (`karma.training.rl.build_rewards`).
    """

    model: Any = None
    file: Path | None = None
    scratch: Path | None = None
    rewards: Sequence[Any] = ()


@dataclass(frozen=True)
class Trainer:
    """What differs by method.

    Attributes:
        build: (model, settings, TRL's shared configuration, its other options, reference) -> TRL's trainer.
        sides: the responses of a pair that it is trained on; none: it samples answers to the prompts itself.
        find_beta: settings -> beta of the reward margins that it logs.
        check: raises an InputError where the settings do not fit the method.
        per_token: rewards are of mean log-probabilities, not of their sums.
        has_reference: compares with the untrained policy.
        scores_in_chunks: the vocabulary head never sees all positions at once.
        smooths: settings -> whether labels are smoothed by each pair's confidence.
        least_pairs: that it can be trained on.
        makes: as in `karma.vocabulary.METHODS`; a reward model is trained on whole texts alone.
        samples: settings -> how it samples answers, where it does.
    """

    build: Callable[[Any, Training, dict[str, Any], dict[str, Any], Reference], Any]
    sides: tuple[str, ...]
    find_beta: Callable[[Training], float]
    check: Callable[[Training], None] = lambda settings: None
    per_token: bool = False
    has_reference: bool = False
    scores_in_chunks: bool = False
    smooths: Callable[[Training], bool] = lambda settings: False
    least_pairs: int = 1
    makes: Literal["policy", "reward_model"] = "policy"
    samples: Callable[[Training], Online | None] = lambda settings: None


def find_trainer(method: str) -> Trainer:
    """Return what is particular to a method.

    Raises:
        InputError: no such method.

    Example:
        >>> find_trainer("sft").sides, find_trainer("simpo").per_token
        (('chosen',), True)
    """
    if method not in TRAINERS:
        raise InputError(f"method '{method}' cannot be trained: choose from {', '.join(TRAINERS)}")
    return TRAINERS[method]


def build_dataset(pairs: pa.Table, method: str):
    """Turn pairs into what TRL's trainer of that method takes.

    Args:
        pairs: with prompt, chosen and rejected as lists of role/content messages.
        method: one that learns from chosen responses gets prompt and completion, one that learns from prompts these
            with their instructions, others prompt, chosen and rejected.
    """
    from datasets import Dataset

    sides = find_trainer(method).sides
    if not sides:
        return Dataset.from_dict({"prompt": pairs["prompt"].to_pylist(), INSTRUCTIONS: list_instructions(pairs)})
    names = {"chosen": "completion"} if sides == ("chosen",) else {side: side for side in sides}
    renamed = {"prompt": "prompt", **{name: side for side, name in names.items()}}
    return Dataset.from_dict({name: pairs[column].to_pylist() for name, column in renamed.items()})


def find_confidence(pairs: pa.Table, method: str, settings: Training) -> list[float] | None:
    """Return each pair's label confidence, where a method smooths labels by it; None where it does not.

    Raises:
        InputError: that of a pair is unknown, or no probability.
    """
    if not find_trainer(method).smooths(settings):
        return None
    known = CONFIDENCE in pairs.column_names
    found: list[Any] = pairs[CONFIDENCE].to_pylist() if known else [None] * pairs.num_rows
    lost = [place for place, sure in enumerate(found) if sure is None or not 0 <= sure <= 1]
    if lost:
        raise InputError(
            f"pair {pairs['row_id'][lost[0]].as_py()}: its label_confidence is {found[lost[0]] or 'unknown'} (so of "
            f"{len(lost)} of {len(found)} pairs), and labels are smoothed by it: make pairs by scores whose number of "
            "items is known (rlaif's have none), or train by dpo with training.smooth_by_confidence false"
        )
    return found


def is_curriculum(pairs: pa.Table) -> bool:
    """Tell whether the pairs are to be trained in their order: stage 03 gave them stages."""
    return "stage" in pairs.column_names


def check_method(method: str, settings: Training) -> None:
    """Raise an InputError where a method cannot be trained as set, before anything is loaded."""
    find_trainer(method).check(settings)
    if settings.merge_adapter and not settings.lora:
        raise InputError("training.merge_adapter needs training.lora: there is no adapter to merge")
    if settings.smooth_by_confidence and not find_trainer(method).smooths(settings):
        raise InputError(f"training.smooth_by_confidence means nothing to {method}: train by dpo, or set it to false")
    if settings.report_to != "none" and find_spec(settings.report_to) is None:
        raise InputError(f"training.report_to: {settings.report_to} is not installed: run `pip install "
                         f"{settings.report_to}`, or set it to none")  # fmt: skip


def choose_weights_dtype(settings: Training, dtype: str) -> str:
    """Return what the trained weights are kept in: float32 for full fine-tuning, `dtype` under adapters.

    Example:
        >>> from karma.study.experiment import load_base
        >>> choose_weights_dtype(load_base().training, "bfloat16")
        'float32'
    """
    return dtype if settings.lora else "float32"


def build_trainer(
    model: Any, tokenizer: Any, pairs: pa.Table, method: str, seed: int, settings: Training, *, device: str, dtype: str,
    n_processes: int = 1, output: Path | None = None, reference: Reference | None = None,
):  # fmt: skip
    """Build TRL's trainer of a method.

    Args:
        model, tokenizer: the policy. pairs: what it is tuned on.
        method: a name of `karma.vocabulary.METHODS`. seed: of data order and adapters.
        settings: the experiment's `training`.
        device: "cpu" or "cuda". dtype: what is computed in.
        n_processes: data-parallel processes; with fewer than `settings.devices`, accumulation makes up for the rest,
            so that an update always has the same number of pairs.
        output: folder of checkpoints. reference: the untrained policy, of a method that has one.
    """
    shared: dict[str, Any] = {
        "output_dir": str(output or "unused"), "report_to": settings.report_to, "seed": seed, "logging_steps": 1,
        "save_strategy": "steps" if output and settings.checkpoint_steps else "no", "save_total_limit": 2,
        "save_steps": settings.checkpoint_steps or 500, "disable_tqdm": True, "logging_nan_inf_filter": False,
        "num_train_epochs": settings.epochs, "per_device_train_batch_size": settings.per_device_batch_size,
        "gradient_accumulation_steps": count_accumulation(settings, n_processes),
        "learning_rate": settings.of(method)["learning_rate"],
        "warmup_steps": settings.warmup_steps, "lr_scheduler_type": settings.scheduler,
        "max_length": settings.max_length, "gradient_checkpointing": settings.gradient_checkpointing,
        "use_cpu": device == "cpu", "bf16": dtype == "bfloat16", "dataloader_pin_memory": device == "cuda",
        "train_sampling_strategy": "sequential" if is_curriculum(pairs) else "random",
        "ddp_find_unused_parameters": False,
    }  # fmt: skip
    dataset, confidence = build_dataset(pairs, method), find_confidence(pairs, method, settings)
    if confidence is not None:
        dataset = dataset.add_column(CONFIDENCE, confidence)
    options = {"train_dataset": dataset, "processing_class": tokenizer,
               "peft_config": _build_lora(model, settings.lora) if settings.lora else None}  # fmt: skip
    return find_trainer(method).build(model, settings, shared, options, reference or Reference())


def _build_sft(model: Any, settings: Training, shared: dict[str, Any], options: dict[str, Any], _: Reference):
    from trl import SFTConfig

    from karma.training.forward import ResponseHeadSFTTrainer

    return ResponseHeadSFTTrainer(model, SFTConfig(completion_only_loss=True, **shared), **options)


def _build_dpo(model: Any, settings: Training, shared: dict[str, Any], options: dict[str, Any], reference: Reference):
    from trl import DPOConfig

    from karma.training.forward import SharedPromptDPOTrainer

    config = DPOConfig(beta=settings.beta, loss_type=[settings.loss_type], label_smoothing=settings.label_smoothing,
                       precompute_ref_log_probs=True, **shared)  # fmt: skip
    return SharedPromptDPOTrainer(model, reference.model, args=config, reference_file=reference.file,
                                  scratch=reference.scratch, **options)  # fmt: skip


def _check_dpo(settings: Training) -> None:
    if settings.loss_type == "exo_pair" and not settings.label_smoothing:
        raise InputError("training.loss_type exo_pair needs training.label_smoothing above 0 (its paper: 1.0e-3)")
    if settings.loss_type == "robust" and settings.label_smoothing >= 0.5:
        raise InputError("training.loss_type robust needs training.label_smoothing below 0.5")
    if settings.smooth_by_confidence and settings.loss_type != "sigmoid":
        raise InputError(f"training.smooth_by_confidence (method cdpo) is for loss_type sigmoid, not "
                         f"{settings.loss_type}: set training.loss_type to sigmoid")  # fmt: skip


def _build_simpo(model: Any, settings: Training, shared: dict[str, Any], options: dict[str, Any], _: Reference):
    from karma.training.losses import compute_simpo

    own = settings.simpo
    loss = functools.partial(compute_simpo, beta=own.beta, gamma=own.gamma_ratio * own.beta)
    return _build_without_reference(model, shared, options, loss)


def _build_orpo(model: Any, settings: Training, shared: dict[str, Any], options: dict[str, Any], _: Reference):
    from karma.training.losses import compute_orpo

    return _build_without_reference(model, shared, options, functools.partial(compute_orpo, beta=settings.orpo.beta))


def _build_without_reference(model: Any, shared: dict[str, Any], options: dict[str, Any], loss: Callable[..., Any]):
    from trl import DPOConfig

    from karma.training.pairwise import PairLossTrainer

    config = DPOConfig(precompute_ref_log_probs=True, **shared)  # true: TRL then copies no second model
    return PairLossTrainer(model, args=config, pair_loss=loss, **options)


def _build_kto(model: Any, settings: Training, shared: dict[str, Any], options: dict[str, Any], reference: Reference):
    from trl import DPOConfig

    from karma.training.pairwise import KTOPairTrainer

    own, config = settings.kto, DPOConfig(precompute_ref_log_probs=True, **shared)
    return KTOPairTrainer(model, reference.model, args=config, beta=own.beta,
                          weights=(own.desirable_weight, own.undesirable_weight), reference_file=reference.file,
                          scratch=reference.scratch, **options)  # fmt: skip


def _build_reward_model(model: Any, settings: Training, shared: dict[str, Any], options: dict[str, Any], _: Reference):
    from karma.training.reward_trainer import build_reward_trainer

    return build_reward_trainer(model, settings, shared, options)


def _check_reward_model(settings: Training) -> None:
    if settings.label_smoothing:
        raise InputError("training.label_smoothing means nothing to reward_model: train by dpo, or set it to 0.0")
    if is_sharded(settings.accelerate):
        raise InputError(f"training.accelerate: {settings.accelerate} shares weights out, and a reward model's head is "
                         "trained whole: take params/accelerate/ddp.yaml, or null")  # fmt: skip


def is_sharded(accelerate: str | None) -> bool:
    """Tell whether a configuration shares weights out among processes (FSDP, ZeRO-3), rather than copying them.

    Example:
        >>> is_sharded("params/accelerate/fsdp.yaml"), is_sharded("params/accelerate/ddp.yaml"), is_sharded(None)
        (True, False, False)
    """
    return accelerate is not None and "ddp" not in Path(accelerate).stem


def count_accumulation(settings: Training, n_processes: int) -> int:
    """Return the micro-batches an update, such that pairs an update do not depend on the number of processes.

    Example:
        >>> from karma.study.experiment import load_base
        >>> count_accumulation(load_base().training, n_processes=1)  # 4 micro-batches on each of 4 devices
        16
    """
    total = settings.gradient_accumulation * settings.devices
    if total % n_processes:
        raise InputError(f"{n_processes} processes cannot share {total} micro-batches an update: "
                         "let training.devices be a multiple of them")  # fmt: skip
    return total // n_processes


def _build_lora(model: Any, lora: Lora):
    from peft import LoraConfig

    n_layers = model.config.num_hidden_layers
    last = list(range(max(n_layers - lora.last_layers, 0), n_layers))
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=LORA_TARGETS,
                      layers_to_transform=last, task_type="CAUSAL_LM")  # fmt: skip


def _build_grpo(model: Any, settings: Training, shared: dict[str, Any], options: dict[str, Any], beside: Reference):
    return build_online("grpo", model, settings, shared, options, beside.rewards)


def _build_rloo(model: Any, settings: Training, shared: dict[str, Any], options: dict[str, Any], beside: Reference):
    return build_online("rloo", model, settings, shared, options, beside.rewards)


TRAINERS = {
    "sft": Trainer(_build_sft, ("chosen",), lambda settings: settings.beta),
    "dpo": Trainer(_build_dpo, ("chosen", "rejected"), lambda settings: settings.beta, _check_dpo, has_reference=True,
                   scores_in_chunks=True, smooths=lambda settings: settings.smooth_by_confidence),
    "simpo": Trainer(_build_simpo, ("chosen", "rejected"), lambda settings: settings.simpo.beta, per_token=True,
                     scores_in_chunks=True),
    "cdpo": Trainer(_build_dpo, ("chosen", "rejected"), lambda settings: settings.beta,
                    lambda settings: _check_dpo(settings.model_copy(update={"smooth_by_confidence": True})),
                    has_reference=True, scores_in_chunks=True, smooths=lambda settings: True),
    "orpo": Trainer(_build_orpo, ("chosen", "rejected"), lambda settings: settings.orpo.beta, per_token=True,
                    scores_in_chunks=True),
    "kto": Trainer(_build_kto, ("chosen", "rejected"), lambda settings: settings.kto.beta, has_reference=True,
                   scores_in_chunks=True, least_pairs=2),
    "reward_model": Trainer(_build_reward_model, ("chosen", "rejected"), lambda settings: 1.0, _check_reward_model,
                            makes="reward_model"),
    "grpo": Trainer(_build_grpo, (), lambda settings: settings.grpo.beta,
                    lambda settings: check_online(settings, "grpo"), samples=lambda settings: settings.grpo),
    "rloo": Trainer(_build_rloo, (), lambda settings: settings.rloo.beta,
                    lambda settings: check_online(settings, "rloo"), samples=lambda settings: settings.rloo),
}  # fmt: skip
