"""A study's results in one place: every score, training and cost in its folders, and a name for each gap.

`collect_results` reads a measured study, finished or not; `load_published` gives the paper's own numbers the same
shape, so that tables, figures and claims come from the same code for both. Decision: a missing file is a
row of `Study.gaps` with the command that makes it, never a zero and never an error; a file that is there
but cannot be trusted (a value outside [0, 1], a benchmark without n) is an error. Limit: nothing here
knows whether a run's settings are still current; `karma status` does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow.parquet as pq

from karma.errors import InputError
from karma.files.reading import load_json, load_object
from karma.scores.read import load_score_table
from karma.scores.table import ScoreTable, describe_benchmarks, load_benchmarks
from karma.study.benchmark_settings import MEASURED, PACKAGED_ITEMS, name_benchmark
from karma.study.experiment import Experiment
from karma.study.settings import Settings
from karma.study.stages import STAGES, Job
from karma.vocabulary import START, makes_policy, order_benchmarks, title_of, title_strategy

RUN_KEYS = ["policy", "strategy", "method", "seed"]
RESULT_COLUMNS = [*RUN_KEYS, "benchmark", "value", "n", "standard_error", "chance", "unextracted", "folder"]
COST_COLUMNS = ["n_answers", "prompt_tokens", "new_tokens", "seconds", "device"]  # of the whole evaluation


@dataclass(frozen=True, eq=False)
class Study:
    """What a study has measured so far.

    Attributes:
        name: the experiment's name, or "published".
        policies, strategies, methods, seeds, benchmarks: what it is made of, in the settings' order; strategies that
            no method trains on are in `pairs` alone, and methods are those that make a policy.
        results: one row a score: RESULT_COLUMNS; value in [0, 1], n items; `start`: the untrained policy.
        trainings: one row a finished training: RUN_KEYS and training.json's fields (held_out_* flattened).
        origins: one row a score of an origin model, with that evaluation's tokens and seconds.
        scores: the score table behind kinship (kinship/scores.csv, n from the origins), or None.
        pairs: one row a strategy: its accounting.json.
        costs: `annotation`: annotation_cost.json, or None; where pair sets were equal, all `results` and `trainings`.
        gaps: what is missing: `what`, `file`, `made_by`.
        folder: the study's outputs, or None for the published one.
        untrained: (strategy, method) cells that the experiment leaves out (`trained_on`).
        titles: what this study calls a strategy or a benchmark whose usual title would mislead: a judge of its
            own is a weak one, and prompts of the kit's own are not IFEval's.
        distance: between origin models, as the settings' kinship.distance.
        same: strategies whose pairs another one has -> that one, which stands for both (`karma.results.equal_sets`).
        described: benchmark -> title, capability, answer_form, chance (as declared): the kit's, then the study's tasks.
    """

    name: str
    policies: tuple[str, ...]
    strategies: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    benchmarks: tuple[str, ...]
    results: pd.DataFrame
    trainings: pd.DataFrame
    origins: pd.DataFrame
    scores: ScoreTable | None
    pairs: pd.DataFrame
    costs: dict[str, Any]
    gaps: pd.DataFrame
    folder: Path | None = None
    untrained: frozenset[tuple[str, str]] = frozenset()
    titles: Mapping[str, str] = field(default_factory=dict)
    distance: str = "rmsd"
    same: Mapping[str, str] = field(default_factory=dict)
    described: pd.DataFrame = field(default_factory=load_benchmarks)

    def title(self, name: str) -> str:
        """Return what a strategy, or "start", is called in this study."""
        return self.titles.get(name) or title_of(name)

    def title_benchmarks(self, table: Literal["table2", "table4"]) -> dict[str, str]:
        """Return the policies' benchmarks in the order of one of the paper's tables, with their titles."""
        return self.replace_titles(order_benchmarks(self.benchmarks, table))

    def replace_titles(self, titles: Mapping[str, str]) -> dict[str, str]:
        """Return titles by name with this study's own where it has some."""
        return {name: self.titles.get(name, title) for name, title in titles.items()}

    @property
    def common_methods(self) -> tuple[str, ...]:
        """The methods that every strategy is trained by: only over these are means of strategies comparable."""
        return tuple(m for m in self.methods if not any((s, m) in self.untrained for s in self.strategies))

    @property
    def is_published(self) -> bool:
        """Tell the paper's own numbers from a measured study."""
        return self.folder is None

    @property
    def compared_results(self) -> pd.DataFrame:
        """The rows of `results` by the methods that every strategy is trained by, and of the untrained policy."""
        return self.results[self.results["method"].isin([START, *self.common_methods])]

    @property
    def source(self) -> str:
        """Say whose numbers these are, for titles."""
        return "The paper's numbers" if self.is_published else f"Study {self.name}"

    @cached_property
    def items(self) -> dict[str, tuple[pd.DataFrame, pd.Series]]:
        """Answers by benchmark, where files exist: (correct, items x run folders; units of each item)."""
        return dict(_load_items(self))


def collect_results(source: Job | Experiment) -> Study:
    """Read everything a study's folders hold; what is missing becomes a row of `gaps`.

    Args:
        source: an experiment, or its 06 job.

    Returns:
        The study.

    Raises:
        InputError: a file holds something impossible (the message names file, value and remedy).

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> study = collect_results(load_experiment("params/paper.yaml"))
        >>> study.policies[0], len(study.results) + len(study.gaps) > 0
        ('llama-3.2-3b', True)
    """
    experiment = source.experiment if isinstance(source, Job) else source
    s, gaps = experiment.settings, list[dict[str, str]]()
    methods = tuple(filter(makes_policy, s.trained_methods))  # what reward models say is in `karma.results.rewards`
    results = [row for job in _jobs(experiment, "05_policy_evaluation") for row in _load_scores(job, gaps)]
    trainings = [row for job in _jobs(experiment, "04_alignment_training") for row in _load_training(job, gaps)]
    origins = [row for job in _jobs(experiment, "01_origin_evaluation") for row in _load_scores(job, gaps)]
    pairs = [row for job in _jobs(experiment, "03_binarization") for row in _load_accounting(job, gaps)]
    for name in ("pool", "02_kinship_analysis"):
        gaps += [_gap(job, path) for job in _jobs(experiment, name) for path in job.products if not path.exists()]
    for job in _jobs(experiment, "07_alignment_potential"):
        gaps += [_gap(job, path) for path in job.products[-1:] if not path.exists()]
    trainings = [row for row in trainings if makes_policy(row["method"])]
    measured = ("cross_evaluation", "reward_evaluation", "pairwise_evaluation")
    for job in (job for name in measured for job in _jobs(experiment, name)):
        gaps += [_gap(job, path) for path in job.products if not path.exists()]
    for job in _jobs(experiment, "selection_evaluation"):
        scores = list(_load_scores(job, gaps))
        gaps += [_gap(job, path) for path in job.products[1:] if scores and not path.exists()]
    cost = [_load_cost(job, gaps) for job in _jobs(experiment, "annotation")]
    table = experiment.outputs / "kinship" / "scores.csv"
    cells = {(strategy, method) for method in methods for strategy in s.list_trained(method)}
    trained = tuple(name for name in s.strategies if any((name, method) in cells for method in methods))
    return Study(
        name=s.name, policies=tuple(s.policies), strategies=trained, methods=methods,
        seeds=tuple(s.seeds), benchmarks=tuple(map(name_benchmark, s.benchmarks.policy)),
        results=pd.DataFrame(results, columns=RESULT_COLUMNS + COST_COLUMNS),
        trainings=pd.DataFrame(trainings, columns=None if trainings else RUN_KEYS),
        origins=pd.DataFrame(origins), scores=_load_origin_table(table, origins), pairs=pd.DataFrame(pairs),
        costs={"annotation": cost[0] if cost else None},
        gaps=pd.DataFrame(gaps, columns=["what", "file", "made_by"]), folder=experiment.outputs,
        untrained=frozenset(product(trained, methods)) - cells, titles=find_titles(s),
        distance=s.kinship.distance, described=_describe_tasks(experiment),
    )  # fmt: skip


def find_titles(settings: Settings) -> dict[str, str]:
    """Return what a study calls strategies and benchmarks whose usual title would mislead, by name (`Study.titles`)."""
    own = {name: title_strategy(name, settings.annotation.source) for name in settings.strategies}
    titles = {name: title for name, title in own.items() if title != title_of(name)}
    titles |= {name: task.title or task.task for name, task in settings.benchmarks.tasks.items()}
    return titles | ({"ifeval": "Held-out prompts"} if settings.benchmarks.folder == PACKAGED_ITEMS else {})


def _describe_tasks(experiment: Experiment) -> pd.DataFrame:
    """Return what is known of the kit's benchmarks and the study's tasks; how these are answered is in their scores."""
    tasks = experiment.settings.benchmarks.tasks
    forms: dict[str, str] = {}
    for job in (job for name in ("01_origin_evaluation", "05_policy_evaluation") for job in _jobs(experiment, name)):
        if set(tasks) - set(forms) and (job.folder / "scores.json").is_file():
            scores = load_object(job.folder / "scores.json").get("benchmarks", {})
            forms |= {name: scores[name]["task"]["answer_form"] for name in tasks if "task" in scores.get(name, {})}
    return describe_benchmarks({
        name: {"title": task.title or task.task, "capability": task.capability,
               "answer_form": forms.get(name, "not asked yet"),
               "chance": None if task.chance == MEASURED else task.chance}
        for name, task in tasks.items()
    })  # fmt: skip


def _jobs(experiment: Experiment, stage: str) -> Iterator[Job]:
    return (Job(experiment, STAGES[stage], params) for params in STAGES[stage].jobs(experiment.settings))


def _gap(job: Job, path: Path, what: str = "") -> dict[str, str]:
    params = "".join(f" -p {k}={v}" for k, v in job.params.items())
    command = f"karma notebook {job.stage.name}" if job.stage.has_notebook else f"karma {job.stage.name}"
    file = path.relative_to(job.experiment.outputs).as_posix()
    return {
        "what": what or job.label,
        "file": file,
        "made_by": f"{command} {job.experiment.path.name}{params}",
    }


def _key(job: Job) -> dict[str, Any]:
    return {k: int(v) if k == "seed" else v for k, v in job.params.items()}


def _load_scores(job: Job, gaps: list) -> Iterator[dict[str, Any]]:
    path = job.folder / "scores.json"
    if not path.is_file():
        gaps.append(_gap(job, path))
        return
    content = load_json(path)
    benchmarks = job.experiment.settings.benchmarks
    asked = map(name_benchmark, benchmarks.origin if "origin_model" in job.params else benchmarks.policy)
    answers = job.folder / "answers.parquet"
    cost = {k: content.get(k) for k in COST_COLUMNS[1:]}
    cost["n_answers"] = pq.read_metadata(answers).num_rows if answers.is_file() else None
    for name in asked:
        score = content.get("benchmarks", {}).get(name)
        if score is None:
            gaps.append(_gap(job, path, f"{name} of {job.label}"))
            continue
        _check_score(path, name, score)
        yield {
            **_key(job), "benchmark": name, **{k: score.get(k) for k in RESULT_COLUMNS[5:10]},
            "folder": job.folder.relative_to(job.experiment.outputs).as_posix(), **cost,
        }  # fmt: skip


def _check_score(path: Path, name: str, score: dict) -> None:
    value, n = score.get("value"), score.get("n")
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{path}: {name} is {value!r}, expected a share in [0, 1]: evaluate that run again")
    if not isinstance(n, int) or n < 1:
        raise InputError(f"{path}: {name} has n {n!r}, expected a count of items: evaluate that run again")


def _load_training(job: Job, gaps: list) -> Iterator[dict[str, Any]]:
    path = job.folder / "training.json"
    if not path.is_file():
        gaps.append(_gap(job, path))
        return
    content = load_json(path)
    held_out = {f"held_out_{k}": v for k, v in (content.pop("held_out", None) or {}).items()}
    folder = job.folder.relative_to(job.experiment.outputs).as_posix()
    nested = ("history", "settings")
    yield {**{k: v for k, v in content.items() if k not in nested}, **held_out, **_key(job), "folder": folder}


def _load_accounting(job: Job, gaps: list) -> Iterator[dict[str, Any]]:
    path = job.folder / "accounting.json"
    if path.is_file():
        yield {**load_json(path), **job.params}
    else:
        gaps.append(_gap(job, path))


def _load_cost(job: Job, gaps: list) -> dict[str, Any] | None:
    path = job.folder / "annotation_cost.json"
    if path.is_file():
        return load_json(path)
    gaps.append(_gap(job, path))
    return None


def _load_origin_table(path: Path, origins: list[dict[str, Any]]) -> ScoreTable | None:
    if not path.is_file():
        return None
    table = load_score_table(path)
    n_items = {row["benchmark"]: row["n"] for row in origins}
    if set(table.scores) <= set(n_items):
        return replace(table, n_items={b: n_items[b] for b in table.scores}, n_items_source="measured")
    return table


def _load_items(study: Study) -> Iterator[tuple[str, tuple[pd.DataFrame, pd.Series]]]:
    folders = [] if study.folder is None else list(dict.fromkeys(study.results["folder"]))
    frames = []
    for folder in folders:
        path = study.folder / folder / "answers.parquet"
        if path.is_file():
            frames.append(pd.read_parquet(path, columns=["benchmark", "item_id", "correct", "n"]).assign(folder=folder))
    for benchmark, rows in pd.concat(frames).groupby("benchmark") if frames else ():
        correct = rows.pivot(index="item_id", columns="folder", values="correct")
        yield str(benchmark), (correct, rows.groupby("item_id")["n"].first().reindex(correct.index))


def find_prompt(study: Study, benchmark: str = "arc_easy") -> tuple[str, str | None, str]:
    """Return (prompt, answer, source) of an answer on disk, of `benchmark` if there, or a named gap."""
    root = study.folder or Path()
    for path in [] if study.is_published else sorted(root.glob("**/answers.parquet")):
        rows = pd.read_parquet(path, columns=["benchmark", "prompt", "answer"])
        rows = pd.concat([rows[rows["benchmark"] == benchmark], rows])
        if len(rows):
            first = rows.iloc[0]
            source = f"{first['benchmark']}, {path.parent.relative_to(root).as_posix()}"
            return str(first["prompt"]), str(first["answer"]), source
    return "no answer is on disk yet: run 01_origin_evaluation or 05_policy_evaluation first", None, ""
