"""The public names of the package: complete under Tab, light to import, each explained by an example."""

import doctest
import subprocess
import sys

import pytest

import karma

NAMES = {
    "load_score_table", "compute_s_pref", "compute_kinship", "load_pool", "build_pairs", "load_pairs", "save_pairs",
    "split_pairs", "select_pairs", "evaluate", "describe_run", "train", "load_experiment", "open_stage",
    "collect_results", "check_exercise", "explain_exercise", "KarmaError", "InputError",
}  # fmt: skip


def test_tab_completes_every_public_name():
    assert set(dir(karma)) == NAMES | {"__version__"} == set(karma.__all__) == set(karma._LAZY) | {"__version__"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_has_an_example(name):
    value = getattr(karma, name)
    assert doctest.DocTestFinder(recurse=False).find(value)[0].examples, f"{name} has no example"
    assert value.__name__ == name


def test_importing_the_package_is_light():
    heavy = ("numpy", "pandas", "torch", "pyarrow", "transformers", "trl", "datasets")
    code = f"import karma, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match="has no attribute 'bild_pairs'"):
        _ = karma.bild_pairs
