"""The line that every command ends with: what to type next. It imports nothing heavy."""

import shlex
from pathlib import Path


def tell_next(*words: str | Path, why: str = "") -> str:
    """Return the line that a command ends with: what to type next, quoted as a shell wants it.

    Args:
        words: of the command. why: what it does, said behind it.

    Example:
        >>> tell_next("karma", "train", "--pairs", Path("my pairs"), why="tunes a policy on them")
        "next: karma train --pairs 'my pairs'   (tunes a policy on them)"
    """
    return f"next: {shlex.join(map(str, words))}{f'   ({why})' if why else ''}"
