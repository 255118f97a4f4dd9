"""A run as a configuration of TRL's own command line: `trl dpo --config trl.yaml` trains with the same values.

Written beside each run whose method that command line has. It holds every value in which the trainer's configuration
differs from TRL's defaults, read off the trainer that was built, so that nothing is stated twice. Limits: the kit's
cheaper passes give the same losses but for rounding, an update's pairs are drawn by TRL, and a policy that is no folder
and on no hub must be saved before; what TRL's command line cannot say (labels smoothed by each pair's confidence, pairs
ranked anew between epochs) has no file.
"""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from karma.files.writing import atomic_path
from karma.study.training_settings import Online
from karma.training.run import Run
from karma.training.trainers import choose_weights_dtype, find_trainer

FILE = "trl.yaml"
COMMANDS = {  # method -> TRL's command
    "sft": "sft", "dpo": "dpo", "kto": "kto", "reward_model": "reward", "grpo": "grpo", "rloo": "rloo",
}  # fmt: skip
_LEFT_OUT = ("output_dir", "run_name", "project", "hub_token", "generation_batch_size")  # of a run alone, or derived
_Value = str | int | float | bool | None


def save_trl_config(run: Run, trainer: Any) -> None:
    """Write trl.yaml into the run's folder, or remove another training's where this one has none."""
    config = build_trl_config(run, trainer)
    file = Path(run.folder) / FILE
    if config is None:
        file.unlink(missing_ok=True)
        return
    command = COMMANDS[run.method]
    shape = "trl_sft" if command == "sft" else "trl"
    checked = " --instructions FILE" if find_trainer(run.method).samples(run.settings) else ""
    lines = [f"# trl {command} --config {FILE}, in this folder. Its data set: the pairs that this run trained on, by",
             f"# karma export --pairs DIR --format {shape} --held-out SHARE{checked} --out pairs"]  # fmt: skip
    if not (run.models[run.policy].get("hub") or run.models[run.policy].get("path")):
        lines.append(f"# {run.policy} is no folder: save it as {config['model_name_or_path']} before")
    with atomic_path(file) as temporary:
        temporary.write_text("\n".join([*lines, yaml.safe_dump(config, sort_keys=False)]), "utf-8")


def build_trl_config(run: Run, trainer: Any) -> dict[str, Any] | None:
    """Return what `trl COMMAND --config` is to read; None where that command line cannot say what the run is.

    Args:
        run: the training. trainer: as `karma.training.trainers.build_trainer` built it.
    """
    settings = run.settings
    if run.method not in COMMANDS or find_trainer(run.method).smooths(settings) or settings.refilter:
        return None
    spec, command = run.models[run.policy], COMMANDS[run.method]
    source = {"model_name_or_path": spec.get("hub") or spec.get("path") or "start"}
    revision = {"model_revision": spec["revision"]} if spec.get("revision") else {}
    values = dict(_list_values(find_config(command), trainer.args))
    if command == "kto":  # the kit trains it on pairs, by a configuration of DPO's; TRL by single responses
        own = settings.kto
        values = {name: value for name, value in values.items() if name not in _DPO_ONLY} | {
            "per_device_train_batch_size": 2 * settings.per_device_batch_size, "beta": own.beta,
            "desirable_weight": own.desirable_weight, "undesirable_weight": own.undesirable_weight}  # fmt: skip
    if online := find_trainer(run.method).samples(settings):
        values |= _describe_rewards(run, online)
    return {**source, **revision, "dtype": choose_weights_dtype(settings, run.dtype), "dataset_name": "pairs",
            "output_dir": "trl", **values, **_describe_lora(run, trainer, command)}  # fmt: skip


def _describe_rewards(run: Run, online: Online) -> dict[str, Any]:
    """Return what rewards answers, in TRL's order: the reward model, then functions; and the KL's weight.

    The kit's trainer holds the policy before training itself, so that its own configuration may say that there is none.
    """
    model = run.models[online.reward_model] if online.reward_model else {}
    rater = {"reward_model_name_or_path": model.get("hub") or model.get("path") or "rewards"} if model else {}
    weights = [online.reward["reward_model"]] if model else []
    return {**rater, "reward_funcs": ["karma.training.rl.reward_instructions"], "beta": online.beta,
            "reward_weights": [*weights, online.reward.get("instructions", 0.0)]}  # fmt: skip


_DPO_ONLY = ("loss_type", "label_smoothing", "precompute_ref_log_probs")


def find_config(command: str) -> type:
    """Return TRL's configuration of a command's trainer.

    Example:
        >>> find_config("dpo").__name__
        'DPOConfig'
    """
    import trl

    names = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "reward": "Reward", "grpo": "GRPO", "rloo": "RLOO"}
    found: type = getattr(trl, f"{names[command]}Config")
    return found


def _list_values(kind: Any, args: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values of a configuration that are not `kind`'s defaults and that YAML can hold."""
    for field in fields(kind):
        if not field.init or field.name in _LEFT_OUT or not hasattr(args, field.name):
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value, usual = _plain(getattr(args, field.name)), _plain(None if default is MISSING else default)
        if field.name == "report_to":
            value = value or "none"
        is_plain = all(isinstance(one, _Value) for one in (value if isinstance(value, list) else [value]))
        if value != usual and is_plain:
            yield field.name, value


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _describe_lora(run: Run, trainer: Any, command: str) -> dict[str, Any]:
    """Return the adapter's values; TRL's command line knows no layers, so that each of its matrices is named."""
    if not run.settings.lora:
        return {}
    names = [name.split("base_model.model.", 1)[-1] for name, part in trainer.model.named_modules()
             if hasattr(part, "lora_A")]  # fmt: skip
    lora = run.settings.lora
    task = {"lora_task_type": "SEQ_CLS"} if command == "reward" else {}
    return {"use_peft": True, "lora_r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
            "lora_target_modules": names, **task}  # fmt: skip
