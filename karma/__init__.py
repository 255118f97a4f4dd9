"""KARMA: preference data from the kinship of the models that wrote it (arXiv 2502.18744).

The package follows the paper's method section, one module a step: `scores` (origin models on benchmarks),
`kinship` (how alike two origin models are), `pool` (their responses), `pairs` (who is chosen, who rejected),
`training` (SFT and DPO), `evaluation`, `results`. Importing it is light: torch is loaded by the steps that need it.
"""

import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's bars are drawn as text, in JupyterLab too

try:
    __version__ = version("karma-kit")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_LAZY = {
    "build_pairs": "karma.pairs.build",
    "load_pool": "karma.pool.pool",
    "load_score_table": "karma.scores.read",
    "load_experiment": "karma.study.experiment",
}
__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str):
    """Import the module behind a public name when it is first asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'karma' has no attribute '{name}'")
