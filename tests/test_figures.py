"""Every `plot_` function drawn, and its boxes looked at; a new one fails until it has a case here.

Cases of one function are told apart after a colon.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

import karma.figures
from karma.figures import (
    claims,
    diagrams,
    evaluation,
    kinship,
    kinship_calculation,
    kinship_large,
    kinship_map,
    kinship_trust,
    kinships,
    labels,
    lineage,
    pairs,
    potential,
    results,
    rewards,
    win_rates,
)
from karma.figures import self_play as self_play_figures
from karma.figures import training as training_figures
from karma.figures.stability import plot_stability
from karma.figures.style import set_style
from karma.kinship.clusters import compute_large_tree, compute_pca
from karma.kinship.lineage import STRANGERS
from karma.kinship.study import KinshipStudy, build_study
from karma.labels import agreement
from karma.labels.judgments import build_values
from karma.labels.recorded import audit_recorded
from karma.pairs.agreement import compute_agreement, compute_overlap
from karma.pairs.build import build_pair_sets
from karma.pairs.curriculum import order_pairs
from karma.pairs.premise import MEASURES, average_models, relate_gaps, trace_gaps
from karma.pairs.quality_gap import compare_gaps, compute_gaps
from karma.pool.annotations import collect_annotations
from karma.pool.pool import load_pool
from karma.potential.margins import build_candidates
from karma.potential.study import choose_by_each
from karma.potential.study import compute_overlap as compute_common
from karma.results.claims import test_claims as judge_claims
from karma.results.estimates import compute_capabilities, compute_policies
from karma.results.leads import compute_leads
from karma.results.ledger import compute_counts
from karma.results.published import load_published
from karma.results.study import Study, collect_results
from karma.scores.normalise import compute_normalized
from karma.scores.read import load_score_table
from karma.scores.table import ScoreTable, load_benchmarks
from karma.statistics.verdicts import SMALLEST
from karma.vocabulary import ARMS, BENCHMARKS, METHODS, METRICS, STRATEGIES, title_strategy
from tests.boxes import check_boxes, find_problems
from tests.study_files import make_experiment, write_study

TAU, CUT = 0.1, 0.4


@cache
def recorded(n_models: int) -> dict[str, tuple]:
    """What the audit of made-up judgments gives each figure, of the paper's first models."""
    names = list(load_score_table("paper").scores.index)[:n_models]
    dice = np.random.default_rng(0)
    rows = [
        (f"p{p}", m, v, float(dice.integers(9, 99)))
        for p in range(20)
        for m, v in zip(names, dice.random(n_models), strict=True)
    ]
    judged = build_values(pd.DataFrame(rows, columns=["prompt", "model", "value", "length"]), "made up", "own", "share")
    audit = audit_recorded(judged, load_score_table("paper"))
    return {"plot_accuracy_surface": (audit.surface,), "plot_mislabelled": (audit.models,),
            "plot_trade_off": (audit.accuracy, audit.strategies, "recorded"),
            "plot_reliability": (audit.calibration,)}  # fmt: skip


def draw_claims():
    """Claims of every kind and verdict, one without an effect."""
    names = (
        ("RQ1", "origin models of one family score alike (total)"),
        ("RQ2", "K_sim = K_(score,sim) here beats RLAIF"),
        ("training", "DPO on K_sim prefers held-out chosen answers"),
        ("RQ3", "smollm2-135m: K_score beats K_sim, DPO"),
    )
    rows = [{"question": q, "claim": c, "effect": e, "low": e - 0.05, "high": e + 0.05, "verdict": f"{v} (n = 40 items)"}
            for q, c in names[:3] for e, v in zip((-0.1, 0.1, 0.0, 0.02), claims.VERDICTS, strict=True)]  # fmt: skip
    gone = {"effect": np.nan, "low": np.nan, "high": np.nan, "verdict": "cannot tell: its runs are missing"}
    return claims.plot_claims(pd.DataFrame([*rows, {"question": "RQ3", "claim": names[3][1], **gone}]), SMALLEST)


def draw_vote_agreement():
    judges = (agreement.LABELS, agreement.LONGER, agreement.OTHER, agreement.ANOTHER)
    rows = [{"judge": judge, "on": on, "n_votes": 12345, "agreement": 0.5 + 0.1 * place, "low": 0.3, "high": 0.95}
            for on in (agreement.OWN, agreement.SHARED) for place, judge in enumerate(judges)]  # fmt: skip
    return labels.plot_vote_agreement(pd.DataFrame(rows))


def draw_win_rates(n_models: int):
    names = [f"a model with a long name {place}" for place in range(n_models)]
    rows = [{"model_a": a, "model_b": b, "n_judged": 805, "win_rate": 0.6, "low": 0.5, "high": 0.7,
             "length_controlled": 0.55, "lc_low": 0.4, "lc_high": 0.7} for a, b in combinations(names, 2)]  # fmt: skip
    ratings = pd.DataFrame({"model": names, "rating": np.linspace(1, -1, n_models)})
    ratings = ratings.assign(low=ratings["rating"] - 0.3, high=ratings["rating"] + 0.3)
    return win_rates.plot_win_rates(pd.DataFrame(rows), ratings if n_models > 2 else None)


# --- what is drawn ---------------------------------------------------------------------------------------------------


@cache
def kin(n_models: int = 16) -> KinshipStudy:
    """Stage 2 of the paper's table, or of its first models."""
    table = load_score_table("paper")
    if n_models < 16:
        table = replace(table, scores=table.scores.iloc[:n_models], facts=table.facts.iloc[:n_models])
    return build_study(table, tau=TAU, distance="rmsd", linkage="average", cut=CUT, n_draws=200)


def draw_lineage():
    """Fathers among strangers, of measures with long names."""
    rows = [{"measure": measure, "strangers": strangers, "nearer": 0.5 + 0.05 * k, "low": 0.4, "high": 0.8, "expected": 0.5}
            for k, measure in enumerate(("cosine", "centred_cosine", "rmsd", "rank")) for strangers in STRANGERS]  # fmt: skip
    return lineage.plot_lineage(pd.DataFrame(rows))


def draw_kinships(told=True):
    """Every kinship, some of which tell nothing."""
    kinds = [("score", name) for name in ("cosine", "centred_cosine", "rmsd", "rank")]
    kinds += [("origin", "base model"), ("origin", "tuning data"), ("behaviour", "agreement"), ("behaviour", "kappa")]
    rows = [{"by": by, "kinship": name, "question": question, "n_models": 10, "n_prompts": 200, "n_comparisons": 71141 if told else 0,
             "told": float(told and by != "origin"), "share": 0.9, "low": 0.8, "high": 1.0}
            for question in ("responses", "labels") for by, name in kinds]  # fmt: skip
    return kinships.plot_kinships(pd.DataFrame(rows))


@cache
def many(n):
    """Models with long names and as many benchmarks as the kit knows."""
    known = load_benchmarks()
    rng = np.random.default_rng(0)
    names = pd.Index([f"organisation-{k}/model-with-a-long-name-{k}" for k in range(n)], name="origin_model")
    return ScoreTable(pd.DataFrame(rng.random((n, len(known))), names, known.index), known)


def draw_branches(n):
    table = many(n)
    return kinship_large.plot_branches(
        compute_large_tree(table, "rmsd", "average", CUT), table.benchmarks["title"], CUT
    )


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> dict[str, Study]:
    """A study as the demo is, one with every strategy, method and benchmark, one that has just begun, and the paper."""
    found = {"published": load_published()}
    everything = f"\nstrategies: [{', '.join(STRATEGIES)}]\n"
    everything += "density_ratio: {strong: smollm2-135m, weak: smollm2-drop-2}\n"
    for name, extra in (("demo", ""), ("everything", everything), ("empty", "")):
        experiment = make_experiment(tmp_path_factory.mktemp(name), extra)
        if name == "everything":
            benchmarks = experiment.settings.benchmarks.model_copy(update={"policy": list(BENCHMARKS)})
            everything_else = {
                "benchmarks": benchmarks,
                "methods": list(METHODS),
            }  # cdpo is refused for some strategies
            experiment.settings = experiment.settings.model_copy(update=everything_else)
        if name != "empty":
            write_study(experiment)
        found[name] = collect_results(experiment)
    return found


@cache
def pool() -> list[dict]:
    """Eighty prompts with four of six origin models each, longer answers by better models, annotated by lot."""
    dice = np.random.default_rng(0)
    models = {"gpt-4": 30, "bard": 28, "alpaca-7b": 5, "mpt-30b-chat": 12, "vicuna-33b": 20, "llama-2-13b-chat": 22}
    return [
        {"source": "own", "instruction": f"Question {i}?", "completions": [
            {"model": m, "response": f"{m} {i}. " + "Rain falls on the quiet hills. " * (models[m] + int(dice.integers(4))),
             "overall_score": float(dice.integers(1, 6))} for m in dice.choice(sorted(models), 4, replace=False)]}
        for i in range(80)
    ]  # fmt: skip


@cache
def pair_sets() -> dict:
    strategies = [name for name in STRATEGIES if name != "density_ratio"]  # which needs a table of densities
    return build_pair_sets(load_pool(pool()), load_score_table("paper"), strategies, tau=TAU, seed=0)


def draw_overlap():
    tables = {name: one.table for name, one in pair_sets().items()}
    return pairs.plot_overlap(compute_overlap(tables, "chosen"), compute_overlap(tables))


def draw_gaps():
    gaps = {name: compute_gaps(one.table) for name, one in pair_sets().items()}
    return pairs.plot_gaps(gaps, compare_gaps(gaps, "random"))


def draw_premise(n_models: int, measures):
    """Gaps that grow with distance, of sixty prompts answered by all of the paper's first models."""
    square, dice = kin(n_models).kinship, np.random.default_rng(0)
    one, other = np.triu_indices(n_models, 1)
    frame = pd.DataFrame({"one": square.index[one], "other": square.index[other], "s_pref": 0.1,
                          "kinship": square.to_numpy()[one, other]})  # fmt: skip
    gaps = pd.concat([frame.assign(row_id=str(i)) for i in range(60)], ignore_index=True)
    for place, name in enumerate(measures):
        gaps[name] = (1.5 - gaps["kinship"] + dice.uniform(0, 0.4, len(gaps))) * 2**place
    models = average_models(gaps)
    return pairs.plot_premise(relate_gaps(models, 0, 99), trace_gaps(gaps), models, tau=TAU)


def draw_agreement():
    annotations = collect_annotations(load_pool(pool()), "overall_score")
    return pairs.plot_agreement(compute_agreement(pair_sets()["k_sim"].table, annotations, by_models=True))


def draw_choices():
    margins, ids = np.random.default_rng(0).normal(size=(60, 2)), [f"{i:03}" for i in range(60)]
    explicit, implicit = np.abs(margins).T
    judged = np.random.default_rng(1).random(60)
    pools = {"signed": build_candidates(ids, *margins.T, 1.0), "plain": build_candidates(ids, explicit, implicit, 1.0),
             "annotated": build_candidates(ids, judged, implicit, 1.0)}  # fmt: skip
    choices = choose_by_each(pools, 24, seed=0)
    return potential.plot_choices(pools, choices, compute_common(choices))


def draw_curve(metrics, ratios=(0.1, 0.2, 0.4, 1.0)):
    """Held-out accuracy of every metric, size and method, and what it is above random's; the values by lot."""
    dice, gone = np.random.default_rng(0), float("nan")
    rows = [{"policy": "smollm2-135m", "strategy": "k_score_sim", "method": method, "metric": metric, "ratio": ratio,
             "accuracy": (right := dice.uniform(0.3, 0.8)), "low": right - 0.2, "high": right + 0.2, "n": 38,
             "difference": (lead := gone if metric == "random" else dice.uniform(-0.2, 0.2)),
             "difference_low": lead - 0.1, "difference_high": lead + 0.1}
            for method in METHODS for metric in metrics for ratio in ratios]  # fmt: skip
    return potential.plot_curve(pd.DataFrame(rows))


def draw_leads(metrics, ratios, benchmarks):
    """Each metric's score less random's; the values by lot."""
    dice = np.random.default_rng(0)
    rows = [{"benchmark": name, "policy": "smollm2-135m", "strategy": "k_score_sim", "method": "dpo", "metric": metric,
             "ratio": ratio, "difference": (lead := dice.uniform(-0.1, 0.1)), "difference_low": lead - 0.1,
             "difference_high": lead + 0.1} for name in benchmarks for metric in metrics for ratio in ratios]  # fmt: skip
    return potential.plot_leads(pd.DataFrame(rows), {name: BENCHMARKS[name]["title"] for name in benchmarks})


def draw_front(sources):
    """What selections keep of several sources' margins; the values by lot."""
    dice = np.random.default_rng(0)
    names = [*(f"{source} alone" for source in sources), "weights", "pareto", "random"]
    rows = [{"selection": name, "source": source, "value": (kept := dice.uniform(-0.2, 0.9)), "low": kept - 0.2,
             "high": kept + 0.2, "margin": kept, "on_front": name not in ("random", "weights")}
            for name in names for source in sources]  # fmt: skip
    return potential.plot_front(pd.DataFrame(rows))


def draw_stability(strategies, methods, several=True):
    """Four measures of stability; the values by lot, without intervals and spreads where there is one seed."""
    dice, gone = np.random.default_rng(0), float("nan")
    rows = [{"strategy": title_strategy(name, "judge"), "method": method, **{
        f"{column}{end}": value if several or (not end and column != "accuracy_spread") else gone
        for column in ("accuracy_spread", "spikes", "kl", "drift")
        for middle in [dice.uniform(0, 0.2) * (200 if column == "drift" else 1)]
        for end, value in (("", middle), ("_low", middle * 0.5), ("_high", middle * 3))}}
        for name in strategies for method in methods]  # fmt: skip
    return plot_stability(pd.DataFrame(rows))


def draw_rounds(n_rounds: int):
    rows = [{"policy": "smollm2-135m", "arm": arm, "scorer": "instructions", "round": number, "n_pairs": 120 * number,
             "score": 0.4 + 0.03 * number, "score_low": 0.3, "score_high": 0.6, "preference": 0.5 + 0.05 * number,
             "preference_low": 0.4, "preference_high": 0.75} for arm in ARMS for number in range(n_rounds + 1)]  # fmt: skip
    return self_play_figures.plot_rounds(pd.DataFrame(rows))


def draw_margins(n: int):
    dice = np.random.default_rng(0)
    ids = [str(k) for k in range(n)]
    table = pa.table({"row_id": ids, "explicit_margin": dice.random(n), "implicit_margin": dice.random(n)})
    return self_play_figures.plot_margins(table, table.slice(0, n // 2), self_play_figures.UNITS["judge"])


def draw_training(method: str, n_updates: int = 60, alarms=None):
    step = np.arange(n_updates) + 1
    noise = np.random.default_rng(0).normal(0, 0.02, n_updates)
    curves = {"loss": np.log(2) * np.exp(-step / 80) + noise, "rewards/margins": 0.02 * step + noise,
              "rewards/accuracies": 0.9 - 0.4 * np.exp(-step / 20) + noise, "logps/chosen": -120 - 0.1 * step + noise,
              "logps/rejected": -140 - 0.4 * step + noise, "mean_token_accuracy": 0.5 + 0.002 * step + noise,
              "learning_rate": np.linspace(5e-5, 0, n_updates), "reward": 2 + 0.01 * step + noise,
              "rewards/reward_model/mean": 2 + 0.012 * step + noise, "kl": 0.001 * step + abs(noise) / 9,
              "rewards/instructions/mean": 0.5 - 0.002 * step + noise,
              "completions/mean_length": 40 + 0.2 * step + 20 * noise}  # fmt: skip
    logps = {f"{side}_logps_{when}": np.random.default_rng(shift).normal(-100, 20, n_updates) for shift, (side, when) in enumerate(
        (side, when) for side in ("chosen", "rejected") for when in ("before", "after"))}  # fmt: skip
    history, held_out = pd.DataFrame({"step": step, **curves}), pd.DataFrame(logps)
    return training_figures.plot_training(history, method, *((held_out, alarms) if alarms is not None else ()))


def draw_refilter(n):
    rng = np.random.default_rng(0)
    entered = np.array([64_000, *rng.integers(0, 20_000, n - 1)])
    return training_figures.plot_refilter(pd.DataFrame({
        "epoch": np.arange(1, n + 1), "n_kept": 64_000, "n_entered": entered, "n_left": np.where(entered < 64_000, entered, 0),
        "n_of_first": np.linspace(64_000, 30_000, n).astype(int)}))  # fmt: skip


def score_frame(value: float) -> pd.DataFrame:
    """All benchmarks about one score, with IFEval's floor."""
    columns = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 1319, "chance": 0.25, "floor": np.nan}
    frame = pd.DataFrame(columns, index=list(BENCHMARKS))
    frame.loc["ifeval", ["chance", "floor"]] = [np.nan, 0.1]
    return frame


def difference_frame() -> pd.DataFrame:
    return pd.DataFrame({"difference": 0.02, "low": -0.05, "high": 0.09, "n": 38}, index=list(BENCHMARKS))


def label_frame(decided: bool = True) -> pd.DataFrame:
    """Every strategy's audit and the ceiling; the last strategy may have nothing decided."""
    frame = pd.DataFrame({"strategy": [*STRATEGIES, "truth"], "n_decided": 120})
    frame["label_accuracy"] = np.linspace(0.35, 0.7, len(frame))
    frame["low"], frame["high"] = frame["label_accuracy"] - 0.09, frame["label_accuracy"] + 0.09
    if not decided:
        frame.loc[1:, ["label_accuracy", "low", "high"]] = np.nan
        frame.loc[1:, "n_decided"] = 0
    frame.loc[frame["strategy"] == "truth", ["label_accuracy", "low", "high"]] = [1.0, 0.97, 1.0]
    return frame


def draw_model_truth(n: int):
    names, level = kin(n).table.scores.index, np.linspace(0.9, 0.2, n)
    frame = pd.DataFrame({"model": names, "s_pref": level, "truth": level[::-1]})
    return labels.plot_model_truth(frame.assign(low=frame["truth"] - 0.1, high=frame["truth"] + 0.1))


PROMPT = "Question: which of these floats on water?\n" + "\n".join(f"{c}. a thing named {c}" for c in "ABCDEFGHIJ")


def draw_square(methods, strategies):
    """Shares from 0 to 1 in turn, as `karma.results.cross.build_square` returns them."""
    cells = [(m, a, b) for m in methods for a in strategies for b in [*strategies, "truth"]]
    shares = np.linspace(0, 1, len(cells))
    frame = pd.DataFrame(cells, columns=["method", "trained_on", "tested_on"])
    frame = frame.assign(share=shares, low=shares - 0.1, high=shares + 0.1)
    return results.plot_square(frame, {name: title_strategy(name, "judge") for name in strategies} | {"truth": "truth"})


def draw_reward_models(strategies, truth: bool):
    """Reward models of some strategies, each on all pair sets; with the truth, so that the best of n is drawn too."""
    measures = [f"{STRATEGIES[name].title}'s pairs" for name in STRATEGIES] + ["truth, by length", "prefers the longer"]
    run = [{"run": name, "strategy": name, "strategy_title": STRATEGIES[name].title} for name in strategies]
    value = np.linspace(0.3, 0.9, len(measures))
    shares = [{**own, "measure": m, "value": v, "low": v - 0.1, "high": v + 0.1}
              for own in run for m, v in zip(measures, value, strict=True)]  # fmt: skip
    best = [{**own, "n": n, "truth": 0.3 + 0.05 * n, "low": 0.2, "high": 0.6, "perfect": 0.3 + 0.1 * n}
            for own in run for n in range(1, 5)] if truth else []  # fmt: skip
    return rewards.plot_reward_models(pd.DataFrame(shares), pd.DataFrame(best))


def worked(n_models: int, dropped: bool):
    table = kin(n_models).table
    return kinship.plot_worked_example(table, kinship.find_worked_set(table, TAU, dropped), TAU)


def calculation(n_models: int, dropped: bool):
    table = kin(n_models).table
    return kinship_calculation.plot_calculation(table, kinship.find_worked_set(table, TAU, dropped), TAU)


PLOTS: dict[str, Callable] = {
    "plot_labelling: demo": lambda s: diagrams.plot_labelling(compute_counts(s["demo"])),
    "plot_labelling: published": lambda s: diagrams.plot_labelling(compute_counts(s["published"])),
    "plot_labelling: empty": lambda s: diagrams.plot_labelling(compute_counts(s["empty"])),
    "plot_framework: demo": lambda s: diagrams.plot_framework(s["demo"], compute_counts(s["demo"])),
    "plot_framework: published": lambda s: diagrams.plot_framework(s["published"], compute_counts(s["published"])),
    "plot_framework: everything": lambda s: diagrams.plot_framework(s["everything"], compute_counts(s["everything"])),
    "plot_framework: empty": lambda s: diagrams.plot_framework(s["empty"], compute_counts(s["empty"])),
    "plot_prompt: short": lambda s: diagrams.plot_prompt("1 + 1?", "2", "arc_easy"),
    "plot_prompt: choices": lambda s: diagrams.plot_prompt(PROMPT, "The answer is (A). " * 30, "mmlu_pro"),
    "plot_prompt: wide letters": lambda s: diagrams.plot_prompt("W" * 400, "W" * 400, "ifeval"),
    "plot_prompt: cut": lambda s: diagrams.plot_prompt("a line\n" * 99, None),
    "plot_claims: every kind": lambda s: draw_claims(),
    **{f"plot_claims: {n}": lambda s, n=n: claims.plot_claims(judge_claims(s[n]), SMALLEST)
       for n in ("demo", "everything", "empty")},
    "plot_square: one method": lambda s: draw_square(["dpo"], ["k_sim"]),
    "plot_square: all": lambda s: draw_square(["sft", "dpo"], list(STRATEGIES)),
    "plot_reward_models: one": lambda s: draw_reward_models(["k_sim"], False),
    "plot_reward_models: three, and the truth": lambda s: draw_reward_models(["rlaif", "k_sim", "delta"], True),
    "plot_scores: low": lambda s: evaluation.plot_scores(score_frame(0.2), "smollm2-135m"),
    "plot_scores: high": lambda s: evaluation.plot_scores(score_frame(0.85), "smollm2-135m"),
    "plot_differences": lambda s: evaluation.plot_differences(difference_frame(), "k_score_sim, dpo, seed 0"),
    "plot_worked_example: figure 3": lambda s: worked(16, False),
    "plot_calculation: figure 9": lambda s: calculation(16, True),
    "plot_calculation: six models": lambda s: calculation(6, False),
    "plot_worked_example: six models": lambda s: worked(6, False),
    "plot_dendrograms: paper": lambda s: kinship.plot_dendrograms(kin().trees, CUT, kin().table),
    "plot_dendrograms: six models": lambda s: kinship.plot_dendrograms(kin(6).trees, CUT, kin(6).table),
    "plot_kinship: paper": lambda s: kinship.plot_kinship(kin().kinship, kin().trees["total"][1], TAU, CUT, kin().table),
    "plot_kinship: six models": lambda s: kinship.plot_kinship(kin(6).kinship, kin(6).trees["total"][1], TAU, CUT, kin(6).table),
    "plot_pca: paper": lambda s: kinship_map.plot_pca(kin().pca, kin().table),
    "plot_pca: 4,500 models": lambda s: kinship_map.plot_pca(compute_pca(compute_normalized(many(4500))), many(4500)),
    "plot_branches: 600 models": lambda s: draw_branches(600),
    "plot_kinships": lambda s: draw_kinships(),
    "plot_kinships: nothing to compare": lambda s: draw_kinships(False),
    "plot_pca: six models": lambda s: kinship_map.plot_pca(kin(6).pca, kin(6).table),
    "plot_uncertainty: paper": lambda s: kinship_trust.plot_uncertainty(kin()),
    "plot_uncertainty: six models": lambda s: kinship_trust.plot_uncertainty(kin(6)),
    "plot_sensitivity: paper": lambda s: kinship_trust.plot_sensitivity(kin()),
    "plot_sensitivity: six models": lambda s: kinship_trust.plot_sensitivity(kin(6)),
    "plot_lineage": lambda s: draw_lineage(),
    "plot_overlap": lambda s: draw_overlap(),
    "plot_model_pairs": lambda s: pairs.plot_model_pairs(pair_sets()["k_score"].table, "k_score"),
    "plot_gaps": lambda s: draw_gaps(),
    "plot_premise: two measures": lambda s: draw_premise(3, ["length", "lexical"]),
    "plot_premise: all measures": lambda s: draw_premise(16, MEASURES),
    "plot_curriculum": lambda s: pairs.plot_curriculum(order_pairs(pair_sets()["k_sim"], 3).table, "k_sim"),
    "plot_agreement": lambda s: draw_agreement(),
    "plot_choices": lambda s: draw_choices(),
    "plot_curve: two metrics": lambda s: draw_curve(["random", "m_ap"], [0.4]),
    "plot_curve: all metrics": lambda s: draw_curve(METRICS),
    "plot_front: two sources": lambda s: draw_front(["score", "truth"]),
    "plot_front: four, one a file": lambda s: draw_front(
        ["kinship:instruction_following", "annotation", "truth", "rewards/of_a_reward_model_with_a_long_name.parquet"]
    ),
    "plot_leads: one metric": lambda s: draw_leads(["m_ap"], [0.4], ["ifeval"]),
    "plot_leads: all metrics": lambda s: draw_leads([m for m in METRICS if m != "random"], [0.4], list(BENCHMARKS)),
    "plot_leads: all sizes": lambda s: draw_leads([m for m in METRICS if m != "random"], [0.1, 0.2, 0.4], list(BENCHMARKS)),
    **{f"plot_capabilities: {n}": lambda s, n=n: results.plot_capabilities(compute_capabilities(s[n]), compute_leads(s[n]))
       for n in ("demo", "everything", "published", "empty")},
    **{f"plot_policies: {n}": lambda s, n=n: results.plot_policies(compute_policies(s[n], "dpo"), "dpo")
       for n in ("demo", "everything", "published", "empty")},
    "plot_rounds: two": lambda s: draw_rounds(2),
    "plot_rounds: ten": lambda s: draw_rounds(10),
    "plot_margins": lambda s: draw_margins(80),
    "plot_label_accuracy: judge": lambda s: labels.plot_label_accuracy(label_frame(), "judge"),
    "plot_label_accuracy: nothing decided": lambda s: labels.plot_label_accuracy(label_frame(False), "recorded"),
    **{f"{plot}: {n}": lambda s, plot=plot, n=n: getattr(labels, plot)(*recorded(n)[plot])
       for plot in ("plot_accuracy_surface", "plot_trade_off", "plot_mislabelled") for n in (3, 16)},
    "plot_reliability": lambda s: labels.plot_reliability(*recorded(16)["plot_reliability"]),
    "plot_vote_agreement": lambda s: draw_vote_agreement(),
    **{f"plot_win_rates: {n} models": lambda s, n=n: draw_win_rates(n) for n in (2, 4)},
    "plot_model_truth: paper": lambda s: draw_model_truth(16),
    "plot_model_truth: six models": lambda s: draw_model_truth(6),
    **{f"plot_training: {method}": lambda s, method=method: draw_training(method) for method in METHODS},
    "plot_stability: one seed": lambda s: draw_stability(["k_sim"], ["dpo"], several=False),
    "plot_stability: a recipe": lambda s: draw_stability(["k_sim", "rlaif"], ["dpo", "distil-1-sft", "distil-2-dpo"]),
    "plot_stability: all": lambda s: draw_stability(list(STRATEGIES), list(METHODS)),
    "plot_refilter: three epochs": lambda s: draw_refilter(3),
    "plot_refilter: thirty": lambda s: draw_refilter(30),
    "plot_training: with held-out pairs": lambda s: draw_training("dpo", alarms=[]),
    "plot_training: with alarms": lambda s: draw_training("dpo", alarms=["the margin does not grow: " + "so it was " * 12] * 2),
    "plot_training: one update": lambda s: draw_training("dpo", 1),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _style():
    set_style()
    yield
    plt.close("all")


def figure_of(drawn) -> Figure:
    first = drawn if isinstance(drawn, Figure) else np.atleast_1d(np.asarray(drawn, dtype=object)).flat[0]
    return first if isinstance(first, Figure) else first.get_figure(root=True)


@pytest.mark.parametrize("case", PLOTS)
def test_boxes(case, studies):
    check_boxes(figure_of(PLOTS[case](studies)))


def test_every_plot_function_has_a_case():
    modules = [importlib.import_module(f"karma.figures.{m.name}") for m in pkgutil.iter_modules(karma.figures.__path__)]
    there = {name for module in modules for name in vars(module) if name.startswith("plot_")}
    assert there == {case.split(":")[0] for case in PLOTS}
    assert Path(karma.figures.__file__).parent.name == "figures"


def test_figure9_is_the_calculation_by_hand():
    """A (1, 1), B (1, .4), C (.5, .5), D (0, 0): the highest means are A's and B's, the highest cosine A's and C's."""
    scores = pd.DataFrame({"arc_easy": [0.5, 0.9, 0.1, 0.9], "ifeval": [0.5, 0.42, 0.1, 0.9]}, index=list("cbda"))
    table = ScoreTable(scores.rename_axis("origin_model"), load_benchmarks().loc[["arc_easy", "ifeval"]])
    means, cosines = kinship_calculation.plot_calculation(table, list("cbda"), TAU)
    texts = [[t.get_text() for t in ax.texts] for ax in (means, cosines)]
    a_with_c, a_with_b = ["1.000", "1.414", "0.707", "1.000"], ["1.400", "1.414", "1.077", "0.919"]
    assert texts[0] == ["1.00"] * 4 + ["0.40", "0.70"] + ["0.50"] * 3 + ["0.00"] * 3 + ["chosen", "rejected"]
    assert texts[1][:8] == a_with_c + a_with_b
    assert [t.get_text() for t in cosines.get_yticklabels()][:2] == ["x = A, y = C", "x = A, y = B"]
    frames = [[(round(p.get_x()), round(p.get_y() + 0.45)) for p in ax.patches] for ax in (means, cosines)]
    assert frames == [[(2, 0), (2, 1)], [(3, 0)]], "K_score takes A and B, K_sim A and C"
    struck = [c for c in cosines.collections if len(c.get_segments())]
    assert len(struck[0].get_segments()) == 3, "D is kin to nobody"


# --- each kind of problem is found -----------------------------------------------------------------------------------


@pytest.fixture
def plain():
    """A small figure with nothing wrong."""
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0, 1, 2], [0, 1, 2], "o", label="points")
    ax.set(xlabel="place", ylabel="score (share)", title="Whole")
    assert find_problems(figure) == []
    return ax


def turn(ax, angle):
    ax.set_xticks(range(3), ["the name of a model"] * 3, rotation=angle, ha="right", rotation_mode="anchor")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda ax: ax.figure.text(0.9, 0.5, "far to the right"), "off the canvas"),
        (lambda ax: turn(ax, 0), "over one another: 'the name of a model'"),
        (lambda ax: ax.text(1, 1, "one") and ax.text(1, 1, "two"), "over one another: 'one' and 'two'"),
        (lambda ax: ax.set_xlabel(""), "no axis title beside '"),
        (lambda ax: ax.set_ylabel(""), "no axis title beside '"),
        (lambda ax: ax.set_title("Small", fontsize=7), "7 pt, below 8: 'Small'"),
        (lambda ax: ax.legend(loc="upper right"), "a legend covers 1 points of the plot"),
        (lambda ax: ax.text(0, 2, "note", va="center") and ax.legend(loc="upper left"), "a legend covers 'note'"),
        (lambda ax: ax.figure.add_axes((0, 0, 0.1, 0.1)).set_axis_off(), "axes with nothing in them"),
    ],
)  # fmt: skip
def test_a_spoilt_figure_is_found_out(plain, spoil, problem):
    spoil(plain)
    with pytest.raises(AssertionError) as error:
        check_boxes(plain.figure)
    assert problem in str(error.value)


def test_turned_names_that_lie_apart_are_no_overlap(plain):
    plain.figure.set_size_inches(3, 3)
    turn(plain, 45)
    check_boxes(plain.figure)


def test_what_is_hidden_or_shared_is_no_problem(plain):
    twin = plain.figure.add_axes((0.2, 0.9, 0.2, 0.05))
    twin.set(visible=False, xlabel="")
    plain.text(1, 1, "off", visible=False)
    check_boxes(plain.figure)
    _, (left, right) = plt.subplots(1, 2, sharey=True)
    for ax in (left, right):
        ax.plot([1, 2])
        ax.set_xlabel("place")
    left.set_ylabel("score (share)")
    check_boxes(left.figure)


def test_a_name_with_dollar_signs_is_a_name(tmp_path):
    from karma.figures.style import build_dagger, save_figure, set_style

    set_style()
    axes = plt.figure().add_subplot(title=r"model $\frac$ and $^$")
    axes.legend(handles=[build_dagger("at chance")])
    assert all(path.is_file() for path in save_figure(axes, tmp_path / "names"))
