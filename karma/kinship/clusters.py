"""The structure among origin models: PCA (Figure 4) and dendrograms (Figure 7) of the normalised scores.

The paper does not say which distance Figure 7 uses. Ours is the root mean square difference of normalised
scores (rmsd): it stays in [0, 1] whatever the number of benchmarks, so that one cut (0.4) serves all four
trees, and unlike 1 - cosine it sees level and is defined for a model that is last everywhere. Limit: with
one benchmark (instruction following) the tree is a clustering on a line.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as compute_scipy_linkage
from scipy.spatial.distance import squareform

from karma.errors import InputError
from karma.kinship.similarity import compute_cosine
from karma.scores.normalise import compute_normalized
from karma.scores.table import ScoreTable

LINKAGES = ("average", "complete", "single", "ward")
DISTANCES = ("rmsd", "cosine")


@dataclass(frozen=True, eq=False)
class Pca:
    """Principal components of normalised scores.

    Attributes:
        positions: n origin models x k components, in units of normalised score.
        loadings: m benchmarks x k components; columns have length 1.
        explained: share of the variance of each component, summing to 1.
    """

    positions: pd.DataFrame
    loadings: pd.DataFrame
    explained: np.ndarray


def compute_pca(normalized: pd.DataFrame) -> Pca:
    """Return the principal components of n models x m benchmarks, each benchmark centred (scikit-learn's).

    The sign of a component is arbitrary; its largest loading is positive.

    Example:
        >>> rows = pd.DataFrame({"a": [0.0, 0.5, 1.0], "b": [0.0, 0.5, 1.0]})
        >>> pca = compute_pca(rows)
        >>> pca.explained.round(3).tolist(), pca.loadings["PC1"].round(3).tolist()
        ([1.0, 0.0], [0.707, 0.707])

    Paper: Figure 4.
    """
    from sklearn.decomposition import PCA

    fitted = PCA(svd_solver="full")
    positions = fitted.fit_transform(normalized.to_numpy(dtype=float))
    names = [f"PC{k + 1}" for k in range(positions.shape[1])]
    return Pca(
        positions=pd.DataFrame(positions, index=normalized.index, columns=names),
        loadings=pd.DataFrame(fitted.components_.T, index=normalized.columns, columns=names),
        explained=fitted.explained_variance_ratio_,
    )


def compute_distance(normalized: pd.DataFrame, distance: str = "rmsd") -> pd.DataFrame:
    """Return the distance of every two origin models: symmetric, diagonal 0, in [0, 1].

    Args:
        normalized: n models x m benchmarks, in [0, 1].
        distance: "rmsd" (root mean square difference) or "cosine" (1 - kinship).

    Example:
        >>> compute_distance(pd.DataFrame([[0.0, 0.0], [0.6, 0.8]]), "rmsd").loc[0, 1].round(3)
        np.float64(0.707)
    """
    if distance not in DISTANCES:
        raise InputError(f"distance is '{distance}', expected one of {', '.join(DISTANCES)}")
    values = normalized.to_numpy(dtype=float)
    if distance == "rmsd":
        gaps = np.sqrt(((values[:, None, :] - values[None, :, :]) ** 2).mean(axis=2))
    else:
        gaps = 1 - compute_cosine(normalized).to_numpy()
        np.fill_diagonal(gaps, 0)
    return pd.DataFrame(gaps, index=normalized.index, columns=normalized.index.rename(None))


def compute_linkage(distance: pd.DataFrame, linkage: str = "average") -> np.ndarray:
    """Return scipy's linkage matrix, (n - 1) x 4, of a square distance table."""
    if linkage not in LINKAGES:
        raise InputError(f"linkage is '{linkage}', expected one of {', '.join(LINKAGES)}")
    return np.asarray(compute_scipy_linkage(squareform(distance.to_numpy(), checks=False), method=linkage))


def check_cut(cut: float) -> None:
    """Raise an InputError where a distance to cut at is none.

    Example:
        >>> check_cut(0.4)
    """
    if not cut > 0:
        raise InputError(f"cut is {cut}, a distance above 0 is expected: the paper's is 0.4")


def compute_clusters(tree: np.ndarray, cut: float, names: pd.Index) -> pd.Series:
    """Return each model's cluster (1, 2, ...), cutting the tree at distance `cut`.

    Paper: Figure 7 (colours below distance 0.4).
    """
    check_cut(cut)
    return pd.Series(fcluster(tree, cut, criterion="distance"), index=names, name="cluster")


def group_benchmarks(table: ScoreTable) -> dict[str, list[str]]:
    """Return "total" and each capability with its benchmarks, in the paper's order.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> group_benchmarks(load_score_table("paper"))["knowledge"]
        ['mmlu_stem', 'mmlu_pro']

    Paper: Table 1.
    """
    paper_order = ("knowledge", "reasoning", "instruction following")
    capabilities = table.benchmarks["capability"]
    ordered = sorted(capabilities.unique(), key=lambda c: (c not in paper_order, paper_order.index(c)
                     if c in paper_order else c))  # fmt: skip
    groups = {c: capabilities.index[capabilities == c].tolist() for c in ordered}
    return {"total": list(table.scores.columns), **groups}


def compute_trees(table: ScoreTable, distance: str, linkage: str) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """Return for "total" and each capability the distances and their linkage.

    Paper: Figure 7.
    """
    normalized = compute_normalized(table)
    trees = {}
    for group, names in group_benchmarks(table).items():
        gaps = compute_distance(normalized[names], distance)
        trees[group] = (gaps, compute_linkage(gaps, linkage))
    return trees
