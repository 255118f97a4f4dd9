"""Thousands of models: clusters in bounded memory, and a table to search in that fetches nothing."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from karma.kinship.clusters import compute_clusters, compute_large_tree, compute_trees, describe_large_tree
from karma.kinship.similarity import MAX_SQUARE
from karma.kinship.study import build_study, list_models, save_study
from karma.scores.read import load_score_table
from karma.scores.table import ScoreTable, load_benchmarks
from karma.study.searchable import show_searchable, write_searchable

SETTINGS = {"tau": 0.1, "distance": "rmsd", "linkage": "average", "cut": 0.4}


def build(n, n_families=6, seed=0):
    """Families that lie apart, on three benchmarks."""
    rng = np.random.default_rng(seed)
    corners = np.array([[x, y, z] for x in (0.1, 0.9) for y in (0.1, 0.9) for z in (0.1, 0.9)])[:n_families]
    own = np.arange(n) % n_families
    known = load_benchmarks().head(3)
    names = pd.Index([f"owner{k}/model-{k}" for k in range(n)], name="origin_model")
    scores = pd.DataFrame(np.clip(corners[own] + rng.normal(0, 0.03, (n, 3)), 0, 1), names, known.index)
    return ScoreTable(scores, known), own


@pytest.mark.parametrize("distance", ["rmsd", "cosine"])
def test_a_large_tree_is_the_small_one_where_both_can_be_had(distance):
    table = load_score_table("paper")
    large = compute_large_tree(table, distance, "average", 0.3)
    for group, (gaps, tree) in compute_trees(table, distance, "average").items():
        assert adjusted_rand_score(compute_clusters(tree, 0.3, gaps.index), large.clusters[group]) == 1
    assert large.radius == 0 and large.branches["n_models"].sum() == 16


def test_a_tree_of_some_finds_the_families_of_all():
    table, own = build(1500)
    found = compute_large_tree(table, "rmsd", "average", 0.3, most=200)
    assert adjusted_rand_score(own, found.clusters["total"]) == 1 and found.n_in_tree == 200 and 0 < found.radius < 0.2
    assert "tree of 200 models drawn at random" in describe_large_tree(found, 0.3)[0]
    turned = replace(table, scores=table.scores.iloc[::-1])
    again = compute_large_tree(turned, "rmsd", "average", 0.3, most=200).clusters["total"]
    assert adjusted_rand_score(again.loc[table.scores.index], found.clusters["total"]) == 1  # not by the table's order


def test_branches_are_the_tree_s_and_join_as_it_does():
    table, _ = build(600, 4)
    found = compute_large_tree(table, "rmsd", "average", 0.3)
    assert found.branches["n_models"].sum() == 600 and len(found.branches) == 12 and found.joins.shape == (11, 4)
    assert found.joins[-1, 3] == 12 and (np.diff(found.joins[:, 2]) >= 0).all()
    for branch, typical in found.branches["typical"].items():
        assert found.clusters.loc[typical, "branch"] == branch
    assert found.clusters.groupby("branch")["total"].nunique().max() == 1  # four clusters are made of whole branches


@pytest.mark.heavy  # ten seconds of figures
def test_a_large_study_has_clusters_and_a_page(tmp_path):
    table, own = build(MAX_SQUARE + 1)
    study = build_study(table, **SETTINGS)
    assert adjusted_rand_score(own, study.clusters["total"]) == 1 and study.trees is None
    save_study(study, tmp_path)
    assert {"clusters.csv", "branches.csv", "models.html"} <= {path.name for path in tmp_path.iterdir()}
    assert list_models(study)["s_pref"].is_monotonic_decreasing and len(list_models(study)) == MAX_SQUARE + 1
    save_study(build_study(load_score_table("paper"), **SETTINGS), tmp_path)
    assert not {"branches.csv", "models.html"} & {path.name for path in tmp_path.iterdir()}


def test_the_page_fetches_nothing_and_escapes_what_it_shows(tmp_path):
    name = "x</script><img src=https://evil.example/a.png onerror=alert(1)>"
    frame = pd.DataFrame({"<b>head": [0.5, 0.25]}, index=pd.Index([name, "plain"], name="origin_model"))
    write_searchable(frame, tmp_path / "models.html", "<i>two</i>")
    page = (tmp_path / "models.html").read_text("utf-8")
    assert "<img" not in page and "<b>head" not in page and "<i>two" not in page and "&lt;img" in page
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", page) and "unpkg.com" not in page
    assert not re.search(r"""(?:import|from)\s*\(?["']https?:""", page)
    assert 900_000 < len(page) < 1_100_000  # DataTables stands in it


def test_a_notebook_that_nobody_reads_live_shows_the_first_rows(tmp_path, monkeypatch, capsys):
    frame = pd.DataFrame({"score": np.arange(100.0)}, index=pd.Index([f"<m{k}>" for k in range(100)], name="model"))
    for name in ("JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    shown = show_searchable(frame, tmp_path / "models.html")._repr_html_()
    assert len(shown) < 20_000 and "<m1>" not in shown and "&lt;m39&gt;" in shown and "m40" not in shown
    assert "the first 40 of 100 rows; models.html has all of them" in capsys.readouterr().out
    monkeypatch.setenv("JPY_SESSION_NAME", "02.ipynb")
    assert len(show_searchable(frame, tmp_path / "models.html").data) > 900_000
