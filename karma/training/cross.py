"""The stage `cross_evaluation`: a tuned policy on every strategy's held-out pairs, not on its own alone.

Accuracy on a strategy's own held-out pairs says how easily its labels are learnt, and no two strategies are asked the
same. Here every response to the held-out prompts that any strategy's pairs name is scored by the policy before and
after training; whichever two make a pair, under whichever labels, its margin follows from these.
Decision: in float32 on a CPU, as `karma.training.train` measures its own held-out pairs, and for its reason.

Paper: none; the margin is DPO's (arXiv 2305.18290, section 4).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from karma.files import atomic_path
from karma.models.frozen import States, keep_frozen
from karma.models.load import add_trained, choose_device, choose_dtype, load_model, load_tokenizer
from karma.models.logprobs import choose_pass_tokens, compute_side_logps, tokenize_row
from karma.pairs.pairs import PairSet, load_pairs, split_pairs


def collect_responses(held_out: Mapping[str, PairSet]) -> dict[str, dict[str, Any]]:
    """Return the prompts of pair sets with every response that a pair of theirs names.

    Args:
        held_out: strategy -> its pairs.

    Returns:
        row_id -> prompt (messages) and responses (response_id -> messages), in the order of their ids.
    """
    found: dict[str, dict[str, Any]] = {}
    for pairs in held_out.values():
        for row in pairs.table.to_pylist():
            one = found.setdefault(row["row_id"], {"prompt": row["prompt"], "responses": {}})
            one["responses"] |= {row["chosen_id"]: row["chosen"], row["rejected_id"]: row["rejected"]}
    return {key: {**one, "responses": dict(sorted(one["responses"].items()))} for key, one in sorted(found.items())}


def measure_responses(
    model: Any, tokenizer: Any, asked: Mapping[str, dict[str, Any]], max_length: int, progress: str
) -> list[float]:
    """Return each response's summed log-probability in nats, in the order of `asked`, responses of a prompt together.

    Args:
        model, tokenizer: a policy. asked: from `collect_responses`.
        max_length: tokens of prompt and response kept. progress: what to call the progress bar.
    """
    rows = [tokenize_row(tokenizer, one["prompt"], [*one["responses"].values()], max_length) for one in asked.values()]
    with tqdm(total=len(rows), desc=progress, unit="prompt") as bar:
        budget = choose_pass_tokens(model.device.type)
        found = compute_side_logps(model, rows, tokenizer.pad_token_id, budget, bar.update)
    return [float(value) for side in found for value in side]


def run(job: Any) -> None:
    """Measure one trained policy, before and after its training."""
    settings, folder = job.settings, Path(job.folder)
    sets = {name: load_pairs(job.experiment.outputs / "pairs" / name) for name in settings.strategies}
    held_out = {
        name: split_pairs(pairs, settings.pairs.held_out, settings.pairs.seed)[1] for name, pairs in sets.items()
    }
    asked, policy = collect_responses(held_out), job.params["policy"]
    torch.set_num_threads(settings.compute.threads)
    device = choose_device(settings.compute.device)
    dtype = "float32" if device == "cpu" else choose_dtype(settings.compute.dtype, device)
    tokenizer, states, logps = load_tokenizer(job.models, policy), States(), {}
    lora = settings.training.lora if (folder / "model" / "adapter_config.json").is_file() else None
    for when, named in (("before", (job.models, policy)), ("after", add_trained(job.models, policy, folder / "model"))):
        model = load_model(named[0], named[1], dtype, device)
        if lora:  # below its adapters both are one model
            keep_frozen(model, model.config.num_hidden_layers - lora.last_layers, states)
        logps[when] = measure_responses(model, tokenizer, asked, settings.training.max_length, f"{policy} {when}")
    keys = [(row_id, response_id) for row_id, one in asked.items() for response_id in one["responses"]]
    columns = {"row_id": [key[0] for key in keys], "response_id": [key[1] for key in keys]}
    with atomic_path(folder / "held_out_responses.parquet") as temporary:
        pq.write_table(pa.table({**columns, **{f"logps_{when}": values for when, values in logps.items()}}), temporary)
