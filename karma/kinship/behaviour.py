"""Kinship by behaviour: how often two models give the same answer to the same items, beyond what chance would.

Agreement is the share of shared items on which two models chose the same option, right or wrong; Cohen's kappa takes
off what models with their habits of choosing would share by chance, benchmark by benchmark, and averages over items.
Two models of one score may agree on nothing: scores do not see that, answers do. An answer that could not be read is
an option of its own, since failing alike is alike. Limit: items of free text have no options and are left out.

Paper: ours; Cohen (1960) for kappa.
"""

import numpy as np
import pandas as pd

UNREAD = "(unread)"


def compute_agreement(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return how alike models answer.

    Args:
        answers: one row an answer: origin_model, benchmark, item_id, extracted (the option, or None).

    Returns:
        "agreement" in [0, 1] and "kappa" in [-1, 1]: n x n, symmetric, by name, NaN where two models share no item;
        and "n_items", the items that each two share. Kappa is 1 on the diagonal unless a model's answers never vary,
        where it is undefined (NaN).

    Example:
        >>> rows = [(m, "b", i, a) for m, own in {"x": "ABAB", "y": "ABAA", "z": "BABA"}.items()
        ...         for i, a in enumerate(own)]
        >>> found = compute_agreement(pd.DataFrame(rows, columns=["origin_model", "benchmark", "item_id", "extracted"]))
        >>> found["agreement"].loc["x"].tolist(), found["kappa"].loc["x"].round(2).tolist()
        ([1.0, 0.75, 0.0], [1.0, 0.5, -1.0])
    """
    told = answers.assign(extracted=answers["extracted"].fillna(UNREAD).astype(str))
    names = sorted(told["origin_model"].unique())
    shape = (len(names), len(names))
    same, chance, shared = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for _, rows in told.groupby("benchmark"):
        grid = rows.pivot(index="item_id", columns="origin_model", values="extracted").reindex(columns=names)
        options = pd.unique(grid.to_numpy().ravel())
        has = grid.notna().to_numpy().astype(float)
        both = has.T @ has
        expected = np.zeros(shape)
        for option in (one for one in options if isinstance(one, str)):
            chose = (grid == option).to_numpy().astype(float)
            same += chose.T @ chose
            often = np.divide(chose.T @ has, both, out=np.zeros(shape), where=both > 0)  # [i, j]: i's, on items of j
            expected += often * often.T
        chance += expected * both
        shared += both
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement, by_chance = same / shared, chance / shared
        kappa = np.where(by_chance < 1 - 1e-12, (agreement - by_chance) / (1 - by_chance), np.nan)
    frames = {"agreement": agreement, "kappa": kappa.round(12), "n_items": shared}
    return {name: pd.DataFrame(values, names, names) for name, values in frames.items()}
