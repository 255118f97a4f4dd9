"""Conversations as a model reads them: its chat template applied, and where a response begins.

A template that refuses a conversation, or leaves a message out, is an InputError here and nowhere later.
"""

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from karma.errors import InputError, show_line

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class TokenizedResponse:
    """A prompt and its response as one row of token ids; the response starts at `start`."""

    ids: list[int]
    start: int


def tokenize_response(tokenizer: Any, prompt: Messages, response: Messages, max_length: int) -> TokenizedResponse:
    """Tokenise as TRL does: the prompt with its generation prompt, then the rest of the whole conversation.

    The response starts where the two differ first, which is after the generation prompt unless a template writes that
    otherwise once an answer follows.

    Args:
        tokenizer: with a chat template.
        prompt: messages up to the response. response: the assistant's message.
        max_length: tokens kept, from the start.

    Raises:
        InputError: the template refuses the conversation.
    """
    begun = apply_template(tokenizer, prompt, add_generation_prompt=True)
    whole = apply_template(tokenizer, [*prompt, *response])
    same = takewhile(lambda both: both[0] == both[1], zip(begun, whole, strict=False))
    return TokenizedResponse(whole[:max_length], min(sum(1 for _ in same), max_length))


def apply_template(tokenizer: Any, messages: Messages, add_generation_prompt: bool = False) -> list[int]:
    """Return the token ids of a conversation in a model's chat format; raises as `write_conversation`."""
    if add_generation_prompt and len(messages) > 1:
        write_conversation(tokenizer, messages)
    return list(_apply(tokenizer, messages, tokenize=True, add_generation_prompt=add_generation_prompt))


def write_conversation(tokenizer: Any, messages: Messages, add_generation_prompt: bool = True) -> str:
    """Return the text of a conversation in a model's chat format.

    Raises:
        InputError: the template refuses the conversation (two turns by one side, no system messages, ...), or leaves
            out a message by others than the assistant (of whose turns some templates cut what was only thought).

    Example:
        >>> from karma.models.made import build_tokenizer
        >>> tokenizer, asked = build_tokenizer(), [{"role": "user", "content": "Is 1 odd?"}]
        >>> write_conversation(tokenizer, asked)
        '<|im_start|>user\\nIs 1 odd?<|im_end|>\\n<|im_start|>assistant\\n'
        >>> tokenizer.chat_template = "{{ messages[1]['content'] }}"
        >>> write_conversation(tokenizer, [{"role": "system", "content": "Be brief."}, *asked])
        Traceback (most recent call last):
        karma.errors.InputError: the chat template leaves out the system message of a conversation (system, user)
    """
    text: str = _apply(tokenizer, messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    for message in messages:
        if message["role"] != "assistant" and message["content"].strip() not in text:
            roles = _list_roles(messages)
            raise InputError(f"the chat template leaves out the {message['role']} message of a conversation ({roles})")
    return text


def _apply(tokenizer: Any, messages: Messages, **how: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(messages, return_dict=False, **how)
    except Exception as error:  # Jinja's kinds, and whatever a template raises
        reason = show_line(" ".join(str(error).split()))[:200] or type(error).__name__
        raise InputError(f"the chat template refuses a conversation ({_list_roles(messages)}): {reason}") from None


def _list_roles(messages: Messages) -> str:
    return ", ".join(message["role"] for message in messages)
