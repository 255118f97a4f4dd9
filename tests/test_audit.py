"""The paper's printed cells and the golden values, one by one, from the shipped tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from karma.results import wording
from karma.results.audit import agrees, audit_paper, build_printed_table2, compare_table2
from karma.results.estimates import compute_policies
from karma.results.noise_floor import count_fractions, count_overlap
from karma.results.published import find_items, infer_items, load_printed, load_published, normalise_benchmark
from karma.results.tables import build_table2, build_table3, build_table4, build_tables, compute_intervals
from karma.scores.read import load_score_table
from karma.scores.table import load_benchmarks

DIFFERING = {("Total", "rlaif"), ("MMLU-Pro", "rlaif"), ("ARC-Challenge", "k_score_sim")}
COLUMNS = {"rlaif": "RLAIF", "k_score": "K_score", "k_sim": "K_sim", "k_score_sim": "K_(score,sim)"}
TABLE2 = [(b, s) for b in ("Total", "MMLU", "MMLU-Pro", "ARC-Easy", "ARC-Challenge", "IFeval") for s in COLUMNS]


def titled(spelling: str) -> str:
    """The kit's title of a benchmark as the paper spells it; the row of totals has its own."""
    return str(load_benchmarks()["title"].get(normalise_benchmark(spelling), spelling))


@pytest.fixture(scope="module")
def published():
    return load_published()


@pytest.fixture(scope="module")
def audit() -> pd.DataFrame:
    return audit_paper().set_index("claim")


@pytest.mark.parametrize(("benchmark", "strategy"), TABLE2)
def test_table2_cell(published, benchmark, strategy):
    cells = compare_table2(published).set_index(["benchmark", "strategy"])
    assert len(cells) == 24
    printed = load_printed("table2").set_index("benchmark").loc[benchmark, strategy]
    cell = cells.loc[(titled(benchmark), strategy)]
    assert cell["printed"] == printed
    recomputed = build_table2(published).frame.loc[titled(benchmark), COLUMNS[strategy]]
    assert (abs(recomputed - float(printed)) <= 0.005 + 1e-9) == ((benchmark, strategy) not in DIFFERING)
    assert cell["agrees"] == ((benchmark, strategy) not in DIFFERING)


def test_table2_recomputed_where_it_differs(published):
    frame = build_table2(published).frame.round(4)
    assert frame.loc["Total"].tolist() == [0.3177, 0.3108, 0.2921, 0.2870]
    assert frame.loc["MMLU-Pro", "RLAIF"] == 0.1419 and frame.loc["ARC-Challenge", "K_(score,sim)"] == 0.3578


@pytest.mark.parametrize("column", load_printed("table3").columns[1:])
def test_table3_column(published, column):
    """Each of the 16 printed cells, MMLU-Pro and the average to two digits."""
    printed = load_printed("table3").set_index("origin_model")[column]
    frame = build_table3(published).frame
    title = {c.casefold().replace("-", "_"): c for c in frame}[column]
    for model, text in printed.items():
        assert f"{frame.loc[model, title]:.2f}" == f"{float(text):.2f}", model


@pytest.mark.parametrize("row", range(40))
def test_table4_row(published, row):
    printed = load_printed("table4").iloc[row]
    frame = build_table4(published).frame
    label = (titled(printed["benchmark"]), printed["policy"], printed["method"])
    assert list(frame.index)[row] == label
    assert [f"{v:.4f}" for v in frame.loc[label]] == [printed[s] for s in COLUMNS]


def test_bold_cells_are_the_best_of_their_rows(published):
    table = build_table4(published)
    assert (table.bold.sum(axis=1) >= 1).all()
    assert table.frame.where(table.bold).max(axis=1).equals(table.frame.max(axis=1))
    label = ("ARC-Easy", "Qwen2.5-3B", "SFT")  # a tie
    assert list(table.bold.columns[table.bold.loc[label]]) == ["K_score", "K_(score,sim)"]


def test_table2_of_the_paper_s_report_is_as_printed(published):
    table = build_printed_table2(published)
    printed = load_printed("table2").set_index("benchmark").rename(columns=COLUMNS)
    assert table.frame.shape == printed.shape and table.name == "table2"
    for benchmark, row in printed.iterrows():
        shown = table.frame.loc[titled(benchmark)]
        assert all(shown[column].split(" ")[0] == text for column, text in row.items())
    odd = {(b, s) for b, s in DIFFERING if table.bold.loc[b, COLUMNS[s]]}
    assert odd == DIFFERING and table.bold.to_numpy().sum() == 3
    assert table.frame.loc["MMLU-Pro", "RLAIF"] == "0.15 (Table 4: 0.1419)"


def test_shaded_cells_of_table2(published):
    table = build_table2(published)
    shaded = {(b, c) for b, row in table.shaded.iterrows() for c in table.frame.columns[row]}
    assert shaded == {("MMLU-Pro", "K_score"), ("MMLU-Pro", "K_sim"), ("ARC-Easy", "K_(score,sim)"),
                      ("IFEval", "K_score"), ("IFEval", "K_sim")}  # fmt: skip


@pytest.mark.parametrize(("text", "value", "digits", "expected"), [
    ("0.31", 0.3149, 2, True), ("0.31", 0.3151, 2, False), ("0.4", 0.3946, 2, False),
    ("0.008", 0.0069, 3, False),
])  # fmt: skip
def test_agreement_is_half_a_unit_of_the_last_digit(text, value, digits, expected):
    assert agrees(text, value, digits) is expected


@pytest.mark.parametrize(("spelling", "method", "n", "count"), [
    ("MMLU-pro", "SFT", 488, 16), ("MMLU-pro", "DPO", 488, 15), ("IFeval", "SFT", 834, 12), ("IFeval", "DPO", 834, 12),
    ("MMLU-STEM", "SFT", 500, 13), ("MMLU-STEM", "DPO", None, 8), ("ARC-easy", "SFT", 1000, 16),
    ("ARC-easy", "DPO", 2376, 13), ("ARC-challenge", "SFT", 431, 12), ("ARC-challenge", "DPO", None, 4),
])  # fmt: skip
def test_item_counts_behind_the_fractions(spelling, method, n, count):
    """Of a group without a count: how many of its values the other method's count explains."""
    rows = load_printed("table4").query("benchmark == @spelling and method == @method")
    tried = n or {"MMLU-STEM": 500, "ARC-challenge": 431}[spelling]
    assert count_fractions(rows[list(COLUMNS)].astype(float).stack(), tried) == count
    assert find_items()[normalise_benchmark(spelling), method.lower()] == n


@pytest.mark.parametrize("n", [100, 431, 1172, 2376])
def test_a_count_is_found_and_luck_is_not(n):
    rng = np.random.default_rng(n)
    assert infer_items(pd.Series(rng.integers(0, n, 16) / n).round(4)) == n
    found = [infer_items(pd.Series(rng.random(16)).round(4)) for _ in range(50)]
    assert found.count(None) >= 47, "more than 5 % of random values got a count"


def test_cells_without_a_count_have_no_interval():
    rows = compute_intervals(load_published()).set_index(["benchmark", "method"])
    unknown = rows["low"].isna() | rows["high"].isna()
    assert set(rows.index[unknown]) == {("mmlu_stem", "dpo"), ("arc_challenge", "dpo")}
    assert unknown.sum() == 2 * 16 and rows.loc[unknown, "n"].isna().all()
    bars = compute_policies(load_published(), "dpo").query("strategy != 'start'")
    assert set(bars.loc[bars["low"].isna(), "benchmark"]) == {"mmlu_stem", "arc_challenge"}
    assert bars["value"].notna().all()


def test_no_other_item_count_below_900_explains_mmlu_pro_as_well():
    values = load_printed("table4").query("benchmark == 'MMLU-pro'")[list(COLUMNS)].astype(float).stack()
    assert max(range(50, 900), key=lambda n: count_fractions(values, n) - 32 * n * 1e-4) == 488


def test_k_score_and_k_score_sim_choose_the_same_answer():
    chosen, pair, sets = count_overlap(load_score_table("paper"))
    assert (chosen, sets) == (1820, 1820) and round(pair / sets, 2) == 0.67


@pytest.mark.parametrize(("claim", "column", "text"), [
    ("Table 2 holds the means of Table 4", "recomputed", "21 of 24 agree to rounding"),
    ("Table 2 holds the means of Table 4", "verdict", "three cells differ"),
    ("Total, RLAIF", "recomputed", "0.3177"),
    ("MMLU-Pro, RLAIF", "recomputed", "0.1419"),
    ("ARC-Challenge, K_(score,sim)", "recomputed", "0.3578"),
    ("Eq. 2 gives Table 3's averages (MMLU-Pro to two digits)", "recomputed", "14 of 16 agree"),
    ("Eq. 2 gives Table 3's averages (MMLU-Pro to four digits)", "recomputed", "16 of 16 agree"),
    ("Table 3's scores are above chance", "recomputed", "Starchat arc_challenge"),
    ("The threshold keeps unlike models apart", "recomputed", "removes 1 of 120 pairs"),
    ("The threshold keeps unlike models apart", "recomputed", "(0.021); lowest raw cosine 0.745"),
    ("K_sim over all models", "recomputed", "Llama-2-13b-chat / Llama-2-7b-chat"),
    ("K_score over all models", "recomputed", "GPT-4 / bard"),
    ("K_(score,sim) over all models", "recomputed", "GPT-4 / bard"),
    ("RQ2: K_score trails RLAIF by .008", "recomputed", "0.0069"),
    ("RQ2: K_score trails RLAIF by .008", "verdict", "differs"),
    ("RQ2: K_score trails RLAIF by .008, from Table 2's rounded rows", "recomputed", "0.0080"),
    ("RQ2: K_score trails RLAIF by .008, from Table 2's rounded rows", "verdict", "agrees"),
    ("RQ2: K_score is above RLAIF on MMLU-Pro, by about .01", "recomputed", "+0.0102"),
    ("RQ2: K_score is above RLAIF on IFEval, by about .01", "recomputed", "+0.0167"),
    ("RQ2: K_score is above RLAIF on IFEval, by about .01", "verdict", "holds, beyond item noise"),
    ("Kinship surpasses RLAIF", "verdict", "holds for 0 of 3"),
    ("Kinship significantly outperforms RLAIF", "verdict", "not supported"),
    ("Kinship significantly outperforms RLAIF", "paper", '"significantly outperforms prior methods such as RLAIF"'),
    ("The number of origin models", "paper", '"17 models"'),
    ("The number of origin models", "recomputed", "Table 3 scores 16; excluded from the pool: ultralm-65b"),
    ("The number of origin models", "verdict", "differs by 1: it counts what could not be scored"),
    ("A policy in the text", "verdict", "no model Qwen2.5-8B; not in Table 4"),
    ("The policies of Table 4", "verdict", "no model Llama-3.1-3B (Llama-3.2-3B exists)"),
    ("A table that is referred to", "paper", '"Table 8"'),
    ("A table that is referred to", "verdict", "no such table"),
    ("Outcomes are more consistent", "verdict", "cannot be seen: nothing was trained twice"),
    ("Win-rate consistency", "paper", '"win-rate consistency (+12.3%)"'),
    ("Win-rate consistency", "verdict", "stands nowhere in the paper's tables"),
    ("Human preference alignment", "recomputed", "of 296 cells of Tables 2 to 4 0 read 9.8"),
    ("Human preference alignment", "verdict", "stands nowhere in the paper's tables"),
    ("Mean by data set, DPO", "recomputed", "RLAIF 0.416, K_score 0.397, K_sim 0.365, K_(score,sim) 0.363"),
    ("Mean by data set, SFT", "recomputed", "RLAIF 0.220, K_score 0.225, K_sim 0.219, K_(score,sim) 0.211"),
    ("RQ3: Llama-3.1-3B does best with K_score", "recomputed", " 0.442, K_sim 0.274, K_(score,sim) 0.418"),
    ("RQ3: Llama-3.1-8B does best with K_sim", "recomputed", " 0.211, K_sim 0.333, K_(score,sim) 0.202"),
    ("RQ3: Qwen2.5-3B does best with K_score", "recomputed", " 0.530, K_sim 0.386, K_(score,sim) 0.473"),
    ("RQ3: Qwen2.5-7B does best with K_sim", "recomputed", " 0.405, K_sim 0.467, K_(score,sim) 0.358"),
    ("RQ3: small policies take K_score, larger ones K_sim", "verdict", "holds among the three"),
    ("RQ4: which capability is hierarchical", "verdict", "contradicts itself"),
    ("Figure 7: clusters below distance 0.4", "recomputed",
     "total 3, knowledge 2, reasoning 3, instruction following 2"),
    ("SFT lifts the policies above chance", "verdict", "at chance"),
    ("The same SFT data (if pairs are chosen per prompt) give the same scores", "recomputed", " 0.031, largest 0.199; K_score against"),
    ("The same SFT data (if pairs are chosen per prompt) give the same scores", "verdict", "as large as the effect"),
    ("K_score and K_(score,sim) are different data sets", "recomputed", "same pair in 67%"),
    ("One epoch with 500 warm-up steps", "recomputed", "75% of one epoch (63,967 / 96 = 666 updates)"),
    ("Items behind ARC-challenge, DPO", "verdict", "unknown"),
    ("Items behind ARC-challenge, SFT", "recomputed", "n = 431: 12 of 16 fit (by luck 0.7); the whole benchmark, n = 1172: 4"),
    ("Items behind ARC-easy, DPO", "verdict", "inferred: the whole benchmark"),
])  # fmt: skip
def test_audited_statement(audit, claim, column, text):
    assert text in audit.loc[claim, column]


def test_every_verdict_is_derived(audit, monkeypatch):
    """With other printed numbers the verdicts change: none is written by hand."""
    import karma.results.audit

    def other(table: str) -> pd.DataFrame:
        printed = load_printed(table)
        if table == "table2":
            means = build_table2(load_published()).frame.rename(columns={v: k for k, v in COLUMNS.items()})
            printed = means.map("{:.2f}".format).reset_index()
        return printed

    monkeypatch.setattr(karma.results.audit, "load_printed", other)
    assert audit_paper().set_index("claim").loc["Table 2 holds the means of Table 4", "verdict"] == "agrees"


@pytest.mark.parametrize(("key", "words", "claim", "verdict"), [
    ("models", "16 models", "The number of origin models", "agrees"),
    ("models", "20 models", "The number of origin models", "differs by 4"),
    ("policy", "Qwen2.5-7B", "A policy in the text", "agrees"),
    ("policy", "Qwen2.5-14B", "A policy in the text", "not in Table 4"),
    ("table", "Table 4", "A table that is referred to", "agrees"),
    ("win_rate", "win-rate consistency (+7.1%)", "Win-rate consistency", "stands in the tables"),
    ("win_rate", "win-rate consistency (+0.4868%)", "Win-rate consistency", "stands in the tables"),
])  # fmt: skip
def test_other_words_get_other_verdicts(published, monkeypatch, key, words, claim, verdict):
    def other(table: str) -> pd.DataFrame:
        printed = load_printed(table)
        return (
            printed if table != "quotes" else printed.assign(quote=printed["quote"].where(printed["key"] != key, words))
        )

    monkeypatch.setattr(wording, "load_printed", other)
    assert {row["claim"]: row["verdict"] for row in wording.audit_wording(published)}[claim] == verdict


def test_several_trainings_could_show_consistency(published):
    rows = {row["claim"]: row for row in wording.audit_wording(replace(published, seeds=(0, 1)))}
    assert rows["Outcomes are more consistent"]["verdict"] == "can be tested by the spread over seeds"


def test_published_tables_have_no_gaps(published, tmp_path):
    for table in build_tables(published):
        if table.name != "table1":
            assert not table.frame.isna().any(axis=None)
        table.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 12
    assert np.isclose(pd.read_csv(tmp_path / "table2.csv", index_col=0).loc["Total", "RLAIF"], 0.3177, atol=5e-5)
