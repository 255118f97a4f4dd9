"""The paper's words against its own tables: counts, names and references that do not agree, numbers that stand nowhere.

Quotes are word for word, a few words each, with where they stand (data/paper/quotes.csv). Decision: a verdict follows
from the shipped tables, and of models' names from the sizes that their families were released in
(data/paper/released.csv); none is written by hand. Limit: only these words were looked at, and "stands nowhere" is said
of the paper's tables, the only place in it where results are printed.
"""

import re
from collections.abc import Iterator

import pandas as pd

from karma.results.noise_floor import Row, build_row
from karma.results.published import compute_size, load_printed
from karma.results.study import Study
from karma.results.tables import build_tables
from karma.study.experiment import load_base


def load_quote(key: str) -> tuple[str, str]:
    """Return (where, words) of a quote, the words in quotation marks.

    Example:
        >>> load_quote("models")
        ('text on the data', '"17 models"')
    """
    row = load_printed("quotes").set_index("key").loc[key]
    return row["where"], f'"{row["quote"]}"'


def audit_wording(study: Study) -> Iterator[Row]:
    """Yield the audited words.

    Args:
        study: the published one.
    """
    yield _audit_models()
    yield from _audit_policies(study)
    yield _audit_reference(study)
    yield _audit_consistency(study)
    for key in ("win_rate", "human_preference"):
        yield _audit_percentage(key)


def _audit_models() -> Row:
    (where, quote), scored = load_quote("models"), len(load_printed("table3"))
    said, excluded = _read_number(quote), load_base().pool.excluded_origin_models
    found = f"Table 3 scores {scored}; excluded from the pool: {', '.join(excluded)}"
    verdict = "agrees" if said == scored else f"differs by {abs(said - scored):g}"
    if said != scored and said == scored + len(excluded):
        verdict += ": it counts what could not be scored"
    return build_row("The number of origin models", where, quote, found, verdict)


def _audit_policies(study: Study) -> Iterator[Row]:
    (where, quote), tuned = load_quote("policy"), ", ".join(study.policies)
    name = quote.strip('"')
    verdicts = [_judge_name(name), "" if name in study.policies else "not in Table 4"]
    found = f"{_list_sizes([name])}; Table 4 has {tuned}"
    yield build_row("A policy in the text", where, quote, found, "; ".join(filter(None, verdicts)) or "agrees")
    verdicts = [*map(_judge_name, study.policies)]
    found = _list_sizes(list(study.policies))
    yield build_row("The policies of Table 4", "Table 4", tuned, found, "; ".join(filter(None, verdicts)) or "agrees")


def load_released() -> dict[str, list[float]]:
    """Return the sizes that families of models were released in, in billions of parameters."""
    table = load_printed("released").set_index("family")["sizes_b"]
    return {str(family): [float(size) for size in sizes.split()] for family, sizes in table.items()}


def _list_sizes(names: list[str]) -> str:
    families = dict.fromkeys(name.rpartition("-")[0] for name in names)
    sizes = load_released()
    return "; ".join(f"{family}: {', '.join(f'{size:g}B' for size in sizes[family])}" for family in families)


def _judge_name(name: str) -> str:
    """Say what is wrong with a model's name, "" where it was released.

    Example:
        >>> _judge_name("Qwen2.5-7B"), _judge_name("Qwen2.5-8B"), _judge_name("Llama-3.1-3B")
        ('', 'no model Qwen2.5-8B', 'no model Llama-3.1-3B (Llama-3.2-3B exists)')
    """
    (family, _, size), released = name.rpartition("-"), load_released()
    billions = compute_size(name)
    if billions in released[family]:
        return ""
    kin = [other for other, sizes in released.items()
           if other != family and other.split("-")[0] == family.split("-")[0] and billions in sizes]  # fmt: skip
    return f"no model {name}" + (f" ({', '.join(f'{other}-{size} exists' for other in kin)})" if kin else "")


def _audit_reference(study: Study) -> Row:
    where, quote = load_quote("table")
    numbers = sorted(_read_number(table.name) for table in build_tables(study))
    verdict = "agrees" if _read_number(quote) in numbers else "no such table"
    return build_row("A table that is referred to", where, quote, f"tables {numbers[0]:g} to {numbers[-1]:g}", verdict)


def _audit_consistency(study: Study) -> Row:
    where, quote = load_quote("consistent")
    runs = len(study.seeds)
    verdict = "cannot be seen: nothing was trained twice" if runs < 2 else "can be tested by the spread over seeds"
    found = f"{runs} training{'s' * (runs > 1)} a cell of Table 4"
    return build_row("Outcomes are more consistent", where, quote, found, verdict)


def _audit_percentage(key: str) -> Row:
    where, quote = load_quote(key)
    said, claim = _read_number(quote), quote.strip('"').partition(" (")[0]
    cells = pd.concat([load_printed(name).stack() for name in ("table2", "table3", "table4")])
    cells = cells[pd.to_numeric(cells, errors="coerce").notna()]
    gains = _compute_gains()
    printed, reached = int((cells == f"{said:g}").sum()), int(((gains - said).abs() <= 0.05 + 1e-9).sum())
    found = (f"of {len(cells)} cells of Tables 2 to 4 {printed} read {said:g}; of {len(gains)} gains over RLAIF in "
             f"Table 2, in points or percent, {reached} are +{said:g} (largest: +{gains.max():.1f})")  # fmt: skip
    verdict = "stands in the tables" if printed or reached else "stands nowhere in the paper's tables"
    return build_row(claim[0].upper() + claim[1:], where, quote, found, verdict)


def _compute_gains() -> pd.Series:
    """Return what kinship data sets gain over RLAIF in Table 2's printed cells: percentage points, and percent."""
    means = load_printed("table2").set_index("benchmark").astype(float)
    points = 100 * means.drop(columns="rlaif").sub(means["rlaif"], axis=0)
    return pd.concat([points.stack(), points.div(means["rlaif"], axis=0).stack()])


def _read_number(text: str) -> float:
    """Return the last number in a text."""
    return float(re.findall(r"\d+(?:\.\d+)?", text)[-1])
