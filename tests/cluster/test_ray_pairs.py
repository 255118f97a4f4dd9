"""`karma binarize --engine ray` on two nodes: the bytes of one process, also where a node or a worker dies at its work."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from karma.errors import InputError, KarmaError
from karma.pairs import parallel
from tests.conftest import ROOT, wait_until
from tests.test_parallel_pairs import STRATEGIES, are_equal, make_rows, save, write_pool

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'karma-kit[cluster]'")
pytestmark = pytest.mark.heavy  # a cluster of processes, each of which imports pandas and Arrow

_make = parallel.make_pairs


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, the head's and one to lose; workers find the tests beside the package."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's workers are nice (15) and would wait for whatever else is tested
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    running.add_node(num_cpus=1)
    running.wait_for_nodes()
    yield running
    ray.shutdown()
    running.shutdown()


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """100,000 rows: seven parts."""
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, list(make_rows(100_000)), 7_000)
    return folder / "pool.parquet"


@pytest.fixture(scope="module")
def alone(pool):
    return save(pool, pool.parent / "alone", n_stages=3)


def note(job, what):
    """Leave a file with this process's id beside the output, for the test to see."""
    (job.spool.parent.parent / f"{what}.note").write_text(str(os.getpid()))


def make_slowly(job, part, truthfulqa=()):
    note(job, f"{part.start}-{ray.get_runtime_context().get_node_id()}")
    time.sleep(1)
    return _make(job, part, truthfulqa)


def die_once(job, part, truthfulqa=()):
    """End the worker in the middle of the second part, the first time that it is tried: its files are written."""
    found = _make(job, part, truthfulqa)
    if part.start and not list(job.spool.parent.parent.glob("died.note")):
        note(job, "died")
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def die_always(job, part, truthfulqa=()):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["pool.parquet", "pool.jsonl"])
def test_ray_makes_the_bytes_of_one_process(cluster, pool, alone, tmp_path, kind):
    out = save(pool.with_name(kind), tmp_path / "out", n_stages=3, engine="ray", address=cluster.address)
    for strategy in STRATEGIES:
        assert (out / strategy / "pairs.parquet").read_bytes() == (alone / strategy / "pairs.parquet").read_bytes()
    assert kind != "pool.parquet" or are_equal(alone, out)  # books and card name the pool


def test_a_worker_that_dies_is_replaced_and_its_part_taken_once(cluster, pool, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "make_pairs", die_once)
    assert are_equal(alone, save(pool, tmp_path / "out", n_stages=3, engine="ray", address=cluster.address))
    assert (tmp_path / "out" / "died.note").is_file()


def test_a_part_that_kills_every_worker_is_one_line(cluster, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "make_pairs", die_always)
    monkeypatch.setattr(parallel, "MAX_RETRIES", 1)
    with pytest.raises(KarmaError, match=r"engine ray: a part was not done .* nothing was kept") as caught:
        save(pool, tmp_path / "out", engine="ray", address=cluster.address)
    assert "\n" not in str(caught.value) and list((tmp_path / "out").iterdir()) == []


def test_a_bad_pool_is_said_as_in_one_process(cluster, tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"instruction": "x", "completions": []}\n{"instruction": 5}\n')
    with pytest.raises(InputError, match=r"^pool.jsonl: line 2 has no 'completions'; it has instruction$"):
        save(tmp_path / "pool.jsonl", tmp_path / "out", engine="ray", address=cluster.address)


def test_a_node_removed_in_mid_run_changes_no_byte(cluster, pool, alone, tmp_path, monkeypatch):
    """Last in this file: the node does not come back."""
    monkeypatch.setattr(parallel, "make_pairs", make_slowly)
    (lost,) = [node for node in cluster.list_all_nodes() if node != cluster.head_node]
    out = tmp_path / "out"

    def remove() -> None:
        wait_until(lambda: list(out.glob(f"*-{lost.node_id}.note")))
        cluster.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=remove)
    thread.start()
    assert are_equal(alone, save(pool, out, n_stages=3, engine="ray", address=cluster.address))
    thread.join()
    begun = [Path(path).name.split("-")[0] for path in out.glob("*.note")]
    assert lost not in cluster.list_all_nodes() and len(begun) > len(set(begun)), "no part was begun twice"
