"""Files are whole or absent."""

import pytest

from karma.errors import InputError
from karma.files import (
    atomic_path,
    compute_file_digest,
    find_project_root,
    load_json,
    save_if_changed,
    save_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    save_json({"a": 1}, path)
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert load_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_replaces_a_folder_whole(tmp_path):
    for names in (["old", "both"], ["both"]):
        with atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            for name in names:
                (temporary / name).write_text(name)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["both"]


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_json({"loss": float("nan")}, tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_unchanged_text_keeps_its_time(tmp_path):
    path = tmp_path / "a"
    assert save_if_changed("x", path)
    before = path.stat().st_mtime_ns
    assert not save_if_changed("x", path)
    assert path.stat().st_mtime_ns == before
    assert save_if_changed("y", path)


def test_a_folder_digest_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = compute_file_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert compute_file_digest(tmp_path) != first


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"a\.json cannot be read as JSON"):
        load_json(tmp_path / "a.json")


def test_the_root_is_found_from_notebooks(monkeypatch):
    root = find_project_root()
    monkeypatch.chdir(root / "notebooks")
    assert find_project_root() == root
