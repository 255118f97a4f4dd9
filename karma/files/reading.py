"""The one reader of text, JSON, JSON lines and parquet, and fingerprints of what files hold.

Decision: what comes from outside is checked here, at the border, so that the rest of the kit need not expect a pipe, a
number of 5,000 digits, lists a hundred thousand deep, or text that is none.
Limit: a regular file is read whole however long it is, but for the formats that are read in lines or batches.
"""

import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma.errors import InputError, quote, show_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


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
        value = json.loads(text, parse_int=parse_int, object_pairs_hook=_build_object if unique else None)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not halves and "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a character, a lone surrogate") from None
    return value


def parse_int(text: str) -> int:
    """Parse a whole number; one beyond 64 bits is a ValueError, found before Python reads 5,000 digits."""
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


def load_object(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; anything else in it is an InputError that names it."""
    found = load_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} is {quote(found)}, expected an object: make it again")
    return found


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of each line that is not blank; blank lines count, so that the numbers are an editor's.

    A line ends at "\\n" alone: `str.splitlines` also ends one at U+0085, U+2028 and U+2029, which JSON texts may hold.

    Raises:
        InputError: no file, or not UTF-8 (the message names the line).

    Example:
        >>> import tempfile
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
        >>> import tempfile
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


def open_parquet(path: str | Path, what: str = "", **options: Any) -> "pq.ParquetFile":
    """Open a parquet file; what is none is an InputError that names it.

    Args:
        path: a file's. what: a word before it, for the message. **options: of `pyarrow.parquet.ParquetFile`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(check_file(path, what), **options)
    except (pa.ArrowException, OSError) as error:
        raise _explain_parquet(path, what, error) from None
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{what} {path} has two columns {quote(twice)}: keep one".lstrip())
    return file


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
