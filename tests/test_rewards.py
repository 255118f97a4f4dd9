"""Reward models: what a response's reward is, read against transformers' own and TRL's."""

import pytest
import torch

from karma.errors import InputError
from karma.models.check import check_model
from karma.models.load import add_trained, load_model, load_tokenizer
from karma.models.made import build_tokenizer
from karma.models.rewards import (
    build_reward_model,
    build_reward_row,
    compute_rewards,
    load_reward_model,
    score_responses,
)
from karma.study.sections import ModelSpec

TINY = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=1).model_dump()}


def make_reward_model(seed: int = 0):
    """A tiny reward model whose head has an opinion."""
    model = build_reward_model(load_model(TINY, "tiny"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.score.weight)
    return model.eval()


def say(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def ask(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


PROMPTS = [*ask("Name a tree.") * 3, *ask("Count to two.") * 2, *ask("Name a tree.")]
RESPONSES = say("An oak.", "An oak and a birch, which are two trees.", "Ash.", "One, two.", "One.", "An oak.")


def rate_by_transformers(model, tokenizer) -> torch.Tensor:
    """Rate each text in a row of its own, by transformers' own pass."""
    turns = [[*prompt, *response] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    rows = [tokenizer.apply_chat_template(t, tokenize=True, return_tensors="pt", return_dict=False) for t in turns]
    with torch.no_grad():
        return torch.cat([model(input_ids=row.to(model.device)).logits[:, 0] for row in rows])


def test_rewards_are_those_of_transformers_whoever_shares_a_row():
    model, tokenizer = make_reward_model(), load_tokenizer(TINY, "tiny")
    expected = rate_by_transformers(model, tokenizer)
    for budget in (None, 1, 10**6):
        found = score_responses(model, tokenizer, PROMPTS, RESPONSES, batch_tokens=budget)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32 and len(set(found[:5].tolist())) == 5 and found[5] == pytest.approx(found[0])


def test_a_model_that_cannot_share_is_asked_one_response_at_a_time(monkeypatch):
    model, tokenizer = make_reward_model(), load_tokenizer(TINY, "tiny")
    monkeypatch.setattr("karma.models.rewards.can_share_rewards", lambda model: False)
    found = score_responses(model, tokenizer, PROMPTS, RESPONSES)
    assert found.tolist() == pytest.approx(rate_by_transformers(model, tokenizer).tolist(), rel=1e-6)


def test_by_eye_the_reward_is_the_head_at_the_last_token_that_is_no_padding():
    model = make_reward_model()
    pad = model.config.pad_token_id
    texts = [[5, 6, 7], [5, 6, 8, pad], [5]]
    with torch.no_grad():
        states = [model.model(torch.tensor([ids])).last_hidden_state[0] for ids in texts]
        head = model.score.weight[0]
        expected = [(states[k][place] @ head).item() for k, place in enumerate((2, 2, 0))]
        found = compute_rewards(model, [build_reward_row(texts, pad)], 10**6)
    assert found[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_no_texts_have_no_rewards():
    assert score_responses(make_reward_model(), load_tokenizer(TINY, "tiny"), [], []).shape == (0,)


def save_whole(model, folder):
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return {**TINY, "rm": ModelSpec(path=str(folder)).model_dump()}


def test_a_saved_reward_model_rates_alike_and_writes_nothing(tmp_path):
    model = make_reward_model()
    models = save_whole(model, tmp_path / "rm")
    again, tokenizer = load_reward_model(models, "rm"), load_tokenizer(models, "rm")
    found = score_responses(again, tokenizer, PROMPTS, RESPONSES)
    assert found.tolist() == score_responses(model, tokenizer, PROMPTS, RESPONSES).tolist()
    for use in (load_model, check_model):
        with pytest.raises(InputError, match="model 'rm' is a reward model: it rates responses and writes none; name"):
            use(models, "rm")


def test_a_reward_model_that_holds_nan_is_refused(tmp_path):
    model = make_reward_model()
    torch.nn.init.constant_(model.score.weight, float("nan"))
    with pytest.raises(InputError, match=r"score\.weight holds NaN or infinite weights"):
        load_reward_model(save_whole(model, tmp_path), "rm")


def test_an_adapter_with_its_head_is_loaded_from_the_folder_of_its_training(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", init_lora_weights=False)
    model = get_peft_model(make_reward_model(), config)
    model.save_pretrained(tmp_path)
    models, name = add_trained(TINY, "tiny", tmp_path)
    tokenizer = load_tokenizer(models, name)
    found = score_responses(load_reward_model(models, name), tokenizer, PROMPTS, RESPONSES)
    expected = score_responses(model.eval(), tokenizer, PROMPTS, RESPONSES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="is a reward model"):
        load_model(models, name)


def test_a_kind_of_model_without_a_plain_head_is_refused():
    class Odd:
        class config:
            model_type = "odd"
            from_dict = classmethod(lambda cls, values: cls())
            to_dict = staticmethod(dict)

    Odd.config = Odd.config()
    with pytest.raises(InputError, match="no reward model can be made of a odd"):
        build_reward_model(Odd())
