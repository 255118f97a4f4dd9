"""Trainings that go wrong, on, or wide: killed and resumed, two processes, other losses, curricula, alarms."""

import json
import math
import os
import signal
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import TrainerCallback

from karma.errors import InputError, KarmaError
from karma.models.load import add_trained, compute_weights_digest, load_model, load_shape, load_tokenizer
from karma.study.sections import ModelSpec
from karma.study.training_settings import Lora
from karma.training.checks import check_folder, check_memory, check_pairs, estimate_memory
from karma.training.health import compare_lengths, find_alarms, sample_answers
from karma.training.progress import LiveView
from karma.training.trainers import DPO_LOSSES, Reference, build_dataset, build_trainer
from karma.training.tuning import find_checkpoint
from tests.conftest import CALL_LIMIT, change_base, start_child, wait_until
from tests.test_training import LORA, MODELS, make_pairs, settings, train_tiny


def weights_digest(folder):
    return compute_weights_digest(*add_trained(MODELS, "tiny", folder / "model"))


def train_long(folder, method, hold=False):
    """Forty updates with a checkpoint after each five; held at the end of the seventh, so that no kill comes too late."""
    if hold:
        TrainerCallback.on_step_begin = lambda self, args, state, *_, **__: time.sleep(
            CALL_LIMIT * (state.global_step == 7)
        )
    own = settings(checkpoint_steps=5, epochs=2.0, scheduler="cosine", max_length=512)  # a reward model cuts no text
    return train_tiny(make_pairs(40), make_pairs(3), method, own, folder, code="x")


@pytest.mark.parametrize("method", ["dpo", "sft", "reward_model"])
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, method):
    """kill -9 after the first checkpoint; the same call goes on from there, and ends as if nothing had happened."""
    folder = tmp_path / "killed"
    with start_child(train_long, folder, method, True) as child:
        wait_until(lambda: find_checkpoint(folder / "checkpoints") or not child.is_alive())
    assert child.exitcode == -signal.SIGKILL, "it ended by itself"
    assert not (folder / "training.json").exists(), "it was killed too late to show anything"
    killed, whole = (train_long(target, method) for target in (folder, tmp_path / "whole"))
    assert killed["resumed_at"] and whole["resumed_at"] is None
    assert weights_digest(folder) == weights_digest(tmp_path / "whole")
    losses = [[entry["loss"] for entry in record["history"]] for record in (killed, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == killed["n_updates"] == 40
    counted = [[entry["num_tokens"] for entry in record["history"]] for record in (killed, whole)]
    assert counted[0] == counted[1] and killed["tokens"] == whole["tokens"]
    assert not (folder / "checkpoints").exists()  # nothing unfinished is left


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for step in (5, 10, 15, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    whole = '{"global_step": 5, "log_history": []}'
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text(whole)
    (tmp_path / "checkpoint-15" / "trainer_state.json").touch()  # opened, and killed: seen in a test run
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text(whole[:20])
    assert find_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5") and find_checkpoint(None) is None


def test_another_training_s_checkpoints_are_not_gone_on_from(tmp_path):
    marker = tmp_path / "checkpoints" / "identity.json"
    marker.parent.mkdir()
    marker.write_text('"mine"')
    assert check_folder(tmp_path, "mine") == "resumable" and check_folder(tmp_path, "yours") == "free"
    (tmp_path / "model").mkdir()
    (tmp_path / "training.json").write_text('{"identity": "mine"}')
    assert check_folder(tmp_path, "mine") == "done"
    with pytest.raises(InputError, match="holds another training: give a new folder"):
        check_folder(tmp_path, "yours")


@pytest.mark.parametrize("method", ["dpo", pytest.param("sft", marks=pytest.mark.heavy)])
def test_two_processes_train_as_one(tmp_path, method):
    """Two CPU processes (gloo) with half the accumulation give the losses of one process with the same global batch."""
    shared = {"per_device_batch_size": 2, "devices": 2}
    folders, records = [tmp_path / "one", tmp_path / "two"], []
    for folder, accelerate in zip(folders, (None, "params/accelerate/ddp.yaml"), strict=True):
        own = settings(**shared, accelerate=accelerate)
        records.append(train_tiny(make_pairs(12), make_pairs(3), method, own, folder))
    assert [r["processes"] for r in records] == [["NO", 1], ["MULTI_CPU", 2]]
    one, two = ([entry["loss"] for entry in record["history"]] for record in records)
    assert len(one) == 3 and one == pytest.approx(two, rel=1e-4)
    start, first, second = (
        dict(load_model(*spec).named_parameters())
        for spec in [(MODELS, "tiny"), *(add_trained(MODELS, "tiny", folder / "model") for folder in folders)]
    )
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=1e-4), name
    assert any((first[name] - start[name]).abs().max() > 1e-3 for name in first)
    assert records[0]["held_out"]["margin_mean"] == pytest.approx(records[1]["held_out"]["margin_mean"], abs=1e-3)
    assert sorted(p.name for p in folders[1].iterdir()) == ["held_out.parquet", "model", "training.json", "trl.yaml"]


def test_a_failed_process_shows_its_last_lines(tmp_path):
    bad = settings(devices=2, accelerate="params/accelerate/ddp.yaml").model_copy(update={"loss_type": "no_such_loss"})
    with pytest.raises(KarmaError, match=r"(?s)2 processes of accelerate ended with exit code 1.*no_such_loss"):
        train_tiny(make_pairs(8), make_pairs(2), "dpo", bad, tmp_path)
    assert (tmp_path / "launch.log").is_file()
    with pytest.raises(InputError, match=r"nothing\.yaml does not exist; there are params/accelerate/fsdp.yaml"):
        train_tiny(make_pairs(8), make_pairs(2), "sft", settings(devices=2, accelerate="nothing.yaml"), tmp_path)


@pytest.mark.parametrize("loss_type", DPO_LOSSES)
def test_every_dpo_loss_of_trl_trains_by_name(tmp_path, loss_type):
    """And in the shared-prompt layout its first loss, log-probabilities and gradient are those of TRL's own layout."""
    from trl import DPOConfig, DPOTrainer

    smoothing = {"label_smoothing": 0.1 if loss_type in ("exo_pair", "robust") else 0.0}
    pairs, own = make_pairs(4), settings(loss_type=loss_type, per_device_batch_size=4, **smoothing)
    tokenizer = load_tokenizer(MODELS, "tiny")
    tokenizer.padding_side = "right"
    trainer = build_trainer(load_model(MODELS, "tiny"), tokenizer, pairs, "dpo", 0, own, device="cpu", dtype="float32")
    config = DPOConfig(output_dir=str(tmp_path), loss_type=[loss_type], beta=0.1, use_cpu=True, bf16=False, report_to="none",
                       max_length=128, per_device_train_batch_size=4, precompute_ref_log_probs=True, disable_tqdm=True,
                       num_train_epochs=1, logging_steps=1, save_strategy="no", **smoothing)  # fmt: skip
    theirs = DPOTrainer(load_model(MODELS, "tiny"), args=config, train_dataset=build_dataset(pairs, "dpo"),
                        processing_class=tokenizer)  # fmt: skip
    first = []
    for each in (trainer, theirs):
        each.train()
        entry = next(entry for entry in each.state.log_history if "loss" in entry)
        first.append([entry[key] for key in ("loss", "logps/chosen", "logps/rejected", "grad_norm")])
    assert first[0] == pytest.approx(first[1], rel=1e-3, abs=1e-5) and math.isfinite(first[0][0])


def test_the_reference_reads_only_the_pairs_that_are_seen(tmp_path):
    """Half an epoch: the history of a run whose reference had read all pairs; another seed sees others, and reads anew."""
    pairs, half = make_pairs(9), settings(epochs=0.5, per_device_batch_size=2)
    tokenizer = load_tokenizer(MODELS, "tiny")
    tokenizer.padding_side = "right"
    histories, file = [], tmp_path / "reference.parquet"
    for seed, own in ((0, half), (0, settings(epochs=1, per_device_batch_size=2)), (1, half)):
        reference = Reference(file=file if own is half else None)
        trainer = build_trainer(load_model(MODELS, "tiny"), tokenizer, pairs, "dpo", seed, own, device="cpu", dtype="float32",
                                reference=reference)  # fmt: skip
        known = [row["ref_chosen_logps"] for row in trainer.train_dataset]
        if own is half:
            assert sum(not math.isnan(value) for value in known) == 6
            trainer.train()
            histories.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
            kept = known
        else:
            assert [a for a, b in zip(known, kept, strict=True) if not math.isnan(b)] == pytest.approx(
                [b for b in kept if not math.isnan(b)], abs=1e-4
            )
    assert [len(losses) for losses in histories] == [3, 3]
    assert all(math.isfinite(loss) for losses in histories for loss in losses) and histories[0] != histories[1]


def test_the_list_of_losses_is_trl_s():
    import inspect
    import re

    from trl import DPOTrainer

    known = re.findall(r'loss_type == "(\w+)"', inspect.getsource(DPOTrainer))
    assert set(known) == set(DPO_LOSSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "exo_pair"}, "exo_pair needs training.label_smoothing above 0"),
        ({"merge_adapter": True}, "merge_adapter needs training.lora"),
    ],
)
def test_a_method_that_cannot_be_trained_is_refused_before_a_model_loads(changes, message):
    with pytest.raises(InputError, match=message):
        check_pairs(make_pairs(4), load_tokenizer(MODELS, "tiny"), "dpo", settings(**changes))


def test_a_curriculum_is_trained_in_its_order(monkeypatch):
    pairs = make_pairs(12).append_column("stage", pa.array([1] * 4 + [2] * 4 + [3] * 4))
    tokenizer = load_tokenizer(MODELS, "tiny")
    tokenizer.padding_side = "right"
    args = (load_model(MODELS, "tiny"), tokenizer, pairs)
    for method in ("dpo", "sft", "simpo", "kto"):
        trainer = build_trainer(*args, method, 0, settings(), device="cpu", dtype="float32")
        order = list(trainer._get_train_sampler(trainer.train_dataset))
        assert [i // 2 for i in order] == [i // 2 for i in range(12)], method  # in turn, update by update
        shuffled = build_trainer(*args[:2], make_pairs(12), method, 0, settings(), device="cpu", dtype="float32")
        assert [i // 2 for i in shuffled._get_train_sampler(shuffled.train_dataset)] != [i // 2 for i in range(12)]
    backwards = make_pairs(4).append_column("stage", pa.array([2, 2, 1, 1]))
    with pytest.raises(InputError, match="stages are out of order"):
        check_pairs(backwards, tokenizer, "dpo", settings())


def test_pairs_that_trl_would_drop_are_counted():
    long = make_pairs(2).to_pylist()
    long[1]["prompt"] = [{"role": "user", "content": "word " * 200}]
    table, tokenizer = pa.Table.from_pylist(long), load_tokenizer(MODELS, "tiny")
    report = check_pairs(table, tokenizer, "dpo", settings())
    assert report["dropped_pairs"] == 1 and "1 of 2 pairs are not trained on" in report["warnings"][-1]
    tokenizer.padding_side = "right"
    trainer = build_trainer(
        load_model(MODELS, "tiny"), tokenizer, table, "dpo", 0, settings(), device="cpu", dtype="float32"
    )
    assert len(trainer.train_dataset) == 1  # TRL does what was said
    with pytest.raises(InputError, match="every prompt is at least max_length=16 tokens long"):
        check_pairs(table, tokenizer, "dpo", settings(max_length=16))


def history(**curves):
    n = len(next(iter(curves.values())))
    base = {"loss": [0.5] * n, "rewards/margins": [0.1 * k for k in range(n)], "rewards/accuracies": [0.7] * n,
            "rewards/chosen": [0.05 * k for k in range(n)], "rewards/rejected": [-0.05 * k for k in range(n)], **curves}  # fmt: skip
    return [{"step": k + 1, **{key: values[k] for key, values in base.items()}} for k in range(n)]


@pytest.mark.parametrize(
    ("curves", "text"),
    [
        ({"loss": [0.6] * 5 + [float("nan")] * 7},
         "update 6: the loss is nan: lower training.learning_rate, or set compute.dtype to float32"),
        ({"grad_norm": [1.0] * 5 + [float("inf")] * 7},
         "update 6: the gradient is inf: lower training.learning_rate, or set compute.dtype to float32"),
        ({"loss": [0.6] * 11 + [2e-5]},
         "update 12: the loss is 2.0e-05, below 0.0001: the policy collapsed, or chosen texts give themselves away; "
         "read them, lower the rate"),
        ({"rewards/accuracies": [0.0] + [1.0] * 11},
         "reward accuracy is 1.0 from the start to update 4: chosen and rejected differ in something trivial "
         "(length, origin model's style); read the pairs"),
        ({"rewards/margins": [0.0] * 12},
         "the reward margin moved by 0.0000 nats only: the policy did not learn; raise training.learning_rate or "
         "epochs, or lower training.warmup_steps"),
        ({"rewards/chosen": [-0.1 * k for k in range(12)], "rewards/rejected": [-0.3 * k for k in range(12)]},
         "both log-probabilities fell (chosen -10.00, rejected -30.00 nats a response): likelihood displacement; "
         "lower training.learning_rate, or raise training.beta"),
    ],
)  # fmt: skip
def test_each_alarm_rings_with_advice_and_only_then(curves, text):
    assert find_alarms(history(**curves), n_updates=12, pairs_an_update=8, beta=0.1) == [text]
    assert find_alarms(history(loss=[0.5] * 12), n_updates=12, pairs_an_update=8, beta=0.1) == []


def test_answers_that_no_longer_end_ring():
    ends, runs = {"tokens": 30, "finished": True}, {"tokens": 40, "finished": False}
    assert compare_lengths([ends] * 10, [runs] * 10) == (
        "answers grew from 30 to 40 tokens, and 10 of 10 no longer end (before: 0): length runs away; read them, "
        "lower training.learning_rate, or pair responses of like length"
    )
    assert compare_lengths([ends] * 10, [ends] * 9 + [runs]) is None


def test_a_training_that_is_not_a_number_stops_with_advice(tmp_path):
    broken, tokenizer = load_model(MODELS, "tiny"), load_tokenizer(MODELS, "tiny")
    broken.model.layers[0].mlp.down_proj.weight.data[:] = 3e38  # a number, whose products are none
    broken.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    models = {"broken": ModelSpec(path=str(tmp_path / "broken")).model_dump()}
    for n in (40, 2):  # at the first of many updates, and at the only one
        with pytest.raises(KarmaError, match=r"update 1: the loss is nan: lower training\.learning_rate"):
            train_tiny(make_pairs(n), make_pairs(2), "dpo", settings(), tmp_path / "run", models=models)
        assert not (tmp_path / "run" / "training.json").exists() and not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_training_that_changes_nothing_measures_nothing(tmp_path, method):
    """In bfloat16 too, before and after are measured alike: a rate of nothing gives margins of exactly 0."""
    compute = change_base("compute", device="cpu", dtype="bfloat16")
    own = settings(learning_rate=1e-30, scheduler="constant")
    record = train_tiny(make_pairs(6), make_pairs(6), method, own, tmp_path, compute=compute)
    assert record["held_out"]["margin_mean"] == 0.0 and record["held_out"]["accuracy"] == 0.5
    assert method == "sft" or not {"entropy", "logits/chosen", "mean_token_accuracy"} & set(record["history"][0])


def test_a_model_with_several_ends_is_sampled():
    model, tokenizer = load_model(MODELS, "tiny"), load_tokenizer(MODELS, "tiny")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5]
    answers = sample_answers(model, tokenizer, make_pairs(2)["prompt"].to_pylist(), 4)
    assert len(answers) == 2 and all(answer["tokens"] <= 4 for answer in answers)


def test_simpo_s_alarm_is_per_token():
    falls = {side: [-2.5 * 0.01 * k for k in range(12)] for side in ("rewards/chosen", "rewards/rejected")}
    rules = {"n_updates": 12, "pairs_an_update": 8, "beta": 2.5}
    (alarm,) = find_alarms(history(**falls), **rules, per_token=True)
    assert "chosen -0.10, rejected -0.10 nats a token" in alarm
    assert find_alarms(history(**falls), **rules) == []  # a tenth of a nat a response would be nothing


def test_ten_answers_before_and_after_are_kept(tmp_path):
    record = train_tiny(make_pairs(4), make_pairs(12), "sft", settings(), tmp_path)
    assert len(record["answers"]) == 10
    assert {"text", "tokens", "finished"} == set(record["answers"][0]["before"]) == set(record["answers"][0]["after"])
    margins = pq.read_table(tmp_path / "held_out.parquet").to_pandas()
    assert len(margins) == 12 and record["held_out"]["margin_mean"] == pytest.approx(margins["margin"].mean(), rel=1e-5)
    change = (margins["chosen_logps_after"] - margins["chosen_logps_before"]) - (
        margins["rejected_logps_after"] - margins["rejected_logps_before"])  # fmt: skip
    assert (0.1 * change).tolist() == pytest.approx(margins["margin"].tolist(), abs=1e-4)


def test_the_model_card_says_what_was_done(tmp_path):
    record = train_tiny(make_pairs(4), make_pairs(2), "dpo", settings(), tmp_path)
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\n") and "| method | dpo |" in card and record["data_digest"] in card
    assert "2 held-out pairs" in card and str(tmp_path) not in card


def test_an_adapter_is_merged_on_request(tmp_path):
    outcomes = []
    for name, merge in (("adapter", False), ("merged", True)):
        own = settings(lora=LORA, merge_adapter=merge)
        train_tiny(make_pairs(4), make_pairs(2), "dpo", own, tmp_path / name)
        outcomes.append(dict(load_model(*add_trained(MODELS, "tiny", tmp_path / name / "model")).named_parameters()))
    assert (tmp_path / "merged" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "merged" / "model" / "adapter_config.json").exists()
    assert all(torch.allclose(outcomes[0][name], outcomes[1][name], atol=1e-6) for name in outcomes[0])


def test_memory_is_estimated_from_the_shape(monkeypatch):
    config, n = load_shape(MODELS, "tiny")
    assert n == load_model(MODELS, "tiny").num_parameters()
    whole = estimate_memory(config, n, settings(), "float32", "dpo", 64)
    assert whole["states_bytes"] == 16 * n  # weights, gradients and two moments in float32
    shared = estimate_memory(
        config, n, settings(devices=4, accelerate="params/accelerate/fsdp.yaml"), "float32", "dpo", 64
    )
    assert shared["states_bytes"] == 4 * n
    small = estimate_memory(config, n, settings(lora=LORA), "float32", "dpo", 64)
    assert 4 * n < small["states_bytes"] < whole["states_bytes"]
    assert check_memory(whole, 2 * whole["total_bytes"], "cpu") == []
    assert "GiB are needed" in check_memory(whole, whole["total_bytes"] - 1, "cpu")[0]
    with pytest.raises(InputError, match="weights, gradients and optimiser take"):
        check_memory(whole, whole["states_bytes"] - 1, "cpu")


def test_lora_s_parameters_are_counted_as_peft_counts_them():
    from peft import get_peft_model

    from karma.training.trainers import _build_lora

    model = load_model(MODELS, "tiny")
    n = model.num_parameters()
    trained = get_peft_model(model, _build_lora(model, Lora(**LORA))).get_nb_trainable_parameters()[0]
    small = estimate_memory(model.config, n, settings(lora=LORA), "float32", "dpo", 64)
    assert small["states_bytes"] == 4 * n + 16 * trained


def test_the_view_follows_the_progress_file(tmp_path, capsys):
    path = tmp_path / "progress.jsonl"
    view = LiveView(path, "dpo", 8, {"beta": 0.1, "per_token": False})
    view.update()  # nothing there yet
    path.write_text(
        json.dumps({"n_updates": 12, "done": 0})
        + "\n"
        + json.dumps({"step": 1, "loss": 0.69, "rewards/margins": 0.01})
        + '\n{"st'
    )
    view.update()
    assert view.bar.n == 1 and "margin=0.01" in str(view.bar)  # a half-written line waits
    path.write_text("\n".join([*path.read_text().split("\n")[:2], json.dumps({"step": 2, "loss": 1e-9}), ""]))
    view.close()
    assert view.bar.n == 2 and view.alarms and pd.DataFrame(view.history)["loss"].min() == 1e-9


@pytest.mark.gpu
def test_one_training_on_cuda(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: torch sees none")
    compute = change_base("compute", device="cuda", dtype="bfloat16")
    record = train_tiny(make_pairs(8), make_pairs(2), "dpo", settings(), tmp_path, compute=compute)
    assert record["history"][0]["loss"] == pytest.approx(math.log(2), abs=0.02)
    assert os.environ.get("CUDA_VISIBLE_DEVICES", "0")
