"""What the task YAMLs call, by lm-evaluation-harness's `!function`; the logic is in the package."""

from datasets import Dataset

from karma.evaluation.ifeval import average_instructions, check_items, score_instructions
from karma.evaluation.items import load_items
from karma.evaluation.protocol import (
    score_choice,
    score_cloze,
    score_logprobs,
    write_bare_context,
    write_choice_prompt,
    write_cloze_context,
    write_statements,
)

__all__ = [
    "average_instructions", "load", "score_choice", "score_cloze", "score_instructions", "score_logprobs",
    "write_bare_context", "write_choice_prompt", "write_cloze_context", "write_statements",
]  # fmt: skip


def load(
    benchmark: str, folder: str | None = None, limit: int | None = None, limits: dict[str, int] | None = None,
    every: int = 1, **_,
) -> dict[str, Dataset]:  # fmt: skip
    """Load a benchmark's items, or every so manieth of them, as the split `test`."""
    items = load_items(benchmark, folder, (limits or {}).get(benchmark, limit))[::every]
    if benchmark == "ifeval":
        check_items(items)
    return {"test": Dataset.from_list(items)}
