"""Random draws that are functions of (seed, purpose, ids) alone, so that nothing depends on an order."""

import numpy as np
from xxhash import xxh3_64_intdigest


def compute_keys(digests: np.ndarray) -> np.ndarray:
    """Return the first 8 bytes of each id as an unsigned integer, shape (n,)."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8").ravel().astype(np.uint64)


def compute_draws(seed: int, purpose: str, row_keys: np.ndarray, response_keys: np.ndarray | int = 0) -> np.ndarray:
    """Return one pseudo-random 64-bit integer an entry, a function of seed, purpose and the ids alone.

    Args:
        seed: any integer.
        purpose: names the decision, so that two decisions draw independently.
        row_keys: uint64, from `compute_keys`.
        response_keys: the same for responses, or 0 for a draw a row.

    Example:
        >>> compute_draws(0, "split", np.array([1, 2, 1], np.uint64)).argsort(stable=True).tolist()
        [0, 2, 1]
    """
    start = np.full(1, xxh3_64_intdigest(f"{seed}/{purpose}".encode()), np.uint64)
    return mix(mix(mix(start) ^ row_keys) ^ response_keys)


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of SplitMix64), so that near inputs give unrelated outputs."""
    x = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
