"""Curriculum: the same pairs, from plain distinctions to subtle ones, in stages to train in turn.

A distinction is plain where the two origin models are far apart in score, subtle where they are close; of
equal gaps the less similar origin models come first. Only an index is sorted: texts are copied once, in
slices, so memory stays bounded. Limit: the gap belongs to the origin models, so all pairs of the same two
models are equally plain and follow each other by id; for rlaif the gap is that of the annotations.

Paper: section 6.2 promises a curriculum; no experiment of the paper uses one, and the order is ours.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from karma.errors import InputError
from karma.pairs.pairs import PairSet

SLICE_ROWS = 4096


def compute_curriculum(table: pa.Table) -> np.ndarray:
    """Return the order: positions of the pairs from plain to subtle.

    Args:
        table: chosen_score, rejected_score, kinship (may be null) and row_id.

    Example:
        >>> table = pa.table({"chosen_score": [0.9, 0.9, 0.5], "rejected_score": [0.8, 0.1, 0.4],
        ...                   "kinship": [0.9, 0.2, 0.3], "row_id": ["a", "b", "c"]})
        >>> compute_curriculum(table).tolist()
        [1, 2, 0]
    """
    gap = table["chosen_score"].to_numpy() - table["rejected_score"].to_numpy()
    kinship = table["kinship"].to_numpy()
    ids = np.array([int(i, 16) >> 64 for i in table["row_id"].to_pylist()], np.uint64)
    return np.lexsort((ids, np.where(np.isnan(kinship), 0.0, kinship), -gap.round(9)))


def compute_stages(n: int, n_stages: int) -> np.ndarray:
    """Return the stage of each place in the order, 1..n_stages, as equal as n allows.

    Example:
        >>> compute_stages(5, 2).tolist()
        [1, 1, 1, 2, 2]
    """
    if not 1 <= n_stages <= 127:
        raise InputError(f"{n_stages} stages: give 1 to 127")
    return (1 + np.arange(n) * n_stages // max(n, 1)).astype(np.int8)


def order_table(table: pa.Table, n_stages: int) -> pa.Table:
    """Return the pairs from plain to subtle, with a column `stage`."""
    stages = pa.array(compute_stages(table.num_rows, n_stages))
    return table.take(pa.array(compute_curriculum(table))).append_column("stage", stages)


def order_file(path: Path, n_stages: int, dictionary: list[str]) -> None:
    """Rewrite a parquet file of pairs in curriculum order, a slice at a time.

    Args:
        path: pairs.parquet, not yet published.
        n_stages: stages of equal size.
        dictionary: columns to encode with a dictionary.
    """
    source = pq.ParquetFile(path, pre_buffer=False)
    order = compute_curriculum(source.read(["chosen_score", "rejected_score", "kinship", "row_id"]))
    stages, schema = (
        compute_stages(len(order), n_stages),
        source.schema_arrow.append(pa.field("stage", pa.int8())),
    )
    plain, ordered = path.with_suffix(".arrow"), path.with_suffix(".ordered")
    with pa.ipc.new_file(plain, source.schema_arrow) as writer:
        for batch in source.iter_batches(SLICE_ROWS):
            writer.write_batch(batch)
    with (
        pa.memory_map(str(plain)) as mapped,
        pq.ParquetWriter(ordered, schema, use_dictionary=dictionary) as writer,
    ):
        reader = pa.ipc.open_file(mapped)
        for start in range(0, len(order), SLICE_ROWS):
            part = slice(start, start + SLICE_ROWS)
            rows = _gather(reader, order[part])
            writer.write_table(rows.append_column("stage", pa.array(stages[part])))
    plain.unlink()
    ordered.replace(path)


def _gather(reader: pa.ipc.RecordBatchFileReader, places: np.ndarray) -> pa.Table:
    """Take rows by their place in the file, batch by batch (a whole column would overflow 32-bit offsets)."""
    by_batch = np.argsort(places // SLICE_ROWS, kind="stable")
    parts = []
    for number in np.unique(places // SLICE_ROWS):
        inside = places[places // SLICE_ROWS == number] - number * SLICE_ROWS
        parts.append(pa.table(reader.get_batch(int(number))).take(pa.array(inside)))
    return pa.concat_tables(parts).combine_chunks().take(pa.array(np.argsort(by_batch, kind="stable")))


def order_pairs(pairs: PairSet, n_stages: int) -> PairSet:
    """Return the pairs from plain to subtle, with a column `stage` (1..n_stages); see `karma.pairs.curriculum`."""
    settings = {**pairs.accounting.settings, "curriculum_stages": n_stages}
    return PairSet(order_table(pairs.table, n_stages), replace(pairs.accounting, settings=settings))
