"""Options that several commands share, and base.yaml's values as their defaults."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from karma.errors import InputError
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
    weights = {}
    for text in weight or []:
        name, _, number = text.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"--weight {text}: expected NAME=NUMBER, e.g. knowledge=1")
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
    return f"--{option} {first['input']}: {message}"
