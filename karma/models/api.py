"""Models behind an OpenAI-compatible server: vLLM's server, Ollama, llama.cpp, vendors.

Each prompt is one request to `{base_url}/chat/completions`, the messages as they are: the server applies the model's
chat format. The key comes from the environment variable that the experiment names, is sent in the request's header
and stands nowhere else: not in the cache, not in scores.json, not in an error (a server's message is searched for it).
Busy servers (429, 5xx, broken connections) are asked again after growing pauses.
Limit: an API says nothing of its weights, so answers are kept by the model's id: a vendor who swaps the model behind
an id goes unnoticed. Log-probabilities of given texts cannot be asked for.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)
from tqdm.auto import tqdm

from karma.errors import InputError, KarmaError
from karma.models.backends import Answered
from karma.models.load import compute_weights_digest

BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
N_ATTEMPTS, LONGEST_PAUSE_S, TIMEOUT_S, CHECK_TIMEOUT_S = 7, 60, 600, 20


class BusyError(KarmaError):
    """The server may answer later; `pause_s` is how long it asks to wait, if it does."""

    def __init__(self, message: str, pause_s: float | None = None):
        super().__init__(message)
        self.pause_s = pause_s


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follow no redirection: it would carry the key to another server."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Refuse; urllib then raises the HTTPError."""


_OPENER = urllib.request.build_opener(_StayHere)


class ApiBackend:
    """A model behind an OpenAI-compatible server.

    Args:
        name: the model's name in the experiment.
        source: base_url (ends before /chat/completions), model (the server's id), key_env (None: no key).

    Raises:
        InputError: the environment variable named by key_env is not set.
    """

    name = "api"
    alone = True  # a prompt is asked and kept on its own
    has_logprobs = False
    device = dtype = chat_format = "the server's"
    threads = tokenizer = None

    def __init__(self, name: str, source: dict[str, Any]):
        self.model_name, self.model_id = name, source["model"]
        self.url = source["base_url"].rstrip("/") + "/chat/completions"
        self.key_env = source.get("key_env")
        self.digest = compute_weights_digest({name: {"api": source}}, name)
        self.identity = ["api", self.digest]
        self._limit_name = "max_tokens"
        _ = self._key

    @property
    def _key(self) -> str | None:
        if not self.key_env:
            return None
        if not os.environ.get(self.key_env):
            raise InputError(
                f"model '{self.model_name}': its API key is missing: set the environment variable {self.key_env}"
            )
        return os.environ[self.key_env]

    def load(self) -> None:
        """Nothing to load here."""

    def format_chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the messages as JSON: what is sent."""
        return json.dumps(messages, ensure_ascii=False)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Return lengths in characters: good enough to ask the longest first."""
        return [len(text) for text in texts]

    def generate(self, prompts: list[str], settings: dict[str, Any], seed: int) -> Answered:
        """Answer prompts one after the other (`karma.models.ask` asks several at a time, one a thread)."""
        replies = [self._ask(prompt, settings, seed) for prompt in prompts]
        return Answered([r[0] for r in replies], _add([r[1] for r in replies]), _add([r[2] for r in replies]))

    def _ask(self, prompt: str, settings: dict[str, Any], seed: int) -> tuple[str, int | None, int | None]:
        body = {"model": self.model_id, "messages": json.loads(prompt), "temperature": 0.0}
        if settings.get("do_sample"):
            body |= {"temperature": settings["temperature"], "top_p": settings["top_p"], "seed": seed % 2**31}
        if settings.get("until"):
            body["stop"] = settings["until"]
        retrying = Retrying(
            retry=retry_if_exception_type(BusyError), stop=stop_after_attempt(N_ATTEMPTS), wait=_pause,
            before_sleep=_tell, reraise=True,
        )  # fmt: skip
        reply = retrying(self._post, body, settings["max_gen_toks"])
        try:
            message = reply["choices"][0]["message"]
            usage = reply.get("usage") or {}
            text = message.get("content") or message.get("refusal") or ""
        except (KeyError, IndexError, TypeError, AttributeError):
            raise KarmaError(
                f"{self.url} answered without choices[0].message: {self._hide(json.dumps(reply))[:200]}"
            ) from None
        return text, usage.get("prompt_tokens"), usage.get("completion_tokens")

    def _post(self, body: dict[str, Any], n_tokens: int) -> Any:
        content = json.dumps(body | {self._limit_name: n_tokens}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self.url, content, headers, method="POST")
        try:
            with _OPENER.open(request, timeout=TIMEOUT_S) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            return self._explain(error, body, n_tokens)
        except (OSError, HTTPException) as error:  # refused, timed out, cut off
            raise BusyError(f"{self.url} cannot be reached: {self._hide(str(error))}; is the server running?") from None
        except ValueError:
            raise KarmaError(
                f"{self.url} did not answer in JSON: is base_url right (it usually ends in /v1)?"
            ) from None

    def _explain(self, error: urllib.error.HTTPError, body: dict[str, Any], n_tokens: int) -> Any:
        text = self._hide(" ".join(error.read().decode("utf-8", "replace").split()))
        if error.code == 400 and "max_completion_tokens" in text and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"  # newer models' name for the same limit
            return self._post(body, n_tokens)
        message = f"{self.url} refused model '{self.model_id}' (HTTP {error.code}): {text[:200]}"
        if error.code in BUSY:
            after = error.headers.get("Retry-After", "")
            raise BusyError(message, float(after) if after.replace(".", "", 1).isdigit() else None)
        if error.code in (401, 403):
            message += (
                f"; check the key in {self.key_env}"
                if self.key_env
                else "; give key_env, the variable that holds the key"
            )
        raise KarmaError(message)

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def check_server(base_url: str) -> None:
    """Raise an InputError where nothing answers at a server's address; any answer, a refusal too, will do.

    Before hours of other work: a question itself is asked again after growing pauses.
    """
    request = urllib.request.Request(base_url.rstrip("/") + "/models", method="GET")
    try:
        with _OPENER.open(request, timeout=CHECK_TIMEOUT_S):
            pass
    except urllib.error.HTTPError:
        return
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"no server answers at {base_url} ({error}): start it, or correct --base-url") from None


_backoff = wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE_S)


def _pause(state: RetryCallState) -> float:
    asked = getattr(state.outcome.exception() if state.outcome else None, "pause_s", None)
    return min(asked, LONGEST_PAUSE_S) if asked is not None else _backoff(state)


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause_s = state.next_action.sleep if state.next_action else 0
    tqdm.write(f"{error}; attempt {state.attempt_number} of {N_ATTEMPTS}, again in {pause_s:.0f} s", file=sys.stderr)


def _add(counts: list[int | None]) -> int | None:
    return None if any(count is None for count in counts) else sum(count or 0 for count in counts)
