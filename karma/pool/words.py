"""The words of a text as a set, and how far two texts share them.

Words are what white space parts, in lower case. Limit: shared words are not shared sense, and grow with length.
"""

from collections.abc import Set


def list_words(text: str) -> frozenset[str]:
    """Return a text's words."""
    return frozenset(text.casefold().split())


def share_words(first: Set[str], second: Set[str]) -> float:
    """Return the share of all their words that two texts have in common (Jaccard), 0..1; 1 where neither has any.

    Example:
        >>> share_words(list_words("It rains."), list_words("it rains. again"))
        0.6666666666666666
    """
    every = first | second
    return len(first & second) / len(every) if every else 1.0
