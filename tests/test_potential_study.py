"""The selection study: overlaps, contradictions, agreement of two scores, and the comparison of record."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import t

from karma.errors import InputError
from karma.figures.potential import DRAWN, plot_choices
from karma.potential.margins import build_candidates
from karma.potential.outcomes import CELL, collect_selections
from karma.potential.rivals import compare_rivals, compute_trends
from karma.potential.study import (
    choose,
    choose_by_each,
    compare_metrics,
    compare_potentials,
    compare_selections,
    compute_overlap,
    count_contradictions,
    gather_pools,
)
from karma.results.selections import build_union_table, show_held_out, show_on_benchmarks
from karma.results.study import collect_results
from karma.study.experiment import load_experiment
from karma.study.fields import is_anew
from karma.vocabulary import METRICS
from tests.study_files import make_experiment, write_study

SHOWN = [metric for metric in METRICS if not is_anew(metric)]  # what a panel shows is kept once


def pools(n=40, seed=0, annotated=40):
    margins = np.random.default_rng(seed).normal(size=(n, 2))
    judged = np.where(np.arange(n) < annotated, np.random.default_rng(seed + 1).random(n), np.nan)
    ids = [f"{i:03}" for i in range(n)]
    explicit, implicit = np.abs(margins).T
    return {"signed": build_candidates(ids, *margins.T, 1.0), "plain": build_candidates(ids, explicit, implicit, 1.0),
            "annotated": build_candidates(ids, judged, implicit, 1.0)}  # fmt: skip


def test_every_metric_keeps_equally_many_and_agrees_with_itself():
    choices = choose_by_each(pools(), 16, seed=0)
    assert list(choices) == SHOWN and {len(c) for c in choices.values()} == {16}
    overlap = compute_overlap(choices)
    assert (np.diag(overlap) == 1).all() and (overlap.to_numpy() == overlap.to_numpy().T).all()
    assert overlap.loc["implicit_small", "implicit_large"] == 0


def test_each_pool_reads_its_own_scores():
    """Three pairs whose own scores and annotations disagree, and whose third is not annotated."""
    chosen, rejected = ([[{"role": "assistant", "content": text}]] * 3 for text in ("yes", "no"))
    pairs = pa.table({"row_id": list("xyz"), "chosen": chosen, "rejected": rejected})
    scores, annotated = np.array([[3.0, 1], [1, 4], [2, 1]]), np.array([[1.0, 2], [9, 4], [np.nan, 1]])
    logps, lengths = np.array([[-4.0, -2], [-2.0, -8], [-1, -1]]), np.full((3, 2), 2)
    found = gather_pools(pairs, scores, annotated, logps, lengths, 1.0, "absolute")
    assert found["plain"].explicit.tolist() == [2, 3, 1] and found["signed"].explicit.tolist() == [2, -3, 1]
    assert found["plain"].implicit.tolist() == [1, 3, 0] and found["signed"].implicit.tolist() == [-1, 3, 0]
    assert found["annotated"].explicit[:2].tolist() == [1, 5] and found["annotated"].fit.tolist() == [True, True, False]
    assert found["annotated"].implicit.tolist() == [1, 3, 0]


def test_annotations_rank_the_same_pairs_by_their_own_margin():
    """The eighth metric is m_ap with another M_r, not another rule; pairs without annotation are no candidates."""
    found = pools(annotated=30)
    chosen = choose(found, "m_ap_annotated", 0, ratio=0.4)
    assert len(chosen) == 12 and chosen.max() < 30
    z = [(x[:30] - x[:30].mean()) / x[:30].std() for x in (found["annotated"].explicit, found["annotated"].implicit)]
    assert chosen.tolist() == sorted(np.argsort(z[1] - z[0])[:12].tolist())
    assert choose(found, "m_ap", 0, k=12).tolist() != chosen.tolist()
    assert "m_ap_annotated" not in choose_by_each(found, 31, seed=0)
    with pytest.raises(InputError, match="m_ap_annotated: of 40 pairs none is a candidate"):
        choose(pools(annotated=0), "m_ap_annotated", 0, ratio=0.4)


def test_every_metric_has_its_panel_and_the_overlap_its_own():
    choices = choose_by_each(pools(), 16, seed=0)
    figure = plot_choices(pools(), choices, compute_overlap(choices))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [*(f"{metric}\n16 of 40 kept" for metric in DRAWN), "pairs kept by both (share)"]
    names = [label.get_text() for label in figure.axes[-1].get_yticklabels()]
    assert names == list(SHOWN), "the overlap is of every metric"


def test_the_cut_parts_what_is_kept_from_what_is_not():
    """On each side of the drawn line all are kept, or none: upright for explicit, level for implicit, aslant for M_AP."""
    found = pools()["plain"]
    choices = choose_by_each(pools(), 16, seed=0)
    axes = dict(zip(DRAWN, plot_choices(pools(), choices, compute_overlap(choices)).axes, strict=False))
    assert not axes["random"].lines
    points = np.stack([found.explicit, found.implicit], axis=1)
    for metric in ("explicit_large", "implicit_small", "m_ap"):
        (line,) = axes[metric].lines
        (x, y), slope = (line.get_xy1(), line.get_slope()) if metric == "m_ap" else (line.get_xydata()[0], 0.0)
        side = points[:, 0] - x if metric == "explicit_large" else y + slope * (points[:, 0] - x) - points[:, 1]
        assert sorted(np.flatnonzero(side >= -1e-9)) == sorted(choices[metric])


def test_contradictions_by_eye():
    signed = build_candidates(list("abcd"), np.array([1.0, 1.0, -1.0, 0.0]), np.array([0.5, -0.5, -0.5, 2.0]), 1.0)
    counts = count_contradictions(signed)
    assert counts.to_numpy().tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_a_potential_agrees_with_itself_and_with_lots_only_through_the_implicit_margin():
    own = pools()["plain"]
    same = compare_potentials(own, own, 0.4)
    assert same["overlap"] == 1 and same["correlation"] == pytest.approx(1) and same["n"] == 40
    other = build_candidates(own.row_ids, np.random.default_rng(9).random(40), own.implicit, 1.0)
    found = compare_potentials(own, other, 0.4)
    assert 0 < found["low"] < found["correlation"] < found["high"] < 1
    assert found["overlap_by_chance"] > 0.5, "the implicit margin is shared, so that even lots keep more than .4 alike"
    assert abs(found["overlap"] - found["overlap_by_chance"]) < 0.2
    apart = build_candidates(own.row_ids, other.explicit, np.random.default_rng(8).random(40), 1.0)
    assert compare_potentials(own, apart, 0.4)["overlap_by_chance"] == pytest.approx(0.4, abs=0.1)


def test_too_few_shared_pairs_give_no_number():
    own = pools()["plain"]
    none = build_candidates(own.row_ids, np.full(40, np.nan), own.implicit, 1.0)
    assert compare_potentials(own, none, 0.4) == {"n": 0, "correlation": None, "low": None, "high": None, "overlap": None,
                                                  "overlap_by_chance": None}  # fmt: skip


def outcomes_of(metric, right, seed=0, ids="abcdefgh"):
    key = dict(zip(CELL, ("p", "k_sim", metric, 0.4, "dpo"), strict=True))
    rows = [{**key, "seed": seed, "row_id": i, "right": float(r), "n": 1} for i, r in zip(ids, right, strict=True)]
    return pd.DataFrame(rows), {**key, "seed": seed, "n_pairs": 9, "n_candidates": 20, "same_data_as": None}


def compare(*parts):
    outcomes, runs = zip(*parts, strict=True)
    return compare_selections(pd.DataFrame(runs), pd.concat(outcomes)).set_index("metric")


def test_the_difference_is_paired_by_hand():
    """Right on 6 of 8 against 4 of 8, the same four among them: a gain of +1 on two pairs, 0 on six."""
    found = compare(outcomes_of("random", [1, 1, 1, 1, 0, 0, 0, 0]), outcomes_of("m_ap", [1, 1, 1, 1, 1, 1, 0, 0]))
    gain = np.array([0, 0, 0, 0, 1, 1, 0, 0])
    row = found.loc["m_ap"]
    assert (row["accuracy"], row["n"], row["difference"]) == (0.75, 8, 0.25)
    half = 2.364624 * gain.std(ddof=1) / np.sqrt(8)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-5)
    assert np.isnan(found.loc["random", "difference"])


def test_seeds_are_averaged_and_only_the_same_seeds_are_compared():
    alone = outcomes_of("random", [1] * 4 + [0] * 4)
    both = [outcomes_of("m_ap", [1] * 8, 0), outcomes_of("m_ap", [0] * 8, 1)]
    found = compare(alone, *both)
    assert found.loc["m_ap", "accuracy"] == 0.5 and found.loc["m_ap", "n_seeds"] == 2
    assert np.isnan(found.loc["m_ap", "difference"])  # random lacks the second seed


def test_two_metrics_are_compared_on_the_same_pairs():
    """What M_AP gave with annotations and without: right on 6 and on 5 of 8, apart on three of them."""
    parts = [outcomes_of("m_ap", [1, 1, 1, 1, 1, 1, 0, 0]), outcomes_of("m_ap_annotated", [1, 1, 1, 1, 0, 0, 1, 0])]
    outcomes = pd.concat([m for m, _ in parts])
    (row,) = compare_metrics(outcomes, "m_ap", "m_ap_annotated").to_dict("records")
    gain = np.array([0, 0, 0, 0, 1, 1, -1, 0])
    assert (row["m_ap"], row["m_ap_annotated"], row["n"], row["difference"]) == (0.75, 0.625, 8, 0.125)
    assert row["difference_high"] - 0.125 == pytest.approx(2.364624 * gain.std(ddof=1) / np.sqrt(8), abs=1e-5)
    table = build_union_table(outcomes)
    assert table is not None and "0.125" in table.to_markdown()
    assert build_union_table(parts[0][0]) is None


def test_m_ap_is_compared_with_each_rival_and_corrected_for_all():
    """M_AP is right on 7 of 8, `random` on 1 and `explicit_large` on 6, whose pairs are among M_AP's."""
    parts = [outcomes_of("random", [1] + [0] * 7), outcomes_of("m_ap", [1] * 7 + [0]),
             outcomes_of("explicit_large", [1] * 6 + [0] * 2)]  # fmt: skip
    everything = [m.assign(ratio=1.0) for m, _ in parts]  # all of the pairs: no selection, no test
    found = compare_rivals(pd.concat([m for m, _ in parts] + everything)).set_index("rival")
    assert list(found.index) == ["random", "explicit_large"]
    assert found["value"].tolist() == [0.75, 0.125] and (found["n"] == 8).all()
    p = [2 * t.sf(0.75 / 0.16366342, 7), 2 * t.sf(1.0, 7)]  # the second: one pair of eight differs
    assert found["p_holm"].tolist() == pytest.approx([2 * p[0], p[1]], rel=1e-5)
    assert found.loc["random", "verdict"] == "supported (n = 8 pairs)"
    assert found.loc["explicit_large", "verdict"].startswith("cannot tell with n = 8 pairs; ")


def test_a_lead_that_shrinks_with_the_data_is_a_trend():
    """At .1 of the pairs M_AP leads on six of eight pairs, at .2 on three, at .4 on none: -.375 a doubling."""
    right = {0.1: [1] * 6 + [0] * 2, 0.2: [1] * 3 + [0] * 5, 0.4: [0] * 8, 1.0: [1] * 8}
    parts = [m.assign(ratio=ratio) for ratio, own in right.items()
             for m in (outcomes_of("m_ap", own)[0], outcomes_of("random", [0] * 8)[0])]  # fmt: skip
    (row,) = compute_trends(pd.concat(parts)).to_dict("records")
    slopes = np.array([-0.5] * 6 + [0] * 2)  # of each pair: (lead at .4 - lead at .1) / 2 doublings
    half = 2.364624 * slopes.std(ddof=1) / np.sqrt(8)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((-0.375, -0.375 - half, -0.375 + half), abs=1e-5)
    assert (row["metric"], row["ratios"]) == ("m_ap", "0.1, 0.2, 0.4")
    assert row["verdict"] == "contradicted (n = 8 pairs)", "the lead shrinks"
    assert compute_trends(pd.concat(parts[:2])).empty, "one size is no trend"


def test_seeds_that_disagree_widen_the_interval():
    """Two seeds, M_AP ahead of `random` by all pairs in one and by none in the other: nothing is known of a third."""
    parts = [outcomes_of(metric, [right] * 7 + [0], seed)[0] for metric, seed, right in
             [("random", 0, 0), ("random", 1, 0), ("m_ap", 0, 1), ("m_ap", 1, 0)]]  # fmt: skip
    (row,) = compare_rivals(pd.concat(parts)).to_dict("records")
    assert row["value"] == 0.4375 and row["low"] < -1 and row["high"] > 1
    assert row["verdict"].startswith("cannot tell")


def test_a_finished_study_is_collected_and_shown(tmp_path):
    experiment = make_experiment(tmp_path)
    write_study(experiment)
    found = compare_selections(*collect_selections(experiment)).set_index("metric")
    assert found.loc["m_ap", "accuracy"] == 0.75 and found.loc["m_ap", "difference"] == 0.25
    assert found.loc["m_ap", "difference_low"] > 0
    shown = show_held_out(experiment, tmp_path / "tables", tmp_path / "figures")
    assert [each.name for each in shown[:2]] == ["selections", "selections"] and len(shown) == 4
    assert "random, m_ap" in shown[0].alt
    assert "supported (n = 20 pairs)" in (tmp_path / "tables" / "selection_rivals.md").read_text()
    assert "0.600" in (tmp_path / "tables" / "selection_agreement.md").read_text()
    assert all((tmp_path / "figures" / f"selections.{kind}").is_file() for kind in ("png", "svg"))


def test_no_study_no_heading(tmp_path):
    for show in (show_held_out, show_on_benchmarks):
        assert show(load_experiment("paper"), tmp_path, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_a_missing_selection_is_a_named_gap(tmp_path):
    experiment = make_experiment(tmp_path)
    write_study(experiment)
    folder = experiment.outputs / "selections" / "smollm2-135m" / "k_score_sim+m_ap-0.4"
    (folder / "selection.json").unlink()
    (gap,) = collect_results(experiment).gaps.to_dict("records")
    assert gap["file"].endswith("k_score_sim+m_ap-0.4/selection.json")
    assert "karma notebook 07_alignment_potential" in gap["made_by"] and "-p metric=m_ap -p ratio=0.4" in gap["made_by"]
