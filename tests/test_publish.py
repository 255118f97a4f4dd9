"""Pair folders appear whole, together or not at all; what killed runs left is removed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from karma.errors import InputError
from karma.files.writing import atomic_path, make_workspace, remove_leftovers
from karma.pairs.accounting import Accounting
from karma.pairs.build import save_pair_sets
from karma.pairs.folder import PairFolder, save_pairs
from karma.pairs.pairs import PAIR_SCHEMA, PairSet
from karma.pairs.publish import FILES, publish_all
from karma.pool.pool import load_pool
from karma.scores.read import load_score_table

NONE = PairSet(PAIR_SCHEMA.empty_table(), Accounting("k_sim"))
ROWS = [{"source": "s", "instruction": f"Count to {i}.", "completions": [
        {"model": m, "response": f"{m} {i}"} for m in ("gpt-4", "bard", "alpaca-7b")]} for i in range(6)]  # fmt: skip


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def list_hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_file_s_place_is_refused_before_anything_is_written(tmp_path, name):
    (tmp_path / "pairs" / name).mkdir(parents=True)
    (tmp_path / "pairs" / name / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match=f"{name} is a folder, and a file is to be written there: move it away"):
        save_pairs(NONE, tmp_path / "pairs")
    assert (tmp_path / "pairs" / name / "mine.txt").read_text() == "kept" and not list_hidden(tmp_path)


def test_one_of_several_folders_that_cannot_be_written_leaves_all_as_they_were(tmp_path):
    folders = {name: tmp_path / name for name in ("k_score", "k_sim")}
    save_pair_sets(load_pool(ROWS), load_score_table("paper"), folders, tau=0.1, seed=0)
    before = {name: read(folder) for name, folder in folders.items()}

    def block(_: Accounting) -> None:
        """Put a folder in a file's place after all was checked, as another program might."""
        if (folders["k_sim"] / "README.md").is_file():
            (folders["k_sim"] / "README.md").unlink()
            (folders["k_sim"] / "README.md").mkdir()

    with pytest.raises(InputError, match=r"README\.md is a folder"):
        save_pair_sets(load_pool(ROWS[:3]), load_score_table("paper"), folders, tau=0.1, seed=0, check=block)
    assert read(folders["k_score"]) == before["k_score"], "a set of the other run lies beside one of this"
    assert not list_hidden(tmp_path)


def test_what_was_moved_is_put_back(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in (*FILES, "binarized.parquet", "mine.txt"):
            (tmp_path / name / file).write_text(f"before {name} {file}")
    before = {name: read(tmp_path / name) for name in ("one", "two")}
    hidden = [tmp_path / ".one", tmp_path / ".two"]
    for folder in hidden:
        folder.mkdir()
        for file in FILES:
            (folder / file).write_text("new")
    (hidden[1] / "README.md").unlink()  # the last of all moves fails
    with pytest.raises(OSError, match=r"README\.md"):
        publish_all([(hidden[0], tmp_path / "one"), (hidden[1], tmp_path / "two")])
    assert {name: read(tmp_path / name) for name in ("one", "two")} == before
    (hidden[1] / "README.md").write_text("new")
    for folder in hidden:
        (folder / "before").rmdir()
    publish_all([(hidden[0], tmp_path / "one"), (hidden[1], tmp_path / "two")])
    assert {path.name for path in (tmp_path / "one").iterdir()} == {*FILES, "mine.txt"}
    assert (tmp_path / "two" / "README.md").read_text() == "new"


KILLED = """
import os, sys
from pathlib import Path
from karma.files.writing import make_workspace
(make_workspace(Path(sys.argv[1])) / "big").write_bytes(b"0" * 1000)
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_run_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "pairs")], check=False)
    (left,) = list_hidden(tmp_path)
    live = make_workspace(tmp_path / "pairs")  # of this process, at work
    for name in (".pairs.elsewhere-12-abcdefgh", ".pairs.mine", ".git", ".pairs.x-1-abcdefgh.txt"):
        (tmp_path / name).mkdir()
    kept = sorted(set(list_hidden(tmp_path)) - {left})
    with PairFolder(tmp_path / "other"):
        assert left in list_hidden(tmp_path), "another folder's"
    with PairFolder(tmp_path / "pairs"):
        assert left not in list_hidden(tmp_path)
    assert sorted(list_hidden(tmp_path)) == kept and live.is_dir()
    assert remove_leftovers(tmp_path) == 0


def test_long_names_have_workspaces_too(tmp_path):
    with atomic_path(tmp_path / ("x" * 250)) as temporary:
        temporary.write_text("whole")
    assert os.listdir(tmp_path) == ["x" * 250]  # noqa: PTH208
