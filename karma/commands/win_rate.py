"""What `karma win-rate` does: two models or more, or their recorded responses, against each other before a judge.

What models answer and what the judge says is kept below --out (or --cache), so that the same command goes on where it
was stopped.
"""

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from karma.commands.next_step import tell_next
from karma.commands.options import (
    LAST_SEED,
    Out,
    check_files,
    check_out,
    check_revision,
    default,
    leave_nothing,
    list_typed,
    refuse_idle,
    replace_options,
)
from karma.errors import InputError, KarmaError
from karma.labels.compared import SUFFIXES, Compared, load_prompts, load_responses
from karma.labels.win_rates import check_sides
from karma.study.experiment import load_base, load_experiment
from karma.study.sections import Compute


def win_rate(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B ...",
            help="Two or more: a model (smollm2-135m, a folder, a run of a study, a Hub id, a name of --experiment), "
            "or a file of its responses (.jsonl, .json, .parquet with prompt and response).",
        ),
    ],
    judge: Annotated[str, typer.Option(help="Who decides: a model as above, or a server's model id.")],
    out: Out,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines or parquet with prompt; default: those of the files of responses.")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="Its `models` can be named, e.g. params/demo.yaml.")] = None,
    base_url: Annotated[str | None, typer.Option(help="The judge's OpenAI-compatible server.")] = None,
    key_env: Annotated[str | None, typer.Option(help="The environment variable that holds its key.")] = None,
    revision: Annotated[str | None, typer.Option(help="A Hub judge's commit.")] = None,
    tie: Annotated[float, typer.Option(help="Preferences for and against this close are ties.")] = default(
        "labels", "tie"
    ),
    backend: Annotated[str, typer.Option(help="transformers, or vllm (if installed).")] = "transformers",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = default("compute", "device"),
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = default("compute", "dtype"),
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = default("compute", "threads"),
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts; part of an answer's identity.")] = default(
        "annotation", "batch_size"
    ),
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a response.")] = default(
        "pool", "max_new_tokens"
    ),
    temperature: Annotated[float, typer.Option(min=0, help="Of responses; 0: greedy.")] = default(
        "pool", "temperature"
    ),
    top_p: Annotated[float, typer.Option(help="Of responses: share of the probability drawn from.")] = default(
        "pool", "top_p"
    ),
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of responses.")] = default("pool", "seed"),
    reply_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a judge that writes (a server).")] = default(
        "benchmarks", "choice_tokens"
    ),
    cache: Annotated[Path | None, typer.Option(help="Folder of kept answers; default: OUT/cache.")] = None,
) -> None:
    """Who writes better, says a judge: `karma win-rate A B --prompts my.jsonl --judge M --out win-rates`."""
    options = locals()
    options["typed"] = list_typed(options.pop("context"))
    with leave_nothing(out, cache):
        for line in run_win_rate(**options, command=" ".join(["karma", *sys.argv[1:]])):
            typer.echo(line)


@dataclass(frozen=True)
class _Asking:
    """How models are opened: where, in what batches, and from which cache."""

    known: dict[str, dict[str, Any]]  # of --experiment
    compute: Compute
    batch_size: int
    cache: Path

    def open(
        self,
        model: str,
        what: str,
        api: tuple[str | None, str | None] = (None, None),
        revision: Any = None,
        n_tokens: int = 0,
    ) -> Any:
        """Return a model that can be asked; what cannot be one is an InputError that says which option it was."""
        from karma.models.api import check_server
        from karma.models.ask import CachedModel
        from karma.models.check import check_length, check_model
        from karma.models.describe import name_model

        if model in self.known and not any(api):
            check_revision(revision, {}, model)
            specs, name = self.known, model
        elif model.startswith((".", "/", "~")) and not Path(model).is_dir():
            raise InputError(f"{what} {model}: there is no such folder or file")
        else:
            specs, name = name_model(model, revision, *api)
            check_revision(revision, specs[name], model)
        if source := specs[name].get("api"):
            check_server(source["base_url"])
        try:
            asked = CachedModel(specs, name, self.compute, self.batch_size, self.cache)
            check_model(specs, name)
            check_length(specs, name, n_tokens, "--max-new-tokens")
            return asked
        except KarmaError as error:  # a Hub id that is none, or no network
            if isinstance(error, InputError) and not str(error).startswith("Hub model"):
                raise
            raise InputError(
                f"{what} {model}: no folder, packaged model or name of --experiment, and not to be had from the Hub "
                f"({error}); a server's model needs --base-url"
            ) from error


def run_win_rate(
    models: list[str], judge: str, out: Path, prompts: Path | None, experiment: str | None, base_url: str | None,
    key_env: str | None, revision: str | None, tie: float, backend: str, device: str, dtype: str, threads: int,
    batch_size: int, max_new_tokens: int, temperature: float, top_p: float, seed: int, reply_tokens: int,
    cache: Path | None, command: str, typed: Collection[str] = (),
) -> Iterator[str]:  # fmt: skip
    """Gather responses, judge, measure, draw and write; yield what to tell the user.

    Args:
        models, judge, ...: the options of `karma win-rate`, under their own names.
        command: the command line, for the card.
        typed: the options that were typed: one that means nothing here is refused.

    Raises:
        InputError: an option, a file or a model that cannot be used; found before a judge is asked.
    """
    check_sides(models, tie)
    check_out(out, judge, *models)
    check_files({"--prompts": prompts})
    if cache is not None:
        check_out(cache, judge, *models, option="--cache")
    compute = replace_options(load_base().compute, backend=backend, device=device, dtype=dtype, threads=threads)
    how = replace_options(load_base().pool, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    asked, recorded = load_prompts(prompts) if prompts else None, {}
    for name in models:
        if Path(name).suffix in SUFFIXES and not Path(name).is_dir():
            recorded[name] = load_responses(Path(name), asked)
    if len(recorded) == len(models):
        refuse_idle(typed, ("max_new_tokens", "temperature", "top_p", "seed"), "where all responses are recorded")
    if asked is None:
        if len(recorded) < len(models):
            wanting = next(name for name in models if name not in recorded)
            raise InputError(f"{wanting} is to answer: give the prompts with --prompts")
        asked = {prompt: text for found in recorded.values() for prompt, text in found.prompts.items()}
    known = {}
    if experiment is not None:
        specs = load_experiment(experiment).settings.models
        known = {name: spec.model_dump(mode="json") for name, spec in specs.items()}
    asking = _Asking(known, compute, batch_size, cache or out / "cache")
    decider = asking.open(judge, "--judge", (base_url, key_env), revision)
    opened = {name: asking.open(name, "model", n_tokens=max_new_tokens) for name in models if name not in recorded}
    compared: list[Compared] = []
    for name in models:
        if name in opened:
            from karma.labels.compared import ask_model

            model = opened[name]
            recorded[name] = ask_model(model, model.name, asked, how, seed)
            yield f"{model.name}: {model.n_asked} prompts answered ({model.n_cached} kept from before)"
        compared.append(recorded[name])
    yield from _judge(compared, asked, decider, tie, reply_tokens, out, command)


def _judge(
    compared: list[Compared], prompts: dict[str, Any], judge: Any, tie: float, reply_tokens: int, out: Path,
    command: str,
) -> Iterator[str]:  # fmt: skip
    from karma.figures.style import set_style
    from karma.figures.win_rates import save_win_rate_figure
    from karma.labels.tournament import describe_tournament, hold_tournament, save_tournament

    found = hold_tournament(compared, prompts, judge, tie, reply_tokens)
    save_tournament(found, out, command)
    set_style()
    save_win_rate_figure(found, out)
    yield f"judge: {judge.n_asked} questions asked ({judge.n_cached} kept from before), {judge.seconds:.0f} s"
    yield from describe_tournament(found)
    yield f"written to {out}: win_rates.csv, verdicts.parquet, a card"
    yield tell_next("read", out / "README.md")
