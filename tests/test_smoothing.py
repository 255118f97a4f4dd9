"""Labels smoothed by their confidence: the loss by eye, plain DPO at its ends, and what is refused before a model loads."""

import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from karma.errors import InputError
from karma.models.load import load_model, load_tokenizer
from karma.study.experiment import load_experiment
from karma.training.checks import check_pairs
from karma.training.forward import smooth_loss
from karma.training.trainers import build_trainer
from tests.test_training import MODELS, describe_tiny, make_pairs, settings, train_tiny

SMOOTH = {"smooth_by_confidence": True, "per_device_batch_size": 2}


def add_confidence(pairs, values):
    return pairs.append_column("label_confidence", pa.array(values, pa.float64()))


def list_updates(pairs, own):
    """What TRL logs of each update of a training."""
    tokenizer = load_tokenizer(MODELS, "tiny")
    tokenizer.padding_side = "right"
    trainer = build_trainer(load_model(MODELS, "tiny"), tokenizer, pairs, "dpo", 0, own, device="cpu", dtype="float32")
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("sure", "margin", "loss", "slope"), [
    (1.0, 0.0, math.log(2), -0.5), (0.5, 0.0, math.log(2), 0.0), (0.8, 0.0, math.log(2), -0.3),
    (0.8, math.log(4), -0.8 * math.log(0.8) - 0.2 * math.log(0.2), 0.0), (0.5, math.log(4), -math.log(0.16) / 2, 0.3),
    (0.0, math.log(4), math.log(5), 0.8),
])  # fmt: skip
def test_the_loss_and_its_slope_by_eye(sure, margin, loss, slope):
    """sigmoid(ln 4) = .8: a label .8 sure is learnt to a margin of ln 4 and no further, a coin flip not at all."""
    m = torch.tensor([margin], requires_grad=True)
    found = smooth_loss(-torch.nn.functional.logsigmoid(m).mean(), m, torch.tensor([sure]))
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-6) and m.grad.item() == pytest.approx(slope, abs=1e-6)


def test_sure_labels_give_plain_dpo_s_weights_byte_for_byte(tmp_path):
    pairs = add_confidence(make_pairs(6), [1.0] * 6)
    for name, own in (("plain", settings()), ("smooth", settings(**SMOOTH)), ("less", settings(**SMOOTH))):
        own_pairs = add_confidence(make_pairs(6), [0.7] * 6) if name == "less" else pairs
        train_tiny(own_pairs, make_pairs(2), "dpo", own, tmp_path / name)
    plain, smooth, less = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("plain", "smooth", "less")
    )
    assert plain == smooth != less


def test_a_label_that_is_surely_wrong_is_trained_as_its_opposite():
    pairs = make_pairs(6)
    turned = pairs.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    wrong = list_updates(add_confidence(pairs, [0.0] * 6), settings(**SMOOTH))
    plain = list_updates(turned, settings())
    for key in ("loss", "grad_norm"):
        assert [e[key] for e in wrong] == pytest.approx([e[key] for e in plain], abs=1e-5, rel=1e-4)
    assert wrong[-1]["rewards/margins"] == pytest.approx(-plain[-1]["rewards/margins"], abs=1e-4)


def test_each_pair_has_its_own_confidence():
    """In one update of a coin flip and a sure pair, the gradient is half of the sure pair's own, whatever their order."""
    pairs, own = make_pairs(2), settings(**SMOOTH)
    both = [list_updates(add_confidence(pairs, sure), own)[0] for sure in ([0.5, 1.0], [1.0, 0.5], [0.5, 0.5])]
    alone = [list_updates(pairs.slice(place, 1), settings())[0] for place in (1, 0)]
    for found, single in zip(both, alone, strict=False):
        assert found["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert found["grad_norm"] == pytest.approx(single["grad_norm"] / 2, rel=1e-3)
    assert both[2]["grad_norm"] < 1e-3 * alone[0]["grad_norm"]


@pytest.mark.parametrize(("values", "method", "changes", "message"), [
    ([0.9, None, float("nan")], "dpo", {}, r"pair 1: its label_confidence is unknown \(so of 2 of 3 pairs\).*number of "
     r"items is known.* or train by dpo with training.smooth_by_confidence false"),
    ([0.9, 1.0, 1.5], "dpo", {}, r"pair 2: its label_confidence is 1\.5 \(so of 1 of 3 pairs\)"),
    (None, "dpo", {}, r"pair 0: its label_confidence is unknown \(so of 3 of 3 pairs\)"),
    ([1.0] * 3, "sft", {}, "smooth_by_confidence means nothing to sft: train by dpo, or set it to false"),
    ([1.0] * 3, "simpo", {}, "smooth_by_confidence means nothing to simpo"),
    ([1.0] * 3, "dpo", {"loss_type": "ipo"}, r"smooth_by_confidence \(method cdpo\) is for loss_type sigmoid, not ipo: set"),
])  # fmt: skip
def test_what_cannot_be_smoothed_is_refused_before_a_model_loads(tmp_path, values, method, changes, message):
    pairs = make_pairs(3) if values is None else add_confidence(make_pairs(3), values)
    own = settings(**SMOOTH, **changes)
    with pytest.raises(InputError, match=message) as found:
        check_pairs(pairs, load_tokenizer(MODELS, "tiny"), method, own)
    assert "\n" not in str(found.value)
    if method == "dpo" and not changes:
        with pytest.raises(InputError, match=message):
            describe_tiny(pairs, method, own, tmp_path)
        check_pairs(pairs, load_tokenizer(MODELS, "tiny"), method, settings())  # not asked for: of no interest


def test_the_confidence_is_part_of_a_smoothed_run_and_of_no_other(tmp_path):
    low, high = (add_confidence(make_pairs(3), [sure] * 3) for sure in (0.6, 0.9))
    smooth = [describe_tiny(pairs, "dpo", settings(**SMOOTH), tmp_path).identity for pairs in (low, high, high)]
    plain = [describe_tiny(pairs, "dpo", settings(), tmp_path).identity for pairs in (low, high, make_pairs(3))]
    assert smooth[0] != smooth[1] == smooth[2] and len(set(plain)) == 1 and plain[0] not in smooth


@pytest.mark.parametrize(("text", "message"), [
    ("strategies: [rlaif, k_sim]\nmethods: [dpo]", "rlaif's labels are of unknown confidence: leave rlaif out"),
    ("strategies: [k_sim]\nself_play: {rounds: 1}", "self-play's pairs have no label confidence: train them by dpo, unsmoothed"),
])  # fmt: skip
def test_an_experiment_whose_labels_will_have_no_confidence_is_refused(tmp_path, text, message):
    file = Path(tmp_path) / "x.yaml"
    file.write_text(f"extends: smoke\nname: x\n{text}\ntraining: {{smooth_by_confidence: true}}\n")
    with pytest.raises(InputError, match=f"training.smooth_by_confidence: {message}"):
        load_experiment(file)
    by_method = text.replace("[dpo]", "[dpo, cdpo]").replace("rounds: 1", "rounds: 1, method: cdpo")
    file.write_text(f"extends: smoke\nname: x\n{by_method}\n")
    with pytest.raises(InputError, match=f"method cdpo: {message}"):
        load_experiment(file)


def test_cdpo_is_dpo_with_smoothing(tmp_path):
    pairs = add_confidence(make_pairs(6), [0.6, 0.7, 0.8, 0.9, 1.0, 0.5])
    records = [train_tiny(pairs, make_pairs(2), method, settings(**changes), tmp_path / method)
               for method, changes in (("dpo", SMOOTH), ("cdpo", {}))]  # fmt: skip
    models = [(tmp_path / method / "model" / "model.safetensors").read_bytes() for method in ("dpo", "cdpo")]
    assert models[0] == models[1] and records[0]["held_out"] == records[1]["held_out"]
    with pytest.raises(InputError, match="its label_confidence is unknown"):
        describe_tiny(make_pairs(3), "cdpo", settings(), tmp_path)
    with pytest.raises(InputError, match=r"smooth_by_confidence \(method cdpo\) is for loss_type sigmoid, not robust"):
        check_pairs(pairs, load_tokenizer(MODELS, "tiny"), "cdpo", settings(loss_type="robust"))
