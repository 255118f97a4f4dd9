"""The selection study in the report: the data-size curve, every selection beside `random`, and kinship beside a judge.

The numbers come from `karma.potential.study`, as the notebooks of stage 07 show them; here they are the comparison of
record, since 06 waits for every selection. A study without selections gets nothing, not even a heading.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from karma.files import load_json
from karma.potential.rivals import compare_rivals, compute_trends
from karma.potential.study import collect_selections, compare_metrics, compare_selections
from karma.results.tables import Table, build_plain
from karma.study.experiment import Experiment
from karma.study.stages import STAGES, Job

TEXT = """## The selection study: alignment potential against the lot

Held-out preference accuracy after training on a part of a pair set, over the part's size: one line a metric, 95 %
intervals over the held-out pairs, the same for all; the dotted line is a coin. A metric earns its keep where its
difference from `random` on the same pairs and updates lies above 0; an interval that crosses 0 cannot tell. Then M_AP
against each rival metric, and whether a metric's lead over `random` changes with the data: all corrected (Holm)."""
NOTES = {
    False: "one seed: the noise of training is in none of these intervals",
    True: "intervals hold held-out pairs and seeds",
}


def show_selections(experiment: Experiment, tables: Path, figures: Path) -> list[Any]:
    """Write and return what the report shows of the selection study, in order; an empty list where there is none.

    Args:
        experiment: the study. tables, figures: folders to write to.
    """
    runs, margins = collect_selections(experiment)
    compared = compare_selections(runs, margins)
    if compared.empty:
        return []
    import matplotlib.pyplot as plt
    from IPython.display import Markdown

    from karma.figures.potential import plot_curve
    from karma.figures.style import save_figure

    axes = plot_curve(compared)
    save_figure(axes[0], figures / "selections")
    plt.close(axes[0].figure)  # shown where it is returned to, not once more at the end of the cell
    made = [
        build_selection_table(compared),
        *build_test_tables(margins),
        *filter(None, [build_agreement_table(experiment), build_union_table(margins)]),
    ]
    for table in made:
        table.save(tables)
    compared.to_csv(tables / "selection_intervals.csv", index=False)
    return [Markdown(TEXT), axes[0].figure, *made]


def build_selection_table(compared: pd.DataFrame) -> Table:
    """Return the comparison of all selections as a table, from `compare_selections`."""
    rows = compared.sort_values(["policy", "strategy", "method", "ratio", "metric"], kind="stable")
    names = [f"{r.strategy}+{r.metric}-{r.ratio:g}" for r in rows.itertuples()]
    columns = {"policy": rows["policy"], "selection": names, "method": rows["method"], "pairs": rows["n_pairs"],
               "n": rows["n"], "accuracy": rows["accuracy"], "95 %": _join(rows["low"], rows["high"]),
               "difference": rows["difference"],
               "95 % of it": _join(rows["difference_low"], rows["difference_high"])}  # fmt: skip
    frame = pd.DataFrame(columns).set_index(["policy", "selection", "method"])
    caption = "Held-out accuracy (share of n pairs) after training on each selection, and its difference from `random`."
    return build_plain("selections", caption, frame, notes=(NOTES[bool((compared["n_seeds"] > 1).any())],))


def build_test_tables(margins: pd.DataFrame) -> list[Table]:
    """Return M_AP against each rival, and each metric's lead over the data size; only what can be tested."""
    asked = {
        "selection_rivals": (compare_rivals(margins), ["policy", "method", "selection", "rival"],
                             "Held-out accuracy after training on M_AP's selection less that after a rival's."),
        "selection_trends": (compute_trends(margins), ["policy", "method", "strategy", "metric"],
                             "Does a metric's lead over `random` change with the pairs kept? Its change a doubling."),
    }  # fmt: skip
    tables = []
    for name, (rows, index, caption) in asked.items():
        if rows.empty:
            continue
        if "ratio" in rows:
            selection = [f"{r.strategy}+{r.metric}-{r.ratio:g}" for r in rows.itertuples()]
            rows = rows.assign(selection=selection).drop(columns=["strategy", "metric", "ratio"])
        low, high = rows.pop("low"), rows.pop("high")
        rows.insert(list(rows).index("value") + 1, "95 %", _join(low, high))
        notes = ("p_holm: corrected for all rows of this table", NOTES[margins["seed"].nunique() > 1])
        tables.append(build_plain(name, caption, rows.set_index(index), notes=notes))
    return tables


def _join(low: pd.Series, high: pd.Series) -> list[str]:
    return ["n/a" if pd.isna(a) else f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)]


def build_union_table(margins: pd.DataFrame) -> Table | None:
    """Return what training on M_AP gave with annotations and without; None where not both were trained."""
    frame = compare_metrics(margins, "m_ap", "m_ap_annotated")
    if frame.empty:
        return None
    frame = frame.sort_values(["policy", "strategy", "method", "ratio"], kind="stable")
    low, high = frame.pop("difference_low"), frame.pop("difference_high")
    frame = frame.assign(**{"95 % of it": _join(low, high)}).set_index(["policy", "strategy", "ratio", "method"])
    caption = (
        "Held-out accuracy after training on M_AP over the pairs' own scores, and over annotations of single responses."
    )
    return build_plain("selection_union", caption, frame, notes=("the pairs and their labels are the same for both",))


def build_agreement_table(experiment: Experiment) -> Table | None:
    """Return how M_AP over the pairs' own scores agrees with M_AP over annotations; None where nothing is annotated."""
    stage = STAGES["07_alignment_potential"]
    jobs = [Job(experiment, stage, p) for p in stage.jobs(experiment.settings)]
    records = [load_json(j.folder / "selection.json") for j in jobs if (j.folder / "selection.json").is_file()]
    rows = [{**{k: r[k] for k in ("policy", "strategy", "ratio")}, **r["agreement_with_annotations"]} for r in records]
    keys = ["policy", "strategy", "ratio"]
    frame = pd.DataFrame([row for row in rows if row["overlap"] is not None])
    if frame.empty:
        return None
    frame = frame.drop_duplicates(keys).set_index(keys)
    caption = "Alignment potential over the pairs' own scores against that over annotations of single responses."
    note = ("Spearman's correlation; both potentials share the implicit margin, so unrelated scores correlate too; "
            "overlap_by_chance: with the explicit margins of one dealt out anew")  # fmt: skip
    return build_plain("selection_agreement", caption, frame, notes=(note,))
