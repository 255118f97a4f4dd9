"""SimPO, ORPO and KTO: each loss by hand, and equal to TRL's on the same batch of a tiny model while TRL has it."""

import functools
import math

import pytest
import torch

from karma.errors import InputError
from karma.models.load import load_model, load_tokenizer
from karma.training.checks import check_pairs
from karma.training.losses import Side, compute_kto, compute_orpo, compute_simpo
from karma.training.pairwise import KTOPairTrainer
from karma.training.trainers import build_trainer
from tests.test_training import LORA, MODELS, make_pairs, settings, train_tiny

LOSSES = ("simpo", "orpo", "kto")
SIDES = ("chosen", "rejected")


def sides(logps, lengths, reference=(None, None)):
    return [Side(torch.tensor(p), torch.tensor(n), None if r is None else torch.tensor(r))
            for p, n, r in zip(logps, lengths, reference, strict=True)]  # fmt: skip


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_simpo_by_hand():
    """Means a token -1 and -2, and -3 and -1: margins 1 and -2, times 2.5, less 1.375."""
    both = sides(([-2.0, -6.0], [-4.0, -2.0]), ([2.0, 2.0], [2.0, 2.0]))
    loss, chosen, rejected = compute_simpo(*both, beta=2.5, gamma=0.55 * 2.5)
    expected = -(math.log(sigmoid(2.5 * 1 - 1.375)) + math.log(sigmoid(2.5 * -2 - 1.375))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert chosen.tolist() == [-2.5, -7.5] and rejected.tolist() == [-5.0, -2.5]


def test_orpo_by_hand():
    """Probabilities a token .5 and .2: odds 1 and .25, a log odds ratio of log 4."""
    both = sides(([3 * math.log(0.5)], [2 * math.log(0.2)]), ([3.0], [2.0]))
    loss, chosen, _ = compute_orpo(*both, beta=0.1)
    assert loss.item() == pytest.approx(math.log(2) - 0.1 * math.log(sigmoid(math.log(4))), rel=1e-6)
    assert chosen.item() == pytest.approx(0.1 * math.log(0.5), rel=1e-6)


@pytest.mark.parametrize("mean", [-1e-6, -0.69314, -0.6932, -30.0])
def test_orpo_s_odds_are_finite_at_both_ends(mean):
    value = torch.tensor([mean], requires_grad=True)
    loss, *_ = compute_orpo(Side(value, torch.ones(1)), Side(torch.tensor([-1.0]), torch.ones(1)), beta=1.0)
    loss.backward()
    exact = math.log(-math.expm1(mean))  # log(1 - p)
    ratio = (mean - exact) - (-1.0 - math.log(-math.expm1(-1.0)))
    assert loss.item() == pytest.approx(-mean + math.log1p(math.exp(-ratio)), rel=1e-4)
    assert torch.isfinite(value.grad).all()


def test_kto_by_hand():
    """Ratios 1 and -2 against a point of .5: a gain of 1 - s(.05), and of a rejected response 1 - s(.25)."""
    both = sides(([-3.0], [-9.0]), ([3.0], [4.0]), ([-4.0], [-7.0]))
    loss, chosen, rejected = compute_kto(*both, torch.tensor(0.5), beta=0.1, weights=(1.0, 2.0))
    assert loss.item() == pytest.approx((1 - sigmoid(0.05) + 2 * (1 - sigmoid(0.25))) / 2, rel=1e-6)
    assert chosen.item() == pytest.approx(0.1) and rejected.item() == pytest.approx(-0.2)


def build(method, pairs, **changes):
    tokenizer = load_tokenizer(MODELS, "tiny")
    tokenizer.padding_side = "right"
    model = load_model(MODELS, "tiny")
    trainer = build_trainer(model, tokenizer, pairs, method, 0, settings(**changes), device="cpu", dtype="float32")
    trainer.model.train()
    return trainer


def differ(trainer, seed=0):
    """Let the policy differ from the one that the trainer was built with, as after an update."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 0.2 * weight.std() * torch.randn(weight.shape, generator=generator)


def collate(trainer, n=3):
    return trainer.data_collator([trainer.train_dataset[k] for k in range(n)])


def as_trl(batch):
    """Turn a batch of DPO's layout into that of TRL's CPO and ORPO."""
    asked = {}
    for place, side in enumerate(SIDES):
        ids, mask, own = (batch[name].chunk(2)[place] for name in ("input_ids", "attention_mask", "completion_mask"))
        asked |= {f"{side}_input_ids": ids, f"{side}_attention_mask": mask,
                  f"{side}_labels": ids.masked_fill(own == 0, -100)}  # fmt: skip
    return asked


def build_experimental(trainer_class, config_class, **values):
    """TRL's trainer on the tiny model; its own data do not matter, it is given a batch."""
    from datasets import Dataset

    tokenizer = load_tokenizer(MODELS, "tiny")
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    config = config_class(output_dir="unused", report_to="none", use_cpu=True, bf16=False, **values)
    return trainer_class(load_model(MODELS, "tiny"), args=config, train_dataset=rows, processing_class=tokenizer)


def copy_weights(source, target):
    target.load_state_dict(source.state_dict())


def test_simpo_equals_trl_s_experimental_loss():
    cpo = pytest.importorskip("trl.experimental.cpo", reason="this TRL has no CPO trainer any more")
    ours = build("simpo", make_pairs(3))
    differ(ours)
    theirs = build_experimental(cpo.CPOTrainer, cpo.CPOConfig, loss_type="simpo", cpo_alpha=0.0, beta=2.5,
                                simpo_gamma=0.55 * 2.5)  # fmt: skip
    copy_weights(ours.model, theirs.model)
    batch = collate(ours)
    expected, metrics = theirs.get_batch_loss_metrics(theirs.model, as_trl(batch))
    assert ours.compute_loss(ours.model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert ours._metrics["train"][name][0] == pytest.approx(float(metrics[name]), rel=1e-4), name


def test_orpo_equals_trl_s_experimental_loss_but_for_the_prompt():
    """TRL's first term counts the prompt's tokens; the paper's Eq. 1 does not: set apart, the rest is the same."""
    orpo = pytest.importorskip("trl.experimental.orpo", reason="this TRL has no ORPO trainer any more")
    ours = build("orpo", make_pairs(3))
    differ(ours)
    theirs = build_experimental(orpo.ORPOTrainer, orpo.ORPOConfig, beta=0.1)
    copy_weights(ours.model, theirs.model)
    batch = collate(ours)
    whole, metrics = theirs.get_batch_loss_metrics(theirs.model, as_trl(batch))
    found = ours.compute_loss(ours.model, batch).item()
    own = -ours._metrics["train"]["rewards/chosen"][0] / 0.1  # the chosen response's loss a token
    assert found - own == pytest.approx(whole.item() - metrics["nll_loss"], rel=1e-4)
    assert metrics["logps/chosen"] == pytest.approx(-own, rel=1e-4)
    assert ours._metrics["train"]["rewards/margins"][0] == pytest.approx(metrics["rewards/margins"], rel=1e-3)


def test_kto_equals_trl_s_loss():
    """TRL's stable trainer, given the same responses, mismatched answers and reference."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    ours = build("kto", make_pairs(3), kto={"learning_rate": 1e-3, "beta": 0.3, "desirable_weight": 1.2,
                                            "undesirable_weight": 0.7})  # fmt: skip
    rows = Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}] * 2)
    config = KTOConfig(output_dir="unused", report_to="none", use_cpu=True, bf16=False, beta=0.3, desirable_weight=1.2,
                       undesirable_weight=0.7, precompute_ref_log_probs=True, per_device_train_batch_size=2,
                       per_device_eval_batch_size=2)  # fmt: skip
    theirs = KTOTrainer(load_model(MODELS, "tiny"), args=config, train_dataset=rows,
                        processing_class=load_tokenizer(MODELS, "tiny"))  # fmt: skip
    differ(ours, seed=4)
    copy_weights(ours.model, theirs.model)
    batch = collate(ours)
    asked = {name: batch[name] for name in ("input_ids", "attention_mask", "completion_mask")}
    asked |= {f"KL_{name}": batch[f"kl_{name}"] for name in asked}
    asked |= {"label": torch.tensor([True] * 3 + [False] * 3),
              "ref_logps": torch.cat([batch[f"ref_{side}_logps"] for side in SIDES]),
              "ref_KL_logps": torch.cat([batch[f"kl_ref_{side}_logps"] for side in SIDES])}  # fmt: skip
    theirs.model.train()
    expected = theirs._compute_loss(theirs.model, asked, return_outputs=False)
    assert ours.compute_loss(ours.model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    for name in ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert ours._metrics["train"][name][0] == pytest.approx(theirs._metrics["train"][name][0], rel=1e-3), name
    assert ours._metrics["train"]["kl"][0] > 0  # else the test would not see z0


def test_kto_s_mismatched_answers_are_those_of_the_pair_before():
    trainer = build("kto", make_pairs(4))
    rows = trainer.train_dataset.to_list()
    for before, row in zip([rows[-1], *rows], rows, strict=False):
        assert [row[f"kl_{side}_ids"] for side in SIDES] == [before[f"{side}_ids"] for side in SIDES]
    assert isinstance(trainer, KTOPairTrainer) and trainer.ref_model is None
    batch = collate(trainer)
    start = len(rows[1]["prompt_ids"])
    assert batch["kl_input_ids"][1, start : start + 2].tolist() == rows[0]["chosen_ids"][:2]


@pytest.mark.parametrize("method", LOSSES)
def test_a_pair_s_prompt_is_seen_once(method, monkeypatch):
    """The pass is the shared one: what the model is given holds a prompt once and both responses."""
    from karma.training import forward

    seen = []
    score = forward._score_pairs
    monkeypatch.setattr(forward, "_score_pairs", lambda *args: seen.append(len(args[1])) or score(*args))
    trainer = build(method, make_pairs(3))
    before = len(seen)
    trainer.compute_loss(trainer.model, collate(trainer)).backward()
    assert len(seen) == before + (2 if method == "kto" else 1)


@pytest.mark.parametrize("method", LOSSES)
@pytest.mark.parametrize("changes", [{}, {"lora": LORA}], ids=["full", "lora"])
def test_a_training_learns_its_pairs(method, changes, tmp_path):
    """At a rate far above any real one, held-out pairs that are the training pairs are preferred afterwards."""
    own = {"learning_rate": 5e-2, "beta": 1.0}
    more = {"simpo": {"gamma_ratio": 0.5}, "kto": {"desirable_weight": 1.0, "undesirable_weight": 1.0}}.get(method, {})
    pairs = make_pairs(8)
    record = train_tiny(pairs, pairs, method, settings(epochs=4, **{method: own | more}, **changes), tmp_path)
    assert record["n_updates"] == 16 and record["held_out"]["accuracy"] >= 0.75
    logged = record["history"][0]
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "num_tokens"} <= set(logged)
    assert ("kl" in logged) == (method == "kto")


def test_kto_of_one_pair_is_refused():
    with pytest.raises(InputError, match="kto needs at least 2 pairs to train on"):
        check_pairs(make_pairs(1), load_tokenizer(MODELS, "tiny"), "kto", settings())


def test_kto_starts_at_one_half_and_finds_its_reference_again(tmp_path):
    """The untrained policy's log-probabilities, of pairs and of mismatched ones, are kept for other seeds."""
    from dataclasses import replace

    from karma.training.run import describe_run
    from karma.training.train import train
    from tests.test_training import COMPUTE

    pairs, runs = make_pairs(4), []
    for seed in (0, 1):
        run = describe_run(pairs, MODELS, "tiny", "kto", seed, settings(), COMPUTE, tmp_path / str(seed),
                           reference_folder=tmp_path)  # fmt: skip
        runs.append(train(replace(run), pairs, make_pairs(2)))
    assert [record["history"][0]["loss"] for record in runs] == pytest.approx([0.5, 0.5], abs=1e-4)
    assert len(list(tmp_path.glob("reference-*-mismatched.parquet"))) == 1
    assert len(list(tmp_path.glob("reference-*.parquet"))) == 2


def test_which_mismatched_pair_is_asked_does_not_depend_on_the_batch():
    batches = [collate(build("kto", make_pairs(4), per_device_batch_size=size), 2) for size in (1, 2)]
    assert torch.equal(*(batch["kl_input_ids"] for batch in batches))
    assert torch.equal(*(batch["kl_ref_chosen_logps"] for batch in batches))


def test_a_loss_of_two_arguments_is_all_that_a_new_method_needs():
    """SimPO with another margin is another loss, on the same trainer."""
    trainer = build("simpo", make_pairs(3))
    batch = collate(trainer)
    first = trainer.compute_loss(trainer.model, batch).item()
    trainer.pair_loss = functools.partial(compute_simpo, beta=2.5, gamma=0.0)
    assert trainer.compute_loss(trainer.model, batch).item() < first
