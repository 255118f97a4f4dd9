"""The `karma` command: one subcommand a step, heavy imports only inside the step that needs them.

Errors are one line with the remedy (the traceback with --debug); exit code 1 for a failed run, 2 for bad input.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from karma.errors import InputError, KarmaError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)
Out = Annotated[Path, typer.Option("--out", help="Folder to write; made if absent.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Preference data without annotators, from the kinship of the models that wrote it (KARMA, arXiv 2502.18744).

    Start with `karma run params/demo.yaml --dry-run`, or on data of your own with `karma binarize --help`.
    """


Experiment = Annotated[str, typer.Argument(help="The experiment's file, e.g. params/demo.yaml.")]


@app.command()
def run(
    experiment: Experiment,
    cores: Annotated[int | None, typer.Option(help="CPU cores to use (default: all).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the jobs, why each runs and what it needs.")] = False,
    until: Annotated[str | None, typer.Option(help="Stop after this stage, e.g. 03_binarization.")] = None,
) -> None:
    """Run a whole study: every stage, policy, strategy and method; the same command resumes or updates it."""
    from karma.study import sweep as engine
    from karma.study.experiment import load_experiment
    from karma.study.stages import STAGES

    if until and until not in STAGES:
        raise InputError(f"--until {until}: no such stage; there are {', '.join(STAGES)}")
    study = load_experiment(experiment)
    if dry_run:
        engine.show_plan(study, until)
    else:
        engine.run_sweep(study, cores, until)


@app.command()
def status(experiment: Experiment) -> None:
    """Show how far a study is: of the sweep at work now, or of what lies in its folder."""
    from karma.study import sweep as engine
    from karma.study.experiment import load_experiment

    engine.show_status(load_experiment(experiment))


Parameters = Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="A parameter; may repeat.")]


@app.command()
def notebook(
    name: Annotated[str, typer.Argument(help="The notebook, e.g. 03_binarization.")],
    experiment: Experiment,
    p: Parameters = None,
) -> None:
    """Run one notebook headless with papermill: `karma notebook 03_binarization params/demo.yaml -p strategy=k_sim`."""
    _run_stage(name, experiment, p)


@app.command()
def pool(experiment: Experiment) -> None:
    """Write a study's pool: prompts with responses, generated or read from where its settings say."""
    _run_stage("pool", experiment, None)


@app.command()
def annotation(experiment: Experiment) -> None:
    """Rate a study's pool with its judge model, for the RLAIF baseline."""
    _run_stage("annotation", experiment, None)


def _run_stage(name: str, experiment: str, assignments: list[str] | None) -> None:
    from karma.study.execute import run_stage

    params = {}
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"-p {assignment}: write it as NAME=VALUE")
        params[key] = value
    command = " ".join(["karma", *sys.argv[1:]])
    job = run_stage(name.removesuffix(".ipynb"), experiment, params, command)
    typer.echo(f"{job.label}: done; its files are in {job.folder}")


@app.command()
def models(experiment: Experiment) -> None:
    """List a study's models: where each comes from, what it is for, and whether it is here."""
    from rich.console import Console
    from rich.table import Table

    from karma.models.load import describe_model
    from karma.study.experiment import load_experiment

    settings = load_experiment(experiment).settings
    specs = {name: spec.model_dump(mode="json") for name, spec in settings.models.items()}
    table = Table("model", "role", "comes from", "is here")
    for name in specs:
        roles = {"origin": name in settings.origin_models, "policy": name in settings.policies,
                 "judge": name == settings.annotation.judge}  # fmt: skip
        table.add_row(name, ", ".join(r for r, yes in roles.items() if yes) or "-", *describe_model(specs, name))
    Console().print(table)


def _default(group: str, key: str) -> Any:
    """Return base.yaml's value, the only place where it stands."""
    from karma.study.experiment import load_base

    return getattr(getattr(load_base(), group), key)


@app.command()
def binarize(
    out: Out,
    pool: Annotated[str, typer.Option(help="Hub id, .parquet, .jsonl or .json file, or folder.")],
    strategy: Annotated[
        list[str],
        typer.Option(help="rlaif, k_score, k_sim, k_score_sim, random, least_kin; may repeat, or `all`."),
    ],
    scores: Annotated[str, typer.Option(help="Score table (CSV), `paper` or `paper_four_digit`.")] = "paper",
    revision: Annotated[
        str | None, typer.Option(help="The Hub commit of the pool (UltraFeedback's is pinned).")
    ] = None,
    tau: Annotated[float, typer.Option(help="Least kinship of an eligible pair, cosine.")] = _default("kinship", "tau"),
    seed: Annotated[int, typer.Option(help="Of every draw.")] = _default("pairs", "seed"),
    annotation: Annotated[
        str, typer.Option(help="rlaif: overall_score, fine-grained_score or mean_aspect.")
    ] = _default("annotation", "field"),
    annotations: Annotated[
        Path | None, typer.Option(help="rlaif: a parquet table of row_id, response_id, score instead.")
    ] = None,
    rejected: Annotated[str, typer.Option(help="rlaif: random_lower or worst.")] = _default("pairs", "rejected"),
    exclude_model: Annotated[list[str], typer.Option(help="Origin model to leave out; may repeat.")] = _default(
        "pool", "excluded_origin_models"
    ),
    exclude_licence: Annotated[
        list[str] | None, typer.Option(help="Leave out by licence: llama-2, vendor; may repeat.")
    ] = None,
    match_rows: Annotated[
        bool, typer.Option("--match-rows", help="Keep the rows all requested strategies keep.")
    ] = False,
    order: Annotated[str, typer.Option(help="pool, or curriculum: from plain to subtle distinctions.")] = "pool",
    stages: Annotated[int, typer.Option(help="Stages of the curriculum.")] = 3,
    drop_truthfulqa: Annotated[bool, typer.Option("--drop-truthfulqa", help="Drop TruthfulQA's rows.")] = False,
    contaminated: Annotated[
        Path | None, typer.Option(help="Instructions to drop, a line each (text, or JSON lines).")
    ] = None,
    max_response_tokens: Annotated[int | None, typer.Option(help="Longest response, tokens of 4 bytes.")] = None,
    same_system_prompt: Annotated[
        bool, typer.Option("--same-system-prompt", help="Drop pairs with differing custom system prompts.")
    ] = False,
    near_identical: Annotated[
        float | None, typer.Option(help="Drop pairs sharing this part of their words, 0..1.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where anything is dropped that --expect does not name.")
    ] = False,
    expect: Annotated[list[str] | None, typer.Option(help="A reason to drop that is fine; may repeat.")] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="Write besides: binarized (public shape), datasets; may repeat.")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Upload to this data-set repository (private if new).")
    ] = None,
) -> None:
    """Build preference pairs: `karma binarize --pool pool.jsonl --strategy k_sim --out pairs`.

    Several strategies go to one folder each below --out, in one pass over the pool.
    """
    from karma.commands.binarize import run_binarize

    options = locals()
    del options["run_binarize"]
    for line in run_binarize(**options, command=" ".join(["karma", *sys.argv[1:]])):
        typer.echo(line)


@app.command()
def select(
    out: Out,
    pairs: Annotated[
        Path, typer.Option(help="A pair folder, or .jsonl, .json, .parquet in the public binarised shape.")
    ],
    policy: Annotated[str, typer.Option(help="Who is about to learn: smollm2-135m, a folder, or a Hub id.")],
    metric: Annotated[
        str,
        typer.Option(
            help="random, explicit_large, explicit_small, implicit_small, implicit_large, m_ap or m_ap_signed."
        ),
    ] = "m_ap",
    ratio: Annotated[float | None, typer.Option(help="Share of the candidates kept, e.g. 0.4.")] = None,
    k: Annotated[int | None, typer.Option("--k", help="Number of pairs kept, instead of --ratio.")] = None,
    weight: Annotated[float, typer.Option(help="w of z(explicit) - w z(implicit).")] = _default("potential", "weight"),
    explicit: Annotated[
        str, typer.Option(help="score (the pairs' own), kinship (with --scores), annotation (with --annotations).")
    ] = _default("potential", "explicit"),
    scores: Annotated[
        str | None, typer.Option(help="kinship: score table (CSV), `paper` or `paper_four_digit`.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="annotation: a parquet table of row_id, response_id, score.")
    ] = None,
    implicit: Annotated[str, typer.Option(help="absolute, signed, or dpo (with --reference).")] = _default(
        "potential", "implicit"
    ),
    reference: Annotated[str | None, typer.Option(help="dpo: the model that the policy started from.")] = None,
    seed: Annotated[int, typer.Option(help="Of `random`.")] = _default("potential", "seed"),
    revision: Annotated[str | None, typer.Option(help="A Hub policy's commit.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = _default("compute", "device"),
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = _default("compute", "dtype"),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = _default("compute", "threads"),
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of prompt and response kept.")] = _default(
        "training", "max_length"
    ),
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens a forward pass.")] = _default(
        "potential", "batch_tokens"
    ),
    cache: Annotated[Path | None, typer.Option(help="Folder of kept log-probabilities; default: OUT/cache.")] = None,
) -> None:
    """Keep the pairs a policy can still learn from: `karma select --pairs P --policy M --ratio 0.4 --out selected`."""
    from karma.commands.select import run_select

    options = locals()
    del options["run_select"]
    for line in run_select(**options, command=" ".join(["karma", *sys.argv[1:]])):
        typer.echo(line)


@app.command()
def evaluate(
    out: Out,
    benchmark: Annotated[
        list[str],
        typer.Option(help="ifeval, mmlu_stem, mmlu_pro, hellaswag, arc_easy, arc_challenge; may repeat, or `all`."),
    ],
    model: Annotated[str | None, typer.Option(help="smollm2-135m, a folder, a Hub id, or a server's model id.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Instead of a model: recorded answers (JSON lines).")] = None,
    benchmark_data: Annotated[Path | None, typer.Option(help="Folder of local files; default: the Hub's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items a benchmark, spread evenly (default: all).")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Recorded answers must fit the items exactly.")] = False,
    protocol: Annotated[str, typer.Option(help="answer (the paper's), or logprob (the likeliest option).")] = "answer",
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server, mostly ending in /v1.")] = None,
    key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the server's key.")] = None,
    revision: Annotated[str | None, typer.Option(help="A Hub model's commit.")] = None,
    backend: Annotated[str, typer.Option(help="transformers, or vllm (if installed).")] = "transformers",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = _default("compute", "device"),
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = _default("compute", "dtype"),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = _default("compute", "threads"),
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts; part of an answer's identity.")] = _default(
        "benchmarks", "batch_size"
    ),
    choice_tokens: Annotated[int, typer.Option(min=1, help="New tokens of a choice.")] = _default(
        "benchmarks", "choice_tokens"
    ),
    descriptive_tokens: Annotated[int, typer.Option(min=1, help="New tokens of an IFEval answer.")] = _default(
        "benchmarks", "descriptive_tokens"
    ),
    cache: Annotated[Path | None, typer.Option(help="Folder of kept answers; default: OUT/cache.")] = None,
) -> None:
    """Score a model or recorded answers: `karma evaluate --model smollm2-135m --benchmark arc_easy --out scores`."""
    from karma.commands.evaluate import run_evaluate

    options = locals()
    del options["run_evaluate"]
    for line in run_evaluate(**options):
        typer.echo(line)


@app.command()
def train(
    pairs: Annotated[Path, typer.Option(help="A pair folder, or a public binarised .jsonl or .parquet file.")],
    policy: Annotated[str, typer.Option(help="smollm2-135m, a folder, or a Hub id.")],
    method: Annotated[str, typer.Option(help="sft, dpo or simpo.")],
    out: Out,
    revision: Annotated[str | None, typer.Option(help="A Hub model's commit.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the pairs kept out, for the accuracy.")] = _default(
        "pairs", "held_out"
    ),
    seed: Annotated[int, typer.Option(help="Of held-out pairs, order and adapters.")] = 0,
    p: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME=VALUE", help="A setting of `training` in params/base.yaml; may repeat."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = _default("compute", "device"),
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = _default("compute", "dtype"),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = _default("compute", "threads"),
) -> None:
    """Tune a policy: `karma train --pairs DIR --policy smollm2-135m --method dpo -p warmup_steps=10 --out DIR`.

    The defaults are the paper's; the same command goes on where it was killed.
    """
    from karma.commands.train import run_train

    for line in run_train(pairs, policy, method, out, revision, held_out, seed, p or [], device, dtype, threads):
        typer.echo(line)


@app.command()
def kinship(
    scores: Annotated[str, typer.Option(help="Score table (CSV), `paper` or `paper_four_digit`.")],
    out: Out,
    with_paper: Annotated[bool, typer.Option("--with-paper", help="Add the rows of the paper's Table 3.")] = False,
    columns: Annotated[
        str | None, typer.Option(help="For other benchmarks: a column map (YAML), or open_llm_leaderboard_v2.")
    ] = None,
    tau: Annotated[float, typer.Option(help="Least kinship of an eligible pair, cosine.")] = _default("kinship", "tau"),
    distance: Annotated[str, typer.Option(help="Of the dendrograms: rmsd or cosine.")] = _default(
        "kinship", "distance"
    ),
    linkage: Annotated[str, typer.Option(help="average, complete, single or ward.")] = _default("kinship", "linkage"),
    cut: Annotated[float, typer.Option(help="Distance below which branches are one cluster.")] = _default(
        "kinship", "cut"
    ),
    seed: Annotated[int, typer.Option(help="Of bootstrap and permutations.")] = 0,
) -> None:
    """Kinship of origin models: `karma kinship --scores my.csv --with-paper --out kinship`."""
    from karma.commands.kinship import run_kinship

    for line in run_kinship(
        scores, out, with_paper, columns, tau=tau, distance=distance, linkage=linkage, cut=cut, seed=seed
    ):
        typer.echo(line)


@app.command()
def report(
    study: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="An experiment, or `paper`: the published study.")],
    other: Annotated[str | None, typer.Argument(help="A second experiment: the differences between the two.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: outputs/<name>.")] = None,
    price: Annotated[float | None, typer.Option(help="Price of a million tokens, for the ledger of cost.")] = None,
) -> None:
    """Write tables, figures and report.html of a study, of the paper's own numbers, or of two studies compared."""
    from karma.results.page import write_report

    typer.echo(f"written: {write_report(study, other, out, price)}")


def main() -> None:
    """Run the command line."""
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except KarmaError as error:
        if debug:
            raise
        typer.secho(f"karma: {error}", err=True, fg="red")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
