"""`karma export`: folders that other trainers load, held against what their documents say a data set must be.

The two readers below are those documents in words of our own: LLaMA-Factory's data/README.md ("Sharegpt Format",
"Preference Dataset", "OpenAI Format": the first message may be the system's, then user and assistant stand at odd and
even places, a preference set's conversation ends with the user, chosen and rejected are one message each; whatever else
a row is, it is skipped) and Axolotl's docs/rlhf.qmd ("chat_template.default": field_messages, field_chosen,
field_rejected, message_property_mappings, roles). What they do not know is an error here.
"""

import json

import datasets
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.evaluation.prompts import build_prompt
from karma.pairs.export import FORMATS, export_pairs
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import load_pairs, split_pairs
from karma.pairs.public_shape import load_binarized
from tests.test_turns import LONG, PROMPTS, make_set, say, tokenizer

assert tokenizer  # a fixture
LLAMA_FACTORY = {
    "description": {"hf_hub_url", "ms_hub_url", "script_url", "file_name", "formatting", "ranking", "subset", "folder",
                    "columns", "tags"},
    "columns": {"prompt", "query", "response", "history", "messages", "system", "tools", "images", "chosen", "rejected",
                "kto_tag"},
    "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
             "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"},
}  # fmt: skip


def load_rows(file, tmp_path):
    return datasets.load_dataset(
        "json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
    ).to_list()


def read_llama_factory(folder, tmp_path):
    """Return (system, turns, chosen, rejected) of each row, as LLaMA-Factory would train on it."""
    ((name, described),) = json.loads((folder / "dataset_info.json").read_text()).items()
    assert name.isidentifier() and set(described) <= LLAMA_FACTORY["description"]
    assert described["formatting"] == "sharegpt" and described["ranking"] is True
    columns, tags = described["columns"], LLAMA_FACTORY["tags"] | described["tags"]
    assert set(columns) <= LLAMA_FACTORY["columns"] and set(described["tags"]) <= set(LLAMA_FACTORY["tags"])
    who, what, found = tags["role_tag"], tags["content_tag"], []
    for row in load_rows(folder / described["file_name"], tmp_path):
        messages, system = row[columns["messages"]], ""
        if messages[0][who] == tags["system_tag"]:
            system, messages = messages[0][what], messages[1:]
        odd, even = {tags["user_tag"], tags["observation_tag"]}, {tags["assistant_tag"], tags["function_tag"]}
        assert all(m[who] in (even if k % 2 else odd) for k, m in enumerate(messages)) and len(messages) % 2 == 1
        sides = [row[columns[side]] for side in ("chosen", "rejected")]
        assert all(isinstance(side, dict) and side[who] in even for side in sides)
        found.append((system, [m[what] for m in messages], *(side[what] for side in sides)))
    return found


def read_axolotl(folder, tmp_path, tokenizer):
    """Return (prompt, chosen, rejected) of each row as text in the model's format, as Axolotl would train on it."""
    config = yaml.safe_load((folder / "axolotl.yaml").read_text())
    assert set(config) == {"rl", "chat_template", "datasets"} and config["rl"] == "dpo"
    (own,) = config["datasets"]
    assert set(own) == {"path", "ds_type", "split", "type", "field_messages", "field_chosen", "field_rejected",
                        "message_property_mappings"}  # fmt: skip
    assert (own["type"], own["ds_type"], own["split"]) == ("chat_template.default", "json", "train")
    # what some versions drop from a DPO data set's description must be what they take by default
    assert (own["field_messages"], own["field_chosen"], own["field_rejected"]) == ("messages", "chosen", "rejected")
    assert own["message_property_mappings"] == {"role": "role", "content": "content"}
    found = []
    for row in load_rows(folder / own["path"], tmp_path):
        assert all(m["role"] in ("system", "user", "assistant", "tool") for m in row["messages"])
        begun = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        sides = []
        for side in ("chosen", "rejected"):
            text = tokenizer.apply_chat_template([*say("u", "dummy"), row[side]], tokenize=False)
            sides.append(text[text.find(row[side]["content"]) :].rstrip())
        found.append((begun, *sides))
    return found


@pytest.fixture
def folder(tmp_path):
    return save_pairs(make_set(), tmp_path / "pairs")


def call(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_by_eye_llama_factory(folder, tmp_path):
    result = call("--pairs", folder, "--format", "llama_factory", "--out", tmp_path / "out")
    assert (
        result.output
        == f"4 pairs for LLaMA-Factory written to {tmp_path / 'out'}: pairs.jsonl, dataset_info.json, README.md\n"
        f"next: LLaMA-Factory takes dataset_dir: {tmp_path / 'out'} and dataset: karma_k_sim\n"
    )
    assert read_llama_factory(tmp_path / "out", tmp_path) == [
        ("Be brief.", ["Is 1 odd?", "Yes.", "And 2?"], "Surely no 0.", "It is 0."),
        ("", ["Name a fruit.", "Fig.", "Another."], "Surely no 1.", "It is 1."),
        ("Rhyme.", ["Say cat."], "Surely no 2.", "It is 2."),
        ("", ["Count to 3."], "Surely no 3.", "It is 3."),
    ]


def test_axolotl_trains_on_the_texts_that_we_train_on(folder, tmp_path, tokenizer):
    assert call("--pairs", folder, "--format", "axolotl", "--out", tmp_path / "out").exit_code == 0
    found = read_axolotl(tmp_path / "out", tmp_path, tokenizer)
    for (begun, *sides), row in zip(found, make_set().table.to_pylist(), strict=True):
        for side, text in zip(("chosen", "rejected"), sides, strict=True):
            whole = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            assert begun + text == whole.rstrip()


def test_trl_takes_the_folder_as_its_data_set(folder, tmp_path):
    assert call("--pairs", folder, "--format", "trl", "--out", tmp_path / "out").exit_code == 0
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    from trl.data_utils import is_conversational

    assert is_conversational(rows[0]) and rows["prompt"][0] == LONG
    assert rows["chosen"] == make_set().table["chosen"].to_pylist()


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "trl_sft"])
def test_what_goes_out_comes_back(folder, tmp_path, form):
    call("--pairs", folder, "--format", form, "--out", tmp_path / "out")
    again, pairs = load_binarized(tmp_path / "out" / "pairs.jsonl"), load_pairs(folder)
    saved = load_pairs(save_pairs(again, tmp_path / "again"))
    for name in ("prompt", "chosen", "rejected", "chosen_score", "rejected_score", "label_confidence"):
        assert saved.table[name].to_pylist() == pairs.table[name].to_pylist(), name
    first = json.loads((tmp_path / "out" / "pairs.jsonl").read_text().splitlines()[0])
    assert (first["chosen_model"], first["rejected_model"]) == ("one", "two")
    twice = save_pairs(again, tmp_path / "again")
    call("--pairs", twice, "--format", form, "--out", tmp_path / "third")
    rows = [[json.loads(line)["chosen"] for line in (tmp_path / name / "pairs.jsonl").read_text().splitlines()]
            for name in ("out", "third")]  # fmt: skip
    assert rows[0] == rows[1]


def test_sft_gets_the_chosen_response_alone(folder, tmp_path):
    assert call("--pairs", folder, "--format", "trl_sft", "--out", tmp_path / "out").exit_code == 0
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["completion"] == make_set().table["chosen"].to_pylist() and rows["prompt"][0] == LONG
    assert not {"chosen", "rejected"} & set(rows.column_names)


def test_what_a_training_holds_out_is_left_out(tmp_path):
    pairs = make_set([say("u", f"Question {k}?") for k in range(60)])
    folder, kept = save_pairs(pairs, tmp_path / "pairs"), split_pairs(pairs, 0.3, 0)[0].table
    result = call("--pairs", folder, "--format", "trl", "--out", tmp_path / "out", "--held-out", 0.3)
    assert f"{len(kept)} pairs ({60 - len(kept)} held out) for TRL" in result.output and 0 < len(kept) < 60
    assert load_binarized(tmp_path / "out" / "pairs.jsonl").table["prompt"].to_pylist() == kept["prompt"].to_pylist()


def test_instructions_go_along_where_trl_answers_the_prompts(folder, tmp_path):
    asked = {"topic": "Say cat.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    prompt = build_prompt(asked["topic"], asked["instruction_id_list"], "[{}]").text
    save_pairs(make_set([*PROMPTS, say("su", "Rhyme.", prompt)]), tmp_path / "asked")
    (tmp_path / "prompts.jsonl").write_text(json.dumps(asked) + "\n")
    options = ("--instructions", tmp_path / "prompts.jsonl", "--out", tmp_path / "out")
    assert call("--pairs", tmp_path / "asked", "--format", "trl", *options).exit_code == 0
    rows = [json.loads(line)["instructions"] for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert rows[:4] == [None] * 4 and json.loads(rows[4])["instruction_id_list"] == ["punctuation:no_comma"]
    for text in ("", json.dumps({**asked, "topic": "Say dog."})):
        (tmp_path / "none.jsonl").write_text(text)
        found = call(
            "--pairs", folder, "--format", "trl", "--out", tmp_path / "no", "--instructions", tmp_path / "none.jsonl"
        )
        assert isinstance(found.exception, InputError) and "for none of the 4 prompts" in str(found.exception)
    refused = call("--pairs", folder, "--format", "axolotl", *options)
    assert isinstance(refused.exception, InputError) and "--instructions means nothing without" in str(
        refused.exception
    )


def test_the_card_goes_along_and_names_the_file(folder, tmp_path):
    call("--pairs", folder, "--format", "trl", "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "path: pairs.jsonl" in card and "pairs.parquet" not in card and "## Licences" in card


@pytest.mark.parametrize(
    ("prompt", "form", "fits"),
    [
        (say("uu", "Hi.", "Is 1 odd?"), "llama_factory", False), (say("usu", "Hi.", "Be kind.", "?"), "llama_factory", False),
        (say("au", "Hello.", "Hi."), "llama_factory", False), (say("uu", "Hi.", "Is 1 odd?"), "axolotl", True),
        ([{"role": "developer", "content": "x"}, *say("u", "Hi.")], "axolotl", False),
        (say("uu", "Hi.", "Is 1 odd?"), "trl", True),
    ],
)  # fmt: skip
def test_what_a_trainer_would_skip_or_fail_on_is_refused(tmp_path, prompt, form, fits):
    pairs = make_set([*PROMPTS, prompt, prompt])
    if fits:
        assert export_pairs(pairs, form, tmp_path / "out")[0] == "pairs.jsonl"
        return
    with pytest.raises(InputError) as caught:
        export_pairs(pairs, form, tmp_path / "out")
    assert f"pair {4:032x}: its prompt is (" in str(caught.value) and "(so of 2 of 6 pairs)" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_replaced_and_other_files_are_not(folder, tmp_path):
    for form, files in (("axolotl", {"axolotl.yaml"}), ("llama_factory", {"dataset_info.json"}), ("trl", set())):
        call("--pairs", folder, "--format", form, "--out", tmp_path / "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"pairs.jsonl", "README.md"} | files
    (tmp_path / "out" / "mine.txt").write_text("mine")
    result = call("--pairs", folder, "--format", "axolotl", "--out", tmp_path / "out")
    assert isinstance(result.exception, InputError) and "holds mine.txt, which is no export's" in str(result.exception)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"pairs.jsonl", "README.md", "mine.txt"}


def test_a_file_is_not_written_over_while_it_is_read(folder, tmp_path):
    call("--pairs", folder, "--format", "trl", "--out", tmp_path / "out")
    result = call("--pairs", tmp_path / "out" / "pairs.jsonl", "--format", "axolotl", "--out", tmp_path / "out")
    assert isinstance(result.exception, InputError) and "which is read" in str(result.exception)


def test_responses_without_text_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"chosen or rejected is blank \(so of 4 of 4 pairs\)"):
        export_pairs(make_set(rejected=" "), "trl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_that_are_no_numbers_are_null(tmp_path):
    pairs = make_set()
    column = pa.array([float("nan"), float("inf"), 0.5, None])
    table = pairs.table.set_column(pairs.table.column_names.index("chosen_score"), "chosen_score", column)
    export_pairs(type(pairs)(table, pairs.accounting), "trl", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert [row["score_chosen"] for row in rows] == [None, None, 0.5, None]
