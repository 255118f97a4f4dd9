"""Choices less what is left out, each row and pair for the first reason that applies, so that the books add up."""

from dataclasses import replace

import numpy as np

from karma.strategies import Choice


def part_masks(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Let each entry count for the first reason that applies."""
    found: dict[str, np.ndarray] = {}
    for reason, mask in masks.items():
        found[reason] = mask & ~np.logical_or.reduce([*found.values(), np.zeros_like(mask)])
    return found


def bar_rows(choice: Choice, barred: dict[str, np.ndarray], n_rows: int) -> Choice:
    """Give barred rows their own reason, before any other; the masks do not overlap."""
    taken = np.logical_or.reduce([*barred.values(), np.zeros(n_rows, bool)])
    kept = ~taken[choice.row]
    dropped = {k: mask & ~taken for k, mask in choice.dropped.items()} | barred
    return Choice(choice.row[kept], choice.chosen[kept], choice.rejected[kept], dropped)


def drop_pairs(choice: Choice, masks: dict[str, np.ndarray], n_rows: int) -> Choice:
    """Drop pairs under the masks (one entry a pair), each for the first reason that applies."""
    dropped, kept = dict(choice.dropped), np.ones(len(choice.row), bool)
    for reason, mask in masks.items():
        dropped[reason] = np.zeros(n_rows, bool)
        dropped[reason][choice.row[mask & kept]] = True
        kept &= ~mask
    return replace(
        choice,
        row=choice.row[kept],
        chosen=choice.chosen[kept],
        rejected=choice.rejected[kept],
        dropped=dropped,
    )


def keep_shared(choices: dict[str, Choice], n_rows: int) -> dict[str, Choice]:
    """Keep the rows that every strategy kept."""
    kept_by = [np.bincount(choice.row, minlength=n_rows) for choice in choices.values()]
    alone = np.sum(kept_by, axis=0) < len(choices)
    return {s: drop_pairs(choice, {"not_shared": alone[choice.row]}, n_rows) for s, choice in choices.items()}
