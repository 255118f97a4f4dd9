"""What the paper's numbers rest on: how many items, how much noise, and data sets that are one and the same.

A share printed to four digits betrays its number of items: only some n make all the values whole numbers
of n. And if pairs are chosen per prompt, as here, K_score and K_(score,sim) always choose the same answer, so that
their SFT data are one set, and the difference of the two printed SFT columns is noise, measured by the paper itself.
Limits: an inferred n is the smallest that fits; its multiples fit as well. The paper does not say how pairs are chosen:
chosen once for all prompts, or by scores of single responses, the two sets differ, and so may their columns.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from karma.kinship.similarity import compute_kinship
from karma.results.estimates import compute_mean
from karma.results.published import MOST_ITEMS, find_items, load_printed, normalise_benchmark
from karma.results.study import Study
from karma.scores.normalise import compute_s_pref
from karma.scores.table import ScoreTable, load_benchmarks
from karma.statistics.intervals import compute_wilson
from karma.strategies import build_sets, choose_in_sets
from karma.study.experiment import load_base

FOUR_OPTIONS = ["mmlu_stem", "arc_easy", "arc_challenge"]
ULTRAFEEDBACK_ROWS = 63_967
BATCH_PAIRS = 96  # 6 a device x 4 accumulated x 4 devices (Appendix A)
Row = dict[str, str]


def audit_noise(study: Study, table: ScoreTable) -> Iterator[Row]:
    """Yield the audited statements about chance, items, noise and warm-up.

    Args:
        study: the published one. table: Table 3.
    """
    yield from _audit_sft(study)
    yield from _audit_items()
    yield from _audit_overlap(study, table)
    yield from _audit_warmup()


def build_row(claim: str, where: str, paper: str, recomputed: str, verdict: str) -> Row:
    """Return one audited statement."""
    return {"claim": claim, "where": where, "paper": paper, "recomputed": recomputed, "verdict": verdict}


def count_fractions(values: pd.Series, n: int) -> int:
    """Return how many four-digit `values` can be a whole number of `n` items.

    Example:
        >>> count_fractions(pd.Series([0.3333, 0.5, 0.123]), 6)
        2
    """
    nearest = (values * n).round() / n
    return int(((nearest - values).abs() <= 0.00005 + 1e-12).sum())


def _audit_sft(study: Study) -> Iterator[Row]:
    sft = study.results[study.results["method"] == "sft"]
    four = sft[sft["benchmark"].isin(FOUR_OPTIONS)]
    found = compute_mean(study, four)
    bounds = [compute_wilson(v, n) for v, n in zip(four["value"], four["n"], strict=True)]
    inside = sum(low <= 0.25 <= high for low, high in bounds)
    low, high = found.interval
    yield build_row(
        "SFT lifts the policies above chance",
        "Table 4",
        "not stated",
        f"mean {found.value:.3f} [{low:.3f}, {high:.3f}] on four-option questions, chance 0.250; "
        f"{inside} of {len(four)} cells' intervals hold chance",
        "at chance" if low <= 0.25 <= high else "not at chance",
    )


def _audit_items() -> Iterator[Row]:
    table, known = load_printed("table4"), load_benchmarks()["n_items"]
    for (spelling, method), rows in table.groupby(["benchmark", "method"], sort=False):
        name, values = normalise_benchmark(spelling), rows.iloc[:, 3:].astype(float).stack()
        n, whole = find_items()[name, method.lower()], int(known[name])
        found = "no count explains them" if n is None else _count_fit(values, n)
        if n != whole < MOST_ITEMS:
            found += f"; the whole benchmark, {_count_fit(values, whole)}"
        part = "the" if n == whole else "not the"
        verdict = "unknown" if n is None else f"inferred: {part} whole benchmark"
        yield build_row(f"Items behind {spelling}, {method}", "Table 4", "not stated", found, verdict)


def _count_fit(values: pd.Series, n: int) -> str:
    luck = n * 1e-4 * len(values)  # of four-digit numbers, those that are fractions of n
    return f"n = {n}: {count_fractions(values, n)} of {len(values)} fit (by luck {luck:.1f})"


def _audit_overlap(study: Study, table: ScoreTable) -> Iterator[Row]:
    same_chosen, same_pair, sets = count_overlap(table)
    yield build_row(
        "K_score and K_(score,sim) are different data sets",
        "section 2.3",
        "two data sets",
        f"same chosen answer in {same_chosen} of {sets} sets of four, same pair in {same_pair / sets:.0%}",
        "one SFT set under two names, if chosen per prompt" if same_chosen == sets else "different",
    )
    wide = study.results[study.results["method"] == "sft"]
    wide = wide.pivot(index=["policy", "benchmark"], columns="strategy", values="value")
    noise, other = (wide["k_score"] - wide[s] for s in ("k_score_sim", "rlaif"))
    as_large = noise.abs().mean() >= 0.9 * other.abs().mean()
    yield build_row(
        "The same SFT data (if pairs are chosen per prompt) give the same scores",
        "Table 4",
        "not stated",
        f"mean |difference| {noise.abs().mean():.3f}, largest {noise.abs().max():.3f}; "
        f"K_score against RLAIF: {other.abs().mean():.3f}",
        "noise floor is as large as the effect" if as_large else "below the effect",
    )


def count_overlap(table: ScoreTable) -> tuple[int, int, int]:
    """Return (same chosen, same pair, sets) of k_score and k_score_sim over sets of four origin models."""
    tau, sets = load_base().kinship.tau, build_sets(len(table.scores), 4, np.random.default_rng(0))
    values = compute_s_pref(table).to_numpy(), compute_kinship(table).to_numpy()
    score, score_sim = (choose_in_sets(*values, sets, s, tau) for s in ("k_score", "k_score_sim"))
    return int((score[:, 0] == score_sim[:, 0]).sum()), int((score == score_sim).all(axis=1).sum()), len(sets)


def _audit_warmup() -> Iterator[Row]:
    updates, warmup = ULTRAFEEDBACK_ROWS // BATCH_PAIRS, load_base().training.warmup_steps
    yield build_row(
        "One epoch with 500 warm-up steps",
        "Appendix A",
        f"{warmup} updates",
        f"{warmup / updates:.0%} of one epoch ({ULTRAFEEDBACK_ROWS:,} / {BATCH_PAIRS} = {updates} updates)",
        "the full rate is reached late" if warmup > 0.5 * updates else "usual",
    )
