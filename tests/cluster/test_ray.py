"""Answers by Ray's workers, on a cluster of two nodes on this machine: equal to the local ones, whatever dies."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from karma.errors import InputError, KarmaError
from karma.evaluation.runner import evaluate
from karma.files.reading import compute_digest
from karma.models.ask import CachedModel
from karma.models.judge import annotate
from karma.models.placement import N_TRIES, answer_by_ray, choose_place
from karma.models.shards import Piece, Recipe, cut_shards
from karma.models.store import AnswerStore
from karma.potential.logps import measure_logps
from karma.study.sections import ModelSpec
from tests.chat_server import KEY, TINY
from tests.conftest import ROOT, change_base, list_kept, wait_until
from tests.test_rate import ROWS

ray = pytest.importorskip("ray", reason="Ray is missing: pip install 'karma-kit[cluster]'")
pytestmark = pytest.mark.heavy
VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "TEST_KEY": KEY, "no_proxy": "*"}
BENCHMARKS = change_base(
    "benchmarks", folder=str(ROOT / "karma" / "data" / "demo"), limit=12, choice_tokens=4, descriptive_tokens=4
)


@pytest.fixture(scope="module")
def nodes():
    """A cluster whose workers know the test server's key; this process is connected to its head."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        ray.init(running.address, log_to_driver=False)
        yield running
        ray.shutdown()
        running.shutdown()


@pytest.fixture
def cluster(nodes):
    """It with two nodes of one CPU each, also after a test has removed one."""
    if not nodes.worker_nodes:
        nodes.add_node(num_cpus=1)
    return nodes


def compute(cluster=None, **changes):
    place = {} if cluster is None else {"engine": "ray", "address": cluster.address}
    return change_base("compute", **{"device": "cpu", "dtype": "float32", **place, **changes})


def connect(server, cluster, cache, batch_size=2):
    source = {"base_url": server.base_url, "model": "tiny", "key_env": "TEST_KEY"}
    return CachedModel({"far": ModelSpec(api=source).model_dump()}, "far", compute(cluster), batch_size, cache)


def make_pairs(n):
    def say(role, text):
        return [{"role": role, "content": text}]

    rows = [{"prompt": say("user", f"Say {k}."), "chosen": say("assistant", f"{k} " * (1 + k % 5)),
             "rejected": say("assistant", f"not {k}")} for k in range(n)]  # fmt: skip
    return pa.Table.from_pylist(rows)


def test_answers_ratings_and_log_probabilities_equal_the_local_ones(cluster, tmp_path):
    def work(where, cache):
        model = CachedModel(TINY, "tiny", where, 4, cache)
        written = evaluate(model, ["ifeval", "arc_easy"], BENCHMARKS, ROOT)[1]
        compared = evaluate(model, ["arc_easy"], BENCHMARKS, ROOT, "cloze")[1]
        ratings, _ = annotate(ROWS, TINY, "tiny", where, 4, cache)
        logps = measure_logps(make_pairs(40), TINY, "tiny", where, 64, 256, cache)
        return model, written, compared, ratings, logps

    here, far = work(compute(), tmp_path / "here"), work(compute(cluster), tmp_path / "far")
    assert far[0].backend.identity == here[0].backend.identity and far[0].n_asked == here[0].n_asked == 36
    assert all(theirs.equals(ours) for theirs, ours in zip(far[1:4], here[1:4], strict=True))
    assert np.array_equal(far[4].logps, here[4].logps) and far[4].n_asked == 40
    kept = [{key: {**record, "cost": 0, "seconds": 0} for key, record in list_kept(tmp_path / name).items()}
            for name in ("here", "far")]  # fmt: skip
    assert kept[0] == kept[1], "the same records but for the time they took"
    again = work(compute(cluster), tmp_path / "here")
    assert (again[0].n_asked, again[4].n_asked) == (0, 0), "found by whom else they were made"
    assert choose_place(compute(cluster, dtype="auto")) == choose_place(compute(dtype="auto")), "a worker is asked"


def test_a_node_that_dies_loses_nothing_and_nothing_is_asked_twice(cluster, server, tmp_path):
    server.pause_s = 0.2
    expected = evaluate(CachedModel(TINY, "tiny", compute(), 1), ["ifeval", "arc_easy"], BENCHMARKS, ROOT)[1]
    model = connect(server, cluster, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(evaluate, model, ["ifeval", "arc_easy"], BENCHMARKS, ROOT)
        wait_until(lambda: len(server.asked) >= 9 or job.done())
        assert not job.done(), "it was to be in the middle"
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        assert job.result()[1]["answer"].to_pylist() == expected["answer"].to_pylist()
    n_twice = len(server.asked) - 24
    assert 0 <= n_twice <= model.batch_size, "at most what was on its way to the dead node"
    counts = Counter(body["messages"][0]["content"] for body in server.asked)
    assert len(counts) == 24 and max(counts.values()) <= 2
    assert len(list_kept(tmp_path)) == 24 and not list(tmp_path.rglob("*.jsonl"))


def run_unlucky(cluster, folder, troubles, n=40):
    """Let workers answer n prompts, with troubles at the fifth; return how often each was asked."""
    pieces = [Piece(compute_digest(k), {}, 1) for k in range(n)]
    for k, how in enumerate(troubles):
        (folder / f"trouble{k}").write_text(how)
    recipe = Recipe("tests.cluster.unlucky:open_asker", {"folder": str(folder), "at": pieces[4].key})
    found = {}
    shards = cut_shards([[piece] for piece in pieces], 10)
    for _, _, records in answer_by_ray(recipe, AnswerStore(folder / "kept"), shards, compute(cluster), lambda n: None):
        found |= records
    assert {key: record["answers"][0][:16] for key, record in found.items()} == {p.key: p.key.upper() for p in pieces}
    return Counter((folder / "log").read_text().split())


@pytest.mark.parametrize("how", ["killed", "fails"])
def test_a_worker_that_dies_or_is_out_of_memory_is_replaced(cluster, tmp_path, how):
    asked = run_unlucky(cluster, tmp_path, [how] * (N_TRIES - 1))
    assert len(asked) == 40 and set(asked.values()) == {1}


@pytest.mark.parametrize(("how", "reason"), [("killed", "the worker died: "), ("fails", "MemoryError: out of memory")])
def test_a_shard_that_kills_every_worker_is_one_line(cluster, tmp_path, how, reason):
    with pytest.raises(
        KarmaError, match=rf"lost with {N_TRIES} of Ray's workers, the last time since {reason}"
    ) as error:
        run_unlucky(cluster, tmp_path, [how] * N_TRIES)
    assert "\n" not in str(error.value) and "lower the batch size" in str(error.value)
    kept = list_kept(tmp_path / "kept")
    asked = run_unlucky(cluster, tmp_path, [])
    assert set(asked.values()) == {1} and kept, "the next run asks only the rest"


def test_what_a_user_gave_wrong_is_told_at_once(cluster, server, tmp_path):
    model = connect(server, cluster, tmp_path)
    model._recipe.options["models"]["far"]["api"]["key_env"] = "NOT_THERE"
    with pytest.raises(InputError, match="on a Ray worker: model 'far': its API key is missing"):
        evaluate(model, ["arc_easy"], BENCHMARKS, ROOT)
    assert not server.asked


def test_a_full_disk_is_one_line(cluster, tmp_path):
    """A worker that may not write beyond 64 kiB of a file stands for it: a shard's second answer is too much."""
    pieces = [Piece(compute_digest(k), {}, 1) for k in range(8)]
    options = {"folder": str(tmp_path), "at": "", "answer_bytes": 50_000, "file_bytes": 2**16}
    todo = cut_shards([[piece] for piece in pieces], 8)
    store = AnswerStore(tmp_path / "kept")
    with pytest.raises(KarmaError, match=r"on a Ray worker: .* cannot be written: File too large: make room") as error:
        list(answer_by_ray(Recipe("tests.cluster.unlucky:open_asker", options), store, todo, compute(cluster), print))
    assert "\n" not in str(error.value)
    kept = list_kept(tmp_path / "kept")
    asked = run_unlucky(cluster, tmp_path, [], n=8)
    assert kept and all(asked[key] == 1 for key in kept) and max(asked.values()) <= 2, (
        "what was kept is not asked again"
    )


def test_a_worker_that_fits_nowhere_is_refused(cluster, tmp_path):
    place = change_base("compute", device="cpu", dtype="float32", engine="ray", threads=64)
    with pytest.raises(InputError, match="a worker needs 64 CPUs and 0 GPUs, which this machine has not"):
        evaluate(CachedModel(TINY, "tiny", place, 4, tmp_path), ["arc_easy"], BENCHMARKS, ROOT)
