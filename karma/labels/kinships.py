"""Three kinships side by side: by score, by origin, by behaviour: which predicts closeness and right labels?

By score: Eq. 1 and the other measures. By origin: declared base models and merge parents (2^-steps), and the share of
tuning data that two models declare in common. By behaviour: how often two models give the same answer to the same
items, and Cohen's kappa. All are put to one test, so that their scales do not matter. Take a model, two others, and a
prompt that all three answered:

    responses   is the response of the nearer kin the one that shares more words with the model's own?
    labels      where the label (higher S_pref wins) is right against one of the two and wrong against the other: is it
                right against the nearer kin?

The share of yes is .5 for a kinship that tells nothing; below .5 it tells the opposite. Where a kinship holds both for
equally near it says nothing, and is not counted: `told` is how often it speaks. Decision: intervals are clustered by
prompt and by model (`compute_comparison_share`). Limits: shared words are not shared sense, and grow
with length; answers must be to other items than the responses, else behaviour is compared with itself.

Paper: ours; its conclusion asks for kinship beyond scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.files.writing import atomic_path
from karma.kinship.behaviour import compute_agreement
from karma.kinship.lineage import compute_data_kinship, compute_origin_kinship, trace_lineage
from karma.kinship.similarity import compute_kinship
from karma.labels.compared import read_rows
from karma.labels.matching import compute_key
from karma.pool.words import list_words, share_words
from karma.scores.table import MEASURES, ScoreTable, set_kinship
from karma.statistics.intervals import compute_comparison_share

BY = ("score", "origin", "behaviour")
QUESTIONS = {"responses": "the nearer kin's response is the closer one", "labels": "the label is right against the "
             "nearer kin"}  # fmt: skip
MAX_MODELS = 40  # compared at once; of more, some at random
COLUMNS = ["by", "kinship", "question", "n_models", "n_prompts", "n_comparisons", "told", "share", "low", "high"]
MODEL, ITEM, ANSWER = ("origin_model", "model"), ("item_id", "id"), ("extracted", "pred", "answer")


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What kinships are asked about.

    Attributes:
        models: names. cluster: (prompts,), the same number for prompts that are one to a reader.
        closeness: prompts x models x models, share of words in common, NaN where one did not answer, or no text.
        right: likewise, 1 where the label is right, 0 where it is wrong, NaN where nothing is decided.
    """

    models: list[str]
    cluster: np.ndarray
    closeness: np.ndarray
    right: np.ndarray


def build_outcomes(
    texts: np.ndarray | None, values: np.ndarray, s_pref: pd.Series, cluster: np.ndarray | None = None, tie: float = 0.0
) -> Outcomes:
    """Measure every two responses to a prompt.

    Args:
        texts: prompts x models, None where there is none; or None. values: prompts x models, truth or judged, or NaN.
        s_pref: of the models, in this order. cluster: as in Outcomes; None: each its own. tie: values this close are
            equal.

    Example:
        >>> found = build_outcomes(np.array([["a b", "a b c", "d"]]), np.array([[1.0, 0.0, 0.5]]),
        ...                        pd.Series({"x": 0.9, "y": 0.5, "z": 0.1}))
        >>> found.closeness[0, 0].round(2).tolist(), found.right[0, 0].tolist(), found.right[0, 1, 2]
        ([nan, 0.67, 0.0], [nan, 1.0, 1.0], np.float64(0.0))
    """
    n_prompts, n = values.shape
    closeness, right = np.full((2, n_prompts, n, n), np.nan)
    words = [[None] * n] * n_prompts if texts is None else [
        [list_words(text) if isinstance(text, str) else None for text in row] for row in texts
    ]  # fmt: skip
    score = s_pref.to_numpy(float)
    for i in range(n):
        for j in range(i):
            own = [_share(row[i], row[j]) for row in words]
            closeness[:, i, j] = closeness[:, j, i] = own
            gap = (values[:, i] - values[:, j]) * np.sign(score[i] - score[j])
            told = np.where(np.abs(gap) > tie, gap > 0, np.nan)
            right[:, i, j] = right[:, j, i] = told
    places = np.arange(n_prompts) if cluster is None else cluster
    return Outcomes([str(name) for name in s_pref.index], places, closeness, right)


def _share(one: frozenset[str] | None, other: frozenset[str] | None) -> float:
    return share_words(one, other) if one is not None and other is not None and one | other else np.nan


def list_kinships(
    table: ScoreTable, names: Mapping[str, str], answers: pd.DataFrame | None = None
) -> dict[tuple[str, str], pd.DataFrame | None]:
    """Return every kinship of some models.

    Args:
        table: scores of these models and others; ancestors may stand among the others. names: what each is called
            here -> its row in the table.
        answers: origin_model, benchmark, item_id, extracted, of these models; None: behaviour is not known.

    Returns:
        (by, kinship) -> models x models, NaN where unknown; None where nothing is known of any two models.
    """
    rows, here = list(names.values()), list(names)
    found: dict[tuple[str, str], pd.DataFrame | None] = {
        ("score", name): compute_kinship(set_kinship(table, name), rows) for name in MEASURES
    }
    lineage = trace_lineage(table)
    found["origin", "base model"] = compute_origin_kinship(lineage, rows)
    found["origin", "tuning data"] = compute_data_kinship(table, rows)
    told = {} if answers is None else compute_agreement(answers[answers["origin_model"].isin(here)])
    for name in ("agreement", "kappa"):
        found["behaviour", name] = told[name].reindex(index=here, columns=here) if told else None
    return {
        key: None if square is None else square.set_axis(here).set_axis(here, axis=1) for key, square in found.items()
    }


def compare_kinships(
    outcomes: Outcomes, kinships: Mapping[tuple[str, str], pd.DataFrame | None], seed: int = 0
) -> pd.DataFrame:
    """Put every kinship to both questions.

    Args:
        outcomes: of n models. kinships: from `list_kinships`, of the same models at least. seed: of the lot.

    Returns:
        COLUMNS, a row a kinship and question: n_comparisons (a model, two others and a prompt, where the answer is not
        a tie), told (the share of them of which the kinship says anything), share (of these, right), low, high (95 %).

    Example:
        >>> kin = pd.DataFrame([[1, 0.9, 0.1], [0.9, 1, 0.1], [0.1, 0.1, 1]], list("xyz"), list("xyz"))
        >>> texts = np.array([["a b", "a b c", "d"]] * 3)
        >>> found = compare_kinships(build_outcomes(texts, np.zeros((3, 3)), pd.Series(0.5, list("xyz"))),
        ...                          {("score", "cosine"): kin})
        >>> found[["question", "n_comparisons", "share"]].values.tolist()
        [['responses', 6, 1.0], ['labels', 0, nan]]
    """
    places = np.arange(len(outcomes.models))
    if len(places) > MAX_MODELS:
        places = np.sort(np.random.default_rng(seed).choice(len(places), MAX_MODELS, replace=False))
    names = [outcomes.models[k] for k in places]
    asked = {"responses": outcomes.closeness, "labels": outcomes.right}
    signs = {}
    for key, square in kinships.items():
        values = np.full((len(names),) * 2, np.nan) if square is None else square.loc[names, names].to_numpy(float)
        signs[key] = _compare_others(values)
    rows = []
    for question, outcome in asked.items():
        counts = _count(outcome[:, places][:, :, places], outcomes.cluster, signs)
        for (by, name), own in counts.items():
            found = compute_comparison_share(own["hits"], own["units"], own["hits_of"], own["units_of"])
            n = own["n_decided"]
            rows.append({"by": by, "kinship": name, "question": question, "n_models": len(names),
                         "n_prompts": int((own["units"] > 0).sum()), "n_comparisons": n,
                         "told": own["units"].sum() / n if n else np.nan, "share": found["value"],
                         "low": found["low"], "high": found["high"]})  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def _compare_others(values: np.ndarray) -> np.ndarray:
    """Return, for each model and two others, 1 where the first is nearer, -1 the second, 0 unknown or equal: n x n x n.

    Each two others once; a model is not its own other.
    """
    n = len(values)
    own = np.where(np.eye(n, dtype=bool), np.nan, values).round(12)
    signs = np.nan_to_num(np.sign(own[:, :, None] - own[:, None, :])).astype(np.int8)
    return np.asarray(signs * np.triu(np.ones((n, n), np.int8), k=1))


def _count(
    outcome: np.ndarray, cluster: np.ndarray, signs: Mapping[tuple[str, str], np.ndarray]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Count right answers and answers of each kinship, by cluster of prompts and by model that has part in them."""
    n = outcome.shape[1]
    n_clusters = int(cluster.max()) + 1 if len(cluster) else 0
    hits, units = (np.zeros((len(signs), n_clusters)) for _ in range(2))
    grids = np.zeros((2, len(signs), n, n, n))
    n_decided = 0
    for place, own in zip(cluster, outcome, strict=True):
        truth = _compare_others(own)
        n_decided += int(np.count_nonzero(truth))
        for k, sign in enumerate(signs.values()):
            both = sign * truth
            right, told = both > 0, both != 0
            hits[k, place] += right.sum()
            units[k, place] += told.sum()
            grids[0, k] += right
            grids[1, k] += told
    of_model = [[_sum_by_model(grid) for grid in grids[side]] for side in (0, 1)]
    return {key: {"hits": hits[k], "units": units[k], "hits_of": of_model[0][k], "units_of": of_model[1][k],
                  "n_decided": n_decided} for k, key in enumerate(signs)}  # fmt: skip


def _sum_by_model(grid: np.ndarray) -> np.ndarray:
    """Return the sum over all cells that a model has part in, as one of the three: (n,)."""
    return np.asarray(grid.sum(axis=(1, 2)) + grid.sum(axis=(0, 2)) + grid.sum(axis=(0, 1)))


def load_answers(path: Path, models: Sequence[str]) -> pd.DataFrame:
    """Load recorded answers to items with options, for kinship by behaviour.

    Args:
        path: JSON lines, a JSON list or parquet; a row has origin_model (or model), item_id, extracted (or pred: the
            option, null where it could not be read) and, where there are several, benchmark. models: who is asked
            about, found as `karma.labels.matching` finds names.

    Raises:
        InputError: unreadable, a row without one of these, two answers of a model to an item, or fewer than two of the
            models.
    """
    known = {compute_key(name): name for name in models}
    rows = []
    for number, row in read_rows(path, "origin_model, item_id, extracted"):
        found = [next((key for key in keys if key in row), None) for keys in (MODEL, ITEM, ANSWER)]
        if None in found:
            lacks = ("origin_model", "item_id", "extracted")[found.index(None)]
            raise InputError(f"{path.name}, row {number} has no '{lacks}': expected origin_model, item_id, extracted")
        model, item, answer = (row[key] for key in found if key)
        if not (isinstance(model, str) and isinstance(item, str | int) and isinstance(answer, str | None)):
            raise InputError(f"{path.name}, row {number}: origin_model and item_id are names, extracted a text or null")
        if name := known.get(compute_key(model)):
            rows.append((name, str(row.get("benchmark") or "items"), str(item), answer))
    frame = pd.DataFrame(rows, columns=["origin_model", "benchmark", "item_id", "extracted"])
    if frame["origin_model"].nunique() < 2:
        raise InputError(f"{path.name} has answers of {frame['origin_model'].nunique()} of the models with judgments "
                         "and scores, two are needed")  # fmt: skip
    twice = frame[frame.duplicated(["origin_model", "benchmark", "item_id"])]
    if len(twice):
        one = twice.iloc[0]
        raise InputError(
            f"{path.name}: '{one['origin_model']}' answers item '{one['item_id']}' twice: keep one of them"
        )
    return frame


def save_kinships(found: pd.DataFrame, folder: Path) -> None:
    """Write kinships.csv, whole; without anything to compare an earlier one is removed."""
    if not len(found):
        (folder / "kinships.csv").unlink(missing_ok=True)
        return
    with atomic_path(folder / "kinships.csv") as temporary:
        found.to_csv(temporary, index=False)


def describe_kinships(found: pd.DataFrame) -> list[str]:
    """Say in a line a question what each kinship tells, and of how much it says nothing."""
    lines = []
    for question, rows in found.groupby("question", sort=False) if len(found) else ():
        if not rows["n_comparisons"].max():
            lines.append(f"{question}: nothing to compare (no texts, or every label is right or wrong alike)")
            continue
        told = [f"{row['by']} ({row['kinship']}) {row['share']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
                for _, row in rows.iterrows() if row["told"]]  # fmt: skip
        silent = [f"{row['by']} ({row['kinship']})" for _, row in rows.iterrows() if not row["told"]]
        n = f"{rows['n_comparisons'].max():,} comparisons of {rows['n_models'].iloc[0]} models"
        lines.append(f"how often {QUESTIONS[str(question)]}, {n}: {', '.join(told)}")
        if silent:
            lines.append(f"nothing is told by {', '.join(silent)}: not declared, not recorded, or equal for all")
    return lines
