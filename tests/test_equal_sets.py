"""Pair sets that are the same pairs: found by their digest, shown as one column, tested once."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from karma.results.claims import test_claims as judge_claims
from karma.results.equal_sets import digest_pairs, find_equal, list_once, merge_equal
from karma.results.ledger import build_ledger
from karma.results.study import collect_results
from karma.results.tables import build_table2
from tests.study_files import make_experiment, part_pairs, write_study


@pytest.fixture
def experiment(tmp_path):
    """A study whose K_(score,sim) has the pairs of K_sim, in another order; its training was copied."""
    made = make_experiment(tmp_path)
    write_study(made)
    part_pairs(made)
    folders = [made.outputs / "pairs" / name / "pairs.parquet" for name in ("k_sim", "k_score_sim")]
    table = pq.read_table(folders[0])
    pq.write_table(table.take(list(range(len(table)))[::-1]), folders[1])
    for method in ("sft", "dpo"):
        path = made.outputs / f"runs/smollm2-135m/k_score_sim/{method}/seed0/training.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "same_data_as": "../../k_sim"}))
    return made


def test_they_are_found_whatever_their_order(experiment):
    assert find_equal(experiment) == {"k_score_sim": "k_sim"}
    path = experiment.outputs / "pairs" / "k_sim" / "pairs.parquet"
    before, table = digest_pairs(path), pq.read_table(path)
    pq.write_table(table.slice(1), path)
    assert digest_pairs(path) != before and find_equal(experiment) == {}, "one pair less is another set"
    assert digest_pairs(path.with_name("absent.parquet")) is None


def test_they_are_one_column_and_one_test(experiment):
    whole = collect_results(experiment)
    study = merge_equal(whole, experiment)
    name = "K_sim = K_(score,sim) here"
    assert study.strategies == ("rlaif", "k_score", "k_sim") and study.title("k_sim") == name
    assert list(build_table2(study).frame)[-1] == name and study.same == {"k_score_sim": "k_sim"}
    own = study.results[study.results["strategy"] == "k_sim"]
    assert (own["folder"].str.contains("/k_sim/")).all() and len(own) == 10, "of two runs the kept name's"
    asked = judge_claims(study).query("question == 'RQ2'")["claim"]
    assert [claim for claim in asked if "only" not in claim] == ["K_score beats RLAIF (weak judge)",
                                                                  f"{name} beats RLAIF (weak judge)"]  # fmt: skip
    corrected = judge_claims(study).set_index("claim").loc["K_score beats RLAIF (weak judge)", "p_holm"]
    assert corrected <= judge_claims(whole).set_index("claim").loc["K_score beats RLAIF (weak judge)", "p_holm"]


def test_a_run_that_only_the_other_name_has_stands_for_both(experiment):
    (experiment.outputs / "runs/smollm2-135m/k_sim/dpo/seed0/scores.json").unlink()
    study = merge_equal(collect_results(experiment), experiment)
    own = study.results.query("strategy == 'k_sim' and method == 'dpo'")
    assert len(own) == 5 and own["folder"].str.contains("/k_score_sim/").all() and len(study.gaps) == 1


def test_the_bill_counts_what_ran(experiment):
    study = collect_results(experiment)
    assert build_ledger(merge_equal(study, experiment)).equals(build_ledger(study))


def test_different_sets_stay_as_they_are(tmp_path):
    experiment = make_experiment(tmp_path)
    write_study(experiment)
    part_pairs(experiment)
    study = collect_results(experiment)
    assert merge_equal(study, experiment) is study


def test_the_label_audit_lists_them_once(experiment):
    names = ["rlaif", "k_sim", "k_score_sim", "truth"]
    rows = pd.DataFrame({"strategy": names, "right": [0.4, 0.5, 0.5, 1.0]})
    once, notes = list_once(rows, experiment)
    assert once["strategy"].tolist() == ["rlaif", "k_sim", "truth"]
    assert notes == ("K_(score,sim): the pairs of K_sim here, listed once",)
