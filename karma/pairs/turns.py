"""Conversations: what a pair's messages may be, and how a prompt of several turns is told apart and shown.

A prompt is a list of role/content messages that ends with the user's; each response is one message of the assistant.
What may come before the end (a system message, two of the user's in a row) is for the policy's chat template to say:
what it refuses is refused (`karma.models.chat.apply_template`), and nothing is merged or left out for its sake.
"""

import json
from collections.abc import Sequence
from typing import Any

Messages = Sequence[dict[str, Any]]


def find_fault(messages: Any, last: str, only: bool = False) -> str:
    """Return what is wrong with a list of messages, or "".

    Args:
        messages: of one prompt or response. last: the role of its last message.
        only: whether that must be the only one.

    Example:
        >>> asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 1 odd?"}]
        >>> find_fault(asked, "user"), find_fault(asked, "assistant"), find_fault(asked, "user", only=True)
        ('', "must be messages ending with role 'assistant'", "must be one message of role 'user', and has 2")
    """
    if not is_messages(messages):
        return "must be a list of role/content messages"
    if not messages or messages[-1]["role"] != last:
        return f"must be messages ending with role '{last}'"
    return f"must be one message of role '{last}', and has {len(messages)}" if only and len(messages) > 1 else ""


def is_messages(value: Any) -> bool:
    """Tell whether something is a list of role/content messages, whose content may be missing."""
    return isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str | None)
        for m in value
    )


def is_plain(messages: Messages) -> bool:
    """Tell whether a prompt is a single message of the user's."""
    return len(messages) == 1 and messages[0]["role"] == "user"


def show_turns(messages: Messages) -> str:
    """Write a prompt for people and judges: the text alone of a single user's message, else each turn with its role.

    Example:
        >>> show_turns([{"role": "user", "content": "Is 1 odd?"}])
        'Is 1 odd?'
        >>> print(show_turns([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 1 odd?"}]))
        System: Be brief.
        <BLANKLINE>
        User: Is 1 odd?
    """
    if is_plain(messages):
        return messages[0]["content"] or ""
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content'] or ''}" for turn in messages)


def write_key(messages: Messages) -> str:
    """Return what a prompt is known by: the text of a single user's message, else JSON, which no other prompt shares.

    Example:
        >>> write_key([{"role": "user", "content": "Is 1 odd?"}])
        'Is 1 odd?'
        >>> write_key([{"role": "user", "content": "a"}] * 2) == write_key([{"role": "user", "content": "a\\na"}])
        False
    """
    if is_plain(messages):
        return messages[0]["content"] or ""
    return json.dumps([[turn["role"], turn["content"] or ""] for turn in messages], ensure_ascii=False)


def find_opening(messages: Messages) -> str:
    """Return the user's first message: that of a conversation, however far it was carried on.

    Example:
        >>> find_opening([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 1 odd?"}])
        'Is 1 odd?'
    """
    return next((turn["content"] or "" for turn in messages if turn["role"] == "user"), "")
