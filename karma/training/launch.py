"""A training in processes of its own, one a device, through `accelerate launch`: FSDP, DeepSpeed ZeRO-3 or DDP.

The caller writes what the training is made of (launch.json, train.parquet), starts accelerate with a configuration
of params/accelerate/, shows the progress file as it grows, and loads no model itself. Each child runs `main` below.
When a child fails, its last lines are shown and its log stays.
Limit: one machine; a cluster's launcher can start the same module with the same file.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from karma.errors import InputError, KarmaError
from karma.files.places import find_project_root
from karma.files.reading import load_json
from karma.files.writing import save_json
from karma.training.run import Run
from karma.training.tuning import save_outcome, tune

POLL_S = 0.5
LAST_LINES = 12


def launch(run: Run, pairs: pa.Table, config: str) -> dict[str, Any]:
    """Train in `run.settings.devices` processes and return what the trainer's log says.

    Args:
        run: what is trained. pairs: what it is tuned on.
        config: accelerate's configuration, from the project's root or the current folder.

    Raises:
        InputError: no such configuration.
        KarmaError: a process failed; the message ends with its last lines.
    """
    folder, file = Path(run.folder), find_config(config)
    save_json({**run.as_dict(), "accelerate": str(file)}, folder / "launch.json")
    pq.write_table(pairs, folder / "train.parquet")
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(file),
               "--num_processes", str(run.settings.devices), "--main_process_port", "0", "--mixed_precision",
               "bf16" if run.dtype == "bfloat16" else "no", "--num_cpu_threads_per_process", str(run.threads),
               "-m", "karma.training.launch", str(folder / "launch.json")]  # fmt: skip
    log, view = folder / "launch.log", run.open_view()
    (folder / "progress.jsonl").unlink(missing_ok=True)
    environment = {**os.environ, "ACCELERATE_USE_CPU": str(run.device == "cpu").lower(), "TQDM_DISABLE": "1"}
    with log.open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while child.poll() is None:
                time.sleep(POLL_S)
                view.update()
        finally:
            if child.poll() is None:  # interrupted: the launcher ends its processes
                child.terminate()
                child.wait()
            view.close()
    if child.returncode:
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        failed = f"{run.settings.devices} processes of accelerate ended with exit code {child.returncode}"
        raise KarmaError(f"{failed}; see {log}; "
                         "its last lines:\n" + "\n".join(_find_error(lines)))  # fmt: skip
    return load_json(folder / "outcome.json")


def _find_error(lines: list[str]) -> list[str]:
    """Return the last lines of the first process that failed, without the launcher's own report of it."""
    ranks = [match.group() for line in lines if (match := re.match(r"\[rank\d+\]:", line))]
    if ranks:
        lines = [line.removeprefix(ranks[0]).removeprefix(" ") for line in lines if line.startswith(ranks[0])]
    own = [k for k, line in enumerate(lines) if "torch.distributed.elastic" in line or "accelerate_cli" in line]
    return lines[: own[0] if own else None][-LAST_LINES:]


def find_config(config: str) -> Path:
    """Return accelerate's configuration, from the project's root or the current folder; raise where it is missing."""
    for candidate in (Path(config), find_project_root() / config):
        if candidate.is_file():
            return candidate.resolve()
    raise InputError(f"training.accelerate: {config} does not exist; there are params/accelerate/fsdp.yaml, zero3.yaml "
                     "and ddp.yaml, or write one with `accelerate config`")  # fmt: skip


def main(path: str) -> None:
    """Be one of the processes."""
    import torch

    from karma.models.load import load_model, load_tokenizer
    from karma.training.trainers import choose_weights_dtype, find_trainer, is_sharded
    from karma.training.tuning import load_start

    written = load_json(path)
    sharded = is_sharded(written.pop("accelerate"))
    run = Run.from_dict(written)
    torch.set_num_threads(run.threads)
    weights, model = choose_weights_dtype(run.settings, run.dtype), load_start(run)
    known = Path(run.reference_file).is_file()
    second = sharded and find_trainer(run.method).has_reference and not run.settings.lora and not known
    tokenizer = load_tokenizer(run.models, run.policy)
    tokenizer.padding_side = "right"
    trainer = tune(run, model, tokenizer, pq.read_table(Path(run.folder) / "train.parquet"), [],
                   int(os.environ.get("WORLD_SIZE", "1")),
                   load_model(run.models, run.policy, weights) if second else None)  # fmt: skip
    outcome = save_outcome(trainer, tokenizer, run)
    if trainer.is_world_process_zero():
        save_json(outcome, Path(run.folder) / "outcome.json")


if __name__ == "__main__":
    main(sys.argv[1])
