"""What `karma select` does: check the options together, measure the margins, select, write and report.

Log-probabilities are kept below --out (or --cache), so that the same command, another metric or another ratio goes on
from what was measured.
"""

import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from karma.commands.next_step import tell_next
from karma.commands.options import (
    LAST_SEED,
    Columns,
    Missing,
    Out,
    check_out,
    check_revision,
    default,
    leave_nothing,
    list_typed,
    load_scores,
    refuse_idle,
    replace_options,
)
from karma.errors import InputError
from karma.files.numbers import parse_number
from karma.labels.sources import compute_capability, is_kinship
from karma.pairs.accounting import DROPPED
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import PairSet, load_pairs
from karma.pairs.public_shape import load_binarized
from karma.pool.annotations import load_annotations
from karma.potential import margins
from karma.potential.margins import FORMS, RANKINGS, check_weight, compute_k
from karma.potential.objectives import COMBINATIONS, Objectives, Source, describe_sources, gather_objectives
from karma.potential.selection import (
    SOURCES,
    build_selection,
    describe_selection,
    find_unusable,
    gather_candidates,
    is_signed,
)
from karma.scores.missing import RULES
from karma.study.experiment import load_base
from karma.vocabulary import METRICS

if TYPE_CHECKING:
    from karma.models.load import Specs


def select(
    context: typer.Context,
    out: Out,
    pairs: Annotated[
        Path, typer.Option(help="A pair folder, or .jsonl, .json, .parquet in the public binarised shape.")
    ],
    policy: Annotated[str, typer.Option(help="Who is about to learn: smollm2-135m, a folder, or a Hub id.")],
    metric: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(RANKINGS)}. m_ap_signed: {METRICS['m_ap_signed'].rule}; m_ap wants large explicit gaps, "
            "where kinship wants small ones."
        ),
    ] = "m_ap",
    ratio: Annotated[float | None, typer.Option(help="Share of the candidates kept, e.g. 0.4.")] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Number of pairs kept, instead of --ratio.")] = None,
    weight: Annotated[float, typer.Option(help="w of z(explicit) - w z(implicit).")] = default("potential", "weight"),
    explicit: Annotated[
        str,
        typer.Option(
            help="score (the pairs' own), kinship (with --scores), annotation (with --annotations); several with "
            "weights: score=1,kinship:reasoning=0.5,rewards.parquet=2 (a capability's S_pref, a table of scores)."
        ),
    ] = default("potential", "explicit"),
    combine: Annotated[
        str, typer.Option(help="Several sources: weights (sum of weighted z-scores) or pareto (fronts, then that sum).")
    ] = default("potential", "combine"),
    scores: Annotated[
        str | None, typer.Option(help="kinship: score table (CSV), `paper` or `paper_four_digit`.")
    ] = None,
    columns: Columns = None,
    missing: Missing = default("scores", "missing"),
    annotations: Annotated[
        Path | None, typer.Option(help="annotation: a parquet table of row_id, response_id, score.")
    ] = None,
    implicit: Annotated[str, typer.Option(help="absolute, signed, or dpo (with --reference).")] = default(
        "potential", "implicit"
    ),
    reference: Annotated[str | None, typer.Option(help="dpo: the model that the policy started from.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of `random`.")] = default("potential", "seed"),
    revision: Annotated[str | None, typer.Option(help="A Hub policy's commit.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = default("compute", "device"),
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = default("compute", "dtype"),
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = default("compute", "threads"),
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of prompt and response kept.")] = default(
        "training", "max_length"
    ),
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens a forward pass.")] = default(
        "potential", "batch_tokens"
    ),
    cache: Annotated[Path | None, typer.Option(help="Folder of kept log-probabilities; default: OUT/cache.")] = None,
) -> None:
    """Keep the pairs a policy can still learn from: `karma select --pairs P --policy M --ratio 0.4 --out selected`."""
    options = locals()
    options["typed"] = list_typed(options.pop("context"))
    with leave_nothing(out, cache):
        for line in run_select(**options, command=" ".join(["karma", *sys.argv[1:]])):
            typer.echo(line)


def run_select(
    out: Path, pairs: Path, policy: str, metric: str, ratio: float | None, k: int | None, weight: float,
    implicit: str, reference: str | None, explicit: str, combine: str, scores: str | None, columns: str | None,
    missing: str, annotations: Path | None, seed: int, command: str, device: str, dtype: str, threads: int,
    typed: Collection[str] = (), **asking: Any,
) -> Iterator[str]:  # fmt: skip
    """Write the selected pairs as a pair folder; yield what to tell the user, line by line.

    Args:
        out, pairs, ...: the options of `karma select`, under their own names.
        command: the command line, for the data card.
        typed: the options that were typed: one that means nothing here is refused.
        **asking: how the policy is asked: max_length, batch_tokens, revision, cache.

    Raises:
        InputError: an option or file that cannot be used; no model has been loaded then.
    """
    from karma.potential.logps import measure_logps

    compute = replace_options(load_base().compute, device=device, dtype=dtype, threads=threads)
    _check_models({"--policy": policy, "--reference": reference})
    check_out(out, pairs, policy, reference)
    weights = parse_sources(explicit)
    _check_options(metric, ratio, k, implicit, reference, weights, scores, missing, annotations)
    if combine not in COMBINATIONS:
        raise InputError(f"--combine {combine}: choose from {', '.join(COMBINATIONS)}")
    _refuse_idle(typed, metric, scores)
    if asking.get("cache"):
        check_out(asking["cache"], pairs, policy, reference, option="--cache")
    source = load_pairs(pairs) if pairs.is_dir() else load_binarized(pairs)
    if "metric" in source.accounting.settings:
        raise InputError(f"{pairs} is itself a selection: select from the whole set it was made of")
    given: dict[str, Source] = {name: load_annotations(name) for name in weights if name.endswith(".parquet")}
    if annotations:
        given["annotation"] = load_annotations(annotations)
    if scores:
        kin = load_scores(scores, columns, missing)
        given |= {name: compute_capability(kin, name) for name in weights if is_kinship(name)}
    found = gather_objectives(source.table, weights, combine, given)
    check_weight(weight)
    _check_candidates(source, found, explicit, ratio, k)
    models = _open_models(policy, asking.pop("revision"), reference)
    kept = asking.pop("cache") or out / "cache"
    is_new = not kept.exists()
    logps = [measure_logps(source.table, specs, name, compute, cache=kept, **asking) for specs, name in models]
    asked, against = logps[0], logps[1] if reference else None
    pool = gather_candidates(
        source.table, found, asked.logps, asked.lengths, weight=weight, form=implicit, signed=is_signed(metric),
        reference_logps=against.logps if against else None,
    )  # fmt: skip
    if not pool.fit.any():
        if is_new:
            shutil.rmtree(kept)  # it holds nothing of use
        raise InputError(
            f"none of {len(source)} pairs is a candidate ({_say_dropped(pool.counts)}): give a larger --max-length; "
            f"where {_name(policy)} gives no probabilities, its weights or its config.json are broken"
        )
    places = margins.select(pool, metric, ratio, k, seed)
    settings = {
        "metric": metric, "rule": METRICS[metric].rule, "ratio": ratio, "k": len(places),
        "candidates": int(pool.fit.sum()), "weight": weight, "explicit": describe_sources(weights, combine),
        "implicit": "signed" if is_signed(metric) else implicit, "policy": _name(policy),
        "policy_digest": asked.digest, "reference": reference and _name(reference), "dtype": asked.dtype,
        "max_length": asking["max_length"], "truncated": asked.n_truncated, "select_seed": seed,
    }  # fmt: skip
    save_pairs(build_selection(source, pool, places, settings), out, command)
    yield f"{policy}: {asked.n_asked} pairs asked ({asked.n_kept} kept from before), {asked.dtype} on {asked.device}"
    if asked.n_truncated:
        yield f"note: {asked.n_truncated} pairs reach {asking['max_length']} tokens: judged by their start"
    yield from (f"note: {n} pairs are no candidates: {DROPPED[reason]}" for reason, n in sorted(pool.counts.items()))
    if n_equal := int((pool.explicit[pool.fit] == 0).sum()):
        yield f"note: {n_equal} candidates have an explicit margin of 0: equal scores are no preference"
    yield f"{describe_selection(metric, METRICS[metric].rule, len(places), pool)}; written: {out}"
    yield tell_next("karma", "train", "--pairs", out, "--policy", policy, "--method", "dpo", "--out", "POLICY")


def _open_models(policy: str, revision: str | None, reference: str | None) -> list[tuple["Specs", str]]:
    """Return specifications and name of the policy and of the reference, both looked at before either is asked."""
    from karma.models.check import check_model
    from karma.models.describe import name_model

    opened = [name_model(policy, revision), *([name_model(reference)] if reference else [])]
    check_revision(revision, opened[0][0][opened[0][1]], policy)
    for specs, model in opened:
        check_model(specs, model)
    return opened


def _refuse_idle(typed: Collection[str], metric: str, scores: str | None) -> None:
    """Raise an InputError where an option was typed that this selection does not read."""
    if scores is None:
        refuse_idle(typed, ("columns", "missing"), "without --scores")
    if not metric.startswith("m_ap"):
        refuse_idle(typed, ("weight",), "without --metric m_ap or m_ap_signed")


def _say_dropped(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n}: {DROPPED[reason]}" for reason, n in sorted(counts.items()))


def _name(model: str) -> str:
    """Name a model without the path of a machine."""
    return Path(model).name if Path(model).is_dir() else model


def _check_models(options: dict[str, str | None]) -> None:
    for option, model in options.items():
        if model and model.startswith((".", "/", "~")) and not Path(model).is_dir():
            raise InputError(f"{option} {model}: there is no such folder")


def _check_options(
    metric: str, ratio: float | None, k: int | None, implicit: str, reference: str | None,
    weights: Mapping[str, float], scores: str | None, missing: str, annotations: Path | None,
) -> None:  # fmt: skip
    for option, value, known in (
        ("metric", metric, RANKINGS),
        ("implicit", implicit, FORMS),
    ):
        if value not in known:
            raise InputError(f"--{option} {value}: choose from {', '.join(known)}")
    if ratio is not None and k is not None:
        raise InputError("give either --ratio or --k")
    if (implicit == "dpo") != (reference is not None):
        raise InputError("--implicit dpo and --reference belong together: the one means nothing without the other")
    if is_signed(metric) and implicit == "dpo":
        raise InputError(f"--metric {metric} takes the length-normalised margin: leave out --implicit dpo")
    if missing not in RULES:
        raise InputError(f"--missing {missing}: choose from {', '.join(RULES)}")
    if any(map(is_kinship, weights)) != (scores is not None):
        raise InputError("--explicit kinship and --scores belong together: S_pref comes from a score table")
    if ("annotation" in weights) != (annotations is not None):
        raise InputError("--explicit annotation and --annotations belong together")


def parse_sources(text: str) -> dict[str, float]:
    """Return the sources of --explicit with their weights.

    Raises:
        InputError: a source that is none, named twice, or a weight that is no number above 0.

    Example:
        >>> parse_sources("score"), parse_sources("score=1, kinship:reasoning=0.5")
        ({'score': 1.0}, {'score': 1.0, 'kinship:reasoning': 0.5})
    """
    found: dict[str, float] = {}
    for part in text.split(",") if "=" in text else [f"{text}=1"]:
        name, _, value = part.strip().rpartition("=")
        if not (name in SOURCES or name.startswith("kinship:") or name.endswith(".parquet")) or name in found:
            raise InputError(
                f"--explicit {text}: choose from {', '.join(SOURCES)}, kinship:CAPABILITY and a .parquet table, each "
                "once; several as score=1,annotation=0.5"
            )
        try:
            found[name] = parse_number(value)
        except ValueError:
            found[name] = float("nan")
        if not 0 < found[name] <= 10**6:
            raise InputError(f"--explicit {text}: '{value}' is no weight: give a number above 0, up to 1000000")
    return found


def _check_candidates(source: PairSet, scores: Objectives, explicit: str, ratio: float | None, k: int | None) -> None:
    """Refuse what can be refused before a model is asked: no scores, or more pairs wanted than there can be."""
    usable = np.array(find_unusable(source.table)) == ""
    known = [np.isfinite(values) for values in scores.compute_margins().values()]
    n = int((usable & np.stack(known).all(axis=0)).sum())
    if not n:
        raise InputError(
            f"none of {len(source)} pairs has usable texts and an explicit margin from '{explicit}': "
            f"choose another --explicit ({', '.join(SOURCES)})"
        )
    compute_k(n, ratio, k)
