"""Prompts of several turns and system messages, through checks, training, margins, win rates, cards and public files."""

import json
from functools import cache
from importlib import import_module
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import settings as how_often
from hypothesis import strategies as st
from trl.data_utils import _tokenize, common_prefix_length

from karma.errors import InputError
from karma.files.reading import load_json
from karma.labels.compared import load_prompts, load_responses, show_prompt
from karma.labels.policies import collect_prompts
from karma.models.ask import sample_responses
from karma.models.chat import tokenize_response
from karma.models.load import load_model, load_tokenizer
from karma.models.logprobs import compute_pair_logps, tokenize_row
from karma.pairs.accounting import Accounting
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import PAIR_SCHEMA, PairSet, load_pairs, split_pairs
from karma.pairs.public_shape import load_binarized, save_binarized
from karma.training.checks import check_pairs, drop_unusable
from karma.training.trainers import build_trainer
from tests.test_select_cli import policy
from tests.test_train_cli import call
from tests.test_training import MODELS, settings, train_tiny

assert policy  # a fixture
ROLES = {"s": "system", "u": "user", "a": "assistant"}
GEMMA = (  # refuses a system message and two turns of one side, as Gemma's and Mistral's templates do
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEAF = (  # reads no system message, and says nothing of it
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = (  # ends the generation prompt with a block that the whole conversation does not have
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think></think>{% endif %}"
)


def say(shape, *texts):
    """Messages: a letter of `shape` is who says each of `texts`."""
    return [{"role": ROLES[who], "content": text} for who, text in zip(shape, texts, strict=True)]


LONG = say("suau", "Be brief.", "Is 1 odd?", "Yes.", "And 2?")
PROMPTS = [
    LONG,
    say("uau", "Name a fruit.", "Fig.", "Another."),
    say("su", "Rhyme.", "Say cat."),
    say("u", "Count to 3."),
]


def make_set(prompts=PROMPTS, chosen="Surely no {}.", rejected="It is {}."):
    rows = [{"row_id": f"{i:032x}", "source": "s", "prompt": prompt, "chosen": say("a", chosen.format(i)),
             "rejected": say("a", rejected.format(i)), "chosen_model": "one", "rejected_model": "two",
             "chosen_score": 0.5 + i / 100, "rejected_score": 0.25, "kinship": None, "strategy": "k_sim",
             "chosen_id": f"{2 * i:032x}", "rejected_id": f"{2 * i + 1:032x}", "label_confidence": None}
            for i, prompt in enumerate(prompts)]  # fmt: skip
    table = pa.Table.from_pylist(rows, PAIR_SCHEMA)
    books = Accounting("k_sim", len(rows), len(rows), responses_in=2 * len(rows), responses_usable=2 * len(rows))
    return PairSet(table, books)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODELS, "tiny")


@cache
def retold(template):
    found = load_tokenizer(MODELS, "tiny")
    found.chat_template = template
    return found


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_by_eye_the_response_alone_is_trained_on(tokenizer):
    row = tokenize_response(tokenizer, LONG, say("a", "No."), 10**6)
    assert tokenizer.decode(row.ids[row.start :]) == "No.<|im_end|>\n"
    assert tokenizer.decode(row.ids[: row.start]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIs 1 odd?<|im_end|>\n<|im_start|>assistant\n"
        "Yes.<|im_end|>\n<|im_start|>user\nAnd 2?<|im_end|>\n<|im_start|>assistant\n"
    )


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)
turns = st.tuples(st.booleans(), st.lists(st.tuples(st.sampled_from("ua"), words), max_size=5), words, words, words)


@given(turns, st.sampled_from([None, THINKS]))
@how_often(max_examples=60, deadline=None)
def test_any_conversation_is_tokenised_as_by_trl(tokenizer, drawn, template):
    has_system, middle, last, one, other = drawn
    prompt = [*(say("s", one) if has_system else []), *(m for who, text in middle for m in say(who, text)),
              *say("u", last)]  # fmt: skip
    own = tokenizer if template is None else retold(template)
    sides = [say("a", one), say("a", other)]
    row = tokenize_row(own, prompt, sides, 10**6)
    begun = _tokenize(own, prompt, add_generation_prompt=True)["input_ids"]
    whole = [_tokenize(own, prompt + side)["input_ids"] for side in sides]
    start = min(common_prefix_length(begun, ids) for ids in whole)
    assert [side.ids for side in row.sides] == whole and {side.start for side in row.sides} == {start}
    if template is None:
        assert [own.decode(side.ids[side.start :]) for side in row.sides] == [
            f"{one}<|im_end|>\n",
            f"{other}<|im_end|>\n",
        ]
        assert row.shared == start == len(begun)


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("template", [None, THINKS])
def test_the_trainers_own_tokens_are_ours(tokenizer, method, template, tmp_path):
    """What TRL's data set holds once it is built, and the labels of its first batch."""
    own = tokenizer if template is None else retold(template)
    table = make_set().table
    trainer = build_trainer(load_model(MODELS, "tiny"), own, table, method, 0, settings(per_device_batch_size=4),
                            device="cpu", dtype="float32")  # fmt: skip
    rows = [tokenize_row(own, p, [c, r], 128) for p, c, r in zip(*(table[n].to_pylist() for n in
            ("prompt", "chosen", "rejected")), strict=True)]  # fmt: skip
    for row, made in zip(rows, trainer.train_dataset, strict=True):
        chosen, rejected = row.sides
        if method == "sft":
            assert made["input_ids"] == chosen.ids
        else:
            assert made["prompt_ids"] + made["chosen_ids"] == chosen.ids and len(made["prompt_ids"]) == chosen.start
            assert made["prompt_ids"] + made["rejected_ids"] == rejected.ids
    batch = trainer.data_collator([trainer.train_dataset[k] for k in range(4)])
    labels = batch["labels"] if "labels" in batch else batch["input_ids"].where(batch["completion_mask"] > 0, -100)
    said = [own.decode(row[row != -100]) for row in labels]
    assert said[0].endswith("Surely no 0.<|im_end|>\n") and not any("Yes." in text or "Fig." in text for text in said)


def test_log_probabilities_are_those_of_the_whole_conversation(tokenizer):
    model = load_model(MODELS, "tiny")
    table = make_set().table
    texts = [table[name].to_pylist() for name in ("prompt", "chosen", "rejected")]
    found, lengths = compute_pair_logps(model, tokenizer, *texts, max_length=256)
    for i, (prompt, *sides) in enumerate(zip(*texts, strict=True)):
        for k, side in enumerate(sides):
            ids = torch.tensor([tokenizer.apply_chat_template(prompt + side, tokenize=True, return_dict=False)])
            n = len(tokenizer(side[0]["content"] + "<|im_end|>\n", add_special_tokens=False)["input_ids"])
            logps = model(ids).logits[0, -n - 1 : -1].log_softmax(-1)
            by_hand = logps.gather(1, ids[0, -n:, None]).sum().item()
            assert found[i, k].item() == pytest.approx(by_hand, rel=1e-4) and lengths[i, k] == n


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "template", "message"),
    [
        (LONG, GEMMA, "refuses a conversation (system, user, assistant, user): System role not supported"),
        (
            say("uu", "Hi.", "Is 1 odd?"),
            GEMMA,
            "refuses a conversation (user, user): Conversation roles must alternate",
        ),
        (LONG, DEAF, "leaves out the system message of a conversation (system, user, assistant, user)"),
    ],
)
def test_what_a_template_refuses_is_refused_in_one_line(prompt, template, message):
    pairs = make_set([*PROMPTS[3:], prompt])
    with pytest.raises(InputError) as caught:
        check_pairs(pairs.table, retold(template), "dpo", settings())
    text = str(caught.value)
    assert text.startswith(f"pair {1:032x}: the chat template {message}") and "\n" not in text
    assert "`karma train --drop-unusable`" in text
    kept = drop_unusable(pairs, "dpo", retold(template))
    assert len(kept) == 1 and kept.accounting.dropped == {"refused_by_template": 1}
    kept.accounting.check()


def test_two_turns_of_one_side_are_fine_where_the_template_takes_them(tokenizer):
    pairs = make_set([say("uu", "Hi.", "Is 1 odd?"), say("uaau", "Hi.", "Hello.", "You?", "Yes.")])
    assert check_pairs(pairs.table, tokenizer, "dpo", settings())["pairs"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": say("ua", "Hi.", "Yes?")}, "prompt must be messages ending with role 'user'"),
        ({"prompt": [*say("u", "Hi."), {"role": "user"}]}, "the instruction is missing or blank"),
        (
            {"prompt": say("uau", "Hi.", " ", "Well?")},
            "a message of the user's or the assistant's before the last one is",
        ),
        ({"chosen": say("aua", "Hi.", "Well?", "Yes.")}, "chosen must be one message of role 'assistant', and has 3"),
        ({"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "must be a list of role/content messages"),
    ],
)
def test_malformed_conversations_are_named(tokenizer, changes, message):
    row = {"row_id": "a", "prompt": LONG, "chosen": say("a", "Yes."), "rejected": say("a", "No."), **changes}
    with pytest.raises(InputError, match="pair a: ") as caught:
        check_pairs(pa.Table.from_pylist([row]), tokenizer, "dpo", settings())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("column", "messages", "message"),
    [
        ("prompt", say("ua", "Hi.", "Yes?"), "a prompt does not end with the user's message"),
        ("rejected", say("u", "Yes?"), "a rejected does not end with the assistant's message"),
        ("chosen", say("aua", "a", "b", "c"), "a chosen is 3 messages, expected one"),
        ("prompt", [{"role": "system", "content": None}, *say("u", "Hi.")], "a message of a prompt has no text"),
    ],
)
def test_pair_folders_of_other_shapes_are_refused(tmp_path, column, messages, message):
    save_pairs(make_set(), tmp_path / "pairs")
    rows = pq.read_table(tmp_path / "pairs" / "pairs.parquet").to_pylist()
    rows[2][column] = messages
    pq.write_table(pa.Table.from_pylist(rows, PAIR_SCHEMA), tmp_path / "pairs" / "pairs.parquet")
    with pytest.raises(InputError, match=message):
        load_pairs(tmp_path / "pairs")


@pytest.mark.parametrize("command", ["train", "select"])
def test_a_template_without_a_system_role_is_found_before_a_model_loads(command, policy, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from karma.cli import app

    modules = [import_module(f"karma.{name}") for name in ("models.load", "training.train", "potential.logps")]
    for module in modules:  # all are imported before the first is changed
        monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("a model was loaded"))
    own = retold(GEMMA)
    model = tmp_path / "model"
    model.mkdir()
    for file in policy.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    own.save_pretrained(model)
    save_pairs(make_set(), tmp_path / "pairs")
    arguments = ["--pairs", tmp_path / "pairs", "--policy", model, "--out", tmp_path / "out"]
    own_options = ["--method", "dpo"] if command == "train" else ["--ratio", "0.5"]
    result = CliRunner().invoke(app, [command, *map(str, arguments), *own_options])
    assert isinstance(result.exception, InputError) and "System role not supported" in str(result.exception)
    assert "\n" not in str(result.exception) and not (tmp_path / "out").exists()


# --- the way of conversations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_training_on_conversations(tmp_path, method):
    table = make_set().table
    record = train_tiny(table, table, method, settings(), tmp_path / "run")
    assert record["n_updates"] == 2 and record["held_out"]["n"] == 4
    if method == "dpo":
        assert record["history"][0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert record["answers"][0]["prompt"] == "System: Be brief.\n\nUser: Is 1 odd?\n\nAssistant: Yes.\n\nUser: And 2?"
    assert record["answers"][3]["prompt"] == "Count to 3."


def test_the_command_trains_on_them_and_leaves_out_what_a_template_refuses(policy, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in policy.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    retold(GEMMA).save_pretrained(model)
    save_pairs(make_set(), tmp_path / "pairs")
    shown = call("--pairs", tmp_path / "pairs", "--policy", model, "--method", "dpo", "--out", tmp_path / "run",
                 "--held-out", 0, "--drop-unusable").output  # fmt: skip
    assert "4 pairs = 2 usable + 2 refused_by_template" in shown
    assert load_json(tmp_path / "run" / "accounting.json")["dropped"] == {"refused_by_template": 2}


def test_a_conversation_is_held_out_with_its_beginning():
    openings = [f"Question {k}?" for k in range(200)]
    prompts = [say("u", text) for text in openings] + [
        say("suau", "Be brief.", text, "Yes.", "Why?") for text in openings
    ]
    train, held = split_pairs(make_set(prompts), 0.2, seed=0)
    found = held.table["prompt"].to_pylist()
    first = [next(m["content"] for m in prompt if m["role"] == "user") for prompt in found]
    assert 40 < len(found) < 120 and sorted(first[: len(found) // 2]) == sorted(first[len(found) // 2 :])
    assert len(train) + len(held) == 400


def test_public_files_of_conversations(tmp_path):
    pairs = make_set()
    save_pairs(pairs, tmp_path / "pairs")
    file = save_binarized(tmp_path / "pairs")
    rows = pq.read_table(file).to_pylist()
    assert [m["role"] for m in rows[0]["chosen"]] == ["system", "user", "assistant", "user", "assistant"]
    assert rows[0]["prompt"] == "And 2?" and rows[0]["messages"] == rows[0]["chosen"] == LONG + say("a", "Surely no 0.")
    again = load_binarized(file)
    for name in ("prompt", "chosen", "rejected", "chosen_score", "rejected_score"):
        assert again.table[name].to_pylist() == pairs.table[name].to_pylist(), name
    same = [say("u", "a\nb"), say("uu", "a", "b"), say("su", "a", "b"), say("u", "a b")]
    save_pairs(make_set(same, "Yes.", "No."), tmp_path / "same")
    assert len(set(load_binarized(save_binarized(tmp_path / "same")).table["row_id"].to_pylist())) == 4


def test_shapes_of_public_rows_with_conversations(tmp_path):
    yes, no = say("a", "Yes."), say("a", "No.")
    rows = [
        {"prompt": LONG, "chosen": yes, "rejected": no},
        {"prompt": LONG, "chosen": yes[0], "rejected": no[0]},
        {"prompt": LONG, "chosen": "Yes.", "rejected": "No."},
        {"messages": LONG, "chosen": yes[0], "rejected": no[0]},
        {"prompt": "And 2?", "chosen": LONG + yes, "rejected": LONG + no},
        {"messages": LONG + yes, "chosen": LONG + yes, "rejected": LONG + no},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load_binarized(tmp_path / "pairs.jsonl").table
    assert table["prompt"].to_pylist() == [LONG] * 6
    assert table["chosen"].to_pylist() == [yes] * 6 and table["rejected"].to_pylist() == [no] * 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": LONG, "chosen": say("ua", "Hi.", "Yes.")}, "what comes before the chosen answer are different"),
        ({"prompt": say("ua", "Hi.", "Yes?"), "chosen": say("a", "Yes.")}, "expected a prompt by the user"),
        ({"prompt": [{"role": "narrator", "content": "x"}, *LONG], "chosen": "Yes."}, "a message is by 'narrator'"),
    ],
)
def test_public_rows_that_contradict_themselves(tmp_path, row, message):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"rejected": "No.", **row}))
    with pytest.raises(InputError, match=r"pairs\.jsonl: row 1") as caught:
        load_binarized(tmp_path / "pairs.jsonl")
    assert message in str(caught.value)


def test_the_card_counts_conversations_and_shows_them(tmp_path):
    card = (save_pairs(make_set(), tmp_path / "pairs") / "README.md").read_text()
    assert "2 prompts have several turns of the user, 2 a system message." in card
    assert "- prompt: System: Be brief. User: Is 1 odd? Assistant: Yes. User: And 2?" in card
    plain = (save_pairs(make_set([PROMPTS[3]] * 3), tmp_path / "plain") / "README.md").read_text()
    assert "## Conversations" not in plain and "- prompt: Count to 3." in plain


def test_win_rates_ask_the_conversation_and_show_the_judge_all_of_it(tmp_path):
    save_pairs(make_set(), tmp_path / "pairs")
    prompts = collect_prompts([tmp_path / "pairs"], 0.999999, 0, None)
    assert len(prompts) == 4 and LONG in prompts.values() and "Count to 3." in prompts.values()
    asked = []
    model = SimpleNamespace(name="m", apply_chat_template=lambda turns: asked.append(turns) or "x",
                            generate_until=lambda requests: ["ok"] * len(requests))  # fmt: skip
    how = SimpleNamespace(max_new_tokens=4, temperature=0.0, top_p=1.0)
    assert sample_responses(model, list(prompts.values()), how, 0) == ["ok"] * 4
    assert sorted(map(len, asked)) == [1, 2, 3, 4] and LONG in asked
    assert show_prompt(LONG) == "System: Be brief.\n\nUser: Is 1 odd?\n\nAssistant: Yes.\n\nUser: And 2?"


def test_files_of_prompts_and_responses_may_hold_conversations(tmp_path):
    rows = [{"prompt": prompt, "response": f"answer {k}"} for k, prompt in enumerate([*PROMPTS, "Count to 4."])]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = load_prompts(tmp_path / "one.jsonl")
    assert list(prompts.values()) == [*PROMPTS[:3], "Count to 3.", "Count to 4."]
    assert list(load_responses(tmp_path / "one.jsonl", prompts).responses.values()) == [f"answer {k}" for k in range(5)]
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": say("ua", "Hi.", "Yes?")}))
    with pytest.raises(InputError, match="its prompt must be messages ending with role 'user'"):
        load_prompts(tmp_path / "bad.jsonl")
