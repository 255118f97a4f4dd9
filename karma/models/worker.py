"""One of lm-evaluation-harness's model classes in a process of its own, asked in JSON lines over its input and output.

For engines that cannot share a process with the kit: vLLM pins other versions of torch and transformers, and keeps the
GPU until its process ends. So the process may run under another interpreter (`find_python`), which needs the engine and
lm-evaluation-harness and nothing of this kit (`karma.models.engine` is what runs there).
Decision: a process that ends over a question is started once more with the same question, since a machine short of
memory often has it a moment later; a second end is an error. Nothing is pickled.
Limit: one question at a time.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from tqdm.auto import tqdm

from karma.errors import InputError, KarmaError
from karma.files.places import find_project_root
from karma.models import engine as program

PYTHON = "KARMA_VLLM_PYTHON"  # the environment variable
MADE = ".venv-vllm/bin/python"  # by `make vllm`, in the clone
# One process, whose end is the end of all: no engine of vLLM's own is left behind with the GPU, and the order in which
# it schedules does not depend on the moment.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class WorkerModel:
    """A stand-in for the model class that runs in the child process.

    Args:
        engine: a key of `karma.models.engine.ENGINES`.
        options: what its class takes.
        python: the interpreter that the process runs under; None: this one.

    Raises:
        KarmaError: the child cannot load the model, failed over a question, or ended twice over the same one.
    """

    def __init__(self, engine: str, options: dict[str, Any], python: str | None = None):
        self._command = [python or sys.executable, "-P", str(Path(program.__file__))]
        self._load = {"kind": "load", "arguments": [engine, options]}
        self._process: subprocess.Popen[str] | None = None
        self._ask(self._load)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answer prompts, as lm-evaluation-harness's models do."""
        return self._ask({"kind": "generate_until", "arguments": [request.args for request in requests]})

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Score continuations, as lm-evaluation-harness's models do."""
        answers = self._ask({"kind": "loglikelihood", "arguments": [request.args for request in requests]})
        return [(logp, greedy) for logp, greedy in answers]

    def _ask(self, question: dict[str, Any]) -> Any:
        for is_last in (False, True):
            try:
                reply = self._exchange(question)
            except BaseException:  # interrupted: an answer still to come would be taken for the next question's
                self._kill()
                raise
            if reply:
                break
            ended = f"the model's process ended (exit code {self._kill()}): out of memory or killed"
            if is_last:
                raise KarmaError(f"{ended}, twice over the same question")
            tqdm.write(f"{ended}; started once more", file=sys.stderr)
        if error := reply["error"]:
            if error.startswith("ModuleNotFoundError"):
                error += (
                    f" under {self._command[0]}: run `make vllm`, or name in {PYTHON} a python that has what is missing"
                )
            raise KarmaError(f"the model's process failed: {error}")
        return reply["answers"]

    def _exchange(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a question, of a process that is started if there is none; empty if it ended."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
                env={**ENVIRONMENT, **os.environ},
            )  # fmt: skip
            if question is not self._load:
                loaded = self._exchange(self._load)
                if not loaded:
                    return loaded
                if loaded["error"]:
                    self._kill()
                    return loaded
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except OSError:
            return {}
        return json.loads(line) if line.endswith("\n") else {}

    def _kill(self) -> int | None:
        """End the child at once; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        with suppress(OSError), process:  # closing flushes what it did not take
            pass
        return process.wait()

    def __del__(self):
        process = getattr(self, "_process", None)
        if process and process.stdin:
            with suppress(OSError):
                process.stdin.close()  # it ends itself


def find_python() -> str | None:
    """Return the interpreter that has vLLM: $KARMA_VLLM_PYTHON, else that of `make vllm`; None: the kit's own.

    Raises:
        InputError: the variable names no program.
    """
    if named := os.environ.get(PYTHON):
        if not shutil.which(named):
            raise InputError(f"{PYTHON} is {named}, which is no program: give the whole path of the python beside vLLM")
        return named
    try:
        made = find_project_root() / MADE
    except InputError:  # installed, without a clone
        return None
    return str(made) if made.is_file() else None
