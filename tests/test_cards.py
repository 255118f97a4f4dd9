"""Model cards as a source of lineage: what they declare is read, and what is odd about them is one line."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.kinship.lineage import compute_data_kinship, compute_origin_kinship, trace_lineage
from karma.scores.cards import Card, load_cards
from karma.scores.read import load_score_table

TABLE = "Model,Law,Poems\norg/son,10,20\norg/father,20,40\norg/mother,30,15\norg/other,5,5\n"


def write_card(folder, text):
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(text)


def test_a_folder_of_cards_becomes_lineage(tmp_path):
    write_card(tmp_path / "cards" / "org" / "son", "---\nbase_model:\n- org/father\n- org/mother\nbase_model_relation: merge\n"
               "datasets: [org/a, org/b]\n---\n# Son")  # fmt: skip
    write_card(
        tmp_path / "cards" / "models--org--other" / "snapshots" / "1",
        "---\nbase_model: org/father\ndatasets: org/a\n---\n",
    )
    write_card(tmp_path / "cards" / "org" / "mother", "# No front matter")
    assert load_cards(tmp_path / "cards") == {"org/son": Card(("org/father", "org/mother"), True, ("org/a", "org/b")),
                                              "org/other": Card(("org/father",), False, ("org/a",)), "org/mother": Card()}  # fmt: skip
    (tmp_path / "my.csv").write_text(TABLE)
    words = [
        "read-scores",
        str(tmp_path / "my.csv"),
        "--cards",
        str(tmp_path / "cards"),
        "--out",
        str(tmp_path / "t.csv"),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "3 model cards, of 3 of the 4 models" in result.output
    table = load_score_table(tmp_path / "t.csv")
    lineage = trace_lineage(table)
    assert lineage.sons[["son", "father", "merged"]].values.tolist() == [
        ["org/son", "org/father", True], ["org/son", "org/mother", True], ["org/other", "org/father", False]]  # fmt: skip
    assert compute_origin_kinship(lineage).loc["org/son"].tolist() == [1, 0.5, 0.5, 0.25]
    shared = compute_data_kinship(table)
    assert shared.loc["org/son", "org/other"] == 0.5 and pd.isna(shared.loc["org/son", "org/father"])


def test_the_hub_s_json_is_read(tmp_path):
    rows = [
        {"modelId": "org/a", "cardData": {"base_model": "org/b", "base_model_relation": "finetune"}},
        {"id": "org/b", "cardData": None},
    ]
    (tmp_path / "cards.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_cards(tmp_path / "cards.jsonl") == {"org/a": Card(("org/b",)), "org/b": Card()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_model: [", "front matter cannot be read"),
        ("- a", "front matter cannot be read"),
        (
            "base_model: <script>alert(1)</script>",
            "base_model is '<script>alert(1)</script>', expected organisation/name",
        ),
        ("base_model: 3", "base_model is a int, expected organisation/name"),
        ("base_model: {a: b}", "base_model is a dict, expected"),
        ("datasets: ['a; b']", "datasets is 'a; b', expected"),
        ("x: !!python/object/apply:os.system [echo]", "front matter cannot be read"),
        ("base_model: ../../etc/passwd", "base_model is '../../etc/passwd', expected"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nbase_model: [*b, *b]", "base_model is a list, expected"),
    ],
)
def test_bad_cards_are_one_line(tmp_path, text, message):
    write_card(tmp_path / "org" / "a", f"---\n{text}\n---\n")
    with pytest.raises(InputError) as error:
        load_cards(tmp_path)
    assert (
        str(error.value).startswith("org/a/README.md: ")
        and message in str(error.value)
        and "\n" not in str(error.value)
    )


def test_no_cards_and_two_of_one_model(tmp_path):
    with pytest.raises(InputError, match=r"holds no model card: give a folder of README.md files, or JSON lines"):
        load_cards(tmp_path)
    (tmp_path / "c.jsonl").write_text('{"id": "a/b"}\n{"id": "a/b"}')
    with pytest.raises(InputError, match=r"c.jsonl, line 2: 'a/b' has two cards"):
        load_cards(tmp_path / "c.jsonl")
