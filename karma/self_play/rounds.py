"""One round of self-play, step by step: play, propose prompts, select, train, evaluate.

Every arm of a study trains on base pairs and on as many added ones, selected from equally many candidates: of the pairs
that equally many new prompts gave, the same number at random. Arms differ in where new prompts come from, or in what
selects: `evolve_then_select` rewrites all base prompts, `select_then_evolve` those of the base pairs with the largest
potential, `fresh` (the control) takes further prompts of the file; these three keep the largest potential.
`fresh_random`, `fresh_explicit` and `fresh_implicit` keep pairs of `fresh`'s candidates at random, by the explicit or
the implicit margin alone: in their first round they differ from `fresh` in nothing else. A round begins with the policy
that the same arm's round before trained. Whoever calls a step again gets the kept answers, scores and margins; only
training and reading are repeated.
Decision: held-out pairs are made once, of the untrained policy's answers, and serve every round and arm; so their
numbers can be compared.

Paper: the self-play data generation of arXiv 2503.01864.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from karma.errors import KarmaError
from karma.evaluation.prompts import Prompt, load_prompts
from karma.files.writing import save_json
from karma.models.load import Specs, add_trained
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import PairSet
from karma.self_play.answers import sample_answers
from karma.self_play.evolution import Attempt, collect_prompts, count_attempts, evolve_prompts
from karma.self_play.pairing import build_self_play_pairs, join_books
from karma.self_play.prompts import split_prompts
from karma.self_play.scorers import score_answers
from karma.self_play.selection import (
    add_margins,
    compute_summed_margins,
    compute_token_margins,
    draw_places,
    find_best,
    take_pairs,
)
from karma.statistics.intervals import compute_mean, compute_wilson
from karma.study.fingerprint import compute_code
from karma.study.sections import Compute, SelfPlay
from karma.study.training_settings import Training


@dataclass(frozen=True)
class Round:
    """What a round starts from.

    Attributes:
        settings: the experiment's `self_play`, all of it that a round reads. training, compute: other sections.
        models: name -> specification, the trained policies of earlier rounds included.
        start: the untrained policy's name. policy: the name of the one that plays and is trained.
        arm, number: which arm, which round (1, 2, ...).
        prompts: "base", "held_out" and "fresh". known: every prompt of the file.
        cache: folder of answers, scores and margins. folder: where the round's files go. code: digest of the code.
    """

    settings: SelfPlay
    training: Training
    compute: Compute
    models: Specs
    start: str
    policy: str
    arm: str
    number: int
    prompts: dict[str, list[Prompt]]
    known: list[Prompt]
    cache: Path
    folder: Path
    code: str = ""


@dataclass(frozen=True)
class Played:
    """Prompts with the policy's answers, their scores, and the pairs made of them (with margins and potential)."""

    prompts: list[Prompt]
    answers: list[list[str]]
    scores: list[list[float]]
    pairs: PairSet


def open_round(job: Any) -> Round:
    """Return what one job of stage 08 starts from.

    Args:
        job: `karma.study.open.open_stage("08_self_play", ...)`.
    """
    settings, number, root = job.settings.self_play, int(job.params["round"]), job.experiment.root
    file = load_prompts(root / settings.prompts, settings.scorer == "instructions")
    counts = settings.base_prompts, settings.held_out_prompts, settings.fresh_prompts
    models, policy = job.models, job.params["policy"]
    for earlier in range(1, number):
        models, policy = add_trained(models, policy, job.folder.parent / f"round{earlier}" / "model")
    return Round(settings, job.settings.training, job.settings.compute, models, job.params["policy"], policy,
                 job.params["arm"], number, split_prompts(file, *counts, number, settings.seed), file,
                 job.experiment.outputs / "answers", job.folder, compute_code(job))  # fmt: skip


def answer(this: Round, policy: str, prompts: list[Prompt]) -> tuple[list[list[str]], list[list[float]]]:
    """Let a policy answer each prompt `samples` times, and score the answers."""
    texts, s = [prompt.text for prompt in prompts], this.settings
    answers = sample_answers(this.models, policy, texts, s.samples, s, this.compute, this.cache)
    return answers, score_answers(prompts, answers, s, this.models, this.compute, this.cache)


def play(this: Round, prompts: list[Prompt], policy: str = "", most: int | None = None) -> Played:
    """Answer, score and pair prompts, with each pair's margins and alignment potential under the policy.

    Args:
        this: the round. prompts: what to ask.
        policy: who answers; the round's own policy where not given.
        most: so many of the pairs are kept, at random; None: all.
    """
    name = policy or this.policy
    answers, scores = answer(this, name, prompts)
    source = Path(this.settings.prompts).stem
    pairs = build_self_play_pairs(prompts, answers, scores, this.start, source)
    if most is not None:
        ids = pairs.table["row_id"].to_pylist()
        pairs = take_pairs(pairs, draw_places(ids, most, this.settings.seed, "candidates"), "not_drawn")
    margins = compute_token_margins(pairs.table, this.models, name, this.training.max_length, this.compute, this.cache)
    return Played(prompts, answers, scores, add_margins(pairs, margins, this.settings.weight))


def play_candidates(this: Round, prompts: list[Prompt]) -> Played:
    """Play an arm's new prompts: its candidates, as many pairs as every other arm has."""
    return play(this, prompts, most=this.settings.candidate_pairs)


def propose_prompts(this: Round, base: Played) -> tuple[list[Prompt], list[Attempt]]:
    """Return the prompts an arm adds to its base prompts, and the rewritings they came from (of fresh ones: none).

    Of the usable rewritings as many are drawn at random as another arm takes fresh prompts.
    """
    if this.arm.startswith("fresh"):
        return this.prompts["fresh"], []
    parents = base.prompts if this.arm == "evolve_then_select" else find_promising(base, this.settings.select_ratio)

    def ask(requests: list[str]) -> list[str]:
        drawn = sample_answers(this.models, this.policy, requests, 1, this.settings, this.compute, this.cache)
        return [answers[0] for answers in drawn]

    attempts = evolve_prompts(parents, ask, this.known, this.settings.length_factor)
    prompts = collect_prompts(attempts)
    drawn = draw_places([p.text for p in prompts], this.settings.fresh_prompts, this.settings.seed, "evolved")
    return [prompts[place] for place in drawn], attempts


def find_promising(base: Played, ratio: float) -> list[Prompt]:
    """Return the prompts of the pairs with the largest potential, floor(ratio * pairs) of them, at least one."""
    best = base.pairs.table.take(pa.array(find_best(base.pairs, max(int(ratio * len(base.pairs) + 1e-9), 1))))
    texts = {row[-1]["content"] for row in best["prompt"].to_pylist()}
    return [prompt for prompt in base.prompts if prompt.text in texts]


def build_training_set(this: Round, base: Played, more: Played) -> PairSet:
    """Put the first base pairs and those of the candidates that the arm selects together, as many as the budget says.

    Returns:
        The pairs, with a column `part` ("base" or "added"); their books count every prompt that was asked.

    Raises:
        KarmaError: no pair came out.
    """
    n_added, ids = this.settings.added_pairs, more.pairs.table["row_id"].to_pylist()
    by_lot = this.arm == "fresh_random"
    added = (
        draw_places(ids, n_added, this.settings.seed, "selected")
        if by_lot
        else find_best(more.pairs, n_added, this.arm)
    )
    kept = [
        take_pairs(base.pairs, np.arange(min(this.settings.base_pairs, len(base.pairs)))),
        take_pairs(more.pairs, added),
    ]
    books = join_books(kept)
    if not books.pairs_out:
        raise KarmaError(f"no prompt gave a pair ({dict(books.dropped)}): raise self_play.samples or temperature")
    books.settings = {key: this.settings.as_dict()[key] for key in _RECORDED} | {
        "arm": this.arm, "round": this.number, "candidates": len(more.pairs)}  # fmt: skip
    tables = [
        part.table.append_column("part", pa.repeat(pa.scalar(name), len(part)))
        for name, part in zip(("base", "added"), kept, strict=True)
    ]
    return PairSet(pa.concat_tables(tables), books)


_RECORDED = ("prompts", "scorer", "scorer_model", "samples", "temperature", "top_p", "weight", "seed")


def find_shortfalls(this: Round, pairs: PairSet) -> list[str]:
    """Say where a part of the training set is smaller than its budget, so that arms would not be equal."""
    parts = pairs.table["part"].to_pylist()
    found = {"base": parts.count("base"), "added": parts.count("added"),
             "candidate": pairs.accounting.settings["candidates"]}  # fmt: skip
    wanted = {part: getattr(this.settings, f"{part}_pairs") for part in found}
    return [f"{found[part]} {part} pairs, but self_play.{part}_pairs is {n}: other arms may have more"
            for part, n in wanted.items() if found[part] < n]  # fmt: skip


def train_round(this: Round, pairs: PairSet, held_out: Played) -> dict[str, Any]:
    """Save the pairs, train the round's policy on them, and return what training.json holds."""
    from karma.training.run import describe_run
    from karma.training.train import train

    command = f"karma notebook 08_self_play EXPERIMENT -p policy={this.start} -p arm={this.arm} -p round={this.number}"
    save_pairs(pairs, this.folder, command)
    run = describe_run(pairs.table, this.models, this.policy, this.settings.method, this.settings.seed, this.training,
                       this.compute, this.folder, code=this.code)  # fmt: skip
    return train(run, pairs.table, held_out.pairs.table, siblings=[this.folder])


def evaluate_policy(this: Round, policy: str, models: Specs, held_out: Played) -> dict[str, Any]:
    """Measure a policy on held-out prompts, which no round trains on or evolves from.

    Args:
        this: the round. policy, models: who is measured.
        held_out: the untrained policy's play on the held-out prompts.

    Returns:
        score: the mean over prompts of the mean score of the answers, with its standard error over prompts, n prompts
        and 95 % interval, and `by_prompt`; preference: held-out preference as in 04 and 07 (`karma.training.held_out`),
        the share of held-out pairs whose log-probabilities moved towards the chosen answer since the untrained policy
        (ties count half), with n and interval.
    """
    import torch

    from karma.training.held_out import summarise_margins

    held = replace(this, models=models)
    _, scores = answer(held, policy, held_out.prompts)
    by_prompt = np.array([np.mean(own) for own in scores])
    pairs, how = held_out.pairs.table, (this.training.max_length, this.compute, this.cache)
    now, before = (compute_summed_margins(pairs, models, name, *how) for name in (policy, this.start))
    preference = summarise_margins(torch.tensor(now - before))
    return {"score": summarise_scores(by_prompt, this.settings.scorer == "instructions"),
            "preference": preference, "by_prompt": by_prompt.round(6).tolist()}  # fmt: skip


def summarise_scores(by_prompt: np.ndarray, is_share: bool = False) -> dict[str, Any]:
    """Average over prompts, with the standard error of that mean and a 95 % interval (a share's stays in 0 to 1).

    Example:
        >>> found = summarise_scores(np.array([0.0, 0.5, 1.0, 0.5]))
        >>> found["value"], found["n"], round(found["standard_error"], 3)
        (0.5, 4, 0.204)
    """
    found, n = compute_mean(by_prompt), len(by_prompt)
    value, error = found["value"], found["standard_error"]
    low, high = compute_wilson(value, n, error) if is_share else (found["low"], found["high"])
    return {"value": value, "standard_error": error, "n": n, "interval": [low, high]}


def save_round(
    this: Round, pairs: PairSet, attempts: list[Attempt], start: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """Write self_play.json (the round in numbers) and evolution.json (every rewriting with its verdict).

    Args:
        this: the round. pairs: trained on. attempts: of prompt evolution.
        start, after: `evaluate_policy` of the untrained policy, and of the one this round trained.

    Returns:
        What self_play.json holds.
    """
    difference = np.array(after["by_prompt"]) - np.array(start["by_prompt"])
    parts = pairs.table["part"].to_pylist()
    record = {
        "policy": this.start, "arm": this.arm, "round": this.number, "scorer": this.settings.scorer,
        "method": this.settings.method, "n_base_pairs": parts.count("base"), "n_added_pairs": parts.count("added"),
        "n_candidates": pairs.accounting.settings["candidates"],
        "shortfalls": find_shortfalls(this, pairs), "evolution": count_attempts(attempts), "start": start,
        "after": after, "difference": summarise_scores(difference),
    }  # fmt: skip
    rows = [
        {"strategy": a.strategy, "before": a.prompt.topic, "after": a.topic, "verdict": a.verdict} for a in attempts
    ]
    save_json(rows, this.folder / "evolution.json")
    save_json(record, this.folder / "self_play.json")
    return record
