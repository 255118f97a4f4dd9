"""Read pairs that others made: JSON lines or parquet in the public binarised shape.

A row has a prompt (text, or messages), chosen and rejected (texts, or whole conversations that end with the answer),
and where the pair was scored `score_chosen` and `score_rejected`, at the top or under `metadata`; `label_confidence`
is kept. Nothing says who
wrote the answers, so both models are "unknown" and kinship is empty; the file's name stands under `source` but not in
`row_id`, on which splits and ties are drawn: a renamed file draws the same pairs. Decision: blank and equal texts, and
rows without scores, are kept here and left to whoever uses the pairs to count; only what is no pair at all is an error.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from karma.errors import InputError, KarmaError
from karma.files import atomic_path, compute_file_digest, read_parquet
from karma.pairs.accounting import Accounting
from karma.pairs.pairs import CONFIDENCE, PAIR_SCHEMA, PairSet
from karma.pool.responses import compute_response_id, compute_row_id
from karma.pool.rows import read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi

STRATEGY, UNKNOWN = "binarized", "unknown"


def load_binarized(path: str | Path) -> PairSet:
    """Load a file of pairs in the public binarised shape.

    Args:
        path: .jsonl, .json or .parquet.

    Returns:
        One pair a row, in the file's order, in the columns of `karma.pairs.binarizer.PAIR_SCHEMA`.

    Raises:
        InputError: unreadable, or a row that is no pair (the message names it).
    """
    path = Path(path)
    rows = [_build_row(row, f"{path.name}: row {number}", path.stem) for number, row in _read(path)]
    if not rows:
        raise InputError(f"{path} holds no rows")
    blank = sum(not row[side][-1]["content"].strip() for row in rows for side in ("chosen", "rejected"))
    accounting = Accounting(STRATEGY, rows_in=len(rows), pairs_out=len(rows), responses_in=2 * len(rows),
                            responses_usable=2 * len(rows) - blank)  # fmt: skip
    accounting.responses_unused["empty_response"] = blank
    accounting.settings = {"file": path.name, "file_digest": compute_file_digest(path)}
    return PairSet(pa.Table.from_pylist(rows, PAIR_SCHEMA), accounting)


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".parquet":
        return enumerate(read_parquet(path).to_pylist(), 1)
    if path.suffix not in (".jsonl", ".json"):
        raise InputError(f"{path}: expected a pair folder, or a .jsonl, .json or .parquet file")
    return read_json(path)


def _build_row(row: Any, where: str, source: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where} is {type(row).__name__}, expected an object with prompt, chosen and rejected")
    for key in ("chosen", "rejected"):
        if key not in row:
            raise InputError(f"{where} has no '{key}'; it has {', '.join(map(str, row)) or 'nothing'}")
    (prompt, chosen), (other, rejected) = (_split(row.get("prompt"), row[k], where, k) for k in ("chosen", "rejected"))
    if prompt != other:
        raise InputError(f"{where}: chosen and rejected answer different prompts")
    metadata: Any = row.get("metadata") if isinstance(row.get("metadata"), dict) else {}
    scores = [row.get(k, metadata.get(k)) for k in ("score_chosen", "score_rejected")]
    answers = [chosen[-1]["content"], rejected[-1]["content"]]
    completions = [{"model": UNKNOWN, "response": text} for text in answers]
    text = "\n".join(m["content"] for m in prompt)
    ids = [compute_response_id(UNKNOWN, text) for text in answers]
    return {
        "row_id": compute_row_id({"source": STRATEGY, "instruction": text, "completions": completions}),
        "source": source, "prompt": prompt, "chosen": chosen, "rejected": rejected, "chosen_model": UNKNOWN,
        "rejected_model": UNKNOWN, "chosen_score": _as_score(scores[0]), "rejected_score": _as_score(scores[1]),
        "kinship": None, "strategy": STRATEGY, "chosen_id": ids[0], "rejected_id": ids[1],
        CONFIDENCE: _as_score(row.get(CONFIDENCE)),
    }  # fmt: skip


def _split(prompt: Any, answer: Any, where: str, key: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return (prompt, answer), each as messages, of a text or of a whole conversation."""
    turns = [{"role": "assistant", "content": answer or ""}] if isinstance(answer, str | None) else answer
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    for messages in (turns, asked):
        if not isinstance(messages, list) or not all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str | None)
            for m in messages
        ):
            raise InputError(f"{where}: prompt and {key} must be texts, or lists of role/content messages")
    turns = [{"role": m["role"], "content": m["content"] or ""} for m in turns]
    before = turns[:-1] or [{"role": m["role"], "content": m["content"] or ""} for m in asked]
    if not turns or turns[-1]["role"] != "assistant" or not before or before[-1]["role"] != "user":
        raise InputError(f"{where}: expected a prompt by the user and a {key} answer by the assistant")
    return before, turns[-1:]


def _as_score(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


FILES = ("pairs.parquet", "README.md", "accounting.json")


def build_binarized(table: pa.Table) -> pa.Table:
    """Return pairs in the public binarised shape.

    Args:
        table: pairs, in the shape of `karma.pairs.binarizer.PAIR_SCHEMA`.

    Returns:
        prompt (text), prompt_id, chosen and rejected (user turn, assistant turn), messages (as chosen),
        score_chosen, score_rejected, and label_confidence where the pairs carry it.
    """
    prompts = pc.list_flatten(table["prompt"])
    chats = [_join_turns(prompts, table[name]) for name in ("chosen", "rejected")]
    columns = {
        "prompt": pc.struct_field(prompts, "content"), "prompt_id": table["row_id"], "chosen": chats[0],
        "rejected": chats[1], "messages": chats[0], "score_chosen": table["chosen_score"],
        "score_rejected": table["rejected_score"],
    }  # fmt: skip
    return pa.table(columns | {name: table[name] for name in (CONFIDENCE,) if name in table.column_names})


def _join_turns(prompts: pa.ChunkedArray, answers: pa.ChunkedArray) -> pa.ListArray:
    user, assistant = prompts.combine_chunks(), pc.list_flatten(answers).combine_chunks()
    n = len(user)
    turns = pa.concat_arrays([user, assistant]).take(pa.array([i + k for i in range(n) for k in (0, n)], pa.int64()))
    return pa.ListArray.from_arrays(pa.array(range(0, 2 * n + 1, 2), pa.int32()), turns)


def save_binarized(folder: str | Path) -> Path:
    """Write binarized.parquet beside pairs.parquet, one row group at a time."""
    source, target = pq.ParquetFile(Path(folder) / FILES[0]), Path(folder) / "binarized.parquet"
    schema = build_binarized(source.schema_arrow.empty_table()).schema
    with atomic_path(target) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for i in range(source.num_row_groups):
            writer.write_table(build_binarized(source.read_row_group(i)).cast(schema))
    return target


def save_dataset(folder: str | Path) -> Path:
    """Write a saved `datasets` folder, `dataset/`, beside pairs.parquet."""
    import datasets

    target = Path(folder) / "dataset"
    rows = datasets.load_dataset("parquet", data_files=str(Path(folder) / FILES[0]), split="train")
    with atomic_path(target) as temporary:
        rows.save_to_disk(str(temporary))
    return target


def check_repository(name: str) -> None:
    """Raise an InputError where a name cannot be a repository's on the Hub, before anything is written for it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise InputError(f"--push-to-hub {name}: no name of a repository, expected USER/NAME or NAME") from None


def push_pairs(folder: str | Path, repository: str, private: bool = True, api: "HfApi | None" = None) -> str:
    """Upload a pair folder, card included, to a data-set repository on the Hub.

    Args:
        folder: a pair folder.
        repository: "user/name"; made if absent.
        private: of a new repository.
        api: a huggingface_hub.HfApi, for tests.

    Returns:
        The repository's name.

    Raises:
        InputError: not a pair folder. KarmaError: the Hub refused.
    """
    missing = [name for name in FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise InputError(f"{folder} is no pair folder: {missing[0]} is missing; make one with `karma binarize`")
    from huggingface_hub import HfApi

    api = api or HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repository, repo_type="dataset", allow_patterns=list(FILES))
    except Exception as error:  # the Hub client raises many kinds; each becomes one line
        raise KarmaError(
            f"{repository} on the Hub: {' '.join(str(error).split())[:200]}; check login and name"
        ) from error
    return repository
