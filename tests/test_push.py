"""`karma push`: a study's pairs, pool and models, sent over HTTP to a stand-in of the Hub."""

import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.pairs.folder import save_pairs
from karma.pairs.hub import describe_error, plan_uploads
from tests.conftest import CALL_LIMIT
from tests.hub_server import TOKEN, HubServer
from tests.test_training import make_pairs, settings, train_tiny
from tests.test_turns import PROMPTS, make_set, say


@pytest.fixture
def hub():
    server = HubServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study's folder: two strategies' pairs, a pool, a trained model."""
    folder = tmp_path_factory.mktemp("outputs") / "mine"
    for name, prompts in (("k_sim", PROMPTS), ("rlaif", [say("u", f"Count to {k}.") for k in range(7)])):
        save_pairs(make_set(prompts), folder / "pairs" / name)
    (folder / "pool").mkdir()
    pq.write_table(pa.table({"instruction": ["a", "b", "c"]}), folder / "pool" / "pool.parquet")
    pairs = make_pairs(4)
    train_tiny(pairs, pairs, "sft", settings(), folder / "runs" / "tiny" / "k_sim" / "sft" / "seed0")
    return folder


def call(hub, tmp_path, *arguments, token=TOKEN):
    """Run the command in a process of its own that finds the stand-in where the Hub would be."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
                   "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    environment.pop("KARMA_FORKS", None)
    return subprocess.run([sys.executable, "-m", "karma.cli", "push", *map(str, arguments)], env=environment, text=True,
                          capture_output=True, timeout=CALL_LIMIT, check=False)  # fmt: skip


def unpack(files, folder):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_every_strategy_is_a_configuration_of_one_data_set(hub, study, tmp_path):
    done = call(hub, tmp_path, "--study", study, "--repo", "me/mine", "--models")
    assert done.returncode == 0, done.stderr
    model = "me/mine-tiny-k_sim-sft-seed0"
    assert hub.repositories == {"dataset/me/mine": "private", f"model/{model}": "private"}, "and no others"
    (name, files), (own, weights) = hub.commits
    assert (name, own) == ("dataset/me/mine", f"model/{model}"), "one commit a repository"
    *sent, then = done.stdout.splitlines()
    assert sent == [f"dataset me/mine: {len(files)} files", f"model {model}: {len(weights)} files"]
    assert then.startswith('next: datasets.load_dataset("me/mine")')
    local = unpack(files, tmp_path / "got")
    for config, n in (("k_sim", 4), ("rlaif", 7), ("pool", 3)):
        assert datasets.load_dataset(str(local), config, split="train", cache_dir=str(tmp_path / "cache")).num_rows == n
    default = datasets.load_dataset(str(local), split="train", cache_dir=str(tmp_path / "cache"))
    assert default["prompt"] == PROMPTS
    card = (local / "README.md").read_text()
    assert "## Licences" in card and 'load_dataset("me/mine", "k_sim", split="train")' in card
    run = study / "runs" / "tiny" / "k_sim" / "sft" / "seed0" / "model"
    assert weights["model.safetensors"] == (run / "model.safetensors").read_bytes() and "README.md" in weights
    assert set(weights) == {path.name for path in run.iterdir()}
    for content in (*files.values(), *weights.values(), done.stdout.encode(), done.stderr.encode()):
        assert TOKEN.encode() not in content and str(study.parent).encode() not in content


def test_pushed_again_the_data_set_stays_one(hub, study, tmp_path):
    for _ in range(2):
        assert call(hub, tmp_path, "--study", study, "--repo", "me/mine", "--public").returncode == 0
    assert (
        hub.repositories == {"dataset/me/mine": "public"}
        and [name for name, _ in hub.commits] == ["dataset/me/mine"] * 2
    )


def test_what_the_hub_refuses_is_one_line_without_the_token(hub, study, tmp_path):
    hub.refused.add("model/me/mine-tiny-k_sim-sft-seed0")
    done = call(hub, tmp_path, "--study", study, "--repo", "me/mine", "--models")
    assert done.returncode == 1 and "(sent before: me/mine); check login and name" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and TOKEN not in done.stderr + done.stdout
    assert [name for name, _ in hub.commits] == ["dataset/me/mine"]


def test_a_token_that_a_server_repeats_is_not_told(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert describe_error(OSError(f"403\n refused: Bearer {TOKEN}")) == "403 refused: Bearer (token)"
    assert TOKEN[:8] not in describe_error(OSError("x" * 190 + TOKEN)), "it is taken out before the line is cut"


def test_a_wrong_token_sends_nothing(hub, study, tmp_path):
    done = call(hub, tmp_path, "--study", study, "--repo", "me/mine", token="hf_wrong0815")
    assert done.returncode == 1 and "(no file was sent)" in done.stderr and "hf_wrong0815" not in done.stderr
    assert not hub.commits and not hub.repositories


def test_names_are_checked_before_anything_is_asked_of_the_hub(hub, study, tmp_path):
    done = call(hub, tmp_path, "--study", study, "--repo", "me/" + "x" * 80, "--models")  # with a model's name too long
    assert done.returncode == 2 and "with a model's name added: me/" in done.stderr
    assert call(hub, tmp_path, "--study", study, "--repo", "a/b/c").returncode == 2
    assert not hub.asked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: None, r"holds no pairs \(pairs/STRATEGY/pairs.parquet\)"),
        (lambda f: (save_pairs(make_set(), f / "pairs" / "k_sim"), (f / "pairs" / "k_sim" / "accounting.json").unlink()),
         "accounting.json"),
        (lambda f: save_pairs(make_set(), f / "pairs" / "k_sim"), r"holds no trained model \(runs/\)"),
        (lambda f: (save_pairs(make_set(), f / "pairs" / "k_sim"), (run := f / "runs/a/b/sft/seed0/model").mkdir(parents=True),
                    (run.parent / "training.json").write_text("{}")), "holds no weights"),
    ],
)  # fmt: skip
def test_folders_that_are_no_study_are_refused(tmp_path, change, message):
    (tmp_path / "study").mkdir()
    change(tmp_path / "study")
    with pytest.raises(InputError, match=message):
        plan_uploads(tmp_path / "study", "me/mine", models=True)


def test_a_dry_run_says_what_would_be_sent(study):
    result = CliRunner().invoke(app, ["push", "--study", str(study), "--repo", "me/mine", "--models", "--dry-run"])
    first, second, then = result.output.splitlines()
    assert then == "next: the same without --dry-run; nothing was sent"
    assert first.startswith("dataset me/mine: README.md, pairs/k_sim/pairs.parquet, ") and "pool/pool.parquet" in first
    assert second.startswith("model me/mine-tiny-k_sim-sft-seed0: ") and "model.safetensors" in second


def test_one_pair_folder_is_pushed_over_http_as_before(hub, study, tmp_path):
    """`karma binarize --push-to-hub` and `push_pairs`: a repository of one set."""
    code = "import sys; from karma.pairs.public_shape import push_pairs; print(push_pairs(sys.argv[1], 'me/one'))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
                   "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(study / "pairs" / "k_sim")], env=environment, text=True,
                          capture_output=True, timeout=CALL_LIMIT, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    ((name, files),) = hub.commits
    assert name == "dataset/me/one" and set(files) == {"README.md", "accounting.json", "pairs.parquet"}
