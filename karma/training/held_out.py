"""Held-out preference: on pairs kept out of training, did the policy move towards the chosen response?

The reward margin of a pair is beta times the change, from the untrained to the tuned policy, of
log pi(chosen) - log pi(rejected), summed over tokens. One definition serves every method, SFT included, and the stages
04, 07 and 08, so that runs can be compared; beta is DPO's and changes no accuracy.

Paper: the reward margin of DPO (arXiv 2305.18290, section 4).
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from karma.files.reading import load_object
from karma.models.frozen import States, keep_frozen
from karma.models.load import Specs, add_trained, load_model
from karma.models.logprobs import compute_pair_logps
from karma.statistics.intervals import compute_wilson


def load_both(models: Specs, policy: str, folder: Path, dtype: str, device: str) -> Iterator[tuple[str, Any]]:
    """Yield ("before", the untrained policy) and ("after", the tuned one as saved), one in memory at a time.

    Both compute in float32 on a CPU, whatever was trained in: after a short training bfloat16's rounding of two
    log-probabilities is as large as what a pair's margin learnt, and decided its sign. Whole weights were rounded to
    `dtype` when they were saved, and so is the start. What the layers below an adapter make of a text is computed once.

    Args:
        models: name -> specification. policy: which of them was tuned. folder: where the outcome lies.
        dtype: what was computed in. device: "cpu" or "cuda". The caller drops a model before it asks for the next.
    """
    measured, adapter = "float32" if device == "cpu" else dtype, folder / "adapter_config.json"
    states: States = {}
    own = load_object(adapter).get("layers_to_transform") if adapter.is_file() else None
    for when, named in (("before", (models, policy)), ("after", add_trained(models, policy, folder))):
        gc.collect()  # a trained model is in a cycle with its trainer, a measured one with what it keeps
        model = load_model(named[0], named[1], measured if adapter.is_file() else dtype, device)
        model = model.to(getattr(torch, measured))
        if isinstance(own, list) and own:  # else an adapter reaches every layer
            keep_frozen(model, min(own), states)
        yield when, model
        del model


def measure_pairs(model: Any, tokenizer: Any, pairs: pa.Table, max_length: int, progress: str) -> torch.Tensor:
    """Return log pi(chosen) and log pi(rejected) of each pair, in nats, with their lengths, in tokens.

    Returns:
        One tensor (n, 2, 2): [pair, side, (log-probability, length)].
    """
    texts = [pairs[name].to_pylist() for name in ("prompt", "chosen", "rejected")]
    both = compute_pair_logps(model, tokenizer, *texts, max_length=max_length, progress=progress)
    return torch.stack([values.float() for values in both], -1)


def build_margins(pairs: pa.Table, before: torch.Tensor, after: torch.Tensor, beta: float) -> pa.Table:
    """Return one row a held-out pair: log-probabilities before and after training, lengths, and the reward margin.

    Args:
        pairs: the held-out pairs.
        before, after: from `measure_pairs`, of the untrained and the tuned policy.
        beta: of the reward margin.
    """
    logps = {f"{side}_logps_{when}": values[:, k, 0].tolist()
             for when, values in (("before", before), ("after", after))
             for k, side in enumerate(("chosen", "rejected"))}  # fmt: skip
    lengths = {f"{side}_tokens": before[:, k, 1].int().tolist() for k, side in enumerate(("chosen", "rejected"))}
    change = (after - before)[:, :, 0]
    margins = beta * (change[:, 0] - change[:, 1])
    return pa.table({"row_id": pairs["row_id"], **logps, **lengths, "margin": margins.double().tolist()})


def summarise_margins(margins: torch.Tensor) -> dict[str, Any]:
    """Summarise reward margins of held-out pairs.

    Args:
        margins: beta * (policy's log-ratio of chosen over rejected - the reference's), (n,), in nats.

    Returns:
        accuracy (share of margins above 0; ties count half), n, its 95 % Wilson interval, and the mean margin.

    Example:
        >>> summarise_margins(torch.tensor([1.0, 2.0, -1.0, 0.0]))["accuracy"]
        0.625
    """
    n = len(margins)
    if not n:
        return {"accuracy": None, "n": 0, "interval": [None, None], "margin_mean": None}
    right = int((margins > 0).sum()) + 0.5 * int((margins == 0).sum())
    return {"accuracy": right / n, "n": n, "interval": list(compute_wilson(right / n, n)),
            "margin_mean": float(margins.mean())}  # fmt: skip


def describe_held_out(held: dict[str, Any]) -> str:
    """Say in one sentence what the held-out pairs show.

    Example:
        >>> describe_held_out(summarise_margins(torch.tensor([1.0, 2.0, -1.0, 0.0])))
        'accuracy 0.62 on 4 held-out pairs, 95 % interval 0.22 to 0.91: cannot be told from a coin'
    """
    if not held["n"]:
        return "no pairs were held out (pairs.held_out is 0)"
    low, high = held["interval"]
    verdict = "cannot be told from a coin" if low <= 0.5 <= high else "differs from a coin"
    shown = f"accuracy {held['accuracy']:.2f} on {held['n']} held-out pairs"
    return f"{shown}, 95 % interval {low:.2f} to {high:.2f}: {verdict}"
