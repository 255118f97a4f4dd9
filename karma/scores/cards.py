"""Lineage from model cards, as the Hub keeps them: base_model, base_model_relation and datasets of their front matter.

A folder of cards holds README.md files, each in the folder of its repository (`org/name/README.md`, or as the Hub's
cache lays it out: `models--org--name/snapshots/.../README.md`). A file of cards is JSON lines, one object a model: its
`id` (or `modelId`) and its front matter, as it is or as the Hub's API gives it (`cardData`). Cards are read by
huggingface_hub's ModelCard, which loads plain YAML; nothing is fetched. A name that is no repository's is refused, as
names end up in tables and figures. Limit: what is declared is believed; a card without base_model declares nothing.

Paper: ours.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from karma.errors import InputError, quote
from karma.files.reading import load_json_lines, read_text
from karma.scores.table import ScoreTable

LONGEST = 1_000_000  # characters of a card
_NAME = re.compile(r"[\w][\w.\-]*(/[\w][\w.\-]*)?", re.ASCII)


@dataclass(frozen=True)
class Card:
    """What a model declares of its origin.

    Attributes:
        base_models: repositories: one of a finetuned model, several of a merge. merged: whether it says that it is one.
        tuning_data: data sets, by name.
    """

    base_models: tuple[str, ...] = ()
    merged: bool = False
    tuning_data: tuple[str, ...] = ()


def load_cards(path: Path) -> dict[str, Card]:
    """Load model cards: a folder of README.md files, or JSON lines.

    Returns:
        repository -> what its card declares.

    Raises:
        InputError: no card there, one that cannot be read, a name that is none, or two cards of one model.
    """
    found: dict[str, Card] = {}
    for name, where, data in _read_folder(path) if path.is_dir() else _read_file(path):
        if not _NAME.fullmatch(name):
            raise InputError(f"{where}: {quote(name)} is no name of a model: expected organisation/name")
        if name in found:
            raise InputError(f"{where}: '{name}' has two cards: keep one of them")
        found[name] = _read_card(data, where)
    if not found:
        raise InputError(f"{path} holds no model card: give a folder of README.md files, or JSON lines")
    return found


def _read_folder(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for file in sorted(path.rglob("README.md")):
        parts = file.relative_to(path).parts[:-1]
        cached = next((part for part in parts if part.startswith("models--")), None)
        name = cached.removeprefix("models--").replace("--", "/", 1) if cached else "/".join(parts[-2:])
        yield name, str(file.relative_to(path)), read_front_matter(read_text(file), str(file.relative_to(path)))


def read_front_matter(text: str, where: str) -> dict[str, Any]:
    """Return a card's front matter, by huggingface_hub.

    Raises:
        InputError: no YAML, or none that a card may have.

    Example:
        >>> read_front_matter("---\\nbase_model: org/base\\n---\\n# A model", "README.md")
        {'base_model': 'org/base'}
    """
    from huggingface_hub import ModelCard

    if len(text) > LONGEST:
        raise InputError(f"{where} has {len(text):,} characters, no model card has above {LONGEST:,}: remove it")
    matter = re.match(r"\s*---[\r\n]+.*?[\r\n]---", text, re.S)
    if not matter:
        return {}
    try:
        return dict(ModelCard(text, ignore_metadata_errors=True).data.to_dict())  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever YAML, or the Hub's own classes, make of a bad card
        reason = str(error).split("\n")[0]
        raise InputError(f"{where}: its front matter cannot be read ({reason}): correct or remove it") from error


def _read_file(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for number, row in load_json_lines(path):
        where = f"{path.name}, line {number}"
        name = row.get("id", row.get("modelId")) if isinstance(row, dict) else None
        data = row.get("cardData", row) if isinstance(row, dict) else None
        if not isinstance(name, str) or not isinstance(data, dict | None):
            raise InputError(f"{where}: expected an object with 'id' and what the card declares, e.g. 'base_model'")
        yield name, where, data or {}


def _read_card(data: dict[str, Any], where: str) -> Card:
    found = {key: _read_names(data.get(key), key, where) for key in ("base_model", "datasets")}
    relation = data.get("base_model_relation")
    merged = relation == "merge" or (relation is None and len(found["base_model"]) > 1)
    return Card(found["base_model"], merged, found["datasets"])


def _read_names(value: object, key: str, where: str) -> tuple[str, ...]:
    names: list[Any] = [] if value is None else value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name.strip()):
            shown = quote(name) if isinstance(name, str) else f"a {type(name).__name__}"
            raise InputError(f"{where}: {key} is {shown}, expected organisation/name, or a list of such")
    return tuple(name.strip() for name in names)


def add_cards(table: ScoreTable, cards: dict[str, Card]) -> tuple[ScoreTable, int]:
    """Put what cards declare in the place of a table's facts; models without a card keep theirs.

    Args:
        table: n models, by repository or by name. cards: from `load_cards`.

    Returns:
        The table, and how many of its rows have a card.

    Example:
        >>> from karma.kinship.lineage import trace_lineage
        >>> from karma.scores.read import load_score_table
        >>> cards = {"Alpaca-7b": Card(("GPT-4", "bard"), merged=True)}
        >>> table, n = add_cards(load_score_table("paper"), cards)
        >>> n, trace_lineage(table).sons[["son", "father", "merged"]].values.tolist()
        (1, [['Alpaca-7b', 'GPT-4', True], ['Alpaca-7b', 'bard', True]])
    """
    facts = table.facts.reindex(table.scores.index).astype(object)
    names = table.scores.index.to_series().astype(str)
    repository = facts["repository"].fillna(names) if "repository" in facts else names
    n = 0
    for name, own in repository.items():
        card = cards.get(own)
        if card is None:
            continue
        n += 1
        declared = {"base_model": "; ".join(card.base_models), "tuning_data": "; ".join(card.tuning_data)}
        for key, value in declared.items():
            if value:
                facts.loc[name, key] = value
        if card.base_models:
            facts.loc[name, "merged"] = str(card.merged)
    return replace(table, facts=facts.where(pd.notna(facts), None)), n
