"""The premise, put to a pool: are the responses of kin models less unlike than those of strangers?

The paper holds that kin give responses of a small gap, and does not measure it. Here every two responses to a prompt
are measured (`karma.pairs.quality_gap`; in the report of a study that audits its labels, also by their truths), of all
origin models and not only of those a strategy picks. Two distances are then related to the mean gap of each two models:

    kinship   1 - S_ij, the cosine distance of their benchmark rows
    s_pref    |S_pref_i - S_pref_j|, which the label goes by

by Mantel's test (`karma.kinship.mantel`), for pairs of models are not independent: models' labels are permuted. All
tests are one family (Holm). Beside them a curve: the mean gap of the response pairs that a threshold tau leaves.
Decision: too few models for a verdict (n models have n! orders, so p is at least 1 / n!) are no evidence against it.
Limits: a correlation names no cause: kin may share a family, or a length of response.
Two responses of one model differ as well, so that a gap of 0 is no yardstick. The curve's interval is over prompts: it
holds for these models, not for others.

Paper: sections 1 and 2.1 (Response Quality Gap), 2.3 (tau); the test is ours.
"""

import math
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from karma.files.writing import atomic_path
from karma.kinship.mantel import MEDIUM_EFFECT, compute_mantel
from karma.pairs.binarizer import Binarizer
from karma.pairs.quality_gap import UNITS, Embed, compute_gaps
from karma.pairs.rules import Rules
from karma.pool.annotations import AnnotationTable
from karma.pool.draws import compute_draws, compute_keys
from karma.pool.pool import ResponsePool
from karma.scores.table import ScoreTable
from karma.statistics.intervals import ALPHA, compute_mean
from karma.statistics.verdicts import POWER, adjust_holm

MEASURES = UNITS | {"truth": "share of instructions"}
RELATIONS = ("kinship", "s_pref")
KEYS = ["row_id", "one", "other", "kinship", "s_pref"]
N_PROMPTS = 2000  # of the sample: six pairs each in a pool of four responses a prompt
CHUNK = 4096  # response pairs whose words are in memory at once
N_TAUS = 20
MEDIUM = MEDIUM_EFFECT["size difference"]  # of r
PARTS = ("tests", "curve", "model_pairs")  # the files, in a folder `premise` of a strategy's pairs


def sample_response_pairs(
    pool: ResponsePool, scores: ScoreTable, seed: int, n_prompts: int = N_PROMPTS, excluded: Collection[str] = ()
) -> pa.Table:
    """Return every two responses by two models of about `n_prompts` prompts, drawn by (seed, row).

    Args:
        pool: from `load_pool`. scores: of its origin models.
        seed: of the draw. n_prompts: how many of the pool's rows to aim at.
        excluded: origin models whose responses take no part.

    Returns:
        In the shape of `karma.pairs.pairs.PAIR_SCHEMA`; `chosen` is that of the higher S_pref.

    Raises:
        InputError: malformed pool, or an origin model without scores.
    """
    binarizer = Binarizer(scores, [], Rules(tau=-1, seed=seed, excluded_origin_models=excluded))
    n_rows = pool.n_rows or sum(batch.n_rows for batch in pool.batches())
    tables = []
    for batch in pool.batches():
        share = compute_draws(seed, "premise", compute_keys(batch.row_digest)).astype(float) / 2.0**64
        tables.append(binarizer.pair_all(batch, share < n_prompts / n_rows))
    return pa.concat_tables(tables)


def measure_response_pairs(
    pairs: pa.Table, annotations: AnnotationTable | None = None, embed: Embed | None = None
) -> pd.DataFrame:
    """Measure every pair of responses beside what is known of their models.

    Args:
        pairs: from `sample_response_pairs`.
        annotations, embed: as of `karma.pairs.quality_gap.compute_gaps`.

    Returns:
        One row a pair: KEYS, then one column a measure of UNITS that could be taken. `one` and `other` are the models,
        by name; kinship a cosine; s_pref the difference in S_pref without its sign.
    """
    frame = pairs.select(["row_id", "kinship"]).to_pandas()
    models = np.sort(np.array([pairs[c].to_pylist() for c in ("chosen_model", "rejected_model")], object), axis=0)
    chosen, rejected = (pairs[name].to_numpy() for name in ("chosen_score", "rejected_score"))
    frame = frame.assign(one=models[0], other=models[1], s_pref=np.abs(chosen - rejected))
    parts = (pairs.slice(start, CHUNK) for start in range(0, max(pairs.num_rows, 1), CHUNK))
    gaps = pd.concat([compute_gaps(part, annotations, embed) for part in parts], ignore_index=True)
    return pd.concat([frame[KEYS], gaps], axis=1)


def measure_truths(responses: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Measure the gap in truth of every two usable responses to a prompt by two models.

    Args:
        responses: from `karma.labels.audit.compute_truth`: row_id, response_id, model, usable, truth in [0, 1].
        models: from `average_models`; pairs of other models are left out.

    Returns:
        As `measure_response_pairs`, with the one measure `truth`.

    Example:
        >>> rows = [("p", "1", "a", True, 1.0), ("p", "2", "b", True, 0.25), ("p", "3", "c", False, 0.0)]
        >>> responses = pd.DataFrame(rows, columns=["row_id", "response_id", "model", "usable", "truth"])
        >>> models = pd.DataFrame({"one": ["a"], "other": ["b"], "kinship": [0.9], "s_pref": [0.1]})
        >>> measure_truths(responses, models)[["row_id", "kinship", "truth"]].values.tolist()
        [['p', 0.9, 0.75]]
    """
    own = responses[responses["usable"]].drop_duplicates(["row_id", "response_id"])
    both = own.merge(own, on="row_id", suffixes=("", "_other"))
    both = both[both["model"] < both["model_other"]]
    gaps = both.assign(one=both["model"], other=both["model_other"], truth=(both["truth"] - both["truth_other"]).abs())
    known = models[["one", "other", "kinship", "s_pref"]]
    return gaps[["row_id", "one", "other", "truth"]].merge(known, on=["one", "other"])[[*KEYS, "truth"]]


def average_models(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the mean gaps of each two models that answered a prompt together.

    Args:
        gaps: from `measure_response_pairs`.

    Returns:
        One row a pair of models, by name: one, other, kinship, s_pref, n (response pairs), a mean a measure.

    Example:
        >>> rows = [("p", "a", "b", 0.9, 0.1, 1.0), ("q", "a", "b", 0.9, 0.1, 2.0), ("q", "a", "c", 0.2, 0.4, 3.0)]
        >>> gaps = pd.DataFrame(rows, columns=["row_id", "one", "other", "kinship", "s_pref", "length"])
        >>> average_models(gaps)[["n", "length"]].values.tolist()
        [[2.0, 1.5], [1.0, 3.0]]
    """
    groups = gaps.drop(columns="row_id").groupby(["one", "other"])
    means = groups.mean().round(12)  # so that the rounding of a sum is no difference
    means.insert(2, "n", groups.size())
    return means.reset_index()


def relate_gaps(models: pd.DataFrame, seed: int = 0, n_permutations: int = 9999) -> pd.DataFrame:
    """Test whether models that are far apart give responses that are far apart.

    Args:
        models: from `average_models`. A model that never met some other takes no part: the one that lacks most first.
        seed: of the permutations. n_permutations: of each test.

    Returns:
        One row a relation and measure: relation, measure, n_models, r (Mantel's, in [-1, 1]: positive as the premise
        has it), low and high (95 % for all rows at once), p (two-sided), p_holm (over all rows), detectable (|r| shown
        with 80 % power at the corrected level), verdict. NaN where there is nothing to test.

    Example:
        >>> rows = [("a", "b", 0.9, 0.1, 4, 0.2), ("a", "c", 0.5, 0.3, 4, 0.3), ("b", "c", 0.6, 0.2, 4, 0.4)]
        >>> models = pd.DataFrame(rows, columns=["one", "other", "kinship", "s_pref", "n", "length"])
        >>> relate_gaps(models)["verdict"].iloc[0]
        'cannot tell: 3 models have 6 orders, too few for 2 tests'
    """
    met = {name: _keep_met(models.dropna(subset=[name])) for name in MEASURES if name in models}
    asked = [(relation, name, known) for relation in RELATIONS for name, known in met.items()]
    n_tests = sum(len(known) > 2 and known[[relation, name]].nunique().min() > 1 for relation, name, known in asked)
    rng, rows = np.random.default_rng(seed), []
    for relation, measure, known in asked:
        apart = 1 - known["kinship"] if relation == "kinship" else known["s_pref"]
        distance, gap = (_build_square(known, values) for values in (apart, known[measure]))
        test = compute_mantel(distance, gap, rng, n_permutations, max(n_tests, 1))
        scale = test["effect"] / test["r"] if test["r"] else 1.0  # its effect is not r where all means are 0 or 1
        low, high, detectable = (test[name] / scale for name in ("low", "high", "detectable"))
        rows.append((relation, measure, test["n_models"], test["r"], low, high, test["p"], detectable))
    columns = ["relation", "measure", "n_models", "r", "low", "high", "p", "detectable"]
    tests = pd.DataFrame(rows, columns=columns)
    tests.insert(7, "p_holm", adjust_holm(tests["p"]))
    tests["verdict"] = [_judge(row, n_tests) for row in tests.to_dict("records")]
    return tests


def trace_gaps(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the mean gap of the response pairs whose models' kinship reaches tau, along tau.

    Args:
        gaps: from `measure_response_pairs`.

    Returns:
        One row a (measure, tau): tau (a kinship that occurs; the lowest leaves every pair), value, low, high (95 %,
        clustered by prompt; NaN for a single one), n_pairs, n_prompts, n_model_pairs.

    Example:
        >>> rows = [("p", "a", "b", 0.9, 0.1, 1.0), ("q", "a", "b", 0.9, 0.1, 2.0), ("q", "a", "c", 0.2, 0.4, 6.0)]
        >>> gaps = pd.DataFrame(rows, columns=["row_id", "one", "other", "kinship", "s_pref", "length"])
        >>> trace_gaps(gaps)[["tau", "value", "n_pairs", "n_prompts"]].values.tolist()
        [[0.2, 3.0, 3.0, 2.0], [0.9, 1.5, 2.0, 2.0]]
    """
    steps = np.unique(gaps["kinship"])
    taus = np.unique(np.quantile(steps, np.linspace(0, 1, N_TAUS), method="lower")) if len(steps) else steps
    rows = []
    for measure in (name for name in MEASURES if name in gaps):
        known = gaps.dropna(subset=[measure])
        for tau in taus:
            part = known[known["kinship"] >= tau]
            if part.empty:
                continue
            prompts = part.groupby("row_id")[measure].agg(["sum", "size"])
            mean = compute_mean(prompts["sum"], prompts["size"])
            rows.append({"measure": measure, "tau": tau, **{k: mean[k] for k in ("value", "low", "high")},
                         "n_pairs": len(part), "n_prompts": len(prompts),
                         "n_model_pairs": part.groupby(["one", "other"]).ngroups})  # fmt: skip
    columns = ["measure", "tau", "value", "low", "high", "n_pairs", "n_prompts", "n_model_pairs"]
    return pd.DataFrame(rows, columns=columns)


def save_premise(tests: pd.DataFrame, curve: pd.DataFrame, models: pd.DataFrame, folder: Path) -> None:
    """Write what `relate_gaps`, `trace_gaps` and `average_models` return, each file whole."""
    for name, frame in zip(PARTS, (tests, curve, models), strict=True):
        with atomic_path(folder / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)


def _keep_met(models: pd.DataFrame) -> pd.DataFrame:
    """Leave out models, the one that met fewest others first, until every two have met."""
    while len(models):
        met = pd.concat([models["one"], models["other"]]).value_counts().sort_index()
        if met.min() == len(met) - 1:
            break
        models = models[(models[["one", "other"]] != met.idxmin()).all(axis=1)]
    return models


def _build_square(models: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    names = sorted({*models["one"], *models["other"]})
    square = pd.DataFrame(0.0, index=names, columns=names)
    for one, other, value in zip(models["one"], models["other"], values, strict=True):
        square.loc[one, other] = square.loc[other, one] = value
    return square


def _judge(test: Mapping[Hashable, Any], n_tests: int) -> str:
    n_models = test["n_models"]
    if math.isnan(test["r"]):
        return f"cannot tell: {n_models} models, or no differences among them"
    if math.factorial(n_models) * ALPHA <= n_tests:
        return f"cannot tell: {n_models} models have {math.factorial(n_models)} orders, too few for {n_tests} tests"
    if test["p_holm"] < ALPHA:
        return "supported" if test["r"] > 0 else "contradicted"
    if test["low"] > -MEDIUM and test["high"] < MEDIUM:
        return f"no correlation larger than {MEDIUM}"
    least = "no correlation" if test["detectable"] >= 1 else f"only a correlation above {test['detectable']:.2f}"
    return f"cannot tell: of {n_models} models {least} would show with {POWER:.0%} power"
