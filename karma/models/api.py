"""Models behind an OpenAI-compatible server: vLLM's server, Ollama, llama.cpp, vendors.

Each prompt is one request to `{base_url}/chat/completions`, the messages as they are: the server applies the model's
chat format. The key comes from the environment variable that the experiment names, is sent in the request's header
and stands nowhere else: not in the cache, not in scores.json, not in an error (a server's message is searched for it).
Busy servers (429, 5xx, broken connections) are asked again after growing pauses, or as long as they ask for.
Decision: a server is not trusted. A reply is read up to a size and for a time, is checked before anything of it is
kept, and a redirection is never followed, to the same host neither.
Limit: an API says nothing of its weights, so answers are kept by the model's id: a vendor who swaps the model behind
an id goes unnoticed. Log-probabilities of given texts cannot be asked for.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)
from tqdm.auto import tqdm

from karma.errors import InputError, KarmaError
from karma.files.reading import parse_json
from karma.models.backends import Answered
from karma.models.load import compute_weights_digest

BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
N_ATTEMPTS, LONGEST_PAUSE_S, TIMEOUT_S, CHECK_TIMEOUT_S = 7, 60, 600, 20
DEADLINE_S, ASKING_S, MOST_BYTES = 900, 3600, 2**24  # of one reply; of one prompt with all its attempts; of one reply


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
            retry=retry_if_exception_type(BusyError), wait=_pause,
            stop=stop_after_attempt(N_ATTEMPTS) | stop_after_delay(ASKING_S),
            before_sleep=_tell, reraise=True,
        )  # fmt: skip
        reply = retrying(self._post, body, settings["max_gen_toks"])
        try:
            return read_reply(reply)
        except ValueError as error:
            shown = self._hide(json.dumps(reply))[:200]
            raise KarmaError(f"{self.url} answered {error}: {shown}") from None

    def _post(self, body: dict[str, Any], n_tokens: int) -> Any:
        content = json.dumps(body | {self._limit_name: n_tokens}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self.url, content, headers, method="POST")
        try:
            with _OPENER.open(request, timeout=TIMEOUT_S) as response:
                raw = _read_bounded(response)
            return parse_json(raw.decode(), halves=True)
        except urllib.error.HTTPError as error:
            return self._explain(error, body, n_tokens)
        except (OSError, HTTPException) as error:  # refused, timed out, cut off
            raise BusyError(f"{self.url} cannot be reached: {self._hide(str(error))}; is the server running?") from None
        except ValueError:
            raise KarmaError(
                f"{self.url} did not answer in JSON: is base_url right (it usually ends in /v1)?"
            ) from None

    def _explain(self, error: urllib.error.HTTPError, body: dict[str, Any], n_tokens: int) -> Any:
        try:
            text = self._hide(" ".join(_read_bounded(error).decode("utf-8", "replace").split()))
        except (OSError, HTTPException, KarmaError):  # what it says of its refusal cannot be read
            text = ""
        if 300 <= error.code < 400:
            where = self._hide(str(error.headers.get("Location", "nowhere")))[:200]
            raise KarmaError(f"{self.url} redirects to {where}, which is not followed: give that server's base_url")
        if error.code == 400 and "max_completion_tokens" in text and self._limit_name == "max_tokens":
            self._limit_name = "max_completion_tokens"  # newer models' name for the same limit
            return self._post(body, n_tokens)
        message = f"{self.url} refused model '{self.model_id}' (HTTP {error.code}): {text[:200]}"
        if error.code in BUSY:
            raise BusyError(message, read_retry_after(error.headers.get("Retry-After", "")))
        if error.code in (401, 403):
            message += (
                f"; check the key in {self.key_env}"
                if self.key_env
                else "; give key_env, the variable that holds the key"
            )
        raise KarmaError(message)

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def read_reply(reply: Any) -> tuple[str, int | None, int | None]:
    """Return (text, tokens of the prompt, new tokens) of a reply; tokens are None where it does not count them.

    Args:
        reply: what the server answered, parsed.

    Raises:
        ValueError: it holds no message with a text.

    Example:
        >>> read_reply({"choices": [{"message": {"content": "Yes."}}], "usage": {"prompt_tokens": 7}})
        ('Yes.', 7, None)
        >>> read_reply({"choices": []})
        Traceback (most recent call last):
        ValueError: without choices[0].message
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict):
        raise ValueError("without choices[0].message")
    text = message.get("content") or message.get("refusal") or ""
    if isinstance(text, list):  # in parts, as some servers write it
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    if not isinstance(text, str):
        raise ValueError("a message whose content is no text")
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    prompt, new = (n if type(n) is int and 0 <= n < 2**53 else None for n in counts)
    return text.encode("utf-8", "replace").decode(), prompt, new


def read_retry_after(text: str) -> float | None:
    """Return the seconds that a Retry-After header asks for, of a number or a date; None where it is neither.

    Example:
        >>> read_retry_after("1.5"), read_retry_after("Thu, 01 Jan 1970 00:00:00 GMT"), read_retry_after("soon")
        (1.5, 0.0, None)
    """
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
            seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None  # NaN too


def _read_bounded(response: Any) -> bytes:
    """Read a reply up to MOST_BYTES and for DEADLINE_S; a server that sends a byte now and then is not waited for."""
    parts, n_bytes, end = [], 0, time.monotonic() + DEADLINE_S
    while part := response.read1(2**16):
        parts.append(part)
        n_bytes += len(part)
        if n_bytes > MOST_BYTES:
            raise KarmaError(f"{response.url} answers more than {MOST_BYTES / 2**20:.0f} MiB, which no answer is")
        if time.monotonic() > end:
            raise BusyError(f"{response.url} has not ended its answer after {DEADLINE_S} s")
    if response.length:
        raise BusyError(f"{response.url} broke off its answer")
    return b"".join(parts)


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
