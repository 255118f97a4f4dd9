"""What the benchmarks share: options, and the lines `ratio <what> <value> goal <goal>` that `--check` reads."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple


class Ratio(NamedTuple):
    """A measured value beside its goal: the most that it may be, or the least."""

    what: str
    value: float
    goal: float
    at_least: bool = False
    form: str = ".2f"


def read_options(described: str, **defaults: Any) -> argparse.Namespace:
    """Return what the command line says: `--name` for each default, of its type, and `--check`."""
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    return parser.parse_args()


def conclude(found: Sequence[Ratio], check: bool) -> int:
    """Print a line for each ratio; return the exit code, which is 1 where a goal is missed and `check` was asked."""
    for one in found:
        print(f"ratio {one.what} {one.value:{one.form}} goal {one.goal}")
    return int(check and any(one.value < one.goal if one.at_least else one.value > one.goal for one in found))
