"""Tables 1-4 in the paper's layout, from any study, as CSV, Markdown, LaTeX and HTML.

The best strategy of a row is bold and a Table 2 cell at least equal to the baseline (rlaif) is shaded, as
in the paper. Ours, marked by the caption: the untrained policy, the controls, and the accuracy on held-
out pairs. Decision: a mean is shown only where all its runs exist; else the cell is `n/a` and a note
names how many are missing, because means over different runs do not compare. Limit: the cells have no
room for intervals; `karma.results.means` has Table 2's, `compute_intervals` every run's.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from karma.files.writing import atomic_path
from karma.results.estimates import compute_chance
from karma.results.study import Study
from karma.scores.normalise import compute_s_pref
from karma.scores.table import load_benchmarks
from karma.statistics.intervals import compute_wilson
from karma.study.escape import (
    escape_formula,
    escape_frame,
    escape_html,
    escape_latex,
    escape_markdown,
    style,
)
from karma.vocabulary import BASELINE, START, title_of

TOTAL, HELD_OUT = "Total", "Held-out pairs"


@dataclass(frozen=True, eq=False)
class Table:
    """A table ready to be written.

    Attributes:
        name: file name, e.g. "table2". caption: one sentence with units.
        frame: numbers or text; NaN is a gap, shown as n/a.
        bold, shaded: which cells, in the frame's shape.
        decimals: digits of every number. notes: what a reader must know, gaps among them.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    bold: pd.DataFrame
    shaded: pd.DataFrame
    decimals: int = 4
    notes: tuple[str, ...] = ()

    def format(self, value: object) -> str:
        """Return a cell as text; a gap is `n/a`."""
        if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
            return "n/a"
        return f"{value:.{self.decimals}f}" if isinstance(value, float) else str(value)

    def _css(self) -> pd.DataFrame:
        css = self.bold.map(lambda b: "font-weight: bold;" if b else "")
        return css + self.shaded.map(lambda b: "background-color: #d9d9d9;" if b else "")

    def to_html(self) -> str:
        """Return the table as HTML, one head row and no joined cells, so that a page can sort it."""
        flat, css = self.frame.reset_index(), self._css().reset_index()
        css[list(self.frame.index.names)] = ""
        css = css.map(lambda own: f"{own} color: #1a1a1a;" if "background" in own else own)  # on a dark page, too
        shown = style(flat).format(self.format).apply(lambda _: css, axis=None).hide(axis="index")
        shown = shown.set_table_attributes(f'id="{escape_html(self.name)}"').set_caption(self.caption)
        notes = "".join(f"<li>{escape_html(note)}</li>" for note in self.notes)
        return shown.to_html() + (f'<ul class="notes">{notes}</ul>' if notes else "")

    _repr_html_ = to_html

    def to_latex(self) -> str:
        """Return the table for LaTeX's booktabs (with multirow and colortbl's xcdraw)."""
        style = self.frame.style.format(self.format, escape="latex").apply(lambda _: self._css(), axis=None)
        style = style.format_index(escape="latex").format_index(axis=1, escape="latex")
        text = style.to_latex(
            hrules=True, convert_css=True, caption=escape_latex(self.caption), label=f"tab:{self.name}"
        )
        notes = "".join(f"% {escape_latex(note)}\n" for note in self.notes)
        return f"% \\usepackage{{booktabs, multirow}} \\usepackage[table]{{xcolor}}\n{notes}{text}"

    def to_markdown(self) -> str:
        """Return the table for Markdown: bold as **, shaded as a trailing +."""
        frame = escape_frame(self.frame.map(self.format).astype(str), escape_markdown)
        frame = frame.where(~self.bold.to_numpy(), "**" + frame + "**")
        frame = frame.where(~self.shaded.to_numpy(), frame + " +")
        lines = [
            f"{escape_markdown(self.caption)}\n",
            frame.reset_index().to_markdown(index=False, disable_numparse=True),
            "",
        ]
        return "\n".join([*lines, *(f"- {escape_markdown(note)}" for note in self.notes)]) + "\n"

    def save(self, folder: Path) -> list[Path]:
        """Write CSV (plain numbers, gaps as n/a), Markdown and LaTeX; return the paths."""
        texts = {"md": self.to_markdown(), "tex": self.to_latex()}
        texts["csv"] = escape_frame(self.frame.map(_round), escape_formula).to_csv(na_rep="n/a")
        for suffix, text in texts.items():
            with atomic_path(folder / f"{self.name}.{suffix}") as temporary:
                temporary.write_text(text, "utf-8")
        return [folder / f"{self.name}.{suffix}" for suffix in ("csv", "md", "tex")]


def save_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write numbers as CSV without an index, gaps as n/a, whole or not at all."""
    with atomic_path(path) as temporary:
        escape_frame(frame, escape_formula).to_csv(temporary, index=False, na_rep="n/a")


def build_tables(study: Study) -> list[Table]:
    """Return Tables 1 to 4 of a study, whatever part of it exists."""
    return [build_table1(study), build_table2(study), build_table3(study), build_table4(study)]


def build_table1(study: Study) -> Table:
    """Return the benchmarks by capability and answer form, with the items asked in this study and what guesses get.

    Chance is measured on the items asked where they are known (`karma.results.estimates.compute_chance`).

    Paper: Table 1.
    """
    known = study.described.copy()
    known["title"] = pd.Series(study.replace_titles(known["title"].to_dict()))
    asked = study.results.groupby("benchmark")["n"].max()
    origins = study.origins.groupby("benchmark")["n"].max() if len(study.origins) else pd.Series(dtype=int)
    used = [b for b in known.index if b in study.benchmarks or b in origins.index or study.is_published]
    frame, levels = known.loc[used, ["answer_form", "capability", "title"]], compute_chance(study)
    frame["chance"] = [f"{levels.loc[b, 'chance']:.3f}" if b in levels.index else "none" for b in used]
    frame["of policies"] = [str(int(asked[b])) if b in asked.index else "n/a" for b in used]
    frame["of origin models"] = [str(int(origins[b])) if b in origins.index else "n/a" for b in used]
    frame = frame.rename(columns={"title": "benchmark", "answer_form": "answer form"})
    frame = frame.set_index(["answer form", "capability", "benchmark"]).sort_index(level=[0, 1], sort_remaining=False)
    caption = "Table 1. Benchmarks by answer form and capability, with chance level and items asked."
    inferred = ("Items of policies are inferred from the printed fractions, by method (shown: the larger; some are "
                "unknown); those of origin models are not known.")  # fmt: skip
    nominal = [known.loc[b, "title"] for b in used if b in levels.index and not levels.loc[b, "measured"]]
    notes = [inferred] if study.is_published else ["chance: what guesses at the items asked get right"]
    if nominal:
        notes.append(f"nominal chance, by the usual number of options or as declared: {', '.join(nominal)}")
    return _build(study, "table1", caption, frame, bold=False, notes=notes)


def build_table2(study: Study) -> Table:
    """Return the mean over all runs of each strategy, by benchmark and in total.

    Where an experiment trains some strategies by fewer methods than others, only the methods common to all count, so
    that columns stay comparable.

    Paper: Table 2.
    """
    titles, columns, notes = study.title_benchmarks("table2"), title_columns(study), []
    frame = pd.DataFrame(np.nan, index=[TOTAL, *titles.values()], columns=list(columns.values()))
    for strategy, column in columns.items():
        rows = study.compared_results[study.compared_results["strategy"] == strategy]
        runs = len(study.policies) * (1 if strategy == START else len(study.common_methods) * len(study.seeds))
        for benchmark, part in rows.groupby("benchmark"):
            if len(part) == runs:
                frame.loc[titles[str(benchmark)], column] = part["value"].mean()
        frame.loc[TOTAL, column] = frame.loc[list(titles.values()), column].mean(skipna=False)
        if len(rows) < runs * len(titles):
            notes.append(f"{column}: {len(rows)} of {runs * len(titles)} scores exist; n/a where a run is missing")
    if study.untrained:
        over = ", ".join(map(title_of, study.common_methods)) or "no method"
        notes.append(f"over {over} alone: the experiment trains other methods on some of the data sets only")
    frame.index.name = "benchmark"
    caption = "Table 2. Mean accuracy (share in [0, 1]) over all runs of a data set; shaded: at least RLAIF's."
    return _build(study, "table2", caption, _add_held_out(study, frame, ()), shade=True, notes=[*notes, *_note(study)])


def build_table3(study: Study) -> Table:
    """Return the origin models' scores and S_pref, in the paper's units.

    Paper: Table 3.
    """
    caption = "Table 3. Origin models: percent; MMLU-Pro and the average after min-max (S_pref) in [0, 1]."
    if study.scores is None:
        frame = pd.DataFrame({"average_score": [np.nan]}, index=pd.Index(["none yet"], name="origin_model"))
        return _build(study, "table3", caption, frame, notes=["kinship/scores.csv is missing: run 02 first"])
    units, frame = load_benchmarks()["table3_unit"], study.scores.scores.copy()
    for name in frame:
        frame[name] *= 100 if units.get(name, "percent") == "percent" else 1
    titles = study.described["title"].to_dict() | study.scores.benchmarks["title"].to_dict()
    frame = frame.rename(columns=study.replace_titles(titles))
    frame = frame.assign(average_score=compute_s_pref(study.scores))
    frame.index.name = "origin_model"
    return _build(study, "table3", caption, frame, bold=False, decimals=2)


def build_table4(study: Study) -> Table:
    """Return every run: benchmark x policy x method against strategies, a mean over seeds.

    Paper: Table 4.
    """
    columns, notes = title_columns(study), []
    benchmarks = study.title_benchmarks("table4")
    methods = {m: title_of(m) for m in study.methods}
    keys = [(b, p, m) for b in benchmarks for p in study.policies for m in methods]
    index = pd.MultiIndex.from_tuples(
        [(benchmarks[b], p, methods[m]) for b, p, m in keys], names=["benchmark", "policy", "method"]
    )
    scores = study.results.groupby(["benchmark", "policy", "strategy", "method"])["value"].agg(["mean", "size"])
    cells = scores.to_dict("index")

    def find(benchmark: str, policy: str, method: str, strategy: str) -> float:
        cell = cells.get((benchmark, policy, strategy, START if strategy == START else method))
        whole = cell and cell["size"] == (1 if strategy == START else len(study.seeds))
        return cell["mean"] if whole else np.nan

    values = [[find(*key, strategy) for strategy in columns] for key in keys]
    frame = pd.DataFrame(values, index=index, columns=list(columns.values()), dtype=float)
    left_out = len(study.untrained) * len(benchmarks) * len(study.policies)
    missing = int(frame.isna().to_numpy().sum()) - left_out
    if left_out:
        notes.append(f"{left_out} cells are n/a because the experiment does not train them (trained_on)")
    if missing:
        notes.append(f"{missing} of {frame.size} cells are n/a: their runs are missing, see gaps.csv")
    if len(study.seeds) > 1:
        notes.append(f"each cell is the mean over seeds {', '.join(map(str, study.seeds))}")
    caption = "Table 4. Accuracy (share in [0, 1]) of every run; bold: the best data set of a row."
    return _build(
        study, "table4", caption, _add_held_out(study, frame, ("policy", "method")), notes=[*notes, *_note(study)]
    )


def title_columns(study: Study) -> dict[str, str]:
    """Return strategy -> column title; the untrained policy comes first, and not for the published study."""
    return {s: study.title(s) for s in ([] if study.is_published else [START]) + list(study.strategies)}


def build_plain(name: str, caption: str, frame: pd.DataFrame, *, decimals: int = 3, notes: tuple = ()) -> Table:
    """Return any frame as a table to show and save, its index among the columns, nothing marked."""
    none = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    return Table(name, caption, frame, none, none, decimals, notes)


def build_gaps(study: Study) -> Table:
    """Return what a study lacks, each gap with the command that fills it."""
    caption = f"{len(study.gaps)} files or scores are missing; {len(study.results)} scores are there."
    return build_plain("gaps", caption, study.gaps.set_index(["what", "file"]))


def build_claims(claims: pd.DataFrame) -> Table:
    """Return the tested claims, from `karma.results.claims.test_claims`, as a table."""
    caption = "Claims: effects as shares (RQ1, RQ4: distances in [0, 1]) with 95 % intervals, and verdicts."
    return build_plain("claims", caption, claims.set_index(["question", "claim"]))


def compute_intervals(study: Study) -> pd.DataFrame:
    """Return every score with its 95 % Wilson interval, n, and chance level: the long form of Table 4.

    Units that come in clusters (a prompt's instructions) count for as many as the score's standard error says.
    """
    rows = study.results.copy()
    errors = [None if pd.isna(error) else float(error) for error in rows["standard_error"]]
    bounds = [(np.nan, np.nan) if np.isnan(n) else compute_wilson(v, n, error)
              for v, n, error in zip(rows["value"], rows["n"].astype(float), errors, strict=True)]  # fmt: skip
    rows["low"], rows["high"] = [b[0] for b in bounds], [b[1] for b in bounds]
    at_chance = rows["chance"].astype(float).between(rows["low"], rows["high"])
    return rows.assign(chance_in_interval=at_chance)


def note_shared_benchmarks(study: Study) -> list[str]:
    """Say how many of the policies' benchmarks also define the origin models' S_pref, in one note, or in none.

    Example:
        >>> from karma.results.published import load_published
        >>> note_shared_benchmarks(load_published())
        ['policies are evaluated on 5 of the 6 benchmarks that define S_pref, from which the labels come']
    """
    if study.scores is None or not (shared := set(study.benchmarks) & set(study.scores.scores)):
        return []
    n = study.scores.scores.shape[1]
    what = f"{len(shared)} of the {n} benchmarks that define S_pref"
    return [f"policies are evaluated on {what}, from which the labels come"]


def _note(study: Study) -> list[str]:
    own = f"{HELD_OUT}: each policy on its own data set's pairs and labels: how easily they are learnt, no ranking"
    return [*([] if study.is_published else [own]), *note_shared_benchmarks(study)]


def _add_held_out(study: Study, frame: pd.DataFrame, by: tuple[str, ...]) -> pd.DataFrame:
    """Append, by method, the accuracy on each data set's own held-out pairs, where measured."""
    if study.is_published:
        return frame
    means = {}
    if "held_out_accuracy" in study.trainings:
        cells = study.trainings.dropna(subset="held_out_accuracy").groupby(["strategy", *(by or ("method",))])
        means = cells["held_out_accuracy"].mean().to_dict()
    rows = dict.fromkeys(tuple(k[1:]) for k in frame.index) if by else [(title_of(m),) for m in study.methods]
    return pd.concat([frame, *(_held_out_row(study, frame, key, means, bool(by)) for key in rows)])


def _held_out_row(study: Study, frame: pd.DataFrame, key: tuple, means: dict, nested: bool) -> pd.DataFrame:
    names = {study.title(name): name for name in (*study.strategies, *study.methods)}
    values = [means.get((names.get(column), *(names.get(k, k) for k in key)), np.nan) for column in frame]
    if nested:
        label: pd.Index = pd.MultiIndex.from_tuples([(HELD_OUT, *key)], names=frame.index.names)
    else:
        label = pd.Index([f"{HELD_OUT}, {key[0]}"], name=frame.index.name)
    return pd.DataFrame([values], index=label, columns=frame.columns, dtype=float)


def _build(
    study: Study, name: str, caption: str, frame: pd.DataFrame, *, bold: bool = True, shade: bool = False,
    axis: int = 1, decimals: int = 4, notes: list[str] | tuple = (),
) -> Table:  # fmt: skip
    """Mark the best of each row and the cells at least equal to the baseline; not where cells ask their own pairs."""
    none = pd.DataFrame(False, index=frame.index, columns=frame.columns)
    best, shaded = none.copy(), none.copy()
    trained = [c for c in frame if c != title_of(START)]
    if bold and len(frame):
        numbers = frame[trained].astype(float)
        best[trained] = numbers.eq(numbers.max(axis=1), axis=0)
    base = study.title(BASELINE)
    if shade and base in frame:
        others = [c for c in trained if c != base]
        shaded[others] = frame[others].ge(frame[base], axis=0)
    own = frame.index.get_level_values(0).astype(str).str.startswith(HELD_OUT)
    best[own] = shaded[own] = False
    source = "The paper's numbers." if study.is_published else f"Study {study.name}."
    return Table(name, f"{caption} {source}", frame, best, shaded, decimals, tuple(notes))


def _round(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value
