"""trl.yaml: TRL's own parser reads it without leftovers and gives the values that the kit trained with."""

import importlib
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from trl import GRPOConfig, RLOOConfig

from karma.files.reading import load_json
from karma.models.load import load_model, load_tokenizer
from karma.pairs.export import export_pairs
from karma.pairs.pairs import PairSet
from karma.training.trainers import TRAINERS, build_trainer
from karma.training.trl_config import COMMANDS, FILE, build_trl_config, find_config, save_trl_config
from karma.training.tuning import load_start
from tests.test_training import LORA, MODELS, describe_tiny, make_pairs, settings, train_tiny
from tests.test_turns import make_set

OTHERS = {"output_dir", "hub_token", "push_to_hub_token"}  # what is of this run alone


def parse(file, command):
    """Return (script, training, model, data set) arguments as `trl COMMAND --config FILE` reads them."""
    parser = importlib.import_module(f"trl.scripts.{command}").make_parser()
    return parser.parse_args_and_config(["--config", str(file)])  # a name that it does not know is an error


def build(method, own, folder, pairs=None):
    pairs = make_pairs(6) if pairs is None else pairs
    run = describe_tiny(pairs, method, own, folder)
    tokenizer = load_tokenizer(MODELS, "tiny")
    trainer = build_trainer(load_start(run), tokenizer, pairs, method, 0, own, device="cpu", dtype="float32")
    return run, trainer


def compare(parsed, args, but=()):
    kind = type(parsed)
    names = [f.name for f in fields(kind) if f.init and f.name not in OTHERS | set(but) and hasattr(args, f.name)]
    own, theirs = ({name: str(getattr(side, name)) for name in names} for side in (args, parsed))
    assert len(names) > 80 and own == theirs


@pytest.mark.parametrize("method", [name for name in COMMANDS if name in TRAINERS and name not in ("grpo", "rloo")])
@pytest.mark.parametrize("changes", [{}, {"lora": LORA, "scheduler": "cosine", "max_length": 96, "epochs": 2.5}])
def test_trl_reads_the_values_that_were_trained_with(tmp_path, method, changes):
    own = settings(label_smoothing=0.05, loss_type="robust", **changes) if method == "dpo" else settings(**changes)
    run, trainer = build(method, own, tmp_path)
    save_trl_config(run, trainer)
    script, args, model, _ = parse(tmp_path / FILE, COMMANDS[method])
    if method == "kto":
        differ = {"loss_type", "beta", "precompute_ref_log_probs", "per_device_train_batch_size"}
        compare(args, trainer.args, differ)
        assert (args.beta, args.desirable_weight, args.undesirable_weight) == (own.kto.beta, 1.0, 1.0)
        assert args.per_device_train_batch_size == 2 * own.per_device_batch_size, "TRL counts responses, the kit pairs"
    else:
        compare(args, trainer.args)
    assert (script.dataset_name, args.output_dir, model.dtype) == ("pairs", "trl", "float32")
    assert args.learning_rate == own.of(method)["learning_rate"] and not args.report_to
    assert model.use_peft is bool(changes)
    if changes:
        assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (LORA["rank"], LORA["alpha"], LORA["dropout"])
        tuned = {
            name.split("base_model.model.")[1]
            for name, part in trainer.model.named_modules()
            if hasattr(part, "lora_A")
        }
        assert (
            set(model.lora_target_modules) == tuned and all(".layers.1." in name for name in tuned) and len(tuned) == 7
        )


def test_the_adapter_that_trl_makes_of_it_is_ours(tmp_path):
    """PEFT finds the same matrices under the names in the file."""
    from peft import get_peft_model
    from trl import get_peft_config

    run, trainer = build("dpo", settings(lora=LORA), tmp_path)
    save_trl_config(run, trainer)
    theirs = get_peft_model(load_model(MODELS, "tiny"), get_peft_config(parse(tmp_path / FILE, "dpo")[2]))
    shapes = [{name: part.shape for name, part in model.named_parameters() if part.requires_grad}
              for model in (theirs, trainer.model)]  # fmt: skip
    assert shapes[0] == shapes[1] and shapes[0]


@pytest.mark.parametrize(
    ("kind", "method"), [(GRPOConfig, "grpo"), (RLOOConfig, "rloo")]
)  # whose trainers sample: what their configuration says, not how they train
def test_configurations_of_methods_that_sample(tmp_path, kind, method):
    rated = {"reward": {"instructions": 0.5, "reward_model": 1.0}, "reward_model": "rater"}
    own = settings(**{method: {**getattr(settings(), method).as_dict(), **rated, "beta": 0.07}})
    models = {**MODELS, "rater": {"path": "models/rater"}}
    args = kind(output_dir="x", use_cpu=True, bf16=False, beta=0.04, num_generations=4, temperature=0.9, seed=3,
                per_device_train_batch_size=8, max_completion_length=64, learning_rate=1e-6, report_to="none",
                reward_weights=[1.0, 0.0])  # fmt: skip
    run = SimpleNamespace(
        method=method, settings=own, models=models, policy="tiny", dtype="float32", folder=str(tmp_path)
    )
    save_trl_config(run, SimpleNamespace(args=args))
    assert find_config(method) is kind
    script, found, _, _ = parse(tmp_path / FILE, method)
    compare(found, args, {"beta", "reward_weights"})
    assert found.beta == 0.07, "the setting's, not what the kit tells TRL's trainer"
    assert (script.reward_model_name_or_path, found.reward_weights) == ("models/rater", [1.0, 0.5]), "in TRL's order"
    module, _, name = script.reward_funcs[0].rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    assert "--instructions FILE" in (tmp_path / FILE).read_text()


def test_what_trl_cannot_say_has_no_file(tmp_path):
    for method, changes in (("cdpo", {}), ("dpo", {"smooth_by_confidence": True}), ("simpo", {}), ("orpo", {}),
                            ("dpo", {"refilter": {"metric": "m_ap", "ratio": 0.5, "every": "epoch"}})):  # fmt: skip
        run = SimpleNamespace(
            method=method, settings=settings(**changes), models=MODELS, policy="tiny", folder=tmp_path
        )
        (tmp_path / FILE).write_text("of another training")
        assert build_trl_config(run, None) is None
        save_trl_config(run, None)
        assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("spec", ["path", "hub", "random"])
def test_the_policy_is_named_as_trl_finds_it(tmp_path, spec):
    run, trainer = build("sft", settings(), tmp_path)
    models = {"path": {"path": "models/mine"}, "hub": {"hub": "org/base", "revision": "abc"}, "random": MODELS["tiny"]}
    named = SimpleNamespace(**{**vars(run), "models": {"tiny": models[spec]}})
    save_trl_config(named, trainer)
    text = (tmp_path / FILE).read_text()
    config = yaml.safe_load(text)
    wanted = {"path": "models/mine", "hub": "org/base", "random": "start"}
    assert config["model_name_or_path"] == wanted[spec] and config.get("model_revision") == (
        "abc" if spec == "hub" else None
    )
    assert ("# tiny is no folder: save it as start before" in text) == (spec == "random")


def test_trl_trains_with_it_as_the_kit_did(tmp_path, monkeypatch):
    """One update on all pairs, conversations among them: the same loss, and the same weights but for rounding."""
    pairs = make_set().table
    own = settings(per_device_batch_size=4, max_length=256)
    record = train_tiny(pairs, pairs, "dpo", own, tmp_path / "run")
    load_start(describe_tiny(pairs, "dpo", own, tmp_path / "run")).save_pretrained(tmp_path / "run" / "start")
    load_tokenizer(MODELS, "tiny").save_pretrained(tmp_path / "run" / "start")
    export_pairs(PairSet(pairs, make_set().accounting), "trl", tmp_path / "run" / "pairs")
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from trl.scripts import dpo

    dpo.main(*parse("trl.yaml", "dpo"))
    assert record["n_updates"] == 1 and load_json("training.json")["history"][0]["loss"] == pytest.approx(
        0.6931, abs=1e-3
    )
    start, ours, theirs = (load_file(f"{name}/model.safetensors") for name in ("start", "model", "trl"))
    assert set(ours) == set(theirs)
    moved = torch.cat([(ours[name] - start[name]).flatten() for name in ours])
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in ours])
    assert moved.abs().max() > 5e-4 and (apart.abs() < 1e-5).float().mean() > 0.99


def test_a_run_that_takes_over_anothers_weights_takes_its_file(tmp_path):
    pairs = make_pairs(4)
    for name in ("one", "two"):
        siblings = [tmp_path / "one"] if name == "two" else []
        record = train_tiny(pairs, pairs, "sft", settings(), tmp_path / name, siblings)
    assert record["same_data_as"] and (tmp_path / "two" / FILE).read_text() == (tmp_path / "one" / FILE).read_text()
