"""Files that are either whole or absent, and fingerprints of what they hold.

Every output is written to a temporary name in the same folder and renamed when complete, so that a killed job
never leaves half a file under a name that another stage reads.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from karma.errors import InputError


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


def load_json(path: str | Path) -> Any:
    """Read a JSON file; an absent or broken one is an InputError that names it."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of each line that is not blank; blank lines count, so that the numbers are an editor's.

    A line ends at "\\n" alone: `str.splitlines` also ends one at U+0085, U+2028 and U+2029, which JSON texts may hold.

    Raises:
        InputError: unreadable, or not UTF-8 (the message names the line).

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "prompts.txt"
        >>> _ = target.write_text("one\u2028line\\n\\nanother\\n", "utf-8")
        >>> [number for number, _ in read_lines(target)]
        [1, 3]
    """
    try:
        with Path(path).open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        wrong = f"{path}: line {number} is not UTF-8 (byte {error.object[error.start]:#04x})"
        raise InputError(f"{wrong}: save the file as UTF-8") from error


def load_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of a file of JSON lines, blank lines skipped but counted.

    Raises:
        InputError: unreadable, or a line that is not UTF-8 or no JSON (the message names it).

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "items.jsonl"
        >>> _ = target.write_text('{"a": 1}\\n\\n[2]', "utf-8")
        >>> list(load_json_lines(target))
        [(1, {'a': 1}), (3, [2])]
    """
    for number, line in read_lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"{path}: line {number} is no JSON ({reason}): write one JSON value a line") from error
        yield number, value


def compute_digest(value: object) -> str:
    """Return a short SHA-256 of bytes, text, or anything JSON can hold (keys sorted).

    Example:
        >>> compute_digest({"b": 1, "a": 2}) == compute_digest({"a": 2, "b": 1})
        True
    """
    if not isinstance(value, bytes):
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
        value = text.encode("utf-8", "surrogatepass")
    return hashlib.sha256(value).hexdigest()[:16]


def compute_file_digest(path: str | Path) -> str:
    """Return a short SHA-256 of a file, or of a folder's files and their relative names."""
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return compute_digest([[p.relative_to(path).as_posix(), compute_file_digest(p)] for p in files])
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def find_project_root(start: Path | None = None) -> Path:
    """Return the clone's top folder (it holds params/base.yaml), from wherever the kernel or shell starts.

    Raises:
        InputError: neither `start` (default: the current folder) nor the package lies inside a clone.
    """
    for base in [start or Path.cwd(), Path(os.environ.get("KARMA_ROOT", ".")), Path(__file__).parent]:
        for folder in [base.resolve(), *base.resolve().parents]:
            if (folder / "params" / "base.yaml").is_file() and (folder / "notebooks").is_dir():
                return folder
    raise InputError("no KARMA clone found here: run, notebook and status need one (they use notebooks/ and params/)")


def cache_folder() -> Path:
    """Return the folder for dequantised weights and unpacked items: $KARMA_CACHE, else ~/.cache/karma."""
    root = os.environ.get("KARMA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karma"
    return Path(root)
