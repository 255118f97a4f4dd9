"""One of lm-evaluation-harness's model classes, asked in JSON lines: the program that `karma.models.worker` starts.

Its first line of input is {"kind": "load", "arguments": [engine, options]}, every further one a question, {"kind": a
method of the class, "arguments": one list a request}; each is answered by one line, {"error": ..., "answers": ...}.
Decision: it imports nothing of karma, so that it runs under any interpreter (3.11 or newer) that has
lm-evaluation-harness and the engine, whatever else that one lacks. What the engine prints goes to standard error, since
standard output is the way back.
Limit: one question at a time.
"""

import importlib
import json
import os
import signal
import sys
from typing import Any

LONGEST_ERROR = 400  # characters
ENGINES = {  # name -> module and class of lm-evaluation-harness
    "vllm": ("lm_eval.models.vllm_causallms", "VLLM"),
    "hf": ("lm_eval.models.huggingface", "HFLM"),
}


def serve() -> None:
    """Answer until the other end closes."""
    questions, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what the engine starts has no part in either
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback; the other end says why
    model = None
    for line in questions:
        question, error, answers = json.loads(line), None, None
        try:
            if question["kind"] == "load":
                model = load(*question["arguments"])
            else:
                answers = answer(model, question["kind"], question["arguments"])
        except (Exception, SystemExit) as failure:
            error = " ".join(f"{type(failure).__name__}: {failure}".split())[:LONGEST_ERROR]
        print(json.dumps({"error": error, "answers": answers}), file=replies, flush=True)


def load(engine: str, options: dict[str, Any]) -> Any:
    """Return the engine's model, loaded."""
    module, name = ENGINES[engine]
    return getattr(importlib.import_module(module), name)(**options)


def answer(model: Any, kind: str, arguments: list[list[Any]]) -> list[Any]:
    """Return what the model's method `kind` says to each request."""
    from lm_eval.api.instance import Instance

    requests = [Instance(kind, {}, tuple(args), i) for i, args in enumerate(arguments)]
    return getattr(model, kind)(requests, disable_tqdm=True)


if __name__ == "__main__":
    serve()
    sys.exit()
