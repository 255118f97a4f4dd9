"""Two studies side by side: the same cell in both, its difference, and an interval.

Where both studies asked the same items and kept their answers, the difference is paired over the items;
else the runs count as independent. Seeds are matched by position, so a study repeated with another seed
compares cell by cell. Limit: the cells that only one study has are counted, not compared.
"""

from dataclasses import replace

import pandas as pd

from karma.errors import InputError
from karma.results.audit import compare_table2
from karma.results.estimates import compute_weighted
from karma.results.published import load_published
from karma.results.study import Study
from karma.results.tables import Table, build_plain, build_table2, build_table3, build_table4
from karma.scores.names import canonical_model_name
from karma.statistics.verdicts import adjust_holm
from karma.vocabulary import title_of

PAPER_POLICIES = {  # the paper's spelling, which names a model that does not exist
    "llama-3.2-3b": "llama-3.1-3b",
}
CELL = ["policy", "strategy", "method", "seed", "benchmark"]


def compare_studies(a: Study, b: Study) -> tuple[pd.DataFrame, str]:
    """Return the differences a - b, and a sentence that counts what could not be compared.

    Returns:
        Columns strategy, method, benchmark ("all": the mean), a, b, difference, low, high, p_holm, n, basis;
        values are shares.

    Raises:
        InputError: the studies share no cell.
    """
    sides = [_place(study) for study in (a, b)]
    both = sides[0].merge(sides[1], on=CELL, suffixes=("_a", "_b"))
    if both.empty:
        raise InputError(f"{a.name} and {b.name} share no run: take studies of the same policies")
    rows = pd.concat([s.drop(columns="row") for s in sides], keys=["a", "b"])
    merged = replace(a, results=rows.reset_index(drop=True), folder=a.folder or b.folder)
    offset = len(sides[0])
    records = []
    for keys, part in _groups(both):
        share = 1 / len(part)
        weights = pd.concat([
            pd.Series(share, index=part["row_a"]), pd.Series(-share, index=part["row_b"] + offset)
        ])  # fmt: skip
        found = compute_weighted(merged, weights)
        values = {"a": part["value_a"].mean(), "b": part["value_b"].mean(), "difference": found.value}
        bounds = dict(zip(("low", "high"), found.interval, strict=True))
        records.append({**keys, **values, **bounds, "p": found.p_value, "n": found.n, "basis": found.basis})
    table = pd.DataFrame(records)
    table.insert(8, "p_holm", adjust_holm(table.pop("p").to_numpy()))
    alone = ", ".join(f"{len(s) - len(both)} only in {x.name}" for s, x in zip(sides, (a, b), strict=True))
    return table, f"{len(both)} scores compared; {alone}."


def build_comparison(differences: pd.DataFrame, counts: str, name: str) -> Table:
    """Return `compare_studies`'s result as a table to write; bold where the difference is beyond chance."""
    frame = differences.set_index(["strategy", "method", "benchmark"])
    sure = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    sure["difference"] = frame["p_holm"] < 0.05
    a, _, b = name.partition("_against_")
    caption = f"{a} (a) against {b} (b): shares in [0, 1], a - b with its 95 % interval; bold: p_holm below .05."
    return Table(name, caption, frame, sure, sure & False, notes=(counts,))


def compare_with_paper(study: Study, name: str) -> Table:
    """Return a table's cells beside the paper's, where both have the row and the column.

    Args:
        study: a measured study.
        name: "table2", "table3" or "table4". Policies are matched by PAPER_POLICIES, origin models by name.

    Returns:
        One row a cell: ours, paper, difference; empty with a note where nothing matches.
    """
    build = {"table2": build_table2, "table3": build_table3, "table4": build_table4}[name]
    ours, published = _flatten(build(study)), load_published()
    theirs = _load_printed_means(published) if name == "table2" else _flatten(build(published))
    cells = ours.to_frame("ours").join(theirs.rename("paper"), how="inner").dropna()
    cells["difference"] = cells["ours"] - cells["paper"]
    missing = [] if len(cells) else [f"no row of {name} is in both: other models, or nothing measured yet"]
    caption = f"{name.capitalize().replace('le', 'le ')} beside the paper's as printed: ours, paper, ours - paper."
    notes = ["other policies and items than the paper's, unless the names are the same", *missing]
    return build_plain(f"{name}_beside_paper", caption, cells, decimals=4, notes=tuple(notes))


def _load_printed_means(published: Study) -> pd.Series:
    """Return Table 2's cells as the paper prints them: three are not the means of its Table 4."""
    cells = compare_table2(published)
    keys = pd.MultiIndex.from_arrays(
        [cells["benchmark"], cells["strategy"].map(title_of)], names=["benchmark", "column"]
    )
    return pd.Series(cells["printed"].astype(float).to_numpy(), index=keys)


def _flatten(table: Table) -> pd.Series:
    frame = table.frame.reset_index()
    keys = list(table.frame.index.names)
    for key in {"policy", "origin_model"} & set(keys):
        frame[key] = [PAPER_POLICIES.get(m, canonical_model_name(m)) for m in frame[key]]
    return frame.melt(keys, var_name="column").set_index([*keys, "column"])["value"]


def _place(study: Study) -> pd.DataFrame:
    """Number a study's scores, its seeds by position, its folders from the root."""
    rows = study.results.reset_index(drop=True)
    seeds = {seed: k for k, seed in enumerate(study.seeds)}
    rows = rows.assign(seed=rows["seed"].map(lambda s: seeds.get(s, 0)), row=range(len(rows)))
    if study.folder is not None:
        rows["folder"] = [str(study.folder / folder) for folder in rows["folder"]]
    return rows


def _groups(both: pd.DataFrame):
    for (strategy, method), part in both.groupby(["strategy", "method"], sort=False):
        yield {"strategy": strategy, "method": method, "benchmark": "all"}, part
        for benchmark, cells in part.groupby("benchmark", sort=False):
            yield {"strategy": strategy, "method": method, "benchmark": benchmark}, cells
