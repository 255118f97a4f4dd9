"""The stage `reward_evaluation`: a trained reward model against every label and truth that a study has.

A reward model answers no benchmark; it rates every response of the pool to the held-out prompts, once. From these
rewards follow: its accuracy on its own strategy's held-out pairs and on every other one's, what of it may be length
(`karma.training.rewards`), and, where the pool's prompts can be checked by programs, how often it rates the response
higher that follows more of its instructions, and what the best of n by reward is worth (`karma.labels.best_of_n`).
Decision: pairs by truth are all pairs of a prompt's responses whose truths differ, the prompt the unit of the interval;
what choosing the longer response would reach on the same pairs stands beside. Limit: held-out prompts of one pool; a
reward model may be worse where a tuned policy takes its answers.

Paper: none; ours.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from karma.errors import InputError
from karma.evaluation.prompts import load_prompts
from karma.files.writing import atomic_path, save_json
from karma.labels.audit import compute_truth
from karma.labels.best_of_n import compute_best_of_n
from karma.models.load import add_trained, choose_device, choose_dtype, load_tokenizer
from karma.models.rewards import load_reward_model, score_responses
from karma.pairs.pairs import PairSet, load_pairs, split_pairs
from karma.pool.pool import load_pool
from karma.pool.responses import list_responses
from karma.statistics.intervals import compute_prompt_share
from karma.training.cross import collect_responses
from karma.training.held_out import summarise_margins
from karma.training.rewards import compare_length, count_length


def run(job: Any) -> None:
    """Measure one reward model: writes rewards.parquet, one row a response, and reward_scores.json."""
    settings, started = job.settings, time.perf_counter()
    outputs, root = job.experiment.outputs, job.experiment.root
    sets = {name: load_pairs(outputs / "pairs" / name) for name in settings.strategies}
    held_out = {
        name: split_pairs(pairs, settings.pairs.held_out, settings.pairs.seed)[1] for name, pairs in sets.items()
    }
    pool = outputs / "pool" / "pool.parquet"
    asked = collect_responses(held_out)
    for row in list_responses(pool):
        if row["row_id"] in asked:
            said = [{"role": "assistant", "content": row["response"]}]
            asked[row["row_id"]]["responses"].setdefault(row["response_id"], said)
    table, dtype = _rate(job, asked)
    table["truth"] = find_truth(table, pool, settings, root)
    with atomic_path(job.folder / "rewards.parquet") as temporary:
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), temporary)
    scores = {"policy": job.params["policy"], "dtype": dtype, "seconds": round(time.perf_counter() - started, 3),
              **measure_reward_model(table, held_out)}  # fmt: skip
    save_json(scores, job.folder / "reward_scores.json")


def _rate(job: Any, asked: Mapping[str, dict[str, Any]]) -> tuple[pd.DataFrame, str]:
    """Return row_id, response_id, reward and characters of every response, and the dtype they were rated in."""
    compute, policy = job.settings.compute, job.params["policy"]
    torch.set_num_threads(compute.threads)
    device = choose_device(compute.device)
    dtype = "float32" if device == "cpu" else choose_dtype(compute.dtype, device)  # as held-out pairs are, in stage 04
    model = load_reward_model(*add_trained(job.models, policy, Path(job.folder) / "model"), dtype, device)
    keys = [(row_id, response_id) for row_id, one in asked.items() for response_id in one["responses"]]
    prompts, responses = [asked[row_id]["prompt"] for row_id, _ in keys], [asked[r]["responses"][i] for r, i in keys]
    rewards = score_responses(model, load_tokenizer(job.models, policy), prompts, responses, progress=f"{policy} rates")
    table = pd.DataFrame(keys, columns=["row_id", "response_id"])
    return table.assign(reward=rewards.double().tolist(), characters=[*map(count_length, responses)]), dtype


def find_truth(table: pd.DataFrame, pool: Path, settings: Any, root: Path) -> pd.Series:
    """Return each response's share of instructions followed; NaN where the pool's prompts cannot be checked.

    Args:
        table: row_id and response_id. pool: the pool's file. settings: pool.instructions and
            pool.excluded_origin_models. root: for relative paths.
    """
    named = settings.pool.instructions
    prompts = load_prompts(root / named, verifiable=False) if named else []
    if not prompts or not all(prompt.instruction_ids for prompt in prompts):
        return pd.Series(np.nan, index=table.index)
    truth = compute_truth(prompts, load_pool(pool), settings.pool.excluded_origin_models)
    known = truth[truth["usable"]].drop_duplicates(["row_id", "response_id"]).set_index(["row_id", "response_id"])
    keys = pd.MultiIndex.from_frame(table[["row_id", "response_id"]])
    return pd.Series(known["truth"].reindex(keys).to_numpy(), index=table.index)


def measure_reward_model(table: pd.DataFrame, held_out: Mapping[str, PairSet]) -> dict[str, Any]:
    """Return what reward_scores.json says of rewards, all with 95 % intervals.

    Args:
        table: row_id, response_id, reward, characters, truth (NaN: unknown) of each response.
        held_out: strategy -> its held-out pairs.

    Returns:
        n_prompts, n_responses; `pairs`: strategy -> accuracy, interval, n, margin_mean, length; `truth`: accuracy on
        pairs of responses whose truths differ, and that of the longer response (None without truth); `best_of_n`: rows
        of `compute_best_of_n`.

    Raises:
        InputError: a pair names a response without a reward.
    """
    by_key = table.set_index(["row_id", "response_id"])
    pairs = {name: _measure_pairs(by_key, own.table, name) for name, own in held_out.items()}
    known = table[table["truth"].notna()]
    answers = [(own["reward"].to_numpy(), own["truth"].to_numpy()) for _, own in known.groupby("row_id")]
    best = compute_best_of_n(answers)
    return {"n_prompts": int(table["row_id"].nunique()), "n_responses": len(table), "pairs": pairs,
            "truth": compare_truth(known) if len(known) else None, "best_of_n": best.to_dict("records")}  # fmt: skip


def _measure_pairs(by_key: pd.DataFrame, pairs: pa.Table, name: str) -> dict[str, Any]:
    keys = pairs.select(["row_id", "chosen_id", "rejected_id"]).to_pandas()
    sides = [by_key.reindex(pd.MultiIndex.from_frame(keys[["row_id", side]])) for side in ("chosen_id", "rejected_id")]
    if any(side["reward"].isna().any() for side in sides):
        raise InputError(f"{name}: a held-out pair names a response that was not rated: run reward_evaluation again")
    chosen, rejected = sides
    margins = chosen["reward"].to_numpy() - rejected["reward"].to_numpy()
    length = compare_length(margins, chosen["characters"].to_numpy(), rejected["characters"].to_numpy())
    return {**summarise_margins(torch.tensor(margins)), "length": length}


def compare_truth(known: pd.DataFrame) -> dict[str, Any]:
    """Return how often the response that follows more instructions is rated higher, and how often it is the longer one.

    Args:
        known: row_id, reward, characters, truth.

    Returns:
        value, low, high over prompts, n_pairs, n_prompts; `longer`: the same of choosing the longer response.

    Example:
        >>> known = pd.DataFrame({"row_id": ["p", "p", "q", "q"], "reward": [1.0, 2.0, 0.0, 3.0],
        ...                       "characters": [9, 5, 5, 9], "truth": [0.0, 1.0, 0.5, 0.5]})
        >>> found = compare_truth(known)  # the two responses to q follow as many: nothing to tell
        >>> found["value"], found["n_pairs"], found["longer"]["value"]
        (1.0, 1, 0.0)
    """
    own = known.reset_index(drop=True).reset_index(names="place")
    both = own.merge(own, on="row_id", suffixes=("", "_other"))
    decided = both[both["truth"] > both["truth_other"]]
    n = {"n_pairs": len(decided), "n_prompts": int(decided["row_id"].nunique())}

    def share(column: str) -> dict[str, Any]:
        right = (np.sign(decided[column] - decided[f"{column}_other"]) + 1) / 2
        of_prompt = right.groupby(decided["row_id"])
        found = compute_prompt_share(of_prompt.sum(), of_prompt.size())
        return {key: None if np.isnan(value) else value for key, value in found.items()}

    return {**share("reward"), **n, "longer": share("characters")}
