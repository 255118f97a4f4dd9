"""A fork server for a sweep's jobs and their kernels: torch, transformers and TRL are imported once, not in each.

`karma run` starts the server (`python -m karma.study.forks ADDRESS`). A job is this same file run as a script, which
needs the standard library alone: it asks the server, at $KARMA_FORKS, for a fork of itself that does the work with the
asker's folder, environment and output, and ends as the fork ends. Without a server it becomes the plain process.

A sweep that starts where $KARMA_FORKS is set shares the server that is there: so do the sweeps of the tests.

Limits: Linux, and no CUDA device, whose driver does not survive a fork; elsewhere a sweep starts plain processes. All
jobs of a sweep run the code that lay there when the first of them started.
"""

import atexit
import gc
import json
import os
import select
import selectors
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

CLIENT = (sys.executable, "-IS", __file__)  # then "cli" or "kernel", then the arguments
PLAIN = {"cli": "karma.cli", "kernel": "ipykernel_launcher"}
# What notebooks reach by lazy imports; a name that has gone costs time, not the sweep.
PRELOADED = (
    "ipykernel.kernelapp", "langdetect", "lm_eval.evaluator", "lm_eval.models.huggingface", "lm_eval.tasks", "nltk",
    "papermill.engines", "peft", "punkt", "scipy.stats", "seaborn", "sklearn.decomposition", "sklearn.manifold",
    "torch._dynamo", "transformers.models.llama.modeling_llama", "trl.trainer.dpo_trainer", "trl.trainer.sft_trainer",
)  # fmt: skip


def ask(connection: socket.socket, kind: str, arguments: list[str]) -> int:
    """Have the server run a command line or a kernel in a fork of itself; return its exit code.

    The fork is ended with this process, and this process with its parent.

    Args:
        connection: to the server. kind: "cli" or "kernel". arguments: of the `karma` command, or of ipykernel.
    """
    parent = os.getppid()
    if kind == "kernel":  # Jupyter interrupts a kernel before it asks it to end: it is to end by itself, and be counted
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    values = {"kind": kind, "arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    message = json.dumps(values).encode()
    with suppress(ConnectionError):
        socket.send_fds(connection, [len(message).to_bytes(8, "big")], [1, 2])
        connection.sendall(message)
        while not select.select([connection], [], [], 1)[0]:  # seconds
            if os.getppid() != parent:
                return 1
        if answer := connection.recv(16):
            return int(answer)
    print("karma: the sweep's fork server ended before this job: run the same command again", file=sys.stderr)
    return 1


def serve(address: str) -> dict[str, Any] | None:
    """Fork a process for each request, until standard input ends.

    Args:
        address: where to listen, a path in a folder of this user alone.

    Returns:
        In each fork its request, to be done; in the server None, at the end.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    ended, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    selector, asked = selectors.DefaultSelector(), dict[int, tuple[socket.socket, str]]()
    for channel in (listener, ended, 0):
        selector.register(channel, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj == 0:  # closed: the sweep has ended
                return None
            if key.fileobj == ended:
                os.read(ended, 512)
                for connection, code in _reap(asked):
                    with suppress(KeyError):
                        selector.unregister(connection)
                    with suppress(OSError), connection:
                        connection.sendall(str(code).encode())
            elif key.fileobj is listener:
                connection, _ = listener.accept()
                try:
                    request, outputs = _receive(connection)
                except (OSError, ValueError, EOFError):
                    connection.close()
                    continue
                preload()
                pid = os.fork()
                if not pid:
                    for other in (*(k.fileobj for k in selector.get_map().values()), connection, waker):
                        os.close(other if isinstance(other, int) else other.fileno())
                    _become(request, outputs)
                    return request
                for descriptor in outputs:
                    os.close(descriptor)
                asked[pid] = connection, request["environment"].get("KARMA_USAGE", "")
                selector.register(connection, selectors.EVENT_READ, pid)
            else:  # the asker has ended, and takes its fork with it
                selector.unregister(key.fileobj)
                with suppress(ProcessLookupError):
                    os.kill(key.data, signal.SIGKILL)
                    os.killpg(key.data, signal.SIGKILL)


def _reap(asked: dict[int, tuple[socket.socket, str]]) -> Iterator[tuple[socket.socket, int]]:
    """Take out the forks that have ended: who asked, the exit code; the core-seconds go where the asker wants them."""
    while asked:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if not pid:
            return
        connection, path = asked.pop(pid)
        if path:
            with suppress(OSError):
                Path(path).write_text(str(usage.ru_utime + usage.ru_stime))
        code = os.waitstatus_to_exitcode(status)
        yield connection, code if code >= 0 else 128 - code


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    header, outputs, _, _ = socket.recv_fds(connection, 8, 2)
    with connection.makefile("rb") as stream:
        return json.loads(stream.read(int.from_bytes(header, "big"))), outputs


def _become(request: dict[str, Any], outputs: list[int]) -> None:
    """Take the asker's place: its output, folder, environment and arguments."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for descriptor, output in enumerate([os.open(os.devnull, os.O_RDONLY), *outputs]):
        os.dup2(output, descriptor)
        os.close(output)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["karma", *request["arguments"]]


@cache
def preload() -> None:
    """Import what jobs import, once; a module that cannot be imported is left to the job that needs it."""
    from importlib import import_module
    from pkgutil import walk_packages

    import karma

    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # a kernel's: read once, at the import
    sys.modules.setdefault("ipywidgets", None)  # type: ignore[arg-type]  # nobody reads live: bars are text
    names = [*PRELOADED, *(module.name for module in walk_packages(karma.__path__, "karma."))]
    for name in names:
        with suppress(Exception):
            import_module(name)
    gc.collect()
    gc.freeze()  # what was imported is never collected, so that forks need not walk it


@contextmanager
def start_server(environment: dict[str, str], output: IO[str]) -> Iterator[int]:
    """Start a server that lives as long as the processes that hold the descriptor which this gives.

    Args:
        environment: of the server; $KARMA_FORKS is added to it. output: where it says what went wrong.
    """
    import subprocess
    from tempfile import mkdtemp

    environment["KARMA_FORKS"] = f"{mkdtemp(prefix='karma-')}/forks"
    reader, writer = os.pipe()
    command = [sys.executable, "-P", "-m", "karma.study.forks", environment["KARMA_FORKS"]]
    subprocess.Popen(command, env=environment, stdin=reader, stdout=output, stderr=output, start_new_session=True)
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def _work(kind: str) -> int:
    """Run the command line or the kernel that `sys.argv` is for; return its exit code."""
    try:
        if kind == "kernel":
            from ipykernel.kernelapp import launch_new_instance

            launch_new_instance(parent_handle=1)  # it need not watch its parent: the server does
        else:
            from karma.cli import main as run

            run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def main() -> None:
    """Be the server, one of its forks, or the client."""
    if __package__:
        address = Path(sys.argv[1])
        request = serve(str(address))
        if request is None:
            address.unlink()
            address.parent.rmdir()
            return
        code = _work(request["kind"])
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking down all that was imported would take a second or two
    kind, *arguments = sys.argv[1:]
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.environ["KARMA_FORKS"])
    except (KeyError, OSError, AttributeError):  # no sweep, no server any more, no such sockets on this system
        os.execv(sys.executable, [sys.executable, "-m", PLAIN[kind], *arguments])
    sys.exit(ask(connection, kind, arguments))


if __name__ == "__main__":
    main()
