"""Prompts of a pool that nearly repeat another one, by MinHash.

Two prompts are as alike as the sets of their 5-character pieces (lower case, punctuation dropped): Jaccard, shared
over all. Five is the length for short texts (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section
3.2.2). It is estimated from 128 minima of hashes (Broder 1997), of which 16 bits each are kept (Li and König 2010),
with a standard error of at most .045; candidates share one of 32 bands of 4 minima, which finds .99 of the pairs at .6
and all but one in 10^7 at .8. The rows are gone through in an order drawn from their content: the first of some
near-duplicates is kept, and each later one that reaches the threshold with a kept one is dropped, whatever the order
of the pool. Decision: signatures come from rensa, which is much faster than datasketch and has no dependencies.
Limit: a signature takes 272 bytes, so that a million prompts take 272 MB, in one process; a row that is dropped for
another reason may be the one that is kept here.

Paper: ours.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from rensa import RMinHash

from karma.errors import InputError
from karma.pool.decontamination import normalize
from karma.pool.draws import compute_keys, mix
from karma.pool.responses import ResponseBatch

PIECE = 5  # characters
_MINIMA, _BANDS, _SEED = 128, 32, 1
_NONE = np.iinfo(np.uint16).max


@dataclass(frozen=True, eq=False)
class Signed:
    """Prompts as MinHash signatures.

    Attributes:
        digest: (rows, 16) bytes, the rows' ids. minima: (rows, 128) uint16; of a blank prompt all the largest.
    """

    digest: np.ndarray
    minima: np.ndarray


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Which rows of a pool, in its order, nearly repeat another.

    Attributes:
        of: (rows, 16) bytes, the id of the row that is kept instead. overlap: (rows,), how alike; NaN where none.
    """

    of: np.ndarray
    overlap: np.ndarray

    def cut(self, start: int, n_rows: int) -> "Duplicates":
        """Return those of some rows."""
        return Duplicates(self.of[start : start + n_rows], self.overlap[start : start + n_rows])


def sign_prompts(batch: ResponseBatch) -> Signed:
    """Return the signatures of a batch's prompts."""
    return Signed(batch.row_digest, sign_texts(batch.instruction))


def sign_texts(texts: pa.Array) -> np.ndarray:
    """Return the signature of each text: (texts, 128) uint16.

    Example:
        >>> one, other = sign_texts(pa.array(["Name three rivers in France.", "name three rivers in France"]))
        >>> bool((one == other).all())
        True
    """
    plain = normalize(texts).fill_null("").to_pylist()
    pieces = [{text[i : i + PIECE] for i in range(max(len(text) - PIECE + 1, 1))} if text else () for text in plain]
    digests = RMinHash.digests_from_token_sets(pieces, num_perm=_MINIMA, seed=_SEED)
    return (np.array(digests, np.uint32).reshape(len(plain), _MINIMA) & np.uint32(_NONE)).astype(np.uint16)


def find_duplicates(parts: Iterable[Signed], threshold: float) -> Duplicates:
    """Find the rows that nearly repeat another.

    Args:
        parts: a pool's prompts, in its order. threshold: least Jaccard overlap, 0.5 to 1.

    Raises:
        InputError: a threshold out of range.

    Example:
        >>> texts = pa.array(["Name three rivers in France.", "What is 2 + 2?", "name three rivers in France"])
        >>> signed = Signed(np.arange(48, dtype=np.uint8).reshape(3, 16), sign_texts(texts))
        >>> np.isfinite(find_duplicates([signed], 0.8).overlap).sum()
        np.int64(1)
    """
    check_threshold(threshold)
    signed = list(parts)
    digest = np.concatenate([part.digest for part in signed] or [np.zeros((0, 16), np.uint8)])
    minima = np.concatenate([part.minima for part in signed] or [np.zeros((0, _MINIMA), np.uint16)])
    of, overlap = np.zeros_like(digest), np.full(len(digest), np.nan)
    bands = np.ascontiguousarray(minima).view(np.uint64)  # four minima of 16 bits: (rows, 32)
    kept: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in range(_BANDS)]
    for row in _list_candidates(digest, minima, bands):
        own = bands[row].tolist()
        met = np.array(sorted({other for band, key in zip(kept, own, strict=True) for other in band[key]}), np.int64)
        alike = (minima[met] == minima[row]).mean(axis=1)
        if len(met) and alike.max() >= threshold:
            best = min(met[alike == alike.max()], key=lambda other: digest[other].tobytes())
            of[row], overlap[row] = digest[best], alike.max()
            continue
        for band, key in zip(kept, own, strict=True):
            band[key].append(row)
    return Duplicates(of, overlap)


def check_threshold(threshold: float) -> None:
    """Raise an InputError where a threshold cannot be kept."""
    if not 0.5 <= threshold <= 1:
        raise InputError(f"near_duplicates is {threshold}: give an overlap of 0.5 to 1, or none")


def _list_candidates(digest: np.ndarray, minima: np.ndarray, bands: np.ndarray) -> list[int]:
    """Return the rows that share a band with another, blank ones left out, in the order drawn from their content."""
    shares = np.zeros(len(digest), bool)
    for column in bands.T:
        _, place, n = np.unique(column, return_inverse=True, return_counts=True)
        shares |= n[place] > 1
    rows = np.flatnonzero(shares & (minima != _NONE).any(axis=1))
    found: list[int] = rows[np.lexsort((rows, mix(compute_keys(digest[rows]))))].tolist()
    return found
