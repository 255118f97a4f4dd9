"""Options that several commands share, and base.yaml's values as their defaults."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from karma.errors import InputError

Out = Annotated[Path, typer.Option("--out", help="Folder to write; made if absent.")]
Columns = Annotated[
    str | None, typer.Option("--columns", help="For other benchmarks: a column map (YAML), or open_llm_leaderboard_v2.")
]
Experiment = Annotated[str, typer.Argument(help="The experiment's file, e.g. params/demo.yaml.")]
Parameters = Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="A parameter; may repeat.")]
Section = TypeVar("Section", bound=BaseModel)


def default(group: str, key: str) -> Any:
    """Return base.yaml's value, the only place where it stands."""
    from karma.study.experiment import load_base

    return getattr(getattr(load_base(), group), key)


def check_out(out: Path, pairs: Path | None = None) -> None:
    """Raise an InputError where --out is a file, or the very pair folder that is read."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: give a folder to write to")
    replaced = [out / name for name in ("", "pairs.parquet", "binarized.parquet", "dataset")]
    if pairs is not None and pairs.resolve() in [path.resolve() for path in replaced]:
        raise InputError(
            f"--out {out} holds the pairs that --pairs reads and would overwrite them: give another folder"
        )


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
    return f"--{option} {first['input']}: {message}"
