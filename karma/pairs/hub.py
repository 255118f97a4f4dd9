"""A study on the Hub: a data-set repository with every strategy's pairs and the pool, and a repository a trained model.

The data set's README names each strategy as a configuration, so that `load_dataset("USER/NAME", "k_sim")` gets that
one; the pool is `pool`. Decision: whatever can be found wrong here is found before anything is sent (names, folders,
books), and each repository gets all its files in one commit, which the Hub takes whole or not at all. New repositories
are private unless asked otherwise. Limit: several repositories are not one commit: where the Hub refuses a later one,
those before it are there, and the error says which.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from karma.errors import InputError, KarmaError
from karma.pairs.card import CardFacts, build_licences, build_table
from karma.pairs.pairs import load_pairs
from karma.study.escape import escape_markdown
from karma.vocabulary import find_strategy

SETS, POOL, RUNS = "pairs", "pool/pool.parquet", "runs"
_SET_FILES = ("pairs.parquet", "accounting.json", "README.md")
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".md")


@dataclass(frozen=True)
class Upload:
    """What one repository gets.

    Attributes:
        repository: "USER/NAME". kind: "dataset" or "model". files: path in the repository -> file, or its text.
    """

    repository: str
    kind: str
    files: dict[str, Path | str]


def check_repository(name: str, option: str = "--push-to-hub") -> None:
    """Raise an InputError where a name cannot be a repository's on the Hub, before anything is written for it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise InputError(f"{option} {name}: no name of a repository, expected USER/NAME or NAME") from None


def plan_uploads(study: Path, repository: str, models: bool) -> list[Upload]:
    """Return what goes to the Hub; all of it has been looked at.

    Args:
        study: outputs/NAME. repository: of the data set. models: whether each trained policy gets a repository too,
            named REPOSITORY-POLICY-STRATEGY-METHOD-seedK.

    Raises:
        InputError: no name of a repository, or a folder without pairs or with pairs that cannot be read.
    """
    check_repository(repository, "--repo")
    study = study.resolve()  # its name is the data set's
    sets = sorted(path.parent for path in (study / SETS).glob("*/pairs.parquet"))
    if not sets:
        raise InputError(f"{study} holds no pairs ({SETS}/STRATEGY/pairs.parquet): run its study up to stage 03")
    files: dict[str, Path | str] = {"README.md": _build_readme(study, repository, sets)}
    for folder in sets:
        files |= {f"{SETS}/{folder.name}/{name}": folder / name for name in _SET_FILES if (folder / name).is_file()}
    if (study / POOL).is_file():
        files[POOL] = study / POOL
    return [Upload(repository, "dataset", files), *(_plan_models(study, repository) if models else ())]


def _plan_models(study: Path, repository: str) -> Iterator[Upload]:
    folders = sorted(path.parent for path in (study / RUNS).glob("*/*/*/seed*/training.json"))
    if not folders:
        raise InputError(
            f"{study} holds no trained model ({RUNS}/): run its study up to stage 04, or leave out --models"
        )
    for run in folders:
        name = "-".join([repository, *run.relative_to(study / RUNS).parts])
        check_repository(name, "--repo, with a model's name added:")
        files = {path.name: path for path in sorted((run / "model").iterdir()) if path.suffix in _MODEL_FILES}
        if not any(path.suffix == ".safetensors" for path in files.values()):
            raise InputError(f"{run / 'model'} holds no weights: train it again")
        yield Upload(name, "model", dict(files))


def _build_readme(study: Path, repository: str, sets: Sequence[Path]) -> str:
    """Return the card of the data set: its configurations, what each is, and the licences of what is in them."""
    rows, facts, first = [], CardFacts(), sets[0].name
    configs: list[dict[str, Any]] = []
    for folder in sets:
        books = load_pairs(folder).accounting
        file = pq.ParquetFile(folder / "pairs.parquet")
        for k in range(file.num_row_groups):
            facts.add(file.read_row_group(k, columns=["chosen_model", "rejected_model", "prompt"]))
        rows.append((folder.name, f"{books.pairs_out:,}", find_strategy(books.strategy).rule))
        path = f"{SETS}/{folder.name}/pairs.parquet"
        configs.append({"config_name": folder.name, "data_files": [{"split": "train", "path": path}]})
    configs[0]["default"] = True
    if (study / POOL).is_file():
        configs.append({"config_name": "pool", "data_files": [{"split": "train", "path": POOL}]})
        rows.append(("pool", f"{pq.ParquetFile(study / POOL).metadata.num_rows:,}", "prompts with all their responses"))
    metadata = {"pretty_name": f"KARMA pairs ({study.name})", "task_categories": ["text-generation"],
                "tags": ["preference", "dpo", "karma"], "license": "other", "license_name": "see-licences-below",
                "configs": configs}  # fmt: skip
    return "\n\n".join([
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---", f"# {escape_markdown(study.name)}: preference pairs",
        "One configuration a strategy, made with the KARMA kit (method: arXiv 2502.18744); each has its own card and "
        f"accounting below `{SETS}/`.",
        f'```python\nload_dataset("{repository}", "{first}", split="train")\n```',
        build_table(("configuration", "rows", "what"), rows), "## Licences\n\n" + build_licences(facts.by_models),
    ]) + "\n"  # fmt: skip


def push(uploads: Sequence[Upload], private: bool = True) -> Iterator[str]:
    """Send each repository its files, in one commit; yield its address.

    Raises:
        KarmaError: the Hub refused one; those before it are there.
    """
    done: list[str] = []
    for upload in uploads:
        try:
            address = _commit(upload, private)
        except Exception as error:  # the Hub client raises many kinds; each becomes one line
            there = f"sent before: {', '.join(done)}" if done else "no file was sent"
            said = f"{upload.repository} on the Hub: {describe_error(error)} ({there})"
            raise KarmaError(f"{said}; check login and name") from None
        done.append(upload.repository)
        yield address


def _commit(upload: Upload, private: bool) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    operations = [CommitOperationAdd(name, source.encode() if isinstance(source, str) else source)
                  for name, source in upload.files.items()]  # fmt: skip
    named = api.create_repo(upload.repository, repo_type=upload.kind, private=private, exist_ok=True)
    api.create_commit(named.repo_id, operations, commit_message="KARMA kit: a study's files", repo_type=upload.kind)
    return f"{upload.kind} {named.repo_id}: {len(operations)} files"


def describe_error(error: Exception) -> str:
    """Return the Hub's complaint in one line, without the token, which some servers repeat."""
    from huggingface_hub import get_token

    text, token = " ".join(str(error).split()), get_token()
    return (text.replace(token, "(token)") if token else text)[:200]
