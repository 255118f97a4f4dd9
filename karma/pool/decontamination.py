"""Benchmark items that stand in a pool: prompts and responses which share runs of words with them.

Texts are compared as the field does: lower case, punctuation dropped, words in order. A *run* is `ngram` words in a
row; an item shorter than that, but of 8 words or more, counts as one run, a shorter one not at all. A run that stands
in more than 10 items is a phrase of the benchmark ("which of the following statements is"), and says nothing. The
overlap of a text with an item is the share of the item's words that lie in runs which the text has too; a text is
contaminated where it has any overlap, and at least `share`.

    ngram: 13, share: 0      any run of 13 words      (GPT-3, arXiv 2005.14165, appendix C; lm-evaluation-harness)
    ngram: 8, share: 0.5     half the item, by 8s     (Tülu 3, arXiv 2411.15124, which counts tokens)

GPT-3 takes runs of 8 to 13 words by the length of a benchmark's items, and ignores those that more than 10 documents
of its training data hold; a pool is read once, so that here 10 items are the bound. An item is its question and its
right answer: a wrong answer in a pool gives nothing away. Decision: runs are compared by 64-bit hashes in one sorted
array, so that memory is that of the items (24 bytes a run) whatever the pool's size.
Limit: a paraphrase or a translation shares no run of words; text without spaces between words has none.

Paper: ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from karma.errors import InputError

LEAST_WORDS = 8  # of a run: GPT-3's least
MOST_ITEMS = 10  # that may share a run: GPT-3's most
_ODD = np.uint64(0x9E3779B97F4A7C15)  # multiplier of the rolling hash
_NO_WORD = r"[^\pL\pM\pN]+"


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Texts that share runs of words with items: of each the item it shares most with.

    Attributes:
        text: positions of the texts, ascending. item: positions of the items. overlap: share of the item's words, 0..1.
    """

    text: np.ndarray
    item: np.ndarray
    overlap: np.ndarray


@dataclass(frozen=True, eq=False)
class Items:
    """The texts of benchmarks' items, as runs of words that can be looked up.

    Attributes:
        benchmarks: benchmark of each item. names: id of each item. n_words: of each item.
        ngram: words of a run. share: least overlap that counts, 0..1.
        runs: words in a row -> (hashes, ascending; item of each; its place among the item's words).
        source: what was read, for the card.
    """

    benchmarks: list[str]
    names: list[str]
    n_words: np.ndarray
    ngram: int
    share: float
    runs: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]
    source: str

    @property
    def sentence(self) -> str:
        """Say what a pool is held against, and how."""
        at_least = f", {self.share:g} of the item or more" if self.share else ""
        return f"runs of {self.ngram} words shared with {self.source}{at_least}"

    def find(self, texts: pa.Array) -> Overlaps:
        """Return the texts that overlap enough; of equal overlaps the first item's.

        Args:
            texts: strings; null and blank ones have no words.

        Example:
            >>> asked = "the quick brown fox jumps over the lazy dog near a river in town"
            >>> items = build_items([("own", "1", asked + " today")], ngram=13)
            >>> found = items.find(pa.array(["Hi.", f"Tell me: {asked.title()}!", "quick brown fox jumps over"]))
            >>> found.text.tolist(), found.overlap.round(2).tolist()
            ([1], [0.93])
        """
        words, owner = split_words(texts)
        hits = [self._look_up(words, owner, length) for length in self.runs]
        text, item, place = (np.concatenate(columns) for columns in zip(*hits, strict=True)) if hits else [_NONE] * 3
        covered = np.unique(np.stack([text, item, place], axis=1), axis=0)  # a word is counted once
        pairs, n_covered = np.unique(covered[:, :2], axis=0, return_counts=True)
        overlap = n_covered / self.n_words[pairs[:, 1]]
        kept = overlap >= self.share
        pairs, overlap = pairs[kept], overlap[kept]
        order = np.lexsort((pairs[:, 1], -overlap, pairs[:, 0]))
        _, first = np.unique(pairs[order, 0], return_index=True)
        best = order[first]
        return Overlaps(pairs[best, 0], pairs[best, 1], overlap[best])

    def _look_up(self, words: np.ndarray, owner: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (text, item, place of a word in the item) of every word in a shared run of one length."""
        known, item, place = self.runs[length]
        runs, starts = _hash_runs(words, owner, length)
        first, last = np.searchsorted(known, runs, "left"), np.searchsorted(known, runs, "right")
        n = last - first
        hit = np.repeat(np.arange(len(runs)), n)
        at = np.repeat(first, n) + np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        inside = (place[at][:, None] + np.arange(length)).ravel()
        return np.repeat(owner[starts[hit]], length), np.repeat(item[at], length), inside


_NONE = np.zeros(0, np.int64)


def build_items(
    texts: Sequence[tuple[str, str, str]], *, ngram: int = 13, share: float = 0.0, source: str = "items"
) -> Items:
    """Prepare items to be looked for.

    Args:
        texts: (benchmark, id, text) of each item. ngram: words of a run, 8 or more. share: least overlap, 0..1.
        source: what was read, for the card.

    Raises:
        InputError: a number out of range, or no item long enough to be found.

    Example:
        >>> build_items([("own", "1", "Too short.")])
        Traceback (most recent call last):
        karma.errors.InputError: decontaminate: none of the 1 items has 8 words: nothing could be found
    """
    if not LEAST_WORDS <= ngram <= 1000:
        raise InputError(f"decontaminate: ngram is {ngram}: runs of {LEAST_WORDS} to 1000 words are compared")
    if not 0 <= share <= 1:
        raise InputError(f"decontaminate: share is {share}: a share lies between 0 and 1")
    words, owner = split_words(pa.array([text for _, _, text in texts], pa.string()))
    n_words = np.bincount(owner, minlength=len(texts))
    runs = {}
    for length in range(LEAST_WORDS, ngram + 1):
        mine = n_words >= ngram if length == ngram else n_words == length
        kept = mine[owner]
        hashes, starts = _hash_runs(words[kept], owner[kept], length)
        if len(hashes):
            runs[length] = _sort_runs(hashes, owner[kept], starts)
    if not runs:
        raise InputError(
            f"decontaminate: none of the {len(texts)} items has {LEAST_WORDS} words: nothing could be found"
        )
    too_short = int((n_words < LEAST_WORDS).sum())
    said = f"{source} ({len(texts):,} items; {too_short:,} of fewer than {LEAST_WORDS} words are not looked for)"
    return Items([b for b, _, _ in texts], [name for _, name, _ in texts], n_words, ngram, share, runs, said)


def _sort_runs(hashes: np.ndarray, owner: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort runs by hash, without those of more than MOST_ITEMS items."""
    item = owner[starts]
    place = starts - np.searchsorted(owner, item, "left")
    order = np.lexsort((place, item, hashes))
    hashes, item, place = hashes[order], item[order], place[order]
    begins = np.append(True, hashes[1:] != hashes[:-1])
    another = begins | np.append(True, item[1:] != item[:-1])
    run = np.cumsum(begins) - 1
    is_rare = np.bincount(run[another])[run] <= MOST_ITEMS
    return hashes[is_rare], item[is_rare], place[is_rare]


def split_words(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the words of texts as 64-bit hashes, in order, and the text of each.

    Args:
        texts: strings, or null.

    Example:
        >>> words, owner = split_words(pa.array(["Is it? It IS.", None, "it's"]))
        >>> owner.tolist(), bool(words[0] == words[3] != words[1])
        ([0, 0, 0, 0, 2, 2], True)
    """
    lists = pc.split_pattern(normalize(texts), " ")
    counts = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    encoded = pc.list_flatten(lists).dictionary_encode()
    hashes = np.array([xxh3_64_intdigest(word.encode()) for word in encoded.dictionary.to_pylist()], np.uint64)
    return hashes[encoded.indices.to_numpy()], np.repeat(np.arange(len(texts)), counts)


def normalize(texts: pa.Array) -> pa.Array:
    """Return texts in lower case, a space between words and nothing else; null where there is no word.

    Example:
        >>> normalize(pa.array(["  Käse, bitte!", "..."])).to_pylist()
        ['käse bitte', None]
    """
    plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_lower(texts), _NO_WORD, " "))
    return pc.if_else(pc.equal(plain, ""), None, plain)


def _hash_runs(words: np.ndarray, owner: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of every `length` words in a row of one text, and where each begins."""
    n = len(words) - length + 1
    if n < 1:
        return np.zeros(0, np.uint64), _NONE
    hashes = np.zeros(n, np.uint64)
    for j in range(length):
        hashes = hashes * _ODD + words[j : j + n]
    starts = np.flatnonzero(owner[:n] == owner[length - 1 :])
    return hashes[starts], starts
