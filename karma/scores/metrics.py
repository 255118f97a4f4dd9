"""Which of a task's metrics is its score where nobody says: the one that leaderboards take."""

from collections.abc import Collection

PREFERRED = (
    "acc_norm",
    "acc",
    "mc2",
    "exact_match",
    "inst_level_loose_acc",
    "extractive_match",
    "pass@1",
    "em",
    "qem",
    "f1",
)


def choose_metric(metrics: Collection[str]) -> str:
    """Return the usual one of a task's metrics ("metric", or "metric,filter"): nearest to the head of PREFERRED.

    Example:
        >>> choose_metric(["bleu", "acc", "acc_norm"]), choose_metric(["f1,none", "acc,none"])
        ('acc_norm', 'acc,none')
    """
    order = {name: place for place, name in enumerate(PREFERRED)}
    return min(metrics, key=lambda metric: (order.get(metric.split(",")[0], len(order)), metric))
