"""`karma train`: what it writes, that the same command goes on or does nothing, and one line for every bad input."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.files.reading import load_json
from tests.test_select_cli import pair_folder, policy, public_rows, write_rows

assert pair_folder and policy  # fixtures
SMALL = ["warmup_steps=0", "per_device_batch_size=4", "gradient_accumulation=1", "devices=1", "sample_tokens=4"]


def call(*arguments, ok=True):
    settings = [part for setting in SMALL for part in ("-p", setting)]
    result = CliRunner().invoke(app, ["train", *settings, "--dtype", "float32", *map(str, arguments)])
    if ok and result.exception:
        raise result.exception
    return result


@pytest.mark.parametrize("method", ["sft", "dpo", "simpo"])
def test_a_pair_folder_is_trained_and_not_twice(pair_folder, policy, tmp_path, method):
    arguments = (
        "--pairs",
        pair_folder,
        "--policy",
        policy,
        "--method",
        method,
        "--out",
        tmp_path / "run",
        "--held-out",
        0.3,
    )
    shown = call(*arguments).output
    record = load_json(tmp_path / "run" / "training.json")
    assert record["method"] == method and record["n_train_pairs"] + record["n_held_out_pairs"] == 20
    assert "GiB free" in shown and f"on {record['n_held_out_pairs']} held-out pairs" in shown
    beside = ["trl.yaml"] if method in ("sft", "dpo") else []
    files = ["held_out.parquet", "model", "training.json", *beside]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == files
    assert "nothing to do" in call(*arguments).output


def test_a_run_s_folder_is_the_policy_it_trained_for_every_command(pair_folder, policy, tmp_path):
    run, items = tmp_path / "run", Path("karma/data/demo").resolve()
    lora = ["-p", "lora={rank: 4, alpha: 8, dropout: 0.0, last_layers: 1}", "-p", "learning_rate=0.01"]
    call("--pairs", pair_folder, "--policy", policy, "--method", "sft", "--out", run, *lora)
    assert (run / "model" / "adapter_config.json").is_file()
    asked = ["--benchmark", "arc_easy", "--benchmark-data", items, "--limit", 4, "--dtype", "float32"]
    for name, model in (("before", policy), ("after", run)):
        words = ["evaluate", "--model", model, *asked, "--out", tmp_path / name]
        assert CliRunner().invoke(app, [*map(str, words)]).exit_code == 0
    before, after = (load_json(tmp_path / name / "scores.json") for name in ("before", "after"))
    assert before["weights_digest"] != after["weights_digest"] and (before["model"], after["model"]) == (
        policy.name,
        "run",
    )
    words = ["select", "--pairs", pair_folder, "--policy", run, "--ratio", 0.5, "--out", tmp_path / "selected"]
    assert CliRunner().invoke(app, [*map(str, words)]).exit_code == 0
    file = run / "model" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")  # a float32 that is NaN
    bad = CliRunner().invoke(app, [*map(str, ["evaluate", "--model", run, *asked, "--out", tmp_path / "bad"])])
    assert "holds NaN or infinite weights" in str(bad.exception) and "the adapter" in str(bad.exception)


def test_another_seed_is_tested_on_the_same_pairs(pair_folder, policy, tmp_path):
    asked = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        call(
            "--pairs",
            pair_folder,
            "--policy",
            policy,
            "--method",
            "sft",
            "--out",
            out,
            "--held-out",
            0.3,
            "--seed",
            seed,
        )
        asked.append(pq.read_table(out / "held_out.parquet")["row_id"].to_pylist())
    assert asked[0] == asked[1] and asked[0]


def test_a_public_binarised_file_is_trained(policy, tmp_path):
    file = write_rows(tmp_path / "pairs.jsonl", public_rows())
    call("--pairs", file, "--policy", policy, "--method", "dpo", "--out", tmp_path / "run", "--held-out", 0)
    assert load_json(tmp_path / "run" / "training.json")["n_train_pairs"] == 10


def test_pairs_that_teach_nothing_are_refused_or_left_out_and_counted(policy, tmp_path):
    rows = public_rows(12)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[4]["chosen"], rows[5]["rejected"], rows[6]["prompt"] = " ", "", "\n"
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    arguments = ("--pairs", file, "--policy", policy, "--method", "dpo", "--out", tmp_path / "run", "--held-out", 0.3)
    refused = call(*arguments, ok=False).exception
    assert isinstance(refused, InputError) and "karma train --drop-unusable" in str(refused)
    shown = call(*arguments, "--drop-unusable").output
    assert "12 pairs = 8 usable + 1 identical_responses + 2 empty_text + 1 no_prompt\n" in shown
    books, record = (load_json(tmp_path / "run" / name) for name in ("accounting.json", "training.json"))
    dropped = {"no_prompt": 1, "identical_responses": 1, "empty_text": 2, "held_out": record["n_held_out_pairs"]}
    assert books["dropped"] == dropped and record["n_held_out_pairs"] > 0
    assert books["rows_in"] == 12 == record["n_train_pairs"] + sum(dropped.values())


def test_an_older_run_is_not_overwritten(pair_folder, policy, tmp_path):
    arguments = ("--pairs", pair_folder, "--policy", policy, "--out", tmp_path / "run")
    call(*arguments, "--method", "sft")
    before = (tmp_path / "run" / "training.json").read_bytes()
    with pytest.raises(InputError, match="holds another training: give a new folder, or remove it"):
        call(*arguments, "--method", "dpo")
    assert (tmp_path / "run" / "training.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "ppo"), "--method ppo: choose from sft, dpo, simpo"),
        (("-p", "learning_rte=1"), "-p learning_rte=1: write it as NAME=VALUE, with a name of epochs"),
        (("-p", "learning_rate=5e-7"), "-p learning_rate='5e-7': Input should be a valid number"),
        (("-p", "loss_type=dpo"), "-p loss_type='dpo': Input should be 'sigmoid', 'hinge'"),
        (("--pairs", "nowhere"), "nowhere is no pair folder"),
        (("--policy", "./nowhere"), "there is no such folder"),
        (("--device", "tpu"), "--device tpu: choose from auto, cpu, cuda"),
    ],
)
def test_bad_input_is_named_in_one_line(pair_folder, policy, tmp_path, arguments, message):
    given = {"--pairs": pair_folder, "--policy": policy, "--method": "dpo", "--out": tmp_path / "run"}
    changed = dict(zip(arguments[::2], arguments[1::2], strict=True))
    words = [w for pair in ({**given, **changed} if arguments[0] != "-p" else given).items() for w in pair]
    extra = arguments if arguments[0] == "-p" else ()
    result = call(*words, *extra, ok=False)
    assert isinstance(result.exception, InputError) and message in str(result.exception)
    assert "\n" not in str(result.exception) and not (tmp_path / "run").exists()


def test_answers_are_rewarded_by_their_prompts_instructions_and_a_run_is_gone_on_from(policy, tmp_path):
    """RLOO by command, then GRPO from the folder of that run; without instructions or a reward, one line."""
    from karma.evaluation.prompts import load_prompts

    asked = [
        {"topic": f"Count to {k}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]} for k in range(8)
    ]
    file = write_rows(tmp_path / "prompts.jsonl", asked)
    rows = [
        {**row, "prompt": prompt.text} for row, prompt in zip(public_rows(8), load_prompts(file, True), strict=True)
    ]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    own = ["generations=2", "max_new_tokens=4", "reward={instructions: 1.0}"]
    last = policy
    for method in ("rloo", "grpo"):
        settings = [part for setting in own for part in ("-p", f"{method}.{setting}")]
        how = ("--pairs", pairs, "--policy", last, "--method", method, "--held-out", 0.25, *settings)
        out = tmp_path / method
        assert "instructions" in str(call(*how, "--out", out, ok=False).exception)
        shown = call(*how, "--instructions", file, "--out", out).output
        record = load_json(out / "training.json")
        assert record["method"] == method and record["n_updates"] == len(record["history"]) >= 1
        assert (
            "rewards/instructions/mean" in record["history"][0]
            and f"on {record['n_held_out_pairs']} held-out pairs" in shown
        )
        assert "nothing to do" in call(*how, "--instructions", file, "--out", out).output
        last = out
    assert record["policy"] != load_json(tmp_path / "rloo" / "training.json")["policy"]
    asked = ("--pairs", tmp_path / "none", "--policy", tmp_path / "none", "--method", "grpo", "--out", tmp_path / "no")
    bare = call(*asked, ok=False)  # before pairs or a model are looked at
    assert "grpo has no reward: set training.grpo.reward" in str(bare.exception)
