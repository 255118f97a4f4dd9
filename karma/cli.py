"""The `karma` command: one subcommand a step, heavy imports only inside the step that needs them.

Errors are one line with the remedy (the traceback with --debug); exit code 1 for a failed run, 2 for bad input.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from karma.errors import KarmaError

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", help=__doc__.split("\n")[0])
Out = Annotated[Path, typer.Option("--out", help="Folder to write; made if absent.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Preference data from the kinship of the models that wrote it (KARMA, arXiv 2502.18744)."""


def main() -> None:
    """Run the command line."""
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except KarmaError as error:
        if debug:
            raise
        typer.secho(f"karma: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.secho("karma: interrupted; the same command goes on from here", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
