"""Where the clone, the package's own example and the cache are, and how a folder of the cache is made.

A folder of the cache holds a digest of each of its files. Whoever finds one that is absent, cut short or altered makes
it again, one process at a time, and the others wait for it.
Limit: a process looks at a folder once, and again where a file's size or time has changed.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from karma.errors import InputError
from karma.files.locks import open_lock
from karma.files.reading import compute_file_digest, load_json
from karma.files.writing import atomic_path, remove_leftovers, save_json

SAMPLE = "sample"  # the name of the pool, and of its models' scores, that come with the package
DIGESTS = "digests.json"  # in a folder of the cache: file name -> digest


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
    return Path(__file__).parents[1] / "data" / "sample" / name


def cache_folder() -> Path:
    """Return the folder for dequantised weights and unpacked items: $KARMA_CACHE, else ~/.cache/karma."""
    root = os.environ.get("KARMA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karma"
    return Path(root)


def make_cached(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder of the cache, made where it is absent or no longer what was written.

    Args:
        folder: in the cache. make: writes files into an empty folder that it is given.

    Raises:
        InputError: it must be made, and this user may not write there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "items"
        >>> made = make_cached(folder, lambda place: (place / "arc.jsonl").write_text("{}"))
        >>> sorted(path.name for path in made.iterdir())
        ['arc.jsonl', 'digests.json']
    """
    if is_whole(folder):  # made before, by another user perhaps: no need to write there
        return folder
    with open_lock(folder.parent / f".{folder.name}.lock"):
        if not is_whole(folder):
            if folder.exists():
                print(f"{folder} is not as it was written: made again", file=sys.stderr)
            remove_leftovers(folder.parent, folder.name)
            with atomic_path(folder) as temporary:
                temporary.mkdir()
                make(temporary)
                save_json({path.name: compute_file_digest(path) for path in temporary.iterdir()}, temporary / DIGESTS)
    return folder


def is_whole(folder: Path) -> bool:
    """Tell whether a folder of the cache is there, with the files that were written and what was written in them."""
    found = {path.name: path.stat() for path in folder.iterdir()} if folder.is_dir() else {}
    return DIGESTS in found and _is_whole(
        folder, tuple((n, s.st_size, s.st_mtime_ns) for n, s in sorted(found.items()))
    )


@functools.cache
def _is_whole(folder: Path, _: tuple[tuple[str, int, int], ...]) -> bool:
    try:
        digests = load_json(folder / DIGESTS)
        return bool(digests) and all(compute_file_digest(folder / name) == told for name, told in digests.items())
    except (OSError, ValueError, AttributeError):
        return False
