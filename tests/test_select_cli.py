"""`karma select`: what it writes, what it says, and one line for every bad input."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from karma.cli import app, main
from karma.errors import InputError
from karma.labels.sources import compute_capability
from karma.models.load import load_model, load_tokenizer
from karma.pairs.build import build_pairs
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import load_pairs, split_pairs
from karma.pairs.public_shape import load_binarized
from karma.pool.pool import load_pool
from karma.potential.margins import POOLS, RANKED_AS, RANKINGS, compute_potential
from karma.scores.names import canonical_model_name
from karma.scores.normalise import compute_s_pref
from karma.scores.read import load_score_table
from karma.study.sections import ModelSpec
from karma.vocabulary import METRICS
from tests.conftest import ROOT

WRITERS = ["gpt-4", "bard", "alpaca-7b", "starchat"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A tiny random model in a folder."""
    specs = {"tiny": ModelSpec(random={"hidden_size": 16, "layers": 1, "heads": 2}, seed=1).model_dump()}
    folder = tmp_path_factory.mktemp("models") / "tiny"
    load_model(specs, "tiny").save_pretrained(folder)
    load_tokenizer(specs, "tiny").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory):
    words = ["one", "two", "three", "four", "five", "six"]
    rows = [{"source": "s", "instruction": f"Count to {i}.", "completions": [
            {"model": m, "response": f"{m} says " + " ".join(words[: 1 + (i * k) % 6])} for k, m in enumerate(WRITERS, 1)]}
            for i in range(20)]  # fmt: skip
    pairs = build_pairs(load_pool(rows), load_score_table("paper"), "k_score", tau=0.1, seed=0)
    return save_pairs(pairs, tmp_path_factory.mktemp("pairs") / "k_score")


@pytest.mark.parametrize("name", ["", "pairs.parquet"])
def test_the_source_is_not_overwritten(pair_folder, policy, name):
    before = {path.name: path.read_bytes() for path in pair_folder.iterdir()}
    for out in (pair_folder, pair_folder / "." / "..", pair_folder.parent / "link"):
        if out.name == "link":
            out.symlink_to(pair_folder)
        found = CliRunner().invoke(app, ["select", "--pairs", str(pair_folder / name), "--policy", str(policy), "--ratio",
                                         "0.4", "--out", str(out / pair_folder.name if out.name == ".." else out)])  # fmt: skip
        assert isinstance(found.exception, InputError) and "which is read" in str(found.exception)
    (pair_folder.parent / "link").unlink()
    assert {path.name: path.read_bytes() for path in pair_folder.iterdir()} == before


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def public_rows(n=10):
    return [{"prompt": f"Count to {i}.", "chosen": "yes " * (i + 1), "rejected": "no " * (n - i),
             "metadata": {"score_chosen": 5.0 + i, "score_rejected": 5.0 - i % 3}} for i in range(n)]  # fmt: skip


def call(*arguments, ok=True):
    result = CliRunner().invoke(app, ["select", *map(str, arguments)])
    if ok and result.exception:
        raise result.exception
    return result


def test_a_pair_folder_keeps_its_format_and_its_books_balance(pair_folder, policy, tmp_path):
    result = call("--pairs", pair_folder, "--policy", policy, "--ratio", 0.4, "--out", tmp_path / "out")
    whole, kept = load_pairs(pair_folder), load_pairs(tmp_path / "out")
    assert len(kept) == int(0.4 * len(whole)) and kept.strategy == "k_score"
    assert kept.table.column_names == [*whole.table.column_names, "explicit_margin", "implicit_margin", "potential"]
    assert kept.accounting.dropped["not_selected"] == len(whole) - len(kept)
    assert kept.accounting.settings["metric"] == "m_ap" and kept.accounting.settings["policy"] == "tiny"
    chosen, rejected = (kept.table[f"{side}_score"].to_numpy() for side in ("chosen", "rejected"))
    assert kept.table["explicit_margin"].to_numpy() == pytest.approx(chosen - rejected)
    assert f"m_ap: {len(kept)} of {len(whole)} candidate pairs" in result.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Selected: 8 of 20 candidate pairs by `m_ap`" in card and "`potential` z(explicit)" in card
    assert str(tmp_path) not in card.split("Command:")[0]


def test_the_potential_is_that_of_the_whole_pool(pair_folder, policy, tmp_path):
    call("--pairs", pair_folder, "--policy", policy, "--ratio", 1.0, "--out", tmp_path / "all")
    call("--pairs", pair_folder, "--policy", policy, "--k", 5, "--weight", 1.0, "--out", tmp_path / "some")
    whole = load_pairs(tmp_path / "all").table.to_pandas().set_index("row_id")
    some = load_pairs(tmp_path / "some").table.to_pandas().set_index("row_id")
    potential = compute_potential(whole["explicit_margin"], whole["implicit_margin"], 1.0)
    assert whole["potential"].to_numpy() == pytest.approx(potential)
    assert some["potential"].equals(whole.loc[some.index, "potential"])
    assert set(some.index) == set(whole["potential"].nlargest(5).index)


def test_another_metric_asks_nothing_again_and_the_same_command_writes_the_same_bytes(pair_folder, policy, tmp_path):
    first = call("--pairs", pair_folder, "--policy", policy, "--ratio", 0.4, "--out", tmp_path / "a")
    assert "20 pairs asked (0 kept from before)" in first.output
    for name, extra in (("b", ()), ("c", ("--metric", "random"))):
        again = call("--pairs", pair_folder, "--policy", policy, "--ratio", 0.4, "--out", tmp_path / name,
                     "--cache", tmp_path / "a" / "cache", *extra)  # fmt: skip
        assert "0 pairs asked (20 kept from before)" in again.output
    assert (tmp_path / "a/pairs.parquet").read_bytes() == (tmp_path / "b/pairs.parquet").read_bytes()
    assert (tmp_path / "a/pairs.parquet").read_bytes() != (tmp_path / "c/pairs.parquet").read_bytes()


def test_several_sources_are_combined_and_named(policy, tmp_path):
    """The pairs' own S_pref and a capability's: by hand from both tables; one source of them is the plain option."""
    rows = [{"source": "s", "instruction": f"Count to {i}.", "completions": [
            {"model": m, "response": f"{m} says {i}"} for m in WRITERS]} for i in range(20)]  # fmt: skip
    pairs = build_pairs(load_pool(rows), load_score_table("paper"), "random", tau=0.1, seed=0)
    pair_folder = save_pairs(pairs, tmp_path / "random")
    asked = ("--pairs", pair_folder, "--policy", policy, "--ratio", 0.4, "--cache", tmp_path / "cache")
    both = ("--explicit", "score=1,kinship:knowledge=0.5", "--scores", "paper")
    for name, more in (("w", ()), ("p", ("--combine", "pareto"))):
        call(*asked, *both, *more, "--out", tmp_path / name)
    kept = load_pairs(tmp_path / "w")
    assert kept.accounting.settings["explicit"] == "1 score + 0.5 kinship:knowledge, by weights"
    assert load_pairs(tmp_path / "p").accounting.settings["explicit"].endswith("by pareto")
    whole = load_pairs(pair_folder).table
    known = compute_capability(load_score_table("paper"), "kinship:knowledge")
    known = {canonical_model_name(model): value for model, value in known.items()}
    ability = [np.array([known[canonical_model_name(m)] for m in whole[f"{side}_model"].to_pylist()])
               for side in ("chosen", "rejected")]  # fmt: skip
    own = np.abs(whole["chosen_score"].to_numpy() - whole["rejected_score"].to_numpy())
    z = [(m - m.mean()) / m.std() for m in (own, np.abs(ability[0] - ability[1]))]
    by_hand = dict(zip(whole["row_id"].to_pylist(), z[0] + 0.5 * z[1], strict=True))
    rows = kept.table.select(["row_id", "explicit_margin"]).to_pylist()
    assert [row["explicit_margin"] for row in rows] == pytest.approx([by_hand[row["row_id"]] for row in rows], abs=1e-8)
    call(*asked, "--explicit", "score=7", "--combine", "pareto", "--out", tmp_path / "one")
    call(*asked, "--out", tmp_path / "plain")
    assert load_pairs(tmp_path / "one").table.equals(load_pairs(tmp_path / "plain").table)


def test_kinship_margins_come_from_a_score_table_whoever_labelled(pair_folder, policy, tmp_path):
    call(
        "--pairs",
        pair_folder,
        "--policy",
        policy,
        "--k",
        4,
        "--explicit",
        "kinship",
        "--scores",
        "paper",
        "--out",
        tmp_path,
    )
    table = load_pairs(tmp_path).table.to_pandas()
    s_pref = compute_s_pref(load_score_table("paper"))
    s_pref.index = s_pref.index.str.casefold()
    expected = [s_pref[c] - s_pref[r] for c, r in zip(table["chosen_model"], table["rejected_model"], strict=True)]
    assert table["explicit_margin"].to_numpy() == pytest.approx(np.abs(expected))


def test_annotations_of_single_responses_give_the_margin(pair_folder, policy, tmp_path):
    table = load_pairs(pair_folder).table.to_pandas()
    scored = pa.table({"row_id": [*table["row_id"]] * 2, "response_id": [*table["chosen_id"], *table["rejected_id"]],
                       "score": [float(i) for i in range(20)] + [1.0] * 19 + [None]})  # fmt: skip
    pq.write_table(scored, tmp_path / "annotations.parquet")
    result = call("--pairs", pair_folder, "--policy", policy, "--ratio", 1.0, "--explicit", "annotation", "--annotations",
                  tmp_path / "annotations.parquet", "--out", tmp_path / "out")  # fmt: skip
    kept = load_pairs(tmp_path / "out")
    assert len(kept) == 19 and kept.accounting.dropped["no_explicit_margin"] == 1
    assert "note: 1 pairs are no candidates: a score is missing" in result.output
    assert kept.table["explicit_margin"].to_pylist() == [abs(i - 1.0) for i in range(19)]


def test_dpo_against_itself_is_the_explicit_baseline_and_says_so(pair_folder, policy, tmp_path, monkeypatch, capsys):
    words = ["--pairs", pair_folder, "--policy", policy, "--k", 4, "--implicit", "dpo", "--reference", policy]
    monkeypatch.setattr(sys, "argv", ["karma", "select", *map(str, words), "--out", str(tmp_path / "a")])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err.splitlines()
    assert not ended.value.code
    assert "karma: note: the implicit margin is the same for all 20 pairs: it says nothing here and counts as 0" in said
    call("--pairs", pair_folder, "--policy", policy, "--k", 4, "--metric", "explicit_large", "--out", tmp_path / "b")
    ids = [load_pairs(tmp_path / name).table["row_id"].to_pylist() for name in "ab"]
    assert ids[0] == ids[1]


def test_a_policy_that_gives_no_probabilities_is_said_and_leaves_nothing(pair_folder, policy, tmp_path):
    """Its weights are numbers, so that only its answers tell."""
    shutil.copytree(policy, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.norm.weight"][:], weights["model.embed_tokens.weight"][:] = (
        3e38,
        100.0,
    )  # finite; the answers are not
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    found = call("--pairs", pair_folder, "--policy", tmp_path / "broken", "--k", 4, "--out", tmp_path / "a", ok=False)
    assert isinstance(found.exception, InputError) and "none of 20 pairs is a candidate (20: " in str(found.exception)
    assert not (tmp_path / "a").exists()


def test_the_public_shape_with_every_flaw(policy, tmp_path):
    """Empty, equal and unscored pairs are counted; conversations and texts read alike; equal scores stay, with a note."""
    rows = public_rows(8)
    rows[0]["metadata"]["score_rejected"] = 5.0
    rows[1]["rejected"] = "  "
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[3]["metadata"] = {}
    rows[4] = {"prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a b"}],
               "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "c"}],
               "score_chosen": 9, "score_rejected": 2}  # fmt: skip
    rows[5]["metadata"]["score_chosen"] = float("nan")
    path = write_rows(tmp_path / "rows.jsonl", rows)
    result = call("--pairs", path, "--policy", policy, "--ratio", 1.0, "--out", tmp_path / "out")
    kept = load_pairs(tmp_path / "out")
    dropped = kept.accounting.dropped
    assert dropped == {"empty_text": 1, "identical_responses": 1, "no_explicit_margin": 2}
    assert len(kept) == 4 and kept.accounting.rows_in == 8 and kept.strategy == "binarized"
    assert "1 candidates have an explicit margin of 0" in result.output
    row = kept.table.to_pylist()[1]
    assert row["prompt"] == [{"role": "user", "content": "Hi"}] and row["explicit_margin"] == 7
    assert row["chosen"] == [{"role": "assistant", "content": "a b"}]
    pq.write_table(pa.Table.from_pylist(rows[6:]), tmp_path / "rows.parquet")
    assert load_binarized(tmp_path / "rows.parquet").table["chosen"] == kept.table["chosen"].slice(2)


def test_a_renamed_file_draws_the_same_pairs(real_data, tmp_path):
    original = real_data / "ultrafeedback_binarized_300.jsonl"
    (tmp_path / "renamed.jsonl").write_bytes(original.read_bytes())
    one, two = (load_binarized(path) for path in (original, tmp_path / "renamed.jsonl"))
    assert one.table["row_id"] == two.table["row_id"] and len(set(one.table["row_id"].to_pylist())) > 290
    held = [split_pairs(pairs, 0.2, seed=0)[1].table["row_id"].to_pylist() for pairs in (one, two)]
    assert held[0] == held[1] and set(two.table["source"].to_pylist()) == {"renamed"}


def test_what_karma_writes_in_the_public_shape_reads_back(pair_folder, tmp_path):
    from karma.pairs.public_shape import build_binarized

    pairs = load_pairs(pair_folder).table
    pq.write_table(build_binarized(pairs), tmp_path / "b.parquet")
    again = load_binarized(tmp_path / "b.parquet").table
    assert all(again[c].to_pylist() == pairs[c].to_pylist() for c in ("prompt", "chosen", "rejected", "chosen_score"))


BASE = ("--policy", "POLICY", "--out", "OUT")
FILE = ("--pairs", "FILE")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*FILE, "--metric", "map", "--k", 1), "--metric map: choose from random, explicit_large"),
        ((*FILE, "--ratio", 0.5, "--k", 1), "give either --ratio or --k"),
        ((*FILE,), "give either a ratio or k"),
        ((*FILE, "--ratio", 1.5), "ratio is 1.5: expected a share above 0, up to 1"),
        ((*FILE, "--k", 11), "k = 11 cannot be selected from 10 candidate pairs"),
        ((*FILE, "--k", 1, "--weight", -1), "weight is -1.0"),
        ((*FILE, "--k", 1, "--dtype", "float8"), "--dtype float8: choose from auto, float32, bfloat16"),
        ((*FILE, "--k", 1, "--implicit", "dpo"), "--implicit dpo and --reference belong together"),
        ((*FILE, "--k", 1, "--reference", "x"), "--implicit dpo and --reference belong together"),
        ((*FILE, "--k", 1, "--implicit", "dpo", "--reference", "x", "--metric", "m_ap_signed"), "leave out --implicit dpo"),
        ((*FILE, "--k", 1, "--explicit", "score=1,love=1"), "--explicit score=1,love=1: choose from score, kinship"),
        ((*FILE, "--k", 1, "--explicit", "score=1,annotation=1"), "--explicit annotation and --annotations belong together"),
        ((*FILE, "--k", 1, "--explicit", "score=x"), "'x' is no weight: give a number above 0"),
        ((*FILE, "--k", 1, "--combine", "sum"), "--combine sum: choose from weights, pareto"),
        ((*FILE, "--k", 1, "--explicit", "kinship"), "--explicit kinship and --scores belong together"),
        ((*FILE, "--k", 1, "--explicit", "kinship", "--scores", "paper"), "none of 10 pairs has usable texts and an explicit"),
        ((*FILE, "--k", 1, "--explicit", "annotation"), "--explicit annotation and --annotations belong together"),
        ((*FILE, "--k", 1, "--implicit", "dpo", "--reference", "./none"), "--reference ./none: there is no such folder"),
        ((*FILE, "--k", 1, "--implicit", "loss"), "--implicit loss: choose from absolute, signed, dpo"),
        (("--pairs", "nowhere.jsonl", "--k", 1), "nowhere.jsonl cannot be read: it does not exist"),
        (("--pairs", "pairs.csv", "--k", 1), "expected a pair folder, or a .jsonl, .json or .parquet file"),
        (("--pairs", "OUT", "--k", 1), "which is read: give a folder elsewhere"),
    ],
)  # fmt: skip
def test_bad_options_end_before_a_model_loads(policy, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("karma.potential.logps.load_model", lambda *a: pytest.fail("a model was loaded"))
    (tmp_path / "out").mkdir()
    places = {"POLICY": policy, "OUT": tmp_path / "out", "FILE": write_rows(tmp_path / "rows.jsonl", public_rows())}
    with pytest.raises(InputError, match=message):
        call(*(places.get(a, a) for a in (*arguments, *BASE)))
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "row 1 has no 'rejected'; it has prompt, chosen"),
        ("pair", "row 1 is str, expected an object"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "row 1: prompt and chosen must be texts, or lists of"),
        ({"chosen": "a", "rejected": "b"}, "row 1: expected a prompt by the user"),
        ({"prompt": "a", "rejected": "b", "chosen": [{"role": "user", "content": "x"}]}, "chosen answer by the assistant"),
        ({"chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
          "rejected": [{"role": "user", "content": "z"}, {"role": "assistant", "content": "y"}]}, "answer different prompts"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_pair_is_named(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        load_binarized(write_rows(tmp_path / "rows.jsonl", [row]))


def test_a_selection_is_not_selected_from_again(pair_folder, policy, tmp_path):
    call("--pairs", pair_folder, "--policy", policy, "--k", 9, "--out", tmp_path / "a")
    with pytest.raises(InputError, match="is itself a selection"):
        call("--pairs", tmp_path / "a", "--policy", policy, "--k", 3, "--out", tmp_path / "b")


def test_every_metric_has_a_ranking():
    assert {RANKED_AS.get(name, name) for name in METRICS} == set(RANKINGS)
    assert set(RANKINGS) <= set(METRICS) and set(RANKED_AS) | set(POOLS) <= set(METRICS)


def test_errors_are_one_line_with_exit_code_2(tmp_path):
    command = [
        sys.executable,
        "-m",
        "karma.cli",
        "select",
        "--pairs",
        "none.jsonl",
        "--policy",
        "x",
        "--k",
        "1",
        "--out",
        "o",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (
        result.returncode == 2
        and result.stderr.count("\n") == 1
        and "karma: none.jsonl cannot be read" in result.stderr
    )


def test_real_public_pairs_are_read_and_counted(real_data):
    pairs = load_binarized(real_data / "ultrafeedback_binarized_300.jsonl")
    equal = sum(
        a == b for a, b in zip(*(pairs.table[f"{s}_score"].to_pylist() for s in ("chosen", "rejected")), strict=True)
    )
    assert len(pairs) == 300 and equal == 34
