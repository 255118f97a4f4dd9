"""The policy's answers to its prompts: several a prompt, each drawn with a seed of its own.

Asked through the layer that origin evaluation uses (`karma.models.ask`), so transformers, vLLM and a server all work,
and every batch is kept on disk: a killed round asks nothing twice.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from karma.files.reading import load_json
from karma.files.writing import save_json
from karma.models.ask import CachedModel, sample_responses
from karma.models.load import Specs
from karma.study.sections import Compute, SelfPlay


def sample_answers(
    models: Specs, policy: str, prompts: list[str], n: int, settings: SelfPlay, compute: Compute, cache: Path | None
) -> list[list[str]]:
    """Draw n answers to each prompt.

    Args:
        models: name -> specification. policy: which of them answers.
        prompts: user turns. n: answers a prompt.
        settings: the experiment's `self_play` (temperature, top_p, max_new_tokens, batch_size, seed).
        compute: its `compute`.
        cache: folder of answers; None keeps nothing.

    Returns:
        For each prompt its n answers, in the order of the draws; the same on every run.
    """
    model = CachedModel(models, policy, compute, settings.batch_size, cache)
    seeds = [settings.seed * n + k for k in range(n)]
    draws = [sample_responses(model, prompts, settings, seed) for seed in seeds]
    return [list(answers) for answers in zip(*draws, strict=True)]


def remember(path: Path, compute: Callable[[], Any]) -> Any:
    """Return what a file holds, or compute it and keep it there; the file's name must say what it was computed from."""
    if not path.is_file():
        save_json(compute(), path)
    return load_json(path)
