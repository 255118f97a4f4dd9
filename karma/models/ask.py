"""Ask a model for text: one layer for origin evaluation, policy evaluation and the pool.

A `CachedModel` is a model in lm-evaluation-harness's sense: a backend (`karma.models.backends`, `karma.models.api`)
does the work, only when something is really asked. Prompts are asked in fixed batches, longest first, and each batch's
answers are kept in a file named by its content: weights, precision, prompts, generation settings. So a killed job re-
asks nothing, another model under the same path re-asks everything, and two models with the same weights are asked once.
Behind an API, where a prompt's company changes nothing, each prompt is kept on its own and a batch is asked side by
side.
Decision: batches never mix benchmarks, since a batch's company changes the rounding of a prompt's answer.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm.auto import tqdm

from karma.errors import InputError, KarmaError
from karma.files import compute_digest, load_json, save_json
from karma.models.backends import Answered, TransformersBackend, VllmBackend
from karma.models.load import Specs
from karma.study.locks import open_lock
from karma.study.settings import Compute


class Sampling(Protocol):
    """How a response is drawn, as `Pool` and `SelfPlay` of the settings say it."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens at most."""

    @property
    def temperature(self) -> float:
        """0: the likeliest."""

    @property
    def top_p(self) -> float:
        """Share of the probability drawn from."""


@dataclass(frozen=True)
class Cost:
    """What answers took, whenever they were asked.

    Attributes:
        calls: prompts. prompt_tokens, new_tokens: None where a server does not say, or an older cache.
        seconds: of each question, summed: of questions asked side by side more than passed. None: an older cache.
    """

    calls: int = 0
    prompt_tokens: int | None = 0
    new_tokens: int | None = 0
    seconds: float | None = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Return the sum; what one of them does not know is unknown.

        Example:
            >>> Cost(1, 10, None, 0.5) + Cost(2, 5, 3, 0.5)
            Cost(calls=3, prompt_tokens=15, new_tokens=None, seconds=1.0)
        """
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        prompt_tokens = _add(self.prompt_tokens, other.prompt_tokens)
        return Cost(self.calls + other.calls, prompt_tokens, _add(self.new_tokens, other.new_tokens), seconds)


UNKNOWN = {"prompt_tokens": None, "new_tokens": None, "seconds": None}  # what a cache of before tells of its answers
Work = tuple[str, dict[str, Any], int, Callable[[], Answered]]  # key, what is asked, its number of prompts, how to ask


class CachedModel(LM):
    """A named model that answers prompts in batches, from its cache where it was asked before.

    Args:
        models: name -> specification (`Job.models`).
        name: which one.
        compute: the experiment's `compute` (backend, device, dtype, threads).
        batch_size: prompts a batch; of an API, requests at a time.
        cache: folder of answers; None keeps nothing.

    Attributes:
        backend: what answers. digest: of the weights (or API model id).
        prompt_tokens, new_tokens (None: the server does not say), seconds: spent in this object, cached answers aside.
        n_asked, n_cached: prompts. cost: of all of them, with what those from the cache took when they were asked.
    """

    def __init__(self, models: Specs, name: str, compute: Compute, batch_size: int, cache: Path | None = None):
        super().__init__()
        self.name, self.batch_size, self.cache = name, batch_size, cache
        self.backend = open_backend(models, name, compute, batch_size)
        self.digest, self.dtype, self.threads = self.backend.digest, self.backend.dtype, self.backend.threads
        self.model_device, self.tokenizer = self.backend.device, self.backend.tokenizer
        self.prompt_tokens: int | None = 0
        self.new_tokens: int | None = 0
        self.n_asked = self.n_cached = 0
        self.seconds = 0.0
        self.cost = Cost()
        self._tally = Lock()

    @property
    def inner(self):
        """The lm-evaluation-harness model behind a local backend, loaded on first use."""
        return self.backend.inner

    @property
    def tokenizer_name(self) -> str:
        """Name the tokenizer, for lm-evaluation-harness's own bookkeeping."""
        return self.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the model's chat template; empty where a server applies it."""
        return self.tokenizer.chat_template if self.tokenizer else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turn messages into what the backend is asked: text in the model's format, or JSON for a server."""
        return self.backend.format_chat(chat_history, add_generation_prompt)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer requests of (prompt, generation settings), batch by batch, in the order given."""
        answers: dict[int, str] = {}
        with tqdm(total=len(requests), desc=f"{self.name}: prompts", disable=disable_tqdm, unit="prompt") as bar:
            for batch in self._batches(requests, [[r.task_name, r.args[1]] for r in requests]):
                for index, answer in zip(batch, self._answer([requests[i] for i in batch]), strict=True):
                    answers[index] = answer
                bar.update(len(batch))
        return [answers[i] for i in range(len(requests))]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score requests of (context, continuation), all continuations of a context in one batch.

        Raises:
            InputError: the model is behind an API, which does not tell.
        """
        if not self.backend.has_logprobs:
            raise InputError(f"model '{self.name}' is behind an API, which gives no log-probabilities of options")
        groups: dict[tuple[str | None, str], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault((request.task_name, request.args[0]), []).append(index)
        members, results = list(groups.values()), {}
        with tqdm(total=len(groups), desc=f"{self.name}: items", disable=disable_tqdm, unit="item") as bar:
            firsts = [requests[group[0]] for group in members]
            for batch in self._batches(firsts, [first.task_name for first in firsts]):
                indices = [i for k in batch for i in members[k]]
                for index, (logp, greedy) in zip(
                    indices, self._compare([requests[i].args for i in indices]), strict=True
                ):
                    results[index] = (logp, greedy)
                bar.update(len(batch))
        return [results[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not needed by any of this kit's tasks."""
        raise NotImplementedError("this kit's tasks ask for answers or compare options")

    def _batches(self, requests: list[Instance], kinds: list[Any]) -> Iterable[list[int]]:
        """Yield batches of requests of one kind, longest first."""
        groups: dict[str, list[int]] = {}
        for index, kind in enumerate(kinds):
            groups.setdefault(compute_digest([kind]), []).append(index)
        for members in groups.values():
            lengths = self.backend.count_tokens([requests[i].args[0] for i in members])
            order = sorted(range(len(members)), key=lambda k: (-lengths[k], requests[members[k]].args[0]))
            for start in range(0, len(order), self.batch_size):
                yield [members[k] for k in order[start : start + self.batch_size]]

    def _answer(self, batch: list[Instance]) -> list[str]:
        settings, prompts = batch[0].args[1], [request.args[0] for request in batch]
        groups = [[prompt] for prompt in prompts] if self.backend.alone else [prompts]
        work: list[Work] = []
        for group in groups:
            key = compute_digest([*self.backend.identity, group, settings])
            ask = partial(self.backend.generate, group, settings, int(key[:8], 16))
            work.append((key, {"prompts": group, "settings": settings}, len(group), ask))
        return self._look_up_all(work, settings)

    def _compare(self, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
        asked = {"contexts": [list(pair) for pair in pairs]}
        way = "options in one row" if self.backend.shares_rows else "loglikelihood"
        key = compute_digest([*self.backend.identity, way, asked])
        return self._look_up_all([(key, asked, len({c for c, _ in pairs}), partial(self.backend.compare, pairs))], way)

    def _look_up_all(self, work: Sequence[Work], kind: Any) -> list[Any]:
        """Do pieces of work side by side, each from the cache if it is there; return all their answers, in order."""
        with self._locked(kind):
            if not all(self._is_kept(key) for key, *_ in work):
                self.backend.load()
            started, n_asked = time.perf_counter(), self.n_asked
            answers = _map_side_by_side(self._look_up, work)
            if self.n_asked > n_asked:
                self.seconds += time.perf_counter() - started
        return [answer for group in answers for answer in group]

    def _locked(self, kind: Any):
        """Let jobs with the same weights, side by side, ask each batch once; those that ask otherwise need not wait."""
        if self.cache is None:
            return nullcontext()
        return open_lock(self.cache / self.digest / f".lock-{compute_digest([kind])[:8]}")

    def _is_kept(self, key: str) -> bool:
        return self.cache is not None and (self.cache / self.digest / f"{key}.json").is_file()

    def _look_up(self, work: Work) -> list[Any]:
        key, asked, n_prompts, ask = work
        if self._is_kept(key):
            kept = load_json(self.cache / self.digest / f"{key}.json")  # type: ignore[operator]
            with self._tally:
                self.n_cached += n_prompts
                self.cost += Cost(n_prompts, **kept.get("cost", UNKNOWN))
            return kept["answers"]
        started = time.perf_counter()
        answered = ask()
        cost = Cost(n_prompts, answered.prompt_tokens, answered.new_tokens, round(time.perf_counter() - started, 3))
        if self.cache is not None:
            kept = {**asked, "answers": answered.answers, "cost": {name: getattr(cost, name) for name in UNKNOWN}}
            save_json(kept, self.cache / self.digest / f"{key}.json")
        with self._tally:
            self.n_asked += n_prompts
            self.cost += cost
            self.prompt_tokens = _add(self.prompt_tokens, answered.prompt_tokens)
            self.new_tokens = _add(self.new_tokens, answered.new_tokens)
        return answered.answers


def _add(total: int | None, count: int | None) -> int | None:
    return None if total is None or count is None else total + count


def _map_side_by_side(function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    """Map in threads; after a failure nothing new is started, and what was asked already is kept."""
    if len(values) == 1:
        return [function(values[0])]
    pool = ThreadPoolExecutor(max_workers=len(values))
    try:
        return [future.result() for future in [pool.submit(function, value) for value in values]]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def sample_responses(model: CachedModel, prompts: list[str], settings: Sampling, seed: int) -> list[str]:
    """Sample one response to each prompt, in the model's chat format.

    Args:
        model: who answers.
        prompts: user turns.
        settings: max_new_tokens, temperature (0: greedy), top_p: the experiment's `pool` or `self_play`.
        seed: of the draw.

    Returns:
        The responses, stripped, in the order of the prompts; the same text on every run.
    """
    how = {"until": [], "max_gen_toks": settings.max_new_tokens, "do_sample": settings.temperature > 0}
    if how["do_sample"]:
        how |= {"temperature": settings.temperature, "top_p": settings.top_p, "seed": seed}
    texts = [model.apply_chat_template([{"role": "user", "content": prompt}]) for prompt in prompts]
    if any(not text for text in texts):
        raise KarmaError(f"{model.name}: its chat template made an empty prompt")
    requests = [
        Instance("generate_until", {}, (text, how), i, metadata=("sample", i, 1)) for i, text in enumerate(texts)
    ]
    return [answer.strip() for answer in model.generate_until(requests)]


def ask(model: CachedModel, prompt: str, max_new_tokens: int) -> str:
    """Ask one user turn and return the most likely answer (greedy), in the model's chat format."""
    how = {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False}
    text = model.apply_chat_template([{"role": "user", "content": prompt}])
    return model.generate_until([Instance("generate_until", {}, (text, how), 0, metadata=("ask", 0, 1))], True)[
        0
    ].strip()


def open_backend(models: Specs, name: str, compute: Compute, batch_size: int) -> Any:
    """Return the backend of a model: the API for an `api` source, else what `compute.backend` names.

    Raises:
        InputError: no such model, or a backend that cannot serve it.
    """
    if name not in models:
        raise InputError(f"no model '{name}'; there are {', '.join(models)}")
    if models[name].get("api"):
        from karma.models.api import ApiBackend

        return ApiBackend(name, models[name]["api"])
    backends = {"transformers": TransformersBackend, "vllm": VllmBackend}
    return backends[compute.backend](models, name, compute, batch_size)
