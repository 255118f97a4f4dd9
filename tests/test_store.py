"""Answers are kept in shards: found by key, asked once, made again where the disk has altered them."""

import errno
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

import pyarrow.parquet as pq
import pytest

from karma.errors import KarmaError
from karma.evaluation.runner import evaluate
from karma.files.places import find_project_root
from karma.files.reading import compute_digest
from karma.models import journal, shards, store
from karma.models.ask import CachedModel
from karma.models.shards import Piece, Share, answer_here, cut_shards
from karma.models.store import AnswerStore, MemoryStore
from tests.chat_server import TINY
from tests.conftest import change_base, list_kept

ROOT = find_project_root()


class Counting:
    """Answers a prompt with its key in capitals, and counts what it is asked; `trouble` is called with each piece."""

    def __init__(self, trouble=lambda piece: None):
        self.asked, self.lock, self.trouble = Counter(), Lock(), trouble

    def load(self):
        pass

    def ask(self, piece, advance):
        self.trouble(piece)
        with self.lock:
            self.asked[piece.key] += 1
        advance(piece.n)
        return {"prompts": [piece.key], "answers": [piece.key.upper()], "cost": {"seconds": 0.1}}


def make_batches(n, first=0, side_by_side=4):
    """Return batches of single prompts, as behind an API."""
    pieces = [Piece(compute_digest(k), {"prompts": [str(k)]}, 1) for k in range(first, first + n)]
    return [pieces[start : start + side_by_side] for start in range(0, n, side_by_side)]


def run(asker, folder, batches, size=8, share=None):
    """Answer in shards of eight; return key -> answer."""
    kept = MemoryStore() if folder is None else AnswerStore(folder)
    found = {}
    for _, _, records in answer_here(asker, kept, cut_shards(batches, size), share=share):
        found |= {key: record["answers"][0] for key, record in records.items()}
    return found


def list_files(folder):
    return sorted(path.suffix for path in folder.iterdir() if not path.name.startswith("."))


def expected(batches):
    return {piece.key: piece.key.upper() for batch in batches for piece in batch}


def test_shards_are_named_by_their_keys_and_hold_what_was_asked(tmp_path):
    batches, asker = make_batches(20), Counting()
    assert run(asker, tmp_path, batches) == expected(batches) == run(Counting(), None, batches)
    assert list_files(tmp_path) == [".parquet"] * 3, "8 + 8 + 4 prompts, and no journal"
    for path in tmp_path.glob("*.parquet"):
        table = pq.read_table(path)
        assert path.stem == compute_digest(table["key"].to_pylist())
        assert json.loads(table["record"][0].as_py())["answers"] == [table["key"][0].as_py().upper()]
    again = Counting()
    assert run(again, tmp_path, batches) == expected(batches) and not again.asked


def test_a_set_grouped_otherwise_finds_its_records(tmp_path):
    run(Counting(), tmp_path, make_batches(20))
    asker, other = Counting(), make_batches(24, first=5, side_by_side=3)
    assert run(asker, tmp_path, other, size=5) == expected(other)
    assert sorted(asker.asked) == sorted(compute_digest(k) for k in range(20, 29))


def test_a_prompt_that_stands_twice_is_asked_once(tmp_path):
    (batch,) = make_batches(2)
    asker = Counting()
    run(asker, tmp_path, [[*batch, *batch], batch])
    assert set(asker.asked.values()) == {1}


@pytest.mark.parametrize("n_before", [1, 7, 8, 9, 19])
def test_a_killed_job_asks_nothing_twice(tmp_path, n_before):
    batches, asked = make_batches(20, side_by_side=1), []

    def kill(piece):
        if len(asked) == n_before:
            raise KeyboardInterrupt
        asked.append(piece.key)

    with pytest.raises(KeyboardInterrupt):
        run(Counting(kill), tmp_path, batches)
    assert len(list_kept(tmp_path)) == n_before and list_files(tmp_path)[0] == ".jsonl"
    again = Counting()
    assert run(again, tmp_path, batches) == expected(batches)
    assert sum(again.asked.values()) == 20 - n_before and not again.asked.keys() & set(asked)
    whole = tmp_path / "whole"
    run(Counting(), whole, batches)
    names = [sorted(path.name for path in folder.glob("*.*")) for folder in (tmp_path, whole)]
    assert names[0] == names[1], "the same shards as in one go"


def test_a_complete_journal_is_sealed_by_the_next_job(tmp_path, monkeypatch):
    monkeypatch.setattr(AnswerStore, "_seal", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(Counting(), tmp_path, make_batches(8))
    monkeypatch.undo()
    again = Counting()
    assert run(again, tmp_path, make_batches(8)) == expected(make_batches(8))
    assert not again.asked and list_files(tmp_path) == [".parquet"]


def test_a_shard_with_any_flipped_bit_is_made_again_or_unharmed(tmp_path, capsys):
    batches = make_batches(8)
    run(Counting(), tmp_path, batches)
    (shard,) = tmp_path.glob("*.parquet")
    whole, n_noticed = shard.read_bytes(), 0
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        asker = Counting()
        assert run(asker, tmp_path, batches) == expected(batches), place
        assert set(asker.asked.values()) <= {1} and len(asker.asked) in (0, 8)
        n_noticed += bool(asker.asked)
        shard.write_bytes(whole)
    assert n_noticed > 30 and "is damaged" in capsys.readouterr().err
    assert (tmp_path / f"{shard.name}.broken").is_file(), "kept for a person to look at"


@pytest.mark.parametrize("n_left", [0, 3, -1, -40])
def test_a_shard_cut_short_is_made_again_and_the_others_are_used(tmp_path, n_left):
    batches = make_batches(20)
    run(Counting(), tmp_path, batches)
    shard = min(tmp_path.glob("*.parquet"))
    keys = pq.read_table(shard)["key"].to_pylist()
    shard.write_bytes(shard.read_bytes()[:n_left])
    asker = Counting()
    assert run(asker, tmp_path, batches) == expected(batches)
    assert sorted(asker.asked) == sorted(keys) and list_files(tmp_path).count(".parquet") == 3


@pytest.mark.parametrize("harm", ["flip", "cut", "half a line"])
def test_an_altered_line_of_a_journal_is_asked_again(tmp_path, harm):
    batches, asked = make_batches(8, side_by_side=1), []

    def kill(piece):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(piece.key)

    with pytest.raises(KeyboardInterrupt):
        run(Counting(kill), tmp_path, batches)
    (journal,) = tmp_path.glob("*.jsonl")
    text = journal.read_bytes()
    if harm == "flip":  # in the answer to the third prompt
        text = text.replace(asked[2].upper().encode(), asked[2].upper()[:-1].encode() + b"x")
    journal.write_bytes({"flip": text, "cut": text[:-9], "half a line": text[:-1]}[harm])
    again = Counting()
    assert run(again, tmp_path, batches) == expected(batches)
    lost = {"flip": asked[2], "cut": asked[4], "half a line": asked[4]}[harm]
    assert sorted(again.asked) == sorted([lost, *(batch[0].key for batch in batches[5:])])


def test_files_of_before_are_read_and_a_broken_one_is_asked_again(tmp_path):
    batches = make_batches(8)
    keys = list(expected(batches))
    for key in keys[:6]:
        (tmp_path / f"{key}.json").write_text(json.dumps({"prompts": [key], "answers": [key.upper()]}))
    (tmp_path / f"{keys[0]}.json").write_text('{"prompts": ["')
    asker = Counting()
    assert run(asker, tmp_path, batches) == expected(batches)
    assert sorted(asker.asked) == sorted([keys[0], *keys[6:]])
    assert run(Counting(lambda piece: pytest.fail("asked again")), tmp_path, batches) == expected(batches)


def test_an_evaluation_is_the_same_from_files_of_before(tmp_path):
    asked = change_base("benchmarks", folder=str(ROOT / "karma" / "data" / "demo"), limit=4, choice_tokens=4)
    compute = change_base("compute", device="cpu", dtype="float32")
    new, old = tmp_path / "new", tmp_path / "old"
    model = CachedModel(TINY, "tiny", compute, 2, new)
    _, answers = evaluate(model, ["arc_easy"], asked, ROOT)
    (old / model.digest).mkdir(parents=True)
    for key, record in list_kept(new).items():
        (old / model.digest / f"{key}.json").write_text(json.dumps(record))
    again = CachedModel(TINY, "tiny", compute, 2, old)
    assert evaluate(again, ["arc_easy"], asked, ROOT)[1].equals(answers)
    assert (again.n_asked, again.n_cached, again.cost) == (0, 4, model.cost)


@pytest.mark.parametrize(
    "other", [make_batches(24), make_batches(24, first=4, side_by_side=3)], ids=["same", "shifted"]
)
def test_jobs_side_by_side_ask_each_prompt_once(tmp_path, other):
    """Both at the same time, of the same set or of one that is grouped otherwise; each does a part."""
    asker, begun = Counting(lambda piece: begun.set() or Event().wait(0.01)), Event()
    mine = make_batches(24)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(run, asker, tmp_path, batches) for batches in (mine, other)]
        found = [job.result() for job in jobs]
    assert found == [expected(mine), expected(other)]
    assert set(asker.asked.values()) == {1}


def test_nobody_waits_for_another_prompt(tmp_path):
    began, go_on = Event(), Event()
    slow = Counting(lambda piece: began.set() or go_on.wait(30))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run, slow, tmp_path, make_batches(4))
        assert began.wait(30)
        try:
            assert len(run(Counting(), tmp_path, make_batches(4, first=100))) == 4
            assert not job.done()
        finally:
            go_on.set()
        assert job.result() == expected(make_batches(4))


def test_helpers_take_their_share_and_the_stage_the_rest(tmp_path):
    batches = make_batches(40)
    first = [shard[0][0].key for shard in cut_shards(batches, 8)]
    kill = Counting(lambda piece: (_ for _ in ()).throw(KeyboardInterrupt) if piece.key == first[3] else None)
    with pytest.raises(KeyboardInterrupt):  # its shards are the second and the fourth of five
        run(kill, tmp_path, batches, share=Share(1, 2))
    assert first[1] in kill.asked and not {first[0], first[2]} & kill.asked.keys()
    stage = Counting()
    assert run(stage, tmp_path, batches) == expected(batches) and not stage.asked.keys() & kill.asked.keys()


def test_a_helper_waits_for_nobody(tmp_path):
    began, go_on = Event(), Event()
    slow = Counting(lambda piece: began.set() or go_on.wait(30))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run, slow, tmp_path, make_batches(8))
        assert began.wait(30)
        try:
            assert run(Counting(), tmp_path, make_batches(8), share=Share(0, 2)) == {}
        finally:
            go_on.set()
        assert job.result() == expected(make_batches(8))


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, monkeypatch):
    batches, real, n_written = make_batches(20, side_by_side=1), os.write, []

    def write(file, content):
        n_written.append(len(content))
        if len(n_written) > 6:
            real(file, content[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, content)

    monkeypatch.setattr(journal.os, "write", write)
    asker = Counting()
    with pytest.raises(KarmaError, match="cannot be written: No space left on device: make room") as error:
        run(asker, tmp_path, batches)
    monkeypatch.undo()
    assert "\n" not in str(error.value) and len(list_kept(tmp_path)) == 5, "a claim and five answers"
    again = Counting()
    assert run(again, tmp_path, batches) == expected(batches)
    assert (sum(asker.asked.values()), sum(again.asked.values())) == (6, 15), "one answer was lost"


def test_a_disk_that_is_full_when_a_shard_is_sealed_loses_nothing(tmp_path, monkeypatch):
    def write(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.pq, "write_table", write)
    with pytest.raises(KarmaError, match="No space left on device"):
        run(Counting(), tmp_path, make_batches(8))
    monkeypatch.undo()
    again = Counting()
    assert run(again, tmp_path, make_batches(8)) == expected(make_batches(8)) and not again.asked
    assert list_files(tmp_path) == [".parquet"]


def test_there_is_a_file_a_thousand_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr(store.os, "fsync", lambda file: None)  # not what is looked at
    batches = make_batches(4_000, side_by_side=50)
    run(Counting(), tmp_path, batches, size=0)
    n_files = sum(1 for path in tmp_path.iterdir())
    assert n_files <= 4_000 / shards.SIZE + 1, "four shards and a lock"
