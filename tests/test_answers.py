"""Recorded answers, and the command that scores them or a model."""

import json

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.evaluation.answers import score_recorded, write_prompt
from karma.evaluation.extraction import LETTERS
from karma.evaluation.items import load_items
from karma.evaluation.scoring import list_warnings
from karma.files.places import find_project_root
from karma.files.reading import load_json
from karma.models.load import load_model, load_tokenizer
from karma.study.sections import ModelSpec

DEMO = find_project_root() / "karma" / "data" / "demo"
ARC = load_items("arc_easy", DEMO)
IFEVAL = load_items("ifeval", DEMO)


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", "utf-8")
    return path


def right(item):
    return f"The answer is ({LETTERS[item['answer']]})."


def test_answers_by_id_are_scored(tmp_path):
    rows = [{"item_id": item["item_id"], "answer": right(item)} for item in ARC[:20]]
    rows += [{"item_id": item["item_id"], "answer": "I do not know."} for item in ARC[20:]]
    scores, answers = score_recorded(write(tmp_path / "m.jsonl", rows), ["arc_easy"], DEMO)
    score = scores["benchmarks"]["arc_easy"]
    assert (score["value"], score["n"], score["unextracted"]) == (20 / 28, 28, 8 / 28)
    assert answers["extracted"].null_count == 8 and not scores["problems"]
    assert scores["backend"] == "recorded" and scores["model"] == "m"


@pytest.mark.parametrize("form", ["full", "question"])
def test_answers_by_prompt_are_scored(tmp_path, form):
    prompts = [write_prompt("arc_easy", i).replace("\n", "\n ") if form == "full" else i["question"] for i in ARC]
    rows = [{"prompt": prompt, "answer": right(item)} for prompt, item in zip(prompts, ARC, strict=True)]
    scores, _ = score_recorded(write(tmp_path / "m.jsonl", rows[::-1]), ["arc_easy"], DEMO)
    assert scores["benchmarks"]["arc_easy"]["value"] == 1 and not scores["problems"]


@pytest.mark.parametrize("mark", ["\u0085", "\u2028", "\u2029"])
def test_line_marks_inside_a_text_break_no_line(tmp_path, mark):
    item = {
        "question": f"Which{mark}melts?",
        "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
        "answerKey": "A",
        "id": "q",
    }
    (tmp_path / "arc_easy.jsonl").write_text(json.dumps(item, ensure_ascii=False), "utf-8")
    answer = {"item_id": "q", "answer": f"Ice.{mark}The answer is (A)."}
    (tmp_path / "m.jsonl").write_text(json.dumps(answer, ensure_ascii=False), "utf-8")
    scores, _ = score_recorded(tmp_path / "m.jsonl", ["arc_easy"], tmp_path)
    assert scores["benchmarks"]["arc_easy"]["value"] == 1


def test_two_benchmarks_in_one_file(tmp_path):
    rows = [{"benchmark": "arc_easy", "item_id": i["item_id"], "answer": right(i)} for i in ARC]
    rows += [{"benchmark": "ifeval", "prompt": i["prompt"], "answer": "No."} for i in IFEVAL]
    scores, answers = score_recorded(write(tmp_path / "m.jsonl", rows), ["arc_easy", "ifeval"], DEMO)
    assert scores["benchmarks"]["arc_easy"]["value"] == 1
    assert scores["benchmarks"]["ifeval"]["n"] == sum(len(i["instruction_id_list"]) for i in IFEVAL)
    assert scores["benchmarks"]["ifeval"]["details"]["floor"] is not None and answers.num_rows == 56


def test_what_does_not_fit_is_counted_and_named(tmp_path):
    rows = [{"item_id": ARC[0]["item_id"], "answer": right(ARC[0])}] * 2 + [
        {"item_id": "nobody", "answer": "B"}, {"prompt": "What is not asked?", "answer": "B"}]  # fmt: skip
    scores, _ = score_recorded(write(tmp_path / "m.jsonl", rows), ["arc_easy"], DEMO)
    recorded = scores["benchmarks"]["arc_easy"]["details"]["recorded"]
    counts = {k: v for k, v in recorded.items() if isinstance(v, int)}
    assert counts == {"lines": 4, "answered": 1, "unknown": 2, "repeated": 1, "missing": 27}
    assert recorded["unknown_first"] == ["nobody (line 3)", "'What is not asked?' (line 4)"]
    assert recorded["repeated_first"] == [ARC[0]["item_id"]] and ARC[1]["item_id"] in recorded["missing_first"]
    assert scores["benchmarks"]["arc_easy"]["n"] == 1 and len(scores["problems"]) == 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{", "line 1 is no JSON"),
        ('{"item_id": "x"}', 'line 1: expected {"item_id" or "prompt": ..., "answer": text}'),
        ('{"item_id": "x", "answer": null}', "line 1: expected"),
        ('\n{"answer": "B"}', "line 2 has neither item_id nor prompt"),
        ('{"item_id": "x", "answer": "B"}', "none of its lines matches an item of arc_easy"),
        ("", "none of its lines matches"),
        ('{"item_id": "%s", "answer": "B"}\n{"item_id": "%s", "answer": "C"}' % ((ARC[0]["item_id"],) * 2), "line 2: a second, different answer"),
    ],
)  # fmt: skip
def test_unusable_files_are_one_line(tmp_path, lines, message):
    (tmp_path / "m.jsonl").write_text(lines)
    with pytest.raises(InputError) as error:
        score_recorded(tmp_path / "m.jsonl", ["arc_easy"], DEMO)
    assert message in str(error.value)


def test_a_shared_prompt_needs_an_id(tmp_path):
    item = {"question": {"stem": "Which?", "choices": [{"text": t, "label": k} for t, k in (("p", "A"), ("q", "B"))]}}
    write(tmp_path / "arc_easy.jsonl", [{**item, "id": "1", "answerKey": "A"}, {**item, "id": "2", "answerKey": "B"}])
    with pytest.raises(InputError, match="items 1, 2 share this prompt: give item_id"):
        score_recorded(write(tmp_path / "m.jsonl", [{"prompt": "Which?", "answer": "B"}]), ["arc_easy"], tmp_path)


def run(*args):
    return CliRunner().invoke(app, ["evaluate", "--benchmark-data", str(DEMO), *map(str, args)])


def test_the_command_scores_recorded_answers(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"item_id": i["item_id"], "answer": right(i)} for i in ARC[:10]])
    done = run("--answers", path, "--benchmark", "arc_easy", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "note: arc_easy: 18 items have no answer" in done.output and "100.0 %" in done.output
    assert load_json(tmp_path / "out" / "scores.json")["benchmarks"]["arc_easy"]["value"] == 1
    strict = run("--answers", path, "--benchmark", "arc_easy", "--out", tmp_path / "strict", "--strict")
    assert isinstance(strict.exception, InputError) and not (tmp_path / "strict").exists()


def test_unread_answers_are_listed_and_loud(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"item_id": i["item_id"], "answer": "Hm, well"} for i in ARC])
    done = run("--answers", path, "--benchmark", "arc_easy", "--out", tmp_path / "out")
    assert "WARNING: 100% of the arc_easy answers could not be read" in done.output
    assert len((tmp_path / "out" / "unread.csv").read_text().splitlines()) == 29


def test_answers_that_run_on_are_cut_counted_and_loud(tmp_path):
    wrong = [LETTERS[1 - item["answer"] % 2] for item in ARC]
    more = [f"\n\nQuestion: What next?\nThe answer is ({letter})." for letter in wrong]
    rows = [
        {"item_id": i["item_id"], "answer": right(i) + m * (k < 7)}
        for k, (i, m) in enumerate(zip(ARC, more, strict=True))
    ]
    done = run("--answers", write(tmp_path / "m.jsonl", rows), "--benchmark", "arc_easy", "--out", tmp_path / "out")
    assert "WARNING: 25% of the arc_easy answers run on into another question" in done.output
    score = load_json(tmp_path / "out" / "scores.json")["benchmarks"]["arc_easy"]
    assert (score["value"], score["details"]["run_on"], score["details"]["by_last"]) == (1, 7 / 28, 1)
    few, _ = score_recorded(
        write(
            tmp_path / "few.jsonl",
            [{**r, "answer": right(i)} if k > 1 else r for k, (r, i) in enumerate(zip(rows, ARC, strict=True))],
        ),
        ["arc_easy"],
        DEMO,
    )
    assert few["benchmarks"]["arc_easy"]["details"]["run_on"] == 2 / 28 and list_warnings(few) == []


def test_the_score_by_the_last_statement_is_told_where_it_moves(tmp_path):
    rows = [
        {"item_id": i["item_id"], "answer": f"{right(i)} Then the answer is ({LETTERS[1 - i['answer'] % 2]})."}
        for i in ARC
    ]
    scores, _ = score_recorded(write(tmp_path / "m.jsonl", rows), ["arc_easy"], DEMO)
    score = scores["benchmarks"]["arc_easy"]
    assert score["value"] == score["details"]["by_first"] == 1 and score["details"]["by_last"] == 0
    assert "by the last the score were 0.000 instead of 1.000" in " ".join(list_warnings(scores))


def test_the_command_evaluates_a_folder_by_answer_by_logprob_and_by_cloze(tmp_path):
    specs = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}).model_dump()}
    load_model(specs, "tiny").save_pretrained(tmp_path / "tiny")
    load_tokenizer(specs, "tiny").save_pretrained(tmp_path / "tiny")
    how = (
        "--model",
        tmp_path / "tiny",
        "--benchmark",
        "arc_easy",
        "--limit",
        6,
        "--choice-tokens",
        4,
        "--out",
        tmp_path / "out",
    )
    first, again = run(*how), run(*how)
    assert "6 prompts asked (0 kept from before)" in first.output, first.output
    assert "0 prompts asked (6 kept from before)" in again.output
    ranked = run(*how, "--protocol", "logprob")
    assert "6 prompts asked (0 kept" in ranked.output
    score = load_json(tmp_path / "out" / "scores.json")["benchmarks"]["arc_easy"]
    assert score["protocol"] == "logprob" and score["unextracted"] == 0
    answers = pq.read_table(tmp_path / "out" / "answers.parquet").to_pylist()
    assert answers[0]["answer"].startswith("A -") and answers[0]["extracted"] in "ABCD"
    assert "6 prompts asked (0 kept" in run(*how, "--protocol", "cloze").output
    assert load_json(tmp_path / "out" / "scores.json")["benchmarks"]["arc_easy"]["protocol"] == "cloze"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--benchmark", "arc_easy"), "give either --model or --answers"),
        (("--benchmark", "arc_easy", "--model", "m", "--answers", "f"), "give either --model or --answers"),
        (("--benchmark", "mmlu", "--model", "m"), "--benchmark mmlu: choose from ifeval"),
        (("--benchmark", "arc_easy", "--answers", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        (("--benchmark", "arc_easy", "--model", "./nowhere"), "there is no such folder"),
        (("--benchmark", "arc_easy", "--model", "m", "--strict"), "--strict is about recorded answers"),
        (("--benchmark", "arc_easy", "--model", "m", "--key-env", "K"), "give its --base-url too"),
        (("--benchmark", "arc_easy", "--model", "m", "--base-url", "localhost"), "api.base_url"),
        (("--benchmark", "ifeval", "--model", "smollm2-135m", "--protocol", "logprob"), "no options to compare"),
        (
            ("--benchmark", "arc_easy", "--model", "smollm2-135m", "--backend", "magic"),
            "--backend magic: choose from transformers, vllm",
        ),
    ],
)
def test_wrong_options_are_one_line(tmp_path, args, message):
    done = run(*args, "--out", tmp_path / "out")
    assert isinstance(done.exception, InputError) and message in str(done.exception)
    assert not (tmp_path / "out" / "scores.json").exists()
