"""Numbers as people write them: what a table's cell, an option or a setting's text is read by.

Decision: Python's own reading takes more than that. `float` reads 0.3_4 as .34, and the digits of any script; a
misprint would be a plausible number. Limit: no thousands' separators and no decimal commas, which mean two things.
"""

import re

from karma.errors import quote

_NUMBER = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|infinity)|nan", re.IGNORECASE | re.ASCII
)


def parse_number(text: str) -> float:
    """Return the number that a text is.

    Args:
        text: ASCII digits, with a point and an exponent where wanted; nan and inf are numbers, too, so that who reads
            them can say what is wrong with them.

    Raises:
        ValueError: anything else.

    Example:
        >>> parse_number(" -0.25 "), parse_number("1e3")
        (-0.25, 1000.0)
        >>> parse_number("0.3_4")
        Traceback (most recent call last):
        ValueError: '0.3_4' is no number
    """
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{quote(text)} is no number")
    return float(text)
