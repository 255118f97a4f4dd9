"""What `karma train` does: read the pairs, check everything, train, and say how it went."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from karma.commands.flags import FLAGS, name_flags
from karma.commands.next_step import tell_next
from karma.commands.options import (
    LAST_SEED,
    Out,
    check_accelerate,
    check_files,
    check_out,
    check_revision,
    default,
    leave_nothing,
    replace_options,
)
from karma.errors import InputError, quote
from karma.files.writing import save_json
from karma.files.yaml import parse_yaml
from karma.models.describe import name_model
from karma.study.experiment import load_base
from karma.study.training_settings import Online, Training
from karma.vocabulary import METHODS

if TYPE_CHECKING:
    from karma.pairs.pairs import PairSet


def list_methods() -> str:
    """Return a Markdown list of the methods: what each learns from, its source, and what the pairs must look like.

    Example:
        >>> list_methods().split("; ")[0].split("\\n\\n")[1]
        '- **sft**: the chosen response, token by token (section 3.3)'
    """
    rows = [f"- **{name}**: {row.sentence} ({row.source}); needs {row.needs}." for name, row in METHODS.items()]
    return "\n\n".join(["What a method learns from a pair, and what it needs:", *rows])


EPILOG = list_methods()


def train(
    pairs: Annotated[Path, typer.Option(help="A pair folder, or a public binarised .jsonl or .parquet file.")],
    policy: Annotated[str, typer.Option(help="smollm2-135m, a folder, or a Hub id.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}: each is told below.")],
    out: Out,
    revision: Annotated[str | None, typer.Option(help="A Hub model's commit.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the pairs kept out, for the accuracy.")] = default(
        "pairs", "held_out"
    ),
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="Of order and adapters; held-out pairs are the same for all.")
    ] = 0,
    p: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME=VALUE", help="A setting of `training` in params/base.yaml; may repeat."),
    ] = None,
    instructions: Annotated[
        Path | None, typer.Option(help="grpo, rloo: the prompts' instructions, JSON lines as pool.instructions.")
    ] = None,
    drop_unusable: Annotated[
        bool, typer.Option("--drop-unusable", help="Leave out pairs with an empty text or two equal ones, counted.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = default("compute", "device"),
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = default("compute", "dtype"),
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = default("compute", "threads"),
) -> None:
    """Tune a policy: `karma train --pairs DIR --policy smollm2-135m --method dpo -p warmup_steps=10 --out DIR`.

    The defaults are the papers'; a method's own numbers stand in its section (`-p kto.learning_rate=1.0e-6`). The same
    command goes on where it was killed. `--method reward_model` makes a model that rates responses, to be named as
    annotation.judge or self_play.scorer_model.
    """
    how = (p or [], device, dtype, threads, instructions)
    with leave_nothing(out):
        for line in run_train(pairs, policy, method, out, revision, held_out, seed, *how, drop_unusable=drop_unusable):
            typer.echo(line)


def run_train(
    pairs: Path, policy: str, method: str, out: Path, revision: str | None, held_out: float, seed: int,
    assignments: list[str], device: str, dtype: str, threads: int,
    instructions: Path | None = None, *, drop_unusable: bool = False,
) -> Iterator[str]:  # fmt: skip
    """Train, and yield what to tell the user, line by line.

    Args:
        pairs, policy, ...: the options of `karma train`, under their own names.
        assignments: "name=value" of the `training` settings.
        drop_unusable: leave out what cannot be trained on, and write accounting.json.
        instructions: a file of the prompts' instructions, that answers are rewarded by.

    Raises:
        InputError: an option, a setting or a pair that cannot be used, or an output folder that holds something else.
        KarmaError: the training failed.
    """
    settings = build_settings(assignments)
    compute = replace_options(load_base().compute, device=device, dtype=dtype, threads=threads)
    online = getattr(settings, method, None)
    rater = online.reward_model if isinstance(online, Online) else None
    check_out(out, pairs, policy, rater)
    check_files({"--instructions": instructions})
    if method not in METHODS:
        raise InputError(f"--method {method}: choose from {', '.join(METHODS)}")
    if instructions is not None and not isinstance(online, Online):
        raise InputError(f"--instructions means nothing with --method {method}, which learns from pairs: leave it out")
    from karma.models.check import check_model
    from karma.models.load import load_tokenizer
    from karma.pairs.pairs import load_pairs, split_pairs
    from karma.pairs.public_shape import load_binarized
    from karma.training import checks
    from karma.training.held_out import describe_held_out
    from karma.training.launch import find_config
    from karma.training.rewards import describe_rewards
    from karma.training.rl import load_instructions
    from karma.training.run import describe_run
    from karma.training.train import describe_memory, train

    checks.check_method(method, settings)
    if settings.accelerate:
        check_accelerate(find_config(settings.accelerate))
    source = load_binarized(pairs) if pairs.is_file() else load_pairs(pairs)
    named = policy
    models, policy = name_model(policy, revision)
    check_revision(revision, models[policy], named)
    check_model(models, policy)
    tokenizer = load_tokenizer(models, policy)
    if drop_unusable:
        source = checks.drop_unusable(whole := source, method, tokenizer)
        yield describe_dropped(whole, source)
    parts = split_pairs(source, held_out, load_base().pairs.seed)
    train_pairs, kept_out = (part.table for part in parts)
    train_pairs = load_instructions(train_pairs, method, settings, instructions)
    if rater is not None:
        specs, name = name_model(rater)
        models[rater] = specs[name]
    report = checks.check_pairs(train_pairs, tokenizer, method, settings)
    run = describe_run(train_pairs, models, policy, method, seed, settings, compute, out)
    memory = describe_memory(run, report["longest_tokens"])
    warnings = report["warnings"] + memory["warnings"]
    yield from (f"WARNING: {name_flags(warning, 'train', FLAGS.values())}" for warning in warnings)
    yield (f"{report['pairs']} pairs ({len(kept_out)} held out), {report['updates']} updates; about "
           f"{memory['total_gib']:.1f} GiB of {memory['free_gib']:.1f} GiB free")  # fmt: skip
    state = checks.check_folder(out, run.identity)
    if state == "done":
        yield f"{out} holds this very training: nothing to do"
        return
    if state == "resumable":
        yield f"{out}: going on from the last checkpoint"
    record = train(run, train_pairs, kept_out)
    yield from (f"ALARM: {name_flags(alarm, 'train', FLAGS.values())}" for alarm in record["alarms"])
    yield f"held-out preference {describe_held_out(record['held_out'])}"
    if run.makes_reward_model:
        yield f"the reward model {describe_rewards(record['held_out'])}"
    if drop_unusable:
        parts[0].accounting.check()
        save_json(parts[0].accounting.as_dict(), out / "accounting.json")
    yield f"written: {out}/model, training.json, held_out.parquet{', accounting.json' * drop_unusable}"
    if run.makes_reward_model:
        yield f"next: name {shlex.quote(str(out))} where a judge is named (annotation.judge, self_play.scorer_model)"
    else:
        command = ("karma", "win-rate", policy, out, "--prompts", "PROMPTS.jsonl", "--judge", "MODEL")
        yield tell_next(*command, "--out", "WIN_RATES", why="who writes better, before or after")


def describe_dropped(whole: "PairSet", usable: "PairSet") -> str:
    """Say how many pairs were left out, for which reasons.

    Example:
        >>> from collections import Counter
        >>> import pyarrow as pa
        >>> from karma.pairs.accounting import Accounting
        >>> from karma.pairs.pairs import PairSet
        >>> whole = PairSet(pa.table({"row_id": ["a", "b"]}), Accounting("custom", rows_in=2, pairs_out=2))
        >>> books = Accounting("custom", rows_in=2, pairs_out=1, dropped=Counter(empty_text=1))
        >>> describe_dropped(whole, PairSet(whole.table.slice(1), books))
        '2 pairs = 1 usable + 1 empty_text'
        >>> describe_dropped(whole, whole)
        '2 pairs, all usable'
    """
    reasons = usable.accounting.dropped - whole.accounting.dropped
    if not reasons:
        return f"{len(whole)} pairs, all usable"
    return " + ".join(
        [f"{len(whole)} pairs = {len(usable)} usable", *(f"{n} {reason}" for reason, n in reasons.items())]
    )


def build_settings(assignments: list[str]) -> Training:
    """Return base.yaml's `training` with some values changed.

    Args:
        assignments: "name=value", or "section.name=value"; the value is YAML, so that `lora={rank: 8, ...}` and `null`
            work.

    Raises:
        InputError: no such setting, or a value of the wrong kind.

    Example:
        >>> own = build_settings(["learning_rate=1.0e-6", "kto.beta=0.2"])
        >>> own.learning_rate, own.kto.beta
        (1e-06, 0.2)
    """
    values: dict[str, Any] = load_base().training.as_dict()
    told: dict[str, str] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        section, dot, key = name.partition(".")
        inside = values.get(section) if dot else values
        if not equals or not isinstance(inside, dict) or (key if dot else name) not in inside:
            raise InputError(f"-p {assignment}: write it as NAME=VALUE, with a name of {', '.join(values)}")
        if name in told:
            raise InputError(f"-p {assignment}: {told[name]} is given already: give one of the two")
        told[name] = assignment
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise InputError(f"-p {assignment}: the value is not valid YAML: {error}") from None
        values[section] = {**inside, key: value} if dot else value
    try:
        return Training.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"-p {where}={quote(first['input'])}: {first['msg']} (write 5.0e-7, not 5e-7)") from None
