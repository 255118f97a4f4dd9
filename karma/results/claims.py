"""The paper's research questions as tests on a measured study: effect, interval, verdict, and the n it would take.

RQ2 and RQ3 are differences of accuracy, paired over the items and across seeds (`karma.results.estimates`); RQ1 and RQ4
are distances between origin models of one family against those of different families, with Mantel's permutation test
and an interval from redrawing each score within its sampling error. p-values are Holm-corrected within a question:
these are the paper's claims, where 02 explores every factor and corrects for all of them. Decision: four verdicts.
"Supported" and "contradicted" need a corrected p below ALPHA and the sign; "no difference larger than SMALLEST" needs
an interval, at the level corrected for the question's tests, that lies within it (equivalence); all else is "cannot
tell", with the n there is and the n that would show SMALLEST at the corrected level.
Limit: one seed holds no training noise, whatever n says.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from karma.figures.claims import VERDICTS, find_verdict
from karma.kinship.clusters import compute_distance, group_benchmarks
from karma.kinship.mantel import compute_mantel
from karma.results.estimates import (
    Estimate,
    compute_difference,
    compute_weighted,
)
from karma.results.published import compute_size
from karma.results.study import Study
from karma.scores.normalise import compute_normalized
from karma.scores.table import ScoreTable
from karma.statistics.intervals import compute_wilson, quantiles
from karma.statistics.verdicts import SMALLEST, adjust_holm, compute_needed_n, judge
from karma.vocabulary import BASELINE, CONTROLS, KINSHIP_STRATEGIES, RIVALS, START, title_of

N_DRAWS = 500  # redrawn score tables behind an interval of RQ1 and RQ4
COLUMNS = ["question", "claim", "effect", "low", "high", "p_holm", "n", "needed_n", "verdict", "basis"]


def test_claims(study: Study) -> pd.DataFrame:
    """Return every claim that can be put to this study.

    Args:
        study: measured, whole or not; a claim whose runs are missing says so.

    Returns:
        COLUMNS: effect and 95 % interval, not corrected, as a share (RQ1, RQ4: a distance in [0, 1]); needed_n: items
        that would show SMALLEST at 80 % power at the level corrected for the question's tests, by today's standard
        error.

    Paper: section 4 (RQ1-RQ4).
    """
    rows: list[dict] = []
    for question, found in {
        "RQ1": list(_test_grouping(study, ["total"])),
        "RQ2": list(_test_strategies(study)),
        "RQ3": list(_test_sizes(study)),
        "RQ4": list(_test_grouping(study, ["knowledge", "reasoning", "instruction following"])),
        "training": list(_test_training(study)),
    }.items():
        tested = [row for row in found if row["p"] is not None]
        for row, p in zip(tested, adjust_holm(np.array([row["p"] for row in tested])), strict=True):
            row["p_holm"] = p
            if row["standard_error"] and np.isfinite(row["standard_error"]):
                row["needed_n"] = compute_needed_n(row["n"], row["standard_error"], row["smallest"], len(tested))
            row["verdict"] = row["verdict"] or _judge(row, len(tested))
        rows += [{"question": question, **row} for row in found]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64", "needed_n": "Int64"})


test_claims.__test__ = False  # type: ignore[attr-defined]  # pytest: not a test


def describe_claims(claims: pd.DataFrame) -> dict[str, object]:
    """Return what the words beside the forest plot leave open: how many claims, of which verdicts, and SMALLEST.

    Args:
        claims: from `test_claims`.
    """
    found = claims["verdict"].map(find_verdict)
    counts = ", ".join(f"{name} {n}" for name in VERDICTS if (n := int((found == name).sum())))
    return {"n": len(claims), "counts": counts, "smallest": SMALLEST}


def _judge(row: dict, n_tests: int) -> str:
    """Put a test in words, at a level that holds for all of the question's tests at once (Holm, Bonferroni)."""
    more = f"{row['needed_n']:,} would show {row['smallest']}" if row["needed_n"] else ""
    size = f"n = {row['n']:,} {row['unit']}"
    return judge(row["effect"], row["p_holm"], row["bounds"](n_tests), row["smallest"], size, more)


def _record(claim: str, found: Estimate | None) -> dict:
    """Turn a difference of accuracies into a row."""
    if found is None:
        return _unknown(claim, "cannot tell: its runs are missing")
    low, high = found.interval
    exact = "as right on every item: exact; " if found.unchanged else ""
    basis = exact + found.basis + ("" if found.n_seeds > 1 else "; one seed: without training noise")
    return {"claim": claim, "effect": found.value, "low": low, "high": high, "p": found.p_value, "n": found.n,
            "needed_n": None, "verdict": "", "basis": basis, "smallest": SMALLEST, "unit": "items",
            "standard_error": found.standard_error, "bounds": found.compute_interval}  # fmt: skip


def _unknown(claim: str, why: str) -> dict:
    return {"claim": claim, "p": None, "verdict": why, "basis": ""}


def _test_strategies(study: Study) -> Iterator[dict]:
    """Compare each kinship strategy with RLAIF, and with the rival and the controls where those were trained."""
    trained = [s for s in KINSHIP_STRATEGIES if s in study.strategies]
    for rival in [r for r in [BASELINE, *RIVALS, *CONTROLS] if r in study.strategies]:
        for strategy in trained:
            claim = f"{study.title(strategy)} beats {study.title(rival)}"
            yield _record(claim, compute_difference(study, strategy, rival))
            both = [m for m in study.methods if not {(strategy, m), (rival, m)} & study.untrained]
            for method in both if rival == BASELINE else ():
                label = f"{claim}, {title_of(method)} only"
                yield _record(label, compute_difference(study, strategy, rival, method=method))


def _test_sizes(study: Study) -> Iterator[dict]:
    """Ask whether small policies gain more from K_score over K_sim than large ones (DPO)."""
    sizes = {p: compute_size(p) for p in study.policies}
    first, second = (study.same.get(name, name) for name in ("k_score", "k_sim"))
    for policy in study.policies:
        claim = f"{policy}: K_score beats K_sim, DPO"
        if first == second:
            yield _unknown(claim, "cannot tell: the two pair sets are the same here")
            continue
        yield _record(claim, compute_difference(study, first, second, policy=policy, method="dpo"))
    known = sorted({s for s in sizes.values() if s})
    claim = "K_score's lead over K_sim is larger for smaller policies, DPO"
    if len(known) < 2:
        seen = f"{known[0]:g}B" if known else "no size in their names"
        yield _unknown(claim, f"cannot tell: needs policies of two sizes or more, has {seen}")
        return
    cut = float(np.median(known))
    rows = study.results[(study.results["method"] == "dpo") & study.results["strategy"].isin([first, second])]
    rows = rows[rows["policy"].map(sizes).notna()]  # a policy of unknown size is neither small nor large
    small = rows["policy"].map(sizes).lt(cut + 1e-9 if cut not in known else cut)
    sign = np.where(small, 1.0, -1.0) * np.where(rows["strategy"] == first, 1.0, -1.0)
    groups = rows.groupby([small, rows["strategy"]])["value"].transform("size")
    complete = rows.groupby([small, rows["strategy"]]).ngroups == 4
    yield _record(claim, compute_weighted(study, pd.Series(sign / groups, index=rows.index)) if complete else None)


def _test_training(study: Study) -> Iterator[dict]:
    """Ask whether training did anything: against the untrained policy, and on held-out pairs."""
    for method in study.methods:
        claim = f"{title_of(method)} beats the untrained policy"
        yield _record(claim, compute_difference(study, list(study.strategies), START, method=method))
    for strategy in study.strategies if {"dpo", "cdpo"} <= set(study.methods) else ():
        if not {(strategy, "dpo"), (strategy, "cdpo")} & study.untrained:
            claim = f"{title_of('cdpo')} on {study.title(strategy)} beats {title_of('dpo')} on it"
            yield _record(claim, _compare_methods(study, strategy, "cdpo", "dpo"))
    if "held_out_accuracy" not in study.trainings:
        return
    for strategy in study.strategies:
        rows = study.trainings[(study.trainings["strategy"] == strategy) & (study.trainings["method"] == "dpo")]
        rows = rows.dropna(subset="held_out_accuracy")
        if len(rows):
            yield _test_held_out(f"DPO on {study.title(strategy)} prefers held-out chosen answers", rows)


def _compare_methods(study: Study, strategy: str, method: str, rival: str) -> Estimate | None:
    """Return by how much a method scores above another on one strategy's pairs; None where one was not trained."""
    rows = study.results[(study.results["strategy"] == strategy) & study.results["method"].isin([method, rival])]
    sign = np.where(rows["method"] == method, 1.0, -1.0)
    weights = pd.Series(sign / rows.groupby("method")["value"].transform("size"), index=rows.index)
    return compute_weighted(study, weights) if rows["method"].nunique() == 2 else None


def _test_held_out(claim: str, rows: pd.DataFrame) -> dict:
    """Test the share of held-out pairs against a half, exactly: there may be only a few pairs."""
    share, n = float(rows["held_out_accuracy"].mean()), int(rows["held_out_n"].max())
    low, high = compute_wilson(share, n)

    def bounds(n_tests: int) -> tuple[float, float]:
        low, high = compute_wilson(share, n, n_tests=n_tests)
        return low - 0.5, high - 0.5

    one = "binomial over held-out pairs, exact; one seed: without training noise"
    several = f"binomial over the held-out pairs of one run, for the mean of {len(rows)} runs; without training noise"
    return {"claim": claim, "effect": share - 0.5, "low": low - 0.5, "high": high - 0.5, "n": n,
            "p": float(stats.binomtest(round(share * n), n).pvalue), "needed_n": None, "verdict": "",
            "basis": one if len(rows) == 1 else several, "smallest": SMALLEST, "unit": "pairs",
            "standard_error": float(np.sqrt(0.25 / n)), "bounds": bounds}  # fmt: skip


def compute_family(model: str) -> str:
    """Return a model's family by its name: all but sizes and numbers.

    Example:
        >>> compute_family("Llama-2-7b-chat"), compute_family("smollm2-noise-3")
        ('llama-chat', 'smollm2-noise')
    """
    words = model.casefold().split("-")
    kept = [w for w in words if compute_size(w) is None and not w.replace(".", "").isdigit()]
    return "-".join(kept) or model.casefold()


def _test_grouping(study: Study, groups: list[str]) -> Iterator[dict]:
    """Ask whether origin models of one family score more alike than others."""
    for group in groups:
        claim = f"origin models of one family score alike ({group})"
        if study.scores is None:
            yield _unknown(claim, "cannot tell: kinship/scores.csv is missing")
            continue
        columns = group_benchmarks(study.scores).get(group)
        if columns:
            yield _compare_families(study.scores, columns, claim, study.distance)


def _compare_families(table: ScoreTable, columns: list[str], claim: str, distance: str) -> dict:
    models = [str(m) for m in table.scores.index]
    facts = table.facts.reindex(table.scores.index)["family"]
    known = facts.notna().any()
    labels = np.array([f if isinstance(f, str) else f"? {m}" for f, m in zip(facts, models, strict=True)]
                      if known else [compute_family(m) for m in models])  # fmt: skip
    unlike = (labels[:, None] != labels[None]).astype(float)
    upper = unlike[np.triu_indices(len(models), k=1)]
    if not 0 < upper.sum() < len(upper):
        return _unknown(claim, "cannot tell: needs a family of two or more, and a second family")
    factor = pd.DataFrame(unlike, index=table.scores.index, columns=table.scores.index)
    generator = np.random.default_rng(0)
    measured = compute_distance(compute_normalized(table)[columns], distance)
    test = compute_mantel(measured, factor, generator, 1999)
    low, high = quantiles(np.array(_redraw_gaps(table, columns, unlike, generator, distance)))
    gap = _compute_gap(measured.to_numpy(), unlike)
    source = "families as known" if known else "families read from the names"
    p = float(np.nan_to_num(test["p"], nan=1.0))
    unsure = low <= 0 <= high  # Mantel takes the scores as measured: with so few items they might as well be others
    verdict = f"cannot tell with n = {len(models)} origin models: sampling error of their scores" if unsure else ""
    return {"claim": claim, "effect": gap, "low": low, "high": high, "p": p,
            "n": len(models), "needed_n": None, "verdict": verdict, "smallest": 0.0, "unit": "origin models",
            "standard_error": None, "bounds": lambda n_tests: (-np.inf, np.inf),  # no distance is too small to count
            "basis": f"{source}, {int((upper == 0).sum())} alike; {distance}; Mantel; scores redrawn"}  # fmt: skip


def _redraw_gaps(table: ScoreTable, columns: list[str], unlike: np.ndarray, generator, distance: str) -> list[float]:
    scores, n_items = table.scores[columns].to_numpy(), table.n_items or {}
    n = np.array([n_items.get(c, 0) for c in columns])
    if not n.all():
        return [np.nan]
    drawn = generator.binomial(n, scores, size=(N_DRAWS, *scores.shape)) / n
    spread = np.ptp(drawn, axis=1, keepdims=True)
    normalized = (drawn - drawn.min(axis=1, keepdims=True)) / np.where(spread == 0, 1, spread)
    return [_compute_gap(compute_distance(pd.DataFrame(values), distance).to_numpy(), unlike) for values in normalized]


def _compute_gap(distance: np.ndarray, unlike: np.ndarray) -> float:
    """Return the mean distance between families less that within: above 0, families score alike."""
    upper = np.triu_indices(len(distance), k=1)
    between = unlike[upper].astype(bool)
    return float(distance[upper][between].mean() - distance[upper][~between].mean())
