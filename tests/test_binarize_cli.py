"""`karma binarize`: what it writes, what it says, and one line with exit code 2 for every bad input."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from karma import vocabulary
from karma.cli import app
from karma.errors import InputError
from karma.pairs.accounting import DROPPED
from karma.pairs.pairs import load_pairs
from karma.study.experiment import load_base

STRATEGIES = [name for name in vocabulary.STRATEGIES if name != "density_ratio"]  # `all` without --densities
MODELS = ["GPT-4", "bard", "Alpaca-7b", "Starchat", "UltraLM-65b"]


def make_row(i, models=MODELS):
    answers = [
        {"model": m, "response": f"{m} on {i}", "overall_score": float(len(m) + k)} for k, m in enumerate(models)
    ]
    return {
        "source": "truthful_qa" if i == 7 else "own",
        "instruction": f"Question {i}?",
        "completions": answers,
    }


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(make_row(i)) + "\n" for i in range(20)))
    return path


def call(*arguments, ok=True):
    """Run the command in this process; return its output, or raise what `karma` would print in one line."""
    result = CliRunner().invoke(app, ["binarize", *map(str, arguments)])
    if ok and result.exception:
        raise result.exception
    return result


def test_other_benchmarks_need_their_column_map_and_the_remedy_exists(pool, tmp_path):
    table = tmp_path / "scores.csv"
    table.write_text("who,GSM8K\n" + "".join(f"{m},{10 * k + 5}\n" for k, m in enumerate(MODELS[:-1])))
    words = ["--pool", pool, "--strategy", "k_score", "--scores", table, "--tau", "-1"]
    refused = call(*words, "--out", tmp_path / "out", ok=False)
    assert "origin_model" in str(refused.exception)
    (tmp_path / "map.yaml").write_text(
        "origin_model: [who]\nbenchmarks:\n"
        "  gsm8k: {column: GSM8K, unit: percent, title: GSM8K, capability: reasoning, answer_form: descriptive}\n"
    )
    call(*words, "--columns", tmp_path / "map.yaml", "--out", tmp_path / "out")
    assert {p["chosen_model"] for p in load_pairs(tmp_path / "out").table.to_pylist()} == {"starchat"}


def test_one_strategy(pool, tmp_path):
    result = call("--pool", pool, "--strategy", "k_sim", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "k_sim: 20 pairs of 20 rows" in result.output and "20 unused: its origin model is excluded" in result.output
    pairs = load_pairs(tmp_path / "out")
    assert len(pairs) == 20 and pairs.accounting.settings["excluded_origin_models"] == ["ultralm-65b"]


def test_all_strategies_share_one_pass(pool, tmp_path):
    call("--pool", pool, "--strategy", "all", "--match-rows", "--out", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(STRATEGIES)
    ids = [load_pairs(tmp_path / "out" / s).table["row_id"].to_pylist() for s in STRATEGIES]
    assert all(i == ids[0] for i in ids)


def test_defaults_are_those_of_base_yaml(pool, tmp_path):
    call("--pool", pool, "--strategy", "k_sim", "--out", tmp_path / "out")
    base, settings = load_base(), load_pairs(tmp_path / "out").accounting.settings
    assert (settings["tau"], settings["seed"], settings["rejected"]) == (
        base.kinship.tau,
        base.pairs.seed,
        base.pairs.rejected,
    )
    help_text = CliRunner().invoke(app, ["binarize", "--help"]).output
    assert f"[default: {base.kinship.tau}]" in help_text and "ultralm-65b" in help_text


def test_curriculum_exports_and_filters(pool, tmp_path):
    bad = tmp_path / "seen.txt"
    bad.write_text("question 3?\n")
    call(
        "--pool",
        pool,
        "--strategy",
        "random",
        "--out",
        tmp_path / "out",
        "--order",
        "curriculum",
        "--stages",
        2,
        "--drop-truthfulqa",
        "--contaminated",
        bad,
        "--also",
        "binarized",
        "--also",
        "datasets",
    )
    pairs = load_pairs(tmp_path / "out")
    assert dict(+pairs.accounting.dropped) == {"truthfulqa": 1, "contaminated": 1}
    assert set(pairs.table["stage"].to_pylist()) == {1, 2}
    assert {"binarized.parquet", "dataset"} <= {p.name for p in (tmp_path / "out").iterdir()}
    call("--pool", pool, "--strategy", "random", "--out", tmp_path / "out")
    assert "binarized.parquet" not in {p.name for p in (tmp_path / "out").iterdir()}, (
        "an export of the earlier set stayed"
    )


def test_excluded_by_licence(pool, tmp_path):
    call("--pool", pool, "--strategy", "k_score", "--exclude-licence", "vendor", "--out", tmp_path / "out")
    assert set(load_pairs(tmp_path / "out").table["chosen_model"].to_pylist()) == {"alpaca-7b"}


def test_the_card_names_the_command(pool, tmp_path):
    environment = {**os.environ, "COLUMNS": "200"}
    arguments = ["binarize", "--pool", "pool.jsonl", "--strategy", "k_sim", "--out", "out"]
    subprocess.run([sys.executable, "-m", "karma.cli", *arguments], cwd=tmp_path, env=environment, check=True)
    assert f"Command: `karma {' '.join(arguments)}`" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_nothing_heavy_is_imported(pool, tmp_path):
    code = (
        "import sys; from karma.cli import app; "
        f"app({['binarize', '--pool', str(pool), '--strategy', 'k_sim', '--out', str(tmp_path / 'out')]}, "
        "standalone_mode=False); "
        "print(sorted({'torch', 'transformers', 'matplotlib'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.endswith(
        "[]\n"
    )


BAD_SCORES = {  # name -> content, what the error names
    "nan.csv": ("origin_model,ifeval,arc_easy\nGPT-4,nan,0.9\nbard,0.5,0.6\n", "nan.csv"),
    "duplicate.csv": ("origin_model,ifeval,ifeval\nGPT-4,0.4,0.9\nbard,0.5,0.6\n", "ifeval"),
    "empty.csv": ("", "empty.csv"),
    "text.csv": ("origin_model,ifeval\nGPT-4,good\nbard,bad\n", "good"),
    "strangers.csv": ("origin_model,ifeval,arc_easy\nx,0.4,0.9\ny,0.5,0.6\n", "'gpt-4' has no scores"),
}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--strategy", "k_best"], "strategy 'k_best' is unknown"),
        (["--strategy", "k_sim", "--tau", "7"], "tau is 7.0"),
        (["--strategy", "k_sim", "--max-length-ratio", "0.5"], "max_length_ratio is 0.5"),
        (["--strategy", "k_sim", "--tau", "0.999"], "k_sim: no pair from 20 rows"),
        (["--strategy", "k_sim", "--order", "random"], "--order random: choose pool or curriculum"),
        (["--strategy", "k_sim", "--stages", "2"], "--stages means nothing without --order curriculum"),
        (["--strategy", "k_sim", "--match-rows"], "--match-rows compares strategies"),
        (["--strategy", "k_sim", "--expect", "no_prompt"], "--expect means nothing without --strict"),
        (["--strategy", "k_sim", "--strict"], "lost as 'excluded_origin_model': 20"),
        (["--strategy", "k_sim", "--also", "csv"], "--also csv: choose from binarized, datasets"),
        (
            ["--strategy", "k_sim", "--exclude-licence", "gpl"],
            "--exclude-licence gpl: choose from vendor, llama-2",
        ),
        (["--strategy", "all", "--push-to-hub", "me/x"], "--push-to-hub takes one strategy"),
        (["--strategy", "k_sim", "--scores", "nowhere.csv"], "nowhere.csv does not exist"),
        (["--strategy", "k_sim", "--revision", "abc"], "a revision belongs to a Hub id"),
        (["--strategy", "rlaif", "--annotation", "mean_aspect"], "rlaif: no response has an annotation"),
        (["--strategy", "rlaif", "--annotation", "mark"], "annotation field 'mark'"),
        (["--strategy", "rlaif", "--annotations", "nowhere.parquet"], "nowhere.parquet cannot be read"),
        (["--strategy", "k_sim", "--contaminated", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--strategy", "k_sim", "--exclude-model", "none"], "'ultralm-65b' has no scores"),
        (["--strategy", "k_sim", "--engine", "dask"], "--engine dask: choose local or ray"),
        (["--strategy", "k_sim", "--cores", "0"], "--cores 0: give 1 or more"),
        (["--strategy", "k_sim", "--engine", "ray", "--cores", "2"], "--cores means nothing with --engine ray"),
        (["--strategy", "k_sim", "--address", "auto"], "--address means nothing without --engine ray"),
        *((["--strategy", "k_sim", "--scores", name], message) for name, (_, message) in BAD_SCORES.items()),
    ],
)
def test_bad_options(pool, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, (content, _) in BAD_SCORES.items():
        (tmp_path / name).write_text(content)
    before = sorted(p.name for p in tmp_path.iterdir())
    error = call("--pool", pool, "--out", "out", *arguments, ok=False).exception
    assert isinstance(error, InputError), error
    assert error.exit_code == 2 and message in str(error) and "\n" not in str(error)
    assert sorted(p.name for p in tmp_path.iterdir()) == before, "something was left behind"


def test_a_pool_of_strangers_names_one(tmp_path):
    (tmp_path / "pool.jsonl").write_text(json.dumps(make_row(0, ["unheard-of", "never-met"])) + "\n")
    error = call(
        "--pool", tmp_path / "pool.jsonl", "--strategy", "k_sim", "--out", tmp_path / "out", ok=False
    ).exception
    assert isinstance(error, InputError) and "has no scores in the score table" in str(error)
    assert not (tmp_path / "out").exists()


def test_out_is_a_file(pool, tmp_path):
    (tmp_path / "out").write_text("mine")
    error = call("--pool", pool, "--strategy", "k_sim", "--out", tmp_path / "out", ok=False).exception
    assert isinstance(error, InputError) and "is a file" in str(error)
    assert (tmp_path / "out").read_text() == "mine"


def test_one_line_and_exit_code_2_from_the_shell(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"instruction": "x", "compl')
    command = [
        sys.executable,
        "-m",
        "karma.cli",
        "binarize",
        "--pool",
        "pool.jsonl",
        "--strategy",
        "k_sim",
        "--out",
        "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "line 1 is not valid JSON" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["pool.jsonl"]


def test_every_reason_has_words():
    assert all(len(text) > 10 for text in DROPPED.values())
