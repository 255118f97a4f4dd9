"""Prompts: a topic, with or without instructions that a program can verify.

A file of prompts is JSON lines. With verifiable instructions a line holds `topic`, `instruction_id_list` and `kwargs`
as IFEval's checkers take them; without, `topic` (or `instruction`) alone. What a model is asked is the topic and,
after it, each instruction in the words of its own checker, made from its id and arguments.
Decision: the sentences are made, never written by hand, so that a topic may be rewritten and the instructions put
behind it again, and the checkers still apply. Limit: what a checker does not see, no one checks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma.errors import InputError
from karma.files.reading import load_json_lines


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Attributes:
        topic: the part that may be rewritten.
        text: topic and instructions, as asked.
        instruction_ids: of the checkers, e.g. "punctuation:no_comma"; empty: nothing can be verified.
        kwargs: the checkers' arguments, a JSON list as long as `instruction_ids`.
        parent: the text of the prompt it was evolved from; "": a prompt of the file.
        evolution: the strategy it was evolved by, or "".
    """

    topic: str
    text: str
    instruction_ids: tuple[str, ...] = ()
    kwargs: str = "[]"
    parent: str = ""
    evolution: str = ""

    @property
    def item(self) -> dict[str, Any]:
        """The prompt as `karma.evaluation.ifeval.check_instructions` takes it."""
        ids = list(self.instruction_ids)
        return {"item_id": self.text, "prompt": self.text, "instruction_id_list": ids, "kwargs": self.kwargs}


def build_prompt(
    topic: str, ids: Sequence[str] = (), kwargs: str = "[]", parent: str = "", evolution: str = ""
) -> Prompt:
    """Put the instructions behind a topic, in their checkers' words.

    Example:
        >>> build_prompt("Why do bees dance?").text
        'Why do bees dance?'
    """
    sentences = describe_instructions(ids, json.loads(kwargs)) if ids else []
    return Prompt(topic, " ".join([topic, *sentences]), tuple(ids), kwargs, parent, evolution)


def describe_instructions(ids: Sequence[str], kwargs: Sequence[dict[str, Any]]) -> list[str]:
    """Return each instruction as a sentence, as its checker describes it.

    Raises:
        InputError: an unknown instruction, arguments it does not take, or one it would draw at random.
    """
    from karma.evaluation.ifeval import check_arguments, load_checkers

    check_arguments(ids, kwargs)
    checkers, sentences = load_checkers().instructions_registry.INSTRUCTION_DICT, []
    for name, arguments in zip(ids, kwargs, strict=True):
        checker = checkers[name](name)
        sentences.append(checker.build_description(**arguments))
        missing = [key for key in checker.get_instruction_args_keys() if arguments.get(key) is None]
        if missing:
            raise InputError(f"{name} needs '{missing[0]}': without it the checker draws one at random")
    return sentences


def load_prompts(path: Path, verifiable: bool) -> list[Prompt]:
    """Load a file of prompts.

    Args:
        path: JSON lines.
        verifiable: whether every prompt must carry instructions (the checkers are the scorer).

    Raises:
        InputError: not JSON lines, a line without a topic or that cannot be checked, or one that stands twice.
    """
    prompts: dict[str, Prompt] = {}
    for number, row in load_json_lines(path):
        prompt = read_prompt(row, f"{path.name}, line {number}", verifiable)
        if prompt.text in prompts:
            raise InputError(f"{path.name}, line {number}: this prompt stands twice: remove the copy")
        prompts[prompt.text] = prompt
    return list(prompts.values())


def read_prompt(row: Any, where: str, verifiable: bool) -> Prompt:
    """Read one line of a file of prompts.

    Args:
        row: the line's value. where: file and line, for the messages.
        verifiable: whether it must carry instructions.

    Raises:
        InputError: no topic, no instructions where they are needed, or some that cannot be checked.

    Example:
        >>> row = {"topic": "Describe rain.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        >>> read_prompt(row, "rain.jsonl, line 1", verifiable=True).text
        'Describe rain. In your entire response, refrain from the use of any commas.'
    """
    topic = (row.get("topic") or row.get("instruction")) if isinstance(row, dict) else None
    if not isinstance(topic, str) or not topic.strip():
        raise InputError(f"{where}: no `topic`: give each line a text to ask")
    ids, kwargs = row.get("instruction_id_list") or [], row.get("kwargs") or []
    if verifiable and not ids:
        raise InputError(f"{where}: no `instruction_id_list`: nothing can be checked here")
    try:
        return build_prompt(topic.strip(), ids, json.dumps(kwargs, sort_keys=True))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
