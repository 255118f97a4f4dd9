"""Recorded judgments: who answered which prompt, and how well a judge, people or a program found it.

Two kinds. *Values*: every response has one (AlpacaEval's probability of beating one baseline, UltraFeedback's rating,
the share of instructions followed), so that any two models are comparable on a prompt that both answered. *Votes*:
people saw two responses of a prompt; a pair's value is the mean of its votes, 1 for the better, 0 for the worse, a half
each for a tie. `karma.labels.layouts` reads the layouts in which others publish them. Decision: what has no value is
dropped and counted, what has two is an error, since a sum over both would depend on which is believed.
Limit: one value a response; a judge's own noise is not known from it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from karma.errors import InputError, quote
from karma.pool.affinity import TRAITS


@dataclass(frozen=True, eq=False)
class Judgments:
    """Judged responses of several models to shared prompts.

    Attributes:
        source: where they are from, for people. layout: a name of `karma.labels.layouts.LAYOUTS`.
        unit: what a judged value is, for an axis.
        models: names as recorded, sorted. prompts: ids, in the source's order.
        cluster: (prompts,), the same number for prompts that are one to a reader (turns of a conversation, an
            instruction that is repeated): they count as one in intervals.
        values: prompts x models, NaN where there is none; None for votes.
        votes: of pairs: prompt, first, second (positions), gap (value of first - of second, in [-1, 1]), n votes, of
            which n_first and n_second for either side.
        lengths: prompts x models, characters, NaN where the text is unknown.
        complexity: prompts x models x TRAITS of `karma.pool.affinity`; None where the texts were not measured.
        texts: prompts x models, the responses, None where there is none; or None: the layout does not carry them.
        annotations: prompts x models, by another annotator than the judge, for `rlaif`; or None.
        labelled: strategy -> its own pairs as given: prompt, chosen, rejected (positions), gap.
        counts: judgments_in = used + each reason not to.
    """

    source: str
    layout: str
    unit: str
    models: list[str]
    prompts: list[str]
    cluster: np.ndarray
    values: np.ndarray | None
    lengths: np.ndarray
    counts: dict[str, int]
    votes: pd.DataFrame | None = None
    annotations: np.ndarray | None = None
    complexity: np.ndarray | None = None
    texts: np.ndarray | None = None
    labelled: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def answered(self) -> np.ndarray:
        """Tell who has a judged response to which prompt: prompts x models."""
        if self.values is not None:
            return np.asarray(np.isfinite(self.values))
        found = np.zeros((len(self.prompts), len(self.models)), bool)
        assert self.votes is not None
        for side in ("first", "second"):
            found[self.votes["prompt"], self.votes[side]] = True
        return found

    def keep(self, names: list[str]) -> "Judgments":
        """Return the judgments of some models, in this order; those of others are counted as `unmatched_model`."""
        places = [self.models.index(name) for name in names]
        new = np.full(len(self.models), -1)
        new[places] = np.arange(len(places))
        labelled = {name: _keep_pairs(frame, new, "chosen", "rejected") for name, frame in self.labelled.items()}
        votes = None if self.votes is None else _keep_pairs(self.votes, new, "first", "second")
        lost = int(self.answered.sum() - self.answered[:, places].sum())
        if self.votes is not None and votes is not None:
            lost = int(self.votes["n"].sum() - votes["n"].sum())
        counts = {**self.counts, "unmatched_model": lost, "used": self.counts["used"] - lost}
        return replace(
            self, models=list(names), lengths=self.lengths[:, places], votes=votes, labelled=labelled, counts=counts,
            values=None if self.values is None else self.values[:, places],
            annotations=None if self.annotations is None else self.annotations[:, places],
            complexity=None if self.complexity is None else self.complexity[:, places],
            texts=None if self.texts is None else self.texts[:, places],
        )  # fmt: skip


def _keep_pairs(frame: pd.DataFrame, new: np.ndarray, *sides: str) -> pd.DataFrame:
    moved = frame.assign(**{side: new[frame[side]] for side in sides})
    return moved[(moved[list(sides)] >= 0).all(axis=1)].reset_index(drop=True)


def build_values(rows: pd.DataFrame, source: str, layout: str, unit: str, what: str = "prompt") -> Judgments:
    """Gather values of single responses.

    Args:
        rows: prompt (id), model, value (NaN or None: no preference), and where known length (characters), group (what
            makes prompts one), annotation, text, and the TRAITS of the text under `trait_<name>`.
        source, layout, unit: as in Judgments. what: what a prompt's id is called in errors.

    Raises:
        InputError: a model judged twice on a prompt, fewer than two models, or no value at all.

    Example:
        >>> rows = [("p", "b", 1.0), ("p", "a", 0.5), ("q", "a", None)]
        >>> found = build_values(pd.DataFrame(rows, columns=["prompt", "model", "value"]), "two.json", "own", "share")
        >>> found.models, found.values.tolist(), found.counts
        (['a', 'b'], [[0.5, 1.0]], {'judgments_in': 3, 'missing_preference': 1, 'used': 2})
    """
    twice = rows.duplicated(["prompt", "model"])
    if twice.any():
        one = rows[twice].iloc[0]
        text = shorten(one["prompt"])
        raise InputError(f"{source}: {what} '{text}' is judged twice for '{one['model']}': keep one of them")
    value = pd.to_numeric(rows["value"], errors="coerce")
    known = rows[value.notna()].assign(value=value[value.notna()])
    models, prompts = sorted(known["model"].unique()), list(dict.fromkeys(known["prompt"]))
    _check_models(models, sorted(set(rows["model"])), source)
    counts = {"judgments_in": len(rows), "missing_preference": int(value.isna().sum()), "used": len(known)}
    groups = known.groupby("prompt", sort=False)["group"].first() if "group" in known else pd.Series(prompts)
    grids = {
        name: known.pivot(index="prompt", columns="model", values=name).loc[prompts, models].to_numpy(float)
        for name in ("value", "length", "annotation", *(f"trait_{trait}" for trait in TRAITS)) if name in known
    }  # fmt: skip
    traits = [grids[f"trait_{trait}"] for trait in TRAITS if f"trait_{trait}" in grids]
    empty = np.full((len(prompts), len(models)), np.nan)
    texts = None
    if "text" in known:
        texts = known.pivot(index="prompt", columns="model", values="text").loc[prompts, models].to_numpy(object)
    return Judgments(source, layout, unit, models, [str(p) for p in prompts], pd.factorize(groups)[0], grids["value"],
                     grids.get("length", empty), counts, annotations=grids.get("annotation"),
                     complexity=np.stack(traits, axis=2) if traits else None, texts=texts)  # fmt: skip


def build_votes(rows: pd.DataFrame, source: str, layout: str, lengths: pd.DataFrame | None = None) -> Judgments:
    """Gather votes on pairs.

    Args:
        rows: one a vote: prompt (id), group, first, second (models), vote (1: first is better, -1: second, 0: a tie,
            NaN: none).
        source, layout: as in Judgments. lengths: prompt, model, length (characters) of the responses.

    Raises:
        InputError: a model against itself, fewer than two models, or no vote at all.

    Example:
        >>> rows = pd.DataFrame([("p", "p", "a", "b", 1.0), ("p", "p", "b", "a", 0.0)],
        ...                     columns=["prompt", "group", "first", "second", "vote"])
        >>> build_votes(rows, "votes.json", "own").votes[["first", "second", "gap", "n"]].values.tolist()
        [[0.0, 1.0, 0.5, 2.0]]
    """
    same = rows["first"] == rows["second"]
    if same.any():
        one = rows[same].iloc[0]
        raise InputError(f"{source}: prompt '{shorten(one['prompt'])}' sets '{one['first']}' against itself: remove it")
    known = rows[rows["vote"].notna()]
    models = sorted(set(known["first"]) | set(known["second"]))
    _check_models(models, sorted(set(rows["first"]) | set(rows["second"])), source)
    prompts = list(dict.fromkeys(known["prompt"]))
    place, at = pd.Series(range(len(models)), models), pd.Series(range(len(prompts)), prompts)
    first, second = known["first"].map(place).to_numpy(), known["second"].map(place).to_numpy()
    turned = first > second
    flat = pd.DataFrame({
        "prompt": known["prompt"].map(at).to_numpy(), "first": np.where(turned, second, first),
        "second": np.where(turned, first, second), "gap": np.where(turned, -1, 1) * known["vote"].to_numpy(float),
    })  # fmt: skip
    cast = flat.assign(n_first=flat["gap"] > 0, n_second=flat["gap"] < 0)
    sums = {
        "gap": ("gap", "mean"),
        "n": ("gap", "size"),
        "n_first": ("n_first", "sum"),
        "n_second": ("n_second", "sum"),
    }
    votes = cast.groupby(["prompt", "first", "second"]).agg(**sums).reset_index()
    grid = np.full((len(prompts), len(models)), np.nan)
    if lengths is not None:
        seen = lengths[lengths["prompt"].isin(at.index) & lengths["model"].isin(place.index)]
        grid[seen["prompt"].map(at), seen["model"].map(place)] = seen["length"]
    counts = {"judgments_in": len(rows), "missing_preference": len(rows) - len(known), "used": len(known)}
    groups = known.groupby("prompt", sort=False)["group"].first()
    return Judgments(source, layout, "share of votes", models, [str(p) for p in prompts], pd.factorize(groups)[0], None,
                     grid, counts, votes=votes)  # fmt: skip


def shorten(text: object) -> str:
    """Return a text on one line, cut for a message."""
    line = " ".join(str(text).split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _check_models(models: list[str], named: list[str], source: str) -> None:
    if not models:
        raise InputError(f"{source}: none of {len(named)} models has a preference: nothing is judged here")
    if len(models) < 2:
        raise InputError(f"{source}: only one model, '{models[0]}', is judged: a comparison needs two")


def get_field(row: dict[str, Any], key: str, source: str) -> str:
    """Return a text that a row must have; raise where it is absent, empty or none."""
    value = row.get(key)
    if value in (None, ""):
        raise InputError(f"{source}: a row has no '{key}'; it has {', '.join(map(str, list(row)[:8]))}")
    if not isinstance(value, str):
        raise InputError(f"{source}: {key} is {quote(value)}, expected a text")
    return value


def count_characters(text: object) -> float:
    """Return a text's length in characters, NaN where there is none."""
    return float(len(text)) if isinstance(text, str) else math.nan
