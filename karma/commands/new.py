"""What `karma new` does: write an experiment to begin with, commented and valid; it overwrites nothing."""

import json
import os
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from karma.commands.next_step import tell_next
from karma.errors import InputError
from karma.files.writing import atomic_path
from karma.study.fields import check_name


def new(file: Annotated[Path, typer.Argument(help="The file to write, e.g. params/mine.yaml.")]) -> None:
    """Write an experiment to begin with: `karma new params/mine.yaml`.

    Every value in it is commented; as it stands it runs on the embedded model. What is there is not overwritten.
    """
    write_new(file)
    typer.echo(f"written: {file}")
    typer.echo(tell_next("karma", "run", str(file), "--dry-run"))


def write_new(file: Path) -> None:
    """Write the experiment, named after its file.

    Raises:
        InputError: there is something already, or the file's name cannot be an experiment's.

    Example:
        >>> write_new(Path("params/base.yaml"))
        Traceback (most recent call last):
        karma.errors.InputError: params/base.yaml is there already: give another name, or remove it first
    """
    if file.suffix != ".yaml":
        raise InputError(f"{file}: an experiment is a .yaml file: give {file.name or 'mine'}.yaml")
    try:
        check_name(file.stem)
    except ValueError as error:
        raise InputError(f"{file}: its name is the experiment's, and {error}") from None
    if os.path.lexists(file):
        raise InputError(f"{file} is there already: give another name, or remove it first")
    if not file.absolute().parent.is_dir():
        raise InputError(f"{file}: the folder {file.parent} does not exist: make it first, or give params/{file.name}")
    name = json.dumps(file.stem, ensure_ascii=False)  # what looks like a number is a name, too
    text = (files("karma") / "commands" / "new.yaml").read_text("utf-8").replace("name: NAME ", f"name: {name} ")
    with atomic_path(file) as temporary:
        temporary.write_text(text.replace("NAME", file.stem).replace("FILE", shlex.quote(str(file))), "utf-8")
