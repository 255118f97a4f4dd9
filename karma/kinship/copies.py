"""Damaged copies: the one order of origin models that is known before any score.

A perturbed copy (weight noise, dropped layers) is worse than its base model. Where S_pref says otherwise, the labels
that follow from it prefer a broken model's responses. Limit: damage may leave what the benchmarks ask untouched, so a
copy close to its base model may pass above it by chance; the intervals of S_pref tell.
"""

from collections.abc import Mapping

import pandas as pd

from karma.study.sections import ModelSpec


def compute_copies(s_pref: pd.Series, models: Mapping[str, ModelSpec]) -> pd.DataFrame:
    """Compare each damaged copy with its base model, where both are origin models.

    Args:
        s_pref: origin model -> S_pref in [0, 1].
        models: the experiment's `models`.

    Returns:
        One row a copy: base_model, s_pref, s_pref_of_base_model, is_below (whether the order is right).

    Example:
        >>> models = {"a": ModelSpec(hub="a"), "b": ModelSpec(perturbed="a", noise=0.1)}
        >>> compute_copies(pd.Series({"a": 0.4, "b": 0.6}), models).to_dict("records")
        [{'base_model': 'a', 's_pref': 0.6, 's_pref_of_base_model': 0.4, 'is_below': False}]
    """
    bases = {name: base for name in s_pref.index if name in models and (base := models[name].perturbed)}
    rows = {
        name: {"base_model": base, "s_pref": s_pref[name], "s_pref_of_base_model": s_pref[base],
               "is_below": bool(s_pref[name] < s_pref[base])}
        for name, base in bases.items() if base in s_pref
    }  # fmt: skip
    columns = ["base_model", "s_pref", "s_pref_of_base_model", "is_below"]
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
        return f"S_pref puts {', '.join(wrong)} at or above the intact base model: this study's labels cannot be right"
    return f"S_pref puts the base model above each of its {len(copies)} damaged copies"
