"""Dynamic filtering: a fixed pool of pairs of which each epoch trains on the top share, as the policy of then ranks it.

A selection made before training (`karma.potential`) is stale once the policy has moved. Here the whole pool stays the
training set, with its reference log-probabilities, and a sampler hands out an epoch's part of it: before each epoch,
the first included, the policy being trained scores both responses of every pair, the metric ranks the pairs by their
explicit and these implicit margins, and the top `ratio` of the candidates is kept. `random` draws anew each time: the
control with as many updates. What was kept lies in refilter.parquet from the moment it is chosen, so that a killed
training goes on with the same pairs though its policy is no longer that of the epoch's start.
Decision: the number kept is that of the first epoch, so updates are known before training and equal among metrics.
Limit: one process; a ranking costs a forward pass over the pool an epoch, which equal updates do not count.

Paper: none for the loop; the metric is that of arXiv 2503.01864, whose summary speaks of dynamic filtering.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import Sampler
from tqdm.auto import tqdm

from karma.errors import InputError, KarmaError
from karma.files.writing import atomic_path
from karma.models.logprobs import (
    SharedRow,
    choose_pass_tokens,
    compute_row_logps,
    count_tokens,
    tokenize_pair,
)
from karma.potential.margins import (
    Candidates,
    build_candidates,
    compute_explicit_margin,
    compute_implicit_margin,
    compute_k,
    select,
)
from karma.study.training_settings import Refilter, Training

FILE = "refilter.parquet"
_SIDES = ("chosen", "rejected")


def check_refilter(pairs: pa.Table, method: str, settings: Training, fit: np.ndarray) -> int:
    """Return how many pairs an epoch trains on: with `training.refilter` the share kept, else all that fit.

    Args:
        pairs: the training split. method: a name of `karma.vocabulary.METHODS`. settings: the experiment's `training`.
        fit: which pairs' prompts leave room for a response (n,).

    Raises:
        InputError: pairs cannot be ranked anew: as set, with this method, or because none has scores.
    """
    if settings.refilter is None:
        return int(fit.sum())
    if fault := settings.find_refilter_fault([method], "stage" in pairs.column_names):
        raise InputError(fault)
    n = int((fit & np.isfinite(find_explicit(pairs, settings.refilter))).sum())
    if not n:
        raise InputError(
            f"training.refilter: none of {len(pairs)} pairs has scores of both responses (chosen_score, "
            "rejected_score): make pairs by a strategy that scores them, or set training.refilter to null"
        )
    return compute_k(n, settings.refilter.ratio)


def find_explicit(pairs: pa.Table, how: Refilter) -> np.ndarray:
    """Return the pairs' explicit margins (n,): those a selection gave them, else of their own scores; NaN for none."""
    if "explicit_margin" in pairs.column_names:
        return np.array(pairs["explicit_margin"].to_pylist(), float)
    names = [f"{side}_score" for side in _SIDES]
    if not set(names) <= set(pairs.column_names):
        return np.full(len(pairs), np.nan)
    scores = np.array([pairs[name].to_pylist() for name in names], float).T.reshape(-1, 2)
    return compute_explicit_margin(scores, signed=how.metric == "m_ap_signed")


def describe_pool(pairs: pa.Table, settings: Training) -> list[Any] | None:
    """Return what a ranking depends on besides the texts a method learns from; None where nothing is ranked anew."""
    if settings.refilter is None:
        return None
    explicit = [value if np.isfinite(value) else None for value in find_explicit(pairs, settings.refilter)]
    return [pairs["row_id"].to_pylist(), pairs["rejected"].to_pylist(), explicit]


class Filter:
    """Chooses the pairs of each epoch, and keeps the choices on disk.

    Args:
        pairs: the pool. tokenizer: the policy's. settings: the experiment's `training`, with `refilter`.
        seed: of `random`, and of ties. file: where the choices go.
    """

    def __init__(self, pairs: pa.Table, tokenizer: Any, settings: Training, seed: int, file: Path) -> None:
        if settings.refilter is None:
            raise InputError("training.refilter is null: there is nothing to rank by")
        self.how, self.seed, self.file, self._pad = settings.refilter, seed, file, tokenizer.pad_token_id
        self.rows: list[SharedRow] = [
            tokenize_pair(tokenizer, row["prompt"], row["chosen"], row["rejected"], settings.max_length)
            for row in pairs.select(["prompt", *_SIDES]).to_pylist()
        ]
        self.lengths = count_tokens(self.rows).numpy()
        self.row_ids, self.explicit = pairs["row_id"].to_pylist(), find_explicit(pairs, self.how)
        self.fit = np.array([row.sides[0].start < settings.max_length for row in self.rows])
        self.n_candidates = int(self._gather(np.zeros((len(self.rows), 2))).fit.sum())
        self.n_kept = compute_k(self.n_candidates, self.how.ratio)
        self.kept: dict[int, np.ndarray] = {}  # epoch, from 1 -> positions in the pool
        self._parts: list[pa.Table] = []

    def _gather(self, logps: np.ndarray) -> Candidates:
        form = "signed" if self.how.metric == "m_ap_signed" else self.how.implicit
        implicit = compute_implicit_margin(logps, self.lengths, form)
        return build_candidates(self.row_ids, self.explicit, implicit, self.how.weight)

    def choose(self, epoch: int, model: Any) -> np.ndarray:
        """Return the positions of an epoch's pairs, ascending; they are chosen once.

        Args:
            epoch: from 1. model: the policy as it is.
        """
        if epoch not in self.kept:
            reads = self.how.metric != "random"
            logps = self._measure(epoch, model) if reads else np.zeros((len(self.rows), 2))
            pool = self._gather(logps)
            self.kept[epoch] = places = select(pool, self.how.metric, k=self.n_kept, seed=self.seed * 100_003 + epoch)
            implicit = pool.implicit[places] if reads else np.full(len(places), np.nan)
            self._parts.append(pa.table({
                "epoch": pa.array([epoch] * len(places), pa.int32()), "pair": places,
                "row_id": [self.row_ids[place] for place in places], "explicit_margin": pool.explicit[places],
                "implicit_margin": pa.array(implicit, pa.float64(), from_pandas=True)}))  # fmt: skip
            self._save()
        return self.kept[epoch]

    def _measure(self, epoch: int, model: Any) -> np.ndarray:
        """Score the pool under the policy as it is, which is left as it was; no random number is drawn."""
        training, budget = model.training, choose_pass_tokens(model.device.type)
        model.eval()
        try:
            with tqdm(total=len(self.rows), desc=f"ranking before epoch {epoch}", unit="pair") as bar:
                return compute_row_logps(model, self.rows, self._pad, budget, bar.update).double().numpy()
        finally:
            model.train(training)

    def _save(self) -> None:
        told = {"karma": json.dumps({**self.how.as_dict(), "n_candidates": self.n_candidates})}
        with atomic_path(self.file) as temporary:
            pq.write_table(pa.concat_tables(self._parts).replace_schema_metadata(told), temporary)

    def load(self) -> None:
        """Take up the choices of a training that was killed."""
        if not self.file.is_file():
            return
        table = pq.read_table(self.file)
        for epoch in dict.fromkeys(table["epoch"].to_pylist()):
            part = table.filter(pa.array(table["epoch"].to_numpy() == epoch)).replace_schema_metadata(None)
            self.kept[epoch] = part["pair"].to_numpy()
            self._parts.append(part)


class FilterSampler(Sampler):
    """An epoch's pairs, drawn into updates at random, those of an update sorted by length, longest first.

    Args:
        choose: epoch, from 1 -> positions in the pool. places: of the trainer's rows in the pool.
        lengths: tokens of each pair of the pool. n_kept: pairs an epoch. per_update: pairs an update.
        seed: of the draw.

    Example:
        >>> sampler = FilterSampler(lambda epoch: np.array([0, epoch, 3]), [0, 1, 2, 3], [5, 9, 2, 7], 3, 3, seed=0)
        >>> sampler.set_epoch(0), list(sampler)  # pairs 0, 1 and 3
        (None, [1, 3, 0])
        >>> sampler.set_epoch(1), list(sampler), len(sampler)
        (None, [3, 0, 2], 3)
    """

    def __init__(
        self, choose: Callable[[int], np.ndarray], places: list[int], lengths: list[int], n_kept: int, per_update: int,
        seed: int,
    ) -> None:  # fmt: skip
        self.choose, self.lengths, self.n_kept, self.per_update, self.seed = choose, lengths, n_kept, per_update, seed
        self.rows, self.epoch = {place: row for row, place in enumerate(places)}, 0

    def __len__(self) -> int:
        return self.n_kept

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be that of an epoch, from 0 (the trainer calls it)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        kept = self.choose(self.epoch + 1).tolist()
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        drawn = [kept[i] for i in torch.randperm(len(kept), generator=generator).tolist()]
        for start in range(0, len(drawn), self.per_update):
            some = sorted(drawn[start : start + self.per_update], key=lambda i: (-self.lengths[i], i))
            yield from (self.rows[place] for place in some)


def attach_filter(trainer: Any, chosen: Filter, pairs_an_update: int) -> None:
    """Let a trainer draw each epoch's pairs from what the filter keeps; its data set stays the whole pool.

    Args:
        trainer: TRL's, of one row a pair. chosen: the filter over the same pairs. pairs_an_update: of the training.

    Raises:
        KarmaError: the trainer left out other pairs than those whose prompt alone fills max_length.
    """
    places = np.flatnonzero(chosen.fit).tolist()
    if len(trainer.train_dataset) != len(places):
        raise KarmaError(
            f"the trainer took {len(trainer.train_dataset)} of {len(chosen.rows)} pairs, and {len(places)} fit: "
            "which pair is which is not known; set training.refilter to null"
        )
    own = trainer._get_train_sampler(trainer.train_dataset)
    per_update = getattr(own, "per_update", pairs_an_update)  # 1 where a loss leaves company to chance

    def choose(epoch: int) -> np.ndarray:
        with trainer.compute_loss_context_manager():  # in the precision of training
            return chosen.choose(epoch, trainer.model)

    sampler = FilterSampler(choose, places, [row.width for row in chosen.rows], chosen.n_kept, per_update,
                            trainer.args.seed)  # fmt: skip
    trainer._get_train_sampler = lambda dataset=None: sampler


def summarise_epochs(file: Path) -> dict[str, Any]:
    """Return what a training kept: how pairs were ranked, n_candidates, and of each epoch what entered and left.

    Args:
        file: refilter.parquet.

    Returns:
        The settings, n_candidates, and `epochs`, a list of epoch (from 1), n_kept, n_entered (not in the epoch before),
        n_left (no longer kept), and n_of_first (also kept by the untrained policy, in the first epoch).
    """
    table = pq.read_table(file)
    told = json.loads(table.schema.metadata[b"karma"])
    epochs, pair = table["epoch"].to_numpy(), table["pair"].to_numpy()
    kept = [set(pair[epochs == epoch].tolist()) for epoch in np.unique(epochs)]
    rows = [{"epoch": k + 1, "n_kept": len(own), "n_entered": len(own - before), "n_left": len(before - own),
             "n_of_first": len(own & kept[0])}
            for k, (before, own) in enumerate(zip([set(), *kept], kept, strict=False))]  # fmt: skip
    return {**told, "epochs": rows}
