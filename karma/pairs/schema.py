"""The columns of a pair set, in the shape TRL trains on: prompt, chosen and rejected as role/content messages."""

import pyarrow as pa

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PAIR_SCHEMA = pa.schema([
    ("row_id", pa.string()), ("source", pa.string()), ("prompt", _MESSAGES), ("chosen", _MESSAGES),
    ("rejected", _MESSAGES), ("chosen_model", pa.string()), ("rejected_model", pa.string()),
    ("chosen_score", pa.float64()), ("rejected_score", pa.float64()), ("kinship", pa.float64()),
    ("strategy", pa.string()), ("chosen_id", pa.string()), ("rejected_id", pa.string()),
])  # fmt: skip
