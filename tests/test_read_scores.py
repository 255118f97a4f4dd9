"""`karma read-scores`: any table, harness results, missing cells, and what other commands make of what it writes."""

import json
import random

import pandas as pd
import pytest
from lm_eval.result_schema import EvalResults
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.kinship.similarity import compute_kinship
from karma.pairs.pairs import load_pairs
from karma.scores.normalise import compute_s_pref
from karma.scores.read import find_own_map, load_score_table, save_score_table
from karma.scores.table import set_kinship
from karma.scores.understand import understand

MODELS = ["own-7b", "own-13b", "their-chat", "tiny"]
TESTS = ["Law exam", "Bar", "Poems", "SQL", "Maths (hard)", "Triage", "Tax", "Chess", "Recipes", "Small talk"]
MAP = (
    "origin_model: [who]\nbenchmarks:\n"
    "  judged: {column: MT, unit: [1, 10], title: MT-Bench, capability: chat}\n"
    "  harm: {column: Harm, unit: percent, title: Harm, capability: safety, direction: lower, n_items: 50}\n"
)


def call(*words, ok=True):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if ok and result.exception:
        raise result.exception
    return result.output if ok else str(result.exception)


def write(path, text):
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def unknown(tmp_path):
    """Ten benchmarks that no one has heard of, in percent, and a column of text."""
    draw = random.Random(0)
    lines = [",".join(["Model", "Licence", *TESTS])]
    lines += [",".join([m, "own", *(f"{draw.uniform(5, 95):.1f}" for _ in TESTS)]) for m in MODELS]
    return write(tmp_path / "ten.csv", "\n".join(lines))


def test_ten_unknown_benchmarks_become_pairs_in_two_commands(unknown, tmp_path):
    rows = [{"source": "own", "instruction": f"Question {i}?", "completions": [
        {"model": m, "response": f"{m} on {i}"} for m in MODELS]} for i in range(6)]  # fmt: skip
    pool = write(tmp_path / "pool.jsonl", "\n".join(json.dumps(row) for row in rows))
    told = call("read-scores", unknown, "--out", tmp_path / "table.csv")
    assert (
        "4 origin models (by column 'Model') x 10 benchmarks" in told and "left aside: 'Licence' (no numbers)" in told
    )
    assert "maths_hard: column 'Maths (hard)', percent, unstated, chance unknown, items unknown" in told
    assert told.count("own-7b") == 1 and "written: " in told  # the preview
    call(
        "binarize", "--pool", pool, "--scores", tmp_path / "table.csv", "--strategy", "k_sim", "--out", tmp_path / "out"
    )
    pairs, table = load_pairs(tmp_path / "out").table.to_pylist(), load_score_table(tmp_path / "table.csv")
    kinship = compute_kinship(table).stack()
    best = kinship[[one != other for one, other in kinship.index]].max()
    assert len(pairs) == 6 and {round(pair["kinship"], 9) for pair in pairs} == {round(best, 9)}
    s_pref = compute_s_pref(table)
    assert all(s_pref[pair["chosen_model"]] > s_pref[pair["rejected_model"]] for pair in pairs)


def test_a_written_table_means_the_same_wherever_it_is_read(tmp_path):
    source = write(tmp_path / "s.csv", "who,MT,Harm,Base\na,1,10,x\nb,10,30,x\nc,5.5,20,\n")
    columns = write(tmp_path / "map.yaml", MAP + "facts: {base_model: Base}\n")
    read = load_score_table(source, columns)
    assert read.scores.to_dict("list") == {"judged": [0, 1, 0.5], "harm": [0.9, 0.7, 0.8]}
    told = set_kinship(read, "rmsd", {"chat": 2, "safety": 1})
    save_score_table(told, tmp_path / "t.csv")
    again = load_score_table(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(again.scores, read.scores)
    assert again.facts["base_model"].fillna("").tolist() == ["x", "x", ""]
    assert (again.measure, again.weights) == ("rmsd", {"judged": 2.0, "harm": 1.0})
    assert compute_kinship(again).equals(compute_kinship(told)) and not compute_kinship(again).equals(
        compute_kinship(read)
    )
    assert again.benchmarks["capability"].to_dict() == {"judged": "chat", "harm": "safety"}


def test_a_table_that_has_grown_away_from_its_map_is_refused(tmp_path, unknown):
    call("read-scores", unknown, "--out", tmp_path / "t.csv")
    grown = pd.read_csv(tmp_path / "t.csv").assign(more=0.5)
    grown.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=r"t.csv has a column 'more' of which t.columns.yaml says nothing: describe"):
        load_score_table(tmp_path / "t.csv")
    grown.drop(columns=["more", "bar"]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=r"t.csv has no column 'bar', which the column map names"):
        load_score_table(tmp_path / "t.csv")
    find_own_map(tmp_path / "t.csv").unlink()
    with pytest.raises(InputError, match=r"unknown benchmark 'law_exam': .*read the table with `karma read-scores`"):
        load_score_table(tmp_path / "t.csv")


GAPS = "Model,a,b,c\nx,10,20,30\ny,,40,20\nz,30,n/a,10\nw,5,6,7\n"


@pytest.mark.parametrize(
    ("rule", "models", "benchmarks", "note"),
    [
        ("drop_model", ["x", "w"], ["a", "b", "c"], "note: 2 of 4 models lack a score and are left out: y, z"),
        ("drop_benchmark", ["x", "y", "z", "w"], ["c"], "note: 2 of 3 benchmarks lack a score and are left out: a, b"),
    ],
)
def test_missing_cells_are_left_out_as_told_and_counted(tmp_path, rule, models, benchmarks, note):
    source = write(tmp_path / "gaps.csv", GAPS)
    assert note in call("read-scores", source, "--out", tmp_path / "t.csv", "--missing", rule)
    table = load_score_table(tmp_path / "t.csv")
    assert list(table.scores.index) == models and list(table.scores) == benchmarks
    assert note.removeprefix("note: ") in table.notes  # and it stays with the table


def test_paper_benchmarks_may_lack_cells_too(tmp_path):
    source = write(tmp_path / "t.csv", "origin_model,ifeval,arc_easy\na,1,0.3\nb,,0.5\nc,0.5,0.9\n")
    assert list(load_score_table(source, missing="drop_model").scores.index) == ["a", "c"]
    assert list(load_score_table(source, missing="drop_benchmark").scores) == ["arc_easy"]


REFUSED = {
    "Model,a\nx,10\ny,\n": "row 'y', column 'a' is empty: add the score, remove the row, or choose --missing",
    "Model,a\nx,10\ny,0.5\n": "column 'a' mixes percent (x (2): 10) with fraction (y (3): 0.5)",
    "1,2\n3,4\n5,6\n": "no column names the models: call one of 1, 2 'origin_model'",
    "Model,ARC-Easy\nx,0.3_4\ny,0.5\n": "t.csv, column 'ARC-Easy': a cell is '0.3_4': correct it, or leave it out",
    "Model,a\nx,0.3_4\ny,0.5\n": "no column of scores ('a': no numbers)",
    "Model,Elo\nx,1000\ny,1200\n": "no column of scores ('Elo': 1000 is outside 0 to 100: name its scale in a column map)",
    "Model,A b,A-b\nx,10,20\ny,20,10\n": "columns 'A-b' and another make one name, 'a_b': rename one",
    "Model,a\nx,10\nx,20\n": "'x' and 'x' are the same origin model: keep one row",
    "Model,a\nx,10\ny,10\n": "all models score 0.1 on 'a', min-max is undefined: leave it out",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_are_one_line(tmp_path, text):
    said = call("read-scores", write(tmp_path / "t.csv", text), "--out", tmp_path / "out.csv", ok=False)
    assert REFUSED[text] in said and "\n" not in said
    assert not (tmp_path / "out.csv").exists()


def test_refusals_of_options(tmp_path, unknown):
    out = ["--out", tmp_path / "o.csv"]
    assert "--ignore Cook: ten.csv has no such column" in call(
        "read-scores", unknown, "--ignore", "Cook", *out, ok=False
    )
    assert "missing is 'fill': choose from refuse" in call("read-scores", unknown, "--missing", "fill", *out, ok=False)
    assert "no.csv does not exist" in call("read-scores", tmp_path / "no.csv", *out, ok=False)
    assert "name the table to write" in call("read-scores", unknown, "--out", tmp_path / "o", ok=False)
    assert "--unit per cent: choose percent" in call("read-scores", unknown, "--unit", "per cent", *out, ok=False)
    said = call("read-scores", unknown, "--columns", "leaderboard", *out, ok=False)
    assert said.endswith("give a YAML file, or one of open_llm_leaderboard_v1, open_llm_leaderboard_v2")
    bad = write(tmp_path / "bad.yaml", MAP.replace("[1, 10]", "[10, 1]"))
    assert "[10, 1] is no unit: write percent, fraction, or a scale" in call(
        "read-scores", unknown, "--columns", bad, *out, ok=False
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "chat}",
            "chat, answer_form: nope}",
            "benchmarks.judged: answer_form is 'nope': choose from multiple choice, desc",
        ),
        ("MT-Bench", '"a\\nb"', "benchmarks.judged: title is 'a\\nb': write some words, in one line"),
        ("MT-Bench", '" "', "benchmarks.judged: title is ' ': write some words"),
        ("chat}", '"a\\eb"}', "benchmarks.judged: capability is 'a\\x1bb': write some words"),
        ("[1, 10]", "[false, true]", "[False, True] is no unit"),
        ("[1, 10]", "[1, .inf]", "[1, inf] is no unit"),
        ("benchmarks:", "kinship: {measure: nope}\nbenchmarks:", "kinship.measure: Input should be 'cosine', 'centred"),
        (
            "benchmarks:",
            "kinship: {weights: {law: 1}}\nbenchmarks:",
            "kinship.weights: 'law' is no benchmark of this map",
        ),
    ],
)
def test_every_field_of_a_column_map_is_checked(tmp_path, old, new, message):
    table = write(tmp_path / "t.csv", "who,MT,Harm\na,9,10\nb,5,20\n")
    columns, out = write(tmp_path / "map.yaml", MAP.replace(old, new)), tmp_path / "o.csv"
    said = call("read-scores", table, "--columns", columns, "--out", out, ok=False)
    assert said.startswith(f"column map {columns}: ") and message in said and not out.exists()


def test_a_heading_of_two_lines_is_a_title_of_one(tmp_path):
    table = write(tmp_path / "t.csv", 'Model,"Law\n exam"\na,10\nb,20\n')
    call("read-scores", table, "--out", tmp_path / "o.csv")
    assert load_score_table(tmp_path / "o.csv").benchmarks["title"].tolist() == ["Law exam"]


def test_a_weak_model_s_percent_is_told_from_a_fraction_by_its_unit(tmp_path):
    source = write(tmp_path / "w.csv", "Model,Maths\na,0.8\nb,35.1\n")
    said = call("read-scores", source, "--out", tmp_path / "t.csv", ok=False)
    assert "mixes percent" in said and said.endswith("or declare it in a column map or by `karma read-scores --unit`")
    call("read-scores", source, "--unit", "percent", "--out", tmp_path / "t.csv")
    assert load_score_table(tmp_path / "t.csv").scores["maths"].tolist() == [0.008, 0.351]


def test_a_leaderboard_is_recognised_by_its_columns(tmp_path):
    head = "fullname,Precision,ARC,HellaSwag,MMLU,TruthfulQA,Winogrande,GSM8K,#Params (B),Architecture,Merged,Average ⬆️"
    rows = [
        "a/b,float16,60,80,60,45,75,50,7.2,LlamaForCausalLM,False,61.7",
        "a/B,float16,50,70,0.9,40,70,30,13,X,True,50",
    ]
    source = write(tmp_path / "v1.csv", "\n".join([head, *rows]))
    told = call("read-scores", source, "--out", tmp_path / "t.csv")
    assert "v1.csv has the columns of open_llm_leaderboard_v1" in told
    table = load_score_table(tmp_path / "t.csv")
    assert table.scores.loc["a/B float16", "mmlu"] == 0.009 and table.n_items["gsm8k"] == 1319
    assert table.facts["merged"].astype(str).tolist() == ["False", "True"]
    assert table.facts["repository"].tolist() == ["a/b", "a/B"]


def lm_eval_file(model, acc, **changed):
    content = {
        "results": {
            "hellaswag": {"alias": "hellaswag", "acc,none": acc, "acc_stderr,none": 0.01, "acc_norm,none": acc + 0.1},
            "mmlu": {"acc,none": acc / 2, "alias": "mmlu"}, "mmlu_law": {"acc,none": acc / 2, "alias": " - law"},
            "mmlu_art": {"acc,none": acc / 2, "alias": " - art"},
            "wikitext": {"word_perplexity,none": 12.5, "alias": "wikitext"},
            "toxigen": {"score,none": 0.25 + acc / 10, "alias": "toxigen"},
        },
        "group_subtasks": {"mmlu": ["mmlu_law", "mmlu_art"], "hellaswag": []},
        "higher_is_better": {"toxigen": {"score": False}, "hellaswag": {"acc": True}},
        "versions": {"hellaswag": 1.0}, "n-shot": {"hellaswag": 10},
        "n-samples": {"hellaswag": {"original": 10042, "effective": 100}, "mmlu_law": {"original": 9, "effective": 9},
                      "mmlu_art": {"original": 5, "effective": 5}, "toxigen": {"original": 940, "effective": 940},
                      "wikitext": {"original": 62, "effective": 62}},
        "config": {"model": "hf"},
    }  # fmt: skip
    assert set(content) <= set(EvalResults.__annotations__)
    return {**content, "model_name": model, **changed}


def save_results(folder, model, content, day="2025-01-01"):
    path = folder / model.replace("/", "__") / f"results_{day}T00-00-00.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, json.dumps(content))


def test_results_of_lm_eval(tmp_path):
    for model, acc in (("org/a", 0.4), ("org/b", 0.6)):
        save_results(tmp_path / "runs", model, lm_eval_file(model, acc))
    save_results(tmp_path / "runs", "org/a", lm_eval_file("org/a", 0.5), day="2025-02-01")
    told = call("read-scores", tmp_path / "runs", "--out", tmp_path / "t.csv")
    table = load_score_table(tmp_path / "t.csv")
    assert table.scores.loc["org/a"].to_dict() == {"hellaswag": 0.6, "mmlu": 0.25, "toxigen": 0.7}  # the later, turned
    assert table.n_items == {"hellaswag": 100, "mmlu": 14, "toxigen": 940} and table.n_items_source == "measured"
    assert "hellaswag: column 'hellaswag/acc_norm,none'" in told and "lower is better" in told
    assert "left aside: 'wikitext' (no metric between 0 and 1" in told and "'mmlu of org/a' (an older result)" in told
    own = write(tmp_path / "own.yaml", "origin_model: [origin_model]\nbenchmarks:\n  hs: {column: 'hellaswag/acc,none', "
                                       "unit: fraction, title: HS, capability: reasoning}\n")  # fmt: skip
    call("read-scores", tmp_path / "runs", "--columns", own, "--out", tmp_path / "u.csv")
    assert load_score_table(tmp_path / "u.csv").scores["hs"].to_dict() == {"org/a": 0.5, "org/b": 0.6}


def test_models_evaluated_otherwise_are_refused(tmp_path):
    save_results(tmp_path, "a", lm_eval_file("a", 0.4))
    save_results(tmp_path, "b", lm_eval_file("b", 0.6, **{"n-shot": {"hellaswag": 0}}))
    words = ["read-scores", tmp_path, "--out", tmp_path / "t.csv"]
    said = call(*words, ok=False)
    assert said == (
        "hellaswag: 'a' has 10 shots, 'b' has 0 shots: evaluate both alike, or leave it out (--ignore hellaswag)"
    )
    assert "x 2 benchmarks" in call(*words, "--ignore", "hellaswag")


@pytest.mark.parametrize("nested", [False, True])
def test_results_of_lighteval(tmp_path, nested):
    for model, acc in (("org/a", 0.4), ("org/b", 0.6)):
        results = {
            "leaderboard|arc:challenge|25": {"acc": acc, "acc_stderr": 0.1, "acc_norm": acc / 2},
            "leaderboard|mmlu:law|5": {"acc": acc}, "leaderboard|mmlu:art|5": {"acc": acc},
            "leaderboard|mmlu:_average|5": {"acc": acc}, "gsm8k|0": {"extractive_match": acc - 0.2},
            "all": {"acc": 0.9},
        }  # fmt: skip
        counts = {
            "leaderboard|arc:challenge": 1172,
            "leaderboard|mmlu:law": 4,
            "leaderboard|mmlu:art": 6,
            "gsm8k|0": 50,
        }
        general = {"model_config": {"model_name": model}} if nested else {"model_name": model, "lighteval_sha": "x"}
        save_results(tmp_path / "runs", model, {"config_general": general, "results": results, "versions": {},
            "config_tasks": {t: {"effective_num_docs": n} for t, n in counts.items()}})  # fmt: skip
    call("read-scores", tmp_path / "runs", "--out", tmp_path / "t.csv")
    table = load_score_table(tmp_path / "t.csv")
    assert table.scores.round(6).to_dict("index")["org/b"] == {"arc_challenge": 0.3, "gsm8k": 0.4, "mmlu": 0.6}
    assert table.n_items == {"arc_challenge": 1172, "gsm8k": 50, "mmlu": 10}
    assert table.benchmarks.loc["arc_challenge", "capability"] == "reasoning"


def test_results_of_karma_beside_a_table(tmp_path):
    for model, value in (("a", 0.5), ("b", 0.25)):
        cell = {"value": value, "n": 60, "task_version": 2.0, "template_hash": "x"}
        write(tmp_path / f"{model}.json", json.dumps({"model": model, "benchmarks": {"arc_easy": cell}}))
    more = write(tmp_path / "more.csv", "origin_model,ARC-Easy\nc,80%\nd,20%\n")
    told = call("read-scores", tmp_path / "a.json", tmp_path / "b.json", more, "--out", tmp_path / "t.csv")
    table = load_score_table(tmp_path / "t.csv")
    assert "together 4 origin models" in told
    assert table.scores["arc_easy"].to_dict() == {"a": 0.5, "b": 0.25, "c": 0.8, "d": 0.2}
    assert table.n_items == {"arc_easy": 60} and "smaller number" in table.n_items_source


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "it has no 'results'"), ('{"results": {}}', "does not name its model: add 'model_name'"), ("{", "as JSON")],
)
def test_files_of_no_known_kind(tmp_path, content, message):
    file = write(tmp_path / "results_1.json", content)
    assert message in call("read-scores", file, "--out", tmp_path / "t.csv", ok=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"n-samples": {"toxigen": {"effective": "x"}}},
            "n-samples, toxigen, effective is 'x': expected a whole number",
        ),
        ({"n-samples": {"toxigen": {"effective": True}}}, "n-samples, toxigen, effective is True: expected a whole"),
        (
            {"n-samples": {"toxigen": {"effective": 9.5}}},
            "n-samples, toxigen, effective is 9.5: expected a whole number",
        ),
        ({"n-samples": {"toxigen": 940}}, "n-samples, toxigen is 940: expected an object"),
        ({"n-samples": [1]}, "n-samples is [1]: expected an object"),
        ({"higher_is_better": {"toxigen": "no"}}, "higher_is_better, toxigen is 'no': expected an object"),
        ({"versions": "1.0"}, "versions is '1.0': expected an object"),
        ({"group_subtasks": {"mmlu": "law"}}, "group_subtasks, mmlu is 'law': expected a list of names"),
        ({"group_subtasks": {"mmlu": ["law"], "law": ["mmlu"]}}, "group_subtasks: mmlu is a part of itself"),
        ({"model_name": ["org/b"]}, "its model is ['org/b']: write the name as text"),
        ({"config_general": "x"}, "config_general is 'x': expected an object"),
    ],
)
def test_results_of_another_shape_are_one_line_that_names_the_file_and_the_place(tmp_path, change, message):
    save_results(tmp_path / "runs", "org/a", lm_eval_file("org/a", 0.4))
    save_results(tmp_path / "runs", "org/b", lm_eval_file("org/b", 0.6, **change))
    said = call("read-scores", tmp_path / "runs", "--out", tmp_path / "t.csv", ok=False)
    assert message in said and "org__b/results_" in said and not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize("value", [True, "0.7", None, [0.7], float("nan"), float("inf")])
def test_a_usual_metric_that_is_no_number_is_refused_and_not_exchanged_for_the_next(tmp_path, value):
    """The metric of every model of the task would be another: acc, where acc_norm is meant."""
    bad = lm_eval_file("org/b", 0.6)
    bad["results"]["hellaswag"]["acc_norm,none"] = value
    save_results(tmp_path / "runs", "org/a", lm_eval_file("org/a", 0.4))
    file = save_results(tmp_path / "runs", "org/b", bad)
    words = ["read-scores", tmp_path / "runs", "--out", tmp_path / "t.csv"]
    said = call(*words, ok=False)
    assert said == f"{file}: hellaswag: acc_norm,none is {value!r}: expected a finite number"
    assert "x 2 benchmarks" in call(*words, "--ignore", "hellaswag")


@pytest.mark.parametrize("own", [{"value": True, "n": 60}, {"value": 0.5, "n": "many"}, {"value": 0.5}, {}, 3])
def test_a_score_file_of_the_kit_that_was_changed_by_hand(tmp_path, own):
    file = write(tmp_path / "scores.json", json.dumps({"model": "a", "benchmarks": {"arc_easy": own}}))
    said = call("read-scores", file, "--out", tmp_path / "t.csv", ok=False)
    assert said.startswith(f"{file}: ") and "arc_easy" in said and ("expected" in said or "evaluate again" in said)


def test_a_folder_without_results(tmp_path):
    (tmp_path / "empty").mkdir()
    said = call("read-scores", tmp_path / "empty", "--out", tmp_path / "t.csv", ok=False)
    assert "holds no result file: expected results*.json or scores.json" in said


def test_names_that_repeat_take_their_precision(tmp_path):
    rows = [["m", "bf16", "10"], ["m", "fp16", "20"], ["n", "bf16", "30"]]
    columns, aside = understand(["Model", "Precision", "x"], rows, "t.csv")
    assert columns.origin_model == ["Model", "Precision"] and not aside


def test_the_leaderboard_file_reads_whole(real_data, tmp_path):
    told = call("read-scores", real_data / "open_llm_leaderboard_3827.csv", "--out", tmp_path / "t.csv")
    assert "has the columns of open_llm_leaderboard_v2" in told and "3,827 origin models" in told
    table = load_score_table(tmp_path / "t.csv")
    assert table.n_items["mmlu_pro"] == 12032 and (table.facts["merged"].astype(str) == "True").sum() == 594
    assert table.facts["base_model"].isna().sum() == 404  # Removed


def test_nothing_is_told_before_all_sources_are_read(tmp_path):
    """A table stood on standard output, and the error that its models stand twice below it."""
    (tmp_path / "my.csv").write_text("origin_model,ifeval,arc_easy\na,0.1,0.4\nb,0.2,0.3\n")
    words = ["read-scores", tmp_path / "my.csv", tmp_path / "my.csv", "--out", tmp_path / "out.csv"]
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(found.exception, InputError) and "stands in" in str(found.exception) and not found.stdout
