"""What runs or shows a study: run, status, notebook, the commands of stages, models."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from karma.commands.next_step import tell_next
from karma.commands.options import Experiment, Parameters
from karma.errors import InputError


def run(
    experiment: Experiment,
    cores: Annotated[int | None, typer.Option(min=1, max=4096, help="CPU cores to use (default: all).")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done, how long it takes, what is downloaded; write nothing."),
    ] = False,
    until: Annotated[str | None, typer.Option(help="Stop after this stage, e.g. 03_binarization.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Run the jobs on a cluster: slurm, or another of Snakemake's executors.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="A folder with Snakemake's config.yaml for your cluster (docs/scale.md).")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Jobs submitted at a time (default: 100).")] = None,
) -> None:
    """Run a whole study: every stage, policy, strategy and method; the same command resumes or updates it."""
    from karma.commands.named import check_named
    from karma.commands.show import show_plan, tell_after
    from karma.study.cluster import check_resources, find_remote
    from karma.study.experiment import load_experiment
    from karma.study.stages import STAGES

    if until and until not in STAGES:
        raise InputError(f"--until {until}: no such stage; there are {', '.join(STAGES)}")
    study = load_experiment(experiment)
    check_resources(study.settings.compute.resources)
    remote = find_remote(executor, profile, jobs)
    check_named(study, installed=not dry_run)
    if dry_run:
        given = {"--cores": cores, "--until": until, "--executor": executor, "--profile": profile, "--jobs": jobs}
        options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
        show_plan(study, ["karma", "run", experiment, *options], until, remote is not None, cores)
        return
    from karma.study.sweep import run_sweep

    run_sweep(study, cores, until, remote)
    typer.echo(tell_after(study))


def status(experiment: Experiment) -> None:
    """Show how far a study is: of the sweep at work now, or of what lies in its folder."""
    from karma.commands.show import show_status
    from karma.study.experiment import load_experiment

    show_status(load_experiment(experiment))


def notebook(
    name: Annotated[str, typer.Argument(help="The notebook, e.g. 03_binarization.")],
    experiment: Experiment,
    p: Parameters = None,
) -> None:
    """Run one notebook headless with papermill: `karma notebook 03_binarization params/demo.yaml -p strategy=k_sim`."""
    _run_stage(name, experiment, p)


def pool(experiment: Experiment) -> None:
    """Write a study's pool: prompts with responses, generated or read from where its settings say."""
    _run_stage("pool", experiment, None)


def annotation(experiment: Experiment) -> None:
    """Rate a study's pool with its judge model, for the RLAIF baseline."""
    _run_stage("annotation", experiment, None)


def density_ratio(experiment: Experiment) -> None:
    """Score a study's pool by a strong and a weak model's log-probabilities, for the strategy density_ratio."""
    _run_stage("density_ratio", experiment, None)


def cross_evaluation(experiment: Experiment, p: Parameters = None) -> None:
    """Measure a policy on every held-out pair: `-p policy=P -p strategy=k_sim -p method=dpo -p seed=0`."""
    _run_stage("cross_evaluation", experiment, p)


def reward_evaluation(experiment: Experiment, p: Parameters = None) -> None:
    """Measure a reward model on labels, truth and length: `-p policy=P -p strategy=S -p method=reward_model -p seed=0`.

    It rates the pool's responses to the held-out prompts; a policy is measured by 05.
    """
    _run_stage("reward_evaluation", experiment, p)


def selection_evaluation(experiment: Experiment, p: Parameters = None) -> None:
    """Ask a policy trained on a selection the benchmarks.

    `-p policy=P -p strategy=k_sim -p metric=m_ap -p ratio=0.4 -p method=dpo -p seed=0`.
    """
    _run_stage("selection_evaluation", experiment, p)


def pairwise_evaluation(experiment: Experiment, p: Parameters = None) -> None:
    """Set a policy's trainings against rlaif's and the untrained policy, before a judge: `-p policy=P`."""
    _run_stage("pairwise_evaluation", experiment, p)


def shard(
    stage: Annotated[str, typer.Argument(help="The stage to help, e.g. 01_origin_evaluation, pool.")],
    experiment: Experiment,
    shard: Annotated[str, typer.Option(help="k/N: which of N shares of the prompts is answered first, k from 0.")],
    p: Parameters = None,
) -> None:
    """Answer a share of a stage's prompts beside its job: `karma shard pool params/paper.yaml --shard 1/4`."""
    from karma.study.shares import answer_share

    job = answer_share(stage, experiment, _read_params(p), shard)
    typer.echo(f"{job.label}: share {shard} done; its answers are in {job.experiment.outputs / 'answers'}")
    typer.echo(tell_next("karma", "status", experiment))


def models(experiment: Experiment) -> None:
    """List a study's models: where each comes from, what it is for, and whether it is here."""
    from rich.console import Console
    from rich.table import Table

    from karma.commands.named import check_named
    from karma.models.describe import describe_model
    from karma.study.experiment import load_experiment

    study = load_experiment(experiment)
    check_named(study)
    settings = study.settings
    specs = {name: spec.model_dump(mode="json") for name, spec in settings.models.items()}
    table = Table("model", "role", "comes from", "is here")
    for name in specs:
        roles = {"origin": name in settings.origin_models, "policy": name in settings.policies,
                 "judge": name in (settings.annotation.judge, settings.win_rates.judge),
                 "strong": name == settings.density_ratio.strong,
                 "weak": name == settings.density_ratio.weak}  # fmt: skip
        table.add_row(name, ", ".join(r for r, yes in roles.items() if yes) or "-", *describe_model(specs, name))
    Console().print(table)
    typer.echo(tell_next("karma", "run", experiment, "--dry-run", why="what would be done, and how long it takes"))


def _run_stage(name: str, experiment: str, assignments: list[str] | None) -> None:
    from karma.study.execute import run_stage

    command = " ".join(["karma", *sys.argv[1:]])
    job = run_stage(name.removesuffix(".ipynb"), experiment, _read_params(assignments), command)
    typer.echo(f"{job.label}: done; written to {job.folder}: {', '.join(job.stage.products)}")
    if "KARMA_SWEEP" not in os.environ:
        typer.echo(tell_next("karma", "run", experiment, "--dry-run", why="what of the study is still to do"))


def _read_params(assignments: list[str] | None) -> dict[str, str]:
    params = {}
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"-p {assignment}: write it as NAME=VALUE")
        params[key] = value
    return params
