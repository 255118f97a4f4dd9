"""Forward passes that leave work out compute what the plain ones do: prompts once, frozen layers, response heads."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM
from trl.trainer.utils import add_fused_lm_head

from karma.models import frozen
from karma.models.frozen import count_frozen, keep_frozen
from karma.models.load import load_model
from karma.models.logprobs import build_options_row, compute_token_logps
from karma.models.prefill import compute_choice_logits, read_prompts
from karma.study.sections import ModelSpec
from karma.training.forward import _score_responses, can_replace_head, replace_fused_head
from karma.training.run import describe_run
from karma.training.train import train
from tests.test_training import COMPUTE, LORA, make_pairs
from tests.test_training import settings as training_settings

MODELS = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 4, "heads": 2}, seed=3).model_dump()}
MODELS["short"] = ModelSpec(perturbed="tiny", drop_layers=[1]).model_dump()


def pad_left(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


prompts = st.tuples(
    st.lists(st.integers(3, 90), max_size=6),
    st.lists(st.lists(st.integers(3, 90), min_size=2, max_size=9), min_size=2, max_size=5),
)


@pytest.mark.parametrize("name", ["tiny", "short"])
@settings(max_examples=25, deadline=None)
@given(drawn=prompts)
def test_a_batch_that_was_read_before_is_answered_alike(name, drawn):
    begun, rests = drawn
    model = load_model(MODELS, name)
    ids, mask = pad_left([begun + rest for rest in rests])
    read = read_prompts(model, ids, mask)["past_key_values"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = model.base_model(ids, attention_mask=mask, position_ids=positions, use_cache=True).past_key_values
    for ours, theirs in zip(read.layers, plain.layers, strict=True):
        for part, whole in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            own = mask[:, None, :-1, None].bool()
            assert torch.allclose(part * own, whole[:, :, :-1] * own, atol=1e-5)
    how = {"do_sample": False, "max_new_tokens": 5, "attention_mask": mask}
    assert torch.equal(model.generate(ids, past_key_values=read, **how), model.generate(ids, **how))


@pytest.mark.parametrize("begun", [[], [5, 6, 7]], ids=["nothing shared", "a shared beginning"])
def test_the_next_token_after_prompts_that_share_is_that_after_each_alone(begun):
    """By hand: three groups, one of a single prompt, one prompt no longer than what all begin with and one token."""
    model = load_model(MODELS, "tiny")
    groups = [[[8, 9, 10], [8, 9, 11, 12], [8, 13]], [[14]], [[15, 16], [17]]]
    groups = [[[*begun, *rest] for rest in group] for group in groups]
    done = []
    found = compute_choice_logits(model, groups, 0, 12, [3, 4, 5], done.append)
    with torch.no_grad():
        alone = [[model(torch.tensor([ids])).logits[0, -1, 3:6] for ids in group] for group in groups]
    assert sum(done) == 6 and [len(logits) for logits in found] == [3, 1, 2]
    assert all(torch.allclose(a, torch.stack(b), atol=1e-5) for a, b in zip(found, alone, strict=True))


def test_what_cannot_be_read_before_is_left_to_generate():
    one = pad_left([[5, 6, 7]])
    assert read_prompts(load_model(MODELS, "tiny"), *one) == {}
    assert read_prompts(load_model(MODELS, "tiny"), *pad_left([[5], [6, 7]])) == {}
    config = MistralConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                           intermediate_size=32, vocab_size=99, sliding_window=4)  # fmt: skip
    assert read_prompts(MistralForCausalLM(config), *pad_left([[5, 6], [6, 7]])) == {}


def adapt(model, last=(2, 3)):
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], layers_to_transform=[*last],
                                               init_lora_weights=False, task_type="CAUSAL_LM"))  # fmt: skip
    return adapted.train()


ROWS = [build_options_row([5, 6, 7], [[8, 9], [10]]), build_options_row([11, 12], [[13], [14, 15, 16]])]


def score(model, rows=ROWS):
    return torch.cat(compute_token_logps(rows, model, pad=0))


def count_calls(layers):
    calls = [0] * len(layers)
    for number, layer in enumerate(layers):
        before = layer.self_attn.forward

        def counted(*args, _number=number, _before=before, **options):
            calls[_number] += 1
            return _before(*args, **options)

        layer.self_attn.forward = counted
    return calls


def test_frozen_layers_run_once_and_nothing_changes():
    plain, kept = adapt(load_model(MODELS, "tiny")), adapt(load_model(MODELS, "tiny"))
    base = kept.get_base_model()
    assert count_frozen(base) == 2
    calls = count_calls(base.base_model.layers)
    keep_frozen(base, count_frozen(base), {})
    for times in (1, 2, 3):
        plain.zero_grad(), kept.zero_grad()
        ours, theirs = score(kept), score(plain)
        ours.sum().backward(), theirs.sum().backward()
        assert torch.allclose(ours, theirs, atol=1e-6)
        for (name, a), b in zip(kept.named_parameters(), plain.parameters(), strict=True):
            assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6), name
        assert calls == [1, 1, times, times]
    with kept.disable_adapter(), plain.disable_adapter():
        assert torch.allclose(score(kept), score(plain), atol=1e-6)


@torch.no_grad()
def test_rows_in_other_company_and_other_calls_are_computed_as_ever():
    model, states, ids = load_model(MODELS, "tiny"), {}, torch.tensor([[5, 6, 7]])
    expected, plain = score(model), model(ids).logits
    keep_frozen(model, 2, states)
    half = score(model, ROWS[:1])
    assert len(states) == 1
    assert torch.allclose(torch.cat([half, score(model, ROWS[1:])]), expected, atol=1e-6)
    assert len(states) == 2 and torch.allclose(score(model), expected, atol=1e-6)
    assert torch.equal(model(ids).logits, plain)


@torch.no_grad()
def test_states_are_shared_by_models_and_end_with_their_room(monkeypatch):
    first, second, states = load_model(MODELS, "tiny"), load_model(MODELS, "tiny"), {}
    calls = count_calls(second.base_model.layers)
    keep_frozen(first, 2, states), keep_frozen(second, 2, states)
    assert torch.allclose(score(first), score(second), atol=1e-6) and calls == [0, 0, 1, 1]
    monkeypatch.setattr(frozen, "ROOM", 0)
    full, nothing = load_model(MODELS, "tiny"), {}
    keep_frozen(full, 2, nothing)
    assert torch.equal(score(full), score(full)) and nothing == {}


def test_layers_that_draw_at_random_are_never_kept():
    model = load_model(MODELS, "tiny")
    model.config.attention_dropout = 0.1
    keep_frozen(model, 2, {})
    assert not hasattr(model, "karma_frozen")
    assert count_frozen(load_model(MODELS, "tiny")) == 0  # every layer is trained


def test_layers_that_are_trained_are_never_kept():
    model, states = load_model(MODELS, "tiny"), {}
    keep_frozen(model, 2, states)  # a caller's mistake
    score(model).sum().backward()
    assert states == {} and model.base_model.layers[0].mlp.up_proj.weight.grad is not None


def test_a_training_does_not_depend_on_the_reference_that_lies_there(tmp_path):
    """Another seed or a killed run left the reference's file: the weights are the same, byte for byte."""
    pairs = make_pairs(12)
    own = training_settings(lora={**LORA, "last_layers": 2}, epochs=0.5)
    for name in ("first", "second"):
        train(describe_run(pairs, MODELS, "tiny", "dpo", 0, own, COMPUTE, tmp_path / name, reference_folder=tmp_path), pairs,
              pairs.slice(0, 0))  # fmt: skip
    assert len(list(tmp_path.glob("reference-*.parquet"))) == 1
    first, second = (tmp_path / name / "model" / "adapter_model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_a_response_head_scores_as_trl_s_fused_head():
    theirs = load_model(MODELS, "tiny")
    ours = copy.deepcopy(theirs)
    for model in (theirs, ours):
        add_fused_lm_head(model, outputs=("log_probs", "is_top1"))
    assert can_replace_head(ours)
    replace_fused_head(ours, _score_responses)
    ids, mask = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]]), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    labels = torch.tensor([[-100, -100, 7, 8, 9], [-100, 11, 12, -100, -100]])
    labels[0, 2] = theirs(ids).logits[0, 1].argmax()  # one label is the likeliest token, the others are not
    found = [model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True) for model in (ours, theirs)]
    assert torch.allclose(found[0].log_probs, found[1].log_probs, atol=1e-6)
    assert torch.equal(found[0].label_mask, found[1].label_mask) and int(found[0].label_mask.sum()) == 5
    assert torch.equal(found[0].is_top1, found[1].is_top1.bool()) and 0 < int(found[0].is_top1.sum()) < 5
    for output in found:
        output.log_probs.sum().backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name
    assert torch.equal(ours(ids).logits, theirs(ids).logits)  # any other call is the model's own
