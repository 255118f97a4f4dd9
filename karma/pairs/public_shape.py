"""Read pairs that others made: JSON lines or parquet in the public binarised shape.

A row has a prompt (text, or messages of several turns; under `messages` where there is no `prompt`), chosen and
rejected (texts, single messages, or whole conversations that end with the answer),
and where the pair was scored `score_chosen` and `score_rejected`, at the top or under `metadata`; `label_confidence`
is kept. Nothing says who
wrote the answers, so both models are "unknown" and kinship is empty; the file's name stands under `source` but not in
`row_id`, on which splits and ties are drawn: a renamed file draws the same pairs. Decision: blank and equal texts, and
rows without scores, are kept here and left to whoever uses the pairs to count; only what is no pair at all is an error.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from karma.errors import InputError, KarmaError, quote
from karma.files.reading import compute_file_digest, read_parquet
from karma.files.writing import atomic_path
from karma.pairs.accounting import Accounting
from karma.pairs.hub import describe_error
from karma.pairs.pairs import CONFIDENCE, PAIR_SCHEMA, ROLES, PairSet
from karma.pairs.turns import find_fault, is_messages, write_key
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
    given = row.get("prompt", row.get("messages"))
    (prompt, chosen), (other, rejected) = (_split(given, row[k], where, k) for k in ("chosen", "rejected"))
    if prompt != other:
        raise InputError(f"{where}: chosen and rejected answer different prompts")
    metadata: Any = row.get("metadata") if isinstance(row.get("metadata"), dict) else {}
    scores = [row.get(k, metadata.get(k)) for k in ("score_chosen", "score_rejected")]
    answers = [chosen[-1]["content"], rejected[-1]["content"]]
    completions = [{"model": UNKNOWN, "response": text} for text in answers]
    text = write_key(prompt)
    ids = [compute_response_id(UNKNOWN, text) for text in answers]
    return {
        "row_id": compute_row_id({"source": STRATEGY, "instruction": text, "completions": completions}),
        "source": source, "prompt": prompt, "chosen": chosen, "rejected": rejected, "chosen_model": UNKNOWN,
        "rejected_model": UNKNOWN, "chosen_score": _as_score(scores[0]), "rejected_score": _as_score(scores[1]),
        "kinship": None, "strategy": STRATEGY, "chosen_id": ids[0], "rejected_id": ids[1],
        CONFIDENCE: _as_score(row.get(CONFIDENCE)),
    }  # fmt: skip


def _split(prompt: Any, answer: Any, where: str, key: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return (prompt, answer), each as messages, of a text, a message or a whole conversation."""
    turns = [{"role": "assistant", "content": answer or ""}] if isinstance(answer, str | None) else answer
    turns = [turns] if isinstance(turns, dict) else turns
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    if not (is_messages(turns) and is_messages(asked)):
        raise InputError(f"{where}: prompt and {key} must be texts, or lists of role/content messages")
    turns, asked = ([{"role": m["role"], "content": m["content"] or ""} for m in side] for side in (turns, asked))
    if odd := [m["role"] for m in (*asked, *turns) if m["role"] not in ROLES]:
        raise InputError(f"{where}: a message is by {quote(odd[0])}, expected one of {', '.join(ROLES)}")
    before = turns[:-1] or asked
    if find_fault(turns, "assistant") or find_fault(before, "user"):
        raise InputError(f"{where}: expected a prompt by the user and a {key} answer by the assistant")
    if not isinstance(prompt, str) and asked and before not in (asked, asked[:-1]):  # `messages` may end with an answer
        raise InputError(f"{where}: prompt and what comes before the {key} answer are different conversations")
    return before, turns[-1:]


def _as_score(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


FILES = ("pairs.parquet", "README.md", "accounting.json")


def build_binarized(table: pa.Table) -> pa.Table:
    """Return pairs in the public binarised shape.

    Args:
        table: pairs, in the shape of `karma.pairs.binarizer.PAIR_SCHEMA`.

    Returns:
        prompt (the text of the user's last message), prompt_id, chosen and rejected (the prompt's turns, then the
        assistant's), messages (as chosen), score_chosen, score_rejected, and label_confidence where the pairs carry it.
    """
    prompts = table["prompt"].combine_chunks()
    chats = [_join_turns(prompts, table[name].combine_chunks()) for name in ("chosen", "rejected")]
    last = prompts.flatten().take(pa.array(np.cumsum(_count_turns(prompts)) - 1, pa.int64()))
    columns = {
        "prompt": pc.struct_field(last, "content"), "prompt_id": table["row_id"], "chosen": chats[0],
        "rejected": chats[1], "messages": chats[0], "score_chosen": table["chosen_score"],
        "score_rejected": table["rejected_score"],
    }  # fmt: skip
    return pa.table(columns | {name: table[name] for name in (CONFIDENCE,) if name in table.column_names})


def _join_turns(prompts: pa.ListArray, answers: pa.ListArray) -> pa.ListArray:
    """Put each answer, one message, behind the turns of its prompt."""
    turns, ends = prompts.flatten(), np.cumsum(_count_turns(prompts))
    order = np.insert(np.arange(len(turns)), ends, len(turns) + np.arange(len(ends)))
    joined = pa.concat_arrays([turns, answers.flatten()]).take(pa.array(order, pa.int64()))
    return pa.ListArray.from_arrays(pa.array(np.r_[0, ends + np.arange(1, len(ends) + 1)], pa.int32()), joined)


def _count_turns(prompts: pa.ListArray) -> np.ndarray:
    return np.asarray(prompts.value_lengths().to_numpy(zero_copy_only=False), np.int64)


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
        raise KarmaError(f"{repository} on the Hub: {describe_error(error)}; check login and name") from None
    return repository
