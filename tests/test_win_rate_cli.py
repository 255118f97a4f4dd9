"""`karma win-rate`: end to end with tiny judges here and behind a server, resumed after a kill, and bad input."""

import json
import signal
import subprocess
import sys
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.evaluation.protocol import write_statements
from karma.labels.pairwise import JUDGE_PROMPT
from karma.labels.win_rates import COLUMNS, VERDICTS
from karma.models.ask import CachedModel
from karma.models.describe import find_trained
from karma.models.load import load_model, load_tokenizer
from tests.chat_server import KEY, TINY
from tests.conftest import change_base, list_kept, start_child, wait_until

N = 6
PROMPTS = [f"Count to {k}." for k in range(1, N + 1)]
COMPUTE = change_base("compute", device="cpu", dtype="float32")
SAME = 3  # on this prompt two models' responses are the same


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_responses(folder, name, words, prompts=PROMPTS, **more):
    rows = [{"prompt": text, "response": "the same" if k == SAME else f"{words} " * (k + 1), **more}
            for k, text in enumerate(prompts)]  # fmt: skip
    return write_lines(folder / f"{name}.jsonl", rows)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A tiny random model in a folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-judge"
    load_model(TINY, "tiny").save_pretrained(folder)
    load_tokenizer(TINY, "tiny").save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path):
    return [write_responses(tmp_path, name, words) for name, words in (("red", "one"), ("blue", "two two"))]


def run(*arguments):
    options = ["--device", "cpu", "--dtype", "float32"]
    return CliRunner().invoke(app, ["win-rate", *map(str, arguments), *options], env={"COLUMNS": "200"})


def read(folder):
    return pd.read_parquet(folder / "verdicts.parquet"), pd.read_csv(folder / "win_rates.csv")


def test_a_tiny_judge_end_to_end(files, judge, tmp_path):
    out = tmp_path / "out"
    result = run(*files, "--judge", judge, "--out", out, "--batch-size", 4)
    assert result.exit_code == 0, result.output
    verdicts, rates = read(out)
    assert verdicts.columns.tolist() == VERDICTS and rates.columns.tolist() == COLUMNS
    assert len(verdicts) == 2 * N and set(verdicts["order"]) == {"ab", "ba"}
    (row,) = rates.to_dict("records")
    assert (row["model_a"], row["model_b"], row["n_prompts"], row["n_judged"], row["n_unread"]) == (
        "red",
        "blue",
        N,
        N,
        0,
    )
    assert row["judge_calls"] == 2 * (N - 1), "two equal responses need no judge"
    assert row["prompt_tokens"] > 1000 and row["seconds"] > 0
    wide = verdicts.pivot(index="prompt_id", columns="order", values="p_first")
    assert row["win_rate"] == pytest.approx(((wide["ab"] + 1 - wide["ba"]) / 2).mean())
    assert (wide == 0.5).all(axis=1).sum() == 1, "the equal responses"
    for name in ("win_rates.png", "win_rates.svg", "README.md", "accounting.json"):
        assert (out / name).stat().st_size > 500, name
    assert not (out / "ratings.csv").exists()
    card = (out / "README.md").read_text()
    assert "red.jsonl" in card and "tiny-judge" in card and f"{row['win_rate']:.4f}".rstrip("0") in card


def test_a_verdict_is_the_probability_of_a_against_b(files, judge, tmp_path):
    """One question again: the log-probabilities of the two statements from a model that knows nothing of win rates."""
    out = tmp_path / "out"
    run(*files, "--judge", judge, "--out", out)
    model = CachedModel(TINY, "tiny", COMPUTE, 1)
    red, blue = ([json.loads(line)["response"] for line in path.read_text().splitlines()] for path in files)
    text = model.apply_chat_template(
        [{"role": "user", "content": JUDGE_PROMPT.format(prompt=PROMPTS[1], first=blue[1], second=red[1])}]
    )
    space = "" if text[-1].isspace() else " "
    (a, _), (b, _) = model.backend.compare([(text, space + s) for s in write_statements({"options": ["", ""]})]).answers
    verdicts, _ = read(out)
    (found,) = verdicts[(verdicts["prompt_id"] == verdicts["prompt_id"].iloc[2]) & (verdicts["order"] == "ba")][
        "p_first"
    ]
    assert found == pytest.approx(expit(a - b), abs=1e-5)


def test_the_order_of_the_models_mirrors_the_rate_and_asks_nothing_again(files, judge, tmp_path):
    kept = ("--judge", judge, "--cache", tmp_path / "cache")
    first = run(*files, *kept, "--out", tmp_path / "one")
    second = run(*files[::-1], *kept, "--out", tmp_path / "two")
    assert f"{2 * (N - 1)} questions asked (0 kept" in first.output
    assert f"0 questions asked ({2 * (N - 1)} kept" in second.output
    one, two = (read(tmp_path / name)[1].iloc[0] for name in ("one", "two"))
    assert one["win_rate"] == pytest.approx(1 - two["win_rate"])
    assert one["length_controlled"] == pytest.approx(1 - two["length_controlled"], abs=1e-6)
    assert two["prompt_tokens"] == one["prompt_tokens"] and two["seconds"] == one["seconds"], (
        "what it cost is kept as well"
    )


def test_a_model_against_its_own_answers_is_even(judge, files, tmp_path):
    twin = write_lines(tmp_path / "twin.jsonl", [json.loads(line) for line in files[0].read_text().splitlines()])
    run(files[0], twin, "--judge", judge, "--out", tmp_path / "out")
    _, rates = read(tmp_path / "out")
    assert rates.loc[0, ["win_rate", "length_controlled", "n_ties", "judge_calls"]].tolist() == [0.5, 0.5, N, 0]


def test_three_models_have_ratings_and_a_third_one_asks_nothing_again(files, judge, tmp_path):
    out = tmp_path / "out"
    run(*files, "--judge", judge, "--out", out)
    result = run(*files, write_responses(tmp_path, "green", "three"), "--judge", judge, "--out", out)
    assert f"{4 * (N - 1)} questions asked ({2 * (N - 1)} kept from before)" in result.output, result.output
    ratings, (_, rates) = pd.read_csv(out / "ratings.csv"), read(out)
    assert sorted(ratings["model"]) == ["blue", "green", "red"] and len(rates) == 3
    assert ratings["rating"].sum() == pytest.approx(0, abs=1e-6)
    assert (ratings["low"] < ratings["rating"]).all() and (ratings["rating"] < ratings["high"]).all()
    run(*files, "--judge", judge, "--out", out)
    assert not (out / "ratings.csv").exists(), "two models have none: the old file goes"


def test_models_answer_the_prompts_themselves(judge, tmp_path):
    """Names of an experiment's models, one of them the judge itself; another run asks nobody."""
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"instruction": text} for text in PROMPTS])
    options = ("--experiment", "params/smoke.yaml", "--prompts", prompts, "--max-new-tokens", 6, "--temperature", 0)
    command = ("tiny-a", "tiny-b", *options, "--judge", "tiny-b", "--out", tmp_path / "out")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "note: the judge is tiny-b itself" in result.output
    _, rates = read(tmp_path / "out")
    books = json.loads((tmp_path / "out" / "accounting.json").read_text())
    assert books["models"]["tiny-a"]["responses"] + books["models"]["tiny-a"]["empty"] == N
    assert rates.loc[0, "n_prompts"] > 0 and rates.loc[0, "n_unread"] == 0
    again = run(*command)
    assert "tiny-a: 0 prompts answered (6 kept from before)" in again.output
    assert "judge: 0 questions asked" in again.output


def test_responses_in_parquet_and_in_alpaca_eval_s_json(judge, tmp_path):
    rows = [{"instruction": text, "output": f"one {k}", "generator": "x/One"} for k, text in enumerate(PROMPTS)]
    (tmp_path / "model_outputs.json").write_text(json.dumps(rows))
    pq.write_table(
        pa.table({"prompt": PROMPTS[1:], "response": [f"two {k}" for k in range(1, N)]}), tmp_path / "two.parquet"
    )
    run(tmp_path / "model_outputs.json", tmp_path / "two.parquet", "--judge", judge, "--out", tmp_path / "out")
    _, rates = read(tmp_path / "out")
    assert rates.loc[0, ["model_a", "model_b", "n_prompts"]].tolist() == ["x/One", "two", N - 1]


# --- a judge behind a server ----------------------------------------------------------------------------------------


def ask_server(files, address, out):
    return run(*files, "--judge", "tiny", "--base-url", address, "--key-env", "TEST_KEY", "--out", out,
               "--reply-tokens", 4, "--batch-size", 2)  # fmt: skip


def test_a_server_as_judge_writes_and_what_cannot_be_read_is_counted(server, files, tmp_path, monkeypatch):
    said = {}

    def answer(self, body):  # prefers the longer response; silent on the first prompt
        text = body["messages"][0]["content"]
        first, second = text.split("Response A: ")[1].split("\n\nResponse B: ")
        reply = (
            "I cannot say." if "Count to 1." in text else f"The answer is ({'A' if len(first) > len(second) else 'B'})."
        )
        said[text] = reply
        with self.server.lock:
            self.server.asked.append(body)
        return {"choices": [{"message": {"content": reply}}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}

    monkeypatch.setattr("tests.chat_server.Handler.answer", answer)
    out = tmp_path / "out"
    result = ask_server(files, server.base_url, out)
    assert result.exit_code == 0, result.output
    verdicts, rates = read(out)
    (row,) = rates.to_dict("records")
    assert (row["n_prompts"], row["n_judged"], row["n_unread"], row["judge_calls"]) == (N, N - 1, 2, 2 * (N - 1))
    assert row["prompt_tokens"] == 7 * 2 * (N - 1)
    assert row["consistency"] == 1.0 and row["n_ties"] == 1
    assert row["win_rate"] == pytest.approx(0.5 / (N - 1)), "blue is always longer; one tie"
    assert set(verdicts["reply"].dropna()) == set(said.values())
    assert "17% of the verdicts cannot be read" in result.output
    body = server.asked[0]
    assert (body["max_tokens"], body["temperature"]) == (4, 0)
    kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert KEY.encode() not in kept, "the key was stored"


def test_killing_and_starting_again_asks_only_what_is_missing(server, files, tmp_path):
    server.pause_s = 0.3
    with start_child(ask_server, files, server.base_url, tmp_path / "out") as child:
        wait_until(lambda: len(server.asked) >= 3 or not child.is_alive())
    assert child.exitcode == -signal.SIGKILL and not (tmp_path / "out" / "win_rates.csv").exists()
    server.pause_s = 0
    time.sleep(1)
    n_kept, n_before = len(list_kept(tmp_path / "out" / "cache")), len(server.asked)
    assert n_kept >= 2
    done = ask_server(files, server.base_url, tmp_path / "out")
    assert done.exit_code == 0, done.output
    n_left = 2 * (N - 1) - n_kept
    assert f"{n_left} questions asked ({n_kept} kept from before)" in done.output
    assert len(server.asked) - n_before == n_left
    assert read(tmp_path / "out")[1].loc[0, "prompt_tokens"] == 7 * 2 * (N - 1), "the cost of both runs"


# --- bad input ------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_with_exit_code_2(files, judge, tmp_path):
    command = [
        sys.executable,
        "-m",
        "karma.cli",
        "win-rate",
        *map(str, files),
        "--judge",
        "./nowhere",
        "--out",
        str(tmp_path),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.strip() == "karma: --judge ./nowhere: there is no such folder or file"


def refuse(message, *arguments):
    result = run(*arguments)
    assert isinstance(result.exception, InputError), result.output
    assert message in str(result.exception) and "\n" not in str(result.exception), str(result.exception)


def test_every_bad_input_is_named(files, judge, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("no_proxy", "*")
    a, b = files
    to = ("--judge", judge, "--out", tmp_path / "out")
    others = write_responses(tmp_path, "others", "one", [f"Name {k}." for k in range(N)])
    twice = write_lines(
        tmp_path / "twice.jsonl", [{"prompt": "Hi", "response": "a"}, {"prompt": "Hi ", "response": "b"}]
    )
    empty = write_lines(tmp_path / "empty.jsonl", [{"prompt": PROMPTS[0], "response": "  "}])
    mixed = write_lines(tmp_path / "mixed.jsonl", [{"prompt": p, "response": "a", "model": p} for p in PROMPTS])
    bare = write_lines(tmp_path / "bare.jsonl", [{"prompt": "Hi"}])
    same = write_responses(tmp_path, "same", "one", model="red")
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}, {"prompt": "Hi"}])
    broken = tmp_path / "broken.parquet"
    broken.write_text("no parquet")
    refuse("two models or more", a, *to)
    refuse("is given twice", a, a, *to)
    refuse("two models are called 'red'", a, same, *to)
    refuse("no common prompts", a, others, *to)
    refuse("twice.jsonl, row 2: prompt 'Hi' stands twice", a, twice, *to)
    refuse("empty.jsonl, row 1: the response to 'Count to 1.' is empty", a, empty, *to)
    refuse("responses of Count to 1. and Count to 2.", a, mixed, *to)
    refuse("bare.jsonl, row 1 has no response", a, bare, *to)
    refuse("broken.parquet cannot be read as parquet", a, broken, *to)
    refuse("prompts.jsonl, row 2: prompt 'Hi' stands twice", a, b, *to, "--prompts", prompts)
    refuse("gone.jsonl cannot be read: it does not exist", a, tmp_path / "gone.jsonl", *to)
    refuse("is to answer: give the prompts with --prompts", a, "smollm2-135m", *to)
    refuse("--tie 1.5", a, b, *to, "--tie", 1.5)
    refuse("is a file", a, b, "--judge", judge, "--out", a)
    refuse("a server's model needs --base-url", a, b, "--judge", "gpt-nowhere", "--out", tmp_path / "out")
    refuse("give its --base-url too", a, b, "--judge", "gpt", "--key-env", "KEY", "--out", tmp_path / "out")
    refuse(
        "no server answers at http://127.0.0.1:9/v1",
        a,
        b,
        "--judge",
        "gpt",
        "--base-url",
        "http://127.0.0.1:9/v1",
        "--out",
        tmp_path / "out",
    )
    refuse("--judge ./gone", a, b, "--judge", "./gone", "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "win_rates.csv").exists()


def test_a_trained_policy_is_found_by_its_folder(judge, tmp_path):
    """A study's run by its record, a whole model by its weights, an adapter by the base that it names."""
    assert find_trained(judge) is None
    folder = tmp_path / "seed0"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    specs, name = find_trained(folder)
    assert (name, specs[name]["path"]) == ("seed0", str(folder / "model"))
    params = {"policy": "tiny", "strategy": "k_sim", "method": "dpo", "seed": "0"}
    (folder / "provenance.json").write_text(json.dumps({"04_alignment_training": {"params": params, "models": TINY}}))
    for given in (folder, folder / "model"):
        specs, name = find_trained(given)
        assert name == "tiny/k_sim/dpo/0" and specs[name]["path"] == str(folder / "model")
    (folder / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    specs, name = find_trained(folder)
    assert (specs[name]["adapter"], specs[name]["base"]) == (str(folder / "model"), "tiny")
    (folder / "provenance.json").unlink()
    with pytest.raises(InputError, match="does not name its base model"):
        find_trained(folder)
    (folder / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(judge)}))
    specs, name = find_trained(folder)
    assert (specs[name]["base"], specs[str(judge)]["path"]) == (str(judge), str(judge))
