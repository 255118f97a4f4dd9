"""The structure among origin models: PCA (Figure 4) and dendrograms (Figure 7) of the normalised scores.

The paper does not say which distance Figure 7 uses. Ours is the root mean square difference of normalised
scores (rmsd): it stays in [0, 1] whatever the number of benchmarks, so that one cut (0.4) serves all four
trees, and unlike 1 - cosine it sees level and is defined for a model that is last everywhere. Limit: with
one benchmark (instruction following) the tree is a clustering on a line.

Of more than 500 models no square of distances is kept (`compute_large_tree`). Up to 5,000 the tree is of all of them;
of more it is that of 5,000 drawn at random, and every other model joins the cluster of the nearest of these, so that
memory is bounded and small clusters may be missed. The last twelve branches are told as well, since the paper's cut
may leave one cluster of thousands of models, which fill the space between any two.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import dendrogram, fcluster, to_tree
from scipy.cluster.hierarchy import linkage as compute_scipy_linkage
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist, squareform

from karma.errors import InputError
from karma.kinship.similarity import compute_cosine, compute_unit_rows
from karma.scores.normalise import DECIMALS, compute_normalized
from karma.scores.table import ScoreTable

LINKAGES = ("average", "complete", "single", "ward")
DISTANCES = ("rmsd", "cosine")
MAX_IN_TREE = 5000  # models whose distances are held at once: 100 MB, twice
N_BRANCHES = 12


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
    if not 0 < cut <= 10**6:
        raise InputError(f"cut is {cut}, a distance above 0, up to 1000000, is expected: the paper's is 0.4")


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


@dataclass(frozen=True, eq=False)
class LargeTree:
    """The clusters of more models than a square is kept of.

    Attributes:
        clusters: n models; a column of cluster numbers for "total" and each capability (1 the largest), and "branch",
            1 to N_BRANCHES: the last branches of the total's tree, whatever the cut; numbered as the tree's leaves.
        branches: branch -> n_models, typical (the model nearest its mean), s_pref (mean), and a column a benchmark:
            the mean min-max score.
        joins: (branches - 1) x 4, scipy's linkage of the branches, leaves in their order.
        n_in_tree: models that the trees are of. radius: largest distance of another model from its nearest of them, in
            the total; 0 where all are in.
    """

    clusters: pd.DataFrame
    branches: pd.DataFrame
    joins: np.ndarray
    n_in_tree: int
    radius: float


def compute_large_tree(
    table: ScoreTable, distance: str, linkage: str, cut: float, seed: int = 0, most: int = MAX_IN_TREE
) -> LargeTree:
    """Return the clusters of any number of models, in memory bounded by `most` squared.

    Args:
        table: n models. distance, linkage, cut: as of the paper's trees. seed: of the draw. most: models in a tree.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> found = compute_large_tree(load_score_table("paper"), "rmsd", "average", 0.4)
        >>> found.branches.loc[[1, 12], ["n_models", "typical"]].values.tolist(), found.radius
        ([[1, 'GPT-3.5-turbo'], [4, 'Llama-2-13b-chat']], 0.0)

    Paper: Figure 7; above 500 models ours.
    """
    normalized = compute_normalized(table)
    in_tree = np.arange(len(normalized))
    if len(normalized) > most:
        by_name = np.argsort(normalized.index.astype(str), kind="stable")
        in_tree = np.sort(by_name[np.random.default_rng(seed).choice(len(by_name), most, replace=False)])
    clusters = {}
    total, radius = np.empty((0, 4)), 0.0
    nearest = in_tree
    for group, names in reversed(group_benchmarks(table).items()):
        rows = _build_points(normalized[names], distance)
        tree = np.asarray(compute_scipy_linkage(_compute_gaps(rows[in_tree], distance), method=linkage))
        gap, nearest = (
            (np.zeros(len(rows)), in_tree) if len(in_tree) == len(rows) else cKDTree(rows[in_tree]).query(rows)
        )
        clusters[group] = _number_by_size(fcluster(tree, cut, criterion="distance")[nearest])
        total, radius = tree, float(gap.max())
    radius = radius**2 / 2 if distance == "cosine" else radius
    branch, joins = _find_branches(total)
    found = pd.DataFrame({group: clusters[group] for group in reversed(clusters)}, normalized.index)
    found["branch"] = branch[nearest]
    return LargeTree(
        found, _describe_branches(normalized, found["branch"]), joins, len(in_tree), round(radius, DECIMALS)
    )


def _build_points(normalized: pd.DataFrame, distance: str) -> np.ndarray:
    """Return rows whose Euclidean distance is rmsd, or rises with 1 - cosine; zero vectors lie apart, at one place."""
    if distance not in DISTANCES:
        raise InputError(f"distance is '{distance}', expected one of {', '.join(DISTANCES)}")
    values = normalized.to_numpy(dtype=float)
    if distance == "rmsd":
        return np.asarray(values / np.sqrt(values.shape[1]))
    return np.column_stack([compute_unit_rows(values), ~values.any(axis=1)])


def _compute_gaps(points: np.ndarray, distance: str) -> np.ndarray:
    gaps = pdist(points)
    return np.asarray(gaps**2 / 2 if distance == "cosine" else gaps)


def _number_by_size(own: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(own, return_inverse=True, return_counts=True)
    return np.asarray(np.argsort(np.argsort(-counts, kind="stable"), kind="stable")[place] + 1)


def _find_branches(tree: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the branch of each of the tree's models, 1 to N_BRANCHES, and the linkage that joins the branches."""
    n, k = len(tree) + 1, min(N_BRANCHES, len(tree) + 1)
    rest = tree[n - k :].copy()
    order = dendrogram(tree, truncate_mode="lastp", p=k, no_plot=True)["leaves"]  # node ids, below or at n + n - k
    names = {node: place for place, node in enumerate(order)} | {2 * n - k + row: k + row for row in range(k - 1)}
    rest[:, :2] = [[names[int(node)] for node in row[:2]] for row in rest]
    counts = np.ones(2 * k - 1)
    for row, (one, other) in enumerate(rest[:, :2].astype(int)):
        counts[k + row] = rest[row, 3] = counts[one] + counts[other]  # branches, not models
    branch = np.empty(n, np.int64)
    nodes = to_tree(tree, rd=True)[1]
    for place, node in enumerate(order):
        branch[nodes[node].pre_order()] = place + 1
    return branch, rest


def describe_large_tree(tree: LargeTree, cut: float) -> list[str]:
    """Say in a line how many clusters there are, and of which models the tree is."""
    n, inside = len(tree.clusters), tree.n_in_tree
    of = "of all models"
    if inside < n:
        joins = f"each other joins the nearest's cluster, at most {tree.radius:.2f} away"
        of = f"of {inside:,} models drawn at random; {joins}"
    sizes = tree.clusters["total"].value_counts()
    largest = f", the largest of {sizes.iloc[0]:,}" if len(sizes) > 1 else ""
    return [f"clusters at distance {cut:g}: {len(sizes):,} of {n:,} models{largest} (tree {of}); its last "
            f"{len(tree.branches)} branches are in branches.csv"]  # fmt: skip


def _describe_branches(normalized: pd.DataFrame, branch: "pd.Series[int]") -> pd.DataFrame:
    means = normalized.groupby(branch).mean()
    off = ((normalized - means.loc[branch].set_axis(normalized.index)) ** 2).sum(axis=1)
    front = pd.DataFrame({"n_models": branch.value_counts(), "typical": off.groupby(branch).idxmin(),
                          "s_pref": means.mean(axis=1)})  # fmt: skip
    return front.join(means).rename_axis("branch").sort_index()


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
