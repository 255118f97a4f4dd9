"""How stable trainings are, by strategy and method: the claim of the second paper's summary, measured.

Of every finished training of stage 04:

    accuracy   on its held-out pairs, and its spread over seeds (standard deviation, pooled over policies)
    score      the mean over the policy's benchmarks, and its spread over seeds
    spikes     updates whose loss lies SPIKE_SD standard deviations or more above the mean of the WINDOW updates before
               it: OLMo 2's spike score (arXiv 2501.00656) of the loss, upwards only
    KL         to the untrained policy, Schulman's k2 estimator (joschu.net/blog/kl-approx.html) on held-out texts:
               (1/2) (ln pi_after(y|x) - ln pi_before(y|x))^2 in nats a response, mean over both responses of all pairs
    drift      of length: tokens of ten answers after training less before, the mean

Means over trainings have Student's t intervals over seeds, spreads chi-square's; a policy's own mean is taken out
first. Decision: k2, since it needs whole responses' log-probabilities only, which a run keeps, is never negative, and
equals KL to second order. Limit: neither policy wrote the held-out texts, so it is a distance on these texts and no
unbiased KL; with one seed there is no interval and no spread.

Paper: arXiv 2503.01864's summary; its authors report none of these.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from karma.figures.stability import plot_stability
from karma.files.reading import load_json
from karma.results.equal_sets import merge_equal
from karma.results.pictures import show_picture
from karma.results.study import RUN_KEYS, Study, collect_results
from karma.results.tables import Table, build_plain
from karma.statistics.intervals import compute_interval, compute_spread_interval, compute_wilson
from karma.study.experiment import Experiment
from karma.vocabulary import START

SPIKE_SD, WINDOW = 7.0, 1000  # OLMo 2's
LEAST_BEFORE = 10  # updates before one that is judged; ours, trainings here being short
CELL = ["strategy", "method"]
MEASURES = ["accuracy", "score", "kl", "drift"]
CAPTION = "Stability of trainings: means and spreads (standard deviations) over seeds, [95 % intervals]."
NOTES = (
    "spikes: updates whose loss is 7 standard deviations or more above the mean of up to 1,000 before it, of those "
    "with 10 before it",
    "KL: Schulman's k2 on both held-out responses, nats a response: a distance on texts that neither policy wrote, no "
    "unbiased KL",
    "length: tokens of ten answers after training less before, cut off at training.sample_tokens",
    "no interval beside a spread of 0: seeds that changed nothing tell none",
)
ONE_SEED = "n/a in an interval or a spread: no policy was trained with two seeds, so what seeds change cannot be told"


def count_spikes(losses: Any) -> tuple[int, int]:
    """Return how many updates' losses jump, and how many could be judged.

    Args:
        losses: of a training's updates, in order; what is not finite is left out.

    Example:
        >>> flat = [0.69, 0.70] * 10
        >>> count_spikes([*flat, 3.0, *flat]), count_spikes(flat), count_spikes(flat[:5])
        ((1, 31), (0, 10), (0, 0))
    """
    values = np.asarray(losses, float)
    values = values[np.isfinite(values)]
    n_spikes = 0
    for k in range(LEAST_BEFORE, len(values)):
        before = values[max(k - WINDOW, 0) : k]
        n_spikes += bool(values[k] - before.mean() >= SPIKE_SD * max(before.std(), 1e-12))
    return n_spikes, max(len(values) - LEAST_BEFORE, 0)


def estimate_kl(margins: pd.DataFrame) -> float:
    """Return k2 over both held-out responses, in nats a response; NaN without pairs, and of a reward model.

    Args:
        margins: of held_out.parquet: chosen_logps_before, chosen_logps_after, and the same of rejected.

    Example:
        >>> moved = {"chosen_logps_before": [-10.0], "chosen_logps_after": [-8.0]}
        >>> moved |= {"rejected_logps_before": [-10.0], "rejected_logps_after": [-14.0]}
        >>> estimate_kl(pd.DataFrame(moved))  # (2^2 + 4^2) / 2 / 2
        5.0
    """
    if "chosen_logps_after" not in margins:  # a reward model keeps rewards
        return math.nan
    moved = [margins[f"{side}_logps_after"] - margins[f"{side}_logps_before"] for side in ("chosen", "rejected")]
    values = np.concatenate(moved)
    return float((values**2).mean() / 2) if len(values) else math.nan


def measure_trainings(study: Study) -> pd.DataFrame:
    """Return what is measured of each finished training.

    Args:
        study: measured.

    Returns:
        One row a training: RUN_KEYS, MEASURES (NaN where unknown), n_spikes, n_judged.
    """
    if study.folder is None or not len(study.trainings):
        return pd.DataFrame(columns=[*RUN_KEYS, *MEASURES, "n_spikes", "n_judged"])
    trained = study.results[study.results["method"] != START]
    scores = trained.pivot_table("value", RUN_KEYS, "benchmark").reindex(columns=list(study.benchmarks))
    totals = scores.mean(axis=1, skipna=False).to_dict()
    return pd.DataFrame([
        {**{key: run[key] for key in RUN_KEYS}, **_measure(study.folder / run["folder"]),
         "score": totals.get(tuple(run[key] for key in RUN_KEYS), math.nan)}
        for run in study.trainings.to_dict("records")])  # fmt: skip


def _measure(folder: Path) -> dict[str, float]:
    record, file = load_json(folder / "training.json"), folder / "held_out.parquet"
    n_spikes, n_judged = count_spikes([entry["loss"] for entry in record["history"]])
    accuracy = record["held_out"]["accuracy"]
    lengths = [[answer[when]["tokens"] for answer in record.get("answers") or []] for when in ("before", "after")]
    return {"accuracy": math.nan if accuracy is None else accuracy, "n_spikes": n_spikes, "n_judged": n_judged,
            "kl": estimate_kl(pq.read_table(file).to_pandas()) if file.is_file() else math.nan,
            "drift": float(np.mean(lengths[1]) - np.mean(lengths[0])) if lengths[0] else math.nan}  # fmt: skip


def compute_stability(trainings: pd.DataFrame) -> pd.DataFrame:
    """Return the stability of each data set and method.

    Args:
        trainings: from `measure_trainings`.

    Returns:
        One row a CELL: n trainings, n_seeds (of the policy that has most); of each measure m in MEASURES its mean m
        with m_low and m_high, its spread m_spread with m_spread_low and m_spread_high (NaN where no policy has two
        seeds); n_spikes, n_judged, and spikes (a share) with spikes_low and spikes_high.
    """
    rows: list[dict[str, Any]] = []
    for cell, own in trainings.groupby(CELL, sort=False):
        row = {**dict(zip(CELL, cell, strict=True)), "n": len(own),
               "n_seeds": int(own.groupby("policy")["seed"].nunique().max())}  # fmt: skip
        for name in MEASURES:
            row |= {f"{name}{part}": value for part, value in summarise_seeds(own, name).items()}
        rows.append({**row, **_summarise_spikes(own)})
    return pd.DataFrame(rows)


def summarise_seeds(runs: pd.DataFrame, name: str) -> dict[str, float]:
    """Return a measure's mean over policies, and its spread over their seeds, with 95 % intervals.

    Args:
        runs: one row a training: policy, seed and the measure. name: the measure; rows without it are left out.

    Returns:
        "" (the mean over policies of each policy's mean), _low, _high (Student's t), _spread (pooled over policies),
        _spread_low, _spread_high (chi-square's); NaN where no policy has two seeds, intervals also where all are alike.

    Example:
        >>> runs = pd.DataFrame({"policy": ["p", "p", "q", "q"], "seed": [0, 1, 0, 1], "kl": [1.0, 3.0, 5.0, 5.0]})
        >>> found = summarise_seeds(runs, "kl")
        >>> found[""], found["_spread"]  # means 2 and 5; ((1 + 1) + 0) / (4 - 2)
        (3.5, 1.0)
    """
    known = runs.dropna(subset=[name])
    policies = known.groupby("policy")[name]
    sizes, df = policies.size().to_numpy(float), len(known) - policies.ngroups
    value = float(policies.mean().mean()) if len(known) else math.nan
    least_value = 0.0 if name == "kl" else -math.inf  # k2 is no less
    lost = dict.fromkeys(("_low", "_high", "_spread", "_spread_low", "_spread_high"), math.nan)
    if df < 1:
        return {"": value, **lost}
    spread = math.sqrt(float(((known[name] - policies.transform("mean")) ** 2).sum()) / df)
    if not spread:  # all alike: nothing to reckon an interval from
        return {"": value, **lost, "_spread": 0.0}
    error = spread * math.sqrt(float((1 / sizes).sum())) / len(sizes)
    low, high = compute_interval(value, error, df)
    least, most = compute_spread_interval(spread, df)
    low = max(low, least_value)
    return {"": value, "_low": low, "_high": high, "_spread": spread, "_spread_low": least, "_spread_high": most}


def _summarise_spikes(runs: pd.DataFrame) -> dict[str, float]:
    """Return spikes as a share of the updates judged, trainings being clusters of updates."""
    n_spikes, n_judged = int(runs["n_spikes"].sum()), int(runs["n_judged"].sum())
    found: dict[str, float] = {"n_spikes": n_spikes, "n_judged": n_judged}
    if not n_judged:
        return {**found, "spikes": math.nan, "spikes_low": math.nan, "spikes_high": math.nan}
    share = n_spikes / n_judged
    if len(runs) < 2:
        return {**found, "spikes": share, "spikes_low": math.nan, "spikes_high": math.nan}
    apart = runs["n_spikes"] - share * runs["n_judged"]
    error = math.sqrt(float((apart**2).sum()) * len(runs) / (len(runs) - 1)) / n_judged
    low, high = compute_wilson(share, n_judged, error, df=len(runs) - 1)
    return {**found, "spikes": share, "spikes_low": low, "spikes_high": high}


def build_stability(study: Study, found: pd.DataFrame) -> Table:
    """Return the table of stability, from `compute_stability`."""
    spikes = [f"{a} of {b}" for a, b in zip(found["n_spikes"], found["n_judged"], strict=True)]
    rows = {
        "trainings": found["n"],
        "accuracy": found["accuracy"],
        "its spread": _join(found, "accuracy_spread", 3),
        "score": found["score"],
        "score's spread": _join(found, "score_spread", 3),
        "spikes": [f"{n}{interval}" for n, interval in zip(spikes, _list_intervals(found, "spikes", 3), strict=True)],
        "KL": _join(found, "kl", 2),
        "length": _join(found, "drift", 1),
    }
    frame = pd.DataFrame(rows).set_index(pd.MultiIndex.from_frame(found[CELL].assign(
        strategy=found["strategy"].map(study.title))))  # fmt: skip
    notes = NOTES if (found["n_seeds"] > 1).any() else (ONE_SEED, *NOTES)
    return build_plain("stability", CAPTION, frame, decimals=3, notes=notes)


def _join(found: pd.DataFrame, name: str, decimals: int) -> list[str]:
    """Write a value with its interval, where it has one, in one cell."""
    values = ["n/a" if math.isnan(value) else f"{value:.{decimals}f}" for value in found[name]]
    return [value + own for value, own in zip(values, _list_intervals(found, name, decimals), strict=True)]


def _list_intervals(found: pd.DataFrame, name: str, decimals: int) -> list[str]:
    both = zip(found[f"{name}_low"], found[f"{name}_high"], strict=True)
    return ["" if math.isnan(a) else f" [{a:.{decimals}f}, {b:.{decimals}f}]" for a, b in both]


def show_stability(experiment: Experiment, written: Path, figures: Path) -> list[Any]:
    """Write and return what the report shows of stability; an empty list where nothing was trained.

    Args:
        experiment: the study. written, figures: folders to write to.
    """
    study = merge_equal(collect_results(experiment), experiment)
    trainings = measure_trainings(study)
    if trainings.empty:
        return []
    found = compute_stability(trainings)
    table = build_stability(study, found)
    table.save(written)
    build_plain("stability_values", CAPTION, found.set_index(CELL), decimals=4).save(written)  # each number a column
    axes = plot_stability(found.assign(strategy=found["strategy"].map(study.title)))
    return [show_picture(axes, figures / "stability"), table]
