"""Score tables: the paper's numbers, units, merges, and the text of every refusal."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from karma.errors import InputError
from karma.scores.measured import build_score_table
from karma.scores.names import canonical_model_name
from karma.scores.normalise import compute_below_chance, compute_normalized, compute_s_pref
from karma.scores.read import load_score_table, merge_score_tables, save_score_table
from karma.scores.table import ScoreTable, load_benchmarks

S_PREF_TWO_DIGIT = {
    "GPT-4": 0.9899, "bard": 0.8561, "GPT-3.5-turbo": 0.7703, "WizardLM-70b": 0.5772,
    "Llama-2-70b-chat": 0.5759,
    "Vicuna-33b": 0.5728, "Falcon-40b-instruct": 0.4680, "WizardLM-13b": 0.4511, "Llama-2-13b-chat": 0.4493,
    "Llama-2-7b-chat": 0.4061, "UltraLM-13b": 0.3946, "MPT-30b-chat": 0.3748, "WizardLM-7b": 0.3405,
    "Alpaca-7b": 0.1592, "Pythia-12b": 0.0654, "Starchat": 0.0518,
}  # fmt: skip
PRINTED_AVERAGE = {
    "GPT-4": 0.99, "GPT-3.5-turbo": 0.77, "bard": 0.86, "Llama-2-7b-chat": 0.41, "Llama-2-13b-chat": 0.45,
    "Llama-2-70b-chat": 0.58, "UltraLM-13b": 0.4, "WizardLM-7b": 0.34, "WizardLM-13b": 0.45,
    "WizardLM-70b": 0.58,
    "Vicuna-33b": 0.57, "Alpaca-7b": 0.16, "Falcon-40b-instruct": 0.47, "MPT-30b-chat": 0.38,
    "Starchat": 0.05,
    "Pythia-12b": 0.07,
}  # fmt: skip
ULTRAFEEDBACK = [
    "wizardlm-13b", "llama-2-7b-chat", "vicuna-33b", "llama-2-13b-chat", "wizardlm-7b", "llama-2-70b-chat",
    "ultralm-13b", "gpt-3.5-turbo", "mpt-30b-chat", "alpaca-7b", "wizardlm-70b", "gpt-4",
    "falcon-40b-instruct",
    "starchat", "bard", "pythia-12b",
]  # fmt: skip


@pytest.fixture(scope="module")
def paper() -> ScoreTable:
    return load_score_table("paper")


def save(folder, text: str):
    path = folder / "my.csv"
    path.write_text(text, "utf-8")
    return path


def measured(value: float, n: int = 28, version: str = "1") -> dict:
    cell = {"value": value, "n": n, "task_version": version, "template_hash": "x", "shots": 0}
    return {"benchmarks": {"ifeval": cell, "arc_easy": dict(cell, value=value / 2)}}


@pytest.mark.parametrize("model", S_PREF_TWO_DIGIT)
def test_s_pref_of_the_printed_table(paper, model):
    assert compute_s_pref(paper)[model] == pytest.approx(S_PREF_TWO_DIGIT[model], abs=5.1e-5)


@pytest.mark.parametrize("model", PRINTED_AVERAGE)
def test_four_digits_round_to_every_printed_average(model):
    assert round(compute_s_pref(load_score_table("paper_four_digit"))[model], 2) == PRINTED_AVERAGE[model]


def test_two_digits_round_to_14_of_16_printed_averages_and_the_note_names_the_rest(paper):
    rounded = compute_s_pref(paper).round(2)
    assert sum(rounded[m] == PRINTED_AVERAGE[m] for m in PRINTED_AVERAGE) == 14
    assert len(paper.notes) == 1 and "UltraLM-13b by 0.0054, MPT-30b-chat by 0.0052" in paper.notes[0]
    assert load_score_table("paper_four_digit").notes == ()


def test_the_two_variants_differ_in_mmlu_pro_alone_and_by_rounding_alone(paper):
    gap = (paper.scores - load_score_table("paper_four_digit").scores).abs().max()
    assert (gap.drop("mmlu_pro") == 0).all() and 0 < gap["mmlu_pro"] <= 0.005


def test_units_of_table_3(paper):
    assert paper.scores.loc["GPT-4"].to_dict() == {
        "ifeval": 0.8537, "mmlu_stem": 0.864, "mmlu_pro": 0.64, "hellaswag": 0.953, "arc_easy": 0.9663,
        "arc_challenge": 0.964,
    }  # fmt: skip


def test_names_map_in_both_directions(paper):
    assert {canonical_model_name(m) for m in paper.scores.index} == set(ULTRAFEEDBACK)
    assert [canonical_model_name(m) for m in ULTRAFEEDBACK] == ULTRAFEEDBACK


def test_table_1():
    known = load_benchmarks()
    assert known["capability"].to_dict() == {
        "ifeval": "instruction following", "mmlu_stem": "knowledge", "mmlu_pro": "knowledge",
        "hellaswag": "reasoning",
        "arc_easy": "reasoning", "arc_challenge": "reasoning",
    }  # fmt: skip
    assert known.index[known["answer_form"] == "descriptive"].tolist() == ["ifeval"]
    assert known["n_items"].tolist() == [834, 3153, 12032, 10042, 2376, 1172]


def test_cells_at_or_below_chance(paper):
    below = compute_below_chance(paper).stack()
    assert set(below[below].index) == {
        ("MPT-30b-chat", "hellaswag"), ("Alpaca-7b", "hellaswag"), ("Starchat", "arc_easy"), ("Pythia-12b",
        "arc_easy"),
        ("Starchat", "arc_challenge"),
    }  # fmt: skip


def test_exactly_at_chance_counts(tmp_path):
    table = load_score_table(save(tmp_path, "origin_model,arc_easy\na,0.25\nb,0.26\n"))
    assert compute_below_chance(table)["arc_easy"].tolist() == [True, False]


def test_saved_table_reads_back_the_same(paper, tmp_path):
    save_score_table(paper, tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text().startswith("origin_model,ifeval")
    pd.testing.assert_frame_equal(load_score_table(tmp_path / "scores.csv").scores, paper.scores)


def test_titles_and_percent_signs_are_understood(tmp_path):
    path = save(tmp_path, "origin_model,MMLU-STEM,ARC-Easy\na,86.4%,0.5\nb,40%,0.75\n")
    assert load_score_table(path).scores.to_numpy().tolist() == [[0.864, 0.5], [0.4, 0.75]]


def test_byte_order_mark_blank_lines_and_crlf(tmp_path):
    path = tmp_path / "my.csv"
    path.write_bytes("\ufefforigin_model,ifeval\r\n\r\na,1\r\nb,0.5\r\n".encode())
    assert load_score_table(path).scores["ifeval"].tolist() == [1.0, 0.5]


REFUSED = {
    "origin_model,ifeval\na,\nb,2\n": "my.csv, row 'a', column 'ifeval' is empty: add the score",
    "origin_model,ifeval\na,x\nb,2\n": "my.csv, row 'a', column 'ifeval': 'x' is not a number",
    "origin_model,ifeval\na,nan\nb,2\n": "my.csv, row 'a', column 'ifeval': 'nan' is not a number",
    "origin_model,ifeval\na,0.3_4\nb,0.5\n": "my.csv, row 'a', column 'ifeval': '0.3_4' is not a number",
    "origin_model,ifeval\na,\u0663\nb,2\n": "my.csv, row 'a', column 'ifeval': '\u0663' is not a number",
    "origin_model,ifeval\nGPT-4,50\ngpt-4,40\n": "my.csv: 'gpt-4' and 'GPT-4' are the same origin model",
    "origin_model,mmlu_stem\na,86.4%\nb,0.64\n": "mixes percent (a: 86.4%) with fraction (b: 0.64)",
    "origin_model,mmlu_stem\na,86.4\nb,0.64\n": "mixes percent (a: 86.4) with fraction (b: 0.64)",
    "origin_model,ifeval\na,101\nb,50\n": "row 'a', column 'ifeval': 101 is out of range",
    "origin_model,ifeval\na,-0.1\nb,0.5\n": "row 'a', column 'ifeval': -0.1 is out of range",
    "origin_model,mmlu\na,1\nb,0.5\n": "unknown benchmark 'mmlu': known are ifeval, mmlu_stem",
    "origin_model\na\nb\n": "no benchmark column: known are",
    "origin_model,ifeval\na,0.5\n": "my.csv: 1 origin models, kinship needs at least two",
    "origin_model,ifeval\na,0.5\nb,0.5\n": "all models score 0.5 on 'ifeval', min-max is undefined",
    "origin_model,ifeval,ifeval\na,1,1\nb,0,0\n": "column 'ifeval' stands twice",
    "origin_model,ifeval,IFEval\na,1,1\nb,0,0\n": "ifeval and IFEval are the same benchmark",
    "origin_model,ifeval\na,86,4\nb,50\n": "row 2 ('a'): 3 cells where the header has 2",
    "model,ifeval\na,1\nb,0\n": "the first column is 'model', expected 'origin_model'",
    "": "my.csv is empty",
    "origin_model,ifeval\n,1\nb,0\n": "a row has no origin model",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_name_cell_and_remedy_in_one_line(tmp_path, text):
    with pytest.raises(InputError) as caught:
        load_score_table(save(tmp_path, text))
    assert REFUSED[text] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.csv", "."])
def test_absent_file_and_folder_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"score table .*(does not exist|cannot be read)"):
        load_score_table(tmp_path / name)


def test_zero_stands_in_either_unit(tmp_path):
    table = load_score_table(save(tmp_path, "origin_model,ifeval\na,0\nb,50\n"))
    assert table.scores["ifeval"].tolist() == [0, 0.5]


def test_a_model_that_is_last_everywhere_is_not_refused(tmp_path):
    table = load_score_table(save(tmp_path, "origin_model,ifeval,arc_easy\na,0.1,0.2\nb,0.5,0.6\nc,0.3,0.9\n"))
    assert compute_normalized(table).loc["a"].tolist() == [0, 0]


def test_measured_scores_keep_their_n():
    table = build_score_table({"a": measured(0.5), "b": measured(0.25)})
    assert table.n_items == {"ifeval": 28, "arc_easy": 28} and table.n_items_source == "measured"
    assert table.scores.loc["b"].tolist() == [0.25, 0.125]


@pytest.mark.parametrize("other", [measured(0.2, n=30), measured(0.2, version="2")])
def test_measured_unlike_each_other_is_refused(other):
    with pytest.raises(InputError, match=r"ifeval: 'a' has (n|task_version) .*: evaluate both alike"):
        build_score_table({"a": measured(0.5), "b": other})


def test_measured_benchmark_missing_for_one_model():
    other = {"benchmarks": {"ifeval": measured(0.1)["benchmarks"]["ifeval"]}}
    with pytest.raises(InputError, match="only one of 'a' and 'b' was scored on 'arc_easy'"):
        build_score_table({"a": measured(0.5), "b": other})


def test_constant_benchmark_of_a_measured_study_is_left_out_only_on_request_and_noted():
    one, other = measured(0.5), measured(0.4)
    other["benchmarks"]["arc_easy"]["value"] = one["benchmarks"]["arc_easy"]["value"]
    with pytest.raises(InputError, match="min-max is undefined"):
        build_score_table({"a": one, "b": other})
    table = build_score_table({"a": one, "b": other}, drop_constant=True)
    assert list(table.scores) == ["ifeval"] and "arc_easy: all models score 0.2500; it is left out" in table.notes
    with pytest.raises(InputError, match="equal on every benchmark"):
        build_score_table({"a": one, "b": one}, drop_constant=True)


def test_merge_takes_min_and_max_over_all_rows(paper):
    new = replace(paper, scores=(paper.scores.iloc[:2] / 2).set_axis(["mine-a", "mine-b"]))
    merged = merge_score_tables(new, paper)
    assert merged.scores.shape == (18, 6)
    assert compute_s_pref(merged)["GPT-4"] == pytest.approx(compute_s_pref(paper)["GPT-4"], abs=0.05)
    with pytest.raises(InputError, match=r"'alpaca-7b' stands in .* and in .*: rename or remove one row"):
        merge_score_tables(paper, paper)
    with pytest.raises(InputError, match=r"only one of .* has 'ifeval'"):
        merge_score_tables(replace(new, scores=new.scores.drop(columns="ifeval")), paper)


def test_positive_affine_change_of_a_benchmark_changes_nothing(paper):
    changed = replace(paper, scores=paper.scores.assign(ifeval=paper.scores["ifeval"] * 0.5 + 0.2))
    np.testing.assert_allclose(compute_normalized(changed), compute_normalized(paper), atol=1e-12)


def test_table_from_memory_is_checked(paper):
    bad = paper.scores.copy()
    bad.loc["bard", "ifeval"] = np.nan
    with pytest.raises(InputError, match="row 'bard', column 'ifeval': nan is no fraction"):
        replace(paper, scores=bad)
