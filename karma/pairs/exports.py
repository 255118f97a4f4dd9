"""Pair sets for other tools: the public binarised shape, a saved `datasets` folder, the Hub.

The public shape (HuggingFaceH4/ultrafeedback_binarized) repeats the prompt inside chosen and rejected; TRL
1.16's DPOTrainer does not take it, older trainers want nothing else. The Hub gets the pair folder as it is,
with its card.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from karma.errors import InputError, KarmaError
from karma.files import atomic_path

FILES = ("pairs.parquet", "README.md", "accounting.json")


def build_binarized(table: pa.Table) -> pa.Table:
    """Return pairs in the public binarised shape.

    Args:
        table: pairs, in the shape of `karma.pairs.binarization.PAIR_SCHEMA`.

    Returns:
        prompt (text), prompt_id, chosen and rejected (user turn, assistant turn), messages (as chosen),
        score_chosen, score_rejected.
    """
    prompts = pc.list_flatten(table["prompt"])
    chats = [_join_turns(prompts, table[name]) for name in ("chosen", "rejected")]
    columns = {
        "prompt": pc.struct_field(prompts, "content"), "prompt_id": table["row_id"], "chosen": chats[0],
        "rejected": chats[1], "messages": chats[0], "score_chosen": table["chosen_score"],
        "score_rejected": table["rejected_score"],
    }  # fmt: skip
    return pa.table(columns)


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


def push_pairs(folder: str | Path, repository: str, private: bool = True, api: Any = None) -> str:
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
