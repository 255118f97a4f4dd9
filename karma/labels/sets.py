"""Label accuracy by strategy: what each rule picks in sets of models that answered a prompt, and how often it is right.

A pool holds a few responses a prompt (UltraFeedback: four), so a strategy's pair is one within such a set. Of the
models that have a judged response to a prompt all sets of four count, or 5,000 drawn by seed where there are more
(`karma.strategies.build_sets`); every strategy meets the same sets. Picks that hang on scores alone are made once a set
(`choose_in_sets`); `length` (the longest response against the shortest) and `rlaif` (`choose_by_annotation`) once a set
and prompt. `random` is its mean over all pairs of the set, without a draw and without tau. Where the scores' sampling
error is known, `k_sure` picks among surely labelled pairs and `min_confidence` drops the picks of k_sim that are less
sure (as `pairs.min_confidence` of a study would), both at .95. Decision: a pick counts as
`n_pairs` where its pair is judged at all, which votes on some pairs leave open. Limit: sets overlap, so n is no measure
of what is known; the intervals leave out one model, with all sets it is in, at a time.

Paper: section 2.3 (strategies); delta: arXiv 2507.06187. The audit is ours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from xxhash import xxh3_64_intdigest

from karma.labels.audit import COLUMNS
from karma.labels.comparisons import Comparisons, sum_clusters
from karma.pool.draws import compute_draws
from karma.statistics.intervals import compute_comparison_share
from karma.strategies import (
    RULES,
    SURE,
    SURE_ONLY,
    Candidates,
    Choice,
    build_sets,
    choose_by_annotation,
    choose_in_sets,
)

SET_SIZE = 4
ORDER = ("k_score", "k_sim", "k_score_sim", "delta", "random", "least_kin", "k_sure", "min_confidence", "length",
         "rlaif")  # fmt: skip
_CHUNK = 200_000  # sets looked at together: some 100 MB


@dataclass(frozen=True, eq=False)
class Sets:
    """Sets of models, for each pattern of who answered.

    Attributes:
        members: (sets, size), positions of models. pattern: (sets,), whose sets they are.
        pattern_of: (prompts,), the prompt's pattern; -1 where fewer than `size` models answered.
    """

    members: np.ndarray
    pattern: np.ndarray
    pattern_of: np.ndarray


@dataclass(frozen=True, eq=False)
class Picks:
    """What one strategy picked.

    Attributes:
        members: (picks, size), the models of its set. pattern: (picks,), the set's.
        pair: (picks,), rows of Comparisons.pairs. sign: 1 where it chose as S_pref does, else -1.
        prompt: (picks,), the prompt; None: the same pick in every prompt of the pattern.
    """

    members: np.ndarray
    pattern: np.ndarray
    pair: np.ndarray
    sign: np.ndarray
    prompt: np.ndarray | None = None


def list_sets(answered: np.ndarray, seed: int) -> Sets:
    """Return the sets of four of each prompt; of fewer where no prompt has four answers.

    Args:
        answered: prompts x models. seed: of the draw where there are more than 5,000.

    Example:
        >>> sets = list_sets(np.array([[True, True, True, True, True], [True, True, True, True, False]]), seed=0)
        >>> len(sets.members), sets.pattern_of.tolist(), int((sets.pattern == 0).sum())
        (6, [1, 0], 1)
    """
    size = min(SET_SIZE, int(answered.sum(axis=1).max(initial=0)))
    patterns, pattern_of = np.unique(answered, axis=0, return_inverse=True)
    members, owner = [np.zeros((0, size), int)], [np.zeros(0, int)]
    for number, pattern in enumerate(patterns):
        models = np.flatnonzero(pattern)
        if len(models) < size or size < 2:
            continue
        found = models[build_sets(len(models), size, np.random.default_rng([seed, *models.tolist()]))]
        members.append(found)
        owner.append(np.full(len(found), number))
    enough = patterns.sum(axis=1) >= max(size, 2)
    return Sets(
        np.concatenate(members), np.concatenate(owner), np.where(enough[pattern_of.ravel()], pattern_of.ravel(), -1)
    )


def pick_all(comparisons: Comparisons, sets: Sets, tau: float, seed: int) -> dict[str, Picks]:
    """Return the picks of every strategy that the source allows, in ORDER.

    Args:
        comparisons: of the models. sets: of the prompts. tau: least kinship of an eligible pair. seed: of draws.
    """
    known = comparisons.confidence is not None
    by_scores = [name for name in ORDER if name in RULES and name != "random" and (known or name not in SURE_ONLY)]
    found = {name: _pick_by_scores(comparisons, sets, name, tau) for name in by_scores}
    found["random"] = _pick_every(comparisons, sets)
    if known:
        found["min_confidence"] = _keep_sure(comparisons, found["k_sim"])
    judgments = comparisons.judgments
    if np.isfinite(judgments.lengths).any():
        found["length"] = _pick_by_response(comparisons, sets, judgments.lengths, "worst", seed)
    if judgments.annotations is not None:
        found["rlaif"] = _pick_by_response(comparisons, sets, judgments.annotations, "random_lower", seed)
    return {name: found[name] for name in ORDER if name in found}


def _pick_by_scores(comparisons: Comparisons, sets: Sets, strategy: str, tau: float) -> Picks:
    parts = [
        choose_in_sets(comparisons.s_pref, comparisons.kinship, sets.members[k : k + _CHUNK], strategy, tau,
                       comparisons.confidence)
        for k in range(0, len(sets.members), _CHUNK)
    ]  # fmt: skip
    chosen = np.concatenate(parts) if parts else np.zeros((0, 2), int)
    kept = chosen[:, 0] >= 0
    pair = comparisons.pair_of[chosen[kept, 0], chosen[kept, 1]]
    return Picks(sets.members[kept], sets.pattern[kept], pair, np.ones(len(pair)))


def _keep_sure(comparisons: Comparisons, picks: Picks) -> Picks:
    assert comparisons.confidence is not None and picks.prompt is None
    one, other = (comparisons.pairs[side].to_numpy()[picks.pair] for side in ("chosen", "rejected"))
    sure = comparisons.confidence[one, other] >= SURE
    return Picks(picks.members[sure], picks.pattern[sure], picks.pair[sure], picks.sign[sure])


def _pick_every(comparisons: Comparisons, sets: Sets) -> Picks:
    one, other = np.triu_indices(sets.members.shape[1], 1)
    pair = comparisons.pair_of[sets.members[:, one], sets.members[:, other]]
    kept = comparisons.has_preference[pair]
    owner = np.broadcast_to(np.arange(len(sets.members))[:, None], pair.shape)[kept]
    return Picks(sets.members[owner], sets.pattern[owner], pair[kept], np.ones(int(kept.sum())))


def _pick_by_response(comparisons: Comparisons, sets: Sets, grid: np.ndarray, rejected: str, seed: int) -> Picks:
    def choose(candidates: Candidates, prompt: np.ndarray) -> Choice:
        return choose_by_annotation(replace(candidates, annotation=grid[prompt, candidates.model]), rejected)

    return pick_in_prompts(comparisons, sets, choose, seed)


def pick_in_prompts(
    comparisons: Comparisons, sets: Sets, choose: Callable[[Candidates, np.ndarray], Choice], seed: int
) -> Picks:
    """Return the picks of a rule that looks at responses: one a set and prompt.

    Args:
        comparisons: of the models. sets: of the prompts. seed: of draws.
        choose: candidates without annotations, and the prompt of each -> what the rule decides.
    """
    judgments = comparisons.judgments
    prompt_keys, model_keys = _hash(judgments.prompts), _hash(judgments.models)
    size, parts = sets.members.shape[1], []
    for prompts, chosen_sets in _list_chunks(sets):
        members = sets.members[chosen_sets]
        at, model = np.repeat(prompts, size), members.ravel()
        draw = compute_draws(seed, "response", prompt_keys[at], model_keys[model])
        row = np.repeat(np.arange(len(prompts)), size)
        choice = choose(Candidates(len(prompts), row, model, draw, np.full(len(row), np.nan)), at)
        best, worst = model[choice.chosen], model[choice.rejected]
        pair = comparisons.pair_of[best, worst]
        sign = np.where(comparisons.pairs["chosen"].to_numpy()[pair] == best, 1, -1)
        own = chosen_sets[choice.row]
        parts.append((members[choice.row], sets.pattern[own], pair, sign, prompts[choice.row]))
    if not parts:
        return Picks(np.zeros((0, size), int), *(np.zeros(0, int) for _ in range(4)))
    return Picks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _hash(names: list[str]) -> np.ndarray:
    return np.array([xxh3_64_intdigest(name.encode("utf-8", "replace")) for name in names], np.uint64)


def _list_chunks(sets: Sets) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (prompt, set) of every set of every prompt, some at a time."""
    of_pattern = {int(p): np.flatnonzero(sets.pattern == p) for p in np.unique(sets.pattern)}
    prompts, chosen, n = [], [], 0
    for prompt, pattern in enumerate(sets.pattern_of):
        if pattern < 0:
            continue
        own = of_pattern[int(pattern)]
        prompts.append(np.full(len(own), prompt))
        chosen.append(own)
        n += len(own)
        if n >= _CHUNK:
            yield np.concatenate(prompts), np.concatenate(chosen)
            prompts, chosen, n = [], [], 0
    if prompts:
        yield np.concatenate(prompts), np.concatenate(chosen)


def measure_picks(comparisons: Comparisons, sets: Sets, picks: Picks, tie: float) -> dict[str, float | int]:
    """Return a strategy's counts, accuracy and gaps: COLUMNS of `karma.labels.audit` but strategy and judge_calls."""
    margin, gap = comparisons.margin, comparisons.pairs["gap"].to_numpy()
    n_models, size = len(comparisons.s_pref), picks.members.shape[1]
    if picks.prompt is None:  # the same in every prompt of a pattern: add up prompts first
        weights = np.zeros((int(sets.pattern.max(initial=-1)) + 2, margin.shape[1]))
        np.add.at(weights, (picks.pattern, picks.pair), 1)
        of_prompt = weights[sets.pattern_of]  # the last row, empty, for prompts without a set
        layers = {"n": np.isfinite(margin), "right": comparisons.find_right(tie),
                  "decided": comparisons.find_decided(tie), "truth": np.nan_to_num(margin)}  # fmt: skip
        by_prompt = {name: (layer * of_prompt).sum(axis=1) for name, layer in layers.items()}
        total_gap = float((layers["n"] * of_prompt * gap).sum())
        by_model = {}
        for name in ("right", "decided"):
            summed = np.zeros_like(weights)
            np.add.at(summed, sets.pattern_of, layers[name])
            each = summed[picks.pattern, picks.pair]
            by_model[name] = np.bincount(picks.members.ravel(), np.repeat(each, size), n_models)
    else:
        value = picks.sign * margin[picks.prompt, picks.pair]
        flat = {
            "n": np.isfinite(value),
            "right": value > tie,
            "decided": np.abs(value) > tie,
            "truth": np.nan_to_num(value),
        }
        by_prompt = {name: np.bincount(picks.prompt, each, len(margin)) for name, each in flat.items()}
        total_gap = float((flat["n"] * picks.sign * gap[picks.pair]).sum())
        by_model = {name: np.bincount(picks.members.ravel(), np.repeat(flat[name].astype(float), size), n_models)
                    for name in ("right", "decided")}  # fmt: skip
    n = round(float(by_prompt["n"].sum()))
    right, decided = (sum_clusters(comparisons, by_prompt[name]) for name in ("right", "decided"))
    found = compute_comparison_share(right, decided, by_model["right"], by_model["decided"])
    return {"n_pairs": n, "n_decided": round(float(by_prompt["decided"].sum())), "label_accuracy": found["value"],
            "low": found["low"], "high": found["high"], "mean_s_pref_gap": total_gap / n if n else np.nan,
            "mean_truth_gap": float(by_prompt["truth"].sum()) / n if n else np.nan}  # fmt: skip


def measure_labelled(comparisons: Comparisons, pairs: pd.DataFrame, tie: float) -> dict[str, float | int]:
    """Return the same of pairs that a strategy labelled itself (a pair folder's): prompt, chosen, rejected, gap."""
    members = pairs[["chosen", "rejected"]].to_numpy(int)
    pair = comparisons.pair_of[members[:, 0], members[:, 1]]
    sign = np.where(comparisons.pairs["chosen"].to_numpy()[pair] == members[:, 0], 1, -1)
    picks = Picks(members, np.zeros(len(pair), int), pair, sign, pairs["prompt"].to_numpy(int))
    nothing = Sets(np.zeros((0, 2), int), np.zeros(0, int), np.zeros(0, int))
    return measure_picks(comparisons, nothing, picks, tie)


def measure_strategies(comparisons: Comparisons, picks: dict[str, Picks], sets: Sets, tie: float) -> pd.DataFrame:
    """Return strategies.csv: COLUMNS of `karma.labels.audit`; of pair folders, each set as it labels itself."""
    judgments = comparisons.judgments
    if judgments.labelled:
        rows = {name: measure_labelled(comparisons, frame, tie) for name, frame in judgments.labelled.items()}
    else:
        rows = {name: measure_picks(comparisons, sets, own, tie) for name, own in picks.items()}
    calls = 0 if judgments.annotations is None else int(np.isfinite(judgments.annotations).sum())
    table = [{"strategy": name, **row, "judge_calls": calls if name == "rlaif" else 0} for name, row in rows.items()]
    return pd.DataFrame(table, columns=COLUMNS)
