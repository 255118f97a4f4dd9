"""How sure a number is: intervals of shares, of means over runs, and of differences between strategies.

Every quantity that the results show is a weighted sum of scores, sum_r w_r v_r over runs r. Where the answers are on
disk its variance is that of the weighted answers over the items (items are shared by the runs, so this is a paired
comparison); where several seeds were trained, the variance between seeds is added, with Satterthwaite's degrees of
freedom, less what both hold (`compute_two_way`). Without answers (the published study) a difference
is computed as if runs were independent, and a mean as if they failed on the same items: both too wide rather than too
narrow; where the number of items is unknown there is no interval. Limit: with one seed the noise of training itself is
not in the interval, and every sentence made from it says so.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.results.study import Study
from karma.scores.table import load_benchmarks
from karma.statistics.exact import compute_unchanged
from karma.statistics.intervals import combine_variances, compute_interval, compute_p_value, split_variance
from karma.vocabulary import START

PAIRED = "paired over items"
NOTHING = 1e-24  # a variance that is rounding: of answers that never differ
CELL = ["policy", "strategy", "method", "benchmark"]


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: the estimate; standard_error: its standard error, in the same unit.
        df: degrees of freedom, from items and seeds.
        n: items behind it. n_seeds: trainings per cell.
        basis: how the standard error was found, in words.
        unchanged: where no item differed from another: weight and items of each benchmark, for an exact interval.
    """

    value: float
    standard_error: float
    df: float
    n: int
    n_seeds: int
    basis: str
    unchanged: tuple[tuple[float, int], ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.compute_interval()

    def compute_interval(self, n_tests: int = 1) -> tuple[float, float]:
        """Return the interval at a level that holds for so many at once (Bonferroni), exact where no item differed."""
        if self.unchanged:
            weights, counts = ([part[k] for part in self.unchanged] for k in (0, 1))
            half = compute_unchanged(weights, [int(n) for n in counts], n_tests)
            return self.value - half, self.value + half
        return compute_interval(self.value, self.standard_error, self.df, n_tests)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of "the true value is 0"."""
        return compute_p_value(self.value, self.standard_error, self.df)


def compute_mean(study: Study, rows: pd.DataFrame) -> Estimate:
    """Return the mean of the scores in `rows` (a part of study.results), each cell weighing the same.

    Raises:
        InputError: no rows.
    """
    if rows.empty:
        raise InputError("a mean over no score: the runs asked for are missing, see Study.gaps")
    return compute_weighted(study, pd.Series(1 / len(rows), index=rows.index))


def compute_difference(study: Study, strategy: str | list[str], baseline: str, **where: object) -> Estimate | None:
    """Return mean(strategy) - mean(baseline) over the cells that both have; None where there is none.

    Args:
        study: the study.
        strategy: minuend, or several. baseline: subtrahend; START is the untrained policy.
        **where: column = value, or a list of values, that restricts both (policy, method, benchmark, seed).
    """
    rows = study.results
    for key, value in where.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        extra = [START] if key == "method" and baseline == START else []
        rows = rows[rows[key].isin(values + extra)]
    cell = ["policy", "benchmark", *(["method", "seed"] if START not in (strategy, baseline) else [])]
    names = [[strategy] if isinstance(strategy, str) else strategy, [baseline]]
    left, right = (rows[rows["strategy"].isin(side)].reset_index() for side in names)
    both = left.merge(right, on=cell)
    if both.empty:
        return None
    weights = pd.concat([pd.Series(1.0, index=both["index_x"]), pd.Series(-1.0, index=both["index_y"])])
    return compute_weighted(study, weights.groupby(level=0).sum() / len(both))


def compute_weighted(study: Study, weights: pd.Series) -> Estimate:
    """Return sum_r w_r v_r with its standard error.

    Args:
        study: the study.
        weights: one weight a row of study.results, by its index label.
    """
    rows = study.results.loc[weights.index].assign(weight=weights)
    value = round(float((rows["weight"] * rows["value"]).sum()), 12)  # a run less itself is 0, not 1e-17
    trained = rows[rows["strategy"] != START]
    seeds = sorted(trained["seed"].unique())
    parts, twice, unchanged = [], [], []  # (variance, degrees of freedom); in items and in seeds; `Estimate.unchanged`
    bases, n = set(), 0
    for benchmark, part in rows.groupby("benchmark"):
        found, items, basis = _compute_item_variance(study, str(benchmark), part, seeds)
        parts.append((found[0], max(items - 1, 1)))
        twice += [(-found[1], max(items - 1, 1) * (len(seeds) - 1))] if found[1] else []
        n += int(part["n"].fillna(0).max())
        most = max(part["weight"].clip(lower=0).sum(), -part["weight"].clip(upper=0).sum())  # that one item can change
        unchanged += [(float(most), items)] if found[0] < NOTHING and most and basis == PAIRED else []
        bases.add(basis)
    of_items, n_benchmarks = sum(v for v, _ in parts), len(parts)
    if len(seeds) > 1:
        between = _compute_seed_variance(trained)
        missing = f"noise of training left out: the {len(seeds)} seeds' cells differ"
        bases.add(missing if between is None else f"and across {len(seeds)} seeds")
        parts += [] if between is None else [(between, len(seeds) - 1), *twice]
    variance, df = combine_variances(parts, of_items)
    error = round(float(np.sqrt(variance)), 12)
    exact = tuple(unchanged) if not error and len(unchanged) == n_benchmarks else ()
    return Estimate(value, error, df, n, max(len(seeds), 1), ", ".join(sorted(bases, reverse=True)), exact)


def _compute_item_variance(
    study: Study, benchmark: str, rows: pd.DataFrame, seeds: list
) -> tuple[tuple[float, float], int, str]:
    """Return (variance over items, what of it the variance over seeds holds too), items and basis of one benchmark."""
    correct, units = study.items.get(benchmark, (pd.DataFrame(), pd.Series(dtype=float)))
    if set(rows["folder"]) <= set(correct.columns) and not correct[list(rows["folder"])].isna().any(axis=None):
        total = units.sum()
        answers = correct[list(rows["folder"])].to_numpy(float)
        residual = (answers - np.outer(units, answers.sum(axis=0) / total)) * rows["weight"].to_numpy() / total
        whole, n = residual.sum(axis=1), len(residual)
        variance = float((whole**2).sum()) * n / max(n - 1, 1)
        if len(seeds) < 2 or n < 2:
            return (variance, 0.0), n, PAIRED
        of_seed = np.stack(
            [residual[:, ((rows["seed"] == s) & (rows["strategy"] != START)).to_numpy()].sum(axis=1) for s in seeds]
        )
        return (variance, -split_variance(of_seed * len(seeds), units.to_numpy(float))[2][0]), n, PAIRED
    if rows["n"].isna().any():
        return (np.nan, 0.0), 1, "items unknown: no interval"
    n = int(rows["n"].min())
    errors = np.sqrt(rows["value"] * (1 - rows["value"]) / rows["n"])
    if abs(rows["weight"].sum()) < 1e-9:
        return (float(((rows["weight"] * errors) ** 2).sum()), 0.0), n, "runs taken as independent"
    return (float((rows["weight"].abs() * errors).sum() ** 2), 0.0), n, "runs taken as failing on the same items"


def _compute_seed_variance(rows: pd.DataFrame) -> float | None:
    """Return the variance of the mean over seeds, or None where the seeds have not the same cells yet."""
    cells = {tuple(sorted(map(tuple, g[CELL].to_numpy()))) for _, g in rows.groupby("seed")}
    if len(cells) > 1:
        return None
    of_seed = (rows["weight"] * rows["value"]).groupby(rows["seed"]).sum() * rows["seed"].nunique()
    return float(of_seed.var(ddof=1)) / len(of_seed)


CAPABILITIES = ["knowledge", "instruction following", "reasoning"]


def compute_capabilities(study: Study) -> pd.DataFrame:
    """Return the mean score of each strategy on each capability, over all policies, common methods and seeds.

    Returns:
        Columns capability, strategy, strategy_title, value, low, high (all NaN where a run is missing), n.

    Paper: Figure 5, with Table 1's capabilities.
    """
    capability = study.described["capability"]
    runs, records = len(study.policies) * len(study.common_methods) * len(study.seeds), []
    results = study.compared_results
    for name in dict.fromkeys([*CAPABILITIES, *(capability[b] for b in study.benchmarks)]):
        benchmarks = [b for b in study.benchmarks if capability[b] == name]
        for strategy in study.strategies if benchmarks else ():
            rows = results[results["benchmark"].isin(benchmarks) & (results["strategy"] == strategy)]
            whole = len(rows) == runs * len(benchmarks)
            key = {"capability": name, "strategy": strategy, "strategy_title": study.title(strategy)}
            records.append({**key, **_estimate(study, rows if whole else rows[:0])})
    return pd.DataFrame(records)


def compute_chance(study: Study) -> pd.DataFrame:
    """Return the chance level of each benchmark that has one: measured where the items asked are known.

    Measured is what a guess among each item's own options gets right, a mean over the policies' runs, or else over the
    origin models; nominal is the level of the benchmark's usual number of options, or what a task is declared to have.

    Returns:
        benchmark -> chance (share), measured (bool), in the paper's order of benchmarks.

    Example:
        >>> from karma.results.published import load_published
        >>> found = compute_chance(load_published())
        >>> float(found.loc["mmlu_pro", "chance"]), bool(found["measured"].any())
        (0.1, False)
    """
    nominal = load_benchmarks()["chance"].astype(float).dropna()
    asked = [] if study.is_published else [study.origins, study.results]
    found = pd.Series(dtype=float)
    for scores in (part for part in asked if len(part)):
        levels = scores.dropna(subset="chance").astype({"chance": float}).groupby("benchmark")["chance"].mean()
        found = levels.combine_first(found)
    declared = study.described["chance"].astype(float).dropna().index.difference(nominal.index)
    order = [name for name in load_benchmarks().index if name in found.index or name in nominal.index]
    order += [str(name) for name in found.index if name not in order]
    level = found.combine_first(nominal).reindex(order)
    return pd.DataFrame({"chance": level, "measured": level.index.isin(found.index.difference(declared))})


def describe_chance(study: Study) -> str:
    """Say at which level chance lies on the policies' benchmarks, and which of these levels are measured.

    Example:
        >>> from karma.results.published import load_published
        >>> describe_chance(load_published())
        'chance, nominal: MMLU-STEM .250, MMLU-Pro .100, ARC-Easy .250, ARC-Challenge .250'
    """
    levels, titles = compute_chance(study), study.title_benchmarks("table2")
    said = []
    for kind, measured in (("measured on the items asked", True), ("nominal", False)):
        rows = levels[levels["measured"] == measured]
        shown = {name: f"{level:.3f}".lstrip("0") for name, level in rows["chance"].items()}
        own = [f"{title} {shown[name]}" for name, title in titles.items() if name in shown]
        said += [f"{kind}: {', '.join(own)}"] if own else []
    return "chance, " + "; ".join(said) if said else "no benchmark here has a chance level"


def compute_policies(study: Study, method: str = "dpo") -> pd.DataFrame:
    """Return each policy's score by benchmark and strategy, a mean over seeds, the untrained policy included.

    Returns:
        Columns policy, benchmark, strategy, benchmark_title, strategy_title, chance (measured on the items asked: what
        a guess among each item's own options gets right; the nominal level where items are unknown; NaN where there is
        none), value, low, high (NaN where a run is missing), n.

    Raises:
        InputError: a method that the study does not train.

    Paper: Figure 6 (DPO).
    """
    if method not in study.methods:
        raise InputError(f"method '{method}' is not trained in {study.name}: choose from {', '.join(study.methods)}")
    chance = compute_chance(study)["chance"]
    records = []
    for policy in study.policies:
        for benchmark, title in study.title_benchmarks("table2").items():
            for strategy in [START, *study.strategies]:
                rows = study.results.query("policy == @policy and benchmark == @benchmark and strategy == @strategy")
                rows = rows[rows["method"].isin([START, method])]
                whole = len(rows) == (1 if strategy == START else len(study.seeds))
                key = {"policy": policy, "benchmark": benchmark, "strategy": strategy}
                key |= {"benchmark_title": title, "strategy_title": study.title(strategy)}
                key["chance"] = chance.get(benchmark, np.nan)
                records.append({**key, **_estimate(study, rows if whole else rows[:0])})
    return pd.DataFrame(records)


def _estimate(study: Study, rows: pd.DataFrame) -> dict[str, float]:
    if rows.empty:
        return {"value": np.nan, "low": np.nan, "high": np.nan, "n": 0}
    found = compute_mean(study, rows)
    low, high = found.interval
    return {"value": found.value, "low": max(low, 0.0), "high": min(high, 1.0), "n": found.n}
