"""Write the README's numbers and picture, and docs/demo.md: `make readme` after `make demo`.

Everything between two markers is made here, so that no number is typed in by hand: what takes seconds is timed now
(docs/make_ladder.py), what takes minutes comes from outputs/demo (and outputs/smoke, where it was run) and is kept in
karma/study/times.json, the published tables are computed again. Each run's date and processor are named.

    python docs/make_readme.py           all of it
    python docs/make_readme.py quick     without the demo: the picture, the published tables, the times as they are kept
    python docs/make_readme.py sample    the package's own pool and scores, out of outputs/sample (params/sample.yaml)
    python docs/make_readme.py FOLDER    the label audit's figure, out of a folder of `karma audit-labels`
"""

import json
import re
import shutil
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import make_ladder
import make_picture
import pandas as pd

from karma import collect_results, load_experiment
from karma.errors import InputError
from karma.figures.labels import title_labels
from karma.files.reading import load_json
from karma.files.writing import atomic_path
from karma.results.audit import audit_paper
from karma.results.estimates import compute_difference, compute_mean
from karma.results.means import compute_means
from karma.results.published import load_published
from karma.results.study import Study
from karma.results.tables import TOTAL
from karma.study.experiment import Experiment
from karma.study.provenance import describe_device, list_unfinished
from karma.study.times import describe_times, save_times
from karma.vocabulary import BASELINE, KINSHIP_STRATEGIES, START, title_of

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- example: made by `make readme` -->", "<!-- end of example -->"
FIGURE = "docs/demo_labels.png"
LADDER = ("<!-- ladder: made by `make readme` -->", "<!-- end of ladder -->")
FOUND = ("<!-- found: made by `make readme` -->", "<!-- end of found -->")
TIMES, SAMPLE = ROOT / "karma" / "study" / "times.json", ROOT / "karma" / "data" / "sample"
RECORDED_BEGIN, RECORDED_END = "<!-- recorded: made by docs/make_readme.py FOLDER -->", "<!-- end of recorded -->"
RECORDED_FIGURE = "docs/recorded_labels.png"


def describe_run(experiment: Experiment) -> str:
    """Say when, where and from which commit a finished study was run, and how long it took."""
    run = describe_times(experiment)
    return (f"The demo of {date.fromisoformat(run['date']):%d %B %Y} on {run['device']}, float32, commit "
            f"{run['commit']}: {run['n_jobs']} jobs in {run['minutes']:.0f} minutes ({run['core_minutes']:.0f} "
            "core-minutes), set-up not counted.")  # fmt: skip


def _show(frame: pd.DataFrame) -> str:
    return frame.to_markdown(disable_numparse=True)


def _interval(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f}"


def _shares(value: float, low: float, high: float) -> list[str]:
    return ["none", "none"] if pd.isna(value) else [f"{value:.2f}", _interval(low, high)]


def build_origins(folder: Path) -> pd.DataFrame:
    """Return the origin models' S_pref beside what programs say of their responses."""
    models = pd.read_csv(folder / "labels" / "models.csv").set_index("model")
    s_pref = pd.read_csv(folder / "kinship" / "s_pref_intervals.csv").set_index("origin_model")
    rows = {
        name: [*_shares(*row[["s_pref", "low", "high"]]), *_shares(*models.loc[name, ["truth", "low", "high"]])]
        for name, row in s_pref.sort_values("s_pref", ascending=False).iterrows()
    }
    columns = ["S_pref", "95 %", "instructions followed", "95 % "]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("origin model")


def build_labels(folder: Path, source: str) -> pd.DataFrame:
    """Return how often each strategy's label is right."""
    table = pd.read_csv(folder / "labels" / "strategies.csv")
    rows = {
        title_labels(row.strategy, source): [
            f"{row.n_pairs}", f"{row.n_decided}", *_shares(row.label_accuracy, row.low, row.high),
            "none" if pd.isna(row.mean_s_pref_gap) else f"{row.mean_s_pref_gap:.2f}", f"{row.judge_calls}",
        ]
        for row in table.itertuples()
    }  # fmt: skip
    columns = ["pairs", "decided", "label right", "95 %", "mean gap of S_pref", "responses a judge read"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("strategy")


def build_policies(study: Study, source: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return what each training changed on the held-out prompts, and how many intervals leave out 0."""
    where = {"benchmark": "ifeval"}
    start = compute_mean(study, study.results.query("strategy == @START and benchmark == 'ifeval'"))
    rows, verdicts = {"untrained": [f"{start.value:.2f}", "", ""]}, {"better": 0, "worse": 0, "all": 0}
    for method in study.methods:
        for strategy in study.strategies:
            found = compute_difference(study, strategy, START, method=method, **where)
            if found is None:
                continue
            low, high = found.interval
            verdicts["all"] += 1
            verdicts["better"] += low > 0
            verdicts["worse"] += high < 0
            name = f"{title_of(method)} on {title_labels(strategy, source)}"
            change = f"{low:+.2f} to {high:+.2f}"
            rows[name] = [f"{start.value + found.value:.2f}", f"{found.value:+.2f}", change]
    columns = ["instructions followed", "change", "95 % (paired)"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("policy"), verdicts


def build_example(experiment: Experiment) -> str:
    """Return the example as Markdown.

    Raises:
        InputError: a job of the demo has not been run.
    """
    folder, study = experiment.outputs, collect_results(experiment)
    annotator = (study.costs["annotation"] or {}).get("annotator")
    source = experiment.settings.annotation.source
    run = describe_run(experiment)
    labels, (policies, verdicts) = build_labels(folder, source), build_policies(study, source)
    n_items = study.results.query("strategy == @START and benchmark == 'ifeval'")["n"].item()
    settings = experiment.settings
    judged = f" The weak judge is {annotator} itself." if annotator else ""
    parts = [
        run,
        "**The origin models.** What benchmarks say of a model, and what programs say of its responses in the pool: "
        "the share of their prompts' instructions that they follow.",
        _show(build_origins(folder)),
        f"**Are the labels right?** A pair is *decided* where one response follows more instructions than the other; "
        f"a right label has chosen that one.{judged}",
        _show(labels),
        f"![Share of right labels by strategy, with 95 % intervals, a line at one half]({Path(FIGURE).name})",
        f"**Did training work?** {n_items} instructions of held-out prompts, the same before and after: of "
        f"{verdicts['all']} trainings the interval of the change lies above 0 in {verdicts['better']} and below 0 in "
        f"{verdicts['worse']}; of the others these prompts cannot tell (one seed, whose noise is in no interval; "
        f"intervals not corrected for {verdicts['all']} looks).",
        _show(policies),
    ]
    assert settings.compute.dtype == "float32", "the example says float32"
    return "\n\n".join(parts)


def build_recorded(folder: Path) -> str:
    """Return what an audit of recorded judgments says, as Markdown.

    Args:
        folder: written by `karma audit-labels`.
    """
    books, every = load_json(folder / "accounting.json"), pd.read_csv(folder / "label_accuracy.csv").iloc[0]
    moved = pd.read_csv(folder / "sensitivity.csv").query("setting == 'normalised by' and strategy == 'all'")
    whole = moved.set_index("value")["label_accuracy"]["whole table"]
    intro = (
        f"Recorded judgments of {books['n_models']} models on {books['n_prompts']} prompts ({books['unit']}; of "
        f"{books['n_comparisons']:,} comparisons {books['decided']:,} are decided) against labels by S_pref from "
        f"{books['table']}. Over all pairs {every['label_accuracy']:.2f} of the labels are right "
        f"({_interval(every['low'], every['high'])}; {whole:.2f} where the whole table normalises). In sets of "
        f"{books['set_size']}, intervals clustered by prompt and by model, which so few models leave wide:"
    )
    return f"{intro}\n\n![Share of labels that recorded judgments confirm, by strategy]({RECORDED_FIGURE})"


def build_published() -> str:
    """Return what the paper's own tables say of its main claim, as Markdown."""
    study = load_published()
    means, audit = compute_means(study), audit_paper().set_index("claim")["recomputed"]
    shown = ", ".join(f"{title_of(name)} {means[TOTAL, name].value:.3f}" for name in (BASELINE, *KINSHIP_STRATEGIES))
    best = max(means[TOTAL, name].value for name in KINSHIP_STRATEGIES)
    verdict = "no kinship strategy is" if best < means[TOTAL, BASELINE].value else "a kinship strategy is"
    return (
        "**The published tables.** `karma report paper` computes the paper's results again. On the mean of all its "
        f"runs {verdict} above RLAIF ({shown}); run by run, K_score is {audit['K_score against RLAIF, run by run']}. "
        f"What SFT leaves is at chance: {audit['SFT lifts the policies above chance'].split(';')[0]}."
    )


def build_summary(experiment: Experiment) -> str:
    """Return what the demo found, in three sentences."""
    folder, study = experiment.outputs, collect_results(experiment)
    source = experiment.settings.annotation.source
    table = pd.read_csv(folder / "labels" / "strategies.csv").set_index("strategy")
    names = [name for name in (BASELINE, *KINSHIP_STRATEGIES, "delta", "random") if name in table.index]
    shown = [
        f"{title_labels(name, source)} {row.label_accuracy:.2f} ({_interval(row.low, row.high)})"
        for name, row in table.loc[names].iterrows()
    ]
    _, verdicts = build_policies(study, source)
    return (
        f"**The demo.** {describe_run(experiment)} Share of right labels where programs decide: {'; '.join(shown)}. "
        f"Of {verdicts['all']} trainings the interval of the change lies above 0 in {verdicts['better']} and below 0 "
        f"in {verdicts['worse']}; of the others these prompts cannot tell. [The whole of it](docs/demo.md)."
    )


def save_sample() -> None:
    """Copy the package's own pool and its models' scores out of the finished outputs/sample."""
    import pyarrow.parquet as pq

    outputs = load_experiment("params/sample.yaml").outputs
    SAMPLE.mkdir(exist_ok=True)
    rows = pq.read_table(outputs / "pool" / "pool.parquet").to_pylist()
    kept = [{"source": "karma_sample", "instruction": row["instruction"],
             "completions": [{"model": one["model"], "response": one["response"]} for one in row["completions"]]}
            for row in rows]  # fmt: skip
    with atomic_path(SAMPLE / "pool.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), "utf-8")
    for name in ("scores.csv", "scores.columns.yaml"):
        shutil.copy(outputs / "kinship" / name, SAMPLE / name)


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def insert_example(readme: str, example: str, begin: str = BEGIN, end: str = END) -> str:
    """Return the README with the example between its markers.

    Raises:
        InputError: a marker is missing.

    Example:
        >>> insert_example(f"a {BEGIN} old {END} b", "new").split()[-2:]
        ['-->', 'b']
    """
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(readme):
        raise InputError(f"README.md has no '{begin}' before '{end}': put both where the example is to stand")
    return pattern.sub(lambda _: f"{begin}\n\n{example}\n\n{end}", readme)


def main() -> None:
    """Write what the arguments ask for."""
    readme, page = ROOT / "README.md", ROOT / "docs" / "demo.md"
    asked = sys.argv[1] if sys.argv[1:] else ""
    if asked == "sample":
        save_sample()
        return
    if asked not in ("", "quick"):
        folder = Path(asked)
        shutil.copy(folder / "figures" / "label_accuracy.png", ROOT / RECORDED_FIGURE)
        _write(readme, insert_example(readme.read_text("utf-8"), build_recorded(folder), RECORDED_BEGIN, RECORDED_END))
        return
    text = readme.read_text("utf-8")
    found = [build_published()]
    if asked == "quick":
        found += re.findall(r"^\*\*The demo\.\*\*.*$", text, flags=re.M)  # as it was
    else:
        demo = load_experiment("params/demo.yaml")
        found.append(build_summary(demo))
        _write(page, insert_example(page.read_text("utf-8"), build_example(demo)))
        shutil.copy(demo.outputs / "labels" / "figures" / "label_accuracy.png", ROOT / FIGURE)
        for study in (demo, load_experiment("params/smoke.yaml")):
            if not list_unfinished(study):
                save_times(describe_times(study), TIMES)
    make_picture.main()
    today = datetime.now(UTC).date().isoformat()
    quick = make_ladder.time_quick_things()
    ladder = make_ladder.build_ladder(quick, load_json(TIMES), describe_device(), today)
    _write(readme, insert_example(insert_example(text, ladder, *LADDER), "\n\n".join(found), *FOUND))
    print("README.md: written; docs/demo.md:", "as it was" if asked else "that of outputs/demo")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
