"""One training, from a loaded policy to saved weights: in this process, or in each process of `accelerate launch`.

Checkpoints lie beside the run until it is done; a killed training goes on from the last whole one and ends with the
weights of an uninterrupted one. Decision: checkpoints are the trainer's own (torch files, read with `weights_only`);
what stays at the end is safetensors and JSON.

Paper: section 3.3 and Appendix A.
"""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from transformers import PrinterCallback

from karma.errors import InputError, KarmaError
from karma.files.reading import load_json
from karma.files.writing import atomic_path, save_json
from karma.models.load import load_model
from karma.models.rewards import build_reward_model
from karma.training.health import alarm_not_a_number
from karma.training.progress import ProgressFile
from karma.training.refilter import FILE, Filter, attach_filter, summarise_epochs
from karma.training.rl import build_rewards
from karma.training.run import Run
from karma.training.trainers import Reference, build_trainer, choose_weights_dtype, find_trainer
from karma.training.trl_config import save_trl_config


def load_start(run: Run, device: str = "cpu") -> Any:
    """Return the policy that a training starts from; of a reward model its layers, under a head that gives 0."""
    model = load_model(run.models, run.policy, choose_weights_dtype(run.settings, run.dtype), device)
    return build_reward_model(model) if run.makes_reward_model else model


def tune(run: Run, model: Any, tokenizer: Any, pairs: pa.Table, callbacks: list[Any], n_processes: int = 1,
         reference_model: Any = None) -> Any:  # fmt: skip
    """Train, from the last checkpoint if there is one, and return the trainer.

    Args:
        run: what is trained. model, tokenizer: the policy. pairs: what it is tuned on.
        callbacks: of the trainer, besides the progress file's.
        n_processes: that share an update.
        reference_model: the untrained policy, where it must be a second model.

    Raises:
        KarmaError: the loss became NaN or infinite.
    """
    folder, settings = Path(run.folder), run.settings
    checkpoints = folder / "checkpoints" if settings.checkpoint_steps else None
    trainer = build_trainer(
        model, tokenizer, pairs, run.method, run.seed, settings, device=run.device, dtype=run.dtype,
        n_processes=n_processes, output=checkpoints,
        reference=Reference(reference_model, Path(run.reference_file), folder / "reference", _load_rewards(run)),
    )  # fmt: skip
    trainer.args.project, trainer.args.run_name = "karma", name_report(run)
    if trainer.is_world_process_zero():
        save_trl_config(run, trainer)
    trainer.remove_callback(PrinterCallback)  # the progress file has its own reader
    for callback in (ProgressFile(folder / "progress.jsonl"), *callbacks):
        trainer.add_callback(callback)
    checkpoint = find_checkpoint(checkpoints)
    if settings.refilter:
        chosen = Filter(pairs, tokenizer, settings, run.seed, folder / FILE)
        if checkpoint:
            chosen.load()
        attach_filter(trainer, chosen, run.pairs_an_update)
    if checkpoint and hasattr(trainer, "_total_train_tokens"):  # TRL's count, which it does not restore itself
        done = _list_updates(load_json(Path(checkpoint) / "trainer_state.json")["log_history"])
        trainer._total_train_tokens = int(done[-1].get("num_tokens", 0)) if done else 0
    trainer.train(resume_from_checkpoint=checkpoint)
    if alarm := alarm_not_a_number(_list_updates(trainer.state.log_history)):
        raise KarmaError(alarm)
    return trainer


def _load_rewards(run: Run) -> list[Any]:
    """Return what rewards answers, for a method that samples them."""
    online = find_trainer(run.method).samples(run.settings)
    return build_rewards(online, run.models, run.dtype, run.device) if online else []


def name_report(run: Run) -> str:
    """Name a run for who is told how it goes (`training.report_to`): no path, and the same for the same training."""
    return f"{run.policy}-{run.method}-seed{run.seed}-{run.identity[:8]}"


def prepare_checkpoints(run: Run) -> None:
    """Remove checkpoints of another training, before any process looks for its own."""
    folder, identity = Path(run.folder) / "checkpoints", run.identity
    marker = folder / "identity.json"
    if folder.is_dir() and not (marker.is_file() and load_json(marker) == identity):
        shutil.rmtree(folder, ignore_errors=True)
    if run.settings.checkpoint_steps and not marker.is_file():
        save_json(identity, marker)


def find_checkpoint(folder: Path | None) -> str | None:
    """Return the last whole checkpoint, if any: the trainer writes its state last, and a kill may cut that short."""
    whole = [state for state in folder.glob("checkpoint-*/trainer_state.json") if _is_whole(state)] if folder else []
    return str(max(whole, key=lambda state: int(state.parent.name.split("-")[1])).parent) if whole else None


def _is_whole(state: Path) -> bool:
    try:
        return bool(load_json(state))
    except InputError:
        return False


def _list_updates(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in log if "loss" in entry]


def save_outcome(trainer: Any, tokenizer: Any, run: Run) -> dict[str, Any]:
    """Save the weights, and return what the trainer's own log says.

    Returns:
        n_updates, tokens, train_seconds (of the last start), resumed_at (update, or None), history; refilter: what each
        epoch kept (`karma.training.refilter.summarise_epochs`), or None.
    """
    folder = Path(run.folder)
    own = trainer.is_world_process_zero()  # every process takes part in gathering shared-out weights, one writes
    with atomic_path(folder / "model") if own else TemporaryDirectory() as place:
        trainer.save_model(str(place))
        if own:
            tokenizer.save_pretrained(place)
            (Path(place) / "training_args.bin").unlink(missing_ok=True)  # a pickle, of no use to anyone here
    log = trainer.state.log_history
    history = _list_updates(log)
    tokens = int(history[-1]["num_tokens"]) if history and "num_tokens" in history[-1] else None
    return {"n_updates": trainer.state.global_step, "tokens": tokens, "history": history, "same_data_as": None,
            "refilter": summarise_epochs(folder / FILE) if run.settings.refilter else None,
            "train_seconds": round(log[-1]["train_runtime"], 3), "resumed_at": _find_start(folder),
            "processes": [trainer.accelerator.distributed_type.value, trainer.accelerator.num_processes]}  # fmt: skip


def _find_start(folder: Path) -> int | None:
    first = json.loads((folder / "progress.jsonl").read_text("utf-8").split("\n", 1)[0])
    return first["done"] or None


def clean_up(folder: Path) -> None:
    """Remove what only an unfinished training needs."""
    for name in ("checkpoints", "reference"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("progress.jsonl", "launch.json", "launch.log", "train.parquet", "outcome.json"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("reference-*.parquet"):
        path.unlink()
