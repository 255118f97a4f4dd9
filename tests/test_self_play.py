"""Self-play: pairs of a policy's own answers, evolved prompts, selection, rounds; by eye, by property, killed and resumed."""

import json
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karma.errors import InputError, KarmaError
from karma.evaluation.ifeval import check_instructions
from karma.evaluation.prompts import build_prompt, describe_instructions, load_prompts
from karma.files.reading import load_json
from karma.models.load import add_trained, load_model, load_tokenizer
from karma.models.logprobs import compute_logps
from karma.models.made import build_tokenizer
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import load_pairs
from karma.potential.margins import compute_potential
from karma.self_play import rounds
from karma.self_play.answers import sample_answers
from karma.self_play.curves import compute_trends, find_missing, list_rounds, load_rounds
from karma.self_play.evolution import (
    REFUSED,
    STRATEGIES,
    Attempt,
    clean_topic,
    collect_prompts,
    count_attempts,
    evolve_prompts,
)
from karma.self_play.pairing import build_self_play_pairs, choose_pair, join_books
from karma.self_play.prompts import split_prompts
from karma.self_play.scorers import score_answers, score_by_instructions
from karma.self_play.selection import add_margins, compute_token_margins, draw_places, find_best, take_pairs
from karma.study.experiment import load_experiment
from karma.study.sections import ModelSpec
from tests.chat_server import KEY, ChatServer
from tests.conftest import CALL_LIMIT, ROOT, change_base, list_kept, start_child, wait_until
from tests.self_play_round import open_tiny, play_round

DEMO = ROOT / "karma" / "data" / "demo" / "son.jsonl"
TINY = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=1).model_dump(),
        "judge": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=2).model_dump()}  # fmt: skip
COMPUTE = change_base("compute", device="cpu", dtype="float32")
SAMPLING = change_base("self_play", temperature=0.8, top_p=0.95, max_new_tokens=6, batch_size=4, seed=0)


# --- best against worst ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "scores", "expected"),
    [
        (["a", "b", "c", "d", "e"], [0.2, 0.9, 0.5, 0.1, 0.3], (1, 3)),
        (["a", "b", "c", "d", "e"], [0.5, 1.0, 0.0, 1.0, 0.0], (1, 2)),  # of equals the one drawn first
        (["a", "a", "b", "b", "b"], [1.0, 1.0, 0.0, 0.0, 0.0], (0, 2)),
        (["a", "b", "", "d", "e"], [0.2, 0.9, 0.5, 0.1, 0.3], "empty_answer"),
        (["a", "b", " \n", "d", "e"], [0.5] * 5, "empty_answer"),  # the first reason that applies
        (["a"] * 5, [0.5] * 5, "identical_answers"),
        (["a", "b", "c", "d", "e"], [0.5] * 5, "equal_scores"),
    ],
)
def test_best_against_worst_of_five(answers, scores, expected):
    assert choose_pair(answers, scores) == expected


def make_prompts(n):
    return [build_prompt(f"Count to {i}.") for i in range(n)]


def make_pairs(n=6):
    answers = [[f"one {i}", f"two {i} and more", f"three {i}"] for i in range(n)]
    scores = [[0.5, 1.0 + i, 0.25 * i] for i in range(n)]
    return build_self_play_pairs(make_prompts(n), answers, scores, "tiny", "test")


texts = st.sampled_from(["", " ", "yes", "no", "perhaps"])
asked = st.lists(st.lists(st.tuples(texts, st.sampled_from([0.0, 0.5, 1.0])), min_size=3, max_size=3), max_size=8)


@given(asked)
@settings(max_examples=60, deadline=None)
def test_the_books_balance_and_chosen_scores_higher(drawn):
    answers, scores = ([[one[k] for one in own] for own in drawn] for k in (0, 1))
    pairs = build_self_play_pairs(make_prompts(len(drawn)), answers, scores, "tiny", "test")
    books = pairs.accounting
    assert books.rows_in == len(drawn) == len(pairs) + sum(books.dropped.values())
    assert books.responses_in == 3 * len(drawn) == books.responses_usable + sum(books.responses_unused.values())
    assert set(books.dropped) <= {"empty_answer", "identical_answers", "equal_scores", "identical_responses"}
    for row in pairs.table.to_pylist():
        assert row["chosen_score"] > row["rejected_score"] and row["chosen_id"] != row["rejected_id"]


def test_pairs_are_in_the_kit_s_format_and_survive_the_disk(tmp_path):
    pairs = make_pairs()
    save_pairs(pairs, tmp_path / "pairs", "a command")
    again = load_pairs(tmp_path / "pairs")
    assert again.table.equals(pairs.table) and again.accounting.as_dict() == pairs.accounting.as_dict()
    row = again.table.to_pylist()[1]
    assert row["prompt"] == [{"role": "user", "content": "Count to 1."}]
    assert row["chosen"] == [{"role": "assistant", "content": "two 1 and more"}]
    assert (row["chosen_model"], row["rejected_model"], row["strategy"]) == ("tiny", "tiny", "self_play")
    assert "several answers of the policy itself" in (tmp_path / "pairs" / "README.md").read_text()


# --- prompts --------------------------------------------------------------------------------------------------------


def test_the_demo_s_prompts_can_all_be_checked_and_none_is_ifeval_s():
    prompts = load_prompts(DEMO, verifiable=True)
    assert len(prompts) >= 100
    for prompt in prompts:
        assert prompt.text.startswith(prompt.topic) and len(prompt.text) > len(prompt.topic) + 10
        assert score_by_instructions(prompt, "A short text.") in (0.0, 0.5, 1.0)
    benchmark = [json.loads(line)["prompt"] for line in DEMO.with_name("ifeval.jsonl").read_text().splitlines()]
    assert not {p.topic for p in prompts} & {text.split(".")[0] + "." for text in benchmark}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2 is no JSON"),
        ('{"question": "Why?"}', "line 2: no `topic`"),
        ('{"topic": "Why?"}', "line 2: no `instruction_id_list`: nothing can be checked"),
        ('{"topic": "Why?", "instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}', "no checker 'punctuation:no_coma'; there are"),
        ('{"topic": "Why?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}', "1 instructions, but 0 sets of arguments"),
        ('{"topic": "Why?", "instruction_id_list": ["keywords:existence"], "kwargs": [{"words": 1}]}', "keywords:existence cannot be checked with"),
        ('{"topic": "Why?", "instruction_id_list": ["keywords:existence"], "kwargs": [{}]}', "needs 'keywords': without it the checker draws one at random"),
        ('{"topic": "Name a tree.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}', "line 2: this prompt stands twice"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, message):
    good = '{"topic": "Name a tree.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}'
    (tmp_path / "prompts.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        load_prompts(tmp_path / "prompts.jsonl", verifiable=True)


def test_parts_do_not_overlap_and_each_round_has_fresh_prompts_of_its_own():
    prompts = load_prompts(DEMO, verifiable=True)
    first, second = (split_prompts(prompts, 10, 20, 30, r, seed=0) for r in (1, 2))
    assert first["base"] == second["base"] and first["held_out"] == second["held_out"]
    parts = [first["base"], first["held_out"], first["fresh"], second["fresh"]]
    assert len({p.text for part in parts for p in part}) == 10 + 20 + 30 + 30
    assert split_prompts(prompts[::-1], 10, 20, 30, 1, seed=0) == first  # the file's order does not matter
    with pytest.raises(InputError, match=r"round 4 needs 150 prompts \(10 base, 20 held out, 30 fresh a round\)"):
        split_prompts(prompts, 10, 20, 30, 4, seed=0)


# --- evolution ------------------------------------------------------------------------------------------------------


def test_what_is_no_usable_rewriting_is_refused_and_counted():
    prompt, held_out = build_prompt("Describe a garden."), build_prompt("Describe a pond.")
    written = ["", "Tree.", "Describe a garden " * 10, " describe  A POND. ", "Describe a garden at night."]
    shown = []
    attempts = evolve_prompts([prompt], lambda asked: shown.extend(asked) or written, [held_out], 3.0)
    assert [a.verdict for a in attempts] == ["empty", "too_short", "too_long", "not_new", "kept"]
    assert [a.strategy for a in attempts] == list(STRATEGIES) and len(set(shown)) == 5
    counts = count_attempts(attempts)
    assert counts == {"asked": 5, "kept": 1, **dict.fromkeys(REFUSED, 1)}
    assert [p.topic for p in collect_prompts(attempts)] == ["Describe a garden at night."]


def test_the_same_rewriting_twice_is_not_new_and_the_factor_is_a_bound():
    prompt = build_prompt("x" * 10)
    written = ["y" * 50, "y" * 50, "z" * 51, "w" * 2, "w"]
    verdicts = [a.verdict for a in evolve_prompts([prompt], lambda asked: written, [], 5)]
    assert verdicts == ["kept", "not_new", "too_long", "kept", "too_short"]


def test_only_the_topic_is_shown_and_the_constraint_comes_back_and_can_be_checked():
    kwargs = '[{"num_bullets": 2}, {"keywords": ["oak"]}]'
    prompt = build_prompt("Name trees.", ["detectable_format:number_bullet_lists", "keywords:existence"], kwargs)
    requests = []

    def ask(asked):
        requests.extend(asked)
        return [f"Name {k} tall trees." for k in range(5)]

    evolved = collect_prompts(evolve_prompts([prompt], ask, [], 5))
    assert all("bullet" not in text and "oak" not in text and "Name trees." in text for text in requests)
    sentences = describe_instructions(prompt.instruction_ids, json.loads(kwargs))
    for new in evolved:
        assert new.text == " ".join([new.topic, *sentences]) and new.parent == prompt.text
        assert check_instructions(new.item, "* an oak\n* a beech")["strict"] == [True, True]
        assert score_by_instructions(new, "* a beech") == 0.0 and score_by_instructions(new, "an oak") == 0.5
    assert {new.evolution for new in evolved} == set(STRATEGIES)


@pytest.mark.parametrize(
    ("answer", "topic"),
    [("Describe a pond.", "Describe a pond."), ('"Describe a pond."', "Describe a pond."),
     ("New task:  Describe\na pond.\n\nA pond is wet.", "Describe a pond."), ("\n \n", ""), ("**Task:** x", "x")],
)  # fmt: skip
def test_a_topic_is_taken_out_of_an_answer(answer, topic):
    assert clean_topic(answer) == topic


# --- selection ------------------------------------------------------------------------------------------------------


def test_potential_is_the_difference_of_z_scores():
    generator = np.random.default_rng(0)
    explicit, implicit = generator.random(50), generator.random(50)
    found = compute_potential(explicit, implicit, 2.5)
    assert found.mean() == pytest.approx(0, abs=1e-9)
    expected = 1 + 2.5**2 - 2 * 2.5 * np.corrcoef(explicit, implicit)[0, 1]
    assert found.var() == pytest.approx(expected)
    assert np.allclose(compute_potential(3 * explicit + 7, 0.1 * implicit, 2.5), found)


def test_a_side_without_spread_counts_as_0_with_a_warning():
    with pytest.warns(UserWarning, match="explicit margin is the same for all 3 pairs"):
        found = compute_potential(np.full(3, 1 / 3), np.array([0.1, 0.2, 0.3]), 1.0)
    assert np.isfinite(found).all() and found[0] > found[1] > found[2]
    with pytest.warns(UserWarning, match="for all 4 pairs"):
        assert not compute_potential(np.ones(4), np.zeros(4), 2.5).any()


def test_the_most_promising_are_kept_and_the_others_counted():
    pairs = add_margins(make_pairs(6), np.array([0.0, 0.5, -0.1, 0.2, 2.0, -0.3]), 2.5)
    assert pairs.table["implicit_margin"].to_pylist() == [0.0, 0.5, 0.1, 0.2, 2.0, 0.3]
    best = find_best(pairs, 2)
    potential = pairs.table["potential"].to_numpy()
    assert set(potential[best]) == set(sorted(potential)[-2:])
    kept = take_pairs(pairs, best)
    assert kept.accounting.dropped == Counter({"not_selected": 4}) and len(kept) == 2
    kept.accounting.check()
    assert find_best(pairs, 99).tolist() == list(range(6)) and len(find_best(take_pairs(pairs, best[:0]), 3)) == 0


def test_margins_are_means_per_token_and_are_kept(tmp_path):
    pairs = make_pairs(5).table
    found = compute_token_margins(pairs, TINY, "tiny", 256, COMPUTE, tmp_path)
    model, tokenizer = load_model(TINY, "tiny"), load_tokenizer(TINY, "tiny")
    means = []
    for side in ("chosen", "rejected"):
        columns = [pairs[name].to_pylist() for name in ("prompt", side)]
        logps, lengths = compute_logps(model, tokenizer, *columns, max_length=256, batch_size=1)
        means.append(logps / lengths)
    assert np.allclose(found, (means[0] - means[1]).numpy(), atol=1e-4)
    assert (
        compute_token_margins(pairs, {"tiny": {**TINY["tiny"]}}, "tiny", 256, COMPUTE, tmp_path).tolist()
        == found.tolist()
    )
    assert len(list((tmp_path / "margins").iterdir())) == 1
    with pytest.raises(InputError, match=r"fill training\.max_length=16: raise it"):
        compute_token_margins(pairs, TINY, "tiny", 16, COMPUTE, tmp_path)


# --- answers and scorers --------------------------------------------------------------------------------------------


def test_draws_differ_and_repeat(tmp_path):
    prompts = [p.text for p in make_prompts(3)]
    one = sample_answers(TINY, "tiny", prompts, 4, SAMPLING, COMPUTE, tmp_path / "one")
    assert one == sample_answers(TINY, "tiny", prompts, 4, SAMPLING, COMPUTE, tmp_path / "two")
    assert all(len(set(own)) > 1 for own in one) and [len(own) for own in one] == [4] * 3
    other = sample_answers(TINY, "tiny", prompts, 4, SAMPLING.model_copy(update={"seed": 1}), COMPUTE, None)
    assert not {a for own in one for a in own} & {a for own in other for a in own}


def test_a_server_answers_through_the_same_layer(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_KEY", KEY)
    server = ChatServer()
    spec = ModelSpec(api={"base_url": server.base_url, "model": "tiny", "key_env": "TINY_KEY"}).model_dump()
    drawn = sample_answers({"remote": spec}, "remote", ["Hi.", "Why?"], 3, SAMPLING, COMPUTE, tmp_path)
    assert [len(own) for own in drawn] == [3, 3]
    assert len(server.asked) == 6 and {body["temperature"] for body in server.asked} == {0.8}
    assert len({body["seed"] for body in server.asked}) >= 3


def test_a_judge_scores_each_answer_on_its_own_and_once(tmp_path):
    prompts, answers = make_prompts(2), [["one", "two three"], ["four", "one"]]
    how = change_base("self_play", scorer="judge", scorer_model="judge", batch_size=1)
    scores = score_answers(prompts, answers, how, TINY, COMPUTE, tmp_path)
    assert np.shape(scores) == (2, 2) and all(1 <= s <= 5 for own in scores for s in own)
    assert scores[0][0] != scores[1][1], "the same answer to another prompt"
    turned = score_answers(prompts[::-1], [own[::-1] for own in answers[::-1]], how, TINY, COMPUTE, tmp_path)
    assert np.allclose(turned, [own[::-1] for own in scores[::-1]])
    (first, second) = sorted((tmp_path / "scores").iterdir())
    first.write_text("[1, 2, 3, 4]"), second.write_text("[1, 2, 3, 4]")
    assert score_answers(prompts, answers, how, TINY, COMPUTE, tmp_path) == [[1, 2], [3, 4]], "it was asked again"


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A tiny random sequence classifier on disk."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    def make(n_labels):
        folder, tokenizer = tmp_path_factory.mktemp("reward"), build_tokenizer()
        config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                             intermediate_size=16, num_labels=n_labels, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {**TINY, "rm": ModelSpec(path=str(folder)).model_dump()}

    return make


def test_a_reward_model_scores_by_its_one_output(reward_model, tmp_path):
    from transformers import AutoModelForSequenceClassification

    models, how = reward_model(1), change_base("self_play", scorer="reward_model", scorer_model="rm", batch_size=2)
    prompts, answers = make_prompts(2), [["one", "two three"], ["four", "one"]]
    scores = score_answers(prompts, answers, how, models, COMPUTE, tmp_path)
    tokenizer = load_tokenizer(models, "rm")
    turns = [{"role": "user", "content": "Count to 1."}, {"role": "assistant", "content": "one"}]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(models["rm"]["path"])(ids).logits.item()
    assert scores[1][1] == pytest.approx(expected, rel=1e-5) and len({s for own in scores for s in own}) == 4


def test_a_model_that_is_no_reward_model_is_refused(reward_model, tmp_path):
    how = change_base("self_play", scorer="reward_model", scorer_model="rm", batch_size=2)
    with pytest.raises(InputError, match="reward model 'rm' has 2 outputs: give a sequence classifier with one output"):
        score_answers(make_prompts(1), [["a", "b"]], how, reward_model(2), COMPUTE, tmp_path)
    load_model(TINY, "tiny").save_pretrained(tmp_path / "causal")
    build_tokenizer().save_pretrained(tmp_path / "causal")
    models = {"rm": ModelSpec(path=str(tmp_path / "causal")).model_dump()}
    with pytest.raises(InputError, match="reward model 'rm' has no trained head"):
        score_answers(make_prompts(1), [["a", "b"]], how, models, COMPUTE, tmp_path)


# --- whole rounds on tiny models ------------------------------------------------------------------------------------

ARMS = ("evolve_then_select", "select_then_evolve", "fresh")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Round 1 of every arm, and round 2 of one: (folder, records by (arm, round))."""
    folder = tmp_path_factory.mktemp("study")
    played = [*((arm, 1) for arm in ARMS), ("evolve_then_select", 2)]
    return folder, {key: play_round(open_tiny(folder, *key)) for key in played}


def load_round(study, arm, number=1):
    return load_pairs(study[0] / "outputs" / "self_play" / "tiny" / arm / f"round{number}").table.to_pandas()


def test_arms_train_on_equal_budgets_and_the_same_base_pairs(study):
    tables = {arm: load_round(study, arm) for arm in ARMS}
    for arm, table in tables.items():
        assert table["part"].value_counts().to_dict() == {"base": 6, "added": 4}, arm
        assert study[1][arm, 1]["shortfalls"] == []
        base = table[table["part"] == "base"].drop(columns="part")
        assert base.equals(tables["fresh"].query("part == 'base'").drop(columns="part")), arm
    added = [set(t.loc[t["part"] == "added", "row_id"]) for t in tables.values()]
    assert added[0] != added[2] and added[1] != added[2]


def test_arms_select_from_equally_many_candidates_and_as_many_each(study):
    assert {key: record["n_candidates"] for key, record in study[1].items()} == dict.fromkeys(study[1], 5)
    this = open_tiny(study[0], "fresh", 1)
    base, more = rounds.play(this, this.prompts["base"]), rounds.play_candidates(this, this.prompts["fresh"])
    candidates, kept = more.pairs.table.to_pandas().set_index("row_id"), {}
    for arm in ("fresh", "fresh_random", "fresh_explicit", "fresh_implicit"):
        assert rounds.propose_prompts(replace(this, arm=arm), base) == (this.prompts["fresh"], [])
        pairs = rounds.build_training_set(replace(this, arm=arm), base, more)
        table = pairs.table.to_pandas()
        kept[arm] = set(table.loc[table["part"] == "added", "row_id"])
        assert len(kept[arm]) == 4 and kept[arm] < set(candidates.index)
        assert pairs.accounting.dropped["not_selected"] == len(base.pairs) - 6 + 1
        assert pairs.accounting.dropped["not_drawn"] == 1
    left = {arm: candidates.drop(index=list(ids)).iloc[0] for arm, ids in kept.items()}
    assert left["fresh"]["potential"] == candidates["potential"].min()
    assert left["fresh_explicit"]["explicit_margin"] == candidates["explicit_margin"].min()
    assert left["fresh_implicit"]["implicit_margin"] == candidates["implicit_margin"].max()
    lots = {tuple(draw_places(list(candidates.index), 4, seed, "selected")) for seed in range(20)}
    assert len(lots) > 3, "a lot that always falls alike"


def test_every_prompt_that_was_asked_is_in_the_books(study):
    for (arm, number), record in study[1].items():
        folder = study[0] / "outputs" / "self_play" / "tiny" / arm / f"round{number}"
        books, evolution = load_json(folder / "accounting.json"), record["evolution"]
        assert books["rows_in"] == books["pairs_out"] + sum(books["dropped"].values())
        assert books["rows_in"] == 8 + (6 if arm == "fresh" else min(evolution["kept"], 6))
        assert evolution["asked"] == sum(v for k, v in evolution.items() if k != "asked")
        assert len(load_json(folder / "evolution.json")) == evolution["asked"]
        assert evolution["asked"] == {"evolve_then_select": 40, "select_then_evolve": 10, "fresh": 0}[arm]


def test_nothing_is_trained_on_or_evolved_from_a_held_out_prompt(study):
    this = open_tiny(study[0], "evolve_then_select", 1)
    held_out = {p.text for p in this.prompts["held_out"]}
    for arm, number in study[1]:
        table = load_round(study, arm, number)
        asked = {turns[-1]["content"] for turns in table["prompt"]}
        assert not held_out & asked and not held_out & set(table["parent"])
        evolved = table[table["evolution"] != ""]
        assert (len(evolved) == 4) == (arm != "fresh") and set(evolved["evolution"]) <= set(STRATEGIES)


def test_the_second_round_starts_from_the_first_one_s_adapter(study):
    this = open_tiny(study[0], "evolve_then_select", 2)
    assert this.policy == "tiny (trained)" and this.models[this.policy]["base"] == "tiny"
    models, twice = add_trained(this.models, this.policy, this.folder / "model")
    weights = [dict(load_model(models, name).named_parameters()) for name in ("tiny", this.policy, twice)]
    for before, after in ((0, 1), (1, 2)):
        changed = {k for k in weights[0] if not torch.equal(weights[before][k], weights[after][k])}
        assert changed and all(".layers.1." in k for k in changed)
    assert study[1]["evolve_then_select", 2]["start"] == study[1]["evolve_then_select", 1]["start"]


def play_and_hang(folder):
    """Play a round, and hang before its training, so that no kill comes too late."""
    rounds.train_round = lambda *_: time.sleep(CALL_LIMIT)
    play_round(open_tiny(folder, "select_then_evolve", 1))


def test_a_killed_round_asks_nothing_twice_and_ends_with_the_same_bytes(study, tmp_path):
    """kill -9 as soon as some answers are kept; then the same round again."""
    answers = tmp_path / "outputs" / "answers"
    with start_child(play_and_hang, tmp_path) as child:
        wait_until(lambda: len(list_kept(answers)) >= 4 or not child.is_alive())
        kept = list_kept(answers)
    assert child.exitcode == -signal.SIGKILL, "it ended by itself"
    where = Path("outputs/self_play/tiny/select_then_evolve/round1")
    assert len(kept) >= 4 and not (tmp_path / where / "self_play.json").exists()
    play_round(open_tiny(tmp_path, "select_then_evolve", 1))
    after = list_kept(answers)
    assert {key: after[key] for key in kept} == kept, "an answer was asked again: it took another time"
    assert after.keys() <= list_kept(study[0] / "outputs" / "answers").keys()
    for name in ("pairs.parquet", "accounting.json", "README.md", "evolution.json", "self_play.json",
                 "model/adapter_model.safetensors"):  # fmt: skip
        assert (tmp_path / where / name).read_bytes() == (study[0] / where / name).read_bytes(), name


def test_a_part_below_its_budget_is_said_and_no_pair_at_all_is_an_error(study):
    this = open_tiny(study[0], "fresh", 1)
    base, more = rounds.play(this, this.prompts["base"]), rounds.play_candidates(this, this.prompts["fresh"])
    small = replace(this, settings=change_base("self_play", **{**this.settings.as_dict(), "added_pairs": 50}))
    found = rounds.find_shortfalls(small, rounds.build_training_set(small, base, more))
    assert found == ["5 added pairs, but self_play.added_pairs is 50: other arms may have more"]
    none = build_self_play_pairs(base.prompts, base.answers, [[1.0] * 3] * 8, "tiny", "test")
    empty = replace(base, pairs=add_margins(none, np.zeros(0), 2.5))
    with pytest.raises(KarmaError, match=r"no prompt gave a pair \(\{'equal_scores': 16\}\): raise self_play.samples"):
        rounds.build_training_set(this, empty, empty)


def test_books_of_several_sets_add_up():
    books = join_books([make_pairs(3), make_pairs(4)])
    assert (books.rows_in, books.pairs_out, books.responses_in) == (7, 7, 21)


def test_held_out_preference_is_the_measure_of_stage_04(study):
    for arm in ARMS:
        folder = study[0] / "outputs" / "self_play" / "tiny" / arm / "round1"
        own, theirs = study[1][arm, 1]["after"]["preference"], load_json(folder / "training.json")["held_out"]
        assert (own["accuracy"], own["n"]) == (theirs["accuracy"], theirs["n"]), arm


def test_curves_hold_round_0_every_finished_round_and_name_the_others(study):
    experiment = load_experiment(study[0] / "tiny_self_play.yaml")
    experiment.outputs = study[0] / "outputs"
    frame = load_rounds(experiment)
    own = frame[frame["arm"] == "evolve_then_select"]
    assert own["round"].tolist() == [0, 1, 2] and own["n_pairs"].tolist() == [0, 10, 20]
    assert frame.query("round == 0")["score"].nunique() == 1 and set(frame["n_prompts"]) == {5}
    assert (frame["score_low"] <= frame["score"]).all() and (frame["score"] <= frame["score_high"]).all()
    assert find_missing(experiment) == ["08_self_play.tiny.select_then_evolve.round2", "08_self_play.tiny.fresh.round2"]
    assert set(frame.query("round == 0")["preference"]) == {0.5}
    record = study[1]["evolve_then_select", 2]
    gain = np.mean(record["after"]["by_prompt"]) - np.mean(record["start"]["by_prompt"])
    assert own["gain"].iloc[2] == pytest.approx(gain, abs=1e-5)


def test_a_trend_over_rounds_is_each_prompt_s_slope(tmp_path):
    """Six prompts: all rise by .2 at the first round, and by .1 more, or not, at the second."""
    experiment = load_experiment("self_play")
    experiment.outputs = tmp_path
    start, first = np.full(6, 0.3), np.full(6, 0.5)
    second = first + np.array([0.1, 0.1, 0.1, 0, 0, 0])
    for job in (j for j in list_rounds(experiment) if j.params["arm"] == "fresh"):
        number = int(job.params["round"])
        record = {"policy": "p", "arm": "fresh", "round": number, "start": {"by_prompt": start.tolist()},
                  "after": {"by_prompt": [first, second][number - 1].tolist()}}  # fmt: skip
        job.folder.mkdir(parents=True)
        (job.folder / "self_play.json").write_text(json.dumps(record))
    found = compute_trends(experiment).set_index("rounds")
    assert list(found.index) == ["0 to 2", "1 to 2"]
    assert found["change"].tolist() == pytest.approx([0.125, 0.05])  # (second - start) / 2, and second - first
    half = 2.570582 * (second - first).std(ddof=1) / np.sqrt(6)
    assert found.loc["1 to 2", ["low", "high"]].tolist() == pytest.approx([0.05 - half, 0.05 + half], abs=1e-6)
    assert found.loc["0 to 2", "verdict"] == "supported (n = 6 prompts)"
    assert found.loc["1 to 2", "verdict"].startswith("cannot tell with n = 6 prompts; ")


def test_the_figures_are_pictures(study, tmp_path):
    from matplotlib.image import imread

    from karma.figures.self_play import plot_margins, plot_rounds
    from karma.figures.style import save_figure

    experiment = load_experiment(study[0] / "tiny_self_play.yaml")
    experiment.outputs = study[0] / "outputs"
    pairs = load_pairs(study[0] / "outputs/self_play/tiny/fresh/round1").table
    axes = [plot_rounds(load_rounds(experiment))[0], plot_margins(pairs, pairs.slice(0, 3), "rating")]
    for number, ax in enumerate(axes):
        for path in save_figure(ax.figure, tmp_path / str(number)):
            assert path.stat().st_size > 1000
        assert imread(tmp_path / f"{number}.png")[..., :3].std() > 0.02
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["not selected (7)", "selected (3)"]


def test_an_evolved_prompt_keeps_its_arguments(study):
    rewritten = load_json(study[0] / "outputs/self_play/tiny/evolve_then_select/round1/evolution.json")
    assert {row["verdict"] for row in rewritten} <= {"kept", *REFUSED}
    attempt = Attempt(load_prompts(DEMO, True)[0], "deepen", "Another topic.", "kept")
    (prompt,) = collect_prompts([attempt])
    assert prompt.kwargs == attempt.prompt.kwargs and prompt.instruction_ids == attempt.prompt.instruction_ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("self_play: {scorer: judge}", "scorer_model: name a model for judge and reward_model, and none for instructions"),
        ("self_play: {scorer_model: x}", "and none for instructions"),
        ("self_play: {arms: [evolve]}", "self_play.arms.0 is 'evolve'"),
        ("self_play: {temperature: 0.0}", "greater than 0"),
        ("self_play: {samples: 1}", "greater than or equal to 2"),
        ("self_play: {rounds: 1, scorer: judge, scorer_model: ghost}", "self_play.scorer_model: 'ghost' is not a model of this experiment"),
        ("strategies: []", "name at least one, or set self_play.rounds for a study of self-play alone"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(f"name: mine\nscores: {{table: paper}}\n{text}\n")
    with pytest.raises(InputError) as caught:
        load_experiment(tmp_path / "mine.yaml")
    assert message in str(caught.value)


@pytest.mark.real_model
def test_a_real_policy_s_answers_differ_in_what_the_checkers_see(tmp_path):
    models = {"smollm2-135m": ModelSpec(packaged="smollm2-135m").model_dump(mode="json")}
    prompts = load_prompts(DEMO, True)[:10]
    how = change_base("self_play", temperature=0.8, top_p=0.95, max_new_tokens=40, batch_size=32, seed=0)
    answers = sample_answers(models, "smollm2-135m", [p.text for p in prompts], 3, how, COMPUTE, tmp_path)
    scores = [[score_by_instructions(p, a) for a in own] for p, own in zip(prompts, answers, strict=True)]
    assert len(build_self_play_pairs(prompts, answers, scores, "smollm2-135m", "test")) >= 5
