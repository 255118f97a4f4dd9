"""KARMA: preference data from the kinship of the models that wrote it (arXiv 2502.18744).

The names below are the public interface, completed under Tab; each is imported when it is first asked for, so that
importing the package is light. The folders follow the paper's method section: `scores`, `kinship`, `strategies`,
`pool`, `pairs`, `training`, `evaluation`, `potential`, `self_play`, `results`; `study` runs them.
"""

import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's bars are text where there are no widgets
if "ipykernel" in sys.modules and not {"JPY_SESSION_NAME", "VSCODE_PID"} & os.environ.keys():
    sys.modules.setdefault("ipywidgets", None)  # type: ignore[arg-type]  # nobody reads live: bars and figures stay text

if TYPE_CHECKING:
    __version__: str
    from karma.errors import InputError, KarmaError
    from karma.evaluation.runner import evaluate
    from karma.kinship.similarity import compute_kinship
    from karma.pairs.build import build_pairs
    from karma.pairs.folder import save_pairs
    from karma.pairs.pairs import load_pairs, split_pairs
    from karma.pool.pool import load_pool
    from karma.potential.selection import select_pairs
    from karma.results.exercises import check_exercise, explain_exercise
    from karma.results.study import collect_results
    from karma.scores.normalise import compute_s_pref
    from karma.scores.read import load_score_table
    from karma.study.experiment import load_experiment
    from karma.study.open import open_stage
    from karma.training.run import describe_run
    from karma.training.train import train

_LAZY = {
    "InputError": "karma.errors", "KarmaError": "karma.errors", "build_pairs": "karma.pairs.build",
    "check_exercise": "karma.results.exercises", "explain_exercise": "karma.results.exercises",
    "collect_results": "karma.results.study", "compute_kinship": "karma.kinship.similarity",
    "compute_s_pref": "karma.scores.normalise", "describe_run": "karma.training.run",
    "evaluate": "karma.evaluation.runner",
    "load_experiment": "karma.study.experiment", "load_pairs": "karma.pairs.pairs", "load_pool": "karma.pool.pool",
    "load_score_table": "karma.scores.read", "open_stage": "karma.study.open", "save_pairs": "karma.pairs.folder",
    "select_pairs": "karma.potential.selection", "split_pairs": "karma.pairs.pairs", "train": "karma.training.train",
}  # fmt: skip
__all__ = [
    "InputError", "KarmaError", "__version__", "build_pairs", "check_exercise", "collect_results", "compute_kinship",
    "compute_s_pref", "describe_run", "evaluate", "explain_exercise", "load_experiment", "load_pairs", "load_pool",
    "load_score_table", "open_stage", "save_pairs", "select_pairs", "split_pairs", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the module behind a public name when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name == "__version__":
        return _find_version()
    raise AttributeError(f"module 'karma' has no attribute '{name}'")


def _find_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("karma-kit")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return sorted(__all__)
