"""The kinship folder: files for other stages, the command, a measured study, thousands of models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from karma.cli import app
from karma.commands.kinship import analyse
from karma.errors import InputError
from karma.files.writing import save_json
from karma.kinship.clusters import compute_clusters, compute_pca, compute_trees
from karma.kinship.similarity import compute_kinship
from karma.kinship.study import build_study, describe_study, save_study, summarize
from karma.scores.measured import load_example_answers, load_study_table
from karma.scores.normalise import compute_normalized, compute_s_pref
from karma.scores.read import load_origin_models, load_score_table
from karma.study.execute import run_stage
from karma.study.experiment import load_experiment
from karma.study.stages import STAGES, find_job

SETTINGS = {"tau": 0.1, "distance": "rmsd", "linkage": "average", "cut": 0.4}
ROOT = Path(__file__).resolve().parents[1]
LEADERBOARD = "open_llm_leaderboard_3827.csv"


def run(*arguments) -> str:
    result = CliRunner().invoke(app, ["kinship", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("kinship")
    analyse(load_score_table("paper"), out, **SETTINGS)
    return out


def test_files_that_other_stages_read(folder):
    table = load_score_table("paper")
    assert all((folder / name).is_file() for name in STAGES["02_kinship_analysis"].products)
    kinship = pd.read_csv(folder / "kinship.csv", index_col="origin_model")
    np.testing.assert_allclose(kinship, compute_kinship(table), atol=1e-12)
    s_pref = pd.read_csv(folder / "s_pref.csv", index_col="origin_model")
    assert list(s_pref) == ["s_pref"]
    np.testing.assert_allclose(s_pref["s_pref"], compute_s_pref(table))
    pd.testing.assert_frame_equal(load_score_table(folder / "scores.csv").scores, table.scores)


def test_strategies_json(folder):
    found = json.loads((folder / "strategies.json").read_text())
    assert (found["n_pairs"], found["n_eligible_pairs"], found["tau"]) == (120, 119, 0.1)
    assert found["strategies"]["k_sim"]["chosen"] == "Llama-2-13b-chat"
    assert len(found["below_chance"]) == 5
    assert "assumed" in found["n_items_source"]


def test_every_figure_is_there_as_png_and_svg(folder):
    names = {p.name for p in (folder / "figures").iterdir()}
    stems = [
        "figure3_worked_example",
        "figure4_pca",
        "figure7_dendrograms",
        "figure9_worked_example",
        "kinship",
        "sensitivity",
        "uncertainty",
    ]
    assert names == {f"{s}{suffix}" for s in stems for suffix in (".png", ".svg")}


@pytest.mark.parametrize(
    ("group", "n"), [("total", 3), ("knowledge", 2), ("reasoning", 3), ("instruction following", 2)]
)
def test_clusters_of_figure_7(group, n):
    gaps, tree = compute_trees(load_score_table("paper"), "rmsd", "average")[group]
    assert compute_clusters(tree, 0.4, gaps.index).nunique() == n


def test_cosine_tree_of_knowledge_puts_the_zero_vector_apart():
    gaps, tree = compute_trees(load_score_table("paper"), "cosine", "average")["knowledge"]
    assert gaps.loc["Pythia-12b"].drop("Pythia-12b").eq(1).all()
    assert (np.diag(gaps) == 0).all()
    assert tree[-2, 2] == pytest.approx(0.098, abs=5e-4)  # where the tree tops out without it


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"distance": "l2"}, "distance is 'l2', expected one of rmsd, cosine"),
        ({"linkage": "median"}, "linkage is 'median', expected one of average"),
        ({"cut": 0.0}, "cut is 0.0, a distance above 0, up to"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(InputError, match=message):
        build_study(load_score_table("paper"), **(SETTINGS | setting))


def test_pca_explains_all_the_variance_and_rebuilds_the_table():
    normalized = compute_normalized(load_score_table("paper"))
    pca = compute_pca(normalized)
    assert pca.explained.sum() == pytest.approx(1) and pca.explained[0] == pytest.approx(0.738, abs=5e-4)
    rebuilt = pca.positions.to_numpy() @ pca.loadings.to_numpy().T + normalized.mean().to_numpy()
    np.testing.assert_allclose(rebuilt, normalized, atol=1e-12)
    assert (pca.loadings["PC1"] > 0).all()  # ability


def test_facts_of_the_origin_models_say_what_is_unknown():
    facts = load_origin_models()
    assert facts.index.tolist() == load_score_table("paper").scores.index.tolist()
    closed = facts.loc[["GPT-4", "GPT-3.5-turbo", "bard"], ["base_model", "size_b"]]
    assert closed.isna().all(axis=None) and facts["source"].notna().all()


def test_command_on_the_shipped_table(tmp_path, monkeypatch):
    monkeypatch.setattr("karma.figures.kinship_study.save_study_figures", lambda study, folder: [])
    output = run("--scores", ROOT / "karma/data/paper/table3.csv", "--out", tmp_path / "out")
    assert "k_sim: Llama-2-13b-chat > Llama-2-7b-chat (kinship 0.9961)" in output
    assert "warning: Starchat is at or below chance on arc_challenge" in output
    assert "4 of 120 preferences flip in 10 % of redraws or more" in output


def test_own_model_among_the_papers(tmp_path, monkeypatch):
    monkeypatch.setattr("karma.figures.kinship_study.save_study_figures", lambda study, folder: [])
    mine = tmp_path / "my.csv"
    head = "origin_model,ifeval,mmlu_stem,mmlu_pro,hellaswag,arc_easy,arc_challenge\n"
    mine.write_text(head + "mine-a,25,54,0.21,68,73,55\nmine-b,80,70,0.55,90,92,85\n")
    output = run("--scores", mine, "--with-paper", "--out", tmp_path / "out")
    assert "mine-a: nearest kin Llama-2-7b-chat" in output and "family Llama" in output
    assert len(pd.read_csv(tmp_path / "out" / "kinship.csv")) == 18


def test_refusal_leaves_no_folder(tmp_path):
    mine = tmp_path / "my.csv"
    mine.write_text("origin_model,ifeval\na,1\nb,\n")
    with pytest.raises(InputError, match="row 'b', column 'ifeval' is empty"):
        run("--scores", mine, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_last_everywhere_is_named(tmp_path):
    mine = tmp_path / "my.csv"
    mine.write_text("origin_model,ifeval,arc_easy\na,10,30\nb,50,80\nc,40,90\n")
    study = build_study(load_score_table(mine), **SETTINGS)
    assert describe_study(study)["last_everywhere"] == ["a"]
    assert "warning: a is last on every benchmark: kinship 0 to all others" in summarize(study)


def test_two_models_and_one_benchmark_make_every_figure(tmp_path):
    mine = tmp_path / "my.csv"
    mine.write_text("origin_model,ifeval\na,10\nb,50\n")
    analyse(load_score_table(mine), tmp_path / "out", **SETTINGS)
    assert (tmp_path / "out" / "figures" / "uncertainty.png").is_file()


def build_study_folder(root, models, n_correct):
    """Write a project with scores.json and answers.parquet of measured origin models."""
    shutil.copytree(ROOT / "params", root / "params")
    shutil.copy(ROOT / "tests" / "study.yaml", root / "params" / "demo.yaml")
    (root / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "02_kinship_analysis.ipynb", root / "notebooks")
    for model, correct in zip(models, n_correct, strict=True):
        folder = root / "outputs" / "demo" / "origins" / model
        cell = {"n": 28, "task_version": 1, "template_hash": "x", "shots": 0}
        values = {name: {"value": c / 28, **cell} for name, c in correct.items()}
        save_json({"model": model, "benchmarks": values}, folder / "scores.json")
        right = [int(i < correct["arc_easy"]) for i in range(28)]
        rows = {
            "benchmark": ["arc_easy"] * 28,
            "item_id": [str(i) for i in range(28)],
            "prompt": [f"question {i}" for i in range(28)],
            "answer": ["The answer is (A)."] * 28,
            "extracted": ["A"] * 28,
            "correct": right,
            "n": [1] * 28,
        }
        pq.write_table(pa.table(rows), folder / "answers.parquet")


@pytest.fixture
def measured_job(tmp_path, monkeypatch):
    models = load_experiment(str(ROOT / "tests" / "study.yaml")).settings.origin_models
    counts = [
        {"ifeval": 5 + 2 * i, "mmlu_stem": 8 + i % 3, "arc_easy": 20 - 2 * i, "arc_challenge": 7} for i in range(6)
    ]
    build_study_folder(tmp_path, models, counts)
    monkeypatch.chdir(tmp_path)
    return find_job(load_experiment("params/demo.yaml"), "02_kinship_analysis", {})


def test_measured_study(measured_job, tmp_path):
    table = load_study_table(measured_job)
    assert table.n_items == {"ifeval": 28, "mmlu_stem": 28, "arc_easy": 28}
    assert table.notes == ("arc_challenge: all models score 0.2500; it is left out",)
    assert table.facts.loc["smollm2-drop-1", "base_model"] == "smollm2-135m"
    study = build_study(table, **SETTINGS)
    save_study(study, tmp_path / "kinship")
    assert study.n_sets == 15 and study.choice_uncertainty is not None
    assert study.pairs["coin_flip"].sum() > 1  # 28 items say little


def test_example_item_is_the_one_models_disagree_on(measured_job):
    answers = load_example_answers(measured_job)
    assert len(answers) == 6 and 0 < answers["correct"].sum() < 6
    assert answers["prompt"].nunique() == 1


def test_notebook_on_a_measured_study(measured_job):
    job = run_stage("02_kinship_analysis", "params/demo.yaml", {})
    assert all(path.is_file() for path in job.products)
    assert (job.folder / "figures" / "figure7_dendrograms.png").is_file()
    found = json.loads((job.folder / "strategies.json").read_text())
    assert found["n_items_source"] == "measured" and found["n_origin_models"] == 6


def test_notebook_on_the_papers_table(measured_job):
    job = run_stage("02_kinship_analysis", "params/paper.yaml", {})
    found = json.loads((job.folder / "strategies.json").read_text())
    assert found["strategies"]["k_score"]["rejected"] == "bard" and found["n_eligible_pairs"] == 119
    s_pref = pd.read_csv(job.folder / "s_pref.csv", index_col="origin_model")["s_pref"]
    assert s_pref["GPT-4"] == pytest.approx(0.9899, abs=5e-5)
    assert {p.stem for p in (job.folder / "figures").glob("figure*.svg")} == {
        "figure3_worked_example",
        "figure4_pca",
        "figure7_dendrograms",
        "figure9_worked_example",
    }


def test_more_than_500_models_keep_the_nearest_kin_only(tmp_path):
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(rng.random((501, 3)).round(4), columns=["ifeval", "arc_easy", "hellaswag"])
    scores.rename_axis("origin_model").rename(lambda i: f"m{i}").to_csv(tmp_path / "my.csv")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kinship.csv").write_text("of an earlier run")
    analyse(load_score_table(tmp_path / "my.csv"), tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out" / "kinship.csv").exists()
    assert len(pd.read_csv(tmp_path / "out" / "nearest_kin.csv")) == 501


def test_leaderboard_kin_share_a_base_model_more_often_than_chance(real_data, tmp_path):
    output = run("--scores", real_data / LEADERBOARD, "--columns", "open_llm_leaderboard_v2", "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "kinship.csv").exists()  # no square of 3,827 models, the slow and large part
    assert "3,827 origin models x 6 benchmarks" in output
    found = pd.read_csv(tmp_path / "out" / "kin_agreement.csv", index_col="label").loc["base_model"]
    assert found["shared"] > 10 * found["expected"] and found["p"] <= 0.001
    assert found["n"] == 3106  # neither deleted base models nor a model's own other precision count
    assert len(pd.read_csv(tmp_path / "out" / "nearest_kin.csv")) == 3827


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("benchmarks: {}", "origin_model: Field required"),
        ("origin_model: [a]\nbenchmarks: {x: {column: X}}", "benchmarks.x.unit: Field required"),
        ("origin_model: [a]\nbenchmarks: {}", "benchmarks: Dictionary should have at least 1 item"),
        (
            "origin_model: [a]\nbenchmarks: {x: {column: X, unit: fraction, title: X, capability: c}}\ntypo: 1",
            "typo: Extra inputs are not permitted",
        ),
        ("[", "is not valid YAML: line 1"),
    ],
)
def test_bad_column_maps(tmp_path, text, message):
    (tmp_path / "map.yaml").write_text(text)
    (tmp_path / "my.csv").write_text("origin_model,ifeval\na,1\nb,0\n")
    with pytest.raises(InputError, match=message):
        load_score_table(tmp_path / "my.csv", tmp_path / "map.yaml")


def test_column_map_names_an_absent_column(tmp_path):
    (tmp_path / "map.yaml").write_text(
        "origin_model: [name]\nbenchmarks: {x: {column: X, unit: percent, title: X, capability: c}}"
    )
    (tmp_path / "my.csv").write_text("name,Y\na,1\nb,0\n")
    with pytest.raises(InputError, match=r"my.csv has no column 'X', which the column map names"):
        load_score_table(tmp_path / "my.csv", tmp_path / "map.yaml")


@pytest.mark.heavy
def test_notebook_on_the_whole_leaderboard(real_data, measured_job, tmp_path):
    """3,827 models through 02, headless: nearest kin in place of the square, and the title's question answered."""
    (tmp_path / "params" / "leaderboard.yaml").write_text(
        "name: leaderboard\nmodels: {a: {hub: org/a}}\npolicies: [a]\n"
        f"scores: {{table: {real_data / LEADERBOARD}, columns: open_llm_leaderboard_v2}}\nkinship: {{measure: rmsd}}\n"
    )
    job = run_stage("02_kinship_analysis", "params/leaderboard.yaml", {})
    assert all(path.is_file() for path in job.products) and not (job.folder / "kinship.csv").exists()
    assert len(pd.read_csv(job.folder / "nearest_kin.csv")) == 3827
    assert {p.stem for p in (job.folder / "figures").iterdir()} == {
        "figure3_worked_example", "figure9_worked_example", "figure4_pca", "lineage", "branches"}  # fmt: skip
    assert pd.read_csv(job.folder / "branches.csv")["n_models"].sum() == 3827
    assert len(pd.read_csv(job.folder / "clusters.csv")) == 3827 and (job.folder / "models.html").is_file()
    assert job.executed_notebook.stat().st_size < 1_000_000  # the page is beside it, not in it
    fathers = pd.read_csv(job.folder / "lineage.csv", index_col=["measure", "strangers"])
    assert fathers.loc[("rmsd", "all strangers"), "nearer"] == pytest.approx(0.758, abs=5e-4)
    assert fathers.loc[("cosine", "strangers of like size"), "p"] > 0.05  # sons have their fathers' size
    assert len(pd.read_csv(job.folder / "sons.csv")) == 553
    again = load_score_table(job.folder / "scores.csv")
    assert again.measure == "rmsd" and again.n_items["bbh"] == 5761 and again.facts["base_model"].notna().sum() == 3423
