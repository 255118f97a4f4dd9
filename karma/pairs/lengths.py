"""Which of a pair's two responses is longer: the length bias that a policy learns from a set beside its preferences.

The bias is the share of pairs whose chosen response is the longer one (equal lengths count half, so that a half is
none) and the mean signed difference in length, chosen minus rejected, both with a 95 % interval over pairs. Length is
in characters (Unicode code points), the unit of `max_length_ratio`. Counted while pairs stream by: no text is kept.
Limit: a set without a bias in characters can still have one in tokens, or in lines.

Paper: none; ours.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from karma.pool.responses import count_characters
from karma.statistics.intervals import compute_mean_of_sums, compute_wilson

Lengths = dict[str, float | int | None]


@dataclass
class LengthBias:
    """Counts and sums of a pair set's lengths.

    Attributes:
        n, n_longer, n_equal: pairs; those whose chosen response is longer; those of equal lengths.
        total, squares: of the differences in characters, chosen minus rejected.

    Example:
        >>> turn = lambda *texts: [[{"role": "assistant", "content": text}] for text in texts]
        >>> bias = LengthBias()
        >>> bias.add(pa.table({"chosen": turn("four", "one", "two"), "rejected": turn("one", "two", "eleven")}))
        >>> found = bias.as_dict()
        >>> found["n_longer"], found["n_equal"], found["share_longer"], found["mean_difference"]
        (1, 1, 0.5, -0.666667)
    """

    n: int = 0
    n_longer: int = 0
    n_equal: int = 0
    total: int = 0
    squares: int = 0

    def add(self, pairs: pa.Table) -> None:
        """Count some pairs: columns chosen and rejected, lists of role/content messages."""
        chosen, rejected = (_count(pairs[side]) for side in ("chosen", "rejected"))
        difference = chosen - rejected
        self.n += len(difference)
        self.n_longer += int((difference > 0).sum())
        self.n_equal += int((difference == 0).sum())
        self.total += int(difference.sum())
        self.squares += int((difference * difference).sum())

    def merge(self, other: "LengthBias") -> None:
        """Add the counts and sums of other pairs; all are whole numbers, so that no order matters."""
        for name in vars(other):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> Lengths:
        """Return what accounting.json and the card say; None where there is no pair, or no interval from one pair."""
        names = ("share_longer", "share_low", "share_high", "mean_difference", "difference_low", "difference_high")
        values: list[float] = []
        if self.n:
            share = (self.n_longer + self.n_equal / 2) / self.n
            mean = compute_mean_of_sums(self.n, self.total, self.squares)
            values = [share, *compute_wilson(share, self.n), mean["value"], mean["low"], mean["high"]]
        found = [round(value, 6) if value == value else None for value in values] or [None] * len(names)
        counts = {"n": self.n, "n_longer": self.n_longer, "n_equal": self.n_equal}
        return {**counts, **dict(zip(names, found, strict=True))}


def compute_length_bias(pairs: pa.Table) -> Lengths:
    """Return the length bias of a pair set in memory, as `LengthBias.as_dict`."""
    bias = LengthBias()
    bias.add(pairs)
    return bias.as_dict()


def describe_length_bias(found: Lengths) -> str:
    """Say in a sentence or two which response is the longer one.

    Example:
        >>> describe_length_bias(LengthBias(n=2, n_longer=1, total=3, squares=29).as_dict())
        'The chosen response is longer in 50.0 % of 2 pairs (95 %: 9.5 to 90.5; equal lengths count half), by +1.5 \
characters on average (95 %: -43.0 to +46.0).'
    """
    if not found["n"]:
        return "No pairs, no lengths."
    share = [100 * float(found[key] or 0) for key in ("share_longer", "share_low", "share_high")]
    text = (
        f"The chosen response is longer in {share[0]:.1f} % of {found['n']:,} pairs (95 %: {share[1]:.1f} to "
        f"{share[2]:.1f}; equal lengths count half), by {found['mean_difference']:+,.1f} characters on average"
    )
    if found["difference_low"] is None:
        return text + "."
    return f"{text} (95 %: {found['difference_low']:+,.1f} to {found['difference_high']:+,.1f})."


def _count(messages: pa.ChunkedArray) -> np.ndarray:
    """Return the characters of each response, a list of one message."""
    return count_characters(pc.struct_field(pc.list_flatten(messages), "content"))
