"""The prompts of self-play: a topic, with or without instructions that a program can verify.

A file of prompts is JSON lines. With verifiable instructions a line holds `topic`, `instruction_id_list` and `kwargs`
as IFEval's checkers take them; without, `topic` (or `instruction`) alone. What the policy is asked is the topic and,
after it, each instruction in the words of its own checker, made from its id and arguments. So the topic may be
rewritten and the instructions put behind it again, and the checkers still apply.
Decision: base, held-out and fresh prompts are drawn from one file by (seed, text); they never overlap, and a later
round's fresh prompts are others than an earlier one's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma.errors import InputError
from karma.files import compute_digest, load_json_lines


@dataclass(frozen=True)
class Prompt:
    """What the policy is asked.

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
    from karma.evaluation.ifeval import load_checkers

    checkers, sentences = load_checkers().instructions_registry.INSTRUCTION_DICT, []
    if len(ids) != len(kwargs):
        raise InputError(
            f"{len(ids)} instructions, but {len(kwargs)} sets of arguments: give {{}} where there are none"
        )
    for name, arguments in zip(ids, kwargs, strict=True):
        if name not in checkers:
            raise InputError(f"no checker '{name}'; there are {', '.join(sorted(checkers))}")
        checker = checkers[name](name)
        try:
            sentences.append(checker.build_description(**arguments))
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} cannot be checked with {arguments}: {error}") from error
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
        prompt = _read_row(row, f"{path.name}, line {number}", verifiable)
        if prompt.text in prompts:
            raise InputError(f"{path.name}, line {number}: this prompt stands twice: remove the copy")
        prompts[prompt.text] = prompt
    return list(prompts.values())


def _read_row(row: Any, where: str, verifiable: bool) -> Prompt:
    topic = (row.get("topic") or row.get("instruction")) if isinstance(row, dict) else None
    if not isinstance(topic, str) or not topic.strip():
        raise InputError(f"{where}: no `topic`: give each line a text to ask")
    ids, kwargs = row.get("instruction_id_list") or [], row.get("kwargs") or []
    if verifiable and not ids:
        raise InputError(f"{where}: no `instruction_id_list`, which self_play.scorer: instructions checks")
    try:
        return build_prompt(topic.strip(), ids, json.dumps(kwargs, sort_keys=True))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def split_prompts(
    prompts: list[Prompt], n_base: int, n_held_out: int, n_fresh: int, round_number: int, seed: int
) -> dict[str, list[Prompt]]:
    """Draw the prompts of one round; the same for every arm and policy.

    Args:
        prompts: a file's. n_base, n_held_out: the same in every round. n_fresh: others in each round.
        round_number: 1, 2, ... seed: of the draw.

    Returns:
        "base", "held_out" and "fresh", without overlap.

    Raises:
        InputError: the file holds too few.

    Example:
        >>> parts = split_prompts([build_prompt(f"Count to {n}.") for n in range(9)], 2, 3, 2, round_number=2, seed=0)
        >>> [len(part) for part in parts.values()], len({p.text for part in parts.values() for p in part})
        ([2, 3, 2], 7)
    """
    last = n_base + n_held_out + n_fresh * round_number
    if last > len(prompts):
        raise InputError(
            f"round {round_number} needs {last} prompts ({n_base} base, {n_held_out} held out, {n_fresh} fresh a "
            f"round), and the file has {len(prompts)}: lower them in self_play, or write more"
        )
    drawn = sorted(prompts, key=lambda prompt: compute_digest([seed, prompt.text]))
    return {
        "base": drawn[:n_base],
        "held_out": drawn[n_base : n_base + n_held_out],
        "fresh": drawn[last - n_fresh : last],
    }
