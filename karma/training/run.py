"""A `Run`: what a training is made of, as plain values that another process can be given."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from karma.files import compute_digest
from karma.models.load import Specs, choose_device, choose_dtype, compute_weights_digest
from karma.study.experiment import View
from karma.training.progress import LiveView
from karma.training.trainers import build_dataset, choose_weights_dtype, count_accumulation


def describe_run(
    pairs: pa.Table, models: Specs, policy: str, method: str, seed: int, settings: Any, compute: Any,
    folder: str | Path = ".", *, code: str = "", reference_folder: Path | None = None,
) -> "Run":  # fmt: skip
    """Say what a training is made of; nothing is loaded.

    Args:
        pairs: what it is tuned on. models: name -> specification. policy: which of them is tuned.
        method: of `karma.vocabulary.METHODS`. seed: of data order and adapters.
        settings: the experiment's `training`. compute: its `compute`.
        folder: where its files go. code: digest of the code in use; a run made by other code is never taken over.
        reference_folder: where DPO's reference log-probabilities are kept for other seeds; None: with the run.
    """
    device = choose_device(compute.device)
    dtype = choose_dtype(compute.dtype, device)
    weights = compute_weights_digest(models, policy)
    texts = compute_digest(build_dataset(pairs, method).to_list())
    data = compute_digest([texts, pairs["stage"].to_pylist()]) if "stage" in pairs.column_names else texts
    shared = settings.as_dict()
    identity = compute_digest([data, shared, seed, code, method, weights, dtype, device, compute.threads])
    kept_in = choose_weights_dtype(settings, dtype)
    reference = compute_digest([texts, weights, dtype, kept_in, device, settings.max_length, code])
    kept = Path(reference_folder or folder) / f"reference-{reference}.parquet"
    return Run(models, policy, method, seed, shared, device, dtype, compute.threads, str(folder), identity, str(kept),
               texts)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a training is made of, as plain values that another process can be given.

    Attributes:
        models: name -> specification. policy: which of them is tuned. method: "sft", "dpo" or "simpo".
        seed: of data order and adapters. settings: the experiment's `training`.
        device, dtype, threads: where and in what it computes.
        folder: where checkpoints, the progress file and `model/` go.
        identity: digest of all that decides the weights.
        reference_file: where DPO's reference log-probabilities are kept.
        data_digest: of the texts it is tuned on.
    """

    models: Specs
    policy: str
    method: str
    seed: int
    settings: dict[str, Any]
    device: str
    dtype: str
    threads: int
    folder: str
    identity: str
    reference_file: str
    data_digest: str

    @property
    def view(self) -> View:
        """The settings by attribute."""
        return View(self.settings, "", "04_alignment_training")

    @property
    def pairs_an_update(self) -> int:
        """Pairs whose gradients are summed before the weights change."""
        return self.view.per_device_batch_size * count_accumulation(self.view, 1)

    @property
    def rewards(self) -> dict[str, Any]:
        """How the trainer's rewards are scaled: of summed log-probabilities, or of their means (SimPO)."""
        simpo = self.method == "simpo"
        return {"beta": self.view.simpo.beta if simpo else self.view.beta, "per_token": simpo}

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    def open_view(self) -> LiveView:
        """Return what shows its progress."""
        return LiveView(Path(self.folder) / "progress.jsonl", self.method, self.pairs_an_update, self.rewards)
