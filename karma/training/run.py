"""A `Run`: what is trained, on what, where and how, as one value that another process can be given.

Decision: a run is described before anything is trained, so that its identity tells whether the same training was done
already; the pairs themselves stay outside, and are known by their digest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from karma.files.reading import compute_digest
from karma.models.load import Specs, choose_device, choose_dtype, compute_weights_digest
from karma.study.sections import Compute
from karma.study.training_settings import REPORTS, Training
from karma.training.progress import LiveView
from karma.training.refilter import describe_pool
from karma.training.trainers import (
    build_dataset,
    choose_weights_dtype,
    count_accumulation,
    find_confidence,
    find_trainer,
)


@dataclass(frozen=True)
class Run:
    """What a training is made of.

    Attributes:
        models: name -> specification. policy: which of them is tuned. method: a name of `karma.vocabulary.METHODS`.
        seed: of data order and adapters. settings: the experiment's `training`.
        device, dtype, threads: where and in what it computes.
        folder: where checkpoints, the progress file and `model/` go.
        identity: digest of all that decides the weights: texts, order, settings, seed, code, policy, device, label
            confidence where labels are smoothed by it, and margins where pairs are ranked anew.
        reference_file: where the reference's log-probabilities are kept, of a method that has one.
        data_digest: of the texts it is tuned on.
        start: digest of all that decides what the untrained policy answers: weights, precision, device, code.
    """

    models: Specs
    policy: str
    method: str
    seed: int
    settings: Training
    device: str
    dtype: str
    threads: int
    folder: str
    identity: str
    reference_file: str
    data_digest: str
    start: str

    @property
    def pairs_an_update(self) -> int:
        """Pairs whose gradients are summed before the weights change."""
        return self.settings.per_device_batch_size * count_accumulation(self.settings, 1)

    @property
    def rewards(self) -> dict[str, Any]:
        """What the trainer's rewards are: beta, per_token (of mean log-probabilities, not of sums), what it makes."""
        trainer = find_trainer(self.method)
        return {"beta": trainer.find_beta(self.settings), "per_token": trainer.per_token, "makes": trainer.makes,
                "method": self.method}  # fmt: skip

    @property
    def makes_reward_model(self) -> bool:
        """Tell a training whose outcome rates responses from one whose outcome writes them."""
        return find_trainer(self.method).makes == "reward_model"

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**vars(self), "settings": self.settings.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Run":
        """Return the run that `as_dict` wrote."""
        return cls(**{**values, "settings": Training.model_validate(values["settings"])})

    def open_view(self) -> LiveView:
        """Return what shows its progress."""
        return LiveView(Path(self.folder) / "progress.jsonl", self.method, self.pairs_an_update, self.rewards)


def describe_run(
    pairs: pa.Table, models: Specs, policy: str, method: str, seed: int, settings: Training, compute: Compute,
    folder: str | Path, *, code: str = "", reference_folder: Path | None = None,
) -> Run:  # fmt: skip
    """Describe a training; nothing is loaded but the policy's files, whose digest is taken.

    Args:
        pairs: what it is tuned on.
        models: name -> specification. policy: which of them is tuned.
        method: a name of `karma.vocabulary.METHODS`. seed: of data order and adapters.
        settings: the experiment's `training`. compute: its `compute`.
        folder: where `model/`, `training.json` and `held_out.parquet` go.
        code: digest of the code in use; a run made by other code is never taken over.
        reference_folder: where the reference's log-probabilities are kept for other seeds; None: not kept.

    Raises:
        InputError: an unknown method, a device that is not there, a policy without weights, or a pair whose label
            confidence is unknown where labels are smoothed by it.

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> smoke = load_experiment("smoke").select(("models", "training", "compute"))
        >>> answer = [[{"role": "assistant", "content": "Yes."}]]
        >>> pairs = pa.table({"row_id": ["a"], "prompt": [[{"role": "user", "content": "Is 1 odd?"}]],
        ...                   "chosen": answer, "rejected": answer})
        >>> models = {name: spec.model_dump(mode="json") for name, spec in smoke.models.items()}
        >>> runs = [describe_run(pairs, models, "tiny-a", "dpo", seed, smoke.training, smoke.compute, "out")
        ...         for seed in (0, 0, 1)]
        >>> runs[0].pairs_an_update, runs[0] == runs[1], runs[0].identity == runs[2].identity
        (8, True, False)
    """
    device = choose_device(compute.device)
    dtype = choose_dtype(compute.dtype, device)
    weights, texts = compute_weights_digest(models, policy), compute_text_digest(pairs, method)
    stages = pairs["stage"].to_pylist() if "stage" in pairs.column_names else None
    columns = (stages, find_confidence(pairs, method, settings), describe_pool(pairs, settings))
    besides = [column for column in columns if column is not None]
    data = compute_digest([texts, *besides]) if besides else texts
    left_out = ("smooth_by_confidence", *REPORTS)  # the first is in `data`, the others decide no number
    how = {key: value for key, value in settings.of(method).items() if key not in left_out}
    online = find_trainer(method).samples(settings)
    judge = [compute_weights_digest(models, online.reward_model)] if online and online.reward_model else []
    identity = compute_digest([data, how, *judge, seed, code, method, weights, dtype, device, compute.threads])
    start = compute_digest([weights, dtype, device, compute.threads, code])
    kept_in = choose_weights_dtype(settings, dtype)
    reference = compute_digest([texts, weights, dtype, kept_in, device, settings.max_length, code])
    file = Path(folder if reference_folder is None else reference_folder) / f"reference-{reference}.parquet"
    return Run(models, policy, method, seed, settings, device, dtype, compute.threads, str(folder), identity, str(file),
               texts, start)  # fmt: skip


def compute_text_digest(pairs: pa.Table, method: str) -> str:
    """Return the digest of the texts that a method is tuned on, in their order."""
    return compute_digest(build_dataset(pairs, method).to_list())
