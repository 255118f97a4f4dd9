"""Claims, cost and comparisons of measured studies; figures: labels, units, overlap, emptiness."""

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from karma.errors import InputError
from karma.figures.diagrams import plot_framework, plot_labelling, plot_prompt
from karma.figures.results import plot_capabilities, plot_policies
from karma.figures.style import set_style
from karma.kinship.clusters import compute_distance
from karma.results.claims import SMALLEST, _compare_families, _judge, compute_family, test_claims
from karma.results.comparison import build_comparison, compare_studies, compare_with_paper
from karma.results.estimates import (
    Estimate,
    compute_capabilities,
    compute_difference,
    compute_policies,
    describe_chance,
)
from karma.results.leads import compute_leads
from karma.results.ledger import build_ledger, compute_break_even, compute_counts
from karma.results.published import load_published
from karma.results.study import collect_results, find_prompt
from karma.results.tables import build_table1
from karma.scores.normalise import compute_normalized
from karma.scores.table import ScoreTable, load_benchmarks
from karma.statistics.verdicts import adjust_holm, compute_needed_n
from karma.study.experiment import load_experiment
from tests.boxes import check_boxes
from tests.study_files import N_ITEMS, make_experiment, write_study


def make_study(folder: Path, extra: str = "", **options):
    experiment = make_experiment(folder, extra, **options)
    write_study(experiment)
    return experiment, collect_results(experiment)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"))[1]


@pytest.fixture(scope="module")
def claims(study):
    return test_claims(study).set_index("claim")


def set_answers(experiment, run: str, right: float) -> None:
    """Give a run that share of right answers on every item of every benchmark: the first ones."""
    folder = experiment.outputs / "runs" / "smollm2-135m" / run
    answers = pd.read_parquet(folder / "answers.parquet")
    position = answers.groupby("benchmark").cumcount()
    answers["correct"] = answers["n"] * (position < right * N_ITEMS)
    answers.to_parquet(folder / "answers.parquet")
    scores = json.loads((folder / "scores.json").read_text())
    for name, rows in answers.groupby("benchmark"):
        scores["benchmarks"][name]["value"] = float(rows["correct"].sum() / rows["n"].sum())
    (folder / "scores.json").write_text(json.dumps(scores))


def test_a_small_study_cannot_tell_and_says_what_it_would_take(claims):
    row = claims.loc["K_score beats RLAIF (weak judge)"]
    assert row["verdict"].startswith(f"cannot tell with n = {row['n']} items; {row['needed_n']:,} would show")
    assert row["n"] == 4 * N_ITEMS + 60 and row["needed_n"] > 1000
    assert "one seed: without training noise" in row["basis"]
    assert "needs policies of two sizes" in claims.loc[
        "K_score's lead over K_sim is larger for smaller policies, DPO", "verdict"]  # fmt: skip


def test_smoothed_labels_are_compared_with_plain_ones_where_both_were_trained(tmp_path):
    extra = "\nstrategies: [k_sim, k_score]\nmethods: [dpo, cdpo]\ntrained_on: {cdpo: [k_sim]}\nseeds: [0, 1]\n"
    experiment, _ = make_study(tmp_path, extra, select_from="k_sim")
    for seed in (0, 1):
        set_answers(experiment, f"k_sim/dpo/seed{seed}", 0.2)
        set_answers(experiment, f"k_sim/cdpo/seed{seed}", 0.7)
    found = test_claims(collect_results(experiment)).set_index("claim")
    row = found.loc["cDPO on K_sim beats DPO on it"]
    assert row["effect"] == pytest.approx(0.5, abs=0.02) and row["verdict"].startswith("supported (n = ")
    assert "2 seeds" in row["basis"] and "cDPO on K_score beats DPO on it" not in found.index
    (tmp_path / "plain").mkdir()
    assert not test_claims(make_study(tmp_path / "plain")[1])["claim"].str.contains("cDPO").any()


def test_a_clear_gain_is_supported_and_a_clear_loss_contradicted(tmp_path):
    experiment, _ = make_study(tmp_path)
    for method in ("sft", "dpo"):
        set_answers(experiment, f"rlaif/{method}/seed0", 0.4)
        set_answers(experiment, f"k_score/{method}/seed0", 0.8)
        set_answers(experiment, f"k_sim/{method}/seed0", 0.1)
        set_answers(experiment, f"k_score_sim/{method}/seed0", 0.4)
    verdicts = test_claims(collect_results(experiment)).set_index("claim")["verdict"]
    assert verdicts["K_score beats RLAIF (weak judge)"].startswith("supported (n = ")
    assert verdicts["K_sim beats RLAIF (weak judge)"].startswith("contradicted (n = ")
    assert verdicts["K_(score,sim) beats RLAIF (weak judge)"].startswith("cannot tell with n = 220 items")


@pytest.mark.parametrize(
    ("effect", "p_holm", "bounds", "verdict"),
    [
        (0.05, 0.049, (0.001, 0.099), "supported (n = 1,000 items)"),
        (-0.05, 0.049, (-0.099, -0.001), "contradicted (n = 1,000 items)"),
        (0.005, 0.3, (-0.009, 0.019), "no difference larger than 0.02 (n = 1,000 items)"),
        (
            -0.03,
            0.3,
            (-0.079, 0.019),
            "cannot tell with n = 1,000 items; 5,000 would show 0.02",
        ),  # no gain, perhaps a loss
        (0.03, 0.051, (-0.001, 0.061), "cannot tell with n = 1,000 items; 5,000 would show 0.02"),
    ],
)
def test_four_verdicts(effect, p_holm, bounds, verdict):
    row = {"effect": effect, "p_holm": p_holm, "n": 1000, "unit": "items", "smallest": 0.02, "needed_n": 5000}
    assert _judge({**row, "bounds": lambda n_tests: bounds}, 3) == verdict


def test_needed_items_and_equal_answers_are_judged_at_the_corrected_level(claims, study):
    rq2 = claims[claims["question"] == "RQ2"]
    found = compute_difference(study, "k_score", "rlaif")
    expected = compute_needed_n(found.n, found.standard_error, SMALLEST, n_tests=len(rq2))
    assert rq2.loc["K_score beats RLAIF (weak judge)", "needed_n"] == expected
    assert expected > compute_needed_n(found.n, found.standard_error, SMALLEST)


def test_controls_are_compared_where_they_were_trained(tmp_path):
    _, study = make_study(tmp_path, "\nstrategies: [rlaif, k_sim, random, least_kin]\n", select_from="k_sim")
    rows = test_claims(study).set_index("claim")
    assert {"K_sim beats random", "K_sim beats least kin", "K_sim beats RLAIF (weak judge)"} <= set(rows.index)
    assert not any("K_score beats" in claim and "K_sim" not in claim for claim in rows.index)


@pytest.mark.parametrize("policies", [["smollm2-135m", "smollm2-7b"], ["smollm2-135m", "smollm2-7b", "mystery"]])
def test_two_sizes_answer_rq3_and_one_of_unknown_size_is_neither_small_nor_large(tmp_path, policies):
    path = make_experiment(tmp_path).path
    more = "".join(f"  {name}: {{packaged: smollm2-135m}}\n" for name in policies[1:])
    text = path.read_text().replace("models:\n", f"models:\n{more}", 1)
    path.write_text(text.replace("policies: [smollm2-135m]", f"policies: [{', '.join(policies)}]"))
    experiment = load_experiment(path)
    experiment.outputs = tmp_path / "outputs"
    write_study(experiment)
    study = collect_results(experiment)
    row = test_claims(study).set_index("claim").loc["K_score's lead over K_sim is larger for smaller policies, DPO"]
    means = study.results.query("method == 'dpo'").groupby(["policy", "strategy"])["value"].mean()
    lead = means.xs("k_score", level=1) - means.xs("k_sim", level=1)
    assert row["effect"] == pytest.approx(lead["smollm2-135m"] - lead["smollm2-7b"])


@pytest.mark.parametrize("distance", ["rmsd", "cosine"])
def test_families_are_compared_by_the_study_s_own_distance(tmp_path, distance):
    _, study = make_study(tmp_path, f"\nkinship: {{distance: {distance}}}\n")
    row = test_claims(study).set_index("claim").loc["origin models of one family score alike (total)"]
    families = [compute_family(m) for m in study.scores.scores.index]
    found = compute_distance(compute_normalized(study.scores), distance).to_numpy()
    upper = np.triu_indices(len(families), k=1)
    unlike = np.array([families[i] != families[j] for i, j in zip(*upper, strict=True)])
    assert row["effect"] == pytest.approx(found[upper][unlike].mean() - found[upper][~unlike].mean())
    assert distance in row["basis"]


def test_missing_runs_are_named_not_guessed(tmp_path):
    study = collect_results(make_experiment(tmp_path))
    claims = test_claims(study)
    assert claims["verdict"].str.startswith("cannot tell").all() and claims["effect"].isna().all()


def test_p_values_are_corrected_within_a_question(claims):
    rq2 = claims[claims["question"] == "RQ2"]
    assert len(rq2) == 9 and (rq2["p_holm"] <= 1).all()
    assert adjust_holm(np.array([0.01, 0.02, 0.5])) == pytest.approx([0.03, 0.04, 0.5])


def test_needed_items_follow_the_power_formula():
    found = Estimate(0.01, 0.03, np.inf, 200, 1, "")
    expected = 200 * ((1.959964 + 0.841621) * 0.03 / SMALLEST) ** 2
    assert compute_needed_n(found.n, found.standard_error, SMALLEST) == int(np.ceil(expected))
    assert compute_needed_n(found.n, found.standard_error, 0) is None


def test_three_pairs_of_three_prove_nothing(tmp_path):
    """Found in a real study: by the normal approximation they would."""
    experiment, _ = make_study(tmp_path)
    path = experiment.outputs / "runs/smollm2-135m/k_sim/dpo/seed0/training.json"
    content = json.loads(path.read_text())
    content["held_out"] |= {"accuracy": 1.0, "n": 3}
    path.write_text(json.dumps(content))
    row = (
        test_claims(collect_results(experiment)).set_index("claim").loc["DPO on K_sim prefers held-out chosen answers"]
    )
    assert row["effect"] == 0.5 and row["verdict"].startswith("cannot tell with n = 3 pairs")


def test_few_items_widen_the_interval(study):
    found = compute_difference(study, "k_sim", "rlaif", method="dpo", benchmark="arc_easy")
    assert found.df == N_ITEMS - 1
    half = (found.interval[1] - found.interval[0]) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, N_ITEMS - 1) * found.standard_error)


@pytest.mark.parametrize(
    ("n_items", "verdict"), [(2000, ""), (6, "cannot tell with n = 8 origin models: sampling error of their scores")]
)
def test_families_that_sampling_error_could_have_made_are_not_told_apart(n_items, verdict):
    """Two families of four: alike inside, apart in between; with six items a benchmark that may be chance."""
    names = [f"{family}-{size}b" for family in ("alpha", "beta") for size in (1, 3, 7, 9)]
    values = {"arc_easy": [0.6, 0.62, 0.61, 0.6, 0.5, 0.52, 0.51, 0.5],
              "ifeval": [0.3, 0.31, 0.32, 0.3, 0.4, 0.41, 0.42, 0.4]}  # fmt: skip
    scores = pd.DataFrame(values, index=pd.Index(names, name="origin_model"))
    table = ScoreTable(scores, load_benchmarks().loc[[*scores]], n_items=dict.fromkeys(scores, n_items))
    row = _compare_families(table, list(scores), "alike", "rmsd")
    assert row["p"] < 0.05 and row["verdict"] == verdict and (row["low"] > 0) == (n_items == 2000)


def test_families_are_read_from_names():
    assert compute_family("WizardLM-70b") == compute_family("wizardlm-7b") == "wizardlm"
    assert compute_family("GPT-3.5") == "gpt" and compute_family("smollm2-drop-2") == "smollm2-drop"


def test_the_ledger_adds_what_the_runs_recorded(study):
    ledger = build_ledger(study, price_per_million_tokens=10.0).set_index("what")
    rlaif, kinship = ledger.iloc[0], ledger.iloc[1]
    assert (rlaif["calls"], rlaif["prompt_tokens"], rlaif["seconds"]) == (400, 90000, 100)
    assert kinship["jobs"] == 6 and kinship["calls"] == 6 * 6 * N_ITEMS
    assert kinship["prompt_tokens"] == 6000 and kinship["seconds"] == 12
    assert rlaif["price"] == pytest.approx(0.9) and kinship["price"] == pytest.approx(0.066)
    assert ledger.loc["training", "seconds"] == 8 * 30 and ledger.loc["policy evaluation", "jobs"] == 9
    assert compute_break_even(study) == pytest.approx(6600 / (90000 / 400))
    with pytest.raises(InputError, match=r"price_per_million_tokens is -1, expected 0 or more"):
        build_ledger(study, -1)


def test_a_part_is_no_total(tmp_path):
    experiment, _ = make_study(tmp_path)
    path = experiment.outputs / "origins/smollm2-drop-1/scores.json"
    content = json.loads(path.read_text())
    del content["prompt_tokens"]
    path.write_text(json.dumps(content))
    study = collect_results(experiment)
    assert build_ledger(study).set_index("what").loc["labels, kinship: origin evaluation", "prompt_tokens"] is None
    assert compute_break_even(study) is None


def test_a_study_differs_from_itself_by_nothing(study):
    table, counts = compare_studies(study, study)
    assert (table["difference"] == 0).all() and (table["p_holm"] == 1).all()
    assert counts == "45 scores compared; 0 only in study, 0 only in study."


def test_two_seeds_are_compared_cell_by_cell(study, tmp_path):
    experiment, _ = make_study(tmp_path, "\nseeds: [1]\n")
    set_answers(experiment, "k_sim/dpo/seed1", 1.0)
    other = collect_results(experiment)
    table, _ = compare_studies(study, other)
    row = table.query("strategy == 'k_sim' and method == 'dpo' and benchmark == 'all'").iloc[0]
    assert row["b"] == 1 and row["difference"] == pytest.approx(row["a"] - 1) and row["basis"] == "paired over items"
    assert row["low"] < row["difference"] < row["high"] and row["p_holm"] < 0.001
    written = build_comparison(table, "counts", "a_against_b").save(tmp_path)
    assert "**" in written[1].read_text() and "counts" in written[1].read_text()


def test_studies_without_a_run_in_common_are_refused(study, tmp_path):
    with pytest.raises(InputError, match="study and study share no run"):
        compare_studies(study, collect_results(make_experiment(tmp_path)))


def test_cells_stand_beside_the_papers(study):
    table = compare_with_paper(study, "table2").frame
    assert table.loc[("MMLU-STEM", "K_sim"), "paper"] == 0.34, "as printed; the mean of Table 4 is .3354"
    cells = table.loc[("MMLU-STEM", "K_sim")]
    assert cells["difference"] == pytest.approx(cells["ours"] - cells["paper"])
    assert "no row of table4 is in both" in compare_with_paper(study, "table4").notes[-1]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.parametrize("which", ["measured", "published", "controls"])
def test_figures_5_and_6_are_labelled_and_readable(which, study, tmp_path):
    set_style()
    chosen = study if which == "measured" else load_published()
    if which == "controls":
        strategies = "rlaif, k_score, k_sim, k_score_sim, delta, random, least_kin"
        chosen = make_study(tmp_path, f"\nstrategies: [{strategies}]\n")[1]
    means, leads = compute_capabilities(chosen), compute_leads(chosen)
    panels = plot_capabilities(means, leads)
    assert [ax.get_title().partition("\n")[0] for ax in panels[0]] == [
        "knowledge",
        "instruction following",
        "reasoning",
    ]
    assert all("n = " in ax.get_title() for ax in panels[0]) and "share" in panels[0, 0].get_xlabel()
    unknown = ["partly unknown" in ax.get_title() for ax in panels[0]]
    assert unknown == [which == "published", False, which == "published"], "a dot without an interval says why"
    for row, values, scale in ((panels[0], means, 1), (panels[1], leads, 100)):
        dots = [line for ax in row for line in ax.lines if line.get_marker() != "None"]
        assert {round(float(dot.get_xdata()[0]), 9) for dot in dots} == set((scale * values["value"]).round(9))
        looks = {(dot.get_color(), dot.get_marker()) for dot in dots}
        assert len(looks) == values["strategy"].nunique(), "strategies look alike"
    check_boxes(panels[0, 0].figure)
    axes = plot_policies(compute_policies(chosen, "dpo"), "dpo")
    assert len(axes) == len(chosen.policies) and "share" in axes[0].get_ylabel()
    highest = max(p.get_height() for a in axes for p in a.patches)
    assert all(a.get_ylim()[1] >= highest for a in axes), "a bar is cut"
    check_boxes(axes[0].figure)


def test_chance_lines_lie_at_the_level_of_the_items_asked(study):
    """ARC-Easy has items of 3 and 5 options: a guess at these gets .262 right, not the nominal quarter."""
    results = study.results.assign(
        chance=study.results["chance"].where(study.results["benchmark"] != "arc_easy", 0.262)
    )
    bars = compute_policies(replace(study, results=results), "dpo")
    (ax, *_) = plot_policies(bars, "dpo")
    dotted = next(c for c in ax.collections if c.get_label() == "chance")
    levels = {float(segment[0, 1]) for segment in dotted.get_segments() if len(segment)}
    assert levels == set(results["chance"].dropna()) and 0.262 in levels
    own = replace(study, results=results)
    said = describe_chance(own)
    assert "ARC-Easy .262" in said.partition("nominal")[0], "the caption gives the level of these items"
    table = build_table1(own).frame.xs("ARC-Easy", level="benchmark")
    assert table["chance"].tolist() == ["0.262"]
    assert build_table1(load_published()).frame.xs("ARC-Easy", level="benchmark")["chance"].tolist() == ["0.250"]


def test_a_missing_bar_is_written_not_drawn_as_zero(tmp_path):
    experiment, _ = make_study(tmp_path)
    (experiment.outputs / "runs/smollm2-135m/k_sim/dpo/seed0/scores.json").unlink()
    study = collect_results(experiment)
    panels = plot_capabilities(compute_capabilities(study), compute_leads(study))
    assert [t.get_text() for ax in panels.flat for t in ax.texts] == ["n/a"] * 6


def test_an_empty_study_still_draws(tmp_path):
    set_style()
    study = collect_results(make_experiment(tmp_path))
    counts = compute_counts(study)
    bars = [
        plot_capabilities(compute_capabilities(study), compute_leads(study))[0, 0],
        plot_policies(compute_policies(study, "dpo"), "dpo")[0],
    ]
    for ax in [
        *bars,
        plot_labelling(counts),
        plot_framework(study, counts),
        plot_prompt(*find_prompt(study)),
    ]:
        check_boxes(ax.figure)


def test_diagrams_show_the_studys_own_counts(study, tmp_path):
    set_style()
    counts = compute_counts(study)
    shown = " ".join(t.get_text() for t in plot_labelling(counts).texts)
    assert "400 calls" in shown and "90,000 tokens" in shown and "6 origin models" in shown
    for figure in (plot_labelling(counts).figure, plot_framework(study, counts).figure):
        check_boxes(figure)


def test_a_prompt_is_shown_as_sent_or_cut_with_a_count(tmp_path):
    set_style()
    ax = plot_prompt("Question: 1 + 1?\nA. 1\nB. 2", "B", "arc_easy")
    assert ax.texts[1].get_text() == "Question: 1 + 1?\nA. 1\nB. 2" and ax.texts[2].get_text() == "answer: B"
    check_boxes(ax.figure)
    long = plot_prompt("\n".join(f"line {k}" for k in range(100)), "B" * 500)
    assert "[74 more lines]" in long.texts[1].get_text()
    check_boxes(long.figure)
