"""What notebooks say in prose: numbers as they are computed, plain words, folded plumbing, nothing red."""

import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest

from karma import compute_kinship, load_experiment, load_score_table
from karma.kinship.study import build_study
from karma.statistics.intervals import compute_wilson
from karma.study.outputs import settle, tidy_outputs
from tests.conftest import ROOT

NOTEBOOKS = [p for p in sorted((ROOT / "notebooks").glob("*.ipynb")) if not p.name.startswith("06")]
HOUSE_WORDS = ("by lot", "drew lots", "the books", "books balance", "father", "brother", "strangers", "coin flips")


def read(path):
    return nbformat.read(path, as_version=4)


def prose_of(path):
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_prose_has_no_house_words(path):
    said = prose_of(path).lower()
    assert not [word for word in HOUSE_WORDS if word in said]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_imports_and_the_opening_of_a_stage_are_folded(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    importing = next(cell for cell in cells if re.match(r"(import|from) ", cell.source))
    opening = [cell for cell in cells if "open_stage(" in cell.source and cell is not importing]
    assert len(opening) == (0 if path.stem.startswith("00") else 1)
    for cell, tag in [(importing, "hide-input"), *((cell, "hide-cell") for cell in opening)]:
        assert tag in cell.metadata["tags"] and cell.metadata["jupyter"]["source_hidden"]
    assert all(cell.metadata["jupyter"]["outputs_hidden"] for cell in opening)  # a wall of settings


@pytest.fixture(scope="module")
def table3():
    return build_study(load_score_table("paper"), **load_experiment("params/paper.yaml").settings.kinship.model_dump())


def test_what_02_says_of_table_3_is_what_is_computed(table3):
    said = prose_of(ROOT / "notebooks" / "02_kinship_analysis.ipynb").split("## The same with the paper's Table 3")[1]
    said = said.split("## What was saved")[0]
    kinship = table3.kinship.to_numpy()
    upper = kinship[np.triu_indices(len(kinship), 1)]
    share = table3.pca.explained[0] if hasattr(table3.pca, "explained") else table3.pca.shares[0]
    assert f"it holds {share:.0%} of the variance".replace("%", " %") in said
    assert round(3 * (upper > 0.8).mean()) == 2 and "Two pairs in three have a kinship above 0.8" in said
    assert (upper < 0.1).sum() == 1 and f"removes one pair of {len(upper)}" in said
    for label, row in table3.agreement.loc[["developer", "family"]].iterrows():
        n, by_chance = round(row["shared"] * row["n"]), round(row["expected"] * row["n"])
        told = f"{n} of {row['n']:.0f}" + (" cases" if label == "developer" else "")
        assert f"own {label} in {told} (by chance {by_chance}; p = {row['p']:.1g})" in said
    stand = table3.mantel[table3.mantel["p_holm"] < 0.05]
    assert f"Of {len(table3.mantel)} tests of RQ4 two stand" in said
    assert {*zip(stand["distance"], stand["factor"], stand["group"], strict=True)} == {
        ("rmsd", "same family", "total"), ("cosine", "same family", "knowledge")}  # fmt: skip
    flips = int((table3.pairs["p_flip"] >= 0.1).sum())
    assert f"{flips} of {len(upper)} preferences flip in 10 % of the redraws or more" in said
    changed = table3.sensitivity.set_index(["variant", "strategy"])["sets_changed"].xs("k_sim", level="strategy")
    without = {
        name: next(v for key, v in changed.items() if name.lower() in key.lower()) for name in ("HellaSwag", "IFEval")
    }
    error = table3.choice_uncertainty.loc["k_sim", "p_other_in_sets"]
    told = [f"{100 * value:.0f} %" for value in (*without.values(), error)]
    assert (
        f"changes K_sim's pair in {told[0]} of the sets, leaving out IFEval in {told[1]}, sampling error alone in {told[2]}"
        in said
    )


def test_what_00_says_of_the_paper_is_what_is_computed():
    said = prose_of(ROOT / "notebooks" / "00_karma_in_one_page.ipynb")
    kinship = compute_kinship(load_score_table("paper")).to_numpy()
    upper = kinship[np.triu_indices(len(kinship), 1)]
    assert (upper < 0.1).sum() == 1 and "`tau = 0.1` removes a single pair" in said
    assert "sixteen origin models" in said and len(kinship) == 16


def test_what_04_and_05_and_09_say_by_hand_is_what_is_computed():
    rewards = np.array([0, 0, 0.5, 1])
    advantages = (rewards - rewards.mean()) / rewards.std(ddof=1), rewards - (rewards.sum() - rewards) / 3
    said = prose_of(ROOT / "notebooks" / "04_alignment_training.ipynb")
    assert f"the first is ${advantages[0][0]:.2f}$ here, or $-\\tfrac{{1}}{{2}}$" in said and advantages[1][0] == -0.5
    limit = load_experiment("params/demo.yaml").settings.benchmarks.policy_limits["arc_easy"]
    assert f"With {limit} items a difference of {1 / limit:.2f} is one item" in prose_of(
        ROOT / "notebooks" / "05_policy_evaluation.ipynb"
    )
    assert compute_wilson(0.5, 4)[0] < 0.5


def test_of_bars_the_last_state_is_kept_and_nothing_is_red():
    cell = nbformat.v4.new_code_cell("train()", outputs=[
        nbformat.v4.new_output("stream", name="stderr", text="\rheld-out pairs:  10%|#   | 1/9"),
        nbformat.v4.new_output("stream", name="stderr", text="\rheld-out pairs: 100%|####| 9/9\n"),
        nbformat.v4.new_output("stream", name="stderr", text="\r  0%|          | 0/28 [00:00<?, ?it/s]\n"),
        nbformat.v4.new_output("stream", name="stdout", text="done\n"),
        nbformat.v4.new_output("stream", name="stderr", text="\x1b[31ma warning\x1b[0m\n"),
        nbformat.v4.new_output("stream", name="stderr", text="`pretrained` model kwarg is not of type `str`. Many\n"),
        nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%"}),
        nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=["no"])])  # fmt: skip
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("x", outputs=[
        nbformat.v4.new_output("stream", name="stderr", text="\r  0%|    | 0/4\r100%|####| 4/4\n")])])  # fmt: skip
    tidied = tidy_outputs(notebook)
    nbformat.validate(tidied)
    shown = [(o.output_type, o.get("name"), o.get("text")) for o in tidied.cells[0].outputs]
    assert shown == [("stream", "stdout", "held-out pairs: 100%|####| 9/9\n"), ("stream", "stdout", "done\n"),
                     ("stream", "stdout", "a warning\n"), ("error", None, None)]  # fmt: skip
    assert tidied.cells[1].outputs == []
    assert settle("\n\n") == ""


def test_a_warning_is_a_note_without_the_path_of_a_machine():
    warned = "/a/b/karma/potential/margins.py:168: UserWarning: the margin is the same\n  z = compute_z(margin)\n"
    assert settle("first\n" + warned + "last\n") == "first\nnote: the margin is the same\nlast"
    assert settle(warned + warned.replace(":168", ":9")) == "note: the margin is the same\nnote: the margin is the same"


def test_a_bar_without_a_name_is_not_drawn():
    code = "from tqdm.auto import tqdm\nfrom karma.study.outputs import hide_nameless_bars\nhide_nameless_bars()\n"
    code += "list(tqdm(range(3)))\nlist(tqdm(range(4), desc='pairs'))\nlist(tqdm(range(5), 'items'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "4/4" in said and "5/5" in said and "3/3" not in said
