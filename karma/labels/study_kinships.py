"""Kinship by score, origin and behaviour of a study's own origin models, put to its pool and the truth of its labels.

Scores and recorded answers are those of 01, origins as the score table declares them (the father of a damaged copy),
responses the pool's. Limit: behaviour is known where 01 measured the models, on its items with options.

Paper: ours.
"""

from pathlib import Path

import pandas as pd
import pyarrow.compute as pc

from karma.files.reading import read_parquet
from karma.labels.kinships import build_outcomes, compare_kinships, list_kinships
from karma.pool.pool import ResponsePool
from karma.pool.responses import to_hex
from karma.scores.names import canonical_model_name
from karma.scores.normalise import compute_s_pref
from karma.scores.table import ScoreTable

FREE_TEXT = ("ifeval",)  # no options to agree on


def compare_study_kinships(
    table: ScoreTable, origins: Path, responses: pd.DataFrame, pool: ResponsePool, seed: int = 0
) -> pd.DataFrame:
    """Return what each kinship tells of a study's responses and labels.

    Args:
        table: the study's, as 02 saved it. origins: 01's folder; answers that are not there are not known.
        responses: from `karma.labels.audit.compute_truth`. pool: of these responses. seed: of the lot, where there are
            many models.

    Returns:
        As `karma.labels.kinships.compare_kinships`; empty where fewer than three models have scores and responses.
    """
    place = {canonical_model_name(str(name)): str(name) for name in table.scores.index}
    own = responses[responses["usable"]].drop_duplicates(["row_id", "response_id"])
    own = own.assign(model=[place.get(canonical_model_name(name)) for name in own["model"]]).dropna(subset="model")
    names = sorted(own["model"].unique())
    if len(names) < 3:
        return pd.DataFrame()
    texts: dict[str, str | None] = {}
    for batch in pool.batches():
        ids = to_hex(batch.response_digest).to_pylist()
        texts.update(zip(ids, pc.fill_null(batch.response, "").to_pylist(), strict=True))
    first = own.drop_duplicates(["row_id", "model"]).assign(text=lambda rows: rows["response_id"].map(texts))
    grids = [first.pivot(index="row_id", columns="model", values=name)[names] for name in ("text", "truth")]
    s_pref = compute_s_pref(table)[names]
    outcomes = build_outcomes(grids[0].to_numpy(object), grids[1].to_numpy(float), s_pref)
    answers = _load_answers(origins)
    return compare_kinships(outcomes, list_kinships(table, dict(zip(names, names, strict=True)), answers), seed)


def _load_answers(origins: Path) -> pd.DataFrame | None:
    parts = []
    for file in sorted(origins.glob("*/answers.parquet")):
        rows = read_parquet(file, columns=["benchmark", "item_id", "extracted"]).to_pandas()
        parts.append(rows[~rows["benchmark"].isin(FREE_TEXT)].assign(origin_model=file.parent.name))
    answers = pd.concat(parts) if parts else pd.DataFrame()
    return answers if len(answers) else None
