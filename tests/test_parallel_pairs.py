"""Pairs made by several processes: the bytes of one, whatever the parts, the row groups and the order of finishing."""

import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from karma.errors import InputError, KarmaError
from karma.pairs import parallel
from karma.pairs.build import save_pair_sets
from karma.pairs.folder import _DICTIONARY
from karma.pairs.join import Joined
from karma.pairs.pairs import PAIR_SCHEMA, load_pairs
from karma.pool import parts
from karma.pool.decontamination import build_items
from karma.pool.pool import load_pool
from karma.pool.rows import POOL_SCHEMA
from karma.scores.read import load_score_table
from tests.conftest import CALL_LIMIT, ROOT, wait_until

MODELS = ["GPT-4", "bard", "alpaca-7b", "starchat", "pythia-12b", "llama-2-7b-chat"]
PAPER = load_score_table("paper")
STRATEGIES = ("k_sim", "rlaif", "delta")
RULES = {"tau": 0.1, "seed": 0, "drop_truthfulqa": True, "match_rows": True}
LEFT_OUT = {"near_duplicates": 0.8,
            "decontaminate": build_items([("own", "q", "bard 6 so so so so so so"), ("own", "r", "bard 3 so so so so so so")], ngram=8)}  # fmt: skip
QUICK = settings(deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
                 suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
FILES = ["pairs.parquet", "accounting.json", "README.md"]


def make_rows(n, seed=0):
    """Rows of tiny answers; some have too few, some come from TruthfulQA or repeat its questions."""
    dice = random.Random(seed)
    for i in range(n):
        answers = [{"model": m, "response": f"{m} {i % 7}{' so' * dice.choice([0, 1, 2, 6])}", "overall_score": float(dice.randint(1, 5))}
                   for m in dice.sample(MODELS, dice.choice([1, 2, 3, 4]))]  # fmt: skip
        source = "truthful_qa" if not i % 50 else "own"
        yield {"source": source, "instruction": f"Question {i // 2}?", "completions": answers}


def write_pool(folder, rows, group_rows):
    """Write the same rows as parquet and as JSON lines, with a blank line in between."""
    table = pa.Table.from_pylist([{**row, "models": None} for row in rows], POOL_SCHEMA)
    pq.write_table(table, folder / "pool.parquet", row_group_size=group_rows)
    lines = [json.dumps(row) for row in rows]
    (folder / "pool.jsonl").write_text("\n".join([*lines[:3], "", *lines[3:]]))
    return table


def save(pool, out, **options):
    save_pair_sets(load_pool(pool), PAPER, {s: out / s for s in STRATEGIES}, **{**RULES, **options})
    return out


def are_equal(one, other):
    files = [*FILES, *(["overlaps.csv"] if (one / "k_sim" / "overlaps.csv").exists() else [])]
    return all(filecmp.cmpfiles(one / s, other / s, files, shallow=False)[0] == files for s in STRATEGIES)


@contextmanager
def work_here(job, pool, cores, dice=None):
    """Stands for processes: parts are done in any order among those under way, and taken in theirs."""

    def spread(works):
        waiting, turn, work = {}, iter(works), {}

        def submit(part):
            waiting[part], work[part] = None, next(turn)
            return part

        for part in parallel._take_in_order(parallel._cut(pool, cores), 2 * cores, submit, deque()):
            under_way = [p for p, done in waiting.items() if done is None]
            dice.shuffle(under_way)
            for other in under_way:
                waiting[other] = work[other](job, other)
            yield waiting.pop(part)

    yield spread


@settings(QUICK, max_examples=8)
@given(n=st.integers(1, 90), group_rows=st.sampled_from([1, 5, 8, 13, 100]), cores=st.integers(2, 4), dice=st.randoms(),
       kind=st.sampled_from(["pool.parquet", "pool.jsonl"]), stages=st.sampled_from([None, 3]),
       left_out=st.sampled_from([{}, LEFT_OUT]))  # fmt: skip
def test_no_part_row_group_or_order_of_finishing_changes_a_byte(
    tmp_path_factory, n, group_rows, cores, dice, kind, stages, left_out
):
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "BATCH_ROWS", 8)
        patch.setattr(parts, "PART_ROWS", 16)
        patch.setattr(parts, "MOST_PART_ROWS", 32)
        patch.setattr(parallel, "SMALL_ROWS", 1)
        patch.setattr(parallel, "_open_processes", partial(work_here, dice=dice))
        write_pool(folder, list(make_rows(n, n)), group_rows)
        options = {"n_stages": stages, **left_out}
        alone = save(folder / kind, folder / "alone", **options)
        assert are_equal(alone, save(folder / kind, folder / "shared", cores=cores, **options))
        write_pool(folder, list(make_rows(n, n)), 7)
        assert are_equal(alone, save(folder / kind, folder / "again", **options))


@settings(QUICK, max_examples=40)
@given(n=st.integers(0, 60), group_rows=st.integers(1, 40), n_workers=st.integers(1, 5))
def test_parts_hold_every_row_once_in_batches_of_the_whole(tmp_path_factory, n, group_rows, n_workers):
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "BATCH_ROWS", 4)
        patch.setattr(parts, "PART_ROWS", 8)
        table = write_pool(folder, list(make_rows(n)), group_rows)
        for name, cut in (("pool.parquet", parts.cut_parquet), ("pool.jsonl", parts.cut_lines)):
            found = [batch for part in cut(folder / name, n_workers) for batch in part.read(parts.EVERYTHING)]
            assert [len(b) for b in found] == [min(4, n - start) for start in range(0, n, 4)]
            assert pa.Table.from_batches(found, POOL_SCHEMA).equals(table)


def test_large_row_groups_are_cut_in_two_and_small_ones_put_together(tmp_path):
    table = pa.table({"source": ["a"] * 200_000, "instruction": ["b"] * 200_000, "completions": [None] * 200_000})
    sizes = {}
    for group_rows in (1_000, 200_000):
        pq.write_table(table, tmp_path / "pool.parquet", row_group_size=group_rows)
        sizes[group_rows] = {part.stop - part.start for part in parts.cut_parquet(tmp_path / "pool.parquet", 2)}
    assert sizes == {1_000: {16_384, 200_000 % 16_384}, 200_000: {102_400, 97_600}}


def make_slowly(job, part, truthfulqa=()):
    time.sleep(0.3 if part.start == 0 else 0)  # the first part is the last to be done
    return _make(job, part, truthfulqa)


def die_in_the_middle(job, part, truthfulqa=()):
    if part.start > 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return _make(job, part, truthfulqa)


_make = parallel.make_pairs


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """40,000 rows: three parts."""
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, list(make_rows(40_000)), 7_000)
    return folder / "pool.parquet"


@pytest.fixture(scope="module")
def alone(pool):
    return save(pool, pool.parent / "alone", n_stages=3)


@pytest.mark.parametrize("cores", [2, pytest.param(3, marks=pytest.mark.heavy)])
def test_processes_make_the_bytes_of_one(pool, alone, tmp_path, monkeypatch, cores):
    monkeypatch.setattr(parallel, "SMALL_ROWS", 1)
    monkeypatch.setattr(parallel, "make_pairs", make_slowly)
    seen = []
    assert are_equal(alone, save(pool, tmp_path / "out", n_stages=3, cores=cores, progress=seen.append))
    assert seen == [16_384, 32_768, 40_000]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(STRATEGIES), "something was left behind"


def test_processes_leave_out_what_one_does(tmp_path, monkeypatch):
    """The list too: rows of one part that repeat those of another, and benchmark items. 17,000 rows: two parts."""
    write_pool(tmp_path, list(make_rows(17_000)), 7_000)
    pool = tmp_path / "pool.parquet"
    alone = save(pool, tmp_path / "alone", **LEFT_OUT)
    monkeypatch.setattr(parallel, "SMALL_ROWS", 1)
    assert are_equal(alone, save(pool, tmp_path / "shared", cores=2, **LEFT_OUT))
    dropped = load_pairs(alone / "k_sim").accounting
    assert dropped.dropped["near_duplicate"] > 8_500 and dropped.responses_unused["benchmark_response"] > 100


def test_a_worker_that_is_killed_leaves_one_line_and_nothing_else(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "SMALL_ROWS", 1)
    monkeypatch.setattr(parallel, "make_pairs", die_in_the_middle)
    with pytest.raises(KarmaError, match=r"worker process was killed.*nothing was kept.*--cores") as caught:
        save(pool, tmp_path / "out", cores=2)
    assert "\n" not in str(caught.value) and list((tmp_path / "out").iterdir()) == []


def test_workers_end_with_a_parent_that_is_killed(pool, tmp_path):
    code = (
        "import sys; from pathlib import Path; from karma.pairs import parallel; from tests import test_parallel_pairs as t\n"
        "parallel.SMALL_ROWS, parallel.make_pairs = 1, t.wait_for_ever\n"
        "t.save(Path(sys.argv[1]), Path(sys.argv[2]), cores=2)"
    )
    command = [sys.executable, "-c", code, str(pool), str(tmp_path / "out")]
    parent = subprocess.Popen(command, cwd=ROOT)
    wait_until(lambda: len(list(tmp_path.glob("out/.k_sim.*/parts.*/*.begun"))) == 3)  # one by the parent
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    assert len(children) >= 3, "two workers and what forks them"
    assert not psutil.wait_procs(children, timeout=60)[1]


def wait_for_ever(job, part, truthfulqa=()):
    (job.spool / f"{part.start}.begun").touch()
    time.sleep(CALL_LIMIT)


def test_a_small_pool_stays_in_this_process(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_open_processes", None)
    save(pool, tmp_path / "out", cores=8)
    assert len(load_pairs(tmp_path / "out" / "k_sim"))


def test_what_is_wrong_with_a_part_is_said_as_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BATCH_ROWS", 8)
    monkeypatch.setattr(parts, "PART_ROWS", 16)
    monkeypatch.setattr(parallel, "SMALL_ROWS", 1)
    monkeypatch.setattr(parallel, "_open_processes", partial(work_here, dice=random.Random(0)))
    rows = [json.dumps(row) for row in make_rows(60)]
    (tmp_path / "pool.jsonl").write_text("\n".join([*rows[:40], "", '{"instruction": 5}', *rows[40:]]))
    said = []
    for cores in (1, 3):
        with pytest.raises(InputError) as caught:
            save(tmp_path / "pool.jsonl", tmp_path / "out", cores=cores)
        said.append(str(caught.value))
        assert list((tmp_path / "out").iterdir()) == []
    assert said[0] == said[1] == "pool.jsonl: line 42 has no 'completions'; it has instruction"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"engine": "dask"}, "engine 'dask': choose local or ray"),
        ({"cores": 0}, "0 cores: give 1 or more"),
        ({"engine": "ray"}, "engine ray: rows in memory has no files to share out"),
    ],
)
def test_impossible_engines(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        save_pair_sets(load_pool(make_rows(9)), PAPER, {"k_sim": tmp_path / "out"}, tau=0.1, seed=0, **options)
    assert not (tmp_path / "out").exists()


class TestJoin:
    tables: ClassVar = [
        pa.Table.from_pylist(
            [{"row_id": f"{k}", "prompt": [{"role": "user", "content": "x" * (k % 70)}], "kinship": k / 3 if k % 5 else None,
              "chosen_model": "abc"[k % 3]} for k in range(n)], PAIR_SCHEMA)
        for n in (5, 3000, 1, 17) * 5
    ]  # fmt: skip

    def write(self, path, tables):
        with pq.ParquetWriter(path, PAIR_SCHEMA, use_dictionary=_DICTIONARY) as writer:
            for table in tables:
                writer.write_table(table)

    @pytest.mark.parametrize("size", [1, 3, 20])
    def test_files_laid_end_to_end_are_the_file_of_one_writer(self, tmp_path, size):
        """More row groups and columns than a short list's head can count."""
        self.write(tmp_path / "one.parquet", self.tables)
        joined = Joined(tmp_path / "joined.parquet")
        for start in range(0, len(self.tables) + size, size):  # the last one holds none
            self.write(tmp_path / "part.parquet", self.tables[start : start + size])
            joined.add(tmp_path / "part.parquet")
        joined.finish()
        joined.close()
        assert (tmp_path / "joined.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()

    def test_what_cannot_be_joined_is_refused(self, tmp_path):
        table, joined = self.tables[0], Joined(tmp_path / "joined.parquet")
        with pytest.raises(KarmaError, match="nothing was written"):
            joined.finish()
        pq.write_table(table, tmp_path / "part.parquet", write_page_index=True)
        with pytest.raises(KarmaError, match="has page indexes"):
            joined.add(tmp_path / "part.parquet")
        self.write(tmp_path / "part.parquet", [table])
        (tmp_path / "short.parquet").write_bytes((tmp_path / "part.parquet").read_bytes()[:-9])
        with pytest.raises(KarmaError, match="no whole parquet file"):
            joined.add(tmp_path / "short.parquet")
