"""How alike two responses are: in complexity, measured on the text, and in quality.

Five traits are measured of a text: its length, ln(1 + characters); its readability, the grade of the automated
readability index (textstat); its structure, ln(1 + n) of list items, fenced code blocks and paragraphs. Quality is a
number from elsewhere: S_pref of the origin model, an annotation, a reward, a truth. A trait f is put on a common scale
over the responses to one prompt, by its range R_f there (Gower 1971, Biometrics 27:857), so that the affinity of
responses i and j to it is

    s_f(i, j)  = 1 - |f_i - f_j| / R_f          in [0, 1]; 1 where R_f = 0
    C(i, j)    = (s_length + s_readability + (s_lists + s_code + s_paragraphs) / 3) / 3
    A(i, j)    = (1 - w) C(i, j) + w s_quality(i, j)

w is `affinity.weight`, a half by default. A text without letters has no readability: C is then the mean of the other
two, as Gower leaves out what is missing. Decision: the scale is the prompt's and not the pool's: it needs no pass over
the pool, is the same whoever reads which part of it, and a prompt for code is not measured by essays. Counts are taken
by their logarithm, so that ratios matter and not the longest response alone.
Limit: of two responses each differing trait is at distance 1, but then there is only one pair to take.

Paper: its summary speaks of responses of comparable complexity and quality; this measure is ours.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TRAITS = ("length", "readability", "lists", "code", "paragraphs")
_COUNTED = {
    "lists": r"(?m)^[ \t]*(?:[-*+•]|[0-9]+[.)])[ \t]+\S",
    "code": r"(?m)^[ \t]*(?:```|~~~)",  # two fences a block
    "paragraphs": r"\n[ \t\r]*\n\s*",  # what lies between two of them
}


@dataclass(frozen=True, eq=False)
class Traits:
    """What affinity is computed from.

    Attributes:
        complexity: (responses, 5), TRAITS; NaN where a text has none.
        quality: (responses,), in any unit; NaN where it is unknown.
        weight: of quality against complexity, 0..1; at 0 quality is not asked for.
    """

    complexity: np.ndarray
    quality: np.ndarray
    weight: float = 0.5


def measure_complexity(texts: pa.Array) -> np.ndarray:
    """Return the TRAITS of each text: (texts, 5); null counts as empty.

    Example:
        >>> listed = "Buy:\\n\\n- tea\\n- salt\\n\\n```\\nmake tea\\n```"
        >>> np.expm1(measure_complexity(pa.array(["Yes.", listed])))[:, [0, 2, 3, 4]].round(6).tolist()
        [[4.0, 0.0, 0.0, 1.0], [36.0, 2.0, 1.0, 3.0]]
    """
    plain = pc.utf8_trim_whitespace(texts.fill_null(""))
    counts = {
        "length": pc.utf8_length(texts.fill_null("")),
        "lists": pc.count_substring_regex(plain, _COUNTED["lists"]),
        "code": pc.divide(pc.count_substring_regex(plain, _COUNTED["code"]), 2),
        "paragraphs": pc.add(pc.count_substring_regex(plain, _COUNTED["paragraphs"]), 1),
    }
    logs = {name: np.log1p(values.to_numpy(zero_copy_only=False).astype(float)) for name, values in counts.items()}
    logs["readability"] = np.array([grade_text(text) for text in plain.to_pylist()], float)
    return np.stack([logs[name] for name in TRAITS], axis=1).reshape(-1, len(TRAITS))


def grade_text(text: str) -> float:
    """Return the automated readability index, a school grade; NaN for a text without letters."""
    import textstat

    return textstat.automated_readability_index(text) if any(c.isalpha() for c in text) else math.nan


def compute_affinity(traits: Traits, row: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the affinity of pairs of responses to the same prompt, rounded to 12 digits.

    Args:
        traits: of all responses. row: (responses,), the prompt of each, ascending.
        first, second: (pairs,), positions of responses.

    Returns:
        (pairs,), in [0, 1]; NaN where quality is asked for and unknown.

    Example:
        >>> length = np.log1p([9.0, 99.0, 999.0])  # one, two and three digits: equally far apart
        >>> complexity = np.column_stack([length, [5.0, 5.0, 9.0], np.zeros((3, 3))])
        >>> traits = Traits(complexity, quality=np.array([0.2, 0.9, 0.9]))
        >>> compute_affinity(traits, np.zeros(3, int), np.array([0, 0, 1]), np.array([1, 2, 2])).round(4).tolist()
        [0.4167, 0.1667, 0.75]
    """
    alike = {name: _compare(traits.complexity[:, k], row, first, second) for k, name in enumerate(TRAITS)}
    structure = (alike["lists"] + alike["code"] + alike["paragraphs"]) / 3
    parts = np.stack([alike["length"], alike["readability"], structure])
    known = np.isfinite(parts)
    complexity = np.where(known, parts, 0).sum(axis=0) / known.sum(axis=0)
    if not traits.weight:
        return np.asarray(complexity.round(12))
    quality = _compare(traits.quality, row, first, second)
    return np.asarray(((1 - traits.weight) * complexity + traits.weight * quality).round(12))


def _compare(values: np.ndarray, row: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Gower's similarity of one trait; NaN where one of the two has none."""
    if not len(row):
        return np.zeros(0)
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    spread = np.fmax.reduceat(values, starts) - np.fmin.reduceat(values, starts)
    spread = spread[np.searchsorted(row[starts], row[first])]
    gap = np.abs(values[first] - values[second])
    return 1 - np.divide(gap, spread, out=np.where(np.isnan(gap), np.nan, 0.0), where=spread > 0)
