"""What answers a prompt: transformers here, vLLM in a process of its own, or a server elsewhere (`karma.models.api`).

A backend turns messages into a prompt, answers prompts, and says what made the answers. `karma.models.ask` asks it
only for what its cache does not hold. Decision: lm-evaluation-harness's own model classes do the work, so that its
numbers and ours come from the same code; but options of one context are compared in one row, with the harness's tokens.
"""

from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from karma.models.chat import write_conversation
from karma.models.load import (
    PLAIN_TEMPLATE,
    Specs,
    compute_weights_digest,
    find_model,
    load_model,
    load_tokenizer,
)
from karma.models.placement import choose_place
from karma.study.sections import Compute


@dataclass(frozen=True)
class Answered:
    """Answers with their cost; tokens are None where a server does not say.

    Attributes:
        answers: one text a prompt, or one (log-probability in nats, is greedy) a continuation.
        prompt_tokens, new_tokens: counts.
    """

    answers: list[Any]
    prompt_tokens: int | None
    new_tokens: int | None


class TransformersBackend:
    """A model in this process, loaded when first asked; `inner` is lm-evaluation-harness's HFLM."""

    name = "transformers"
    alone = False  # a prompt's answer depends, by rounding, on the batch it is in
    has_logprobs = True
    shares_rows = True  # compares the options of one context in one row, which changes their rounding

    def __init__(self, models: Specs, name: str, compute: Compute, batch_size: int):
        self.models, self.model_name, self.batch_size = models, name, batch_size
        self.device, self.dtype = choose_place(compute)
        self.threads = compute.threads
        self.digest = compute_weights_digest(models, name)
        self.tokenizer = load_tokenizer(models, name)
        self.chat_format = "plain" if self.tokenizer.chat_template == PLAIN_TEMPLATE else "the model's own"
        self.identity = [self.digest, self.dtype, self.device]
        self._inner: Any = None

    @property
    def inner(self):
        """The lm-evaluation-harness model."""
        if self._inner is None:
            self._inner = self._open()
        return self._inner

    def _open(self):
        import torch

        from karma.models.harness import PrefillHFLM

        torch.set_num_threads(self.threads)
        model = load_model(self.models, self.model_name, self.dtype, self.device)
        return PrefillHFLM(pretrained=model, tokenizer=self.tokenizer, backend="causal", batch_size=self.batch_size)

    def format_chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turn messages into the text the model was tuned on, without a second BOS when it is tokenised."""
        text = write_conversation(self.tokenizer, messages, add_generation_prompt)
        return text.removeprefix(self.tokenizer.bos_token or "") if self._adds_bos() else text

    def _adds_bos(self) -> bool:
        first = self.tokenizer("a")["input_ids"][0]
        return self.tokenizer.bos_token_id is not None and first == self.tokenizer.bos_token_id

    def count_tokens(self, texts: list[str], **options: Any) -> list[int]:
        """Return each text's number of tokens."""
        return [len(ids) for ids in self.tokenizer(texts, **options)["input_ids"]]

    def generate(self, prompts: list[str], settings: dict[str, Any], seed: int) -> Answered:
        """Answer a batch; `seed` decides where the settings sample."""
        import torch

        requests = [Instance("generate_until", {}, (p, self._adapt(settings, seed)), i) for i, p in enumerate(prompts)]
        inner = self.inner
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            answers = inner.generate_until(requests, disable_tqdm=True)
        new = sum(self.count_tokens(answers, add_special_tokens=False))
        return Answered(answers, sum(self.count_tokens(prompts)), new)

    def _adapt(self, settings: dict[str, Any], seed: int) -> dict[str, Any]:
        return {k: v for k, v in settings.items() if k != "seed"}

    def compare(self, pairs: list[tuple[str, str]]) -> Answered:
        """Return each continuation's log-probability (nats) after its context, and whether it is the greedy one."""
        groups: dict[str, list[int]] = {}
        for i, (context, _) in enumerate(pairs):
            groups.setdefault(context, []).append(i)
        results = self._compare_in_rows(pairs, groups) if self.shares_rows else None
        if results is None:
            requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
            results = self.inner.loglikelihood(requests, disable_tqdm=True)
        return Answered([[float(p), bool(g)] for p, g in results], sum(self.count_tokens(list(groups))), 0)

    def _compare_in_rows(
        self, pairs: list[tuple[str, str]], groups: dict[str, list[int]]
    ) -> list[tuple[float, bool]] | None:
        """Compare each context's options in one row; None where the harness has a rule of its own.

        That is a model that needs its own rows, an empty context (a first token stands for it), an empty continuation,
        and a text longer than the model's context, which is cut.
        """
        from karma.models import logprobs

        inner = self.inner
        if "" in groups or not (logprobs.can_share_prompts(inner.model) and logprobs.has_plain_head(inner.model)):
            return None
        tokens = [inner._encode_pair(*pair) for pair in pairs]
        if any(not option or len(context) + len(option) > inner.max_length for context, option in tokens):
            return None
        members = list(groups.values())
        rows = [logprobs.build_options_row(tokens[group[0]][0], [tokens[i][1] for i in group]) for group in members]
        budget = logprobs.choose_pass_tokens(self.device)
        compared = logprobs.compute_option_logps(inner.model, rows, self.tokenizer.pad_token_id, budget)
        order = [i for group in members for i in group]
        results = dict(zip(order, [result for row in compared for result in row], strict=True))
        return [results[i] for i in range(len(pairs))]

    def load(self) -> None:
        """Load the model now, so that its loading is not timed as answering."""
        _ = self.inner


class VllmBackend(TransformersBackend):
    """lm-evaluation-harness's vLLM class in a process of its own, since vLLM wants other pins and takes the whole GPU.

    That process may run under another interpreter (`karma.models.worker.find_python`). Batches are large (set
    batch_size to hundreds): vLLM schedules inside them. Texts are tokenised there, by the tokenizer in the model's
    folder. Tested with vLLM 0.32 on a CPU (`make vllm`); on a GPU it was not run.
    """

    name = "vllm"
    engine = "vllm"
    shares_rows = False

    def __init__(self, models: Specs, name: str, compute: Compute, batch_size: int):
        super().__init__(models, name, compute, batch_size)
        self.identity = [self.name, *self.identity]
        self.location = find_model(models, name)

    def _open(self):
        from karma.models.worker import WorkerModel, find_python

        options = {
            "pretrained": self.location[0],
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "enforce_eager": self.device == "cpu",  # compiling takes longer there than what is asked of a CPU
            **self.location[1],
        }
        return WorkerModel(self.engine, options, find_python())

    def _adapt(self, settings: dict[str, Any], seed: int) -> dict[str, Any]:
        return settings | {"seed": seed} if settings.get("do_sample") else settings
