"""The `karma` command: what there is, and how an error ends it. A command's file is read when the command is asked for.

Errors are one line with the remedy (the traceback with --debug); exit code 1 for a failed run, 2 for bad input.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from karma.errors import KarmaError

COMMANDS = {  # command -> its file in karma/commands
    "run": "study", "status": "study", "notebook": "study", "pool": "study", "annotation": "study",
    "density_ratio": "study", "cross_evaluation": "study", "selection_evaluation": "study",
    "pairwise_evaluation": "study", "shard": "study", "models": "study",
    "read-scores": "read_scores", "binarize": "binarize", "select": "select", "evaluate": "evaluate", "train": "train",
    "kinship": "kinship",
    "audit-labels": "audit_labels", "win-rate": "win_rate", "report": "report",
}  # fmt: skip


class _ByNeed(TyperGroup):
    """Commands by name: listed by their docstrings, imported when used, so that a broken one breaks no other."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return what the list of commands shows of one."""
        return _build(cmd_name, lambda: None, _read_help(cmd_name)) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return a command to be run, from its function."""
        if args[0] not in COMMANDS:
            return super().resolve_command(ctx, args)
        function = getattr(import_module(f"karma.commands.{COMMANDS[args[0]]}"), args[0].replace("-", "_"))
        return args[0], _build(args[0], function), args[1:]


def _build(name: str, function: Callable[..., None], text: str | None = None) -> Any:
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    one.command(name, help=text)(function)
    return get_command(one)


def _read_help(name: str) -> str:
    """Return a command's docstring without importing what it needs."""
    spec = find_spec(f"karma.commands.{COMMANDS[name]}")
    assert spec is not None and spec.origin is not None
    functions = [n for n in ast.parse(Path(spec.origin).read_text("utf-8")).body if isinstance(n, ast.FunctionDef)]
    return ast.get_docstring(next(n for n in functions if n.name == name.replace("-", "_"))) or ""


app = typer.Typer(
    cls=_ByNeed, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)  # fmt: skip


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Preference data without annotators, from the kinship of the models that wrote it (KARMA, arXiv 2502.18744).

    Start with `karma run params/demo.yaml --dry-run`, or on data of your own with `karma binarize --help`.
    """


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


if __name__ == "__main__":
    main()
