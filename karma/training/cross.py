"""The stage `cross_evaluation`: a tuned policy on every strategy's held-out pairs, not on its own alone.

Accuracy on a strategy's own held-out pairs says how easily its labels are learnt, and no two strategies are asked the
same. Here every response to the held-out prompts that any strategy's pairs name is scored by the policy before and
after training; whichever two make a pair, under whichever labels, its margin follows from these.
Decision: before and after are loaded as for a training's own held-out pairs (`karma.training.held_out.load_both`).

Paper: none; the margin is DPO's (arXiv 2305.18290, section 4).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from karma.files.writing import atomic_path
from karma.models.load import choose_device, choose_dtype, load_tokenizer
from karma.models.logprobs import choose_pass_tokens, compute_side_logps, tokenize_row
from karma.pairs.pairs import PairSet, load_pairs, split_pairs
from karma.training.held_out import load_both


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
    tokenizer, dtype, logps = load_tokenizer(job.models, policy), choose_dtype(settings.compute.dtype, device), {}
    for when, model in load_both(job.models, policy, folder / "model", dtype, device):
        logps[when] = measure_responses(model, tokenizer, asked, settings.training.max_length, f"{policy} {when}")
        del model
    keys = [(row_id, response_id) for row_id, one in asked.items() for response_id in one["responses"]]
    columns = {"row_id": [key[0] for key in keys], "response_id": [key[1] for key in keys]}
    with atomic_path(folder / "held_out_responses.parquet") as temporary:
        pq.write_table(pa.table({**columns, **{f"logps_{when}": values for when, values in logps.items()}}), temporary)
