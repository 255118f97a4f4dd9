"""How far sampling error reaches: intervals of S_pref and kinship, coin-flip preferences, sure labels, other picks.

Each score is a share of n items. The parametric bootstrap draws every cell anew from Binomial(n, score) / n,
min-max normalises the drawn table and repeats the calculation. Noise turns two models' scores apart, so that drawn
kinship lies below the measured one as that lies below the true one: an interval of kinship reaches as far above the
measured value as the draws do below it (as angles). How often intervals hold the truth is simulated in
tests/test_coverage.py. For the paper's Table 3 the n are an assumption (the full benchmarks); a subset would widen
every interval. Limit: items count as independent, though several IFEval instructions share a prompt; a score of exactly
0 or 1 is drawn without error; and only sampling error is covered, not the wording of prompts or answers that could not
be extracted.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.kinship.similarity import (
    MAX_SQUARE,
    build_rows,
    compare_rows,
    compute_kinship,
    list_pairs,
    list_weights,
)
from karma.scores.names import canonical_model_name
from karma.scores.normalise import DECIMALS, compute_s_pref
from karma.scores.table import ScoreTable
from karma.statistics.intervals import quantiles
from karma.strategies import choose_in_sets
from karma.vocabulary import KINSHIP_STRATEGIES

MAX_CELLS = 20_000_000  # of the bootstrap: draws x models x models, 160 MB
COIN_FLIP = 0.1  # a preference this likely to flip, or likelier, is called a coin flip


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Redrawn score tables.

    Attributes:
        s_pref: draws x n models.
        kinship: draws x n x n, by the table's measure.
        n_discarded: draws left out, because all models were equal on a benchmark and min-max undefined.
    """

    s_pref: np.ndarray
    kinship: np.ndarray
    n_discarded: int


def draw_tables(table: ScoreTable, rng: np.random.Generator, n_draws: int = 2000) -> Bootstrap:
    """Redraw a table's scores within their sampling error and repeat Eq. 1 and Eq. 2.

    Args:
        table: n models, with the number of items behind each benchmark.
        rng: draws the scores.
        n_draws: how many tables.

    Raises:
        InputError: the number of items is unknown, or no draw could be normalised.
    """
    normalized = _draw_normalized(table, rng, n_draws)
    rows = build_rows(normalized, table.measure, list_weights(table))
    return Bootstrap(normalized.mean(axis=2), compare_rows(rows, rows, table.measure), n_draws - len(normalized))


def limit_draws(n_models: int, n_draws: int = 2000) -> int:
    """Return how many tables to draw, so that large ones fit the memory.

    Example:
        >>> limit_draws(16), limit_draws(4000)
        (2000, 100)
    """
    return min(n_draws, max(100, MAX_CELLS // n_models**2))


def _draw_normalized(table: ScoreTable, rng: np.random.Generator, n_draws: int) -> np.ndarray:
    """Return the redrawn and normalised scores, usable draws x models x benchmarks."""
    if table.n_items is None:
        raise InputError(f"{table.source}: sampling error needs n_items of each benchmark: add it to the column map")
    n = np.array([table.n_items[b] for b in table.scores])
    drawn = rng.binomial(n, table.scores.to_numpy(dtype=float), size=(n_draws, *table.scores.shape)) / n
    low, span = drawn.min(axis=1, keepdims=True), np.ptp(drawn, axis=1, keepdims=True)
    usable = (span > 0).all(axis=(1, 2))
    if not usable.any():
        raise InputError(f"{table.source}: in every redrawn table a benchmark is constant: ask more items")
    return np.asarray((drawn[usable] - low[usable]) / span[usable])


def compute_s_pref_intervals(table: ScoreTable, draws: Bootstrap) -> pd.DataFrame:
    """Return each model's S_pref with its interval: columns s_pref, low, high, in [0, 1]."""
    low, high = quantiles(draws.s_pref)
    return compute_s_pref(table).to_frame().assign(low=low, high=high)


def compute_pair_uncertainty(table: ScoreTable, draws: Bootstrap, tau: float) -> pd.DataFrame:
    """Return every pair with the interval of its kinship and the probability that its preference flips.

    Returns:
        The rows of `list_pairs`, and kinship_low, kinship_high; p_flip: the share of draws in which the
        other model has the higher S_pref (equal counts half); p_other_side: the share in which the pair is
        on the other side of tau; coin_flip: p_flip >= 0.1.
    """
    pairs = list_pairs(table, tau)
    place = {model: i for i, model in enumerate(table.scores.index)}
    one, other = (pairs[c].map(place).to_numpy() for c in ("chosen", "rejected"))
    cosine = draws.kinship[:, one, other]
    low, high = _reach_back(cosine, pairs["kinship"].to_numpy(), -1 if table.measure == "centred_cosine" else 0)
    flips = _compute_lower_share(draws.s_pref[:, one], draws.s_pref[:, other])
    crosses = ((cosine >= tau) != pairs["eligible"].to_numpy()).mean(axis=0)
    return pairs.assign(kinship_low=low, kinship_high=high, p_flip=flips, p_other_side=crosses,
                        coin_flip=flips >= COIN_FLIP)  # fmt: skip


def _compute_lower_share(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the share of draws (first axis) in which one is below the other; equal ones count half."""
    return np.asarray((one < other).mean(axis=0) + (one == other).mean(axis=0) / 2)


def compute_label_confidence(table: ScoreTable, seed: int = 0) -> pd.DataFrame:
    """Return the probability that the label of each two models' pair is right, from sampling error alone.

    The label of a pair goes by S_pref; its confidence is the share of redrawn tables in which the same model leads,
    1 - p_flip. Limit: says nothing of whether the better model's response is the better one (`karma audit-labels`).

    Args:
        table: n models, with the number of items behind each benchmark.
        seed: of the draws, which do not depend on the order of models or benchmarks.

    Returns:
        n x n, symmetric, in [0, 1], names on both axes; .5 where S_pref is equal.

    Raises:
        InputError: as `draw_tables`; or more models than a square table is made of.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> sure = compute_label_confidence(load_score_table("paper"))
        >>> sure.loc["GPT-4", ["Alpaca-7b", "GPT-4"]].tolist()
        [1.0, 0.5]

    Paper: ours; Eq. 3 makes the label.
    """
    names = sorted(table.scores.index, key=lambda name: (canonical_model_name(str(name)), str(name)))
    if len(names) > MAX_SQUARE:
        raise InputError(f"{table.source}: label confidence of {len(names):,} models is not computed: keep the pool's "
                         f"own, at most {MAX_SQUARE}, in the table")  # fmt: skip
    ordered = replace(table, scores=table.scores.loc[names, sorted(table.scores)])
    drawn = _draw_normalized(ordered, np.random.default_rng(seed), limit_draws(len(names))).mean(axis=2)
    higher = np.stack([_compute_lower_share(drawn, one[:, None]) for one in drawn.T])  # [i, j]: i leads j
    measured = compute_s_pref(ordered).to_numpy().round(DECIMALS)
    leads, trails = (compare.outer(measured, measured) for compare in (np.greater, np.less))
    confidence = np.where(leads, higher, np.where(trails, higher.T, 0.5))
    return pd.DataFrame(confidence, names, names).loc[table.scores.index, table.scores.index]


def _reach_back(drawn: np.ndarray, measured: np.ndarray, least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of drawn cosines, at least `least`, joined with its mirror image at the measured ones.

    Mirrored are angles. Other measures lie in [0, 1] as well and are treated alike; their coverage is not simulated.
    """
    low, high = quantiles(drawn)
    centre, near, far = (np.arccos(np.clip(values, least, 1)) for values in (measured, high, low))
    mirrored = np.cos(np.minimum(2 * centre - near, np.arccos(least))), np.cos(np.maximum(2 * centre - far, 0))
    return np.minimum(low, mirrored[0]), np.maximum(high, mirrored[1])


def compute_choice_uncertainty(
    table: ScoreTable, draws: Bootstrap, sets: np.ndarray, tau: float, max_draws: int = 200
) -> pd.DataFrame:
    """Return how often sampling error alone makes a strategy pick another pair.

    Args:
        table: n models.
        draws: redrawn tables; at most `max_draws` of them are used for the sets.
        sets: k x c, positions of the models that answered a prompt.
        tau: lowest kinship of an eligible pair.

    Returns:
        strategy -> p_other_overall (among all models at once), p_other_in_sets and p_other_chosen_in_sets
        (mean over the sets: another pair; another chosen response).
    """
    everyone = np.arange(len(table.scores))[None, :]
    kinship = compute_reference(table)
    rows = {}
    for strategy in KINSHIP_STRATEGIES:
        overall = choose_in_sets(*kinship, everyone, strategy, tau)
        inside = choose_in_sets(*kinship, sets, strategy, tau)
        picks = [
            choose_in_sets(s, k, everyone, strategy, tau) for s, k in zip(draws.s_pref, draws.kinship, strict=True)
        ]
        few = zip(draws.s_pref[:max_draws], draws.kinship[:max_draws], strict=True)
        again = [choose_in_sets(s, k, sets, strategy, tau) for s, k in few]
        rows[strategy] = {
            "p_other_overall": np.mean([(p != overall).any() for p in picks]),
            "p_other_in_sets": np.mean([(p != inside).any(axis=1) for p in again]),
            "p_other_chosen_in_sets": np.mean([p[:, 0] != inside[:, 0] for p in again]),
        }
    return pd.DataFrame(rows).T.rename_axis("strategy")


def compute_reference(table: ScoreTable) -> tuple[np.ndarray, np.ndarray]:
    """Return S_pref (n) and kinship (n x n) of the table as it stands."""
    return compute_s_pref(table).to_numpy(), compute_kinship(table).to_numpy()
