"""Damaged copies: the one order of origin models that is known before any score.

A perturbed copy (weight noise, dropped layers) is worse than its father. Where S_pref says otherwise, the labels that
follow from it prefer a broken model's responses. Limit: damage may leave what the benchmarks ask untouched, so a copy
close to its father may pass above it by chance; the intervals of S_pref tell.
"""

from collections.abc import Mapping

import pandas as pd

from karma.study.sections import ModelSpec


def compute_copies(s_pref: pd.Series, models: Mapping[str, ModelSpec]) -> pd.DataFrame:
    """Compare each damaged copy with its father, where both are origin models.

    Args:
        s_pref: origin model -> S_pref in [0, 1].
        models: the experiment's `models`.

    Returns:
        One row a copy: father, s_pref, s_pref_of_father, is_below (whether the order is right).

    Example:
        >>> models = {"a": ModelSpec(hub="a"), "b": ModelSpec(perturbed="a", noise=0.1)}
        >>> compute_copies(pd.Series({"a": 0.4, "b": 0.6}), models).to_dict("records")
        [{'father': 'a', 's_pref': 0.6, 's_pref_of_father': 0.4, 'is_below': False}]
    """
    fathers = {name: father for name in s_pref.index if name in models and (father := models[name].perturbed)}
    rows = {
        name: {"father": father, "s_pref": s_pref[name], "s_pref_of_father": s_pref[father],
               "is_below": bool(s_pref[name] < s_pref[father])}
        for name, father in fathers.items() if father in s_pref
    }  # fmt: skip
    columns = ["father", "s_pref", "s_pref_of_father", "is_below"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("copy")


def describe_copies(copies: pd.DataFrame) -> str:
    """Say in one sentence whether S_pref has the known order.

    Example:
        >>> describe_copies(compute_copies(pd.Series({"a": 0.4}), {"a": ModelSpec(hub="a")}))
        'no origin model is a damaged copy of another: no order is known before the scores'
    """
    if copies.empty:
        return "no origin model is a damaged copy of another: no order is known before the scores"
    wrong = list(copies.index[~copies["is_below"].astype(bool)])
    if wrong:
        return f"S_pref puts {', '.join(wrong)} at or above the intact father: this study's labels cannot be right"
    return f"S_pref puts the father above each of its {len(copies)} damaged copies"
