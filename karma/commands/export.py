"""What `karma export` does: a pair folder in the shape of another trainer, by `karma.pairs.export`."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from karma.commands.options import Out, check_files, check_out, leave_nothing
from karma.errors import InputError
from karma.files.reading import read_text
from karma.pairs.export import FORMATS, export_pairs
from karma.pairs.pairs import load_pairs, split_pairs
from karma.pairs.public_shape import load_binarized
from karma.study.experiment import load_base

NEXT = {  # what another trainer is told
    "trl": "TRL takes {out} as its dataset_name",
    "trl_sft": "TRL takes {out} as its dataset_name",
    "llama_factory": "LLaMA-Factory takes dataset_dir: {out} and dataset: {name}",
    "axolotl": "Axolotl takes the datasets of {out}/axolotl.yaml",
}


def export(
    pairs: Annotated[Path, typer.Option(help="A pair folder, or a public binarised .jsonl or .parquet file.")],
    form: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")],
    out: Out,
    held_out: Annotated[
        float, typer.Option(help="Share of the prompts left out: those that a training with this share keeps out.")
    ] = 0.0,
    instructions: Annotated[
        Path | None, typer.Option(help="trl: the prompts' instructions, for what rewards answers (JSON lines).")
    ] = None,
) -> None:
    """Write pairs for another trainer: `karma export --pairs DIR --format llama_factory --out DIR`.

    The folder loads as it is: LLaMA-Factory (`dataset_dir`), Axolotl (`axolotl.yaml`), TRL (`trl dpo --dataset_name`).
    """
    with leave_nothing(out):
        for line in run_export(pairs, form, out, held_out, instructions):
            typer.echo(line)


def run_export(pairs: Path, form: str, out: Path, held_out: float, instructions: Path | None) -> Iterator[str]:
    """Write the folder, and yield what to tell the user.

    Args:
        pairs, form, out, held_out, instructions: the options of `karma export`.

    Raises:
        InputError: an option that cannot be used, or pairs that the trainer does not take; nothing is written then.
    """
    check_out(out, pairs)
    check_files({"--instructions": instructions})
    if form not in FORMATS:
        raise InputError(f"--format {form}: choose from {', '.join(FORMATS)}")
    if pairs.is_file() and pairs.resolve().parent == out.resolve():
        raise InputError(f"--out {out} holds {pairs}, which is read: give another folder")
    if instructions is not None and form != "trl":
        raise InputError(
            "--instructions means nothing without --format trl: they are of prompts that TRL's policy answers"
        )
    source = load_binarized(pairs) if pairs.is_file() else load_pairs(pairs)
    if instructions is not None:
        from karma.evaluation.prompts import load_prompts
        from karma.training.rl import add_instructions

        known = [prompt for prompt in load_prompts(instructions, False) if prompt.instruction_ids]
        source = replace(source, table=add_instructions(source.table, known))
        if not any(source.table["instructions"].to_pylist()):
            raise InputError(
                f"--instructions {instructions}: it has instructions for none of the {len(source)} prompts"
            )
    kept = split_pairs(source, held_out, load_base().pairs.seed)[0]
    card = pairs / "README.md"
    files = export_pairs(kept, form, out, read_text(card) if card.is_file() else "")
    left = f" ({len(source) - len(kept):,} held out)" if held_out else ""
    yield f"{len(kept):,} pairs{left} for {FORMATS[form].title} written to {out}: {', '.join(files)}"
    yield f"next: {NEXT[form].format(out=shlex.quote(str(out)), name=f'karma_{source.strategy}')}"
