"""Options that several commands share, and base.yaml's values as their defaults."""

import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from karma.errors import InputError, quote
from karma.files.numbers import parse_number
from karma.files.reading import check_file
from karma.files.yaml import load_yaml
from karma.scores.read import load_score_table
from karma.scores.table import MEASURES, ScoreTable, set_kinship

Out = Annotated[Path, typer.Option("--out", help="Folder to write; made if absent.")]
Columns = Annotated[
    str | None,
    typer.Option("--columns", help="For other benchmarks: a column map (YAML), or open_llm_leaderboard_v1, _v2."),
]
Missing = Annotated[
    str,
    typer.Option("--missing", help="Empty cells: refuse, drop_model or drop_benchmark; what is left out is counted."),
]
Measure = Annotated[
    str | None, typer.Option("--measure", help=f"Of kinship: {', '.join(MEASURES)}; default: the table's own, cosine.")
]
Weight = Annotated[
    list[str] | None,
    typer.Option("--weight", metavar="NAME=NUMBER", help="Of a capability or benchmark in kinship; name all of them."),
]
Experiment = Annotated[str, typer.Argument(help="The experiment's file, e.g. params/demo.yaml.")]
Parameters = Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="A parameter; may repeat.")]
LAST_SEED = 2**32 - 1  # what every generator takes
Section = TypeVar("Section", bound=BaseModel)
_LONGEST_NAME, _LEAST_BYTES = 230, 2**20  # files are written beside their names with some letters more
_LONGEST_PATH = 3500  # of the 4,096 bytes that Linux takes: what is written lies deeper


def default(group: str, key: str) -> Any:
    """Return base.yaml's value, the only place where it stands."""
    from karma.study.experiment import load_base

    return getattr(getattr(load_base(), group), key)


def check_out(
    out: Path, *inputs: Path | str | None, option: str = "--out",
    written: Collection[str] = ("pairs.parquet", "binarized.parquet", "dataset"),
) -> None:  # fmt: skip
    """Raise an InputError where a folder cannot be written to; it is found out by writing, and nothing is left.

    Args:
        out: the folder, there or not. inputs: folders that are read, into which nothing is to be written; and files.
        option: its name, for the message. written: names in it of what is written, in whose place no input may lie.
    """
    try:
        if os.path.lexists(out) and not out.is_dir():
            raise InputError(f"{option} {out} is {_name_kind(out)}: give a folder to write to")
        there = next(place for place in (out, *out.absolute().parents) if os.path.lexists(place))
        if not there.is_dir():
            raise InputError(f"{option} {out} lies beneath {there}, which is no folder: give another")
        if len(os.fsencode(out.name)) > _LONGEST_NAME:
            raise InputError(f"{option} {out}: its name is too long, take at most {_LONGEST_NAME} letters")
        if len(os.fsencode(out.absolute())) > _LONGEST_PATH:
            raise InputError(f"{option} {out.name}: its path is too long, take at most {_LONGEST_PATH} letters")
        if shutil.disk_usage(there).free < _LEAST_BYTES:
            raise InputError(f"{option} {out}: the disk is full: make room, or give a folder elsewhere")
        with TemporaryDirectory(prefix=".karma-", dir=there):
            pass
    except OSError as error:
        raise InputError(f"{option} {out} cannot be written: {error.strerror}") from None
    for read in (Path(place) for place in inputs if place and _exists(place)):
        if read.is_dir() and read.resolve() in (out.resolve(), *out.resolve().parents):
            raise InputError(f"{option} {out} lies within {read}, which is read: give a folder elsewhere")
        if read.resolve() in [(out / name).resolve() for name in written]:
            raise InputError(
                f"{option} {out} holds {read}, which is read and would be overwritten: give another folder"
            )


def check_files(files: Mapping[str, Path | None]) -> None:
    """Raise an InputError that names the option whose file is none.

    Args:
        files: by option; None where it was not given.

    Example:
        >>> check_files({"--answers": Path("nowhere.jsonl")})
        Traceback (most recent call last):
        karma.errors.InputError: --answers nowhere.jsonl cannot be read: it does not exist
    """
    for option, path in files.items():
        if path is not None:
            check_file(path, option)


def check_accelerate(path: Path) -> None:
    """Raise an InputError where a file is no configuration of accelerate."""
    found = load_yaml(path)
    if not isinstance(found, dict) or "distributed_type" not in found:
        raise InputError(f"accelerate: {path} is no configuration of accelerate: write one with `accelerate config`")


def check_out_file(out: Path, *inputs: Path | str | None, option: str = "--out") -> None:
    """Raise an InputError where a file cannot be written, or is one that is read.

    Args:
        out: the file, there or not. inputs: that are read. option: its name, for the message.
    """
    if os.path.lexists(out) and not out.is_file():
        raise InputError(f"{option} {out} is {_name_kind(out)}: give a file to write")
    if len(os.fsencode(out.name)) > _LONGEST_NAME:
        raise InputError(f"{option} {out}: its name is too long, take at most {_LONGEST_NAME} letters")
    for read in (place for place in inputs if place):
        if out.is_file() and _exists(read) and out.samefile(read):
            raise InputError(f"{option} {out} is read, and would be overwritten: give another file")
    check_out(out.absolute().parent, option=option)


def _name_kind(path: Path) -> str:
    """Say what lies at a path where something else was expected."""
    if path.is_symlink() and not _exists(path):
        try:
            path.stat()
        except FileNotFoundError:
            return "a link to nothing"
        except OSError:
            return "a link to itself"
    mode = path.stat().st_mode
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISREG: "a file", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((kind for is_one, kind in kinds.items() if is_one(mode)), "a device")


def _exists(path: Path | str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, RuntimeError):  # a name that is too long, a link to itself: its reader says so
        return False


@contextmanager
def leave_nothing(*folders: Path | None) -> Iterator[None]:
    """Remove locks and empty folders that were made in vain, where the block ends with bad input.

    Args:
        folders: that the block may make. What was there before stays, and so does every other file: an answer that was
            paid for is kept.
    """
    made = [place for folder in filter(None, folders) for place in (folder, *folder.absolute().parents)
            if not os.path.lexists(place)]  # fmt: skip
    try:
        yield
    except InputError:
        for place in made:
            if place.is_dir():
                for path in sorted(place.rglob("*"), reverse=True):  # what is inside comes first
                    with suppress(OSError):
                        if path.is_dir():
                            path.rmdir()
                        elif path.name.startswith(".lock"):
                            path.unlink()
                with suppress(OSError):
                    place.rmdir()
        raise


def list_typed(context: typer.Context) -> frozenset[str]:
    """Return the options that stand on the command line, by their names in Python; defaults are none of them."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")


def refuse_idle(typed: Collection[str], options: Collection[str], when: str) -> None:
    """Raise an InputError where an option was typed that changes nothing here: it was meant to change something.

    Args:
        typed: of `list_typed`. options: those without effect, as `batch_size`. when: "without ..." or "with ...".

    Example:
        >>> refuse_idle({"model", "key_env"}, ("device", "key_env"), "with --answers")
        Traceback (most recent call last):
        karma.errors.InputError: --key-env means nothing with --answers: leave it out
    """
    if idle := [name for name in options if name in typed]:
        raise InputError(f"--{idle[0].replace('_', '-')} means nothing {when}: leave it out")


def check_revision(revision: str | None, spec: Mapping[str, Any], model: str) -> None:
    """Raise an InputError where --revision is given of a model that is not the Hub's.

    Args:
        revision: as given. spec: the model's. model: what it was called on the command line.
    """
    if revision is not None and spec.get("hub") is None:
        raise InputError(
            f"--revision {revision} means nothing without a Hub model, which '{model}' is not: leave it out"
        )


def load_scores(
    scores: str, columns: str | None, missing: str, measure: str | None = None, weight: list[str] | None = None
) -> ScoreTable:
    """Return the score table that --scores, --columns, --missing, --measure and --weight ask for.

    Raises:
        InputError: see `load_score_table` and `set_kinship`.

    Example:
        >>> load_scores("paper", None, "refuse", weight=["knowledge"])
        Traceback (most recent call last):
        karma.errors.InputError: --weight knowledge: expected NAME=NUMBER, e.g. knowledge=1
    """
    weights: dict[str, float] = {}
    for text in weight or []:
        name, _, number = text.rpartition("=")
        try:
            value = parse_number(number)
        except ValueError:
            name = ""
        if not name.strip():
            raise InputError(f"--weight {text}: expected NAME=NUMBER, e.g. knowledge=1")
        if name in weights:
            raise InputError(f"--weight {text}: '{name}' has a weight already: give one of the two")
        weights[name] = value
    return set_kinship(load_score_table(scores, columns, missing), measure, weights)


def replace_options(section: Section, **options: Any) -> Section:
    """Return a section of settings with the values of options of the same names, validated.

    Args:
        section: of base.yaml. options: underscores stand for hyphens.

    Raises:
        InputError: a value that the settings do not allow.

    Example:
        >>> from karma.study.experiment import load_base
        >>> replace_options(load_base().compute, device="cpu").device
        'cpu'
        >>> replace_options(load_base().compute, device="tpu")
        Traceback (most recent call last):
        karma.errors.InputError: --device tpu: choose from auto, cpu, cuda
    """
    try:
        return type(section).model_validate({**section.model_dump(), **options})
    except ValidationError as error:
        raise InputError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    option, message = str(first["loc"][0]).replace("_", "-"), first["msg"]
    if first["type"] == "literal_error":
        message = "choose from " + first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
    given = first["input"] if isinstance(first["input"], str) else quote(first["input"])
    return f"--{option} {given}: {message}"
