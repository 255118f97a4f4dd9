"""What is refused at the border beyond single bad values: options without effect, places that are read, damaged studies.

Each line is a command whose other arguments are good (`tests/bad_inputs.py`): nothing but what is said is wrong with it.
"""

import json
import os

import pytest
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from tests.bad_inputs import build_words, write_good
from tests.test_bad_inputs import take_stock


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("borders") / "good"
    folder.mkdir()
    write_good(folder)
    return folder


def refuse(good, folder, command, **changed):
    """Run a command that must refuse its arguments; return what it says, with nothing written beside it."""
    out = {"--out": str(folder / "out")} if "--out" not in changed and command != "read-scores" else {}
    words = build_words(command, good, {**out, **changed})
    before = take_stock(good), take_stock(folder)
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, InputError), (words, result.output)
    assert (take_stock(good), take_stock(folder)) == before and not result.stdout
    return str(result.exception)


ASKED = {"--answers": None, "--model": "@model", "--device": "cpu", "--dtype": "float32"}
TRAINED = {"--method": "dpo"}
IDLE = [
    ("evaluate", {"--protocol": "Cloze"}, "--protocol Cloze: choose from answer, logprob, cloze"),
    *(("evaluate", {f"--{name}": value}, f"--{name} means nothing with --answers: leave it out") for name, value in {
        "protocol": "cloze", "backend": "vllm", "device": "auto", "dtype": "float32", "threads": 2, "key-env": "a b",
        "base-url": "http://x/v1", "revision": "x", "batch-size": 2, "choice-tokens": 2, "descriptive-tokens": 2,
        "cache": "x"}.items()),
    ("evaluate", {**ASKED, "--revision": "a b"}, "--revision a b means nothing without a Hub model, which '"),
    ("train", {"--revision": "x"}, "--revision x means nothing without a Hub model, which '"),
    ("win-rate", {"--revision": "x"}, "--revision x means nothing without a Hub model, which '"),
    ("train", {**TRAINED, "--instructions": "@contaminated.jsonl"}, "--instructions means nothing with --method dpo, whi"),
    ("train", {**TRAINED, "-p": ["beta=0.1", "beta=0.2"]}, "-p beta=0.2: beta=0.1 is given already: give one of the two"),
    ("binarize", {"--stages": 3}, "--stages means nothing without --order curriculum: leave it out"),
    ("binarize", {"--rejected": "nope"}, "--rejected means nothing without --strategy rlaif or density_ratio"),
    ("binarize", {"--affinity-weight": 0.3}, "--affinity-weight means nothing without --strategy affinity"),
    ("binarize", {"--densities": "@densities.parquet"}, "--densities means nothing without --strategy density_ratio"),
    ("audit-labels", {"--annotation": "nope"}, "--annotation means nothing without a pool's own annotations"),
    ("binarize", {"--annotation": "mean_aspect"}, "--annotation means nothing without --strategy rlaif"),
    ("select", {"--columns": "nope"}, "--columns means nothing without --scores"),
    ("select", {"--missing": "drop_model"}, "--missing means nothing without --scores"),
    ("select", {"--weight": "2", "--metric": "random"}, "--weight means nothing without --metric m_ap"),
    ("audit-labels", {"--annotator": "x"}, "--annotator means nothing without AlpacaEval's results folder"),
    ("audit-labels", {"--answers": "@own_answers.jsonl"}, "--answers means nothing without judgments of single responses"),
    ("win-rate", {"--seed": 1}, "--seed means nothing where all responses are recorded: leave it out"),
    ("win-rate", {"--temperature": 0.5}, "--temperature means nothing where all responses are recorded"),
    ("report", {"--price": 3}, "--price means nothing without a measured study of its own: leave it out"),
    ("kinship", {"--weight": ["reasoning=1", "reasoning=2"]}, "--weight reasoning=2: 'reasoning' has a weight already"),
    ("kinship", {"--tau": "0_5"}, "--tau 0_5: expected a number in the digits 0 to 9, without a _"),
    ("kinship", {"--seed": "\u0663"}, "--seed \u0663: expected a number in the digits 0 to 9"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "changed", "message"), IDLE)
def test_an_option_that_changes_nothing_is_refused_by_name(good, tmp_path, command, changed, message):
    assert message in refuse(good, tmp_path, command, **changed)


def test_defaults_are_not_refused(good, tmp_path):
    """What was not typed means nothing either, and is no one's mistake."""
    result = CliRunner().invoke(app, build_words("evaluate", good, {"--out": str(tmp_path / "out")}))
    assert result.exception is None and (tmp_path / "out" / "scores.json").is_file()


MODEL = {"--model": "@model", "--answers": None}
WITHIN = [
    ("evaluate", {**MODEL, "--out": "@model"}, "model"), ("evaluate", {**MODEL, "--out": "@model/scores"}, "model"),
    ("evaluate", {**MODEL, "--cache": "@model/cache"}, "model"), ("evaluate", {"--out": "@items"}, "items"),
    ("train", {"--out": "@model/sft"}, "model"), ("train", {"--out": "@pairs"}, "pairs"),
    ("train", {"--method": "grpo", "--policy": "smollm2-135m", "--out": "@model/x",
               "-p": ["grpo.reward={reward_model: 1.0}", "grpo.reward_model=MODEL"]}, "model"),
    ("win-rate", {"--out": "@model/rates"}, "model"), ("win-rate", {"--cache": "@model"}, "model"),
    ("win-rate", {"A": "@model", "--judge": "smollm2-135m", "--out": "@model/rates"}, "model"),
    ("audit-labels", {"--judgments": "@study", "--out": "@study/labels"}, "study"),
    ("binarize", {"--decontaminate": "arc_easy", "--benchmark-data": "@items", "--out": "@items/pairs"}, "items"),
    ("export", {"--out": "@pairs/out"}, "pairs"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "changed", "read"), WITHIN)
def test_nothing_is_written_into_what_is_read(good, tmp_path, command, changed, read):
    changed = {k: [t.replace("MODEL", str(good / "model")) for t in v] if k == "-p" else v for k, v in changed.items()}
    option = "--cache" if "--cache" in changed else "--out"
    said = refuse(good, tmp_path, command, **changed)
    assert said.startswith(f"{option} {good}") and said.endswith(f"lies within {good / read}, which is read: give a folder "
                                                                 "elsewhere")  # fmt: skip


def test_a_table_that_is_read_is_not_overwritten(good, tmp_path):
    said = refuse(good, tmp_path, "read-scores", **{"--out": "@scores.csv"})
    assert said == f"--out {good / 'scores.csv'} is read, and would be overwritten: give another file"
    said = refuse(good, tmp_path, "kinship", **{"--out": str(good)})
    assert said.endswith(f"holds {good / 'scores.csv'}, which is read and would be overwritten: give another folder")


def make_link(folder):
    (folder / "it.csv").symlink_to(folder / "nowhere")


def make_loop(folder):
    (folder / "it.csv").symlink_to(folder / "it.csv")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_link, "a link to nothing"), (make_loop, "a link to itself"), (lambda f: os.mkfifo(f / "it.csv"), "a pipe"),
        (lambda f: (f / "it.csv").write_text("x"), "a file"),
    ],
)  # fmt: skip
def test_what_is_no_folder_is_called_what_it_is(good, tmp_path, make, kind):
    make(tmp_path)
    said = refuse(good, tmp_path, "export", **{"--out": str(tmp_path / "it.csv")})
    assert said == f"--out {tmp_path / 'it.csv'} is {kind}: give a folder to write to"
    if kind != "a file":
        said = refuse(good, tmp_path, "read-scores", **{"--out": str(tmp_path / "it.csv")})
        assert said == f"--out {tmp_path / 'it.csv'} is {kind}: give a file to write"


STUDY = "name: bad\nmodels: {a: {random: {hidden_size: 16, layers: 1, heads: 1}}}\npolicies: [a]\n"
ALL_BUT_ONE = ", ".join(["GPT-4", "GPT-3.5-turbo", "bard", "Vicuna-33b", "UltraLM-13b", "Llama-2-70b-chat", "Starchat",
                         "Llama-2-13b-chat", "Llama-2-7b-chat", "Wizardlm-70b", "Wizardlm-13b", "Wizardlm-7b", "Alpaca-7b",
                         "Pythia-12b", "Falcon-40b-instruct"])  # fmt: skip
NAMED = {
    "scores: {table: paper, columns: zz}": "scores.columns: column map zz does not exist: give a YAML file, or one of",
    "scores: {table: paper, columns: open_llm_leaderboard_v2}": "scores.columns: it means nothing with scores.table: paper",
    "scores: {table: params/base.yaml}": "params/base.yaml is no CSV file: give a table as .csv, 'paper' or",
    "scores: {table: paper}\npool: {source: ../x}": "pool.source: ../x does not exist: give a file, a folder or a Hub id",
    f"scores: {{table: paper}}\npool: {{excluded_origin_models: [{ALL_BUT_ONE}]}}":
        "pool.excluded_origin_models: 1 of 16 origin models are left, a pair needs two: exclude fewer",
    "scores: {table: paper}\nkinship: {weights: {nope: 1}}": "kinship.weights: 'nope' is no capability and no benchmark",
}  # fmt: skip


@pytest.mark.parametrize("text", NAMED)
def test_what_an_experiment_names_is_looked_at_before_anything_runs(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(STUDY + text + "\n")
    result = CliRunner().invoke(app, ["run", str(tmp_path / "mine.yaml"), "--dry-run"])
    said = str(result.exception)
    assert isinstance(result.exception, InputError) and said.startswith("mine.yaml: ") and NAMED[text] in said
    assert not result.stdout and "\n" not in said


def test_a_table_of_other_benchmarks_is_read_by_its_map(good, tmp_path):
    names = f"scores: {{table: {good / 'other.csv'}, columns: {good / 'columns.yaml'}}}\n"
    (tmp_path / "mine.yaml").write_text(STUDY + names)
    assert CliRunner().invoke(app, ["run", str(tmp_path / "mine.yaml"), "--dry-run"]).exception is None


FILES = [("audit-labels", "--answers"), ("audit-labels", "--annotations"), ("binarize", "--contaminated"),
         ("binarize", "--calibration"), ("train", "--instructions"), ("win-rate", "--prompts"), ("evaluate", "--answers")]  # fmt: skip


@pytest.mark.parametrize(("command", "option"), FILES)
def test_a_file_that_is_none_is_told_with_its_option(good, tmp_path, command, option):
    besides = {"--method": "rloo"} if command == "train" else {}
    said = refuse(good, tmp_path, command, **{**besides, option: "nope.jsonl"})
    assert said == f"{option} nope.jsonl cannot be read: it does not exist"


def test_rows_of_answers_are_told_by_their_own_schema(good, tmp_path):
    (tmp_path / "bans.jsonl").write_text("7\n")
    changed = {"--judgments": "@pool.jsonl", "--answers": str(tmp_path / "bans.jsonl")}
    said = refuse(good, tmp_path, "audit-labels", **changed)
    assert said == "bans.jsonl, row 1 is no object: expected origin_model, item_id, extracted"


@pytest.mark.parametrize("tie", ["1", "2", "1e300"])
def test_a_tie_that_leaves_nothing_decided_is_refused(good, tmp_path, tie):
    """Votes differ by 1 at most."""
    said = refuse(good, tmp_path, "audit-labels", **{"--tie": tie})
    assert (
        said.startswith(f"--tie {float(tie):g}: none of ")
        and " comparisons differs by more, the largest by 1: " in said
    )


@pytest.mark.parametrize("key", ["generator_1", "generator_2"])
def test_a_model_s_name_is_a_text(good, tmp_path, key):
    place = tmp_path / "results" / "a" / "weighted_alpaca_eval_gpt4_turbo"
    place.mkdir(parents=True)
    (place / "annotations.json").write_text(json.dumps([{"instruction": "a", key: 4, "preference": 1.5}]))
    said = refuse(good, tmp_path, "audit-labels", **{"--judgments": str(tmp_path / "results")})
    assert said == f"{place / 'annotations.json'}: {key} is 4, expected a text"
