"""Ask a model for text: one layer for origin evaluation, policy evaluation and the pool.

A `CachedModel` is a model in lm-evaluation-harness's sense (its `HFLM` does the work), loaded only when something is
really asked. Prompts are asked in fixed batches, longest first, and each batch's answers are kept in a file named by
its content: weights, precision, prompts, generation settings. So a killed job re-asks nothing, another model under
the same path re-asks everything, and two models with the same weights are asked once.
Decision: batches never mix benchmarks, since a batch's company changes the rounding of a prompt's answer.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm.auto import tqdm

from karma.errors import InputError, KarmaError
from karma.files import compute_digest, load_json, save_json
from karma.models import (
    Specs,
    choose_device,
    choose_dtype,
    compute_weights_digest,
    load_model,
    load_tokenizer,
)


class CachedModel(LM):
    """A named model that answers prompts in batches, from its cache where it was asked before.

    Args:
        models: name -> specification (`Job.models`).
        name: which one.
        compute: the experiment's `compute` settings (device, dtype, threads).
        batch_size: prompts a batch.
        cache: folder of answers; None keeps nothing.

    Attributes:
        digest: of the weights. prompt_tokens, new_tokens, seconds: spent in this object, cached answers aside.
        n_asked, n_cached: prompts.
    """

    def __init__(self, models: Specs, name: str, compute: Any, batch_size: int, cache: Path | None = None):
        super().__init__()
        self.models, self.name, self.batch_size, self.cache = models, name, batch_size, cache
        self.model_device = choose_device(compute.device)
        self.dtype = choose_dtype(compute.dtype, self.model_device)
        self.threads = compute.threads
        self.digest = compute_weights_digest(models, name)
        self.tokenizer = load_tokenizer(models, name)
        self.prompt_tokens = self.new_tokens = self.n_asked = self.n_cached = 0
        self.seconds = 0.0
        self._inner = None

    @property
    def inner(self):
        """The lm-evaluation-harness model, loaded on first use."""
        if self._inner is None:
            import torch
            from lm_eval.models.huggingface import HFLM

            torch.set_num_threads(self.threads)
            model = load_model(self.models, self.name, self.dtype, self.model_device)
            self._inner = HFLM(pretrained=model, tokenizer=self.tokenizer, backend="causal", batch_size=self.batch_size)
        return self._inner

    @property
    def tokenizer_name(self) -> str:
        """Name the tokenizer, for lm-evaluation-harness's own bookkeeping."""
        return self.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the model's chat template."""
        return self.tokenizer.chat_template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turn messages into the text the model was tuned on, without a second BOS when it is tokenised."""
        text = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text.removeprefix(self.tokenizer.bos_token or "") if self._adds_bos() else text

    def _adds_bos(self) -> bool:
        first = self.tokenizer("a")["input_ids"][0]
        return self.tokenizer.bos_token_id is not None and first == self.tokenizer.bos_token_id

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer requests of (prompt, generation settings), batch by batch, in the order given."""
        answers: dict[int, str] = {}
        batches = list(self._batches(requests))
        with tqdm(total=len(requests), desc=f"{self.name}: prompts", disable=disable_tqdm, unit="prompt") as bar:
            for batch in batches:
                for index, answer in zip(batch, self._answer([requests[i] for i in batch]), strict=True):
                    answers[index] = answer
                bar.update(len(batch))
        return [answers[i] for i in range(len(requests))]

    def _batches(self, requests: list[Instance]) -> Iterable[list[int]]:
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(compute_digest([request.task_name, request.args[1]]), []).append(index)
        for members in groups.values():
            lengths = self.tokenizer([requests[i].args[0] for i in members])["input_ids"]
            order = sorted(range(len(members)), key=lambda k: (-len(lengths[k]), requests[members[k]].args[0]))
            for start in range(0, len(order), self.batch_size):
                yield [members[k] for k in order[start : start + self.batch_size]]

    def _answer(self, batch: list[Instance]) -> list[str]:
        prompts, settings = [request.args[0] for request in batch], batch[0].args[1]
        key = compute_digest([self.digest, self.dtype, self.model_device, prompts, settings])
        if self.cache is None:
            return self._ask(batch, settings, seed=int(key[:8], 16))
        folder = self.cache / self.digest
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # jobs with the same weights, side by side, ask each batch once
            return self._look_up(folder / f"{key}.json", batch, settings, seed=int(key[:8], 16))

    def _look_up(self, path: Path, batch: list[Instance], settings: dict[str, Any], seed: int) -> list[str]:
        if path.is_file():
            self.n_cached += len(batch)
            return load_json(path)["answers"]
        answers = self._ask(batch, settings, seed)
        save_json({"prompts": [r.args[0] for r in batch], "settings": settings, "answers": answers}, path)
        return answers

    def _ask(self, batch: list[Instance], settings: dict[str, Any], seed: int) -> list[str]:
        import torch

        inner, started = self.inner, time.perf_counter()
        plain = {k: v for k, v in settings.items() if k != "seed"}
        requests = [Instance("generate_until", r.doc, (r.args[0], plain), i) for i, r in enumerate(batch)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            answers = inner.generate_until(requests, disable_tqdm=True)
        self.seconds += time.perf_counter() - started
        self.n_asked += len(batch)
        self.prompt_tokens += sum(len(ids) for ids in self.tokenizer([r.args[0] for r in batch])["input_ids"])
        self.new_tokens += sum(len(ids) for ids in self.tokenizer(answers, add_special_tokens=False)["input_ids"])
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Score continuations, through lm-evaluation-harness."""
        return self.inner.loglikelihood(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Not needed by any of this kit's tasks."""
        raise NotImplementedError("this kit's tasks ask for answers or compare options")


def sample_responses(model: CachedModel, prompts: list[str], settings: Any) -> list[str]:
    """Sample one response to each prompt, in the model's chat format.

    Args:
        model: who answers.
        prompts: user turns.
        settings: max_new_tokens, temperature (0: greedy), top_p, seed (the `pool` settings).

    Returns:
        The responses, stripped, in the order of the prompts; the same text on every run.
    """
    how = {"until": [], "max_gen_toks": settings.max_new_tokens, "do_sample": settings.temperature > 0}
    if how["do_sample"]:
        how |= {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed}
    texts = [model.apply_chat_template([{"role": "user", "content": prompt}]) for prompt in prompts]
    if any(not text for text in texts):
        raise KarmaError(f"{model.name}: its chat template made an empty prompt")
    requests = [Instance("generate_until", {}, (text, how), i, metadata=("sample", i, 1)) for i, text in enumerate(texts)]
    return [answer.strip() for answer in model.generate_until(requests)]


def ask(model: CachedModel, prompt: str, max_new_tokens: int) -> str:
    """Ask one user turn and return the most likely answer (greedy), in the model's chat format."""
    how = {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False}
    text = model.apply_chat_template([{"role": "user", "content": prompt}])
    return model.generate_until([Instance("generate_until", {}, (text, how), 0, metadata=("ask", 0, 1))], True)[0].strip()


def build_pool(job: Any) -> list[dict[str, Any]]:
    """Generate an experiment's pool: each instruction answered by some of the origin models, in UltraFeedback's shape.

    Which models answer an instruction is drawn by (seed, instruction), so the order of the file does not matter.
    """
    pool, experiment = job.settings.pool, job.experiment
    instructions = _load_instructions(experiment.root / pool.instructions)
    origins = list(job.settings.origin_models)
    drawn = {text: _draw_models(origins, pool.models_per_prompt, pool.seed, text) for text in instructions}
    completions: dict[str, list[dict[str, str]]] = {text: [] for text in instructions}
    for name in origins:
        asked = [text for text in instructions if name in drawn[text]]
        model = CachedModel(job.models, name, job.settings.compute, pool.batch_size, experiment.outputs / "answers")
        for text, response in zip(asked, sample_responses(model, asked, pool), strict=True):
            completions[text].append({"model": name, "response": response})
    return [
        {"source": source, "instruction": text, "models": [c["model"] for c in completions[text]],
         "completions": completions[text]}
        for text, source in instructions.items()
    ]  # fmt: skip


def _load_instructions(path: Path) -> dict[str, str]:
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        instructions = {row["instruction"]: row.get("source", path.stem) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} must be JSON lines with `instruction`: {error!r}") from error
    if len(instructions) < len(rows):
        raise InputError(f"{path}: {len(rows) - len(instructions)} instructions stand twice: remove the copies")
    return instructions


def _draw_models(origins: list[str], n: int, seed: int, text: str) -> list[str]:
    return sorted(origins, key=lambda name: compute_digest([seed, text, name]))[:n]


def run(job: Any) -> None:
    """Write an experiment's pool: generated, or read from where the settings say."""
    from karma.pool import load_pool, save_pool

    source = job.settings.pool.source
    if source == "generate":
        rows: Iterable[dict[str, Any]] = build_pool(job)
    else:
        local = job.experiment.root / source
        pool = load_pool(str(local)) if local.exists() else load_pool(source, job.settings.pool.revision)
        rows = (row for batch in pool.read(None) for row in batch.to_pylist())
    n_rows = save_pool(rows, job.folder / "pool.parquet")
    save_json({"source": source, "rows": n_rows}, job.folder / "accounting.json")
