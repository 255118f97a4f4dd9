"""The one spelling of an origin model's name, by which pools, score tables and exclusions are joined; usual metrics."""

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


def canonical_model_name(name: str) -> str:
    """Return the one spelling under which an origin model's names are compared.

    Table 3 of the paper and UltraFeedback differ in capitals only ("GPT-4", "gpt-4").

    Example:
        >>> canonical_model_name(" Llama-2-7b-chat ") == canonical_model_name("llama-2-7b-chat")
        True
    """
    return name.strip().casefold()
