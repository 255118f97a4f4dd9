"""Locks: of one user's jobs, and of a folder that several users of a machine share."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import Timeout

from karma.errors import InputError
from karma.files.locks import make_folder, open_lock, open_own_lock
from karma.files.writing import save_json

NOBODY = 65534


def run_as(user: int, work: Callable[[], None], temporary: Path) -> str:
    """Do some work as a user, with umask 022, in a fork: another user may not be able to read this Python.

    Returns:
        What went wrong, or nothing.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        said = b""
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            os.umask(0o022)
            tempfile.tempdir = str(temporary)
            work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}".encode()
        finally:
            os.write(writer, said)
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader, "rb") as stream:  # noqa: PTH123
        return stream.read().decode()


def hold_own() -> None:
    with open_own_lock("training-x"):
        pass


def keep(cache: Path, name: str) -> None:
    with open_lock(cache / "weights" / "digest" / ".lock"):
        save_json([1], cache / "weights" / "digest" / f"{name}.json")


@pytest.fixture
def everyone() -> Iterator[Path]:
    """A folder that every user may write, as /tmp is; pytest's own are this user's alone."""
    if not hasattr(os, "getuid") or os.getuid() != 0:
        pytest.skip("needs root, to become two users")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o1777)
        yield folder


def test_a_second_user_of_a_machine_has_a_training_lock_of_their_own(everyone):
    for user in (0, NOBODY):
        assert not run_as(user, hold_own, everyone)
    assert sorted(p.name for p in everyone.iterdir()) == ["karma-0", f"karma-{NOBODY}"]
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o700 for p in everyone.iterdir())


def test_a_shared_cache_is_written_by_both_users_whatever_their_umask(everyone):
    cache = everyone / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    for user in (0, NOBODY, 0):
        assert not run_as(user, lambda name=f"user{user}": keep(cache, name), everyone)
    assert sorted(p.name for p in (cache / "weights" / "digest").glob("*.json")) == ["user0.json", f"user{NOBODY}.json"]


def test_a_cache_that_is_closed_to_a_user_is_one_line_with_the_remedy(everyone):
    cache = everyone / "cache"
    cache.mkdir(mode=0o755)
    said = run_as(NOBODY, lambda: keep(cache, "x"), everyone)
    assert said.startswith(f"InputError: {cache}") and "(Permission denied): let its owner open it" in said


def test_a_stranger_s_folder_in_the_temporary_one_is_refused(everyone):
    (everyone / f"karma-{NOBODY}").mkdir()
    assert "is not a folder of this user: remove it, or set TMPDIR" in run_as(NOBODY, hold_own, everyone)


def test_a_link_in_the_temporary_folder_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"karma-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is not a folder of this user"):
        open_own_lock("x")


def test_a_lock_is_held_once(tmp_path):
    with open_lock(tmp_path / "deep" / "er" / ".lock"), pytest.raises(Timeout):
        open_lock(tmp_path / "deep" / "er" / ".lock", timeout=0).acquire()


@pytest.mark.parametrize(("above", "expected"), [(0o775, 0o775), (0o2770, 0o2775), (0o700, 0o755), (0o1777, 0o755)])
def test_a_folder_is_as_open_as_the_one_it_lies_in(tmp_path, above, expected):
    before = os.umask(0o022)
    try:
        (tmp_path / "above").mkdir()
        (tmp_path / "above").chmod(above)
        make_folder(tmp_path / "above" / "one" / "two")
        assert stat.S_IMODE((tmp_path / "above" / "one" / "two").stat().st_mode) == expected
    finally:
        os.umask(before)


def test_a_cache_that_is_a_file_is_one_line_with_the_remedy(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(InputError, match=r"cache cannot be written \(Not a directory\): .*\$KARMA_CACHE"):
        open_lock(tmp_path / "cache" / ".lock")
