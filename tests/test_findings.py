"""The report's first screen: what it says follows from the claims, and nothing of a study's text is alive in it."""

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from karma.figures.claims import VERDICTS
from karma.results.audit import audit_paper
from karma.results.browser import Browser, collect_prompts
from karma.results.claims import test_claims as judge_claims
from karma.results.findings import Finding, Front, build_front, find_published, list_findings
from karma.results.published import load_published
from karma.results.readings import FIGURES, read_figure
from karma.results.study import collect_results
from tests.study_files import make_experiment, write_study
from tests.test_escape import HOSTILE, find_live


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    experiment = make_experiment(tmp_path_factory.mktemp("findings"))
    write_study(experiment)
    return collect_results(experiment)


def test_five_questions_are_answered_with_numbers_interval_and_caveat(study):
    claims = judge_claims(study)
    found = list_findings(study, claims)
    assert len(found) == 5 and all(f.question.endswith("?") and f.answer.endswith(".") and f.caveat for f in found)
    assert all("[" in f.answer for f in found[:4]) and "n = " in found[1].caveat and "one seed" in found[1].caveat
    row = claims.set_index("claim").loc["K_score beats RLAIF (weak judge)"]
    said = f"K_score {100 * row['effect']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    assert said in found[1].answer
    assert "in a pool above 29 responses kinship takes fewer tokens; this pool has 400" in found[4].answer


@pytest.mark.parametrize("verdict", list(VERDICTS))
def test_a_sentence_claims_no_more_than_its_verdict(study, verdict):
    claims = judge_claims(study)
    rows = claims["claim"].str.fullmatch(r"K_\S+ beats RLAIF \(weak judge\)")
    assert rows.sum() == 3
    claims.loc[rows, "verdict"] = f"{verdict} (n = 1 items)"
    assert list_findings(study, claims)[1].verdict == verdict
    claims.loc[rows.idxmax(), "verdict"] = (
        "no difference larger than 0.02" if verdict == "supported" else "supported (n)"
    )
    mixed = list_findings(study, claims)[1]
    assert mixed.verdict == "mixed" and mixed.answer.count(f"({verdict})") == 2, "each is said by itself"


def test_labels_that_a_program_can_check_are_answered_by_it(study, tmp_path):
    from dataclasses import replace

    (tmp_path / "labels").mkdir()
    rows = pd.DataFrame({"strategy": ["rlaif", "k_sim", "truth"], "n_decided": [90, 80, 99],
                         "label_accuracy": [0.5, 0.7, 1.0], "low": [0.4, 0.6, 0.97], "high": [0.6, 0.8, 1.0]})  # fmt: skip
    rows.to_csv(tmp_path / "labels" / "strategies.csv", index=False)
    found = list_findings(replace(study, folder=tmp_path), judge_claims(study))[2]
    assert found.verdict == "mixed" and "K_sim 70 % [60, 80]" in found.answer and "n = 80 to 90 pairs" in found.caveat
    assert "truth" not in found.answer


def test_an_empty_study_says_that_it_cannot_tell(tmp_path):
    empty = collect_results(make_experiment(tmp_path))
    front = build_front(empty, judge_claims(empty))
    assert [f.verdict for f in front.findings] == ["cannot tell"] * 4 + ["not measured"]
    assert front.facts["finished"] == "not recorded" and front.facts["whole"].startswith("no: ")


def test_what_the_paper_says_is_recomputed():
    found = list(find_published(load_published(), audit_paper()))
    assert len(found) == 5 and found[0].verdict == "contradicted" and "RLAIF 31.8 %" in found[0].answer
    assert found[3].answer == "21 of 24 agree to rounding."


def test_nothing_of_a_study_is_alive():
    texts = [Finding(*[text] * 4) for text in HOSTILE]
    shown = Front(HOSTILE[0], {HOSTILE[1]: HOSTILE[2]}, texts)._repr_html_()
    assert find_live(shown) == []
    answers = [
        {"model": text, "text": text, "truth": 0.5, "judge": None, "marks": {text: "chosen"}} for text in HOSTILE
    ]
    shown = Browser([{"instruction": HOSTILE[0], "kinds": [], "answers": answers}])._repr_html_()
    body = BeautifulSoup(shown, "html.parser")
    assert find_live(shown) == [] and not body.select("img, svg, h1, script")
    assert [p.get_text() for p in body.select("p.text")][:2] == HOSTILE[:2]


def test_prompts_are_read_with_truth_judge_and_who_chose_whom(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from karma.pool.responses import compute_response_id, compute_row_id

    experiment = make_experiment(tmp_path)
    assert collect_prompts(experiment) == []
    row = {"source": "s", "instruction": "Describe rain.",
           "completions": [{"model": m, "response": f"{m} says wet"} for m in "abcd"]}  # fmt: skip
    out, key = experiment.outputs, compute_row_id(row)
    ids = {m: compute_response_id(m, f"{m} says wet") for m in "abcd"}
    for folder in ("pool", "labels", "pairs/k_sim", "pairs/rlaif"):
        (out / folder).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), out / "pool" / "pool.parquet")
    keys = {"row_id": key, "response_id": list(ids.values())}
    pd.DataFrame({**keys, "score": [1.0, 2.0, 3.0, 4.0]}).to_parquet(out / "pool" / "annotations.parquet")
    pd.DataFrame({**keys, "truth": [0.0, 1.0, 0.5, None]}).to_csv(out / "labels" / "responses.csv", index=False)
    for name, pair in (("k_sim", "ab"), ("rlaif", "dc")):
        chosen = {"row_id": [key], "chosen_id": [ids[pair[0]]], "rejected_id": [ids[pair[1]]]}
        pd.DataFrame(chosen).to_parquet(out / "pairs" / name / "pairs.parquet")
    (found,) = collect_prompts(experiment)
    assert found["kinds"] == ["wrong", "differ"], "the truth prefers b to a"
    a, b, c, d = found["answers"]
    assert (
        a["marks"] == {"K_sim": "chosen"} and b["marks"] == {"K_sim": "rejected"} and (b["truth"], b["judge"]) == (1, 2)
    )
    assert c["marks"] == {"RLAIF (weak judge)": "rejected"} and d["truth"] is None and d["text"] == "d says wet"


def test_every_figure_has_words_of_its_own():
    assert (
        len({title for title, _, _ in FIGURES.values()}) == len({alt for _, _, alt in FIGURES.values()}) == len(FIGURES)
    )
    with pytest.raises(KeyError):
        read_figure("a_figure_without_words", {})
