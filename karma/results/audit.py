"""The paper's statements, computed again from its own tables: claim, paper's number, recomputed, verdict.

Everything is derived from the shipped Tables 2, 3 and 4; no verdict is written by hand. Decision: a
printed number agrees when it lies within half a unit of its last digit. Intervals use the item counts
that the printed fractions allow, where they allow one, with runs taken as independent (`karma.results.estimates`).
Limit: an audit of numbers, not of the runs behind them, which nobody but the authors can see.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from karma.kinship.clusters import compute_clusters, compute_trees
from karma.kinship.mantel import compute_mantel_table
from karma.kinship.similarity import compute_choices, compute_cosine, list_pairs
from karma.results.estimates import Estimate, compute_difference
from karma.results.noise_floor import Row, audit_noise, build_row
from karma.results.published import load_printed, load_published, normalise_benchmark
from karma.results.study import Study
from karma.results.tables import TOTAL, Table, build_plain, build_table2
from karma.results.wording import audit_wording, load_quote
from karma.scores.normalise import compute_below_chance, compute_s_pref
from karma.scores.read import load_score_table
from karma.scores.table import ScoreTable
from karma.study.experiment import load_base
from karma.vocabulary import KINSHIP_STRATEGIES, title_of

KINSHIP = list(KINSHIP_STRATEGIES)


def audit_paper() -> pd.DataFrame:
    """Return every audited statement.

    Returns:
        Columns claim, where, paper, recomputed, verdict; all text.

    Example:
        >>> audit_paper().set_index("claim").loc["Table 2 holds the means of Table 4", "verdict"]
        'three cells differ'
    """
    study, printed = load_published(), load_score_table("paper")
    parts = (
        _audit_table2(study),
        _audit_table3(),
        _audit_choices(printed),
        _audit_rq2(study),
        _audit_runs(study),
        _audit_rq3(study),
        _audit_rq4(printed),
        audit_noise(study, printed),
        audit_wording(study),
    )
    return pd.DataFrame([row for part in parts for row in part])


def compare_table2(study: Study) -> pd.DataFrame:
    """Return Table 2's 24 cells: printed, the mean of Table 4, and whether they agree to rounding.

    Returns:
        Columns benchmark, strategy, printed (text), recomputed, agrees.
    """
    printed, means = load_printed("table2").set_index("benchmark"), build_table2(study).frame
    titles, records = study.title_benchmarks("table2"), []
    for spelling, row in printed.iterrows():
        for strategy, text in row.items():
            label = titles.get(normalise_benchmark(str(spelling)), TOTAL)
            value = float(means.loc[label, title_of(str(strategy))])
            record = {"benchmark": label, "strategy": str(strategy), "printed": text, "recomputed": value}
            records.append({**record, "agrees": agrees(text, value)})
    return pd.DataFrame(records)


def build_printed_table2(study: Study) -> Table:
    """Return Table 2 as the paper prints it; where a cell is not the mean of Table 4's, that mean beside it, in bold.

    Args:
        study: the published one.

    Example:
        >>> build_printed_table2(load_published()).frame.loc["Total", "RLAIF"]
        '0.31 (Table 4: 0.3177)'
    """
    cells = compare_table2(study)
    differs = ~cells["agrees"].to_numpy()
    beside = cells["printed"] + [f" (Table 4: {value:.4f})" if odd else ""
                                 for value, odd in zip(cells["recomputed"], differs, strict=True)]  # fmt: skip
    keyed = cells.assign(text=beside, bold=differs, strategy=cells["strategy"].map(title_of))
    order = {"index": dict.fromkeys(keyed["benchmark"]), "columns": dict.fromkeys(keyed["strategy"])}
    frame, bold = (
        keyed.pivot(index="benchmark", columns="strategy", values=each).reindex(**order) for each in ("text", "bold")
    )
    caption = (
        "Table 2 as printed (share in [0, 1]); bold: a cell that differs from the mean of Table 4's, given beside it."
    )
    plain = build_plain("table2", caption, frame.rename_axis(columns=None))
    return replace(plain, bold=bold.set_axis(plain.frame.columns, axis=1))


def agrees(printed: str, value: float, digits: int = 2) -> bool:
    """Tell whether `value` rounds to a number printed with so many digits (files drop final zeros).

    Example:
        >>> agrees("0.31", 0.3108), agrees("0.31", 0.3177), agrees("0.4", 0.3946)
        (True, False, False)
    """
    return abs(float(printed) - value) <= 0.5 * 10**-digits + 1e-9


def _audit_table2(study: Study) -> Iterator[Row]:
    cells = compare_table2(study)
    odd = cells[~cells["agrees"]]
    words = {0: "agrees", 1: "one cell differs", 2: "two cells differ", 3: "three cells differ"}
    yield build_row(
        "Table 2 holds the means of Table 4",
        "Table 2",
        f"{len(cells)} cells",
        f"{int(cells['agrees'].sum())} of {len(cells)} agree to rounding",
        words.get(len(odd), f"{len(odd)} cells differ"),
    )
    for _, cell in odd.iterrows():
        yield build_row(
            f"{cell['benchmark']}, {title_of(cell['strategy'])}",
            "Table 2",
            cell["printed"],
            f"{cell['recomputed']:.4f}",
            "differs",
        )


def _audit_table3() -> Iterator[Row]:
    printed = load_printed("table3").set_index("origin_model")["average_score"]
    for name, digits in (("paper", "two"), ("paper_four_digit", "four")):
        s_pref = compute_s_pref(load_score_table(name))
        right = sum(agrees(text, s_pref[model]) for model, text in printed.items())
        miss = max(abs(float(text) - s_pref[model]) for model, text in printed.items())
        yield build_row(
            f"Eq. 2 gives Table 3's averages (MMLU-Pro to {digits} digits)",
            "Table 3, Eq. 2",
            f"{len(printed)} averages",
            f"{right} of {len(printed)} agree; largest miss {miss:.4f}",
            "agrees" if right == len(printed) else f"{len(printed) - right} differ by a last digit",
        )
    below = compute_below_chance(load_score_table("paper"))
    cells, n_below = ", ".join(f"{m} {b}" for m, b in below.stack()[lambda s: s].index), int(below.to_numpy().sum())
    yield build_row(
        "Table 3's scores are above chance",
        "Table 3",
        f"{below.size} cells",
        f"{n_below} at or below chance" + (f": {cells}" if n_below else ""),
        f"fails in {n_below}: answers probably not extracted" if n_below else "agrees",
    )


def _audit_choices(table: ScoreTable) -> Iterator[Row]:
    tau = load_base().kinship.tau
    pairs = list_pairs(table, tau)
    raw = compute_cosine(load_printed("table3").set_index("origin_model").iloc[:, :-1].astype(float)).to_numpy()
    low = pairs[pairs["kinship"] < tau]
    names = "; ".join(
        f"{c} / {r} ({k:.3f})" for c, r, k in low[["chosen", "rejected", "kinship"]].itertuples(index=False)
    )
    yield build_row(
        "The threshold keeps unlike models apart",
        "section 2.3",
        f"tau = {tau}",
        f"removes {len(low)} of {len(pairs)} pairs: {names}; lowest raw cosine {raw.min():.3f}",
        "nearly without effect" if len(low) <= 1 else "has an effect",
    )
    for strategy, choice in compute_choices(table, tau).items():
        chosen = " / ".join(choice) if choice else "none"
        yield build_row(f"{title_of(strategy)} over all models", "section 2.3", "not stated", chosen, "computed")


def _audit_rq2(study: Study) -> Iterator[Row]:
    means = build_table2(study).frame.loc[TOTAL]
    trail = compute_difference(study, "k_score", "rlaif")
    assert trail is not None
    yield build_row(
        "RQ2: K_score trails RLAIF by .008",
        "text on RQ2",
        "0.008",
        f"{-trail.value:.4f}",
        "agrees" if agrees("0.008", -trail.value, digits=3) else "differs",
    )
    above = [s for s in KINSHIP if means[title_of(s)] > means["RLAIF"]]
    printed = load_printed("table2").set_index("benchmark").drop(TOTAL)[["rlaif", "k_score"]].astype(float)
    rounded = float((printed["rlaif"] - printed["k_score"]).mean())
    yield build_row(
        "RQ2: K_score trails RLAIF by .008, from Table 2's rounded rows",
        "text on RQ2",
        "0.008",
        f"{rounded:.4f}, the mean of {len(printed)} differences of two-digit cells",
        "agrees" if agrees("0.008", rounded, digits=3) else "differs",
    )
    for benchmark, title in (("mmlu_pro", "MMLU-Pro"), ("ifeval", "IFEval")):
        lead = compute_difference(study, "k_score", "rlaif", benchmark=benchmark)
        assert lead is not None
        yield build_row(
            f"RQ2: K_score is above RLAIF on {title}, by about .01",
            "text on RQ2",
            "about 0.01",
            _show(lead),
            f"{'holds' if lead.value > 0 else 'fails'}, {_find_noise(lead)}",
        )
    yield build_row(
        "Kinship surpasses RLAIF",
        "RQ2",
        "surpasses",
        ", ".join(f"{k} {v:.4f}" for k, v in means.items()),
        f"holds for {len(above)} of {len(KINSHIP)} strategies on the mean",
    )
    yield build_row(
        "Kinship significantly outperforms RLAIF",
        *load_quote("outperforms"),
        f"best, K_score: {_show(trail)}",
        "supported" if trail.interval[0] > 0 else "not supported",
    )


def _audit_runs(study: Study) -> Iterator[Row]:
    wins, cells = _count_wins(study)
    p = stats.binomtest(wins, cells).pvalue
    yield build_row(
        "K_score against RLAIF, run by run",
        "Table 4",
        "not stated",
        f"higher in {wins} of {cells} cells (sign test p = {p:.2f})",
        "supported" if p < 0.05 and wins * 2 > cells else "not supported",
    )
    for method in ("dpo", "sft"):
        rows = study.results[study.results["method"] == method]
        values = rows.groupby("strategy")["value"].mean()
        yield build_row(
            f"Mean by data set, {method.upper()}",
            "Table 4",
            "not stated",
            ", ".join(f"{title_of(s)} {values[s]:.3f}" for s in study.strategies),
            "computed",
        )


def _count_wins(study: Study) -> tuple[int, int]:
    wide = study.results.pivot(index=["policy", "method", "benchmark"], columns="strategy", values="value")
    difference = (wide["k_score"] - wide["rlaif"]).round(6)
    return int((difference > 0).sum()), int((difference != 0).sum())


def _audit_rq3(study: Study) -> Iterator[Row]:
    expected = {p: "k_score" if "3B" in p else "k_sim" for p in study.policies}
    held = []
    for policy, claimed in expected.items():
        rows = study.results[(study.results["policy"] == policy) & (study.results["method"] == "dpo")]
        means = rows.groupby("strategy")["value"].mean()[list(study.strategies)]
        best = str(means[KINSHIP].idxmax())
        rival = str(means[KINSHIP].drop(claimed).idxmax())
        gap = compute_difference(study, claimed, rival, policy=policy, method="dpo")
        held.append(best == claimed)
        rlaif = compute_difference(study, claimed, "rlaif", policy=policy, method="dpo")
        assert gap is not None and rlaif is not None
        yield build_row(
            f"RQ3: {policy} does best with {title_of(claimed)}",
            "text on RQ3, DPO",
            title_of(claimed),
            ", ".join(f"{title_of(s)} {v:.3f}" for s, v in means.items()),
            f"{'holds' if best == claimed else 'fails'} among the three ({_describe(gap)}); "
            f"{_describe(rlaif)} against RLAIF",
        )
    yield build_row(
        "RQ3: small policies take K_score, larger ones K_sim",
        "text on RQ3",
        "3B K_score, 7-8B K_sim",
        f"{sum(held)} of {len(held)} policies",
        f"{'holds' if all(held) else 'fails'} among the three; seeds: {len(study.seeds)}",
    )


def _describe(difference: Estimate) -> str:
    return f"{difference.value:+.3f}, {_find_noise(difference)}"


def _find_noise(difference: Estimate) -> str:
    low, high = difference.interval
    return "items unknown" if np.isnan(low) else f"{'beyond' if low > 0 or high < 0 else 'within'} item noise"


def _show(difference: Estimate) -> str:
    low, high = difference.interval
    return f"{difference.value:+.4f} " + ("(items unknown)" if np.isnan(low) else f"[{low:+.4f}, {high:+.4f}]")


def _audit_rq4(table: ScoreTable) -> Iterator[Row]:
    tests = compute_mantel_table(table, load_base().kinship.distance, np.random.default_rng(0), 999)
    tests = tests[(tests["group"] != "total") & (tests["factor"] != "same developer")]
    text = "; ".join(f"{r.group}, {r.factor}: effect {r.effect:+.2f}, p = {r.p:.3f}" for r in tests.itertuples())
    settings = load_base().kinship
    clusters = {
        group: compute_clusters(tree, settings.cut, distance.index).nunique()
        for group, (distance, tree) in compute_trees(table, settings.distance, settings.linkage).items()
    }
    counts = ", ".join(f"{group} {n}" for group, n in clusters.items())
    claim, said_there = f"Figure 7: clusters below distance {settings.cut}", "a drawing; no distance named"
    yield build_row(claim, "Figure 7", said_there, counts, f"computed with {settings.distance}")
    said = {"section 4.4": "instruction following", "conclusion": "knowledge"}
    yield build_row(
        "RQ4: which capability is hierarchical",
        ", ".join(said),
        "; ".join(f"{where}: {what}" for where, what in said.items()),
        text,
        "contradicts itself" if len(set(said.values())) > 1 else "consistent",
    )
