"""What the choices hang on: tau, the normalisation, each benchmark, the similarity measure.

Each variant changes one thing and repeats all choices: among all models, and in all sets of four
(`karma.strategies`). For measures on another scale than the cosine, tau is moved so that as many pairs are
dropped as before; the variant is then the measure alone. Limit: variants are not combined.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from karma.kinship.similarity import build_rows, compare_rows, compute_cosine, compute_kinship, list_weights
from karma.scores.normalise import DECIMALS, compute_normalized, compute_s_pref
from karma.scores.table import ScoreTable, set_kinship
from karma.strategies import choose_in_sets
from karma.vocabulary import KINSHIP_STRATEGIES

OTHER_MEASURES = {"cosine": "cosine", "centred_cosine": "centred cosine, not cosine", "rmsd": "Euclidean, not cosine",
                  "rank": "ranks, not cosine"}  # fmt: skip
TAUS = np.round(np.linspace(0, 1, 101), 2)


def sweep_tau(kinship: pd.DataFrame, taus: np.ndarray = TAUS) -> pd.DataFrame:
    """Return how many pairs and models each tau leaves.

    Args:
        kinship: n x n.
        taus: thresholds, in [-1, 1].

    Returns:
        tau -> pairs_kept, share_kept, models_left (models with at least one eligible pair).

    Example:
        >>> kinship = pd.DataFrame([[1, 0.5, 0.2], [0.5, 1, 0.1], [0.2, 0.1, 1]])
        >>> sweep_tau(kinship, np.array([0.1, 0.3]))[["pairs_kept", "models_left"]].to_numpy().tolist()
        [[3, 3], [1, 2]]
    """
    square = kinship.to_numpy()
    upper = square[np.triu_indices(len(square), k=1)]
    off_diagonal = np.where(np.eye(len(square), dtype=bool), -np.inf, square)
    kept = [(upper >= t).sum() for t in taus]
    left = [(off_diagonal >= t).any(axis=1).sum() for t in taus]
    return pd.DataFrame({"pairs_kept": kept, "share_kept": np.array(kept) / len(upper), "models_left": left},
                        index=pd.Index(taus, name="tau"))  # fmt: skip


def build_variants(table: ScoreTable) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return S_pref (n) and kinship (n x n) of each variant; the first is the table as it stands (the paper's)."""
    is_papers = table.measure == "cosine" and not table.weights
    variants = {"as in the paper" if is_papers else "as it stands": _describe(table)}
    rows = build_rows(table.scores.to_numpy(dtype=float), table.measure, list_weights(table))
    raw = compare_rows(rows, rows, table.measure).round(DECIMALS)
    variants["raw scores, not min-max"] = table.scores.mean(axis=1).round(DECIMALS).to_numpy(), raw
    names = list(table.scores) if table.scores.shape[1] > 1 else []
    for name in names:
        rest = [other for other in names if other != name]
        without = replace(table, scores=table.scores[rest], benchmarks=table.benchmarks.loc[rest])
        if not table.weights or any(table.weights[other] for other in rest):
            variants[f"without {table.benchmarks.loc[name, 'title']}"] = _describe(without)
    normalized, s_pref = compute_normalized(table), variants[next(iter(variants))][0]
    if len(names) > 2:
        profile = normalized.sub(normalized.mean(axis=1), axis=0)
        variants["Pearson, not cosine"] = s_pref, compute_cosine(profile).to_numpy()
    for measure, title in OTHER_MEASURES.items():
        if measure != table.measure:
            variants[title] = _describe(set_kinship(table, measure))
    return variants


def _describe(table: ScoreTable) -> tuple[np.ndarray, np.ndarray]:
    return compute_s_pref(table).to_numpy(), compute_kinship(table).to_numpy()


def compute_sensitivity(table: ScoreTable, sets: np.ndarray, tau: float) -> pd.DataFrame:
    """Return how many choices each variant changes.

    Args:
        table: n models.
        sets: k x c positions of the models that answered a prompt.
        tau: lowest kinship of an eligible pair.

    Returns:
        One row a variant and strategy: overall (the pair among all models), overall_changed, sets_changed
        (share of the sets in which the pair is another), chosen_changed (share in which the chosen response
        is another), tau (after matching the number of dropped pairs).
    """
    variants = build_variants(table)
    first = next(iter(variants))
    paper_s_pref, paper_kinship = variants[first]
    everyone, names, rows = np.arange(len(table.scores))[None, :], table.scores.index, []
    upper = np.triu_indices(len(names), k=1)
    n_dropped = int((paper_kinship[upper] < tau).sum())
    for variant, (s_pref, similarity) in variants.items():
        level = tau if variant == first else match_tau(similarity[upper], n_dropped)
        for strategy in KINSHIP_STRATEGIES:
            overall = choose_in_sets(s_pref, similarity, everyone, strategy, level)[0]
            reference = choose_in_sets(paper_s_pref, paper_kinship, everyone, strategy, tau)[0]
            now = choose_in_sets(s_pref, similarity, sets, strategy, level)
            before = choose_in_sets(paper_s_pref, paper_kinship, sets, strategy, tau)
            rows.append({
                "variant": variant, "strategy": strategy,
                "overall": " > ".join(names[overall]) if overall[0] >= 0 else "none",
                "overall_changed": bool((overall != reference).any()),
                "sets_changed": float((now != before).any(axis=1).mean()),
                "chosen_changed": float((now[:, 0] != before[:, 0]).mean()), "tau": level,
            })  # fmt: skip
    return pd.DataFrame(rows)


def match_tau(similarities: np.ndarray, n_dropped: int) -> float:
    """Return the threshold that drops the `n_dropped` least similar pairs (fewer where tied).

    Example:
        >>> float(match_tau(np.array([0.9, 0.3, 0.5]), 1))
        0.5
    """
    ordered = np.sort(similarities)
    return float(ordered[n_dropped]) if n_dropped < len(ordered) else np.inf
