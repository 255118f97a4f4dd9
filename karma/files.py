"""Files that are either whole or absent, the one reader of each format, and fingerprints of what files hold.

Every output is written to a temporary name in the same folder and renamed when complete, so that a killed job
never leaves half a file under a name that another stage reads.
Decision: what comes from outside is checked here, at the border, so that the rest of the kit need not expect a pipe, a
number of 5,000 digits, lists a hundred thousand deep, YAML that names itself, or text that is none.
Limit: a regular file is read whole however long it is, but for the formats that are read in lines or batches.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from karma.errors import InputError, quote, show_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SAMPLE = "sample"  # the name of the pool, and of its models' scores, that come with the package
_MOST_NODES = 100_000  # of a YAML file with its aliases written out; ours have some hundred


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


def check_file(path: str | Path, what: str = "") -> Path:
    """Return a path that can be opened as a file; refuse it, before it is opened, where it is none.

    A pipe would be waited for, and a device read for ever.

    Args:
        path: a file's. what: a word before it, for the message.

    Raises:
        InputError: nothing there, a folder, a pipe or device, or a name that cannot be one.
    """
    named = f"{what} {path}".lstrip()
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{named} cannot be read: it does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{named} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{named} cannot be read: it is a folder, give a file")
    if not stat.S_ISREG(mode):
        raise InputError(f"{named} cannot be read: it is a pipe or a device, save what it gives as a file")
    return Path(path)


def read_text(path: str | Path, what: str = "") -> str:
    """Return a file's text; what is no file or not UTF-8 is an InputError that names it."""
    try:
        return check_file(path, what).read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}".lstrip()) from None
    except UnicodeDecodeError as error:
        wrong = f"{what} {path} cannot be read: it is not UTF-8 (byte {error.object[error.start]:#04x})".lstrip()
        raise InputError(f"{wrong}: save the file as UTF-8") from None


def parse_json(text: str, *, unique: bool = False, halves: bool = False) -> Any:
    """Parse JSON; whatever cannot be used is a ValueError of one line.

    Args:
        text: one value.
        unique: whether a key that stands twice is refused; Python would keep the last in silence.
        halves: whether half a character (a lone surrogate, which UTF-8 cannot hold) is let through.

    Raises:
        ValueError: no JSON, nested too deep, a whole number beyond 64 bits, or what is refused as above.

    Example:
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: nested too deep
    """
    try:
        value = json.loads(text, parse_int=_read_int, object_pairs_hook=_build_object if unique else None)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not halves and "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a character, a lone surrogate") from None
    return value


def _read_int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"a whole number beyond 64 bits, of {len(text)} digits")
    return int(text)


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {quote(next(key for key in keys if keys.count(key) > 1))} is given twice; keep one")
    return built


def load_json(path: str | Path) -> Any:
    """Read a JSON file; an absent or broken one is an InputError that names it."""
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of each line that is not blank; blank lines count, so that the numbers are an editor's.

    A line ends at "\\n" alone: `str.splitlines` also ends one at U+0085, U+2028 and U+2029, which JSON texts may hold.

    Raises:
        InputError: no file, or not UTF-8 (the message names the line).

    Example:
        >>> target = Path(tempfile.mkdtemp()) / "prompts.txt"
        >>> _ = target.write_text("one\u2028line\\n\\nanother\\n", "utf-8")
        >>> [number for number, _ in read_lines(target)]
        [1, 3]
    """
    try:
        with check_file(path).open("rb") as stream:
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
            value = parse_json(line)
        except ValueError as error:
            raise InputError(f"{path}: line {number} is no JSON ({error}): write one JSON value a line") from None
        yield number, value


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML carries no types
    """A safe loader of whole numbers that fit 64 bits."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return _read_int(str(super().construct_yaml_int(node)))


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """Parse one YAML document; whatever cannot be used is a ValueError of one line.

    Raises:
        ValueError: no YAML, nested too deep, a value within itself, aliases that multiply beyond all measure, a key
            that is no text or stands twice, or a whole number beyond 64 bits.

    Example:
        >>> parse_yaml("a: &a {b: *a}")
        Traceback (most recent call last):
        ValueError: line 1: a value within itself: write it out without the alias
        >>> parse_yaml("2024-01-01: 1")
        Traceback (most recent call last):
        ValueError: line 1: key '2024-01-01' is no text: put it in quotes
    """
    loader = None
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{show_line(error.problem or error.context)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(show_line(error)) from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    finally:
        if loader is not None:
            loader.dispose()


def _count_nodes(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return how many nodes there are with aliases written out; raise where there would be too many."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    line = f"line {node.start_mark.line + 1}"
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ValueError(f"{line}: a value within itself: write it out without the alias")
        return size
    known[id(node)] = None
    inside = node.value
    if isinstance(node, yaml.MappingNode):
        keys = [key for key, _ in node.value]
        for key in keys:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                shown = quote(key.value) if isinstance(key, yaml.ScalarNode) else "a list or map"
                raise ValueError(f"line {key.start_mark.line + 1}: key {shown} is no text: put it in quotes")
        names = [key.value for key in keys]
        if len(set(names)) < len(names):
            raise ValueError(f"{line}: key {quote(next(n for n in names if names.count(n) > 1))} is given twice")
        inside = [value for _, value in node.value]
    size = 1
    for one in inside:
        size += _count_nodes(one, known)
        if size > _MOST_NODES:
            raise ValueError(f"{line}: more than {_MOST_NODES:,} values with its aliases written out")
    known[id(node)] = size
    return size


def load_yaml(path: str | Path, what: str = "") -> Any:
    """Read a YAML file; an absent or broken one is an InputError that names it."""
    text = read_text(path, what)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{what} {Path(path).name} is not valid YAML: {error}".lstrip()) from None


def open_parquet(path: str | Path, what: str = "", **options: Any) -> "pq.ParquetFile":
    """Open a parquet file; what is none is an InputError that names it.

    Args:
        path: a file's. what: a word before it, for the message. **options: of `pyarrow.parquet.ParquetFile`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(check_file(path, what), **options)
    except (pa.ArrowException, OSError) as error:
        raise _explain_parquet(path, what, error) from None


def read_parquet(path: str | Path, what: str = "", columns: list[str] | None = None) -> "pa.Table":
    """Read a parquet file whole, its texts checked; what is none is an InputError that names it.

    Args:
        path: a file's. what: a word before it, for the message. columns: to be read; None: all.
    """
    import pyarrow as pa

    file = open_parquet(path, what)
    try:
        table = file.read(columns)
        check_text(table)
    except (pa.ArrowException, OSError) as error:
        raise _explain_parquet(path, what, error) from None
    return table


def check_text(table: Any) -> Any:
    """Return a table; raise an ArrowInvalid where a text is not UTF-8, or anything else is not what it says."""
    table.validate(full=True)
    return table


def _explain_parquet(path: str | Path, what: str, error: Exception) -> InputError:
    reason = show_line((str(error).splitlines() or [type(error).__name__])[0][:160])
    return InputError(f"{what} {path} cannot be read as parquet ({reason}): was it cut off?".lstrip())


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
    with check_file(path).open("rb") as stream:
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


def find_sample(source: object, name: str) -> Path | None:
    """Return a file of the package's own example, where `source` is its name and no file or folder is called so.

    Args:
        source: what was asked for. name: pool.jsonl or scores.csv.
    """
    if str(source) != SAMPLE or Path(SAMPLE).exists():
        return None
    return Path(__file__).parent / "data" / "sample" / name


def cache_folder() -> Path:
    """Return the folder for dequantised weights and unpacked items: $KARMA_CACHE, else ~/.cache/karma."""
    root = os.environ.get("KARMA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karma"
    return Path(root)
