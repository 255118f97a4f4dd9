"""Where the clone, the package's own example and the cache are."""

import os
from pathlib import Path

from karma.errors import InputError

SAMPLE = "sample"  # the name of the pool, and of its models' scores, that come with the package


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
