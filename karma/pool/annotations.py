"""Annotations that lie beside a pool: a score for a response in a row, found by their ids.

The table has columns row_id, response_id and score (more are ignored); a judge writes one, or you bring
your own. Ids are content, so a table made for another pool matches nothing, and that is an error rather
than an empty set of pairs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from karma.errors import InputError
from karma.files.reading import read_parquet
from karma.pool.draws import compute_keys, mix
from karma.pool.pool import ResponsePool

_COLUMNS = ("row_id", "response_id", "score")


@dataclass(frozen=True)
class AnnotationTable:
    """Scores by (row, response).

    Attributes:
        name: the file's name, stated in the data card.
        keys: uint64, ascending: the ids of row and response mixed into one.
        scores: float64, in the annotator's units, NaN where it gave none.
    """

    name: str
    keys: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def score_pairs(self, pairs: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Return the annotations of chosen and of rejected responses, NaN where there is none."""
        rows = pairs["row_id"].to_pylist()
        chosen, rejected = (self.look_up_ids(rows, pairs[c].to_pylist()) for c in ("chosen_id", "rejected_id"))
        return chosen, rejected

    def look_up_ids(self, row_ids: list[str], response_ids: list[str]) -> np.ndarray:
        """Return the score of each response by its ids, NaN where the table has none."""
        return self.look_up(_parse_ids(row_ids), _parse_ids(response_ids))

    def look_up(self, row_digests: np.ndarray, response_digests: np.ndarray) -> np.ndarray:
        """Return the score of each response, NaN where the table has none; digests have shape (n, 16)."""
        wanted = _combine(row_digests, response_digests)
        if not len(self.keys):
            return np.full(len(wanted), np.nan)
        place = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, self.scores[place], np.nan)


def load_annotations(path: str | Path | pa.Table) -> AnnotationTable:
    """Read a parquet table of annotations.

    Args:
        path: the file, or a table in memory.

    Raises:
        InputError: unreadable, a column missing, ids that are none, or two scores for one response.
    """
    name = "a table in memory" if isinstance(path, pa.Table) else Path(path).name
    table = path if isinstance(path, pa.Table) else read_parquet(path, "annotations")
    missing = [c for c in _COLUMNS if c not in table.column_names]
    if missing or not table.num_rows:
        what = f"has no column '{missing[0]}'" if missing else "holds no rows"
        raise InputError(f"annotations {name} {what}: expected {', '.join(_COLUMNS)}")
    try:
        scores = table["score"].cast(pa.float64()).to_numpy()
        digests = [_parse_ids(table[c].to_pylist()) for c in ("row_id", "response_id")]
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputError(f"annotations {name}: {str(error).splitlines()[0]} (ids are 32 hexadecimal digits)") from error
    if np.isinf(scores).any():
        raise InputError(f"annotations {name} hold an infinite score: correct it, or leave it empty")
    keys = _combine(*digests)
    order = np.argsort(keys, kind="stable")
    keys, scores = keys[order], scores[order]
    again = np.flatnonzero((keys[1:] == keys[:-1]) & ~(_same(scores[1:], scores[:-1])))
    if len(again):
        response = table["response_id"][int(order[again[0]])].as_py()
        raise InputError(f"annotations {name} score response {response} twice, differently: keep one")
    return AnnotationTable(name, keys, scores)


def find_annotations(pool: ResponsePool, folder: Path, source: str, field: str) -> AnnotationTable:
    """Return a study's annotations: the judge's table where one is asked for and made, else the pool's own.

    Args:
        pool: the study's pool.
        folder: where annotations.parquet would lie.
        source: "judge" or "recorded".
        field: which recorded annotation.
    """
    judged = folder / "annotations.parquet"
    return load_annotations(judged) if source == "judge" and judged.is_file() else collect_annotations(pool, field)


def collect_annotations(pool: ResponsePool, field: str) -> AnnotationTable:
    """Gather a pool's own annotations of one kind, so that any pair set can be looked up in them.

    Args:
        pool: from `load_pool`.
        field: overall_score, fine-grained_score or mean_aspect.

    Returns:
        The table; empty where the pool has none. A response of two identical rows gets its mean score.
    """
    keys, scores = [np.zeros(0, np.uint64)], [np.zeros(0)]
    for batch in pool.batches(field):
        rated = np.isfinite(batch.annotation)
        keys.append(_combine(batch.row_digest[batch.row[rated]], batch.response_digest[rated]))
        scores.append(batch.annotation[rated])
    unique, place = np.unique(np.concatenate(keys), return_inverse=True)
    means = np.bincount(place, np.concatenate(scores)) / np.bincount(place) if len(unique) else np.zeros(0)
    return AnnotationTable(f"recorded {field}", unique, means)


def _parse_ids(ids: list[str]) -> np.ndarray:
    packed = b"".join(bytes.fromhex(i) for i in ids)
    if len(packed) != 16 * len(ids):
        raise ValueError("an id has the wrong length")
    return np.frombuffer(packed, np.uint8).reshape(-1, 16)


def _combine(row_digests: np.ndarray, response_digests: np.ndarray) -> np.ndarray:
    return mix(compute_keys(row_digests)) ^ compute_keys(response_digests)


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b))
