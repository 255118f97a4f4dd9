"""When are labels right? A logistic model of a pair's facts, fitted on some prompts and judged on others.

Each decided comparison is one case: was the label right? A draw keyed by (seed, prompt) puts half of the prompts into
the training part; `karma.pairs.calibration` says which facts the model reads and applies it. On the held-out prompts
it stands beside the confidence that sampling error alone gives, and beside a constant, the share of right labels in the
training part: Brier score (mean squared distance of confidence and outcome, 0 is best, .25 a coin that says .5) and a
reliability curve. Decision: facts are standardised for a weak ridge penalty (scikit-learn's default), so that labels
that are all right in some corner give large coefficients and no infinite ones.
Limit: prompts are held out, models are not. All facts but length are facts of a pair of models, so ten models give 45
values of each, and the intervals (by prompt and by model) say so.

Paper: ours; the Brier score is Brier (1950).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from xxhash import xxh3_64_intdigest

from karma.errors import InputError
from karma.labels.comparisons import Comparisons, cut_pairs
from karma.pairs.calibration import VERSION, Calibration, HeldOut, Score, Term, compute_facts, predict
from karma.pool.draws import compute_draws
from karma.statistics.intervals import compute_comparison_share

HELD_OUT = 0.5  # share of prompts: fitting four coefficients needs fewer comparisons than judging them does
EDGES = tuple(round(0.1 * k, 1) for k in range(11))
COLUMNS = ["confidence", "low_edge", "high_edge", "n_decided", "mean_confidence", "label_accuracy", "low", "high"]


@dataclass(frozen=True, eq=False)
class CalibrationAudit:
    """A fitted model and its curve.

    Attributes:
        model: what calibration.json holds. curve: COLUMNS, of held-out prompts, `confidence` being "calibrated" or
            "sampling error" (where that is known).
    """

    model: Calibration
    curve: pd.DataFrame


@dataclass(frozen=True, eq=False)
class _Cases:
    """Decided comparisons, (n,) each: place of prompt and pair, whether the label is right, what is known of it."""

    prompt: np.ndarray
    pair: np.ndarray
    right: np.ndarray
    facts: dict[str, np.ndarray]
    confidence: np.ndarray | None

    def take(self, mask: np.ndarray) -> "_Cases":
        facts = {name: values[mask] for name, values in self.facts.items()}
        sure = None if self.confidence is None else self.confidence[mask]
        return _Cases(self.prompt[mask], self.pair[mask], self.right[mask], facts, sure)


def fit_calibration(comparisons: Comparisons, tie: float, score_table: str, seed: int = 0) -> CalibrationAudit:
    """Fit the model on a training part of the prompts, and measure it on the others.

    Args:
        comparisons: of judged models. tie: judged values this close are equal.
        score_table: its name, for the file. seed: of the split.

    Raises:
        InputError: too little to fit or to judge: no decided comparison in a part, labels that are all right or all
            wrong, or no fact that differs between comparisons.

    Example:
        >>> from karma.labels.comparisons import build_comparisons
        >>> from karma.labels.judgments import build_values
        >>> rng, names = np.random.default_rng(0), ["a", "b", "c"]
        >>> judged = [(f"p{k}", m, place + 2 * rng.normal()) for k in range(400) for place, m in enumerate(names)]
        >>> rows = pd.DataFrame(judged, columns=["prompt", "model", "value"])
        >>> s_pref = pd.Series({"a": 0.0, "b": 0.5, "c": 1.0})
        >>> both = build_comparisons(build_values(rows, "x", "own", "points"), s_pref, pd.DataFrame(1.0, names, names))
        >>> model = fit_calibration(both, 0.0, "t.csv").model
        >>> small, large = model.compute({"s_pref_gap": np.array([0.5, 1.0])})  # in truth .64 and .76
        >>> model.facts, bool(0.55 < small < large < 0.85)
        (['s_pref_gap'], True)
    """
    cases = _list_cases(comparisons, tie)
    held = _draw_held_out(comparisons, seed)[cases.prompt]
    train, test = cases.take(~held), cases.take(held)
    if not len(test.right) or len(set(train.right.tolist())) < 2:
        raise InputError(
            f"no calibration: {len(train.right):,} decided comparisons of the training prompts ({train.right.sum():,} "
            f"labelled rightly) and {len(test.right):,} of the others are too few: add judgments"
        )
    intercept, terms = _fit(train)
    shown = {"calibrated": predict(intercept, terms, test.facts)}
    if test.confidence is not None:
        shown["sampling error"] = test.confidence
    brier = {name: _measure_brier(comparisons, test, sure) for name, sure in shown.items()}
    constant = _measure_brier(comparisons, test, np.full(len(test.right), train.right.mean()))
    held_out = HeldOut(
        n_prompts=len(np.unique(test.prompt)), n_decided=len(test.right), brier_calibrated=brier["calibrated"],
        brier_sampling_error=brier.get("sampling error"), brier_constant=constant,
    )  # fmt: skip
    model = Calibration(
        version=VERSION, source=_shorten_source(comparisons.judgments.source), score_table=score_table, tie=tie,
        n_models=len(comparisons.s_pref), n_prompts=len(np.unique(train.prompt)), n_decided=len(train.right),
        intercept=intercept, terms=terms, held_out=held_out,
    )  # fmt: skip
    curve = [row for name, sure in shown.items() for row in _trace(comparisons, test, name, sure)]
    return CalibrationAudit(model, pd.DataFrame(curve, columns=COLUMNS))


def describe_calibration(model: Calibration) -> str:
    """Say in one line what the model was worth, beside what it is to improve on."""
    held = model.held_out
    said = {"calibrated": held.brier_calibrated, "sampling error alone": held.brier_sampling_error,
            "a constant": held.brier_constant}  # fmt: skip
    scores = [f"{name} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" for name, score in said.items() if score]
    better = held.brier_calibrated.value < held.brier_constant.value
    note = "" if better else "; calibration.json is no better than a constant there: do not use it"
    return (
        f"label confidence, Brier score on {held.n_prompts:,} held-out prompts ({held.n_decided:,} decided): "
        f"{', '.join(scores)}{note}"
    )


def _shorten_source(source: str) -> str:
    """Return a source as others may see it on a card: a Hub id as it is, of a path its last two parts."""
    return "/".join(Path(source).parts[-2:])


def _list_cases(comparisons: Comparisons, tie: float) -> _Cases:
    prompt, pair = np.nonzero(comparisons.find_decided(tie))
    chosen, rejected = (comparisons.pairs[side].to_numpy()[pair] for side in ("chosen", "rejected"))
    sure = None if comparisons.confidence is None else comparisons.confidence[chosen, rejected]
    lengths = comparisons.judgments.lengths[prompt, chosen], comparisons.judgments.lengths[prompt, rejected]
    known = all(np.isfinite(side).all() for side in lengths)
    gap, kinship = (comparisons.pairs[name].to_numpy()[pair] for name in ("gap", "kinship"))
    facts = compute_facts(gap, kinship, sure, lengths if known else None)
    return _Cases(prompt, pair, comparisons.find_right(tie)[prompt, pair], facts, sure)


def _draw_held_out(comparisons: Comparisons, seed: int) -> np.ndarray:
    """Tell which prompts are held out; prompts of one cluster go together, by the first of them."""
    judgments = comparisons.judgments
    _, first, own = np.unique(judgments.cluster, return_index=True, return_inverse=True)
    texts = [judgments.prompts[place] for place in first]
    keys = np.array([xxh3_64_intdigest(text.encode("utf-8", "replace")) for text in texts], np.uint64)
    held = compute_draws(seed, "calibration", keys).astype(float) / 2.0**64 < HELD_OUT
    return np.asarray(held[own])


def _fit(train: _Cases) -> tuple[float, list[Term]]:
    from sklearn.linear_model import LogisticRegression

    names = [name for name, values in train.facts.items() if np.ptp(values) > 0]
    if not names:
        raise InputError("no calibration: the pairs differ in nothing that is known of them: add models")
    table = np.stack([train.facts[name] for name in names], axis=1)
    mean, spread = table.mean(axis=0), table.std(axis=0)
    fitted = LogisticRegression().fit((table - mean) / spread, train.right)
    slopes = fitted.coef_[0] / spread
    terms = [
        Term.model_validate({"fact": name, "coefficient": float(slope), "lowest": float(column.min()),
                             "highest": float(column.max())})
        for name, slope, column in zip(names, slopes, table.T, strict=True)
    ]  # fmt: skip
    return float(fitted.intercept_[0] - slopes @ mean), terms


def _measure_brier(comparisons: Comparisons, cases: _Cases, confidence: np.ndarray) -> Score:
    return Score(**_average(comparisons, cases, (confidence - cases.right) ** 2))


def _trace(comparisons: Comparisons, cases: _Cases, name: str, confidence: np.ndarray) -> list[dict[str, float | str]]:
    """Return the rows of a reliability curve: of each tenth of confidence, how often labels were right."""
    rows: list[dict[str, float | str]] = []
    for low, high, inside in cut_pairs(confidence, EDGES):
        if inside.any():
            found = _average(comparisons, cases.take(inside), cases.right[inside].astype(float))
            rows.append({
                "confidence": name, "low_edge": low, "high_edge": high, "n_decided": int(inside.sum()),
                "mean_confidence": float(confidence[inside].mean()), "label_accuracy": found["value"],
                "low": found["low"], "high": found["high"],
            })  # fmt: skip
    return rows


def _average(comparisons: Comparisons, cases: _Cases, values: np.ndarray) -> dict[str, float]:
    """Return the mean of values in [0, 1] over cases, with its interval by prompt and by model."""
    clusters, n_models = comparisons.judgments.cluster, len(comparisons.s_pref)
    sides = [comparisons.pairs[side].to_numpy()[cases.pair] for side in ("chosen", "rejected")]
    of_model, counted = (sum(np.bincount(side, each, n_models) for side in sides)
                         for each in (values, np.ones(len(values))))  # fmt: skip
    at = clusters[cases.prompt]
    return compute_comparison_share(np.bincount(at, values), np.bincount(at), of_model, counted)
