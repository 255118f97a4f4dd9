"""Responses as columns: a batch of prompts with their responses, each response owning its origin model.

The rows of a pool are nested (a row holds a list of completions). Here they lie flat, one entry a response,
beside the number of the row each belongs to, so that every later decision is one NumPy expression over a
whole batch. A response is joined to its model through its own record, never through the row's separate
`models` list, whose order differs.

Identity is content: a response's id is a 128-bit xxHash of its model and text, a row's id one of its
source, instruction and sorted response ids. Random draws are keyed by (seed, row, response), so nothing
depends on an order. Limit: the hash is fast, not cryptographic; it tells texts apart, it does not prove who
wrote them.

Paper: section 3.1 (the pool of responses). The identities are ours.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from karma.errors import InputError
from karma.scores.names import canonical_model_name

if TYPE_CHECKING:
    import pandas as pd

ANNOTATION_FIELDS = ("overall_score", "fine-grained_score", "mean_aspect")
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
BYTES_PER_TOKEN = 4  # English text in the usual tokenizers: an estimate, for a filter and for costs
_NUMBER = r"^\s*[-+]?\d+(\.\d+)?\s*$"


@dataclass
class ResponseBatch:
    """Some rows of a pool, flat.

    Attributes:
        source, instruction: one string (or null) a row.
        row: int64, for each response the number of its row in this batch, ascending.
        model: int32, for each response a position in `model_names`; -1 where the pool names no model.
        model_names: canonical names of the origin models that occur.
        response, system_prompt: one string (or null) a response.
        annotation: float64, the recorded score in its own units (1..10 or 1..5); NaN where there is none.
    """

    source: pa.Array
    instruction: pa.Array
    row: np.ndarray
    model: np.ndarray
    model_names: list[str]
    response: pa.Array
    system_prompt: pa.Array
    annotation: np.ndarray

    @property
    def n_rows(self) -> int:
        """Return the number of prompts."""
        return len(self.instruction)

    @cached_property
    def response_digest(self) -> np.ndarray:
        """Return each response's id as 16 bytes, shape (responses, 16)."""
        seeds = [xxh3_64_intdigest(name.encode()) for name in self.model_names] + [0]
        return _as_bytes(_hash_each(self.response, [seeds[code] for code in self.model.tolist()]))

    @cached_property
    def row_digest(self) -> np.ndarray:
        """Return each row's id as 16 bytes, shape (rows, 16)."""
        ends = np.searchsorted(self.row, np.arange(self.n_rows + 1)).tolist()
        parts = self.response_digest.tobytes()
        digests = [parts[i : i + 16] for i in range(0, len(parts), 16)]
        seeds = [int.from_bytes(h[:8], "big") for h in _hash_each(self.source, [0] * self.n_rows)]
        seeds = [int.from_bytes(h[:8], "big") for h in _hash_each(self.instruction, seeds)]
        joined = (b"".join(sorted(digests[a:b])) for a, b in pairwise(ends))
        return _as_bytes([xxh3_128_digest(j, s) for j, s in zip(joined, seeds, strict=True)])


def compute_response_id(model: str | None, response: str | None) -> str:
    """Return the id of a response: 32 hexadecimal digits of its (canonical) model name and its text.

    Example:
        >>> compute_response_id("GPT-4", "Paris.") == compute_response_id("gpt-4", "Paris.")
        True
    """
    seed = xxh3_64_intdigest(canonical_model_name(model).encode()) if model is not None else 0
    return xxh3_128_digest((response or "").encode("utf-8", "replace"), seed).hex()


def list_responses(pool: Path) -> list[dict[str, str]]:
    """Return the responses of a pool's parquet file, blank ones left out.

    Returns:
        Dictionaries with row_id, response_id, model, instruction, response; those of a prompt follow each other.
    """
    return [
        {"row_id": compute_row_id(row), "response_id": compute_response_id(c["model"], c["response"]),
         "model": c["model"], "instruction": row["instruction"], "response": c["response"]}
        for row in pq.read_table(pool).to_pylist() for c in row["completions"] if c["response"]
    ]  # fmt: skip


def index_responses(table: "pd.DataFrame", column: str) -> dict[tuple[str, str], float]:
    """Return (row_id, response_id) -> a response's number in a column; where there is none, it is left out.

    Args:
        table: row_id, response_id and the column. column: e.g. score or truth.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"row_id": ["p", "p"], "response_id": ["a", "b"], "score": [4, None]})
        >>> index_responses(table, "score")
        {('p', 'a'): 4.0}
    """
    known = table.dropna(subset=[column])
    return dict(zip(zip(known["row_id"], known["response_id"], strict=True), known[column].astype(float), strict=True))


def compute_row_id(row: dict[str, Any]) -> str:
    """Return the id of a pool row: 32 hexadecimal digits of source, instruction and sorted responses.

    Example:
        >>> a, b = {"model": "a", "response": "Yes."}, {"model": "b", "response": "No."}
        >>> one = compute_row_id({"source": "s", "instruction": "Really?", "completions": [a, b]})
        >>> one == compute_row_id({"source": "s", "instruction": "Really?", "completions": [b, a]})
        True
    """
    seed = 0
    for text in (row.get("source"), row.get("instruction")):
        seed = int.from_bytes(xxh3_128_digest((text or "").encode("utf-8", "replace"), seed)[:8], "big")
    completions = [c or {} for c in row.get("completions") or []]
    ids = [compute_response_id(c.get("model"), c.get("response")) for c in completions]
    return xxh3_128_digest(b"".join(sorted(bytes.fromhex(i) for i in ids)), seed).hex()


def to_hex(digests: np.ndarray) -> pa.Array:
    """Turn (n, 16) bytes into n strings of 32 hexadecimal digits.

    Example:
        >>> to_hex(np.zeros((1, 16), np.uint8)).to_pylist()
        ['00000000000000000000000000000000']
    """
    n, digits = len(digests), np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.stack([digits[digests >> 4], digits[digests & 15]], axis=-1).tobytes()
    offsets = np.arange(0, 32 * n + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))


def count_bytes(texts: pa.Array) -> np.ndarray:
    """Return the UTF-8 length of each text; null counts as empty."""
    return pc.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False)


def count_characters(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return each text's length in characters (Unicode code points); null counts as empty.

    Example:
        >>> count_characters(pa.array(["Käse", None])).tolist()
        [4, 0]
    """
    return pc.utf8_length(texts).fill_null(0).to_numpy().astype(np.int64)


def build_batch(rows: pa.RecordBatch | pa.Table, annotation: str | None = None, where: str = "pool") -> ResponseBatch:
    """Lay nested rows flat.

    Args:
        rows: columns source (optional), instruction, completions (a list of structs with model and response).
        annotation: one of ANNOTATION_FIELDS, or None to leave scores out.
        where: named in errors.

    Raises:
        InputError: a column is absent, given twice, or of a type that cannot hold what it should.
    """
    source, instruction = get_questions(rows, where)
    nested = _get_column(rows, "completions", where)
    if not _is_list_of_structs(nested.type):
        raise InputError(f"{where}: column 'completions' is {nested.type}, expected a list of {{model, response}}")
    flat = pc.list_flatten(nested)
    lengths = pc.list_value_length(nested).fill_null(0).to_numpy(zero_copy_only=False)
    for name in ("model", "response"):
        if flat.type.get_field_index(name) < 0:
            raise InputError(f"{where}: completions have no '{name}'; they have {_names(flat.type)}")
    codes, names = _encode_models(_get_text(flat, "model", where))
    return ResponseBatch(
        source=source,
        instruction=instruction,
        row=np.repeat(np.arange(len(nested)), lengths),
        model=codes,
        model_names=names,
        response=_get_text(flat, "response", where),
        system_prompt=_get_text(flat, "custom_system_prompt", where),
        annotation=_get_annotation(flat, annotation),
    )


def get_questions(rows: pa.RecordBatch | pa.Table, where: str = "pool") -> tuple[pa.Array, pa.Array]:
    """Return source and instruction of nested rows, as `build_batch` does; the responses need not be there."""
    source, instruction = (_as_text(_get_column(rows, n, where), f"{where}: {n}") for n in ("source", "instruction"))
    return source, instruction


def _get_column(rows: pa.RecordBatch | pa.Table, name: str, where: str) -> pa.Array:
    found = rows.schema.get_all_field_indices(name)
    if len(found) > 1:
        raise InputError(f"{where}: column '{name}' is given {len(found)} times; keep one")
    if not found and name == "source":
        return pa.nulls(rows.num_rows, pa.string())
    if not found:
        raise InputError(f"{where} has no column '{name}'; it has {', '.join(rows.schema.names) or 'none'}")
    column = rows.column(found[0])
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_list_of_structs(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and pa.types.is_struct(kind.value_type)


def _names(kind: pa.DataType) -> str:
    return ", ".join(kind.field(i).name for i in range(kind.num_fields)) or "nothing"


def _get_text(flat: pa.StructArray, name: str, where: str) -> pa.Array:
    if flat.type.get_field_index(name) < 0:
        return pa.nulls(len(flat), pa.string())
    return _as_text(pc.struct_field(flat, name), f"{where}: completions' {name}")


def _as_text(column: pa.Array, what: str) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if not pa.types.is_string(kind):
        raise InputError(f"{what} is {column.type}, expected text")
    return column if column.type == pa.string() else column.cast(pa.string())


def _encode_models(models: pa.Array) -> tuple[np.ndarray, list[str]]:
    encoded = models.dictionary_encode()
    spellings = [canonical_model_name(name) for name in encoded.dictionary.to_pylist()]
    names = sorted(set(spellings))
    place = {name: i for i, name in enumerate(names)}
    positions = np.array([*(place[s] for s in spellings), -1], np.int32)
    codes = encoded.indices.fill_null(len(spellings)).to_numpy(zero_copy_only=False)
    return positions[codes], names


def _get_annotation(flat: pa.StructArray, field: str | None) -> np.ndarray:
    if field is None:
        return np.full(len(flat), np.nan)
    if field not in ANNOTATION_FIELDS:
        raise InputError(f"annotation field '{field}' is unknown: choose from {', '.join(ANNOTATION_FIELDS)}")
    if field == "mean_aspect":
        return _get_mean_aspect(flat)
    for name in (field, field.replace("-", "_")):
        if flat.type.get_field_index(name) >= 0:
            return _as_numbers(pc.struct_field(flat, name))
    return np.full(len(flat), np.nan)


def _get_mean_aspect(flat: pa.StructArray) -> np.ndarray:
    """Average the aspect ratings a response has; an aspect rated "N/A" is left out of its mean."""
    ratings = []
    for aspect in ASPECTS:
        inner = flat
        for name in ("annotations", aspect, "Rating"):
            found = inner is not None and pa.types.is_struct(inner.type) and inner.type.get_field_index(name) >= 0
            inner = pc.struct_field(inner, name) if found else None
        if inner is not None:
            ratings.append(_as_numbers(inner))
    if not ratings:
        return np.full(len(flat), np.nan)
    given = np.stack(ratings)
    n = np.isfinite(given).sum(axis=0)
    return np.divide(np.nansum(given, axis=0), n, out=np.full(len(flat), np.nan), where=n > 0)


def _as_numbers(column: pa.Array) -> np.ndarray:
    """Read numbers, or numbers written as text; anything else ("N/A", null) is NaN: not annotated."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.if_else(pc.match_substring_regex(column, _NUMBER), pc.utf8_trim_whitespace(column), None)
    elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return np.full(len(column), np.nan)
    numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _hash_each(texts: pa.Array, seeds: list[int]) -> list[bytes]:
    """Hash each string's bytes in place, without making Python strings; null counts as empty."""
    if not len(texts):
        return []
    _, offsets, content = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(ends)
    if texts.null_count:
        lengths = np.where(texts.is_null().to_numpy(zero_copy_only=False), 0, lengths)
    view = memoryview(content or b"")
    starts = ends[:-1].tolist()
    return [xxh3_128_digest(view[a : a + n], s) for a, n, s in zip(starts, lengths.tolist(), seeds, strict=True)]


def _as_bytes(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
