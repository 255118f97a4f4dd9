"""What a binarization is told beside the pool: its rules, and scores and kinship as arrays.

Both are checked once, before a row is read. Scores and cosines that agree to 12 digits count as equal, so
that the rounding of a sum never decides a pair. How sure a label is follows from the items behind the scores; where
those are unknown, what needs it is refused, and all else goes on without.

Paper: Eq. 1, Eq. 2 (section 2.4), section 2.3 (tau).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from karma.errors import InputError
from karma.kinship.similarity import MAX_SQUARE, KinshipByPair, compute_kinship
from karma.kinship.uncertainty import compute_label_confidence
from karma.pairs.calibration import Calibration, compute_facts
from karma.pool.annotations import AnnotationTable
from karma.pool.decontamination import Items
from karma.pool.duplicates import check_threshold
from karma.pool.responses import ANNOTATION_FIELDS
from karma.scores.names import canonical_model_name
from karma.scores.normalise import compute_normalized, compute_s_pref
from karma.scores.table import ScoreTable
from karma.strategies import Kinship

QUALITIES = ("s_pref", "annotation")  # of a response, for affinity; besides: any table of scores
Lengths = tuple[np.ndarray, np.ndarray]  # characters of chosen and of rejected


@dataclass(frozen=True)
class Rules:
    """How pairs are made, beside the strategy.

    Attributes:
        tau: least kinship (cosine, -1..1) of an eligible pair; delta has none.
        seed: of every draw.
        rejected: rlaif, density_ratio: "random_lower" or "worst".
        annotation_field: rlaif: the recorded annotation that labels: overall_score, fine-grained_score,
            mean_aspect.
        annotations: rlaif: a table of scores by row and response, in place of the recorded ones.
        densities: density_ratio: the same table of log-density ratios (`karma.labels.density_ratio`).
        excluded_origin_models: models whose responses take no part.
        drop_truthfulqa: drop rows from TruthfulQA, and rows of other sources that repeat its questions.
        contaminated: instructions to drop (compared casefolded, white space collapsed).
        max_response_tokens: longest usable response, in tokens estimated as UTF-8 bytes / 4.
        same_system_prompt: drop pairs whose responses obeyed different custom system prompts.
        max_length_ratio: only pairs whose longer response has at most so many times the characters of the shorter one
            are eligible, to every strategy; at least 1, None for any.
        min_confidence: drop pairs whose label confidence is less, 0..1; of rlaif, whose labels are annotations, none.
        calibration: what an audit made of the facts of a pair, for label confidence; None: from sampling error alone
            (`karma.kinship.uncertainty`), which is also what k_sure goes by in any case.
        decontaminate: benchmarks' items, whose runs of words no prompt and no response may share; None: any may.
        near_duplicates: drop rows whose prompt is as alike as this (Jaccard, 0.5 to 1) to that of a row that is kept.
        quality: affinity: the quality of a response: "s_pref" of its model, its "annotation", or a table of scores.
        quality_weight: affinity: of quality against complexity, 0..1.
        near_identical: drop pairs whose word sets overlap (Jaccard) this much or more, 0..1.
    """

    tau: float
    seed: int
    rejected: Literal["random_lower", "worst"] = "random_lower"
    annotation_field: str = "overall_score"
    annotations: AnnotationTable | None = None
    excluded_origin_models: Collection[str] = ()
    drop_truthfulqa: bool = False
    contaminated: Collection[str] = ()
    max_response_tokens: int | None = None
    same_system_prompt: bool = False
    near_identical: float | None = None
    max_length_ratio: float | None = None
    min_confidence: float | None = None
    calibration: Calibration | None = None
    densities: AnnotationTable | None = None
    decontaminate: Items | None = None
    near_duplicates: float | None = None
    quality: AnnotationTable | str = "s_pref"
    quality_weight: float = 0.5

    def __post_init__(self) -> None:
        if not -1 <= self.tau <= 1:
            raise InputError(f"tau is {self.tau}: a cosine lies between -1 and 1")
        if self.rejected not in ("random_lower", "worst"):
            raise InputError(f"rejected is '{self.rejected}': choose random_lower or worst")
        if self.annotation_field not in ANNOTATION_FIELDS:
            raise InputError(f"annotation field '{self.annotation_field}': choose from {', '.join(ANNOTATION_FIELDS)}")
        if self.max_length_ratio is not None and not 1 <= self.max_length_ratio < math.inf:
            raise InputError(f"max_length_ratio is {self.max_length_ratio}: longer over shorter is 1 or more")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise InputError(f"min_confidence is {self.min_confidence}: a probability lies between 0 and 1")
        if self.near_duplicates is not None:
            check_threshold(self.near_duplicates)
        if isinstance(self.quality, str) and self.quality not in QUALITIES:
            raise InputError(f"affinity quality is '{self.quality}': choose {', '.join(QUALITIES)}, or give a table")
        if not 0 <= self.quality_weight <= 1:
            raise InputError(f"affinity weight is {self.quality_weight}: a share lies between 0 and 1")
        if isinstance(self.excluded_origin_models, str) or isinstance(self.contaminated, str):
            raise InputError("excluded_origin_models and contaminated are lists of names, not one text")

    def describe_affinity(self) -> dict[str, Any]:
        """Return what accounting.json records of affinity's own rules."""
        recorded = self.annotations.name if self.annotations else f"recorded {self.annotation_field}"
        names = {"s_pref": "S_pref of the origin model", "annotation": recorded}
        named = names[self.quality] if isinstance(self.quality, str) else self.quality.name
        return {"affinity_quality": named, "affinity_weight": self.quality_weight}

    def as_dict(self) -> dict[str, Any]:
        """Return what accounting.json records of the rules; of decontamination and duplicates only where asked for."""
        apart = ("annotations", "densities", "contaminated", "decontaminate", "near_duplicates", "quality",
                 "quality_weight")  # fmt: skip
        kept = {k: v for k, v in vars(self).items() if k not in apart}
        if self.decontaminate is not None:
            kept["decontaminate"] = self.decontaminate.sentence
        if self.near_duplicates is not None:
            kept["near_duplicates"] = self.near_duplicates
        kept["excluded_origin_models"] = sorted(canonical_model_name(m) for m in self.excluded_origin_models)
        return kept | {
            "annotations": self.annotations.name if self.annotations else f"recorded {self.annotation_field}",
            "densities": self.densities and self.densities.name,
            "contaminated": len(set(self.contaminated)),
            "calibration": self.calibration and self.calibration.sentence,
        }


@dataclass(frozen=True)
class Origins:
    """The score table as arrays, empty without scores.

    Attributes:
        position: model by name. s_pref: (n,), in [0, 1]. kinship: n x n, or a cosine when asked.
        confidence: n x n, probability that a label is right; None where it is unknown.
        confidence_source: what it follows from, or why it is unknown.
    """

    position: dict[str, int]
    s_pref: np.ndarray
    kinship: Kinship
    confidence: np.ndarray | None = None
    confidence_source: str = "unknown: no score table"

    @property
    def known(self) -> bool:
        """Tell whether there are scores at all."""
        return bool(self.position)

    def compute_confidence(
        self, chosen: np.ndarray, rejected: np.ndarray, calibration: Calibration | None, lengths: Lengths | None
    ) -> np.ndarray | None:
        """Return the label confidence of pairs, or None where it is unknown.

        Args:
            chosen, rejected: positions of their origin models, (n,) each.
            calibration: an audit's model; None: sampling error alone. lengths: characters of both texts, for it.
        """
        sure = None if self.confidence is None else self.confidence[chosen, rejected]
        if calibration is None:
            return sure
        gap = self.s_pref[chosen] - self.s_pref[rejected]
        return calibration.compute(compute_facts(gap, self.kinship[chosen, rejected], sure, lengths))


def build_origins(scores: ScoreTable | None, seed: int = 0) -> Origins:
    """Turn a score table into arrays, rounded to 12 digits.

    Args:
        scores: the table. seed: of the draws that label confidence counts.

    Raises:
        InputError: a model has no S_pref, because a score of it is missing.
    """
    if scores is None:
        return Origins({}, np.zeros(0), np.zeros((0, 0)))
    s_pref = compute_s_pref(scores)
    missing = [str(name) for name in s_pref.index[~np.isfinite(s_pref.to_numpy(float))]]
    if missing:
        raise InputError(f"origin model '{missing[0]}' lacks a score: complete its row in the score table")
    position = {canonical_model_name(str(name)): i for i, name in enumerate(s_pref.index)}
    kinship: Kinship = KinshipByPair(compute_normalized(scores))
    if len(s_pref) <= MAX_SQUARE:
        kinship = compute_kinship(scores).to_numpy(float).round(12)
    try:
        confidence = compute_label_confidence(scores, seed).to_numpy()
        source = f"sampling error of the scores ({scores.n_items_source})"
    except InputError as error:  # the number of items is unknown, or no redrawn table can be normalised
        confidence, source = None, f"unknown: {error}"
    return Origins(position, s_pref.to_numpy(float).round(12), kinship, confidence, source)
