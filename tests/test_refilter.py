"""Dynamic filtering: each epoch trains on what the policy of then ranks highest, killed or not."""

import json
import signal
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import TrainerCallback

from karma.errors import InputError, KarmaError
from karma.models.load import add_trained, compute_weights_digest, load_model, load_tokenizer
from karma.models.logprobs import compute_pair_logps
from karma.potential.margins import build_candidates, compute_explicit_margin, compute_implicit_margin, select
from karma.potential.rivals import compare_rivals
from karma.potential.study import find_trained, plan_training
from karma.study.experiment import load_experiment
from karma.training.checks import check_pairs
from karma.training.refilter import FILE, Filter, attach_filter, summarise_epochs
from karma.training.trainers import build_trainer
from karma.training.tuning import find_checkpoint
from tests.conftest import CALL_LIMIT, change_base, start_child, wait_until
from tests.test_training import LORA, MODELS, describe_tiny, make_pairs, settings, train_tiny

HOW = {"metric": "m_ap", "ratio": 0.4, "every": "epoch"}


def make_pool(n=20):
    """Pairs with scores, whose explicit margins differ."""
    pairs = make_pairs(n)
    rng = np.random.default_rng(0)
    for side, low in (("chosen", 0.5), ("rejected", 0.0)):
        pairs = pairs.append_column(f"{side}_score", pa.array(low + rng.uniform(0, 0.5, n)))
    return pairs


def own_settings(**changes):
    return settings(**{"refilter": HOW, "epochs": 3.0, "learning_rate": 5e-3, **changes})


def read_kept(folder):
    table = pq.read_table(folder / FILE).to_pandas()
    return [part["pair"].tolist() for _, part in table.groupby("epoch")]


def select_by_hand(pairs, models, name, k):
    """What select keeps of the whole pool under a model's own log-probabilities."""
    texts = [pairs[column].to_pylist() for column in ("prompt", "chosen", "rejected")]
    logps, lengths = compute_pair_logps(load_model(models, name), load_tokenizer(models, name), *texts, max_length=128)
    scores = np.stack([pairs["chosen_score"].to_numpy(), pairs["rejected_score"].to_numpy()], 1)
    implicit = compute_implicit_margin(logps.double().numpy(), lengths.numpy())
    pool = build_candidates(pairs["row_id"].to_pylist(), compute_explicit_margin(scores), implicit, 1.0)
    return select(pool, "m_ap", k=k).tolist()


@pytest.mark.parametrize(
    "method", ["dpo", "sft", *(pytest.param(m, marks=pytest.mark.heavy) for m in ("simpo", "kto"))]
)
def test_each_epoch_trains_on_what_its_policy_ranks_highest(tmp_path, method, monkeypatch):
    """The first by the untrained policy, the second by the one that an epoch trained: the checkpoint after it says so."""
    seen = []
    original = TrainerCallback.on_step_end

    def keep(self, args, state, control, model=None, **_):
        if state.global_step == 4 and model is not None and not seen:  # 8 of 20 pairs, 2 an update
            model.save_pretrained(tmp_path / "after")
            seen.append(True)

    monkeypatch.setattr(TrainerCallback, "on_step_end", keep)
    pairs = make_pool()
    record = train_tiny(pairs, make_pairs(3), method, own_settings(), tmp_path / "run")
    monkeypatch.setattr(TrainerCallback, "on_step_end", original)
    kept = read_kept(tmp_path / "run")
    assert record["n_updates"] == 12 and record["n_train_pairs"] == 20
    assert kept[0] == select_by_hand(pairs, MODELS, "tiny", 8)
    load_tokenizer(MODELS, "tiny").save_pretrained(tmp_path / "after")
    assert kept[1] == select_by_hand(pairs, *add_trained(MODELS, "tiny", tmp_path / "after"), 8)
    told = record["refilter"]
    assert told["metric"] == "m_ap" and told["n_candidates"] == 20
    for k, epoch in enumerate(told["epochs"]):
        before = set(kept[k - 1]) if k else set()
        assert epoch == {"epoch": k + 1, "n_kept": 8, "n_entered": len(set(kept[k]) - before),
                         "n_left": len(before - set(kept[k])), "n_of_first": len(set(kept[k]) & set(kept[0]))}  # fmt: skip


def test_the_policy_changes_what_is_kept(tmp_path):
    record = train_tiny(make_pool(), make_pairs(3), "dpo", own_settings(learning_rate=2e-2), tmp_path)
    assert any(epoch["n_entered"] for epoch in record["refilter"]["epochs"][1:]), "nothing would be dynamic"


def list_trained(pairs, own, **options):
    """The pairs of each epoch as the trainer's data loader hands them out."""
    tokenizer = load_tokenizer(MODELS, "tiny")
    tokenizer.padding_side = "right"
    trainer = build_trainer(load_model(MODELS, "tiny"), tokenizer, pairs, "dpo", 0, own, device="cpu", dtype="float32")
    chosen = Filter(pairs, tokenizer, own, 0, options["file"])
    attach_filter(trainer, chosen, pairs_an_update=2)
    loader, found = trainer.get_train_dataloader(), []
    for epoch in range(2):
        loader.set_epoch(epoch)
        found.append([tuple(ids) for batch in loader for ids in batch["input_ids"].tolist()])
    return trainer, chosen, found


def test_the_trainer_is_handed_the_kept_pairs_and_their_own_reference(tmp_path):
    """Prompts that fill max_length are no candidates; the rows between them are still the right ones."""
    pairs = make_pool(12)
    long = [
        pairs["prompt"].to_pylist()[k] if k % 4 else [{"role": "user", "content": "long " * 200}] for k in range(12)
    ]
    pairs = pairs.set_column(pairs.column_names.index("prompt"), "prompt", pa.array(long))
    trainer, chosen, found = list_trained(pairs, own_settings(), file=tmp_path / FILE)
    assert chosen.n_candidates == 9 and chosen.n_kept == 3 and len(trainer.train_dataset) == 9
    for epoch, rows in enumerate(found):
        shown = {tuple(t for t in row if t) for row in rows}
        own = [tuple(t for t in side.ids if t) for place in chosen.kept[epoch + 1] for side in chosen.rows[place].sides]
        assert shown == set(own) and not {0, 4, 8} & set(chosen.kept[epoch + 1].tolist())
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(trainer.train_dataset.column_names)


def test_random_draws_anew_each_epoch_and_is_as_long(tmp_path):
    how = {**HOW, "metric": "random"}
    records = [train_tiny(make_pool(), make_pairs(3), "dpo", own_settings(refilter=how), tmp_path / name)
               for name in ("one", "two")]  # fmt: skip
    kept = read_kept(tmp_path / "one")
    assert kept == read_kept(tmp_path / "two") and len({tuple(epoch) for epoch in kept}) == 3
    assert records[0]["n_updates"] == 12 == len(records[0]["history"])
    assert np.isnan(
        pq.read_table(tmp_path / "one" / FILE)["implicit_margin"].to_numpy()
    ).all()  # the policy was not read


def test_an_adapter_s_states_are_kept_and_ranked(tmp_path):
    record = train_tiny(make_pool(), make_pairs(3), "dpo", own_settings(lora=LORA), tmp_path)
    assert [epoch["n_kept"] for epoch in record["refilter"]["epochs"]] == [8, 8, 8]


def test_margins_that_a_selection_measured_are_taken(tmp_path):
    """Stage 07 knows other sources than the pairs' own scores: they lie in explicit_margin."""
    pairs = make_pool().append_column("explicit_margin", pa.array([1000.0 * (k < 8) for k in range(20)]))
    how = {**HOW, "weight": 0.0}
    train_tiny(pairs, make_pairs(3), "dpo", own_settings(refilter=how), tmp_path)
    assert read_kept(tmp_path) == [list(range(8))] * 3


def train_killed(folder, method, hold=False):
    """Twelve updates, a checkpoint after each three; held in the middle of the second epoch."""
    if hold:
        TrainerCallback.on_step_begin = lambda self, args, state, *_, **__: time.sleep(
            CALL_LIMIT * (state.global_step == 6)
        )
    return train_tiny(make_pool(), make_pairs(3), method, own_settings(checkpoint_steps=3), folder, code="x")


@pytest.mark.parametrize("method", ["dpo", pytest.param("sft", marks=pytest.mark.heavy)])
def test_killed_and_resumed_goes_on_with_the_same_pairs(tmp_path, method):
    """kill -9 in the second epoch: its pairs were chosen by a policy that no checkpoint holds."""
    folder, file = tmp_path / "killed", tmp_path / "killed" / "checkpoints" / "checkpoint-6" / "trainer_state.json"
    with start_child(train_killed, folder, method, True) as child:
        wait_until(lambda: find_checkpoint(folder / "checkpoints") == str(file.parent) or not child.is_alive())
    assert child.exitcode == -signal.SIGKILL, "it ended by itself"
    assert len(read_kept(folder)) == 2
    killed, whole = (train_killed(target, method) for target in (folder, tmp_path / "whole"))
    assert killed["resumed_at"] == 6 and whole["resumed_at"] is None
    assert read_kept(folder) == read_kept(tmp_path / "whole") and killed["refilter"] == whole["refilter"]
    digests = [
        compute_weights_digest(*add_trained(MODELS, "tiny", at / "model")) for at in (folder, tmp_path / "whole")
    ]
    assert digests[0] == digests[1]


def test_what_another_training_kept_is_not_gone_on_from(tmp_path):
    train_tiny(make_pool(), make_pairs(3), "dpo", own_settings(), tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    train_tiny(make_pool(), make_pairs(3), "dpo", own_settings(refilter={**HOW, "ratio": 0.5}), tmp_path)
    assert [len(epoch) for epoch in read_kept(tmp_path)] == [10, 10, 10]
    train_tiny(make_pool(), make_pairs(3), "dpo", own_settings(refilter=None), tmp_path)
    assert not (tmp_path / FILE).exists()


def test_a_twin_s_choices_are_taken_over(tmp_path):
    first, second = (
        train_tiny(make_pool(), make_pairs(3), "dpo", own_settings(), tmp_path / name, [tmp_path / "a"])
        for name in ("a", "b")
    )
    assert second["same_data_as"] and second["refilter"] == first["refilter"]
    assert read_kept(tmp_path / "a") == read_kept(tmp_path / "b")


def test_scores_are_part_of_what_a_training_is():
    pairs, other = make_pool(), make_pool()
    other = other.set_column(other.column_names.index("chosen_score"), "chosen_score", pa.array([9.0] + [0.6] * 19))
    for own, same in ((own_settings(), False), (own_settings(refilter=None), True)):
        ids = [describe_tiny(each, "sft", own, "out").identity for each in (pairs, other)]
        assert (ids[0] == ids[1]) is same


@pytest.mark.parametrize(
    ("pairs", "method", "changes", "message"),
    [
        (make_pool(), "dpo", {"epochs": 1.0}, r"between epochs: set training\.epochs above 1 \(it is 1\)"),
        (make_pool(), "dpo", {"accelerate": "params/accelerate/ddp.yaml"}, r"set training\.accelerate to null"),
        (make_pairs(6), "dpo", {}, "none of 6 pairs has scores of both responses"),
        (make_pool().append_column("stage", pa.array([0] * 20)), "dpo", {}, r"set pairs\.curriculum_stages to null"),
        (make_pool(), "dpo", {"refilter": {**HOW, "ratio": 0.01}}, "0.01 of them cannot be selected from 20"),
    ],
)  # fmt: skip
def test_what_cannot_be_ranked_anew_is_refused_before_a_model_loads(pairs, method, changes, message):
    with pytest.raises(InputError, match=message):
        check_pairs(pairs, load_tokenizer(MODELS, "tiny"), method, own_settings(**changes))


def test_updates_are_counted_before_training():
    report = check_pairs(make_pool(), load_tokenizer(MODELS, "tiny"), "dpo", own_settings())
    assert report["updates"] == 12 and report["pairs"] == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{metric: m_ap, ratio: 0.4, every: epoch}", r"training\.refilter ranks pairs between epochs"),
        ("{metric: m_ap_annotated, ratio: 0.4, every: epoch}", r"training\.refilter\.metric is .?m_ap_annotated"),
        ("{metric: explicit_large, ratio: 0.4, every: epoch}", r"training\.refilter\.metric is .?explicit_large"),
        ("{metric: m_ap, ratio: 0.4, every: update}", r"training\.refilter\.every is .?update"),
        ("{metric: m_ap, every: epoch}", r"'training\.refilter\.ratio' is missing"),
    ],
)
def test_an_experiment_that_cannot_is_refused_at_once(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(f"extends: smoke\nname: x\ntraining: {{epochs: 1.0, refilter: {text}}}\n")
    with pytest.raises(InputError, match=message):
        load_experiment(tmp_path / "x.yaml")


def test_a_trainer_that_left_out_other_pairs_is_not_guessed_at(tmp_path):
    tokenizer = load_tokenizer(MODELS, "tiny")
    chosen = Filter(make_pool(), tokenizer, own_settings(), 0, tmp_path / FILE)

    class Trainer:
        train_dataset = [0] * 19

    with pytest.raises(KarmaError, match="took 19 of 20 pairs, and 20 fit"):
        attach_filter(Trainer(), chosen, 2)


def test_07_hands_over_all_candidates_and_ranks_them_anew():
    """Its own weight and form go with the metric; a metric that selects once trains without a filter, whatever is set."""
    margins, gone = np.arange(5.0), float("nan")
    pool = build_candidates(list("abcde"), np.array([1, 2, gone, 4, 5]), margins, 1.0)
    potential = change_base("potential", weight=2.5, implicit="signed")
    training = own_settings()
    anew = plan_training(training, "m_ap_anew", 0.5, potential).refilter
    assert (anew.metric, anew.ratio, anew.weight, anew.implicit) == ("m_ap", 0.5, 2.5, "signed")
    assert plan_training(training, "random_anew", 0.5, potential).refilter.metric == "random"
    assert plan_training(training, "m_ap", 0.5, potential).refilter is None
    assert find_trained(pool, "m_ap_anew", np.array([0, 4])).tolist() == [0, 1, 3, 4]
    assert find_trained(pool, "m_ap", np.array([0, 4])).tolist() == [0, 4]


def test_what_ranking_anew_gained_over_every_other_is_tested():
    rng = np.random.default_rng(0)
    key = {"policy": "p", "strategy": "k_sim", "ratio": 0.4, "method": "dpo", "seed": 0}
    rows = [{**key, "metric": metric, "row_id": str(i), "right": float(rng.random() < share), "n": 1}
            for metric, share in (("random", 0.4), ("random_anew", 0.5), ("m_ap", 0.6), ("m_ap_anew", 0.7))
            for i in range(40)]  # fmt: skip
    found = compare_rivals(pd.DataFrame(rows))
    asked = set(zip(found["metric"], found["rival"], strict=True))
    others = {"random", "random_anew"}
    assert asked == {("m_ap", name) for name in others} | {("m_ap_anew", name) for name in (*others, "m_ap")}


def test_an_experiment_without_epochs_cannot_rank_anew_in_07(tmp_path):
    (tmp_path / "x.yaml").write_text("extends: smoke\nname: x\npotential: {metrics: [m_ap_anew]}\n")
    with pytest.raises(InputError, match=r"potential\.metrics: m_ap_anew: .*set training\.epochs above 1"):
        load_experiment(tmp_path / "x.yaml")


def test_the_summary_by_hand(tmp_path):
    table = pa.table({"epoch": [1, 1, 2, 2, 3, 3], "pair": [0, 1, 1, 2, 0, 1]})
    pq.write_table(table.replace_schema_metadata({"karma": json.dumps({"metric": "m_ap"})}), tmp_path / FILE)
    rows = [list(epoch.values()) for epoch in summarise_epochs(tmp_path / FILE)["epochs"]]
    assert rows == [[1, 2, 2, 0, 2], [2, 2, 1, 1, 1], [3, 2, 1, 1, 2]]  # epoch, kept, entered, left, of the first
