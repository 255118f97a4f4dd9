"""A `Run`: what a training is made of, as plain values that another process can be given."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from karma.study.experiment import View
from karma.training.progress import LiveView
from karma.training.trainers import count_accumulation


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

    models: dict[str, Any]
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
