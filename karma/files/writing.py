"""Files that are either whole or absent.

Every output is written to a temporary name in the same folder and renamed when complete, so that a killed job never
leaves half a file under a name that another stage reads.
Limit: what a killed process had begun stays beside it, hidden, until `remove_leftovers` of the next one.
"""

import glob
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path that replaces `path` (a file or a folder) when the block ends without an error.

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "scores.json"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("{}")
        >>> target.read_text()
        '{}'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = make_workspace(path)
    temporary = workspace / path.name
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():  # a folder cannot be renamed over a folder that holds files
            path.rename(workspace / "replaced")
        temporary.replace(path)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def make_workspace(path: str | Path) -> Path:
    """Make a hidden folder beside `path` to write it in; its name says which process of which machine it is of."""
    path, machine = Path(path), socket.gethostname().partition(".")[0][:40]
    return Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}.{machine}-{os.getpid()}-", dir=path.parent))


def remove_leftovers(folder: str | Path, name: str = "*") -> int:
    """Remove what killed processes of this machine left of `make_workspace` in a folder; return how many there were.

    Args:
        folder: looked through, not those below it. name: of what was being written; any by default.

    Example:
        >>> machine = socket.gethostname().partition(".")[0][:40]
        >>> left = Path(tempfile.mkdtemp()) / f".scores.json.{machine}-999999999-ab12cd_3"
        >>> left.mkdir(), remove_leftovers(left.parent), left.exists()
        (None, 1, False)
    """
    machine, n = re.escape(socket.gethostname().partition(".")[0][:40]), 0
    for path in Path(folder).glob(f".{glob.escape(name[:60]) if name != '*' else name}.*-*-*"):
        found = re.fullmatch(rf"\..*\.{machine}-(\d+)-[a-z0-9_]{{8}}", path.name)
        if found and not _is_alive(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)
            n += not path.exists()
    return n


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def save_json(value: object, path: str | Path) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused, since other readers could not parse it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def save_if_changed(text: str, path: Path) -> bool:
    """Write `text` only where the file differs, so that its modification time means a change of content."""
    if path.is_file() and path.read_text("utf-8") == text:
        return False
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")
    return True
