"""Evaluation: items, prompts, reading of answers, checkers, cache."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pytest

from karma.annotation import annotate
from karma.errors import InputError
from karma.evaluation.compare import compare_answers
from karma.evaluation.ifeval import check_instructions
from karma.evaluation.items import HUB, load_items
from karma.evaluation.protocol import write_choice_prompt
from karma.evaluation.runner import evaluate
from karma.files import find_project_root
from karma.generation import CachedModel, sample_responses
from karma.params import ModelSpec

ROOT = find_project_root()
DEMO = ROOT / "karma" / "data" / "demo"
MODELS = {
    name: ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=k).model_dump()
    for k, name in enumerate("ab")
}
COMPUTE = SimpleNamespace(device="cpu", dtype="float32", threads=1)
BENCHMARKS = SimpleNamespace(folder=str(DEMO), limit=4, choice_tokens=6, descriptive_tokens=8)


@pytest.mark.parametrize("benchmark", HUB)
def test_the_demo_has_at_least_24_items_of_each(benchmark):
    items = load_items(benchmark, DEMO)
    assert len(items) >= 24 and len({i["item_id"] for i in items}) == len(items)


@pytest.mark.parametrize("benchmark", HUB)
def test_real_items_load(real_data, benchmark):
    items = load_items(benchmark, real_data)
    assert len(items) >= 150
    if benchmark != "ifeval":
        assert all(write_choice_prompt(i).count("\n") >= len(i["options"]) for i in items)
        assert not any("[step]" in write_choice_prompt(i) for i in items)


def test_mmlu_as_csv(tmp_path):
    (tmp_path / "mmlu_stem.csv").write_text(
        "subject,question,A,B,C,D,answer\nastronomy,Which?,p,q,r,s,C\nlaw,No,1,2,3,4,A\n"
    )
    assert load_items("mmlu_stem", tmp_path)[0]["answer"] == 2
    assert len(load_items("mmlu_stem", tmp_path)) == 1  # law is no STEM subject


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (None, "", "expected one arc_easy*.jsonl or .csv, found none"),
        ("arc_easy.jsonl", "{", "cannot be read"),
        ("arc_easy.jsonl", "", "no items"),
        ("arc_easy.jsonl", '{"question": "q"}', "item 1 does not have the benchmark's schema"),
        (
            "arc_easy.jsonl",
            '{"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}',
            "schema",
        ),
    ],
)
def test_bad_items_are_named(tmp_path, name, text, message):
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        load_items("arc_easy", tmp_path)
    assert message in str(error.value)


def item(*instructions):
    return {"item_id": "1", "prompt": "p", "instruction_id_list": [i for i, _ in instructions],
            "kwargs": json.dumps([k for _, k in instructions])}  # fmt: skip


@pytest.mark.parametrize(
    ("instruction", "kwargs", "good", "bad"),
    [
        ("punctuation:no_comma", {}, "No commas here.", "One, two."),
        ("keywords:existence", {"keywords": ["moss"]}, "Soft moss grows.", "Soft grass grows."),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a"),
        ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "Dr. Ode came. He sat.", "Dr. Ode came."),
        ("startend:quotation", {}, '"All of it."', "None of it."),
    ],
)  # fmt: skip
def test_checkers_pass_and_fail_offline(instruction, kwargs, good, bad):
    assert check_instructions(item((instruction, kwargs)), good)["strict"] == [True]
    assert check_instructions(item((instruction, kwargs)), bad)["strict"] == [False]


def test_loose_forgives_a_first_line():
    verdicts = check_instructions(item(("punctuation:no_comma", {})), "Sure, here it is:\nNo commas.")
    assert verdicts == {"strict": [False], "loose": [True]}


def test_an_evaluation_repeats_exactly_and_asks_once(tmp_path):
    def run(name):
        model = CachedModel(MODELS, name, COMPUTE, 4, tmp_path)
        return model, *evaluate(model, ["ifeval", "arc_easy"], BENCHMARKS, ROOT)

    first, scores, answers = run("a")
    again, scores_again, answers_again = run("a")
    assert first.n_asked == 8 and again.n_asked == 0 and again.n_cached == 8
    assert answers.equals(answers_again)
    assert scores["benchmarks"] == scores_again["benchmarks"]
    other, _, answers_other = run("b")
    assert other.n_asked == 8 and not answers_other.equals(answers)


def test_scores_say_what_is_needed_to_repeat_them(tmp_path):
    scores, answers = evaluate(CachedModel(MODELS, "a", COMPUTE, 4), ["ifeval", "arc_easy"], BENCHMARKS, ROOT)
    arc, ifeval = scores["benchmarks"]["arc_easy"], scores["benchmarks"]["ifeval"]
    assert arc["n"] == 4 and arc["chance"] == pytest.approx(0.25, abs=0.05) and arc["unextracted"] is not None
    assert ifeval["chance"] is None and set(ifeval["details"]) >= {"prompt_level_strict", "inst_level_loose"}
    assert ifeval["value"] == pytest.approx(ifeval["details"]["inst_level_loose"])
    table = answers.to_pandas().query("benchmark == 'ifeval'")
    assert ifeval["n"] == table["n"].sum() and ifeval["value"] == pytest.approx(
        table["correct"].sum() / ifeval["n"]
    )


def test_answers_equal_lm_eval_s_own_backend():
    """The same prompts through lm-evaluation-harness's hf model, one by one, give the same text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    ours = CachedModel(MODELS, "a", COMPUTE, 3)
    prompts = [
        ours.apply_chat_template([{"role": "user", "content": text}])
        for text in ("Hi", "Name a fruit.", "Why?")
    ]
    requests = [Instance("generate_until", {}, (p, {"until": [], "max_gen_toks": 8, "do_sample": False}), i)
                for i, p in enumerate(prompts)]  # fmt: skip
    theirs = HFLM(pretrained=ours.inner.model, tokenizer=ours.tokenizer, backend="causal", batch_size=1)
    assert ours.generate_until(requests, True) == theirs.generate_until(requests, True)


def test_sampling_is_seeded():
    how = SimpleNamespace(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=0)
    texts = [sample_responses(CachedModel(MODELS, "a", COMPUTE, 4), ["Hi", "Why?"], how) for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0] != sample_responses(
        CachedModel(MODELS, "a", COMPUTE, 4), ["Hi", "Why?"], SimpleNamespace(**{**vars(how), "seed": 1})
    )


def test_paired_differences_by_hand():
    def table(correct):
        return pa.table({"benchmark": ["b"] * 4, "item_id": list("1234"), "answer": [str(c) for c in correct],
                         "correct": correct, "n": [1] * 4})  # fmt: skip

    row = compare_answers(table([1, 0, 0, 0]), table([1, 1, 1, 0])).loc["b"]
    assert row["difference"] == 0.5 and row["changed"] == 2
    assert row["high"] - row["difference"] == pytest.approx(1.96 * (4 * 0.25) ** 0.5 / 4, abs=1e-3)
    with pytest.raises(ValueError, match="different items"):
        compare_answers(table([1, 0, 0, 0]).slice(1), table([1, 1, 1, 0]))


def test_the_judge_s_rating_is_an_expectation_and_is_counted():
    rows = [{"row_id": str(k), "response_id": str(k), "model": "m", "instruction": "Say hi.", "response": text}
            for k, text in enumerate(["hi", "hello there", "no"])]  # fmt: skip
    table, cost = annotate(rows, MODELS, "a", COMPUTE, 2)
    assert all(1 <= score <= 5 for score in table["score"].to_pylist())
    assert cost["calls"] == 3 and cost["prompt_tokens"] > 0
    reversed_table, _ = annotate(rows[::-1], MODELS, "a", COMPUTE, 1)
    assert reversed_table["score"].to_pylist()[::-1] == pytest.approx(table["score"].to_pylist(), abs=1e-4)
