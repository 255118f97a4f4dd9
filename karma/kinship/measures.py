"""The cosine's two traps on a table of one's own, and what other measures of kinship say of the same pairs.

**Level**: the cosine compares profiles, so a model at 20 % of the range on every benchmark is the perfect kin of one at
90 %. Shown is the pair of high cosine (at least .9) whose S_pref is farthest apart. **Chance**: a score at or below
chance is no ability, and two models that share one look alike. Shown is, of pairs that are at or below chance on the
same benchmark, the one whose cosine would fall most if the better of the two were there what it is on the others (its
mean of min-max scores). Limit: examples, chosen for being the worst; how much a measure matters to labels is measured
by `karma audit-labels` (measures.csv).

Paper: Eq. 1; the traps and the other measures are ours.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from karma.kinship.similarity import compare_rows, compute_kinship, compute_unit_rows
from karma.scores.normalise import compute_below_chance, compute_normalized, compute_s_pref
from karma.scores.table import MEASURES, ScoreTable, set_kinship

ALIKE = 0.9  # a cosine that anyone would call kin


def find_traps(table: ScoreTable) -> pd.DataFrame:
    """Return the worst pair of each trap, with its kinship by every measure.

    Args:
        table: n models, at most some hundreds: all pairs are looked at.

    Returns:
        One row a trap that the table has: trap (level, chance), one, other, benchmark (of chance), s_pref_one,
        s_pref_other, a column a measure, and cosine_if_able (of chance: had `one` its usual score there).

    Example:
        >>> from karma.scores.read import load_score_table
        >>> traps = find_traps(load_score_table("paper")).set_index("trap")
        >>> traps.loc["chance", ["one", "other", "benchmark"]].tolist()
        ['MPT-30b-chat', 'Alpaca-7b', 'hellaswag']
        >>> traps.loc["chance", ["cosine", "cosine_if_able"]].astype(float).round(3).tolist()
        [0.99, 0.929]
    """
    plain = replace(table, measure="cosine", weights={})
    kin = {name: compute_kinship(set_kinship(plain, name)).to_numpy() for name in MEASURES}
    s_pref = compute_s_pref(table).to_numpy()
    names, found = table.scores.index.astype(str), []

    def tell(trap: str, one: int, other: int, benchmark: str | None, without: float) -> None:
        found.append({"trap": trap, "one": names[one], "other": names[other], "benchmark": benchmark,
                      "s_pref_one": s_pref[one], "s_pref_other": s_pref[other],
                      **{name: square[one, other] for name, square in kin.items()},
                      "cosine_if_able": without})  # fmt: skip

    first = np.argsort(np.argsort(-s_pref, kind="stable"), kind="stable")
    leads = first[:, None] < first[None, :]  # each pair once, the one of higher S_pref first
    gap = np.where(leads & (kin["cosine"] >= ALIKE), s_pref[:, None] - s_pref, 0)
    if gap.max() > 0:
        one, other = (int(place) for place in np.unravel_index(gap.argmax(), gap.shape))
        tell("level", one, other, None, np.nan)
    normalized, below = compute_normalized(table).to_numpy(), compute_below_chance(table).to_numpy()
    best = (0.0, 0, 0, "", 0.0)
    for k, name in enumerate(table.scores if normalized.shape[1] > 1 else ()):
        able = normalized.copy()
        able[:, k] = np.delete(normalized, k, axis=1).mean(axis=1)
        then = compare_rows(compute_unit_rows(able), compute_unit_rows(normalized), "cosine")
        fall = np.where(leads & np.outer(below[:, k], below[:, k]), kin["cosine"] - then, 0)
        one, other = (int(place) for place in np.unravel_index(fall.argmax(), fall.shape))
        best = max(best, (float(fall[one, other]), one, other, str(name), float(then[one, other])))
    if best[0] > 0:
        tell("chance", *best[1:])
    columns = ["trap", "one", "other", "benchmark", "s_pref_one", "s_pref_other", *MEASURES, "cosine_if_able"]
    return pd.DataFrame(found, columns=columns)


def describe_traps(traps: pd.DataFrame) -> list[str]:
    """Say each trap in a line."""
    lines = []
    for _, row in traps.iterrows():
        others = ", ".join(f"{name} {row[name]:.3f}" for name in MEASURES if name != "cosine")
        what = (f"S_pref {row['s_pref_one']:.2f} and {row['s_pref_other']:.2f}" if row["trap"] == "level" else
                f"both at or below chance on {row['benchmark']}; {row['cosine_if_able']:.3f} were {row['one']} "
                "there what it is elsewhere")  # fmt: skip
        lines.append(f"the cosine is blind to {row['trap']}: {row['one']} and {row['other']} are kin to "
                     f"{row['cosine']:.3f} ({what}); {others}")  # fmt: skip
    return lines
