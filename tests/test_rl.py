"""GRPO and RLOO on a tiny model: advantages, losses and rewards by eye, what reaches TRL, runs, and hacked rewards."""

import json
import math

import pyarrow as pa
import pytest
import torch
from transformers import TrainerCallback

from karma.errors import InputError
from karma.evaluation.prompts import build_prompt, load_prompts
from karma.models.load import add_trained, compute_weights_digest, load_model, load_tokenizer
from karma.models.rewards import build_reward_model
from karma.study.sections import ModelSpec
from karma.training.checks import check_pairs, estimate_memory
from karma.training.forward import is_replaced
from karma.training.hacking import find_hacking
from karma.training.health import find_alarms
from karma.training.rl import add_instructions, build_rewards, load_instructions, reward_instructions
from karma.training.trainers import Reference, build_dataset, build_trainer
from tests.conftest import ROOT, change_base
from tests.test_training import LORA, MODELS, describe_tiny, make_pairs, settings, train_tiny, turn

ONLINE = ("grpo", "rloo")
EITHER = ["grpo", pytest.param("rloo", marks=pytest.mark.heavy)]  # where the two share their code
OWN = {"learning_rate": 1e-3, "generations": 4, "max_new_tokens": 8, "reward": {"instructions": 1.0}}
NO_COMMA = build_prompt("Name a tree.", ["punctuation:no_comma"], "[{}]")


def online(method, *, lora=LORA, **changes):
    """Settings of a method that samples answers; those of its own section come first."""
    section = change_base("training", **{}).as_dict()[method] | OWN
    own = {key: changes.pop(key) for key in list(changes) if key in section}
    return settings(lora=lora, **{method: section | own}, **changes)


def make_prompts(n=8):
    """Pairs whose prompts a program can check: is there a comma, are there words enough?"""
    prompts = [build_prompt(f"Count to {k}." + " Go on." * (k % 3), ["punctuation:no_comma", "length_constraints:number_words"],
                            '[{}, {"relation": "at least", "num_words": 3}]') for k in range(n)]  # fmt: skip
    pairs = make_pairs(n)
    asked = pa.array([turn("user", prompt.text) for prompt in prompts], pairs.schema.field("prompt").type)
    return add_instructions(pairs.set_column(pairs.column_names.index("prompt"), "prompt", asked), prompts)


def build(method, own, rewards=None, pairs=None):
    model, tokenizer = load_model(MODELS, "tiny"), load_tokenizer(MODELS, "tiny")
    found = [(rewards, 1.0)] if rewards else build_rewards(getattr(own, method), MODELS, "float32", "cpu")
    pairs = make_prompts() if pairs is None else pairs
    return build_trainer(model, tokenizer, pairs, method, 0, own, device="cpu", dtype="float32",
                         reference=Reference(rewards=found))  # fmt: skip


def sample(trainer, n=1):
    """A generation batch: n prompts, each as often as it is answered."""
    rows = [trainer.train_dataset[k] for k in range(n) for _ in range(trainer.num_generations)]
    trainer.model.train()
    return trainer._generate_and_score_completions(rows)


@pytest.mark.parametrize(("method", "advantages"), [
    # rewards 0, 0, 1/2, 1: mean 3/8, deviation sqrt(11/48)
    ("grpo", [-0.375 / (math.sqrt(11 / 48) + 1e-4), -0.375 / (math.sqrt(11 / 48) + 1e-4),
              0.125 / (math.sqrt(11 / 48) + 1e-4), 0.625 / (math.sqrt(11 / 48) + 1e-4)]),
    # each against the mean of the other three: 1/2, 1/2, 1/3, 1/6
    ("rloo", [-1 / 2, -1 / 2, 1 / 6, 5 / 6]),
])  # fmt: skip
def test_advantages_by_eye(method, advantages):
    trainer = build(method, online(method, beta=0.0), lambda completions, **_: [0.0, 0.0, 0.5, 1.0])
    assert sample(trainer)["advantages"].tolist() == pytest.approx(advantages, abs=1e-5)


def compute_by_hand(model, batch):
    """Log-probabilities of a batch's answers (rows, answer), by the model's own logits."""
    ids, n = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1), batch["completion_ids"].shape[1]
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -n - 1 : -1].log_softmax(-1)
    return logits.gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)


@pytest.mark.parametrize("lora", [None, LORA])
def test_grpo_s_loss_is_the_mean_over_answers_of_means_over_tokens_and_of_the_kl_from_the_start(lora):
    """TRL's default weighs answers by their length; the KL is Schulman's estimate, without importance weights."""
    trainer = build("grpo", online("grpo", lora=lora, beta=0.5), lambda completions, **_: [0.0, 0.0, 0.5, 1.0])
    batch = sample(trainer)
    batch["completion_mask"][0, 3:] = 0  # one short answer
    start = compute_by_hand(load_model(MODELS, "tiny"), batch).detach()
    torch.manual_seed(0)
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    own, mask = compute_by_hand(trainer.model, batch), batch["completion_mask"]
    assert torch.allclose(batch["ref_per_token_logps"] * mask, start * mask, atol=1e-4)
    kl = torch.exp(start - own) - (start - own) - 1
    token_loss = -batch["advantages"][:, None] + 0.5 * kl
    wanted = ((token_loss * mask).sum(1) / mask.sum(1)).mean()
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(wanted.item(), abs=1e-4)
    assert (kl * mask).sum() > 1e-3, "the policy did not move"


@pytest.mark.parametrize("lora", [None, LORA])
def test_rloo_s_reward_has_the_kl_of_a_whole_answer_taken_off(lora):
    trainer = build("rloo", online("rloo", lora=lora, beta=0.5), lambda completions, **_: [0.0, 0.0, 0.5, 1.0])
    torch.manual_seed(0)
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)
    batch = sample(trainer)
    mask, n = batch["completion_mask"], 4
    start = (compute_by_hand(load_model(MODELS, "tiny"), batch) * mask).sum(1)
    own = (compute_by_hand(trainer.model, batch) * mask).sum(1)
    reward = torch.tensor([0.0, 0.0, 0.5, 1.0]) - 0.5 * (own - start)
    wanted = reward - (reward.sum() - reward) / (n - 1)
    assert torch.allclose(batch["advantages"], wanted, atol=1e-3)
    assert (own - start).abs().max() > 1e-3, "the policy did not move"


@pytest.mark.parametrize("method", ONLINE)
@pytest.mark.parametrize("lora", [None, LORA])
def test_the_shared_pass_scores_and_learns_as_trl_s_own(method, lora):
    """The same answers, their log-probabilities under both policies, the loss and every gradient."""
    rewards = [0.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.2, 0.1]
    pairs = make_prompts().slice(0, 2)
    found = []
    for shares in (True, False):
        own = online(method, lora=lora, beta=0.5)
        with pytest.MonkeyPatch.context() as patch:
            if not shares:
                patch.setattr("karma.training.sampled.can_share", lambda model: False)
            trainer = build(method, own, lambda completions, **_: rewards, pairs)
        assert is_replaced(trainer.model) == shares
        torch.manual_seed(0)
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.data += 0.02 * torch.randn_like(weight)
        batch = sample(trainer, 2)
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        assert ("entropy" in trainer._metrics["train"]) and batch["completion_ids"].shape[0] == 8
        found.append((batch, loss, [w.grad for w in trainer.model.parameters() if w.requires_grad]))
    (one, loss, gradients), (two, wanted, others) = found
    for key in one:
        assert torch.allclose(one[key].float(), two[key].float(), atol=1e-4), key
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert sum(g.abs().sum() for g in others) > 0
    for mine, theirs in zip(gradients, others, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_temperature_leaves_the_pass_to_trl():
    assert not is_replaced(build("grpo", online("grpo", temperature=0.7)).model)


@pytest.mark.parametrize("method", ONLINE)
def test_the_configuration_that_reaches_trl(method):
    own = online(method, generations=4, temperature=0.7, epsilon=0.1, iterations=2, beta=0.3, per_device_batch_size=2,
                 gradient_accumulation=2)  # fmt: skip
    args = build(method, own).args
    assert (args.num_generations, args.temperature, args.epsilon, args.num_iterations) == (4, 0.7, 0.1, 2)
    assert (args.max_completion_length, args.learning_rate, args.beta) == (8, 1e-3, 0.3)
    assert args.per_device_train_batch_size == 2 * 4 and args.gradient_accumulation_steps == 2
    assert args.generation_batch_size // args.num_generations == 4, "several updates learn from an update's answers"
    once = build(method, online(method, per_device_batch_size=2, gradient_accumulation=2)).args
    assert once.generation_batch_size // once.num_generations == 2, "a micro-batch samples its own"
    if method == "grpo":
        assert (args.loss_type, args.scale_rewards, args.use_bias_correction_kl) == ("grpo", "group", False)
    curriculum = make_prompts().append_column("stage", pa.array([1] * 8))
    assert build(method, own).shuffle_dataset and not build(method, own, pairs=curriculum).shuffle_dataset


def test_rewards_by_eye():
    asked = [json.dumps({"instruction_id_list": list(NO_COMMA.instruction_ids), "kwargs": "[{}]"})] * 2
    answers = [turn("assistant", "An oak."), turn("assistant", "Well, an oak.")]
    assert reward_instructions(answers, asked) == [1.0, 0.0]
    both = [json.dumps({"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
                        "kwargs": '[{}, {"relation": "at least", "num_words": 3}]'})] * 2  # fmt: skip
    assert reward_instructions(answers, both) == [0.5, 0.5]


@pytest.fixture(scope="module")
def rater(tmp_path_factory):
    """A reward model that likes some answers better than others, for no reason."""
    folder = tmp_path_factory.mktemp("rater")
    model = build_reward_model(load_model(MODELS, "tiny"))
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    load_tokenizer(MODELS, "tiny").save_pretrained(folder)
    return {**MODELS, "rater": ModelSpec(path=str(folder)).model_dump()}


@pytest.mark.parametrize("method", EITHER)
def test_a_reward_model_rewards_and_the_truth_is_watched_beside_it(rater, tmp_path, method):
    own = online(method, reward={"reward_model": 2.0}, reward_model="rater", gradient_accumulation=2)
    pairs = make_prompts()
    record = train_tiny(pairs, pairs.slice(0, 2), method, own, tmp_path / "one", models=rater)
    for entry in record["history"]:
        assert entry["reward"] == pytest.approx(2 * entry["rewards/reward_model/mean"], rel=1e-4)
        assert 0 <= entry["rewards/instructions/mean"] <= 1
    unknown = pairs.drop_columns(["instructions"])
    record = train_tiny(unknown, unknown.slice(0, 2), method, own, tmp_path / "two", models=rater)
    assert record["history"][0]["rewards/instructions/mean"] is None, "a truth of prompts that nothing can check"


def test_a_mix_is_weighted(rater):
    own = online("grpo", reward={"reward_model": 2.0, "instructions": 0.5}, reward_model="rater")
    found = build_rewards(own.grpo, rater, "float32", "cpu")
    assert [(reward.__name__, weight) for reward, weight in found] == [("instructions", 0.5), ("reward_model", 2.0)]


@pytest.mark.parametrize(("method", "lora"), [("grpo", None), ("grpo", LORA), ("rloo", None), ("rloo", LORA)])
def test_a_training_is_recorded_like_any_other(tmp_path, method, lora):
    pairs = make_prompts()
    record = train_tiny(pairs, pairs.slice(0, 3), method, online(method, lora=lora), tmp_path)
    assert record["n_updates"] == 4 and len(record["history"]) == 4 and record["tokens"] > 0
    assert record["held_out"]["n"] == 3 and len(record["answers"]) == 3 and record["adapter"] == (lora is not None)
    keys = {"reward", "kl", "completions/mean_length", "rewards/instructions/mean", "frac_reward_zero_std"}
    assert keys <= set(record["history"][0])
    assert not any("collapsed" in alarm for alarm in record["alarms"]), "the first loss is 0 in every group"
    before, after = load_model(MODELS, "tiny"), load_model(*add_trained(MODELS, "tiny", tmp_path / "model"))
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert method in (tmp_path / "model" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("method", EITHER)
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, monkeypatch, method):
    """Sampling goes on with the random numbers of the checkpoint."""
    pairs, own = make_prompts(), online(method, checkpoint_steps=1)

    def stop(self, args, state, *_, **__):
        if state.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainerCallback, "on_step_begin", stop)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(pairs, pairs.slice(0, 2), method, own, tmp_path / "killed")
    killed, whole = (train_tiny(pairs, pairs.slice(0, 2), method, own, tmp_path / name) for name in ("killed", "whole"))
    assert killed["resumed_at"] == 2 and whole["resumed_at"] is None
    rewards = [[entry["reward"] for entry in record["history"]] for record in (killed, whole)]
    assert rewards[0] == rewards[1] and killed["tokens"] == whole["tokens"]
    digests = [
        compute_weights_digest(*add_trained(MODELS, "tiny", tmp_path / name / "model")) for name in ("killed", "whole")
    ]
    assert digests[0] == digests[1]


def test_the_same_training_is_taken_over_and_another_reward_is_another_training(rater, tmp_path):
    pairs, own = make_prompts(4), online("grpo")
    first, twin = (train_tiny(pairs, pairs.slice(0, 2), "grpo", own, tmp_path / name, [tmp_path / "first"])
                   for name in ("first", "twin"))  # fmt: skip
    assert first["same_data_as"] is None and twin["same_data_as"] == "../first"
    other = pairs.drop_columns(["instructions"])
    mixed = online("grpo", reward={"instructions": 1.0, "reward_model": 1.0}, reward_model="rater")
    runs = [describe_tiny(pairs, "grpo", own, "out"), describe_tiny(pairs, "grpo", online("grpo", beta=0.2), "out"),
            describe_tiny(other, "grpo", own, "out"), describe_tiny(pairs, "grpo", mixed, "out", models=rater),
            describe_tiny(pairs, "rloo", own, "out")]  # fmt: skip
    assert len({run.identity for run in runs}) == len(runs)
    dpo = [describe_tiny(pairs, "dpo", how, "out").identity for how in (own, online("grpo", beta=0.2))]
    assert dpo[0] == dpo[1], "another method's numbers"


def test_prompts_that_nothing_rewards_are_counted_and_left_out():
    tokenizer, own = load_tokenizer(MODELS, "tiny"), online("grpo", max_length=256)
    pairs = make_prompts()
    some = pairs.set_column(pairs.column_names.index("instructions"), "instructions",
                            pa.array([None, *pairs["instructions"].to_pylist()[1:]], pa.string()))  # fmt: skip
    report = check_pairs(some, tokenizer, "grpo", own)
    assert (report["pairs"], report["dropped_pairs"], report["updates"], report["pairs_an_update"]) == (8, 1, 3, 2)
    assert report["warnings"] == [
        "1 of 8 prompts are not trained on: they have no instructions that a program can check",
        "1 of 7 prompts, others in each epoch, are left over: 2 are answered at once",
    ]
    assert len(build("grpo", own, pairs=some).train_dataset) == 7
    longest = max(
        len(tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False))
        for p in pairs["prompt"].to_pylist()
    )
    assert report["longest_tokens"] == longest + 8
    tight = online("grpo", max_length=longest + 7)
    lost = check_pairs(pairs, tokenizer, "grpo", tight)["dropped_pairs"]
    assert 0 < lost < 8 and len(build("grpo", tight).train_dataset) == 8 - lost


@pytest.mark.parametrize(("own", "pairs", "message"), [
    ({"reward": {}}, None, r"grpo has no reward: set training\.grpo\.reward, to \{instructions: 1\.0\} or"),
    ({}, make_pairs(8), "no prompt has instructions that a program can check: name their file in pool.instructions"),
    ({"per_device_batch_size": 9}, None, "8 prompts are fewer than the 9 that are answered at once"),
    ({"max_length": 16}, None, "no prompt leaves room for 8 new tokens within max_length=16"),
    ({"iterations": 2, "checkpoint_steps": 3}, None, r"checkpoint_steps 3 is no multiple of training\.grpo\.iterations 2"),
    ({"accelerate": "params/accelerate/fsdp.yaml", "lora": None}, None, "no place beside one that is shared out"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_a_model_loads(own, pairs, message):
    with pytest.raises(InputError, match=message):
        check_pairs(
            make_prompts() if pairs is None else pairs, load_tokenizer(MODELS, "tiny"), "grpo", online("grpo", **own)
        )


def test_a_reward_model_is_named_where_it_is_weighed_and_nowhere_else():
    for own in ({"reward": {"reward_model": 1.0}}, {"reward_model": "rater"}):
        with pytest.raises(ValueError, match="reward_model: name a model where reward weighs one, and none elsewhere"):
            online("grpo", **own)


def test_instructions_are_found_by_the_prompt_s_text():
    file = ROOT / "karma/data/demo/search.jsonl"
    prompts = load_prompts(file, True)[:2]
    pairs = make_pairs(3)
    asked = pa.array([turn("user", prompts[1].text), turn("user", "Hello"), turn("user", prompts[0].text)])
    pairs = pairs.set_column(pairs.column_names.index("prompt"), "prompt", asked)
    found = load_instructions(pairs, "rloo", online("rloo"), file)["instructions"].to_pylist()
    assert [one and json.loads(one)["instruction_id_list"] for one in found] == [
        list(prompts[1].instruction_ids), None, list(prompts[0].instruction_ids)]  # fmt: skip
    assert load_instructions(pairs, "dpo", online("rloo"), file) is pairs
    assert build_dataset(add_instructions(pairs, prompts), "rloo").column_names == ["prompt", "instructions"]
    assert set(build_dataset(add_instructions(pairs, prompts), "dpo").column_names) == {"prompt", "chosen", "rejected"}


def test_memory_holds_the_answers_being_sampled_and_the_policy_before_training():
    from karma.models.load import load_shape

    config, n = load_shape(MODELS, "tiny")
    few, many = (
        estimate_memory(config, n, online("grpo", lora=None, generations=g), "float32", "grpo", 64) for g in (64, 128)
    )
    assert many["activations_bytes"] == 2 * few["activations_bytes"]
    at_once = online("grpo", lora=None, generations=64, iterations=2, gradient_accumulation=500)
    # 2 x 500 prompts, 64 answers of 64 tokens, keys and values of 2 layers, 32 wide; and a row of logits each
    wanted = 2 * 500 * 64 * (2 * 2 * 32 * 64 * 4 + 10 * config.vocab_size)
    assert estimate_memory(config, n, at_once, "float32", "grpo", 64)["activations_bytes"] == wanted
    free = estimate_memory(config, n, online("grpo", lora=None, beta=0.0), "float32", "grpo", 64)
    assert few["states_bytes"] == free["states_bytes"] + 4 * n


def history(n=16, **curves):
    """Updates with curves, each a function of the share of the training."""
    base = {
        "reward": lambda x: x,
        "loss": lambda x: 0.0,
        "kl": lambda x: 0.01,
        "completions/mean_length": lambda x: 30.0,
    }
    return [{"step": k + 1, **{key: curve(k / (n - 1)) for key, curve in {**base, **curves}.items()}} for k in range(n)]


RATED, TRUTH = "rewards/reward_model/mean", "rewards/instructions/mean"


@pytest.mark.parametrize(("curves", "message"), [
    ({}, None),
    ({"kl": lambda x: 0.5 * x}, "update 12: the policy is 11.0 nats an answer away"),
    ({"completions/mean_length": lambda x: 30 + 40 * x}, "answers grew from 34 to 66 tokens while the reward was learnt"),
    ({"completions/clipped_ratio": lambda x: x}, "90% of the answers no longer end"),
    ({RATED: lambda x: x, TRUTH: lambda x: 0.5 - 0.4 * x}, "rose from 0.10 to 0.90 while .* fell from 0.46 to 0.14: the reward is hacked"),
    ({RATED: lambda x: x, TRUTH: lambda x: 0.5 + 0.1 * x}, None),
    ({RATED: lambda x: -x, TRUTH: lambda x: 0.5 - 0.4 * x}, None),
    ({TRUTH: lambda x: 0.5 - 0.4 * x}, None),
    ({"frac_reward_zero_std": lambda x: 0.95}, "in 95% of the groups all answers were rewarded alike"),
])  # fmt: skip
def test_a_hacked_reward_is_alarmed(curves, message):
    alarms = find_hacking(history(**curves), 16, "rloo")
    assert len(alarms) == (message is not None) and (not alarms or "training.rloo." in alarms[0])
    if message:
        import re

        assert re.search(message, alarms[0]), alarms
    assert find_alarms(history(**curves), 16, 2, beta=0.1, method="rloo") == alarms


def test_alarms_wait_for_the_end_but_for_the_kl():
    assert find_hacking(history(**{"completions/mean_length": lambda x: 30 + 40 * x})[:12], 16) == []
    assert len(find_hacking(history(kl=lambda x: 1.0)[:2], 16)) == 1
    nan = [*history(2), {"step": 3, "reward": 0.0, "loss": math.nan}]
    assert "the loss is nan" in find_alarms(nan, 16, 2, beta=0.1)[0]
