"""Ask a model for text: one layer for origin evaluation, policy evaluation and the pool.

A `CachedModel` is a model in lm-evaluation-harness's sense: a backend (`karma.models.backends`, `karma.models.api`)
does the work, only when something is really asked. Prompts are asked in fixed batches, longest first, and each batch's
answers are kept (`karma.models.store`) under a key of its content: weights, precision, prompts, generation settings.
So a killed job re-asks nothing, another model under the same path re-asks everything, and two models with the same
weights are asked once. Behind an API, where a prompt's company changes nothing, each prompt is kept on its own and a
batch is asked side by side. Who asks, this process, others beside it or Ray's, is `karma.models.shards`'s business.
Decision: batches never mix benchmarks, since a batch's company changes the rounding of a prompt's answer.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm.auto import tqdm

from karma.errors import InputError, KarmaError
from karma.files.reading import compute_digest
from karma.models.backends import TransformersBackend, VllmBackend
from karma.models.load import Specs
from karma.models.placement import answer
from karma.models.shards import Advance, Batch, Piece, Recipe, Share
from karma.models.store import Record, open_store
from karma.study.sections import Compute

Prompt = str | list[dict[str, str]]  # the text of a single message of the user's, or a conversation that ends with one


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


class CachedModel(LM):
    """A named model that answers prompts in batches, from its cache where it was asked before.

    Args:
        models: name -> specification (`Job.models`).
        name: which one.
        compute: the experiment's `compute` (backend, device, dtype, threads).
        batch_size: prompts a batch; of an API, requests at a time.
        cache: folder of answers; None keeps nothing.
        share: this process is one of several that answer the same prompts: it answers what the others leave, and what
            it returns says nothing where they are not done.

    Attributes:
        backend: what answers. digest: of the weights (or API model id).
        prompt_tokens, new_tokens (None: the server does not say), seconds: spent in this object, cached answers aside.
        n_asked, n_cached: prompts. cost: of all of them, with what those from the cache took when they were asked.
    """

    def __init__(
        self, models: Specs, name: str, compute: Compute, batch_size: int, cache: Path | None = None,
        share: Share | None = None,
    ):  # fmt: skip
        super().__init__()
        self.name, self.batch_size, self.cache, self.share = name, batch_size, cache, share
        self.backend = open_backend(models, name, compute, batch_size)
        self.digest, self.dtype, self.threads = self.backend.digest, self.backend.dtype, self.backend.threads
        self.model_device, self.tokenizer = self.backend.device, self.backend.tokenizer
        is_far = bool(models[name].get("api"))  # whose device is the server's
        place = {"gpus_per_job": 0} if is_far else {"device": self.model_device, "dtype": self.dtype}
        self.compute = compute.model_copy(update=place)
        how = {"models": models, "name": name, "compute": self.compute.model_dump(), "batch_size": batch_size}
        self._recipe = Recipe("karma.models.ask:open_asker", how)
        self._store = open_store(cache, self.digest)
        self.prompt_tokens: int | None = 0
        self.new_tokens: int | None = 0
        self.n_asked = self.n_cached = 0
        self.seconds = 0.0
        self.cost = Cost()

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
        batches: list[Batch] = []
        places: list[tuple[Piece, list[int]]] = []
        for batch in self._batches(requests, [[r.task_name, r.args[1]] for r in requests]):
            groups = [[i] for i in batch] if self.backend.alone else [batch]
            pieces = [self._write([requests[i].args[0] for i in group], requests[batch[0]].args[1]) for group in groups]
            places += zip(pieces, groups, strict=True)
            batches.append(pieces)
        with tqdm(total=len(requests), desc=f"{self.name}: prompts", disable=disable_tqdm, unit="prompt") as bar:
            return self._answer(batches, places, bar, "")

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
        members = list(groups.values())
        firsts = [requests[group[0]] for group in members]
        batches: list[Batch] = []
        places: list[tuple[Piece, list[int]]] = []
        for batch in self._batches(firsts, [first.task_name for first in firsts]):
            indices = [i for k in batch for i in members[k]]
            piece = self._write_comparison([requests[i].args for i in indices])
            places.append((piece, indices))
            batches.append([piece])
        with tqdm(total=len(groups), desc=f"{self.name}: items", disable=disable_tqdm, unit="item") as bar:
            return [(logp, greedy) for logp, greedy in self._answer(batches, places, bar, (-1.0, False))]

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

    def _write(self, prompts: list[str], settings: dict[str, Any]) -> Piece:
        key = compute_digest([*self.backend.identity, prompts, settings])
        return Piece(key, {"prompts": prompts, "settings": settings}, len(prompts))

    def _write_comparison(self, pairs: list[tuple[str, str]]) -> Piece:
        asked = {"contexts": [list(pair) for pair in pairs]}
        way = "options in one row" if self.backend.shares_rows else "loglikelihood"
        key = compute_digest([*self.backend.identity, way, asked])
        return Piece(key, asked, len({context for context, _ in pairs}))

    def _answer(self, batches: list[Batch], places: list[tuple[Piece, list[int]]], bar: Any, unknown: Any) -> list[Any]:
        """Answer batches, count, and put the answers of each piece into their places among the requests."""
        found: dict[str, list[Any]] = {}
        done = answer(
            BackendAsker(self.backend), self._recipe, self._store, batches, self.compute, bar.update, self.share
        )
        for shard, took, records in done:
            self.seconds += sum(took.values())
            for piece in (piece for batch in shard for piece in batch):
                is_new = took.pop(piece.key, None) is not None
                self._count(piece, records[piece.key], is_new)
                found[piece.key] = records[piece.key]["answers"]
                bar.update(0 if is_new else piece.n)  # the others were told when they were asked
        answers: dict[int, Any] = {}
        for piece, indices in places:
            answers |= zip(indices, found.get(piece.key, [unknown] * len(indices)), strict=True)
        return [answers[i] for i in range(len(answers))]

    def _count(self, piece: Piece, record: Record, is_new: bool) -> None:
        cost = Cost(piece.n, **record.get("cost", UNKNOWN))
        self.cost += cost
        if not is_new:
            self.n_cached += piece.n
            return
        self.n_asked += piece.n
        self.prompt_tokens = _add(self.prompt_tokens, cost.prompt_tokens)
        self.new_tokens = _add(self.new_tokens, cost.new_tokens)


class BackendAsker:
    """Answers the pieces that a `CachedModel` writes, by its backend."""

    def __init__(self, backend: Any):
        self.backend = backend

    def load(self) -> None:
        """Load the model now."""
        self.backend.load()

    def ask(self, piece: Piece, advance: Advance) -> Record:
        """Return what was asked, the answers and their cost."""
        started, asked = time.perf_counter(), piece.asked
        if "prompts" in asked:
            answered = self.backend.generate(asked["prompts"], asked["settings"], int(piece.key[:8], 16))
        else:
            answered = self.backend.compare([(context, option) for context, option in asked["contexts"]])
        cost = {"prompt_tokens": answered.prompt_tokens, "new_tokens": answered.new_tokens,
                "seconds": round(time.perf_counter() - started, 3)}  # fmt: skip
        advance(piece.n)
        return {**asked, "answers": answered.answers, "cost": cost}


def open_asker(models: Specs, name: str, compute: dict[str, Any], batch_size: int) -> BackendAsker:
    """Open a model in a worker elsewhere (`karma.models.shards.Recipe`)."""
    here = Compute.model_validate({**compute, "engine": "local"})
    return BackendAsker(open_backend(models, name, here, batch_size))


def _add(total: int | None, count: int | None) -> int | None:
    return None if total is None or count is None else total + count


def sample_responses(model: CachedModel, prompts: Sequence[Prompt], settings: Sampling, seed: int) -> list[str]:
    """Sample one response to each prompt, in the model's chat format.

    Args:
        model: who answers.
        prompts: texts of a single message of the user's, or conversations that end with one.
        settings: max_new_tokens, temperature (0: greedy), top_p: the experiment's `pool` or `self_play`.
        seed: of the draw.

    Returns:
        The responses, stripped, in the order of the prompts; the same text on every run.
    """
    how = {"until": [], "max_gen_toks": settings.max_new_tokens, "do_sample": settings.temperature > 0}
    if how["do_sample"]:
        how |= {"temperature": settings.temperature, "top_p": settings.top_p, "seed": seed}
    asked = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in prompts]
    texts = [model.apply_chat_template(messages) for messages in asked]
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
