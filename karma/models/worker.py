"""One of lm-evaluation-harness's model classes in a process of its own, asked over a pipe.

For engines that cannot share a process with the kit (vLLM pins other versions of its dependencies' runtime state and
takes the GPU until its process ends). Limit: one question at a time.
"""

import multiprocessing
from typing import Any

from lm_eval.api.instance import Instance

from karma.errors import KarmaError

ENGINES = {  # name -> module and class of lm-evaluation-harness
    "vllm": ("lm_eval.models.vllm_causallms", "VLLM"),
    "hf": ("lm_eval.models.huggingface", "HFLM"),
}


class WorkerModel:
    """A stand-in for the model class that runs in the child process.

    Args:
        engine: a key of ENGINES.
        options: what its class takes.

    Raises:
        KarmaError: on any question, if the child could not load the model or died.
    """

    def __init__(self, engine: str, options: dict[str, Any]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(engine, options, theirs), daemon=engine == "hf")
        self._process.start()
        theirs.close()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answer prompts, as lm-evaluation-harness's models do."""
        return self._call("generate_until", [request.args for request in requests])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Score continuations, as lm-evaluation-harness's models do."""
        return self._call("loglikelihood", [request.args for request in requests])

    def _call(self, kind: str, arguments: list[tuple]) -> list[Any]:
        try:
            self._pipe.send((kind, arguments))
            error, result = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(10)
            code = self._process.exitcode
            raise KarmaError(f"the model's process ended (exit code {code}): out of memory or killed") from None
        if error:
            raise KarmaError(f"the model's process failed: {error}")
        return result

    def close(self) -> None:
        """End the child process."""
        self._pipe.close()
        self._process.join(30)
        if self._process.is_alive():
            self._process.terminate()

    def __del__(self):
        if getattr(self, "_process", None) is not None and self._process.is_alive():
            self._pipe.close()


def serve(engine: str, options: dict[str, Any], pipe: Any) -> None:
    """Load the model and answer until the other end closes; the child process's whole work."""
    import importlib

    failure, model = None, None
    try:
        module, name = ENGINES[engine]
        model = getattr(importlib.import_module(module), name)(**options)
    except (Exception, SystemExit) as error:  # told to the parent, whose question is answered with it
        failure = f"{engine} cannot load {options.get('pretrained')}: {type(error).__name__}: {error}".splitlines()[0]
    while True:
        try:
            kind, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send((failure, None) if failure else _ask(model, kind, arguments))


def _ask(model: Any, kind: str, arguments: list[tuple]) -> tuple[str | None, list[Any] | None]:
    requests = [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]
    try:
        return None, getattr(model, kind)(requests, disable_tqdm=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0], None
