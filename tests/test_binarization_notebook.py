"""Notebook 03 on a small study made here: it runs, saves what it shows, and says what it dropped."""

import json
import random
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from karma.errors import InputError
from karma.pairs.build import build_pairs
from karma.pairs.pairs import load_pairs
from karma.pairs.premise import PARTS
from karma.pool.pool import load_pool, save_pool
from karma.pool.responses import compute_response_id, compute_row_id
from karma.scores.read import load_score_table, save_score_table
from karma.study.execute import run_stage

ROOT = Path(__file__).resolve().parents[1]
SCORES = """origin_model,ifeval,mmlu_stem,mmlu_pro,hellaswag,arc_easy,arc_challenge
smollm2-135m,0.40,0.35,0.20,0.45,0.50,0.40
smollm2-noise-3,0.38,0.33,0.22,0.44,0.52,0.36
smollm2-noise-5,0.30,0.30,0.18,0.40,0.44,0.30
smollm2-noise-8,0.10,0.24,0.10,0.25,0.26,0.22
smollm2-drop-1,0.35,0.28,0.16,0.38,0.40,0.33
smollm2-drop-2,0.20,0.26,0.12,0.30,0.28,0.27
"""
THEMES = [
    "a river in spring",
    "the price of salt",
    "how ships keep time",
    "why bread rises",
    "maps of the moon",
]


def make_rows(n, models):
    dice = random.Random(1)
    for i in range(n):
        theme = THEMES[i % len(THEMES)]
        answers = [
            {
                "model": m,
                "response": f"About {theme}. "
                + "It depends on the season, said the miller. " * dice.randint(1, 9)
                + m[-3:],
            }
            for m in dice.sample(models, 4)
        ]
        yield {"source": "own", "instruction": f"Tell me about {theme}, version {i}.", "completions": answers}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A clone's skeleton with a pool, its judge's ratings and kinship files; rows 0 and 1 are unusable."""
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "params", root / "params")
    (root / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "03_binarization.ipynb", root / "notebooks")
    outputs = root / "outputs" / "demo"
    (outputs / "kinship").mkdir(parents=True)
    (outputs / "kinship" / "scores.csv").write_text(SCORES)
    save_score_table(load_score_table(outputs / "kinship" / "scores.csv"), outputs / "kinship" / "scores.csv")
    for name in ("scores_normalized.csv", "s_pref.csv"):
        (outputs / "kinship" / name).write_text(SCORES)
    (outputs / "kinship" / "strategies.json").write_text("{}")
    rows = list(make_rows(60, [line.split(",")[0] for line in SCORES.splitlines()[1:]]))
    rows[0]["instruction"] = " "
    rows[1]["completions"] = rows[1]["completions"][:1]
    save_pool(rows, outputs / "pool" / "pool.parquet")
    (outputs / "pool" / "accounting.json").write_text("{}")
    dice = random.Random(2)
    rated = [
        (compute_row_id(r), compute_response_id(c["model"], c["response"])) for r in rows for c in r["completions"]
    ]
    columns = {"row_id": [a for a, _ in rated], "response_id": [b for _, b in rated]}
    table = pa.table(columns | {"score": [dice.uniform(1, 5) for _ in rated]})
    pq.write_table(table, outputs / "pool" / "annotations.parquet")
    (outputs / "pool" / "annotation_cost.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def executed(study):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study)
        return run_stage("03_binarization", "params/demo.yaml", {"strategy": "k_sim"})


def test_pairs_are_those_of_the_library(executed):
    folder = executed.folder
    outputs = folder.parents[1]
    scores = load_score_table(outputs / "kinship" / "scores.csv")
    expected = build_pairs(load_pool(outputs / "pool" / "pool.parquet"), scores, "k_sim", tau=0.1, seed=0)
    saved = load_pairs(folder)
    assert saved.table.equals(expected.table)
    assert saved.accounting.rows_in == 60 and saved.accounting.pairs_out == 58
    assert dict(+saved.accounting.dropped) == {"no_prompt": 1, "fewer_than_two_responses": 1}


def test_figures_table_and_card(executed):
    names = {p.name for p in (executed.folder / "figures").glob("*.png")}
    shown = ("overlap", "model_pairs", "quality_gap", "premise", "agreement", "curriculum")
    assert names == {f"{name}.png" for name in shown}
    assert "k_sim: 58 preference pairs" in (executed.folder / "README.md").read_text("utf-8")
    assert (executed.folder / "quality_gap.csv").read_text().startswith("measure,strategy,baseline,n,mean")
    tests, curve, models = (pd.read_csv(executed.folder / "premise" / f"{part}.csv") for part in PARTS)
    assert set(tests["relation"]) == {"kinship", "s_pref"} and {"length", "judge"} <= set(tests["measure"])
    assert len(models) == 15 and models["n"].sum() == curve["n_pairs"].max() == 58 * 6, "six pairs a usable prompt"


def test_no_path_of_this_machine_in_the_saved_files(executed):
    for name in ("README.md", "accounting.json", "quality_gap.csv"):
        assert str(executed.experiment.root) not in (executed.folder / name).read_text("utf-8")


def test_it_shows_every_strategy(executed):
    notebook = json.loads(executed.executed_notebook.read_text("utf-8"))
    text = json.dumps([c.get("outputs") for c in notebook["cells"] if c["cell_type"] == "code"])
    for phrase in (
        "k_score_sim",
        "random",
        "the accounting adds up",
        "measures by verdict",
        "annotation this strategy saves",
    ):
        assert phrase in text, phrase


def test_missing_input_names_what_to_run(study, monkeypatch):
    monkeypatch.chdir(study)
    kept = study / "outputs" / "demo" / "kinship" / "scores.csv"
    content = kept.read_text()
    kept.unlink()
    try:
        with pytest.raises(InputError, match=r"02_kinship_analysis\.ipynb first"):
            run_stage("03_binarization", "params/demo.yaml", {"strategy": "k_sim"})
    finally:
        kept.write_text(content)


def test_shape_of_the_source():
    cells = json.loads((ROOT / "notebooks" / "03_binarization.ipynb").read_text("utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert len(cells) <= 30 and not any(c["outputs"] or c["execution_count"] for c in code)
    assert max(len("".join(c["source"]).splitlines()) for c in code) <= 20
    for cell in code:
        assert "lesson" in cell["metadata"].get("tags", []) or "def " not in "".join(cell["source"])
