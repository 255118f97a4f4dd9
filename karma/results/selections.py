"""The selection study in the report: the data-size curve, every selection beside `random`, and kinship beside a judge.

The numbers come from `karma.potential`, as the notebooks of stage 07 show them; here they are the comparison of record,
since 06 waits for every selection: on the held-out pairs, and on the benchmarks where the study asks them. A study
without selections gets nothing, not even a heading.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from karma.figures.potential import plot_curve, plot_leads
from karma.files.reading import load_json
from karma.potential.outcomes import collect_answers, collect_selections
from karma.potential.rivals import compare_rivals, compute_trends
from karma.potential.study import compare_metrics, compare_selections
from karma.results.pictures import show_picture
from karma.results.study import find_titles
from karma.results.tables import Table, build_plain, save_frame
from karma.study.experiment import Experiment
from karma.study.stages import STAGES, Job
from karma.vocabulary import order_benchmarks

NOTES = {
    False: "one seed: the noise of training is in none of these intervals",
    True: "intervals hold held-out pairs and seeds",
}
NOTES_OF_ITEMS = {**NOTES, True: "intervals hold items and seeds"}


def show_held_out(experiment: Experiment, tables: Path, figures: Path) -> list[Any]:
    """Write and return what the report shows of selections on held-out pairs; an empty list where there is none.

    Args:
        experiment: the study. tables, figures: folders to write to.
    """
    runs, outcomes = collect_selections(experiment)
    compared = compare_selections(runs, outcomes)
    if compared.empty:
        return []
    made = [
        build_selection_table(compared),
        *build_test_tables(outcomes),
        *filter(None, [build_agreement_table(experiment), build_union_table(outcomes)]),
    ]
    _save(made, compared, tables / "selection_intervals.csv")
    metrics = ", ".join(dict.fromkeys(compared["metric"]))
    return [show_picture(plot_curve(compared), figures / "selections", metrics=metrics), *made]


def show_on_benchmarks(experiment: Experiment, tables: Path, figures: Path) -> list[Any]:
    """Write and return what the report shows of selections on the benchmarks; an empty list where none was asked.

    Args:
        experiment: the study. tables, figures: folders to write to.
    """
    answers, untrained = collect_answers(experiment)
    compared = compare_selections(collect_selections(experiment)[0], answers, untrained)
    if compared.empty:
        return []
    own = find_titles(experiment.settings)
    asked = order_benchmarks(list(compared["benchmark"].unique()), "table4")
    titles = {name: own.get(name, title) for name, title in asked.items()}
    n_jobs = sum(1 for _ in STAGES["selection_evaluation"].jobs(experiment.settings))
    missing = n_jobs - int(compared.groupby("benchmark")["n_seeds"].sum().max())
    notes = (f"{missing} of {n_jobs} evaluations are missing: the gaps name them",) if missing else ()
    made = [build_selection_table(compared, titles, notes), *build_test_tables(answers, titles)]
    _save(made, compared, tables / "selection_benchmark_intervals.csv")
    axes = plot_leads(compared, titles)
    drawn = [show_picture(axes, figures / "selection_benchmarks")] if len(axes) else []
    return [*drawn, *made]


def _save(made: list[Table], compared: pd.DataFrame, path: Path) -> None:
    for table in made:
        table.save(path.parent)
    save_frame(compared, path)


def build_selection_table(
    compared: pd.DataFrame, titles: Mapping[str, str] | None = None, notes: tuple[str, ...] = ()
) -> Table:
    """Return the comparison of all selections as a table, from `compare_selections`.

    Args:
        compared: on the held-out pairs, or on benchmarks. titles: of benchmarks. notes: what else a reader must know.
    """
    order = [*(["benchmark"] if titles else []), "policy", "strategy", "method", "ratio", "metric"]
    places = {name: place for place, name in enumerate(titles or {})}
    rows = compared.sort_values(order, kind="stable", key=lambda c: c.map(places) if c.name == "benchmark" else c)
    columns = {"policy": rows["policy"], "selection": _name_selections(rows), "method": rows["method"],
               "pairs": rows["n_pairs"], "n": rows["n"], "accuracy": rows["accuracy"],
               "95 %": _join(rows["low"], rows["high"])}  # fmt: skip
    index = ["policy", "selection", "method"]
    if titles:
        columns = {"benchmark": rows["benchmark"].map(titles), **columns, "change": rows["change"],
                   "95 % of the change": _join(rows["change_low"], rows["change_high"])}  # fmt: skip
        index = ["benchmark", *index]
    columns |= {"difference": rows["difference"], "95 % of it": _join(rows["difference_low"], rows["difference_high"])}
    frame, several = pd.DataFrame(columns).set_index(index), bool((compared["n_seeds"] > 1).any())
    if not titles:
        caption = ("Held-out accuracy (share of n pairs) after training on each selection, and its difference from "
                   "`random`.")  # fmt: skip
        return build_plain("selections", caption, frame, notes=(NOTES[several], *notes))
    caption = ("Accuracy (share of n) after training on each selection, its change from the untrained policy, and its "
               "difference from `random`.")  # fmt: skip
    single = "intervals are each at 95 %, not corrected for their number: the tests are in the next table"
    return build_plain(
        "selection_benchmarks", caption, frame, notes=(NOTES_OF_ITEMS[several], *_name_units(titles), single, *notes)
    )


def build_test_tables(outcomes: pd.DataFrame, titles: Mapping[str, str] | None = None) -> list[Table]:
    """Return M_AP against each rival, and each metric's lead over the data size; only what can be tested.

    Args:
        outcomes: of the held-out pairs, or of benchmarks. titles: of benchmarks, on which every metric is tested
            against `random` too.
    """
    place, name = ["policy", "method"], "selection_benchmark" if titles else "selection"
    rivals = ("Accuracy after training on a metric's selection less that after another's." if titles else
              "Held-out accuracy after training on M_AP's selection less that after a rival's.")  # fmt: skip
    asked = {
        f"{name}_rivals": (compare_rivals(outcomes, all_against="random" if titles else ""),
                           [*place, "selection", "rival"], rivals),
        f"{name}_trends": (compute_trends(outcomes), [*place, "strategy", "metric"],
                           "Does a metric's lead over `random` change with the pairs kept? Its change a doubling."),
    }  # fmt: skip
    noise = (NOTES_OF_ITEMS if titles else NOTES)[outcomes["seed"].nunique() > 1]
    notes = ("p_holm: corrected for all rows of this table", noise, *_name_units(titles or {}))
    tables = []
    for table, (rows, index, caption) in asked.items():
        if rows.empty:
            continue
        if "ratio" in rows:
            rows = rows.assign(selection=_name_selections(rows)).drop(columns=["strategy", "metric", "ratio"])
        if titles:
            rows, index = rows.assign(benchmark=rows["benchmark"].map(titles)), ["benchmark", *index]
        low, high = rows.pop("low"), rows.pop("high")
        rows.insert(list(rows).index("value") + 1, "95 %", _join(low, high))
        tables.append(build_plain(table, caption, rows.set_index(index), notes=notes))
    return tables


def _name_units(titles: Mapping[str, str]) -> list[str]:
    return [f"n of {titles['ifeval']}: instructions; those of a prompt are one cluster"] if "ifeval" in titles else []


def _name_selections(rows: pd.DataFrame) -> list[str]:
    return [f"{r.strategy}+{r.metric}-{r.ratio:g}" for r in rows.itertuples()]


def _join(low: pd.Series, high: pd.Series) -> list[str]:
    return ["n/a" if pd.isna(a) else f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)]


def build_union_table(outcomes: pd.DataFrame) -> Table | None:
    """Return what training on M_AP gave with annotations and without; None where not both were trained."""
    frame = compare_metrics(outcomes, "m_ap", "m_ap_annotated")
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
