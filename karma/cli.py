"""The `karma` command: what there is, and how an error ends it. A command's file is read when the command is asked for.

Errors are one line with the remedy; exit code 1 for a failed run, 2 for bad input. Decision: here is the last border.
What the operating system or a library of formats says of a path or a file is the user's to mend, and said in one line;
anything else unforeseen is called a bug, with how to see its traceback (--debug, or KARMA_DEBUG=1), and never hidden.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress


@contextmanager
def _end_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process without a traceback, while modules are imported and nothing is at work yet."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


with _end_at_once():
    import ast
    import errno
    import logging
    import math
    import os
    import platform
    import sys
    import warnings
    from importlib import import_module
    from importlib.util import find_spec
    from pathlib import Path
    from typing import Annotated, Any, get_args, get_type_hints

    import typer
    from typer.core import TyperGroup
    from typer.main import get_command

    from karma.errors import InputError, KarmaError, show_line

GROUPS = {  # as `karma --help` shows them: command -> its file in karma/commands
    "Study": {
        "run": "study", "status": "study", "report": "report", "models": "study", "new": "new", "demo": "demo",
        "doctor": "doctor",
    },
    "One step": {
        "read-scores": "read_scores", "kinship": "kinship", "evaluate": "evaluate", "binarize": "binarize",
        "select": "select", "train": "train", "audit-labels": "audit_labels", "win-rate": "win_rate",
        "export": "export", "push": "push",
    },
    "Inside (what a study's jobs call)": {
        "notebook": "study", "pool": "study", "annotation": "study", "density_ratio": "study",
        "cross_evaluation": "study", "reward_evaluation": "study", "selection_evaluation": "study",
        "pairwise_evaluation": "study", "shard": "study",
    },
}  # fmt: skip
COMMANDS = {name: file for group in GROUPS.values() for name, file in group.items()}


class _ByNeed(TyperGroup):
    """Commands by name: listed by their docstrings, imported when used, so that a broken one breaks no other."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return what the list of commands shows of one, in its group."""
        if cmd_name not in COMMANDS:
            return None
        command = _build(cmd_name, lambda: None, _read_help(cmd_name))
        command.rich_help_panel = next(title for title, group in GROUPS.items() if cmd_name in group)
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return a command to be run, from its function."""
        if args[0] not in COMMANDS:
            return super().resolve_command(ctx, args)
        module = import_module(f"karma.commands.{COMMANDS[args[0]]}")
        function = getattr(module, args[0].replace("-", "_"))
        command = _build(args[0], function, epilog=getattr(module, "EPILOG", None))
        _refuse_odd_numbers(command, get_type_hints(function), args[1:])
        return args[0], command, args[1:]


def _build(name: str, function: Callable[..., None], text: str | None = None, epilog: str | None = None) -> Any:
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    one.command(name, help=text, epilog=epilog)(function)
    command = get_command(one)
    for parameter in command.params:
        parameter.callback = parameter.callback or _check_number
    return command


def _check_number(_: Any, parameter: Any, value: Any) -> Any:
    """Refuse what no option's number can be, whatever its range: a range lets NaN through."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if (isinstance(one, float) and not math.isfinite(one)) or (isinstance(one, int) and abs(one) >= 2**32):
            raise InputError(f"{parameter.opts[0]} {one}: expected a number that is finite and below {2**32:,}")
    return value


def _refuse_odd_numbers(command: Any, kinds: dict[str, Any], words: list[str]) -> None:
    """Refuse what Python reads as a number and no person writes: 1_000, or digits of another script."""
    asked = {opt for p in command.params for opt in p.opts if {int, float} & {kinds[p.name], *get_args(kinds[p.name])}}
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        option, text = (name, value) if equals else (before, word)
        if option in asked and not (text.isascii() and "_" not in text):
            raise InputError(f"{option} {text}: expected a number in the digits 0 to 9, without a _")


def _read_help(name: str) -> str:
    """Return a command's docstring without importing what it needs."""
    spec = find_spec(f"karma.commands.{COMMANDS[name]}")
    assert spec is not None and spec.origin is not None
    functions = [n for n in ast.parse(Path(spec.origin).read_text("utf-8")).body if isinstance(n, ast.FunctionDef)]
    return ast.get_docstring(next(n for n in functions if n.name == name.replace("-", "_"))) or ""


app = typer.Typer(
    cls=_ByNeed, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)  # fmt: skip


def _show_version(asked: bool) -> None:
    if asked:
        from karma import __version__

        typer.echo(f"karma {__version__} (Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the kit's version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Turn benchmark scores into preference pairs, and check whether it works (KARMA, arXiv 2502.18744).

    Start with `karma doctor`, then `karma run params/demo.yaml --dry-run`; on your own data, `karma binarize --help`.
    """


def main() -> None:
    """Run the command line."""
    debug = "--debug" in sys.argv or bool(os.environ.get("KARMA_DEBUG"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that cannot be encoded is no reason to fail
            with suppress(OSError):  # a pipe that cannot tell where it is
                stream.reconfigure(errors="backslashreplace")
    try:
        _refuse_empty(sys.argv[1:])
        with _say_a_word(_find_command(sys.argv[1:])), nullcontext() if debug else _hear_only_the_kit():
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except KeyboardInterrupt:  # before typer hears it, or after
        if debug:
            raise
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        told = _name_flags(explain(error), sys.argv[1:])
        lines = told.splitlines() if isinstance(error, KarmaError) and not isinstance(error, InputError) else [told]
        typer.secho("karma: " + "\n".join(map(_show_indented, lines)), err=True, fg="red")
        sys.exit(find_exit_code(error))
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _hear_only_the_kit() -> Iterator[None]:
    """Keep to themselves what libraries have to say: it is not for who uses the command."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            yield
    finally:
        logging.disable(disabled)


SILENT = ("evaluate", "select", "train", "audit-labels", "win-rate", "report", "export", "push")
PATIENCE_S = 3.0  # seconds


@contextmanager
def _say_a_word(name: str | None) -> Iterator[None]:
    """Tell who sits at a terminal that a command is at work, once, where it has not ended after some seconds."""
    if name not in SILENT or not sys.stderr.isatty():
        yield
        return
    said = f"karma {name}: at work; packages and models take a while to load ..."
    timer = threading.Timer(PATIENCE_S, typer.echo, (said,), {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _find_command(words: list[str]) -> str | None:
    return next((word for word in words if word in COMMANDS), None)


def _name_flags(told: str, words: list[str]) -> str:
    """Say what a message calls a setting as the command's own option, where it has one."""
    name = _find_command(words)
    module = sys.modules.get(f"karma.commands.{COMMANDS[name]}") if name else None
    if name is None or module is None:  # the command itself could not be imported
        return told
    command = _build(name, getattr(module, name.replace("-", "_")))
    name_flags = import_module("karma.commands.flags").name_flags
    return str(name_flags(told, name, {option for parameter in command.params for option in parameter.opts}))


def _show_indented(line: str) -> str:
    """Show one line of a list of what failed; bad input is a single one."""
    return line[: len(line) - len(line.lstrip())] + show_line(line)


def _refuse_empty(words: list[str]) -> None:
    """Refuse an empty value, which as a path would mean the current folder."""
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        if not word.strip() or (name.startswith("--") and equals and not value.strip()):
            named = name if word.strip() else before if before.startswith("-") else "an argument"
            raise InputError(f"{named} is empty: give a value, or leave it out")


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
    """Say in one line what the kit itself warns of."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parent):
        typer.echo(f"karma: note: {show_line(message)}", err=True)


# --- what an exception means to who typed the command ---------------------------------------------------------------

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE)  # the machine's fault, not the input's
_FORMATS = ("pyarrow", "yaml", "json", "safetensors_rust", "pandas", "csv")  # whose errors are about a file


def find_exit_code(error: Exception) -> int:
    """Return the exit code that an exception means: 2 where the input is bad, else 1.

    Example:
        >>> find_exit_code(FileNotFoundError(errno.ENOENT, "No such file", "x")), find_exit_code(ZeroDivisionError())
        (2, 1)
    """
    if isinstance(error, KarmaError) or _is_usage(error):
        return int(getattr(error, "exit_code", 1))
    if isinstance(error, OSError):
        return 2 if error.filename is not None and error.errno not in _FULL else 1
    return 2 if _is_about_a_file(error) else 1


def explain(error: Exception) -> str:
    """Say what an exception means, and how to see where it was raised if that is not plain.

    Example:
        >>> explain(ZeroDivisionError("division by zero"))
        'this is a bug, please report it: ZeroDivisionError: division by zero (KARMA_DEBUG=1 shows where)'
    """
    if _is_usage(error):
        context = getattr(error, "ctx", None)
        see = f" (see `{context.command_path} --help`)" if context else ""
        return f"{getattr(error, 'format_message')()}{see}"  # noqa: B009  # typer keeps its own copy of click
    if isinstance(error, KarmaError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    name, where = type(error).__name__, "(KARMA_DEBUG=1 shows where)"
    if isinstance(error, OSError):
        return f"{error.strerror or error} {where}"
    if isinstance(error, MemoryError):
        return f"there is not enough memory for this {where}"
    if _is_about_a_file(error):
        return f"a file cannot be used: {name}: {error} {where}"
    return f"this is a bug, please report it: {name}: {error} {where}"


def _is_usage(error: Exception) -> bool:
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _is_about_a_file(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in _FORMATS or isinstance(error, UnicodeError)


if __name__ == "__main__":
    main()
