"""Move finished pair folders into place: all of them, or none.

Where a file cannot be moved (a folder has its name, the disk is gone), what was there before is put back. Decision: the
files of before go aside first, so that at no moment the pairs of one run lie beside the books of another; a run killed
in that moment leaves a folder without pairs, which every reader refuses, and no mixture.
"""

from pathlib import Path

from karma.errors import InputError

FILES = ("pairs.parquet", "accounting.json", "README.md")
OVERLAPS = "overlaps.csv"  # where they were looked for
EXPORTS = ("binarized.parquet", "dataset")  # of an earlier set; they would be of other pairs


def check_targets(folder: Path) -> None:
    """Raise an InputError where a folder has the name of a file to be written.

    Example:
        >>> check_targets(Path("nowhere"))
    """
    for name in (*FILES, OVERLAPS):
        if (folder / name).is_dir():
            raise InputError(f"{folder / name} is a folder, and a file is to be written there: move it away")


def publish_all(places: list[tuple[Path, Path]]) -> None:
    """Move the files of finished pair folders into place.

    Args:
        places: (hidden folder with the finished files, folder that is to hold them) of each.

    Raises:
        InputError, OSError: nothing was moved, or all was put back.
    """
    for _, folder in places:
        check_targets(folder)
    moved: list[tuple[Path, Path]] = []
    try:
        for hidden, folder in places:
            folder.mkdir(exist_ok=True)
            aside = hidden / "before"
            aside.mkdir()
            old = [name for name in (*FILES, OVERLAPS, *EXPORTS) if (folder / name).exists()]
            new = [*FILES, *([OVERLAPS] if (hidden / OVERLAPS).exists() else [])]
            steps = [
                *((folder / name, aside / name) for name in old),
                *((hidden / name, folder / name) for name in new),
            ]
            for source, target in steps:
                source.rename(target)
                moved.append((source, target))
    except OSError:
        for source, target in reversed(moved):
            target.rename(source)
        raise
