"""What pairing by the affinity of responses does to labels, beside pairing by the kinship of models: an ablation.

The same judged models, sets and prompts, one pick a set and prompt. `affinity` is taken with quality by S_pref, without
quality (complexity alone), by S_pref alone, and with the judged values themselves as quality; beside it `k_sim` (the
nearest kin) and `random` (any eligible kin). Every label is S_pref's. Decision: gaps in length and readability
stand beside label accuracy, since they are what affinity is made to narrow: that they are small shows no more than that
it does what it says; whether its labels are right as well is the question.
Limit: with the judged values as quality the judged gap is small by construction, and decided pairs are few.

Paper: ours; its summary speaks of responses of comparable complexity and quality.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from karma.labels.audit import COLUMNS as ACCURACY
from karma.labels.comparisons import Comparisons
from karma.labels.sets import Picks, Sets, measure_picks, pick_in_prompts
from karma.pool.affinity import TRAITS, Traits
from karma.strategies import Candidates, choose_by_kinship

GAPS = ("mean_length_gap", "mean_readability_gap")  # doublings of characters, school grades
COLUMNS = ["strategy", "quality", "weight", *ACCURACY[1:-1], *GAPS]
BY_CONSTRUCTION = "judged values"


@dataclass(frozen=True)
class Variant:
    """One row: a strategy, and of affinity what quality is and how much it weighs."""

    strategy: str
    quality: str = ""
    weight: float = np.nan


VARIANTS = (
    Variant("affinity", "S_pref", 0.5), Variant("affinity", "none", 0.0), Variant("affinity", "S_pref", 1.0),
    Variant("affinity", BY_CONSTRUCTION, 0.5), Variant("k_sim"), Variant("random"),
)  # fmt: skip


def compare_affinities(comparisons: Comparisons, sets: Sets, *, tie: float, tau: float, seed: int) -> pd.DataFrame:
    """Return affinity.csv: COLUMNS, a row a variant.

    Args:
        comparisons: of judged models, whose judgments know the traits of the texts. sets: from `list_sets`.
        tie: judged values this close are equal. tau: least kinship of an eligible pair. seed: of draws.

    Returns:
        Counts, accuracy with its interval and gaps as in strategies.csv; mean gaps in length and in readability over
        the same pairs. Empty where no text was measured.
    """
    judgments, rows = comparisons.judgments, []
    if judgments.complexity is None or judgments.values is None:
        return pd.DataFrame(columns=COLUMNS)
    for variant in VARIANTS:
        quality = judgments.values if variant.quality == BY_CONSTRUCTION else None
        picks = _pick(comparisons, sets, variant, quality, tau, seed)
        found = measure_picks(comparisons, sets, picks, tie)
        rows.append({**vars(variant), **found, **_measure_gaps(comparisons, picks)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _pick(
    comparisons: Comparisons, sets: Sets, variant: Variant, quality: np.ndarray | None, tau: float, seed: int
) -> Picks:
    complexity = comparisons.judgments.complexity
    assert complexity is not None

    def choose(candidates: Candidates, prompt: np.ndarray):  # type: ignore[no-untyped-def]
        model = candidates.model
        known = comparisons.s_pref[model] if quality is None else quality[prompt, model]
        traits = Traits(complexity[prompt, model], known, variant.weight)
        whole = replace(candidates, traits=traits)
        return choose_by_kinship(variant.strategy, whole, comparisons.s_pref, comparisons.kinship, tau)

    return pick_in_prompts(comparisons, sets, choose, seed)


def _measure_gaps(comparisons: Comparisons, picks: Picks) -> dict[str, float]:
    judgments = comparisons.judgments
    assert judgments.complexity is not None and picks.prompt is not None
    sides = [comparisons.pairs[side].to_numpy()[picks.pair] for side in ("chosen", "rejected")]
    one, other = (judgments.complexity[picks.prompt, side] for side in sides)
    gap = np.abs(one - other)
    means = (gap[:, TRAITS.index("length")].mean() / np.log(2), np.nanmean(gap[:, TRAITS.index("readability")]))
    return dict(zip(GAPS, map(float, means), strict=True)) if len(gap) else dict.fromkeys(GAPS, np.nan)


def describe_affinities(found: pd.DataFrame) -> list[str]:
    """Say in a line each what a variant gives: label accuracy with its interval, and gaps."""
    lines = []
    for _, row in found.iterrows():
        by = f" (quality: {row['quality']}, weight {row['weight']:g})" if row["quality"] else ""
        told = f"{row['label_accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {row['n_decided']:,} decided"
        lines.append(f"by texts, {row['strategy']}{by}: {told if row['n_decided'] else 'nothing decided'}; judged gap "
                     f"{row['mean_truth_gap']:.3f}, lengths {row['mean_length_gap']:.2f} doublings apart, readability "
                     f"{row['mean_readability_gap']:.1f} grades")  # fmt: skip
    return lines
