"""What labels cost: annotation calls for RLAIF, benchmark answers for kinship, and the rest of the study's
bill.

RLAIF reads every response of the pool once, so its bill grows with the pool; kinship evaluates each
origin model once, whatever the pool's size. Both are counted as they were measured (tokens and seconds
from the runs' own records). Decision: no price is assumed; with a price per million tokens the bill is in
that currency. Limit: tokens of different models are added as if they cost the same, and a recorded
annotation's cost is not known.
"""

import pandas as pd

from karma.errors import InputError
from karma.results.study import Study
from karma.results.tables import Table, build_plain

COLUMNS = ["what", "jobs", "calls", "prompt_tokens", "new_tokens", "seconds", "device"]


def build_ledger(study: Study, price_per_million_tokens: float | None = None) -> pd.DataFrame:
    """Return the bill of a study, one row an activity; None where nothing was recorded.

    Args:
        study: a measured study.
        price_per_million_tokens: of prompt and new tokens alike, in any currency; None: no price column.

    Returns:
        Columns COLUMNS (calls: prompts answered or rated; for training: updates), and `price` where asked.

    Raises:
        InputError: a negative price.
    """
    if price_per_million_tokens is not None and price_per_million_tokens < 0:
        raise InputError(f"price_per_million_tokens is {price_per_million_tokens}, expected 0 or more")
    rows = [
        {"what": "labels, rlaif: annotation of the pool", **_annotation(study)},
        {"what": "labels, kinship: origin evaluation", **_evaluations(study.origins, ["origin_model"])},
        {"what": "training", **_trainings(study.costs.get("trainings", study.trainings))},
        {"what": "policy evaluation", **_evaluations(study.costs.get("results", study.results), ["folder"])},
    ]
    ledger = pd.DataFrame(rows, columns=COLUMNS, dtype=object).astype(object)
    ledger = ledger.where(ledger.notna(), None)
    if price_per_million_tokens is not None:
        tokens = ledger[["prompt_tokens", "new_tokens"]].apply(pd.to_numeric).sum(axis=1, min_count=1)
        ledger["price"] = tokens * price_per_million_tokens / 1e6
    return ledger


def compute_break_even(study: Study) -> float | None:
    """Return the responses in a pool above which kinship takes fewer tokens than RLAIF; None if unknown."""
    ledger = build_ledger(study).set_index("what")
    annotated, evaluated = (ledger.loc[ledger.index.str.startswith(f"labels, {w}")].iloc[0] for w in ("rlaif", "kin"))
    if not annotated["calls"] or not annotated["prompt_tokens"] or evaluated["prompt_tokens"] is None:
        return None
    each = (annotated["prompt_tokens"] + (annotated["new_tokens"] or 0)) / annotated["calls"]
    return float((evaluated["prompt_tokens"] + (evaluated["new_tokens"] or 0)) / each)


def describe_break_even(even: float | None) -> str:
    """Say above which pool kinship takes fewer tokens, from `compute_break_even`.

    Example:
        >>> describe_break_even(1234.5)
        'in a pool above 1,234 responses kinship takes fewer tokens'
    """
    return "unknown" if even is None else f"in a pool above {even:,.0f} responses kinship takes fewer tokens"


def build_bill(study: Study, price_per_million_tokens: float | None = None) -> Table:
    """Return the ledger as a table, with the break-even as its note; arguments as of `build_ledger`."""
    bill = build_ledger(study, price_per_million_tokens).set_index("what")
    note = f"break-even: {describe_break_even(compute_break_even(study))}"
    return build_plain("ledger", "What labels, training and evaluation cost.", bill, decimals=2, notes=(note,))


def _annotation(study: Study) -> dict[str, object]:
    cost = study.costs["annotation"]
    if cost is None:
        return {"jobs": 0}
    kept = {k: cost.get(k) for k in ("calls", "prompt_tokens", "new_tokens", "seconds", "device")}
    return {"jobs": 1, **kept, "new_tokens": cost.get("new_tokens", 0)}


def _evaluations(rows: pd.DataFrame, key: list[str]) -> dict[str, object]:
    if rows.empty:
        return {"jobs": 0}
    each = rows.drop_duplicates(key)
    counts = {c: _add(each[c]) for c in ("n_answers", "prompt_tokens", "new_tokens", "seconds")}
    return {"jobs": len(each), "calls": counts.pop("n_answers"), **counts, "device": _name(each["device"])}


def _trainings(rows: pd.DataFrame) -> dict[str, object]:
    if rows.empty:
        return {"jobs": 0}
    own = rows[rows["same_data_as"].isna()] if "same_data_as" in rows else rows
    bill = {
        "calls": _add(own["n_updates"]),
        "prompt_tokens": _add(own["tokens"]),
        "seconds": _add(rows["seconds"]),
    }
    return {"jobs": len(own), **bill, "device": _name(rows["device"])}


def _add(values: pd.Series) -> float | None:
    """Add what was recorded; None where a job recorded nothing, since a part is no total."""
    numbers = pd.to_numeric(values)
    if numbers.isna().any():
        return None
    total = numbers.sum()
    return int(total) if total == int(total) else round(float(total), 1)


def _name(devices: pd.Series) -> str:
    return ", ".join(dict.fromkeys(str(d) for d in devices.dropna())) or "n/a"


PUBLISHED_COUNTS = {"prompts": 63_967, "responses": 255_865, "origin_models": 16, "benchmarks": 6}


def compute_counts(study: Study) -> dict[str, float | None]:
    """Return what the diagrams show; None where a study has not recorded it.

    Returns:
        prompts, responses, origin_models, benchmarks, pairs (most of any strategy); of rlaif and kinship:
        calls, tokens and seconds. For the published study: UltraFeedback's counts, no cost.
    """
    names = [f"{who}_{what}" for who in ("rlaif", "kinship") for what in ("calls", "tokens", "seconds")]
    counts: dict[str, float | None] = dict.fromkeys(
        ["prompts", "responses", "origin_models", "benchmarks", "pairs", *names]
    )
    if study.is_published:
        return counts | PUBLISHED_COUNTS
    if len(study.pairs):
        for key, column in (("prompts", "rows_in"), ("responses", "responses_in"), ("pairs", "pairs_out")):
            if column in study.pairs:
                counts[key] = float(study.pairs[column].max())
    if study.scores is not None:
        counts["origin_models"], counts["benchmarks"] = map(float, study.scores.scores.shape)
    for who, bill in zip(("rlaif", "kinship"), build_ledger(study).to_dict("records"), strict=False):
        counts[f"{who}_calls"], counts[f"{who}_seconds"] = bill["calls"], bill["seconds"]
        if bill["prompt_tokens"] is not None:
            counts[f"{who}_tokens"] = bill["prompt_tokens"] + (bill["new_tokens"] or 0)
    return counts
