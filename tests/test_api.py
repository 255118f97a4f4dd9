"""Models behind an OpenAI-compatible server, against a real local one; vLLM's process, with the harness's HFLM in it."""

import json
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError, KarmaError
from karma.evaluation.runner import evaluate, save_evaluation
from karma.files.places import find_project_root
from karma.models import api, engine
from karma.models.ask import CachedModel, ask, sample_responses
from karma.models.backends import VllmBackend
from karma.models.describe import describe_model
from karma.models.load import load_model, load_tokenizer
from karma.pool.generate import build_pool
from karma.study.experiment import load_experiment
from karma.study.sections import ModelSpec
from tests.chat_server import KEY, TINY
from tests.conftest import change_base, list_kept, start_child, wait_until

ROOT = find_project_root()
DEMO = ROOT / "karma" / "data" / "demo"
COMPUTE = change_base("compute", device="cpu", dtype="float32")
BENCHMARKS = change_base("benchmarks", folder=str(DEMO), limit=6, choice_tokens=6, descriptive_tokens=8)


def connect(server, cache=None, batch_size=3, key_env="TEST_KEY"):
    source = {"base_url": server.base_url, "model": "tiny", "key_env": key_env}
    return CachedModel({"far": ModelSpec(api=source).model_dump()}, "far", COMPUTE, batch_size, cache)


def test_a_server_answers_as_the_same_model_here(server):
    assert ask(connect(server), "Name a fruit.", 8) == ask(CachedModel(TINY, "tiny", COMPUTE, 1), "Name a fruit.", 8)
    body = server.asked[0]
    assert body["messages"] == [{"role": "user", "content": "Name a fruit."}]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny", 8, 0)


def test_an_evaluation_through_a_server(server, tmp_path):
    model = connect(server, tmp_path / "cache")
    scores, answers = evaluate(model, ["ifeval", "arc_easy"], BENCHMARKS, ROOT)
    near, _ = evaluate(CachedModel(TINY, "tiny", COMPUTE, 1), ["ifeval", "arc_easy"], BENCHMARKS, ROOT)
    assert {b: s["value"] for b, s in scores["benchmarks"].items()} == {
        b: s["value"] for b, s in near["benchmarks"].items()
    }
    assert (scores["backend"], scores["prompt_tokens"], scores["new_tokens"]) == ("api", 12 * 7, 12 * 3)
    again = connect(server, tmp_path / "cache", batch_size=5)  # how many at a time does not matter
    assert evaluate(again, ["ifeval", "arc_easy"], BENCHMARKS, ROOT)[1].equals(answers)
    assert (again.n_asked, again.n_cached, len(server.asked)) == (0, 12, 12)
    save_evaluation(scores, answers, tmp_path)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in kept, "the key was stored"


def test_a_server_that_counts_no_tokens(server):
    server.usage = False
    model = connect(server)
    ask(model, "Hi", 4)
    assert model.prompt_tokens is None and model.new_tokens is None


def test_a_busy_server_is_asked_again(server, capsys):
    server.troubles = [429, 503, "cut", 500]
    assert ask(connect(server), "Hi", 4) is not None
    assert len(server.asked) == 1 and not server.troubles
    assert "attempt 1 of 7" in capsys.readouterr().err


def test_a_server_that_stays_busy_is_an_error_and_what_was_answered_is_kept(server, tmp_path):
    how = change_base("pool", max_new_tokens=4, temperature=0, top_p=1)
    sample_responses(connect(server, tmp_path), ["one", "two"], how, 0)
    server.troubles = [503] * 7
    with pytest.raises(KarmaError, match=r"refused model 'tiny' \(HTTP 503\): .*busy"):
        sample_responses(connect(server, tmp_path, batch_size=1), ["one", "two", "three"], how, 0)
    again = connect(server, tmp_path)
    sample_responses(again, ["one", "two", "three"], how, 0)
    assert (again.n_asked, again.n_cached) == (1, 2)


def test_a_wrong_key_is_one_line_that_hides_it(server, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "sk-wrong-0815")
    with pytest.raises(KarmaError) as error:
        ask(connect(server, key_env="OTHER_KEY"), "Hi", 4)
    assert "HTTP 401" in str(error.value) and "OTHER_KEY" in str(error.value)
    assert "sk-wrong" not in str(error.value) and "***" in str(error.value)
    assert not server.asked


def test_a_missing_key_is_named(server, monkeypatch):
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(InputError, match="set the environment variable TEST_KEY"):
        connect(server)


def test_newer_servers_name_the_limit_otherwise(server):
    server.old_limit_refused = True
    ask(connect(server), "Hi", 4)
    assert server.asked[0]["max_completion_tokens"] == 4 and "max_tokens" not in server.asked[0]


def test_no_server_is_an_error_with_a_remedy(server, monkeypatch):
    monkeypatch.setattr(api, "N_ATTEMPTS", 2)
    server.server_close()
    server.shutdown()
    with pytest.raises(KarmaError, match="is the server running"):
        ask(connect(server), "Hi", 4)


def test_sampling_is_seeded_at_the_server_too(server):
    how = change_base("pool", max_new_tokens=4, temperature=0.7, top_p=0.9)
    sample_responses(connect(server), ["one", "two"], how, 0)
    sample_responses(connect(server), ["one", "two"], how, 0)
    seeds = [body["seed"] for body in sorted(server.asked, key=lambda b: b["messages"][0]["content"])]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert all((body["temperature"], body["top_p"]) == (0.7, 0.9) for body in server.asked)


def test_options_cannot_be_compared_through_a_server(server):
    with pytest.raises(InputError, match="gives no log-probabilities"):
        evaluate(connect(server), ["arc_easy"], BENCHMARKS, ROOT, protocol="logprob")


def test_an_api_model_has_no_weights_to_load(server):
    specs = {"far": ModelSpec(api={"base_url": server.base_url, "model": "tiny"}).model_dump()}
    for load in (load_model, load_tokenizer):
        with pytest.raises(InputError, match="behind an API"):
            load(specs, "far")
    assert describe_model(specs, "far") == (f"API tiny at {server.base_url}", "no key needed")


def write_experiment(folder, **changes):
    values = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text("utf-8"))
    values["models"]["far"] = {"api": {"base_url": "http://127.0.0.1:9/v1", "model": "m", "key_env": "TEST_KEY"}}
    for key, value in changes.items():
        node = values
        *path, last = key.split("__")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    (folder / "far.yaml").write_text(yaml.safe_dump(values), "utf-8")
    return folder / "far.yaml"


def test_an_experiment_declares_an_api_origin_model(tmp_path):
    path = write_experiment(tmp_path, origin_models=["tiny-a", "tiny-b", "far"])
    assert load_experiment(path).settings.models["far"].api.key_env == "TEST_KEY"


def test_a_judge_may_be_behind_an_api(tmp_path):
    settings = load_experiment(write_experiment(tmp_path, annotation__judge="far", win_rates__judge="far")).settings
    assert (settings.annotation.judge, settings.win_rates.judge) == ("far", "far")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": ["far"]}, "policies: 'far' is behind an API"),
        ({"self_play__scorer_model": "far"}, "self_play.scorer_model: 'far' is behind an API"),
        ({"models__kin": {"perturbed": "far", "noise": 0.1}}, "models.kin.perturbed: 'far' is behind an API"),
        ({"models__far__api__base_url": "http://me:sk-word@host/v1"}, "base_url"),
        ({"models__far__api__key_env": "sk-word"}, "key_env"),
        ({"models__far__api__modle": "m"}, "modle"),
    ],
)
def test_wrong_declarations_are_named_without_secrets(tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        load_experiment(write_experiment(tmp_path, **changes))
    assert message in str(error.value) and "sk-word" not in str(error.value)


def evaluate_twelve(address, out):
    return CliRunner().invoke(app, [
        "evaluate", "--model", "tiny", "--base-url", address, "--key-env", "TEST_KEY", "--benchmark", "arc_easy",
        "--benchmark-data", str(DEMO), "--limit", "12", "--choice-tokens", "4", "--batch-size", "2", "--out", str(out)])  # fmt: skip


def test_killing_and_starting_again_asks_only_what_is_left(server, tmp_path, monkeypatch):
    """A real kill -9 in the middle: what was answered and kept is not asked again."""
    monkeypatch.setenv("no_proxy", "*")
    server.pause_s = 0.3
    with start_child(evaluate_twelve, server.base_url, tmp_path) as child:
        wait_until(lambda: len(server.asked) >= 5 or not child.is_alive())
    assert child.exitcode == -signal.SIGKILL and not (tmp_path / "scores.json").exists()
    server.pause_s = 0
    time.sleep(1)
    n_kept, n_before = len(list_kept(tmp_path / "cache")), len(server.asked)
    assert n_kept >= 3
    done = evaluate_twelve(server.base_url, tmp_path)
    assert done.exit_code == 0, done.output[-2000:]
    assert f"{12 - n_kept} prompts asked ({n_kept} kept from before)" in done.output
    assert len(server.asked) - n_before == 12 - n_kept
    assert KEY not in done.output


class InItsProcess(VllmBackend):
    """vLLM's backend with the harness's HFLM in vLLM's place."""

    engine = "hf"

    def _open(self):
        from karma.models.worker import WorkerModel

        return WorkerModel("hf", {"pretrained": self.location[0], "dtype": "float32", "batch_size": 2, "device": "cpu"})


def save_tiny(folder):
    load_model(TINY, "tiny").save_pretrained(folder)
    load_tokenizer(TINY, "tiny").save_pretrained(folder)
    return {"tiny": ModelSpec(path=str(folder)).model_dump()}


def test_a_model_in_its_own_process_answers_the_same(tmp_path, capsys):
    specs = save_tiny(tmp_path)
    apart = CachedModel(specs, "tiny", COMPUTE, 2)
    apart.backend = InItsProcess(specs, "tiny", COMPUTE, 2)
    here = CachedModel(specs, "tiny", COMPUTE, 2)
    assert ask(apart, "Name a fruit.", 8) == ask(here, "Name a fruit.", 8)
    assert apart.backend.identity != here.backend.identity, "another engine's answers are not ours"
    pairs = [("Say", " a"), ("Say", " b")]
    for theirs, ours in zip(apart.backend.compare(pairs).answers, here.backend.compare(pairs).answers, strict=True):
        assert theirs == [pytest.approx(ours[0], abs=1e-4), ours[1]]
    worker, answer = apart.backend.inner, ask(here, "Name a city.", 8)
    worker._process.kill()
    assert ask(apart, "Name a city.", 8) == answer
    assert (
        capsys.readouterr().err.count("the model's process ended (exit code -9): out of memory or killed; started") == 1
    )
    worker._process.stdout = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        ask(apart, "Hi", 4)
    assert worker._process is None, "the answer that was not waited for would be taken for the next question's"
    worker._command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(KarmaError, match=r"exit code 3\): out of memory or killed, twice over the same question$"):
        ask(apart, "Hi", 4)


class Interrupted:
    """Someone presses Ctrl-C while an answer is waited for."""

    def readline(self):
        raise KeyboardInterrupt

    def close(self):
        pass


def test_without_vllm_its_backend_says_so(tmp_path, monkeypatch):
    model = CachedModel(save_tiny(tmp_path), "tiny", COMPUTE.model_copy(update={"backend": "vllm"}), 2)
    bare = Path(sys.base_prefix) / "bin" / "python3"  # has neither vLLM nor lm-evaluation-harness
    monkeypatch.setenv("KARMA_VLLM_PYTHON", str(bare))
    with pytest.raises(
        KarmaError, match=rf"No module named .* under {bare}: run `make vllm`, or name in KARMA_VLLM_PYTHON"
    ):
        ask(model, "Hi", 4)
    monkeypatch.setenv("KARMA_VLLM_PYTHON", "/nowhere/python")
    with pytest.raises(
        InputError, match="KARMA_VLLM_PYTHON is /nowhere/python, which is no program: give the whole path"
    ):
        ask(model, "Hi", 4)


def test_what_runs_beside_vllm_needs_nothing_of_the_kit():
    imported = {
        name.split(".")[0] for name in re.findall(r"^(?:import|from) (\S+)", Path(engine.__file__).read_text(), re.M)
    }
    assert (
        imported <= set(sys.stdlib_module_names) and "karma" not in Path(engine.__file__).read_text().split('"""', 2)[2]
    )


def test_a_made_up_model_cannot_be_given_to_vllm():
    with pytest.raises(InputError, match="made in memory"):
        CachedModel(TINY, "tiny", COMPUTE.model_copy(update={"backend": "vllm"}), 2)


def test_a_server_can_write_the_pool(server, tmp_path):
    path = write_experiment(tmp_path, origin_models=["tiny-a", "far"], pool__models_per_prompt=2, pool__max_new_tokens=3,
                            pool__n_prompts=None, models__far__api__base_url=server.base_url,
                            pool__instructions=str(tmp_path / "few.jsonl"))  # fmt: skip
    (tmp_path / "few.jsonl").write_text(json.dumps({"instruction": "Name a fruit."}) + "\n")
    experiment = load_experiment(path)
    job = SimpleNamespace(settings=experiment.settings, experiment=SimpleNamespace(root=ROOT, outputs=tmp_path / "out"),
                          models={n: s.model_dump(mode="json") for n, s in experiment.settings.models.items()})  # fmt: skip
    (row,) = build_pool(job)
    assert row["models"] == ["tiny-a", "far"] and len(server.asked) == 1


ODD_REPLIES = [
    b"", b"null", b"17", b'"text"', b"[]", b"{}", b"[1, 2]", b'{"choices": null}', b'{"choices": []}', b'{"choices": {}}',
    b'{"choices": [null]}', b'{"choices": [1]}', b'{"choices": [{}]}', b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": "text"}]}', b'{"choices": [{"message": {"content": 17}}]}',
    b'{"choices": [{"message": {"content": {"a": 1}}}]}', b'{"error": {"message": "no"}}', b"<html>busy</html>",
    b"\xff\xfe\x00", b"[" * 100_000, b'{"choices": [{"message": {"content": "x"}}], "n": ' + b"9" * 5000 + b"}",
    b'{"choices": [{"message": {"content": "x"}}', b"x" * (2**24 + 10),
]  # fmt: skip
ODD_AND_USABLE = {
    b'{"choices": [{"message": {"content": null}}]}': ("", None, None),
    b'{"choices": [{"message": {}}], "usage": []}': ("", None, None),
    b'{"choices": [{"message": {"refusal": "No."}}], "usage": "many"}': ("No.", None, None),
    b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}, 7]}}]}': ("ab", None, None),
    b'{"choices": [{"message": {"content": "half \\ud800"}}]}': ("half ?", None, None),
    b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "7", "completion_tokens": -1}}': ("x", None, None),
    b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": true, "completion_tokens": 1.5}}': ("x", None, None),
    b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}': ("x", 7, 3),
}  # fmt: skip


class _Odd(BaseHTTPRequestHandler):
    """Answers as its server is told: a body, or a redirection, or byte after byte."""

    def do_POST(self):
        self.server.asked.append(self.rfile.read(int(self.headers["Content-Length"])))
        code, headers, body = self.server.answer
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            for part in body if isinstance(body, list) else [body]:
                self.wfile.write(part)
                self.wfile.flush()
                time.sleep(0.05 * isinstance(body, list))

    def log_message(self, *args):
        pass


@pytest.fixture
def odd(monkeypatch):
    """A server that answers anything, and a way to ask it once."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(api, "_backoff", lambda state: 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Odd)
    server.daemon_threads, server.asked = True, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    backend = api.ApiBackend(
        "far", {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "model": "m", "key_env": None}
    )

    def ask_it(body, code=200, **headers):
        server.answer = code, {name.replace("_", "-"): value for name, value in headers.items()}, body
        return backend._ask('[{"role": "user", "content": "Hi"}]', {"max_gen_toks": 4}, 0)

    ask_it.server = server
    yield ask_it
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("body", ODD_REPLIES, ids=lambda body: body[:40].decode("latin-1"))
def test_an_odd_reply_is_one_line_and_asked_once(odd, body):
    with pytest.raises(KarmaError) as caught:
        odd(body)
    assert "127.0.0.1" in str(caught.value) and len(str(caught.value)) < 500
    assert len(odd.server.asked) == 1, "a reply that cannot be used is no reason to pay again"


@pytest.mark.parametrize("body", ODD_AND_USABLE, ids=lambda body: body[:60].decode("latin-1"))
def test_what_a_reply_says_is_taken_as_far_as_it_can_be_used(odd, body):
    assert odd(body) == ODD_AND_USABLE[body]


@pytest.mark.parametrize("place", ["http://127.0.0.2:9/steal", "/v1/elsewhere", "file:///etc/passwd"])
@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirection_is_not_followed_and_said(odd, place, code):
    with pytest.raises(KarmaError, match=r"redirects to .*, which is not followed"):
        odd(b"", code, Location=place)
    assert len(odd.server.asked) == 1


def test_a_reply_that_trickles_is_given_up(odd, monkeypatch):
    monkeypatch.setattr(api, "DEADLINE_S", 0.2)
    monkeypatch.setattr(api, "N_ATTEMPTS", 1)
    with pytest.raises(KarmaError, match=r"has not ended its answer after 0\.2 s"):
        odd([b" "] * 40)


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("7", 7.0), ("inf", None), ("nan", None), ("-3", 0.0), ("²", None),
                                               ("1e999", None), ("", None), ("soon", None), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0)])  # fmt: skip
def test_how_long_a_busy_server_asks_to_wait(text, seconds):
    assert api.read_retry_after(text) == seconds


def test_a_busy_server_s_date_is_waited_for():
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    assert 50 < api.read_retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60


@pytest.mark.parametrize(
    "url", ["http://", "http://h:99999/v1", "http://[::1/v1", "http://h:x/v1", "ftp://h/v1", "http://a b/v1"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="base_url"):
        ModelSpec(api={"base_url": url, "model": "m"})
