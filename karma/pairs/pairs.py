"""Preference pairs: build them from a pool, keep them in a folder, split off what training must not see.

A pair is one prompt with two responses by different origin models; which two, and which is chosen, follows
from the scores of the models (`karma.strategies`), never from reading the responses. A pair folder holds
pairs.parquet (in the shape TRL trains on), accounting.json (the books) and README.md (the data card); it is
written under a temporary name and moved when whole, and the same input gives the same bytes.

    from karma import build_pairs, load_pool, load_score_table
    pairs = build_pairs(load_pool("pool.jsonl"), load_score_table("paper"), "k_sim", tau=0.1, seed=0)

Limit: `build_pairs` holds its pairs in memory; `save_pair_sets` streams a pool of any size to disk.

Paper: section 2.3 (which two) and 2.4 (which is chosen, Eq. 3).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill, indent

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from karma.errors import InputError, quote
from karma.files.reading import load_json, read_parquet
from karma.pairs.accounting import Accounting
from karma.pairs.turns import find_opening
from karma.pool.draws import compute_draws

_SLICE_ROWS = 4096
ROLES = ("user", "assistant", "system", "developer", "tool")

CONFIDENCE = "label_confidence"  # probability that the label is right, 0..1; null where it is unknown
# The columns of a pair set, in the shape TRL trains on: prompt, chosen and rejected as role/content messages.
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PAIR_SCHEMA = pa.schema([
    ("row_id", pa.string()), ("source", pa.string()), ("prompt", _MESSAGES), ("chosen", _MESSAGES),
    ("rejected", _MESSAGES), ("chosen_model", pa.string()), ("rejected_model", pa.string()),
    ("chosen_score", pa.float64()), ("rejected_score", pa.float64()), ("kinship", pa.float64()),
    ("strategy", pa.string()), ("chosen_id", pa.string()), ("rejected_id", pa.string()),
    (CONFIDENCE, pa.float64()),
])  # fmt: skip

# What decontamination and near-duplicates leave out: the reason as in the books, and what it overlaps with how much.
OVERLAP_SCHEMA = pa.schema([
    ("reason", pa.string()), ("row_id", pa.string()), ("response_id", pa.string()), ("benchmark", pa.string()),
    ("item", pa.string()), ("duplicate_of", pa.string()), ("overlap", pa.float64()),
])  # fmt: skip

_RANGES = (  # with what rounding may add
    ("chosen_score", -1e12, 1e12), ("rejected_score", -1e12, 1e12), ("kinship", -1 - 1e-9, 1 + 1e-9),
    (CONFIDENCE, 0.0, 1.0),
)  # fmt: skip


@dataclass(frozen=True)
class PairSet:
    """Pairs of one strategy.

    Attributes:
        table: columns of PAIR_SCHEMA (and `stage`, where a curriculum ordered them).
        accounting: rows in, pairs out, dropped by reason, and the settings.
        overlaps: what was left out by decontamination or as a near-duplicate, in OVERLAP_SCHEMA; None: not looked for.
    """

    table: pa.Table
    accounting: Accounting
    overlaps: pa.Table | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def strategy(self) -> str:
        """Return the name of the strategy."""
        return self.accounting.strategy

    def show(self, place: int = 0) -> str:
        """Return one pair as people read it: prompt, the two responses with who wrote them, their models' kinship.

        Args:
            place: of the pair, from 0.

        Example:
            >>> from karma import build_pairs, load_pool, load_score_table
            >>> pairs = build_pairs(load_pool("sample"), load_score_table("sample"), "k_sim", tau=0.1, seed=0)
            >>> [line.split(" ")[0] for line in pairs.show(0).splitlines() if line and line[0] != " "]
            ['prompt', 'chosen', 'rejected', 'kinship']
        """
        (row,) = self.table.slice(place, 1).to_pylist()
        prompt = " / ".join(turn["content"] for turn in row["prompt"])
        texts = [("prompt", prompt)]
        for side in ("chosen", "rejected"):
            score = row[f"{side}_score"]
            known = f", score {score:.2f}" if score is not None else ""
            texts.append((f"{side} ({row[f'{side}_model']}{known})", row[side][-1]["content"]))
        told = [f"{name}\n{indent(fill(text, 96), '    ')}" for name, text in texts]
        kinship = "not known" if row["kinship"] is None else f"{row['kinship']:.3f}"
        return "\n".join([*told, f"kinship of the two models {kinship}; picked by {row['strategy']}"])


def split_pairs(pairs: PairSet, held_out: float, seed: int) -> tuple[PairSet, PairSet]:
    """Split off pairs that training must not see, by a draw on (seed, prompt).

    A prompt is held out of every strategy or of none, wherever it is repeated: runs on different sets are tested on
    prompts none has seen. A conversation is known by the user's first message, so that one that is carried on is held
    out with its beginning, whose answers it repeats.

    Args:
        pairs: a pair set.
        held_out: share of the prompts, 0..1; the actual number varies around it.
        seed: of the draw.

    Returns:
        (train, held_out); each one's books count the other's rows as dropped, so that they balance.

    Example:
        >>> from karma.pairs.accounting import Accounting
        >>> prompts = [[{"role": "user", "content": f"Add {i % 500} and 1."}] for i in range(1000)]
        >>> whole = PairSet(pa.table({"prompt": prompts}), Accounting("k_sim", rows_in=1000, pairs_out=1000))
        >>> train, held = split_pairs(whole, 0.1, seed=0)
        >>> len(train) + len(held), 60 < len(held) < 140, len(held) % 2
        (1000, True, 0)
    """
    is_held = find_held_out(pairs, held_out, seed)
    return _take_part(pairs, ~is_held, "held_out"), _take_part(pairs, is_held, "in_training")


def cut_to_smallest(sets: Mapping[str, PairSet], held_out: float, seed: int) -> dict[str, PairSet]:
    """Let all sets train on equally many pairs: each keeps as many of its training part as the smallest has, by draw.

    The draw hangs on (seed, row) alone, so that sets which made a pair of the same row keep or drop it together, as far
    as their numbers allow. Held-out pairs all stay. Limit: the sets then differ in their prompts.

    Args:
        sets: strategy -> its pairs. held_out, seed: as `split_pairs` will be given them.

    Returns:
        The sets, in the order of their pairs; what is dropped is counted as `beyond_smallest`.

    Raises:
        InputError: a set has no pair to train on.

    Example:
        >>> from karma.pairs.accounting import Accounting
        >>> rows = [{"row_id": f"{i:032x}", "prompt": [{"role": "user", "content": f"{i}"}]} for i in range(40)]
        >>> sets = {n: PairSet(pa.Table.from_pylist(rows[:n]), Accounting("k_sim", n, n)) for n in (40, 20)}
        >>> parts = [split_pairs(pairs, 0.1, 0) for pairs in cut_to_smallest(sets, 0.1, 0).values()]
        >>> len(parts[0][0]) == len(parts[1][0]) == len(split_pairs(sets[20], 0.1, 0)[0])
        True
    """
    held = {name: find_held_out(pairs, held_out, seed) for name, pairs in sets.items()}
    sizes = {name: int((~mask).sum()) for name, mask in held.items()}
    least = min(sizes, key=lambda name: sizes[name])
    if not sizes[least]:
        raise InputError(f"{least} has no pair to train on, so that no set would: leave it out of pairs.equal_numbers")
    found = {}
    for name, pairs in sets.items():
        keys = np.array([int(i, 16) >> 64 for i in pairs.table["row_id"].to_pylist()], np.uint64)
        draws = compute_draws(seed, "equal_numbers", keys)
        order = np.lexsort((draws, held[name]))  # the training part first, in order of its draws
        kept = held[name].copy()
        kept[order[: sizes[least]]] = True
        found[name] = _take_part(pairs, kept, "beyond_smallest")
    return found


def find_held_out(pairs: PairSet, held_out: float, seed: int) -> np.ndarray:
    """Tell which pairs `split_pairs` keeps out of training."""
    if not 0 <= held_out < 1:
        raise InputError(f"held_out is {held_out}: a share of the rows from 0 up to, not including, 1")
    openings = map(find_opening, pairs.table["prompt"].to_pylist())
    texts = [" ".join(text.casefold().split()) for text in openings]
    keys = np.array([xxh3_64_intdigest(text.encode("utf-8", "replace")) for text in texts], np.uint64)
    draws = compute_draws(seed, "held_out", keys).astype(np.float64) / 2.0**64
    return np.asarray(draws < held_out)


def _take_part(pairs: PairSet, mask: np.ndarray, reason: str) -> PairSet:
    table = pairs.table.filter(pa.array(mask))
    dropped = pairs.accounting.dropped + Counter({reason: len(pairs) - table.num_rows})
    return replace(pairs, table=table, accounting=replace(pairs.accounting, pairs_out=table.num_rows, dropped=dropped))


def load_pairs(folder: str | Path) -> PairSet:
    """Load a pair folder.

    Raises:
        InputError: no pair folder, a column missing, or accounting that does not fit the pairs.

    Example:
        >>> load_pairs("nowhere")
        Traceback (most recent call last):
        karma.errors.InputError: nowhere is no pair folder: pairs.parquet is missing; make one with `karma binarize`
    """
    folder = Path(folder)
    file = folder / "pairs.parquet"
    if not file.is_file():
        raise InputError(f"{folder} is no pair folder: {file.name} is missing; make one with `karma binarize`")
    table = read_parquet(file)
    if CONFIDENCE not in table.column_names:  # written before labels knew how sure they are
        table = table.append_column(CONFIDENCE, pa.nulls(table.num_rows, pa.float64()))
    missing = [c for c in PAIR_SCHEMA.names if c not in table.column_names]
    if missing:
        raise InputError(f"{file} has no column '{missing[0]}': make it again with `karma binarize`")
    for name in PAIR_SCHEMA.names:
        _check_type(table.schema.field(name), PAIR_SCHEMA.field(name), file)
    for name in ("prompt", "chosen", "rejected"):
        if table[name].null_count or pc.list_flatten(table[name]).null_count:
            raise InputError(f"{file}: a {name} is null, or holds a null: make it again with `karma binarize`")
        roles = pc.unique(pc.struct_field(pc.list_flatten(table[name]), "role")).to_pylist()
        if odd := [role for role in roles if role not in ROLES]:
            raise InputError(f"{file}: a {name} is by {quote(odd[0])}, expected one of {', '.join(ROLES)}")
        if pc.any(pc.equal(pc.list_value_length(table[name]), 0)).as_py():
            raise InputError(f"{file}: a {name} holds no message: make it again with `karma binarize`")
        _check_turns(table[name], name, file)
    _check_values(table, file)
    accounting = Accounting.from_dict(load_json(folder / "accounting.json"), str(folder / "accounting.json"))
    if accounting.pairs_out != table.num_rows:
        raise InputError(f"{folder}: {table.num_rows} pairs, but accounting.json counts {accounting.pairs_out}")
    return PairSet(table, accounting)


def _check_values(table: pa.Table, file: Path) -> None:
    """Raise where a row has no id of its own, or a number is none that `karma binarize` could have written."""
    if table["row_id"].null_count or pc.count_distinct(table["row_id"]).as_py() < table.num_rows:
        raise InputError(f"{file}: two pairs have one row_id, or a pair has none: give each pair its own")
    for name, low, high in _RANGES:
        values = pc.drop_null(table[name].cast(pa.float64()))
        fits = pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high))
        if not pc.all(fits, min_count=0).as_py():
            odd = next(v for v in values.to_pylist() if not low <= v <= high)
            raise InputError(f"{file}: a {name} is {odd:g}, expected {low:g} to {high:g}, or nothing: put it right")


def _check_turns(column: pa.ChunkedArray, name: str, file: Path) -> None:
    """Raise where a prompt does not end with the user, has a message without text, or a response is no one message."""
    last = "user" if name == "prompt" else "assistant"
    for chunk in column.chunks:
        lengths, turns = chunk.value_lengths().to_numpy(zero_copy_only=False), chunk.flatten()
        roles = pc.struct_field(turns, "role").take(pa.array(np.cumsum(lengths) - 1))
        if pc.any(pc.not_equal(roles, last)).as_py():
            raise InputError(f"{file}: a {name} does not end with the {last}'s message: put it right")
        if name != "prompt" and (lengths > 1).any():
            raise InputError(f"{file}: a {name} is {lengths.max()} messages, expected one: what comes before the "
                             "answer belongs to prompt")  # fmt: skip
        if name == "prompt" and pc.struct_field(turns, "content").null_count:
            raise InputError(f"{file}: a message of a prompt has no text: put it right")


def _check_type(field: pa.Field, wanted: pa.Field, file: Path) -> None:
    """Raise where a column is of another kind than `karma binarize` writes."""

    def plain(kind: pa.DataType) -> str:
        return str(kind).replace("large_", "").replace("element:", "item:").replace(" not null", "")

    is_number = pa.types.is_floating(field.type) or pa.types.is_integer(field.type) or pa.types.is_null(field.type)
    fits = is_number if pa.types.is_floating(wanted.type) else plain(field.type) == plain(wanted.type)
    if not fits:
        raise InputError(f"{file}: column '{field.name}' holds {field.type}, expected {wanted.type}: "
                         "make it again with `karma binarize`")  # fmt: skip
