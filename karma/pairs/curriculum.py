"""Curriculum: the same pairs, from plain distinctions to subtle ones, in stages to train in turn.

A distinction is plain where the two origin models are far apart in score, subtle where they are close; of
equal gaps the less similar origin models come first. Of a file only an index is sorted, about 50 bytes a pair; texts
are dealt into up to MAX_BUCKETS files of neighbours in the order, each then sorted by itself. Limit: the gap belongs to
the origin models, so all pairs of the same two models are equally plain and follow each other by id; for rlaif the gap
is that of the annotations.

Paper: section 6.2 promises a curriculum; no experiment of the paper uses one, and the order is ours.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from karma.errors import InputError
from karma.pairs.pairs import PairSet

SLICE_ROWS = 4096
BUCKET_SLICES = 4  # of a bucket at least: some 30 MB of UltraFeedback's pairs
MAX_BUCKETS = 256  # files open at once
KEYS = ["chosen_score", "rejected_score", "kinship", "row_id"]


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
    return _sort(*_list_keys(table))


def _list_keys(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what decides, the last first: 64 bits of the row's id, kinship, the gap (negative)."""
    gap = table["chosen_score"].to_numpy() - table["rejected_score"].to_numpy()
    kinship = table["kinship"].to_numpy()
    ids = np.array([int(i, 16) >> 64 for i in table["row_id"].to_pylist()], np.uint64)
    return ids, np.where(np.isnan(kinship), 0.0, kinship), -gap.round(9)


def _sort(*keys: np.ndarray) -> np.ndarray:
    return np.lexsort(keys)


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
    keys = [_list_keys(pa.Table.from_batches([batch])) for batch in source.iter_batches(SLICE_ROWS, columns=KEYS)]
    order = _sort(*map(np.concatenate, zip(*keys, strict=True))) if keys else np.zeros(0, np.int64)
    del keys
    stages = compute_stages(len(order), n_stages)
    ordered, schema = path.with_suffix(".ordered"), source.schema_arrow.append(pa.field("stage", pa.int8()))
    n_slices = -(-len(order) // SLICE_ROWS)
    size = max(BUCKET_SLICES, -(-n_slices // MAX_BUCKETS)) * SLICE_ROWS
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
        pq.ParquetWriter(ordered, schema, use_dictionary=dictionary) as writer,
    ):
        files = [Path(folder) / f"{i}.arrow" for i in range(-(-len(order) // size))]
        _deal(source, order, size, files)
        for i, file in enumerate(files):
            rows = _gather(file, order[i * size : (i + 1) * size])
            for start in range(0, rows.num_rows, SLICE_ROWS):
                part, first = rows.slice(start, SLICE_ROWS), i * size + start
                writer.write_table(part.append_column("stage", pa.array(stages[first : first + part.num_rows])))
            file.unlink()
    ordered.replace(path)


def _deal(source: pq.ParquetFile, order: np.ndarray, size: int, files: list[Path]) -> None:
    """Write each row to the file of the `size` neighbours among which it will stand, in the source's order."""
    buckets = np.empty(len(order), np.int32)
    buckets[order] = np.arange(len(order)) // size
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_stream(str(file), source.schema_arrow)) for file in files]
        start = 0
        for batch in source.iter_batches(BUCKET_SLICES * SLICE_ROWS):
            own = buckets[start : start + batch.num_rows]
            by_bucket = np.argsort(own, kind="stable")
            dealt, (found, firsts) = batch.take(pa.array(by_bucket)), np.unique(own[by_bucket], return_index=True)
            for bucket, first, last in zip(found, firsts, [*firsts[1:], batch.num_rows], strict=True):
                writers[bucket].write_batch(dealt.slice(first, last - first))
            start += batch.num_rows


def _gather(file: Path, places: np.ndarray) -> pa.Table:
    """Return a bucket's rows in order; `places` are those in the source, which the file's rows follow."""
    with pa.OSFile(str(file)) as stream:  # not mapped: its pages would count as this process's memory
        rows = pa.ipc.open_stream(stream).read_all().combine_chunks()
    return rows.take(pa.array(np.searchsorted(np.sort(places), places)))


def order_pairs(pairs: PairSet, n_stages: int) -> PairSet:
    """Return the pairs from plain to subtle, with a column `stage` (1..n_stages); see `karma.pairs.curriculum`."""
    settings = {**pairs.accounting.settings, "curriculum_stages": n_stages}
    return replace(
        pairs, table=order_table(pairs.table, n_stages), accounting=replace(pairs.accounting, settings=settings)
    )
