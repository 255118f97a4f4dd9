"""The stages of a study: what each runs for, which settings it reads, which files it needs and makes.

This table is the only place that knows the graph. The sweep turns it into Snakemake rules, a notebook asks it where
its files lie and which notebook makes a missing one, and `karma notebook` checks parameters against it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from karma.errors import InputError
from karma.study.experiment import Experiment, View
from karma.study.sections import Pool, SelfPlay
from karma.study.settings import Settings
from karma.vocabulary import START, find_method, makes_policy, split_step

Params = dict[str, str]
PARAMETER_TYPES: dict[str, Callable[[str], object]] = {"seed": int, "round": int, "ratio": float}  # text else


@dataclass(frozen=True)
class Stage:
    """One kind of job; all that is particular to it is here, so that a new stage is one entry and one notebook.

    Attributes:
        name: the notebook's name, or the command's for stages without a notebook.
        per: the parameters that tell one job from another, in the order of the folders.
        folder: where its files lie below outputs/<experiment>/, with the parameters in braces.
        products: file names (or folders, with a slash) in that folder that later stages may need.
        reads: dotted settings the stage may read; nothing else reruns it.
        jobs: settings -> the parameters of each of its jobs.
        inputs: settings and parameters -> (stage name, parameters) of the jobs it waits for.
        models: settings and parameters -> names of the models it loads.
        module: the module of `karma` whose `run(job)` does the work, or what is left of it after the notebook.
        shares: the module of `karma` whose `answer_share(job, k, n)` answers a part of its prompts beside it; "": none.
        draws: whether its product is what people look at, so that figures and words are part of what it is made of.
    """

    name: str
    per: tuple[str, ...]
    folder: str
    products: tuple[str, ...]
    reads: tuple[str, ...]
    jobs: Callable[[Settings], Iterator[Params]]
    inputs: Callable[[Settings, Params], list[tuple[str, Params]]] = field(default=lambda s, p: [])
    models: Callable[[Settings, Params], list[str]] = field(default=lambda s, p: [])
    module: str = ""
    shares: str = ""
    draws: bool = False

    @property
    def has_notebook(self) -> bool:
        """Tell whether the stage is a numbered notebook; the others are commands (pool, cross_evaluation, ...)."""
        return self.name[:2].isdigit()


def _needs_annotations(settings: Settings) -> bool:
    return settings.annotation.source == "judge" and settings.reads_annotations


def _list_origins(s: Settings) -> Iterator[Params]:
    if s.strategies and s.scores.table == "measured":
        yield from ({"origin_model": name} for name in s.origin_models)


def _list_once(s: Settings) -> Iterator[Params]:
    if s.strategies:  # a study of self-play alone has no pool, no kinship, no runs and so no tables
        yield {}


def _list_runs(s: Settings) -> Iterator[Params]:
    for policy, strategy, method, seed in product(s.policies, s.strategies, s.trained_methods, s.seeds):
        if strategy in s.list_trained(method):
            yield {"policy": policy, "strategy": strategy, "method": method, "seed": str(seed)}


def _list_policy_runs(s: Settings) -> Iterator[Params]:
    yield from (run for run in _list_runs(s) if makes_policy(run["method"]))


def _list_reward_models(s: Settings) -> Iterator[Params]:
    yield from (run for run in _list_runs(s) if not makes_policy(run["method"]))


def _list_evaluations(s: Settings) -> Iterator[Params]:
    for policy in s.policies if s.strategies else ():
        yield _start(policy)
        yield from (run for run in _list_policy_runs(s) if run["policy"] == policy)


def _list_selections(s: Settings) -> Iterator[Params]:
    strategies = s.potential.strategies or s.strategies
    cells = product(s.policies, strategies, s.potential.metrics, s.potential.ratios)
    for policy, strategy, metric, ratio in cells if s.strategies else ():
        yield {"policy": policy, "strategy": strategy, "metric": metric, "ratio": str(float(ratio))}


def _list_selection_runs(s: Settings) -> Iterator[Params]:
    trainings = list(product(s.potential.methods, s.seeds))
    for selection in _list_selections(s) if s.potential.on_benchmarks else ():
        yield from ({**selection, "method": method, "seed": str(seed)} for method, seed in trainings)


def _list_rounds(s: Settings) -> Iterator[Params]:
    for policy, arm, number in product(s.policies, s.self_play.arms, range(s.self_play.rounds)):
        yield {"policy": policy, "arm": arm, "round": str(number + 1)}


def _start(policy: str) -> Params:
    return {"policy": policy, "strategy": START, "method": START, "seed": "0"}


def _pairs_inputs(s: Settings, p: Params) -> list[tuple[str, Params]]:
    annotated = [("annotation", Params())] if _needs_annotations(s) else []
    built = (p.get("strategy"), *s.pairs.match_rows, *s.pairs.equal_numbers)  # in one pass with the job's own
    scored = [("density_ratio", Params())] if "density_ratio" in built else []
    return [("pool", {}), ("02_kinship_analysis", {}), *annotated, *scored]


def _evaluation_inputs(s: Settings, p: Params) -> list[tuple[str, Params]]:
    waits = [("04_alignment_training", p), ("05_policy_evaluation", _start(p["policy"]))]
    return [] if p["strategy"] == START else waits


def _list_crossed(s: Settings) -> Iterator[Params]:
    yield from _list_policy_runs(s) if s.benchmarks.held_out_pairs else ()


def _cross_inputs(s: Settings, p: Params) -> list[tuple[str, Params]]:
    return [("04_alignment_training", p), *(("03_binarization", {"strategy": name}) for name in s.strategies)]


def _reward_inputs(s: Settings, p: Params) -> list[tuple[str, Params]]:
    return [("pool", {}), *_cross_inputs(s, p)]


def _selection_inputs(s: Settings, p: Params) -> list[tuple[str, Params]]:
    selection = {k: p[k] for k in STAGES["07_alignment_potential"].per}
    return [("07_alignment_potential", selection), ("05_policy_evaluation", _start(p["policy"]))]


def _list_judged(s: Settings) -> Iterator[Params]:
    yield from ({"policy": name} for name in s.policies if s.strategies and s.win_rates.judge)


def _judged_inputs(s: Settings, p: Params) -> list[tuple[str, Params]]:
    runs = [("04_alignment_training", run) for run in _list_policy_runs(s) if run["policy"] == p["policy"]]
    return [*runs, *(("03_binarization", {"strategy": name}) for name in s.strategies)]


def _results_inputs(s: Settings, p: Params) -> list[tuple[str, Params]]:
    names = ("02_kinship_analysis", "03_binarization", "04_alignment_training", "05_policy_evaluation",
             "07_alignment_potential", "09_label_audit", "cross_evaluation", "reward_evaluation",
             "selection_evaluation", "pairwise_evaluation")  # fmt: skip
    last = [("08_self_play", p) for p in _list_rounds(s) if p["round"] == str(s.self_play.rounds)]
    return [(name, params) for name in names for params in STAGES[name].jobs(s)] + last


def _audit_inputs(s: Settings, p: Params) -> list[tuple[str, Params]]:
    return [*_pairs_inputs(s, p), *(("03_binarization", {"strategy": name}) for name in s.strategies)]


def _self_play_inputs(s: Settings, p: Params) -> list[tuple[str, Params]]:
    return [("08_self_play", {**p, "round": str(int(p["round"]) - 1)})] if p["round"] != "1" else []


def _training_inputs(s: Settings, p: Params) -> list[tuple[str, Params]]:
    """A training waits for its pairs; a recipe's step for the one before besides."""
    step, pairs = split_step(p["method"]), ("03_binarization", {"strategy": p["strategy"]})
    if not step or step[1] == 1:
        return [pairs]
    before = s.recipes[step[0]][step[1] - 2]
    return [pairs, ("04_alignment_training", {**p, "method": f"{step[0]}-{step[1] - 1}-{before}"})]


def _training_models(s: Settings, p: Params) -> list[str]:
    rater = s.find_reward_model(find_method(p["method"]))
    return [p["policy"], *([rater] if rater else [])]


def _self_play_models(s: Settings, p: Params) -> list[str]:
    return [p["policy"], *([s.self_play.scorer_model] if s.self_play.scorer_model else [])]


_BENCHMARKS = ("folder", "protocol", "limit", "limits", "batch_size", "choice_tokens", "descriptive_tokens")
_RUN = ("policy", "strategy", "method", "seed")
_POTENTIAL = ("methods", "explicit", "combine", "implicit", "weight", "batch_tokens", "seed")
_SELF_PLAY = tuple(
    f"self_play.{k}" for k in SelfPlay.model_fields if k not in ("rounds", "arms")
)  # one more reruns none
_LEFT_OUT = ("decontaminate", "near_duplicates")  # of the pool, by 03: another choice asks no model again
_POOL = tuple(f"pool.{k}" for k in Pool.model_fields if k not in _LEFT_OUT)
_EVALUATION = ("compute", *(f"benchmarks.{k}" for k in _BENCHMARKS))
_POLICY = ("benchmarks.policy", "benchmarks.policy_limits")
_KINSHIP_FILES = ("scores.csv", "scores.columns.yaml", "scores_normalized.csv", "s_pref.csv", "strategies.json")

STAGES = {
    stage.name: stage
    for stage in (
        Stage("01_origin_evaluation", ("origin_model",), "origins/{origin_model}", ("scores.json", "answers.parquet"),
              (*_EVALUATION, "benchmarks.origin"), _list_origins, models=lambda s, p: [p["origin_model"]],
              shares="evaluation.shares"),
        Stage("02_kinship_analysis", (), "kinship", _KINSHIP_FILES, ("scores", "kinship", "origin_models"), _list_once,
              lambda s, p: [("01_origin_evaluation", params) for params in _list_origins(s)]),
        Stage("pool", (), "pool", ("pool.parquet", "accounting.json"), (*_POOL, "origin_models", "compute"), _list_once,
              models=lambda s, p: s.origin_models if s.pool.source == "generate" else [], module="pool.generate",
              shares="pool.generate"),
        Stage("annotation", (), "pool", ("annotations.parquet", "annotation_cost.json"), ("annotation", "compute"),
              lambda s: _list_once(s) if _needs_annotations(s) else iter(()), lambda s, p: [("pool", {})],
              lambda s, p: [s.annotation.judge or "none"], module="pool.rate", shares="pool.rate"),
        Stage("density_ratio", (), "pool", ("densities.parquet", "density_cost.json"),
              ("density_ratio", "training.max_length", "compute"),
              lambda s: _list_once(s) if "density_ratio" in s.strategies else iter(()), lambda s, p: [("pool", {})],
              lambda s, p: [s.density_ratio.strong or "none", s.density_ratio.weak or "none"],
              module="labels.density_ratio"),
        Stage("03_binarization", ("strategy",), "pairs/{strategy}", ("pairs.parquet", "accounting.json", "README.md"),
              ("pairs", "kinship.tau", "annotation.source", "annotation.field", "affinity", "pool.instructions",
               "pool.excluded_origin_models", *(f"pool.{k}" for k in _LEFT_OUT), "benchmarks.folder"),
              lambda s: ({"strategy": name} for name in s.strategies), _pairs_inputs),
        Stage("04_alignment_training", _RUN, "runs/{policy}/{strategy}/{method}/seed{seed}",
              ("training.json", "model/"), ("training", "pairs.held_out", "pairs.seed", "pool.instructions", "compute"),
              _list_runs, _training_inputs, _training_models),
        Stage("05_policy_evaluation", _RUN, "runs/{policy}/{strategy}/{method}/seed{seed}",
              ("scores.json", "answers.parquet"), (*_EVALUATION, *_POLICY), _list_evaluations,
              _evaluation_inputs, lambda s, p: [p["policy"]], shares="evaluation.shares"),
        Stage("cross_evaluation", _RUN, "runs/{policy}/{strategy}/{method}/seed{seed}",
              ("held_out_responses.parquet",), ("strategies", "pairs.held_out", "pairs.seed", "training.max_length",
              "compute"), _list_crossed, _cross_inputs, lambda s, p: [p["policy"]],
              module="training.cross"),
        Stage("reward_evaluation", _RUN, "runs/{policy}/{strategy}/{method}/seed{seed}",
              ("reward_scores.json", "rewards.parquet"), ("strategies", "pairs.held_out", "pairs.seed",
              "pool.instructions", "pool.excluded_origin_models", "compute"), _list_reward_models, _reward_inputs,
              lambda s, p: [p["policy"]], module="labels.rewards"),
        Stage("pairwise_evaluation", ("policy",), "win_rates/{policy}", ("win_rates.csv", "verdicts.parquet"),
              ("win_rates", "pairs.held_out", "pairs.seed", "compute"), _list_judged, _judged_inputs,
              lambda s, p: [p["policy"], s.win_rates.judge or "none"], module="labels.policies"),
        Stage("07_alignment_potential", ("policy", "strategy", "metric", "ratio"),
              "selections/{policy}/{strategy}+{metric}-{ratio}",
              ("pairs.parquet", "accounting.json", "README.md", "selection.json"),
              (*(f"potential.{k}" for k in _POTENTIAL), "seeds", "training", "pairs.held_out", "pairs.seed", "compute",
               "annotation.source", "annotation.field", "pool.instructions"), _list_selections,
              lambda s, p: [("03_binarization", {"strategy": p["strategy"]})], lambda s, p: [p["policy"]]),
        Stage("selection_evaluation", ("policy", "strategy", "metric", "ratio", "method", "seed"),
              "selections/{policy}/{strategy}+{metric}-{ratio}/{method}/seed{seed}",
              ("scores.json", "answers.parquet"), (*_EVALUATION, *_POLICY), _list_selection_runs,
              _selection_inputs, lambda s, p: [p["policy"]], module="potential.evaluation",
              shares="evaluation.shares"),
        Stage("06_results", (), ".", ("tables/", "figures/", "report.html"),
              ("name", "policies", "strategies", "methods", "recipes", "trained_on", "seeds", "benchmarks", "scores",
               "kinship", "pool", "annotation", "potential", "self_play.rounds", "self_play.arms", "labels",
               "win_rates"), _list_once,
              _results_inputs, module="results.page", draws=True),
        Stage("08_self_play", ("policy", "arm", "round"), "self_play/{policy}/{arm}/round{round}",
              ("self_play.json", "pairs.parquet", "accounting.json", "training.json", "model/"),
              (*_SELF_PLAY, "training", "compute"), _list_rounds, _self_play_inputs, _self_play_models),
        Stage("09_label_audit", (), "labels", ("strategies.csv", "responses.csv", "models.csv"),
              ("labels", "strategies", "pool.instructions", "pool.excluded_origin_models", "pool.seed",
               "annotation.source"), lambda s: _list_once(s) if s.labels.audit else iter(()), _audit_inputs),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One stage with its parameters, in one experiment."""

    experiment: Experiment
    stage: Stage
    params: Params

    @property
    def label(self) -> str:
        """Name the job for people and for file names: stage, then the parameters."""
        run = START if self.params.get("strategy") == START else None
        values = [self.params["policy"], run] if run else [self.params[k] for k in self.stage.per]
        return ".".join(
            [
                self.stage.name,
                *(f"{k}{v}" if k in ("seed", "round") else v for k, v in zip(self.stage.per, values, strict=False)),
            ]
        )

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        if self.params.get("strategy") == START:
            return self.experiment.outputs / "runs" / self.params["policy"] / START
        return self.experiment.outputs / self.stage.folder.format(**self.params)

    @property
    def executed_notebook(self) -> Path:
        """Where papermill writes the executed notebook."""
        return self.experiment.outputs / "notebooks" / f"{self.label}.ipynb"

    @property
    def products(self) -> list[Path]:
        """The files (folders end without their slash) that later stages may need."""
        return [self.folder / name.rstrip("/") for name in self.stage.products]

    @property
    def inputs(self) -> list["Job"]:
        """The jobs it waits for."""
        needed = self.stage.inputs(self.experiment.settings, self.params)
        return [Job(self.experiment, STAGES[name], params) for name, params in needed]

    @property
    def settings(self) -> View:
        """The settings this job may read."""
        return self.experiment.select(self.stage.reads, self.stage.name)

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The models this job loads, each with its father where it is a perturbed copy."""
        s = self.experiment.settings
        names = self.stage.models(s, self.params)
        fathers = [father for name in names if (father := s.models[name].perturbed)]
        return {name: s.models[name].model_dump(mode="json") for name in dict.fromkeys([*names, *fathers])}

    def check_inputs(self) -> None:
        """Raise an InputError that names the notebook to run first, where a needed file is missing."""
        for job in self.inputs:
            for path in job.products:
                if not path.exists():
                    what = f"notebooks/{job.stage.name}.ipynb" if job.stage.has_notebook else f"karma {job.stage.name}"
                    params = "".join(f" {k}={v}" for k, v in job.params.items())
                    root = self.experiment.root
                    raise InputError(
                        f"{os.path.relpath(path, root)} is missing: run {what}{params} first, "
                        f"or `karma run {os.path.relpath(self.experiment.path, root)}`"
                    )


def find_job(experiment: Experiment, stage_name: str, params: Mapping[str, object]) -> Job:
    """Return the job with these parameters, or raise an InputError with what is valid."""
    if stage_name not in STAGES:
        raise InputError(f"no stage '{stage_name}'; there are {', '.join(STAGES)}")
    stage, given = STAGES[stage_name], {k: str(v) for k, v in params.items()}
    if given.get("strategy") == START and stage.name == "05_policy_evaluation":
        given |= {"method": START, "seed": "0"}
    jobs = list(stage.jobs(experiment.settings))
    for key in stage.per:
        valid = list(dict.fromkeys(job[key] for job in jobs))
        if given.get(key) not in valid:
            raise InputError(
                f"{stage_name}: {key}={given.get(key, 'nothing')} is not in {experiment.path.name}; "
                f"choose from {', '.join(valid) or 'nothing (no job of this stage there)'}"
            )
    unknown = sorted(set(given) - set(stage.per))
    if unknown:
        raise InputError(f"{stage_name} takes no parameter '{unknown[0]}'; it takes {', '.join(stage.per) or 'none'}")
    return Job(experiment, stage, {k: given[k] for k in stage.per})


def list_jobs(experiment: Experiment) -> list[Job]:
    """Return every job of an experiment, in the order of the stages."""
    return [Job(experiment, s, p) for s in STAGES.values() for p in s.jobs(experiment.settings)]
