"""What is compared: the prompts, and each model's responses to them, recorded in a file or written by a model now.

A file of prompts is JSON lines or parquet with `prompt` (or `instruction`, or a verifiable prompt's `topic`), a text or
a conversation of role/content messages that ends with the user's; a file of responses has `response` (or `output`,
`answer`) besides, as AlpacaEval's model_outputs.json. Prompts are matched by their text, white space at the ends apart,
conversations turn by turn. Decision: a recorded response that is empty is an error, since a judge would score a lost
line; one that a model writes now is left out and counted, since that is what the model says.
Limit: a judge reads a conversation as one text, each turn behind its role.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karma.errors import InputError
from karma.evaluation.prompts import read_prompt
from karma.files.reading import check_file, compute_digest, compute_file_digest, read_parquet
from karma.labels.judgments import shorten
from karma.models.ask import CachedModel, Prompt, Sampling, sample_responses
from karma.pairs.turns import find_fault, is_plain, show_turns
from karma.pool.rows import read_json

SUFFIXES = (".jsonl", ".json", ".parquet")
PROMPT, RESPONSE, MODEL = ("prompt", "instruction"), ("response", "output", "answer"), ("model", "generator")


@dataclass(frozen=True)
class Compared:
    """One model's responses.

    Attributes:
        name: of the model. responses: prompt_id -> text, none of it empty.
        source: where they are from, for the card: file or model, its digest, counts and cost.
        prompts: prompt_id -> text or conversation, of a recorded file.
        digest: of the model's weights, "" of a file.
    """

    name: str
    responses: dict[str, str]
    source: dict[str, Any]
    prompts: dict[str, Prompt] = field(default_factory=dict)
    digest: str = ""


def load_prompts(path: Path) -> dict[str, Prompt]:
    """Load a file of prompts.

    Returns:
        prompt_id -> text or conversation, in the file's order; the id is the row's prompt_id, else a digest of it.

    Raises:
        InputError: unreadable, no prompt in a row, or one that stands twice.
    """
    found: dict[str, Prompt] = {}
    seen: set[str] = set()
    for number, row in read_rows(path):
        prompt = _read_prompt(row, f"{path.name}, row {number}")
        key = compute_digest(prompt)
        name = str(row.get("prompt_id") or key)
        if key in seen or name in found:
            raise InputError(
                f"{path.name}, row {number}: prompt '{shorten(show_prompt(prompt))}' stands twice: remove the copy"
            )
        seen.add(key)
        found[name] = prompt
    if not found:
        raise InputError(f"{path.name} holds no prompts")
    return found


def load_responses(path: Path, prompts: Mapping[str, Prompt] | None = None) -> Compared:
    """Load a file of recorded responses of one model.

    Args:
        path: JSON lines, a JSON list, or parquet. prompts: those to be compared on; None: all of the file's.

    Raises:
        InputError: unreadable, a row without prompt or response, an empty response, a prompt that stands twice, several
            models in one file, or none of the prompts.
    """
    ids = None if prompts is None else {compute_digest(prompt): name for name, prompt in prompts.items()}
    own: dict[str, Prompt] = {}
    responses: dict[str, str] = {}
    models: set[str] = set()
    n_others = 0
    for number, row in read_rows(path):
        where = f"{path.name}, row {number}"
        prompt = _read_prompt(row, where)
        text = show_prompt(prompt)
        response = next((row[key] for key in RESPONSE if row.get(key) is not None), None)
        if not isinstance(response, str):
            raise InputError(f"{where} has no response: expected {', '.join(RESPONSE)} with a text")
        models |= {str(row[key]) for key in MODEL if row.get(key)}
        name = compute_digest(prompt) if ids is None else ids.get(compute_digest(prompt))
        if name is None:
            n_others += 1
            continue
        if name in own:
            raise InputError(f"{where}: prompt '{shorten(text)}' stands twice: keep one response to it")
        if not response.strip():
            raise InputError(f"{where}: the response to '{shorten(text)}' is empty: remove the row, or answer it")
        own[name], responses[name] = prompt, response
    if len(models) > 1:
        raise InputError(f"{path.name} holds responses of {' and '.join(sorted(models)[:2])}: give one file a model")
    if not own:
        raise InputError(f"{path.name} has no response to any of the {len(prompts or {})} prompts: no common prompts")
    source = {"file": path.name, "digest": compute_file_digest(path), "responses": len(own), "other_prompts": n_others}
    return Compared(models.pop() if models else path.stem, responses, source, own)


def ask_model(model: CachedModel, name: str, prompts: Mapping[str, Prompt], settings: Sampling, seed: int) -> Compared:
    """Let a model answer the prompts.

    Args:
        model: who answers. name: for tables. prompts: prompt_id -> text or conversation.
        settings: how a response is drawn. seed: of the draws.

    Raises:
        InputError: every response is empty.
    """
    texts = sample_responses(model, list(prompts.values()), settings, seed)
    responses = {prompt: text for prompt, text in zip(prompts, texts, strict=True) if text}
    if not responses:
        raise InputError(f"{name}: all {len(texts)} responses are empty: nothing can be judged")
    cost = model.cost
    source = {
        "model": name, "digest": model.digest, "backend": model.backend.name, "dtype": model.dtype,
        "max_new_tokens": settings.max_new_tokens, "temperature": settings.temperature, "top_p": settings.top_p,
        "seed": seed, "responses": len(responses), "empty": len(texts) - len(responses),
        "kept_from_before": model.n_cached, "new_tokens": cost.new_tokens, "seconds": cost.seconds,
    }  # fmt: skip
    return Compared(name, responses, source, digest=model.digest)


def read_rows(path: Path, expected: str = "prompt, and response") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of JSON lines, a JSON list or parquet.

    Args:
        path: a file's. expected: what a row holds, for the message.

    Raises:
        InputError: no such file, another suffix, unreadable, or a row that is no object.
    """
    check_file(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path.name}: expected {', '.join(SUFFIXES)}")
    rows: Iterator[tuple[int, Any]]
    rows = iter(enumerate(read_parquet(path).to_pylist(), 1)) if path.suffix == ".parquet" else read_json(path)
    for number, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{path.name}, row {number} is no object: expected {expected}")
        yield number, row


def show_prompt(prompt: Prompt) -> str:
    """Write a prompt for people and judges: a text as it is, a conversation turn by turn.

    Example:
        >>> show_prompt("Is 1 odd?")
        'Is 1 odd?'
    """
    return prompt if isinstance(prompt, str) else show_turns(prompt)


def _read_prompt(row: dict[str, Any], where: str) -> Prompt:
    if "topic" in row:
        return read_prompt(row, where, verifiable=False).text
    text = next((row[key] for key in PROMPT if row.get(key)), None)
    if isinstance(text, list):
        if (fault := find_fault(text, "user")) or not all((turn["content"] or "").strip() for turn in text):
            raise InputError(f"{where}: its prompt {fault or 'has a message without text'}")
        asked = [{"role": turn["role"], "content": turn["content"]} for turn in text]
        text = asked[0]["content"] if is_plain(asked) else asked
        if not isinstance(text, str):
            return text
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where} has no prompt: expected {' or '.join(PROMPT)} with a text")
    return text.strip()
