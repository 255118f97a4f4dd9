"""The stage `pairwise_evaluation`: a policy's trainings against the baseline's and against itself before training.

Benchmarks say what a policy can do, not whether people would rather have its answers. Here every training of a policy,
and the policy untrained, answers the prompts that no training saw; a judge sets each training's responses against those
of the baseline strategy by the same method and seed, and against those of the untrained policy, in both orders.
Decision: greedy answers by default (`win_rates.temperature: 0`), so that a win rate is of the policy and not of a draw.
Limit: the judge is one model; where it is the policy itself it may prefer the untrained answers, and it is said.

Paper: none; win rates as AlpacaEval 2 (arXiv 2404.04475).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from karma.errors import InputError
from karma.files.reading import compute_digest
from karma.labels.compared import Compared, ask_model
from karma.labels.tournament import hold_tournament, save_tournament
from karma.models.ask import CachedModel, Prompt
from karma.models.load import add_trained
from karma.pairs.pairs import load_pairs, split_pairs
from karma.pairs.turns import is_plain

UNTRAINED = "start"
BASELINE = "rlaif"


def collect_prompts(folders: list[Path], held_out: float, seed: int, n: int | None) -> dict[str, Prompt]:
    """Return the prompts that are held out of every training, by prompt_id, the same for all policies.

    A conversation is asked as it is; a single message of the user's is its text.

    Args:
        folders: of pairs, one a strategy. held_out, seed: of the split.
        n: so many of them, by (seed, prompt); None: all.

    Raises:
        InputError: fewer than `n`, or none.
    """
    texts: dict[str, Prompt] = {}
    for folder in folders:
        for prompt in split_pairs(load_pairs(folder), held_out, seed)[1].table["prompt"].to_pylist():
            asked = prompt[0]["content"].strip() if is_plain(prompt) else prompt
            texts[compute_digest(asked)] = asked
    if len(texts) < (n or 1):
        raise InputError(f"win_rates.n_prompts: {n or 1} is more than the {len(texts)} held-out prompts: lower it, or "
                         "raise pairs.held_out")  # fmt: skip
    drawn = sorted(texts, key=lambda name: compute_digest([seed, name]))[:n]
    return {name: texts[name] for name in sorted(drawn)}


def name_run(strategy: str, method: str, seed: str | int) -> str:
    """Name a training among those of one policy.

    Example:
        >>> name_run("k_sim", "dpo", 0)
        'k_sim/dpo/seed0'
    """
    return f"{strategy}/{method}/seed{seed}"


def list_pairs(names: list[str]) -> list[tuple[str, str]]:
    """Return who is set against whom: each training against the untrained policy, and against the baseline's.

    Args:
        names: of the trainings, as `name_run`.

    Example:
        >>> list_pairs(["rlaif/dpo/seed0", "k_sim/dpo/seed0", "k_sim/sft/seed0"])[1:3]
        [('k_sim/dpo/seed0', 'start'), ('k_sim/dpo/seed0', 'rlaif/dpo/seed0')]
    """
    pairs = []
    for name in names:
        pairs.append((name, UNTRAINED))
        strategy, method, seed = name.split("/")
        rival = f"{BASELINE}/{method}/{seed}"
        if strategy != BASELINE and rival in names:
            pairs.append((name, rival))
    return pairs


def _answer(job: Any, prompts: dict[str, Prompt]) -> Iterator[Compared]:
    """Let the untrained policy and each of its trainings answer, one model in memory at a time."""
    how, policy = job.settings.win_rates, job.params["policy"]
    cache = job.experiment.outputs / "answers"
    runs = {UNTRAINED: (job.models, policy)} | {
        name_run(p["strategy"], p["method"], p["seed"]): add_trained(job.models, policy, folder / "model")
        for p, folder in ((run.params, run.folder) for run in job.inputs if run.stage.name == "04_alignment_training")
    }
    for name, (specs, model) in runs.items():
        asked = CachedModel(specs, model, job.settings.compute, how.batch_size, cache)
        yield ask_model(asked, name, prompts, how, how.seed)
        del asked


def run(job: Any) -> None:
    """Compare all trainings of one policy, and write verdicts.parquet, win_rates.csv, accounting.json, README.md."""
    settings = job.settings
    folders = [run.folder for run in job.inputs if run.stage.name == "03_binarization"]
    prompts = collect_prompts(folders, settings.pairs.held_out, settings.pairs.seed, settings.win_rates.n_prompts)
    compared = list(_answer(job, prompts))
    how = settings.win_rates
    judge = CachedModel(job.models, how.judge, settings.compute, how.batch_size, job.experiment.outputs / "answers")
    names = [model.name for model in compared if model.name != UNTRAINED]
    found = hold_tournament(compared, prompts, judge, how.tie, how.reply_tokens, list_pairs(names))
    save_tournament(found, job.folder)


def split_names(rates: pd.DataFrame) -> pd.DataFrame:
    """Return a table of win rates with strategy, method, seed and the rival (a strategy, or the untrained policy).

    Example:
        >>> rates = pd.DataFrame({"model_a": ["k_sim/dpo/seed1"], "model_b": ["rlaif/dpo/seed1"]})
        >>> split_names(rates)[["strategy", "method", "seed", "rival"]].values.tolist()
        [['k_sim', 'dpo', 1, 'rlaif']]
    """
    parts = rates["model_a"].str.split("/", expand=True)
    return rates.assign(strategy=parts[0], method=parts[1], seed=parts[2].str.removeprefix("seed").astype(int),
                        rival=rates["model_b"].str.split("/").str[0])  # fmt: skip
