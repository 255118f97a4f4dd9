"""Locks between processes: one for all users of a folder, one for the jobs of a single user.

A lock is a file that stays: it is held by a process or by nobody. In a folder that several users may write (a shared
--cache or $KARMA_CACHE), the lock file and the folders on the way are as open to them as the folder they lie in,
whatever the umask of the first who came. What only one user's jobs wait for lies in a folder of the temporary one that
nobody else may enter: a name that is shared there would be the first user's alone, or a stranger's trap.
Limit: a folder that others may only read gives them no lock; whoever finds there what they need takes none.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock

from karma.errors import InputError

SHARED_BITS = stat.S_ISGID | stat.S_IRWXG | stat.S_IRWXO


def open_lock(path: Path, timeout: float = -1) -> BaseFileLock:
    """Return the lock of a file's name, for every user who may write its folder; the folder is made if absent.

    Args:
        path: of the lock file. timeout: seconds until a `Timeout` is raised; -1 waits.

    Raises:
        InputError: this user may not write there.

    Example:
        >>> with open_lock(Path(tempfile.mkdtemp()) / "cache" / ".lock") as lock:
        ...     lock.is_locked
        True
    """
    try:
        make_folder(path.parent)
        if not path.parent.is_dir():
            raise NotADirectoryError(20, "Not a directory")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(13, "Permission denied")
        return FileLock(path, timeout=timeout, mode=0o600 | (path.parent.stat().st_mode & 0o066))
    except OSError as error:
        raise InputError(
            f"{path.parent} cannot be written ({error.strerror}): let its owner open it (chmod -R a+rwX, or g+rwX for "
            "a group), or name a folder of your own (--cache, $KARMA_CACHE)"
        ) from None


def open_own_lock(name: str) -> BaseFileLock:
    """Return a lock between the jobs of this user on this machine.

    Raises:
        InputError: somebody else has taken the folder's name in the temporary folder.
    """
    folder = Path(tempfile.gettempdir()) / f"karma-{os.getuid() if hasattr(os, 'getuid') else 'locks'}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
        raise InputError(f"{folder} is not a folder of this user: remove it, or set TMPDIR to a folder of your own")
    return FileLock(folder / f"{name}.lock")


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each as open to others as the one it lies in; not below a public /tmp."""
    for folder in [p for p in (path, *path.parents) if not p.exists()][::-1]:
        above = folder.parent.stat().st_mode
        with suppress(FileExistsError):
            folder.mkdir()
            if not above & stat.S_ISVTX:
                folder.chmod(stat.S_IMODE(folder.stat().st_mode) | (above & SHARED_BITS))
