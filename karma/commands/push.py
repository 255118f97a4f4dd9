"""What `karma push` does: a study's pairs, pool and models to the Hub, by `karma.pairs.hub`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from karma.errors import InputError
from karma.pairs.hub import plan_uploads
from karma.pairs.hub import push as send


def push(
    study: Annotated[Path, typer.Option(help="A study's folder, outputs/NAME.")],
    repo: Annotated[str, typer.Option(help="USER/NAME of the data set; made if absent.")],
    models: Annotated[bool, typer.Option("--models", help="Its trained models too, a repository each.")] = False,
    public: Annotated[bool, typer.Option("--public", help="New repositories are public; without, private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
) -> None:
    """Push a study to the Hub: `karma push --study outputs/NAME --repo USER/NAME`.

    One data set with every strategy as a configuration, and the pool as another; log in first, or set HF_TOKEN.
    """
    for line in run_push(study, repo, models, public, dry_run):
        typer.echo(line)


def run_push(study: Path, repo: str, models: bool, public: bool, dry_run: bool) -> Iterator[str]:
    """Push, and yield what to tell the user, line by line.

    Args:
        study, repo, models, public, dry_run: the options of `karma push`.

    Raises:
        InputError: a folder or a name that cannot be used; nothing has been sent then. KarmaError: the Hub refused.
    """
    if not study.is_dir():
        raise InputError(f"--study {study}: there is no such folder")
    uploads = plan_uploads(study, repo, models)
    if dry_run:
        yield from (f"{one.kind} {one.repository}: {', '.join(one.files)}" for one in uploads)
        yield "next: the same without --dry-run; nothing was sent"
        return
    yield from send(uploads, private=not public)
    yield f'next: datasets.load_dataset("{repo}"), or with one of its strategies, which the card names'
