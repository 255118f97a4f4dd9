"""Options compared in one row give what lm-evaluation-harness's own model gives, each in a row of its own."""

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from karma.evaluation.items import load_items
from karma.evaluation.protocol import write_choice_prompt, write_cloze_context
from karma.models.backends import TransformersBackend
from karma.study.sections import ModelSpec
from tests.conftest import ROOT, change_base

COMPUTE = change_base("compute", device="cpu", dtype="float32")
TINY = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=3).model_dump()}
PAIRS = [
    ("Name a fruit.", " apple"), ("Name a fruit.", " apple tree"), ("Name a fruit.", " kiwi"),
    ("The sky is ", "blue"), ("The sky is ", " blue"),  # the context's last space goes to the continuation
    ("Repeat: uni", "versity"), ("Repeat: uni", "corn and more than one word"),  # tokens may merge at the seam
    ("Alone", " with one option"), ("Name a fruit.", " apple"), ("Twice", " yes"), ("Twice", " yes"),
]  # fmt: skip


@pytest.fixture
def backend():
    return TransformersBackend(TINY, "tiny", COMPUTE, 4)


def ask_harness(backend, pairs, batch_size=1):
    model = HFLM(pretrained=backend.inner.model, tokenizer=backend.tokenizer, backend="causal", batch_size=batch_size)
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return model.loglikelihood(requests, disable_tqdm=True)


def assert_alike(ours, theirs):
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [logp for logp, _ in ours] == pytest.approx([logp for logp, _ in theirs], rel=1e-4, abs=1e-4)


def test_one_row_gives_what_the_harness_gives(backend, monkeypatch):
    theirs = ask_harness(backend, PAIRS)
    monkeypatch.setattr(backend.inner, "loglikelihood", lambda *a, **k: pytest.fail("the harness was asked"))
    answered = backend.compare(PAIRS)
    assert_alike(answered.answers, theirs)
    assert answered.prompt_tokens == sum(
        backend.count_tokens(["Name a fruit.", "The sky is ", "Repeat: uni", "Alone", "Twice"])
    )


def test_the_greedy_continuation_is_known_as_such(backend):
    contexts = ["Name a fruit.", "Why", "The sky is blue and", "One two", "Hello", "A list:"]
    how = {"until": [], "max_gen_toks": 1, "do_sample": False}
    pairs = list(zip(contexts, backend.generate(contexts, how, 0).answers, strict=True))
    pairs = [(context, text) for context, text in pairs if text] + [(context, " kiwi") for context in contexts]
    theirs = ask_harness(backend, pairs)
    assert {greedy for _, greedy in theirs} == {True, False}, "nothing to compare"
    assert_alike(backend.compare(pairs).answers, theirs)


@pytest.mark.parametrize("pair", [("", " alone"), ("word " * 2100, " end")], ids=["no context", "too long"])
def test_what_the_harness_has_a_rule_for_goes_its_way(backend, pair):
    pairs = [*PAIRS[:2], pair]
    assert_alike(backend.compare(pairs).answers, ask_harness(backend, pairs))


@pytest.mark.parametrize(("key", "value"), [("sliding_window", 4), ("logit_scale", 0.5)])
def test_a_model_that_needs_its_own_rows_goes_the_harness_s_way(backend, monkeypatch, key, value):
    asked = []
    monkeypatch.setattr(backend.inner, "loglikelihood", lambda requests, **_: asked.extend(requests) or [(-1.0, False)])
    monkeypatch.setattr(backend.inner.model.config, key, value, raising=False)
    assert backend.compare(PAIRS[:1]).answers == [[-1.0, False]] and len(asked) == 1


@pytest.mark.real_model
def test_the_packaged_model_compares_as_the_harness_does():
    """Four items as cloze and with their letters, in float32."""
    models = {"smollm2-135m": ModelSpec(packaged="smollm2-135m").model_dump()}
    backend = TransformersBackend(models, "smollm2-135m", COMPUTE, 4)
    items = load_items("arc_easy", ROOT / "karma" / "data" / "demo", 4)
    pairs = [(write_cloze_context(item), f" {option}") for item in items for option in item["options"]]
    pairs += [(write_choice_prompt(item), f"\nThe answer is ({letter}") for item in items for letter in "ABCD"]
    theirs = ask_harness(backend, pairs, batch_size=16)
    assert_alike(backend.compare(pairs).answers, theirs)
