"""`karma demo`: a finished demo from a file, so that every notebook and the report can be read at once."""

from pathlib import Path
from typing import Annotated

import typer

from karma.commands.next_step import tell_next


def demo(
    recorded: Annotated[Path, typer.Option("--recorded", help="A recorded study, as `make recorded` writes it.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of the study that lies there.")
    ] = False,
) -> None:
    """Unpack a recorded demo below outputs/, so that notebooks 02 to 09 and the report open at once.

    It holds what a run of `params/demo.yaml` wrote, without weights; `karma run params/demo.yaml` runs it anew.
    """
    from karma.files.places import find_project_root
    from karma.study.recorded import describe_recorded, unpack_study

    folder, manifest = unpack_study(recorded, find_project_root(), replace)
    typer.echo(f"written: outputs/{folder.name}: {describe_recorded(manifest)}")
    typer.echo(tell_next("open", f"outputs/{folder.name}/report.html", why="or `make lab`"))
