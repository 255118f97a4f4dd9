"""Evaluation: items, prompts, reading of answers, checkers, cache."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import pyarrow as pa
import pytest
import yaml
from lm_eval.api.instance import Instance

from karma.errors import InputError
from karma.evaluation.answer_text import STOPS
from karma.evaluation.compare import build_score_frame, compare_answers
from karma.evaluation.items import HUB, load_items
from karma.evaluation.protocol import (
    normalize_logps,
    score_cloze,
    score_logprobs,
    write_choice_prompt,
    write_cloze_context,
)
from karma.evaluation.runner import evaluate
from karma.evaluation.scoring import build_logprob_row, compute_standard_error, compute_template_hash, list_warnings
from karma.files.places import find_project_root
from karma.files.reading import compute_digest
from karma.models.ask import CachedModel, sample_responses
from karma.models.judge import annotate
from karma.models.load import PLAIN_TEMPLATE, load_model, load_tokenizer
from karma.pool.generate import run
from karma.statistics.intervals import compute_wilson
from karma.study.sections import ModelSpec
from tests.conftest import change_base, list_kept

ROOT = find_project_root()
DEMO = ROOT / "karma" / "data" / "demo"
MODELS = {
    name: ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=k).model_dump()
    for k, name in enumerate("ab")
}
COMPUTE = change_base("compute", device="cpu", dtype="float32")
BENCHMARKS = change_base("benchmarks", folder=str(DEMO), limit=4, choice_tokens=6, descriptive_tokens=8)


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


@pytest.mark.parametrize("answer", ["", "AB", "E", "7"])
def test_an_answer_that_is_no_letter_of_an_mmlu_item_is_refused(tmp_path, answer):
    """An empty one, and AB, were taken for A: they lie within ABCD."""
    (tmp_path / "mmlu_stem.csv").write_text(f"subject,question,A,B,C,D,answer\nastronomy,Which?,p,q,r,s,{answer}\n")
    with pytest.raises(InputError, match="mmlu_stem: "):
        load_items("mmlu_stem", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (None, "", "expected one arc_easy*.jsonl or .csv, found none"),
        ("arc_easy.jsonl", "{", "arc_easy.jsonl: line 1 is no JSON"),
        ("arc_easy.jsonl", "", "no items"),
        (
            "arc_easy.jsonl",
            '{"question": "q"}',
            "arc_easy: line 1 of arc_easy.jsonl does not have the benchmark's schema",
        ),
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


def test_jobs_wait_for_who_asks_the_same_and_for_no_other(tmp_path, monkeypatch):
    """Of three jobs with one model, the second asks what the first is asking, the third draws answers to it."""
    first, same, drawn = (CachedModel(MODELS, "a", COMPUTE, 4, tmp_path) for _ in range(3))
    began, go_on, answer = Event(), Event(), first.backend.generate

    def wait(*asked):
        began.set()
        assert go_on.wait(30)
        return answer(*asked)

    monkeypatch.setattr(first.backend, "generate", wait)
    ways = [
        {"until": [], "max_gen_toks": 3, **how}
        for how in ({"do_sample": False}, {"do_sample": True, "temperature": 1.0})
    ]
    asked = [[Instance("generate_until", {}, ("Why?", way), 0)] for way in ways]
    with ThreadPoolExecutor(2) as pool:
        try:
            jobs = [pool.submit(first.generate_until, asked[0])]
            assert began.wait(30)
            jobs.append(pool.submit(same.generate_until, asked[0]))
            assert drawn.generate_until(asked[1]) and drawn.n_asked == 1
            assert not any(job.done() for job in jobs)
        finally:
            go_on.set()
        assert jobs[0].result() == jobs[1].result()
    assert (first.n_asked, same.n_asked, same.n_cached) == (1, 0, 1)


def test_a_benchmark_may_have_a_limit_of_its_own():
    settings = change_base("benchmarks", folder=str(DEMO), limit=4, limits={"arc_easy": 6}, choice_tokens=2)
    scores, answers = evaluate(CachedModel(MODELS, "a", COMPUTE, 8), ["arc_easy", "hellaswag"], settings, ROOT)
    assert {name: score["n"] for name, score in scores["benchmarks"].items()} == {"arc_easy": 6, "hellaswag": 4}
    asked = [row["item_id"] for row in answers.to_pylist() if row["benchmark"] == "arc_easy"]
    assert asked == [item["item_id"] for item in load_items("arc_easy", DEMO, 6)]


def test_every_fourth_item_is_a_part_of_all():
    asked = change_base("benchmarks", folder="karma/data/demo", limit=10, choice_tokens=4)
    model = CachedModel(MODELS, "a", COMPUTE, batch_size=4)
    (_, whole), (scores, part) = (evaluate(model, ["arc_easy"], asked, ROOT, "cloze", every=n) for n in (1, 4))
    assert part.to_pylist() == whole.to_pylist()[::4] and scores["benchmarks"]["arc_easy"]["n"] == 3


def test_scores_say_what_is_needed_to_repeat_them(tmp_path):
    scores, answers = evaluate(CachedModel(MODELS, "a", COMPUTE, 4), ["ifeval", "arc_easy"], BENCHMARKS, ROOT)
    arc, ifeval = scores["benchmarks"]["arc_easy"], scores["benchmarks"]["ifeval"]
    assert arc["n"] == 4 and arc["chance"] == pytest.approx(0.25, abs=0.05) and arc["unextracted"] is not None
    assert ifeval["chance"] is None and set(ifeval["details"]) >= {"prompt_level_strict", "inst_level_loose"}
    assert ifeval["value"] == pytest.approx(ifeval["details"]["inst_level_loose"])
    assert 0 <= ifeval["details"]["floor"] <= 1 and build_score_frame(scores)["floor"].isna().tolist() == [False, True]
    table = answers.to_pandas().query("benchmark == 'ifeval'")
    assert ifeval["n"] == table["n"].sum() and ifeval["value"] == pytest.approx(table["correct"].sum() / ifeval["n"])


def test_choice_answers_stop_at_a_next_question_as_their_task_says(tmp_path):
    model = CachedModel(MODELS, "a", COMPUTE, 4)
    scores, answers = evaluate(model, ["ifeval", "arc_easy"], BENCHMARKS, ROOT)
    arc, ifeval = scores["benchmarks"]["arc_easy"], scores["benchmarks"]["ifeval"]
    assert (arc["generation"]["until"], ifeval["generation"]["until"]) == (STOPS, [])
    assert (arc["task_version"], ifeval["task_version"]) == (2.0, 1.0)
    choice = (ROOT / "karma" / "evaluation" / "tasks" / "_choice.yaml").read_text()
    assert yaml.safe_load(choice.replace("!function", ""))["generation_kwargs"]["until"] == STOPS
    prompt, whole = answers.to_pylist()[-1]["prompt"], answers.to_pylist()[-1]["answer"]
    stop = whole[len(whole) // 2 :][:2]
    how = {**arc["generation"], "until": [stop]}
    assert model.generate_until([Instance("generate_until", {}, (prompt, how), 0)], True) == [whole.split(stop)[0]]


def test_answers_equal_lm_eval_s_own_backend():
    """The same prompts through lm-evaluation-harness's hf model, one by one, give the same text."""
    from lm_eval.models.huggingface import HFLM

    ours = CachedModel(MODELS, "a", COMPUTE, 3)
    prompts = [
        ours.apply_chat_template([{"role": "user", "content": text}]) for text in ("Hi", "Name a fruit.", "Why?")
    ]
    requests = [Instance("generate_until", {}, (p, {"until": [], "max_gen_toks": 8, "do_sample": False}), i)
                for i, p in enumerate(prompts)]  # fmt: skip
    theirs = HFLM(pretrained=ours.inner.model, tokenizer=ours.tokenizer, backend="causal", batch_size=1)
    assert ours.generate_until(requests, True) == theirs.generate_until(requests, True)


def save_tiny(folder, seed):
    specs = {"m": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=seed).model_dump()}
    load_model(specs, "m").save_pretrained(folder)
    load_tokenizer(specs, "m").save_pretrained(folder)
    return {"m": ModelSpec(path=str(folder)).model_dump()}


def test_other_weights_under_the_same_path_are_asked_again(tmp_path):
    for seed in (0, 1):
        specs = save_tiny(tmp_path / "model", seed)
        model = CachedModel(specs, "m", COMPUTE, 4, tmp_path / "cache")
        evaluate(model, ["arc_easy"], BENCHMARKS, ROOT)
        assert (model.n_asked, model.n_cached) == (4, 0)


def test_a_new_way_of_reading_asks_nothing(tmp_path, monkeypatch):
    evaluate(CachedModel(MODELS, "a", COMPUTE, 4, tmp_path), ["arc_easy"], BENCHMARKS, ROOT)
    monkeypatch.setattr("karma.evaluation.scoring.extract_choice", lambda answer, options: "A")
    model = CachedModel(MODELS, "a", COMPUTE, 4, tmp_path)
    answers = evaluate(model, ["arc_easy"], BENCHMARKS, ROOT)[1]
    assert model.n_asked == 0 and set(answers["extracted"].to_pylist()) == {"A"}


@pytest.mark.parametrize("change", ["batch_size", "dtype", "choice_tokens"])
def test_what_changes_an_answer_is_part_of_its_name(tmp_path, change):
    evaluate(CachedModel(MODELS, "a", COMPUTE, 4, tmp_path), ["arc_easy"], BENCHMARKS, ROOT)
    compute = COMPUTE.model_copy(update={"dtype": "bfloat16" if change == "dtype" else "float32"})
    settings = BENCHMARKS.model_copy(update={"choice_tokens": 5 if change == "choice_tokens" else 6})
    model = CachedModel(MODELS, "a", compute, 3 if change == "batch_size" else 4, tmp_path)
    evaluate(model, ["arc_easy"], settings, ROOT)
    assert model.n_asked == 4


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path, monkeypatch):
    settings = BENCHMARKS.model_copy(update={"limit": 12})
    whole = evaluate(CachedModel(MODELS, "a", COMPUTE, 4), ["arc_easy"], settings, ROOT)[1]
    model = CachedModel(MODELS, "a", COMPUTE, 4, tmp_path)
    generate, calls = model.backend.generate, []

    def fail_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*args)

    monkeypatch.setattr(model.backend, "generate", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, ["arc_easy"], settings, ROOT)
    again = CachedModel(MODELS, "a", COMPUTE, 4, tmp_path)
    assert evaluate(again, ["arc_easy"], settings, ROOT)[1].equals(whole)
    assert (again.n_asked, again.n_cached) == (4, 8)


def test_log_probabilities_equal_lm_eval_s_own_and_are_kept(tmp_path):
    from lm_eval.models.huggingface import HFLM

    model = CachedModel(MODELS, "a", COMPUTE, 2, tmp_path)
    scores, answers = evaluate(model, ["arc_easy"], BENCHMARKS, ROOT, protocol="logprob")
    row = answers.to_pylist()[0]
    theirs = HFLM(pretrained=model.inner.model, tokenizer=model.tokenizer, backend="causal", batch_size=1)
    pairs = [(row["prompt"], f"The answer is ({letter}") for letter in "ABCD"]
    logps = [
        p for p, _ in theirs.loglikelihood([Instance("loglikelihood", {}, p, 0) for p in pairs], disable_tqdm=True)
    ]
    assert [float(part.split()[1]) for part in row["answer"].split(", ")] == pytest.approx(logps, abs=1e-3)
    assert row["extracted"] == "ABCD"[logps.index(max(logps))]
    again = CachedModel(MODELS, "a", COMPUTE, 2, tmp_path)
    assert evaluate(again, ["arc_easy"], BENCHMARKS, ROOT, protocol="logprob")[1].equals(answers)
    assert (again.n_asked, again.n_cached) == (0, 4)
    written, _ = evaluate(again, ["arc_easy"], BENCHMARKS, ROOT)
    assert scores["benchmarks"]["arc_easy"]["template_hash"] != written["benchmarks"]["arc_easy"]["template_hash"]
    assert (scores["benchmarks"]["arc_easy"]["protocol"], scores["benchmarks"]["arc_easy"]["unextracted"]) == (
        "logprob",
        0,
    )


def test_a_base_model_is_asked_plainly_and_it_is_said(tmp_path):
    specs = save_tiny(tmp_path, 0)
    (tmp_path / "chat_template.jinja").unlink()
    model = CachedModel(specs, "m", COMPUTE, 4)
    assert model.chat_template() == PLAIN_TEMPLATE
    scores, answers = evaluate(model, ["arc_easy"], BENCHMARKS, ROOT)
    assert answers["prompt"][0].as_py().startswith("User: The following is a multiple choice question about science")
    assert "no chat template" in " ".join(list_warnings(scores))


def test_no_second_bos():
    model = CachedModel(MODELS, "a", COMPUTE, 1)
    tokenizer = model.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<pad>"})
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert model.apply_chat_template([{"role": "user", "content": "Hi"}]).startswith("<pad>"), "nothing else adds it"
    model.backend._adds_bos = lambda: True
    assert not model.apply_chat_template([{"role": "user", "content": "Hi"}]).startswith("<pad>")


def test_a_batch_s_key_is_what_it_was():
    """Kept answers stay valid: a change here makes every study ask everything again."""
    model = CachedModel(MODELS, "a", COMPUTE, 4)
    key = compute_digest([*model.backend.identity, ["p"], {"until": []}])
    assert key == compute_digest([model.digest, "float32", "cpu", ["p"], {"until": []}])


def test_standard_errors_count_a_prompt_once():
    rows = [{"correct": c, "n": n} for c, n in ((3, 3), (0, 3), (3, 3), (0, 3))]
    single = [{"correct": c, "n": 1} for c in (1, 0, 1, 0)]
    assert compute_standard_error(rows) == pytest.approx(compute_standard_error(single))
    assert compute_standard_error(single) == pytest.approx((0.25 / 3) ** 0.5)
    clustered, independent = (
        compute_wilson(0.5, 12, compute_standard_error(rows)),
        compute_wilson(0.5, 12, (0.25 / 11) ** 0.5),
    )
    assert clustered[0] < independent[0] and clustered == pytest.approx(compute_wilson(0.5, 4, (0.25 / 3) ** 0.5))


def test_a_given_pool_is_copied_row_by_row(tmp_path):
    from karma.pool.pool import load_pool, save_pool

    rows = [{"instruction": "Hi", "completions": [{"model": m, "response": m} for m in "ab"]}]
    save_pool(rows, tmp_path / "given.parquet")
    pool = SimpleNamespace(source=str(tmp_path / "given.parquet"), revision=None)
    job = SimpleNamespace(
        settings=SimpleNamespace(pool=pool), experiment=SimpleNamespace(root=tmp_path), folder=tmp_path
    )
    run(job)
    (batch,) = load_pool(tmp_path / "pool.parquet").batches()
    assert batch.n_rows == 1


def test_sampling_is_seeded():
    how = change_base("pool", max_new_tokens=8, temperature=1.0, top_p=0.9)
    texts = [sample_responses(CachedModel(MODELS, "a", COMPUTE, 4), ["Hi", "Why?"], how, seed=0) for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0] != sample_responses(CachedModel(MODELS, "a", COMPUTE, 4), ["Hi", "Why?"], how, seed=1)


def test_paired_differences_by_hand():
    def table(correct):
        return pa.table({"benchmark": ["b"] * 4, "item_id": list("1234"), "answer": [str(c) for c in correct],
                         "correct": correct, "n": [1] * 4})  # fmt: skip

    row = compare_answers(table([1, 0, 0, 0]), table([1, 1, 1, 0])).loc["b"]
    assert row["difference"] == 0.5 and row["changed"] == 2
    assert row["high"] - row["difference"] == pytest.approx(
        3.182 * (4 * 0.25 / 3 / 4) ** 0.5, abs=1e-3
    )  # Student, 3 df
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


def test_responses_to_one_instruction_are_rated_side_by_side_as_they_are_alone(monkeypatch):
    rows = [{"row_id": str(k % 3), "response_id": str(k), "model": "m", "instruction": f"Say {k % 3}.", "response": "word " * (k + 1)}
            for k in range(8)]  # fmt: skip
    rows.append({**rows[0], "response_id": "again"})  # two alike: their prompts differ nowhere
    together, cost = annotate(rows, MODELS, "a", COMPUTE, 2)
    monkeypatch.setattr("karma.models.logprobs.can_share_prompts", lambda model: False)
    alone, plain = annotate(rows, MODELS, "a", COMPUTE, 2)
    assert together["score"].to_pylist() == pytest.approx(alone["score"].to_pylist(), abs=1e-4)
    assert len({round(score, 4) for score in alone["score"].to_pylist()}) == 8  # they can be told apart
    assert {**cost, "seconds": 0} == {**plain, "seconds": 0}


def test_cloze_by_eye():
    """Three options, 2, 4 and 8 characters: the sums rank the first, per character the last."""
    item = {"item_id": 1, "question": "What melts?", "options": ["ic", "wood", "cold ice"], "answer": 2}
    results = [(-4.0, False), (-6.0, False), (-8.0, True)]
    assert write_cloze_context(item) == "Question: What melts?\nAnswer:"
    assert (score_logprobs(item, results), score_cloze(item, results)) == ({"correct": 0.0}, {"correct": 1.0})
    row = build_logprob_row("arc_easy", item, "p", normalize_logps(item, [logp for logp, _ in results]))
    assert (row["answer"], row["extracted"], row["correct"]) == ("A -2.0000, B -1.5000, C -1.0000", "C", 1)


@pytest.mark.parametrize("benchmark", [name for name in HUB if name != "ifeval"])
def test_cloze_gives_the_harness_s_own_acc_norm(benchmark):
    """Prompt, continuations and accuracy are what lm-evaluation-harness's hf model and its acc_norm make of the items."""
    from lm_eval.models.huggingface import HFLM

    model = CachedModel(MODELS, "a", COMPUTE, 2)
    scores, answers = evaluate(model, [benchmark], BENCHMARKS, ROOT, protocol="cloze")
    theirs = HFLM(pretrained=model.inner.model, tokenizer=model.tokenizer, backend="causal", batch_size=1)
    right = []
    for item, row in zip(load_items(benchmark, DEMO, 4), answers.to_pylist(), strict=True):
        context = item["question"].split("\nWhich ending")[0]
        context = context if benchmark == "hellaswag" else f"Question: {context}\nAnswer:"
        assert row["prompt"] == context and row["benchmark"] == benchmark
        pairs = [(context, f" {option}") for option in item["options"]]
        logps = theirs.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
        norm = [logp / len(option) for (logp, _), option in zip(logps, item["options"], strict=True)]
        assert [float(part.split()[1]) for part in row["answer"].split(", ")] == pytest.approx(norm, abs=1e-4)
        right.append(norm.index(max(norm)) == item["answer"])
    score = scores["benchmarks"][benchmark]
    assert score["value"] == pytest.approx(sum(right) / len(right)) and len(right) == 4
    assert (score["protocol"], score["task_version"], score["generation"]) == ("cloze", 1.0, {})


def test_cloze_asks_whole_batches_without_chat_format_and_says_so(tmp_path):
    model = CachedModel(MODELS, "a", COMPUTE, 4, tmp_path)
    scores, answers = evaluate(model, ["arc_easy"], BENCHMARKS, ROOT, protocol="cloze")
    assert len(list_kept(tmp_path)) == 1, "four items, one batch"
    assert scores["chat_format"] is None and answers["prompt"][0].as_py().startswith("Question: ")
    hashes = {compute_template_hash(name, "cloze") for name in ("arc_easy", "mmlu_pro", "hellaswag")}
    assert len(hashes) == 2 and scores["benchmarks"]["arc_easy"]["template_hash"] in hashes
    both, mixed = evaluate(model, ["ifeval", "arc_easy"], BENCHMARKS, ROOT, protocol="cloze")
    assert both["benchmarks"]["ifeval"]["protocol"] == "answer" and both["chat_format"] == "the model's own"
    assert "<|im_start|>" in mixed["prompt"][0].as_py() and mixed.slice(4).equals(answers)
