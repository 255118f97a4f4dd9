"""A reward model from pairs: its loss by eye and against TRL's, runs that end, go on, are merged or refused."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from karma.errors import InputError
from karma.models.load import add_trained, load_tokenizer
from karma.models.rewards import build_reward_model, load_reward_model, score_responses
from karma.training.checks import check_pairs, estimate_memory
from karma.training.health import find_alarms
from karma.training.rewards import compare_length, describe_rewards, summarise_rewards
from karma.training.trainers import build_dataset, build_trainer
from tests.test_rewards import make_reward_model
from tests.test_training import LORA, MODELS, make_pairs, settings, train_tiny

OWN = {"reward_model": {"learning_rate": 1e-2, "centring": 0.01}, "sample_tokens": 0}


def own(**changes):
    return settings(**{**OWN, **changes})


def build(model, pairs, **changes):
    tokenizer = load_tokenizer(MODELS, "tiny")
    tokenizer.padding_side = "right"
    how = {"device": "cpu", "dtype": "float32"}
    return build_trainer(model, tokenizer, pairs, "reward_model", 0, own(**changes), **how)


def test_the_loss_by_eye():
    """-ln sigmoid(r_w - r_l) + c (r_w + r_l)^2, a mean over pairs, of rewards as the model gives them."""
    model, pairs = make_reward_model(), make_pairs(3)
    trainer = build(model, pairs, per_device_batch_size=3, reward_model={"learning_rate": 1e-2, "centring": 0.5})
    batch = trainer.data_collator([trainer.train_dataset[k] for k in range(3)])
    loss = trainer.compute_loss(trainer.model, batch).item()
    sides = [score_responses(model, trainer.processing_class, pairs["prompt"].to_pylist(), pairs[side].to_pylist())
             for side in ("chosen", "rejected")]  # fmt: skip
    chosen, rejected = (side.tolist() for side in sides)
    by_hand = [math.log(1 + math.exp(b - a)) + 0.5 * (a + b) ** 2 for a, b in zip(chosen, rejected, strict=True)]
    assert loss == pytest.approx(sum(by_hand) / 3, rel=1e-4)
    with torch.no_grad():  # in TRL's order, though rows are run by length: the shortest pair comes first in this batch
        rated = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert rated.tolist() == pytest.approx([*chosen, *rejected], rel=1e-3)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_training_is_trl_s(lora):
    """In float32 the losses of four updates, and the weights after them, are those of TRL's own trainer and layout."""
    from trl import RewardConfig, RewardTrainer

    pairs, ended = make_pairs(8), []
    ours = build(make_reward_model(), pairs, lora=lora)
    tokenizer = ours.processing_class
    same = {name: getattr(ours.args, name) for name in (
        "output_dir", "report_to", "seed", "logging_steps", "save_strategy", "num_train_epochs", "use_cpu", "bf16",
        "per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "max_length", "gradient_checkpointing",
        "center_rewards_coefficient", "disable_tqdm")}  # fmt: skip
    theirs = RewardTrainer(make_reward_model(), RewardConfig(**same), train_dataset=build_dataset(pairs, "reward_model"),
                           processing_class=tokenizer,
                           peft_config=ours.model.peft_config["default"] if lora else None)  # fmt: skip
    theirs._get_train_sampler = ours._get_train_sampler
    theirs.model.load_state_dict(ours.model.state_dict())
    for trainer in (ours, theirs):
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        ended.append(([entry["loss"] for entry in log], dict(trainer.model.named_parameters()), log))
    (losses, weights, log), (expected, others, their_log) = ended
    assert len(losses) == 4 and losses == pytest.approx(expected, rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(log, their_log, strict=True):
        assert ours["rewards/margins"] == pytest.approx(theirs["margin"], rel=1e-3, abs=1e-4)
        assert ours["rewards/accuracies"] == theirs["accuracy"] and ours["num_tokens"] == theirs["num_tokens"]
        mean = (ours["rewards/chosen"] + ours["rewards/rejected"]) / 2
        assert mean == pytest.approx(theirs["mean_reward"], rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    record = train_tiny(make_pairs(12), make_pairs(5), "reward_model", own(epochs=3.0), folder)
    return folder, record


def test_it_starts_at_ln_2_learns_and_is_measured_as_it_was_saved(run):
    folder, record = run
    losses = [entry["loss"] for entry in record["history"]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < 0.3 and len(losses) == 18
    model = load_reward_model(*add_trained(MODELS, "tiny", folder / "model"))
    pairs, table = make_pairs(5), pq.read_table(folder / "held_out.parquet")
    rewards = score_responses(model, load_tokenizer(MODELS, "tiny"), pairs["prompt"].to_pylist(),
                              pairs["chosen"].to_pylist())  # fmt: skip
    assert table["chosen_reward"].to_pylist() == pytest.approx(rewards.tolist(), rel=1e-5)
    gap = table["chosen_reward"].to_numpy() - table["rejected_reward"].to_numpy()
    assert table["margin"].to_pylist() == gap.tolist()
    assert table["chosen_characters"].to_pylist() == [14 * (k + 1) for k in range(5)]
    assert record["held_out"]["accuracy"] == 1.0 and record["held_out"]["length"]["longer_chosen"]["value"] == 1.0
    assert record["answers"] == [] and not (folder / "model" / "training_args.bin").exists()
    card = (folder / "model" / "README.md").read_text()
    assert "# tiny, a reward model trained on custom" in card and "It prefers the longer response in 1.00 [" in card
    assert "pipeline_tag: text-classification" in card and "It answers nothing." in card


def test_the_same_training_is_done_once(run, tmp_path):
    record = train_tiny(make_pairs(12), make_pairs(5), "reward_model", own(epochs=3.0), tmp_path, siblings=[run[0]])
    assert record["same_data_as"] and record["held_out"] == run[1]["held_out"]


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_has_its_head_and_is_merged_on_request(tmp_path, merge):
    how = own(lora=LORA, merge_adapter=merge, epochs=2.0)
    record = train_tiny(make_pairs(12), make_pairs(3), "reward_model", how, tmp_path)
    assert (tmp_path / "model" / "adapter_config.json").exists() != merge and record["adapter"] != merge
    assert record["history"][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    table = pq.read_table(tmp_path / "held_out.parquet")
    assert len(set(table["chosen_reward"].to_pylist())) == 3, "a head that was not saved would rate all alike"


@pytest.mark.heavy
def test_two_processes_train_as_one(tmp_path):
    losses, rewards = [], []
    for name, accelerate in (("one", None), ("two", "params/accelerate/ddp.yaml")):
        how = own(devices=2, accelerate=accelerate)
        record = train_tiny(make_pairs(12), make_pairs(3), "reward_model", how, tmp_path / name)
        losses.append([entry["loss"] for entry in record["history"]])
        rewards.append(pq.read_table(tmp_path / name / "held_out.parquet")["chosen_reward"].to_pylist())
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert rewards[0] == pytest.approx(rewards[1], rel=1e-2, abs=1e-3)


def test_pairs_with_a_text_too_long_are_left_out_as_trl_does_and_counted():
    tokenizer, limit = load_tokenizer(MODELS, "tiny"), 40
    report = check_pairs(make_pairs(8), tokenizer, "reward_model", own(max_length=limit))
    trained = build(build_reward_model(load_tiny()), make_pairs(8), max_length=limit).train_dataset
    assert 0 < report["dropped_pairs"] == 8 - len(trained) and report["truncated_rows"] == 0
    assert any(f"a text of theirs is longer than max_length={limit} tokens" in text for text in report["warnings"])
    with pytest.raises(InputError, match="every pair has a text of more than max_length=16 tokens: raise"):
        check_pairs(make_pairs(8), tokenizer, "reward_model", own(max_length=16))


def load_tiny():
    from karma.models.load import load_model

    return load_model(MODELS, "tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": 0.1}, "training.label_smoothing means nothing to reward_model"),
        ({"smooth_by_confidence": True}, "training.smooth_by_confidence means nothing to reward_model"),
        ({"accelerate": "params/accelerate/fsdp.yaml"}, "a reward model's head is trained whole: take params/accelerate/ddp.yaml"),
        ({"merge_adapter": True}, "training.merge_adapter needs training.lora"),
    ],
)  # fmt: skip
def test_what_a_reward_model_cannot_be_is_refused_before_a_model_loads(changes, message):
    with pytest.raises(InputError, match=message):
        check_pairs(make_pairs(2), load_tokenizer(MODELS, "tiny"), "reward_model", own(**changes))


def test_a_reward_model_is_no_policy_to_tune(run, tmp_path):
    from karma.study.sections import ModelSpec

    models = {"rm": ModelSpec(path=str(run[0] / "model")).model_dump()}
    with pytest.raises(InputError, match="model 'rm' is a reward model: it rates responses and writes none"):
        train_tiny(make_pairs(4), make_pairs(2), "dpo", settings(), tmp_path, models=models)


def test_memory_holds_no_logits():
    config, own_settings = load_tiny().config, own()
    dpo, reward = (estimate_memory(config, 10**6, own_settings, "float32", method, 100)["activations_bytes"]
                   for method in ("dpo", "reward_model"))  # fmt: skip
    assert reward < dpo


def curve(margins, means):
    return [{"step": k, "loss": 0.6, "rewards/margins": margin, "rewards/accuracies": 0.6,
             "rewards/chosen": mean + margin / 2, "rewards/rejected": mean - margin / 2}
            for k, (margin, mean) in enumerate(zip(margins, means, strict=True))]  # fmt: skip


def test_alarms_are_a_reward_model_s():
    how = {"n_updates": 8, "pairs_an_update": 4, "beta": 1.0, "makes": "reward_model"}
    assert find_alarms(curve([k / 8 for k in range(8)], [-k / 4 for k in range(8)]), **how) == []
    (flat,) = find_alarms(curve([0.0] * 8, [0.0] * 8), **how)
    assert "the reward model did not learn; raise training.reward_model's learning_rate" in flat
    (drift,) = find_alarms(curve([k / 8 for k in range(8)], [9.0] * 8), **how)
    assert "the mean reward is 9.0, far from 0" in drift and "centring" in drift


def test_length_by_eye():
    """Four pairs: the longer one rated higher in three of three unequal ones; two of like length, one right."""
    found = compare_length([1.0, -2.0, 0.5, -0.1], [30, 10, 22, 10], [10, 30, 20, 10])
    assert [found[name]["value"] for name in ("longer_preferred", "longer_chosen", "like_length")] == [1.0, 2 / 3, 0.5]
    assert [found[name]["n"] for name in ("longer_preferred", "like_length", "correlation")] == [3, 2, 4]
    assert found["correlation"]["value"] == pytest.approx(1.0) and found["correlation"]["low"] < 1
    none = compare_length([], [], [])
    assert none["like_length"] == {"value": None, "low": None, "high": None, "n": 0} == none["correlation"]


def test_a_reward_model_of_length_alone_is_seen_through():
    rng = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randint(10, 400, (200,), generator=rng) for _ in range(2))
    table = pa.table({"margin": (chosen - rejected).double().tolist(), "chosen_characters": chosen.tolist(),
                      "rejected_characters": rejected.tolist()})  # fmt: skip
    length = summarise_rewards(table)["length"]
    assert length["longer_preferred"]["value"] == 1.0 and length["correlation"]["value"] > 0.9
    assert "prefers the longer response in 1.00" in describe_rewards({"length": length})
