"""What `karma evaluate` does: check the options together, evaluate a model or recorded answers, write and report.

Answers are kept below --out (or --cache), so that the same command goes on where it was stopped.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from karma.errors import InputError
from karma.evaluation.compare import format_scores
from karma.evaluation.items import HUB
from karma.evaluation.scoring import list_warnings
from karma.models.load import build_spec


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
    benchmarks = list(HUB) if "all" in benchmark else list(dict.fromkeys(benchmark))
    _check(out, model, answers, benchmarks, benchmark_data)
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
    if unknown := [b for b in benchmarks if b not in HUB]:
        raise InputError(f"--benchmark {unknown[0]}: choose from {', '.join(HUB)}, or all")
    if folder is not None and not folder.is_dir():
        raise InputError(f"--benchmark-data {folder} is no folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: give a folder to write to")


def _ask(
    out: Path, model: str, benchmarks: list[str], folder: Path | None, limit: int | None, protocol: str,
    batch_size: int, choice_tokens: int, descriptive_tokens: int, cache: Path | None, base_url: str | None,
    key_env: str | None, revision: str | None, **compute: Any,
) -> tuple[dict[str, Any], Any]:  # fmt: skip
    from karma.evaluation.runner import evaluate
    from karma.models.ask import CachedModel

    specs = {model: build_spec(model, base_url, key_env, revision)}
    settings = SimpleNamespace(folder=str(folder.resolve()) if folder else None, limit=limit,
                               choice_tokens=choice_tokens, descriptive_tokens=descriptive_tokens)  # fmt: skip
    asked = CachedModel(specs, model, SimpleNamespace(**compute), batch_size, cache or out / "cache")
    return evaluate(asked, benchmarks, settings, Path.cwd(), protocol)
