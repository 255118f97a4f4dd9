"""Options that several commands share, and base.yaml's values as their defaults."""

from pathlib import Path
from typing import Annotated, Any

import typer

Out = Annotated[Path, typer.Option("--out", help="Folder to write; made if absent.")]
Experiment = Annotated[str, typer.Argument(help="The experiment's file, e.g. params/demo.yaml.")]
Parameters = Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="A parameter; may repeat.")]


def default(group: str, key: str) -> Any:
    """Return base.yaml's value, the only place where it stands."""
    from karma.study.experiment import load_base

    return getattr(getattr(load_base(), group), key)
