"""Log-probabilities and training, on a tiny model, against transformers and TRL."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from karma.errors import InputError
from karma.files.reading import load_json
from karma.models.chat import tokenize_response
from karma.models.load import add_trained, compute_weights_digest, load_model, load_tokenizer
from karma.models.logprobs import compute_logps, compute_pair_logps
from karma.statistics.intervals import compute_wilson
from karma.study.sections import ModelSpec
from karma.training import health
from karma.training.checks import check_pairs
from karma.training.held_out import summarise_margins
from karma.training.run import Run, describe_run
from karma.training.train import describe_memory, train
from karma.training.trainers import TRAINERS, build_dataset
from karma.vocabulary import METHODS
from tests.conftest import change_base

MODELS = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=1).model_dump()}
COMPUTE = change_base("compute", device="cpu", dtype="float32")
SETTINGS = {
    "epochs": 1.0, "per_device_batch_size": 2, "gradient_accumulation": 1, "devices": 1, "learning_rate": 1e-3,
    "warmup_steps": 0, "scheduler": "constant", "max_length": 128, "gradient_checkpointing": False, "beta": 0.1,
    "simpo": {"learning_rate": 1e-3, "beta": 2.5, "gamma_ratio": 0.55}, "checkpoint_steps": 0, "sample_tokens": 8,
}  # fmt: skip
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "last_layers": 1}


def settings(**changes):
    return change_base("training", **{**SETTINGS, **changes})


def describe_tiny(pairs, method, own, folder, *, models=MODELS, compute=COMPUTE, code=""):
    """The run of the first of `models`, seed 0."""
    return describe_run(pairs, models, next(iter(models)), method, 0, own, compute, folder, code=code)


def train_tiny(pairs, held_out, method, own, folder, siblings=(), **others):
    return train(describe_tiny(pairs, method, own, folder, **others), pairs, held_out, siblings)


def turn(role, text):
    return [{"role": role, "content": text}]


def make_pairs(n=6, **changes):
    rows = [{"row_id": str(i), "prompt": turn("user", f"Count to {i}."), "chosen": turn("assistant", "one two three " * (i + 1)),
             "rejected": turn("assistant", "no " * (i + 2)), **changes} for i in range(n)]  # fmt: skip
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def tiny():
    return load_model(MODELS, "tiny"), load_tokenizer(MODELS, "tiny")


def test_logps_equal_transformers_loss(tiny):
    model, tokenizer = tiny
    pairs = make_pairs(5)
    prompts, chosen = pairs["prompt"].to_pylist(), pairs["chosen"].to_pylist()
    logps, lengths = compute_logps(model, tokenizer, prompts, chosen, max_length=128, batch_size=2)
    for i, (prompt, response) in enumerate(zip(prompts, chosen, strict=True)):
        row = tokenize_response(tokenizer, prompt, response, 128)
        ids = torch.tensor([row.ids])
        labels = ids.clone()
        labels[:, : row.start] = -100
        loss = model(ids, labels=labels).loss.item()
        assert logps[i].item() == pytest.approx(-loss * lengths[i].item(), rel=1e-4)


def test_logps_do_not_depend_on_batching(tiny):
    model, tokenizer = tiny
    pairs = make_pairs(6)
    args = (model, tokenizer, pairs["prompt"].to_pylist(), pairs["chosen"].to_pylist())
    one, _ = compute_logps(*args, max_length=128, batch_size=1)
    many, _ = compute_logps(*args, max_length=128, batch_size=6)
    assert torch.allclose(one, many, atol=1e-3)


def test_truncation_keeps_the_start(tiny):
    _, tokenizer = tiny
    row = tokenize_response(tokenizer, turn("user", "Hi"), turn("assistant", "a b c d e f g h"), 20)
    whole = tokenize_response(tokenizer, turn("user", "Hi"), turn("assistant", "a b c d e f g h"), 10**6)
    assert row.ids == whole.ids[:20] and len(whole.ids) > 20


def test_shapes_are_what_trl_takes():
    assert set(build_dataset(make_pairs(), "sft").column_names) == {"prompt", "completion"}
    assert set(build_dataset(make_pairs(), "dpo").column_names) == {"prompt", "chosen", "rejected"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rejected": turn("assistant", "  ")},
            r"chosen or rejected is blank \(of 1 pairs 1 cannot be trained on\): .* `karma train --drop-unusable`",
        ),
        ({"prompt": turn("user", " ")}, "the instruction is missing or blank"),
        ({"rejected": turn("user", "no")}, "must be messages ending with role 'assistant'"),
        ({"prompt": []}, "must be messages ending with role 'user'"),
        ({"chosen": turn("assistant", "same"), "rejected": turn("assistant", "same")}, "are the same text"),
    ],
)
def test_bad_pairs_are_refused_before_a_model_loads(tiny, change, message):
    pairs = pa.Table.from_pylist([{**make_pairs(1).to_pylist()[0], **change}])
    with pytest.raises(InputError, match=message):
        check_pairs(pairs, tiny[1], "dpo", settings())


def test_warm_up_longer_than_training_and_truncation_are_warned_about(tiny):
    report = check_pairs(make_pairs(6), tiny[1], "dpo", settings(warmup_steps=500, max_length=40))
    assert report["updates"] == 3 and report["truncated_rows"] > 0 and report["dropped_pairs"] == 0
    assert "fewer than 500 warm-up steps" in report["warnings"][0]
    assert "longer than max_length=40" in report["warnings"][1]


def test_an_empty_training_set_is_refused(tiny):
    with pytest.raises(InputError, match="the training split is empty"):
        check_pairs(make_pairs(6).slice(0, 0), tiny[1], "sft", settings())


@pytest.fixture(scope="module")
def dpo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("k_sim")
    record = train_tiny(make_pairs(8), make_pairs(3), "dpo", settings(), folder, code="x")
    return folder, record


def test_dpo_starts_at_ln_2_and_learns(dpo_run):
    _, record = dpo_run
    assert record["history"][0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert record["history"][-1]["loss"] < record["history"][0]["loss"]
    assert record["n_updates"] == 4 and record["held_out"]["n"] == 3
    assert record["held_out"]["accuracy"] == 1.0  # the same texts that it was trained on


def test_held_out_margins_are_trl_s_reward_margins(dpo_run):
    """TRL's own evaluation of the trained model on the same pairs gives the same accuracy and margin."""
    from trl import DPOConfig, DPOTrainer

    folder, record = dpo_run
    models, name = add_trained(MODELS, "tiny", folder / "model")
    tokenizer = load_tokenizer(MODELS, "tiny")
    tokenizer.padding_side = "right"
    dataset = build_dataset(make_pairs(3), "dpo")
    config = DPOConfig(output_dir="unused", beta=0.1, use_cpu=True, bf16=False, report_to="none", max_length=128,
                       per_device_eval_batch_size=1)  # fmt: skip
    trainer = DPOTrainer(load_model(models, name), load_model(MODELS, "tiny"), args=config, train_dataset=dataset,
                         eval_dataset=dataset, processing_class=tokenizer)  # fmt: skip
    metrics = trainer.evaluate()
    assert metrics["eval_rewards/margins"] == pytest.approx(record["held_out"]["margin_mean"], rel=1e-3)
    assert metrics["eval_rewards/accuracies"] == record["held_out"]["accuracy"]


def test_training_twice_gives_the_same_weights(dpo_run, tmp_path):
    folder, _ = dpo_run
    train_tiny(make_pairs(8), make_pairs(3), "dpo", settings(), tmp_path, code="x")
    digests = [compute_weights_digest(*add_trained(MODELS, "tiny", f / "model")) for f in (folder, tmp_path)]
    assert digests[0] == digests[1]


def test_the_same_training_set_is_trained_once(dpo_run, tmp_path):
    folder, first = dpo_run
    args = (make_pairs(8), make_pairs(3), "dpo", settings(), tmp_path)
    record = train_tiny(*args, siblings=[folder], code="x")
    assert record["same_data_as"] and record["history"] == first["history"]
    assert record["held_out"]["margin_mean"] == pytest.approx(first["held_out"]["margin_mean"], rel=1e-6)
    assert train_tiny(*args, siblings=[folder], code="other code")["same_data_as"] is None


def test_the_untrained_policy_answers_a_prompt_once(dpo_run, tmp_path, monkeypatch):
    """Another method on other pairs, the same held-out prompts: only the tuned policy is asked, with the same result."""
    folder, first = dpo_run
    asked, ask = [], health.sample_answers
    monkeypatch.setattr("karma.training.train.sample_answers", lambda *a: asked.append(a) or ask(*a))
    record = train_tiny(make_pairs(4), make_pairs(3), "sft", settings(), tmp_path / "a", siblings=[folder], code="x")
    assert [a["before"] for a in record["answers"]] == [a["before"] for a in first["answers"]] and len(asked) == 1
    alone = train_tiny(make_pairs(4), make_pairs(3), "sft", settings(), tmp_path / "b", code="x")
    assert alone["answers"] == record["answers"] and len(asked) == 3
    for how, held in (({"code": "y"}, 3), ({"code": "x"}, 2)):  # other code, other prompts
        train_tiny(make_pairs(4), make_pairs(held), "sft", settings(), tmp_path / "c", siblings=[folder], **how)
    assert len(asked) == 7


def test_a_twin_s_held_out_margins_are_the_first_s_though_bfloat16_rounds_them(tmp_path):
    """What was learnt is small beside bfloat16's rounding: both runs must measure the weights as saved, finely."""
    how = {"compute": change_base("compute", device="cpu", dtype="bfloat16"), "code": "x"}
    args = (make_pairs(8), make_pairs(6), "dpo", settings(lora=LORA))
    first = train_tiny(*args, tmp_path / "a", **how)
    twin = train_tiny(*args, tmp_path / "b", siblings=[tmp_path / "a"], **how)
    margins = [pq.read_table(tmp_path / name / "held_out.parquet")["margin"].to_pylist() for name in "ab"]
    assert twin["same_data_as"] and margins[0] == margins[1] and len(set(margins[0])) > 1
    merged, name = add_trained(MODELS, "tiny", tmp_path / "a" / "model")
    texts = [make_pairs(6)[side].to_pylist() for side in ("prompt", "chosen", "rejected")]
    logps = [compute_pair_logps(load_model(models, policy), load_tokenizer(MODELS, "tiny"), *texts, max_length=128)[0]
             for models, policy in ((MODELS, "tiny"), (merged, name))]  # fmt: skip
    change = (logps[1] - logps[0]).diff(dim=1)[:, 0]
    assert first["held_out"]["dtype"] == "float32" and (-0.1 * change).tolist() == pytest.approx(
        margins[0], rel=1e-3, abs=1e-7
    )


def test_sft_masks_the_prompt(tmp_path, tiny):
    """SFT's first loss is the mean negative log-probability of completion tokens only."""
    model, tokenizer = tiny
    pairs = make_pairs(2)
    record = train_tiny(pairs, pairs, "sft", settings(), tmp_path)
    logps, lengths = compute_logps(
        model, tokenizer, pairs["prompt"].to_pylist(), pairs["chosen"].to_pylist(), max_length=128
    )
    assert record["history"][0]["loss"] == pytest.approx(-(logps.sum() / lengths.sum()).item(), rel=1e-3)


def test_lora_saves_an_adapter_that_loads(tmp_path):
    record = train_tiny(make_pairs(4), make_pairs(2), "dpo", settings(lora=LORA), tmp_path)
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()
    models, name = add_trained(MODELS, "tiny", tmp_path / "model")
    weights = dict(load_model(models, name).named_parameters())
    start = dict(load_model(MODELS, "tiny").named_parameters())
    changed = {key for key in weights if not torch.equal(weights[key], start[key])}
    assert changed and all(".layers.1." in key for key in changed)
    assert load_json(tmp_path / "training.json") == record


def test_no_pickle_is_left(dpo_run):
    folder, _ = dpo_run
    assert not [p for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_the_held_out_interval_is_that_of_the_share_ties_included():
    """Three ties of four gave .625 with the interval of .500."""
    found = summarise_margins(torch.tensor([1.0, 2.0, -1.0, 0.0]))
    assert found["accuracy"] == 0.625 and found["interval"] == list(compute_wilson(0.625, 4))
    assert found["interval"] != list(compute_wilson(0.5, 4))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_after_json(tmp_path, method):
    """What `accelerate launch` is given: a process of its own trains just this."""
    run = describe_tiny(make_pairs(3, label_confidence=0.9), method, settings(lora=LORA), tmp_path, code="x")
    assert Run.from_dict(json.loads(json.dumps(run.as_dict()))) == run


def test_a_run_s_files_are_what_they_were_before_runs():
    """What is kept must be found again: these digests were computed by the code before `Run`."""
    pairs = make_pairs(3).append_column("stage", pa.array([1, 2, 2]))
    found = describe_tiny(pairs, "dpo", settings(lora=LORA), "anywhere", code="x")
    assert found.data_digest == "f5260c147e6d3590"
    assert found.reference_file == "anywhere/reference-e252389e480b8919.parquet"


def test_what_a_method_learns_from_is_said_as_it_is_trained():
    assert list(TRAINERS) == list(METHODS)
    for name, trainer in TRAINERS.items():
        sides = {"chosen": ("chosen",), "pairs": ("chosen", "rejected"), "prompts": ()}
        assert trainer.sides == sides[METHODS[name].learns_from]
        starts_even = trainer.has_reference or trainer.makes == "reward_model"
        assert starts_even == (METHODS[name].start_loss is not None) and trainer.makes == METHODS[name].makes


def test_a_run_trains_the_pairs_it_was_described_with_and_no_others(tmp_path):
    run = describe_tiny(make_pairs(4), "dpo", settings(), tmp_path / "run")
    with pytest.raises(InputError, match="train_pairs are not those the run was described with"):
        train(run, make_pairs(5), make_pairs(2))
    assert not (tmp_path / "run").exists()


def test_memory_is_described_of_a_run(tmp_path):
    found = [
        describe_memory(describe_tiny(make_pairs(2), method, settings(), tmp_path), 64) for method in ("sft", "dpo")
    ]
    assert found[0]["states_gib"] == found[1]["states_gib"] and not found[0]["warnings"]


def test_a_method_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="method 'ppo' cannot be trained: choose from sft, dpo, simpo"):
        describe_tiny(make_pairs(2), "ppo", settings(), tmp_path)


def test_a_method_has_its_own_learning_rate_and_no_other_method_s_numbers():
    own = settings(learning_rate=1e-3, simpo={"learning_rate": 2e-6, "beta": 2.5, "gamma_ratio": 0.5})
    assert own.of("simpo")["learning_rate"] == 2e-6 and own.of("simpo")["simpo"]["beta"] == 2.5
    assert own.of("dpo")["learning_rate"] == 1e-3 and "simpo" not in own.of("dpo")
    other = settings(learning_rate=1e-3, simpo={"learning_rate": 3e-6, "beta": 2.5, "gamma_ratio": 0.5})
    assert own.of("dpo") == other.of("dpo") and own.of("simpo") != other.of("simpo")
    runs = [describe_tiny(make_pairs(2), method, how, "out") for method in ("dpo", "simpo") for how in (own, other)]
    assert runs[0].identity == runs[1].identity and runs[2].identity != runs[3].identity
