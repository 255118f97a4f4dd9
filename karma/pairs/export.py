"""Pairs for other trainers: a folder that LLaMA-Factory, Axolotl or TRL loads as it is, conversations included.

    trl            pairs.jsonl with prompt, chosen, rejected (messages): `trl dpo --dataset_name FOLDER`, kto, reward
    trl_sft        pairs.jsonl with prompt and completion, the chosen response: `trl sft --dataset_name FOLDER`
    llama_factory  pairs.jsonl with messages (the prompt's), chosen, rejected, and dataset_info.json that says so
    axolotl        the same pairs.jsonl, and axolotl.yaml with the `datasets` section of a DPO configuration

Scores, label confidence and the models that wrote the responses stand beside the texts in columns that no trainer
reads; README.md is the pairs' card, whose licences hold wherever they go. Every folder of pairs reads back with
`karma.pairs.public_shape.load_binarized`. Decision: what a trainer would skip or fail on (LLaMA-Factory: turns that do
not alternate) is refused here, with the number of such pairs, and nothing is written.

Sources: LLaMA-Factory's data/README.md (ShareGPT format, preference dataset), Axolotl's docs/rlhf.qmd
(chat_template.default), TRL's dataset formats (preference, conversational, explicit prompt).
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from karma.errors import InputError
from karma.files.writing import atomic_path
from karma.pairs.pairs import CONFIDENCE, PairSet
from karma.pairs.turns import Messages

ROWS = "pairs.jsonl"
_BESIDE = {"score_chosen": "chosen_score", "score_rejected": "rejected_score", CONFIDENCE: CONFIDENCE,
           **{name: name for name in ("chosen_model", "rejected_model", "instructions")}}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """What a trainer takes.

    Attributes:
        title: its name.
        takes: which conversations, in words. fits: prompt -> whether it is one.
        prompt: the column of the prompt's messages. single: whether a response is a message, or a list of one.
        describe: name of the set -> files besides the pairs, by name.
        sides: column -> which of a pair's responses.
    """

    title: str
    takes: str
    fits: Callable[[Messages], bool]
    prompt: str
    single: bool
    describe: Callable[[str], dict[str, str]]
    sides: dict[str, str] = field(default_factory=lambda: {"chosen": "chosen", "rejected": "rejected"})


def _alternates(prompt: Messages) -> bool:
    """Tell whether user and assistant take turns, after a system message or none."""
    turns = prompt[1:] if prompt[0]["role"] == "system" else prompt
    return all(turn["role"] == role for turn, role in zip(turns, cycle(("user", "assistant")), strict=False))


def _describe_llama_factory(name: str) -> dict[str, str]:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
            "system_tag": "system"}  # fmt: skip
    columns = {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
    described = {"file_name": ROWS, "formatting": "sharegpt", "ranking": True, "columns": columns, "tags": tags}
    return {"dataset_info.json": json.dumps({name: described}, indent=2) + "\n"}


def _describe_axolotl(name: str) -> dict[str, str]:
    fields = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected",
              "message_property_mappings": {"role": "role", "content": "content"}}  # fmt: skip
    data = {"path": ROWS, "ds_type": "json", "split": "train", "type": "chat_template.default", **fields}
    text = yaml.safe_dump({"rl": "dpo", "chat_template": "tokenizer_default", "datasets": [data]}, sort_keys=False)
    return {"axolotl.yaml": f"# {name}: add base_model and how to train; path is as seen from this folder\n{text}"}


FORMATS = {
    "trl": Format("TRL", "any conversation", lambda prompt: True, "prompt", False, lambda name: {}),
    "trl_sft": Format("TRL's SFT", "any conversation", lambda prompt: True, "prompt", False, lambda name: {},
                      {"completion": "chosen"}),
    "llama_factory": Format(
        "LLaMA-Factory", "a system message or none, then user and assistant by turns", _alternates, "messages", True,
        _describe_llama_factory),
    "axolotl": Format(
        "Axolotl", "messages by system, user, assistant and tool",
        lambda prompt: {turn["role"] for turn in prompt} <= {"system", "user", "assistant", "tool"}, "messages", True,
        _describe_axolotl),
}  # fmt: skip
FILES = (ROWS, "README.md", "dataset_info.json", "axolotl.yaml")


def export_pairs(pairs: PairSet, form: str, folder: Path, card: str = "") -> list[str]:
    """Write pairs in the shape of another trainer, all files or none.

    Args:
        pairs: a pair set. form: a key of FORMATS.
        folder: made if absent; an earlier export in it is replaced.
        card: the pairs' card (README.md of their folder); "": none is written.

    Returns:
        The names of the files.

    Raises:
        InputError: an unknown format, no pairs, a prompt that the trainer does not take, a response without text, or a
            folder with other files.

    Example:
        >>> from tempfile import mkdtemp
        >>> import pyarrow as pa
        >>> from karma.pairs.accounting import Accounting
        >>> from karma.pairs.pairs import PAIR_SCHEMA
        >>> say = lambda role, text: [{"role": role, "content": text}]
        >>> row = {"row_id": "a", "prompt": say("user", "Is 1 odd?"), "chosen": say("assistant", "Yes."),
        ...        "rejected": say("assistant", "No.")}
        >>> one = PairSet(pa.Table.from_pylist([row], PAIR_SCHEMA), Accounting("k_sim", 1, 1))
        >>> export_pairs(one, "llama_factory", Path(mkdtemp()))
        ['pairs.jsonl', 'dataset_info.json']
    """
    if form not in FORMATS:
        raise InputError(f"--format {form}: choose from {', '.join(FORMATS)}")
    if not len(pairs):
        raise InputError("there are no pairs to export")
    own, prompts = FORMATS[form], pairs.table["prompt"].to_pylist()
    if odd := [place for place, prompt in enumerate(prompts) if not own.fits(prompt)]:
        roles = ", ".join(turn["role"] for turn in prompts[odd[0]])
        name = pairs.table["row_id"][odd[0]].as_py()
        raise InputError(f"pair {name}: its prompt is ({roles}), and {own.title} takes {own.takes} (so of {len(odd)} "
                         f"of {len(pairs)} pairs): take --format trl")  # fmt: skip
    if blank := find_blank(pairs):
        name = pairs.table["row_id"][blank[0]].as_py()
        raise InputError(
            f"pair {name}: chosen or rejected is blank (so of {len(blank)} of {len(pairs)} pairs): repair them"
        )
    others = [path.name for path in folder.iterdir() if path.name not in FILES] if folder.is_dir() else []
    if others:
        raise InputError(f"{folder} holds {sorted(others)[0]}, which is no export's: give a new folder")
    files = own.describe(f"karma_{pairs.strategy}")
    if card:
        files["README.md"] = card.replace("path: pairs.parquet", f"path: {ROWS}", 1)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        with (temporary / ROWS).open("w", encoding="utf-8") as stream:
            for row in _build_rows(pairs, own):
                stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        for name, text in files.items():
            (temporary / name).write_text(text, "utf-8")
    return [ROWS, *files]


def find_blank(pairs: PairSet) -> list[int]:
    """Return the places of pairs with a response without text, which other trainers would train on."""
    sides = zip(*(pairs.table[side].to_pylist() for side in ("chosen", "rejected")), strict=True)
    return [k for k, both in enumerate(sides) if not all((side[-1]["content"] or "").strip() for side in both)]


def _build_rows(pairs: PairSet, form: Format) -> Iterator[dict[str, Any]]:
    beside = {name: column for name, column in _BESIDE.items() if column in pairs.table.column_names}
    for batch in pairs.table.to_batches(4096):
        for row in batch.to_pylist():
            sides = {name: row[side][0] if form.single else row[side] for name, side in form.sides.items()}
            yield {
                form.prompt: row["prompt"],
                **sides,
                **{name: _clean(row[column]) for name, column in beside.items()},
            }


def _clean(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
