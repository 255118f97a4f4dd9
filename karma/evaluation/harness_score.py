"""What answers to a task of lm-evaluation-harness are worth: its own metric and standard error, and what guessing gets.

The metric becomes a fraction of which higher is better, by its declared unit and direction. Chance, `measured`: the
mean, over an item's choices, of what the task's own scoring gives for betting all on that one (log-probability 0, the
others far below): for accuracies one over the number of choices, for TruthfulQA's mc2 the share of an item's choices
that are true. A metric that is no mean over items is averaged over random such bets. Of answers that are written
freely it is a floor, not a level: the model's own answers given to other items, as for IFEval. Limit: a metric that is
no mean has no share an item, so that differences of two models are not paired over items.
"""

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from karma.errors import InputError
from karma.files.reading import compute_digest
from karma.scores.metrics import choose_metric
from karma.study.benchmark_settings import MEASURED, HarnessTask

Config = dict[str, Any]
BOOTSTRAPS = 1000  # draws for the standard error of a metric that is no mean; by the harness's own functions
N_DRAWS = 100  # random bets behind the measured chance of a metric that is no mean
FAR = -1.0e4  # nats: the log-probability of what is not bet on


def score_task(asked: HarnessTask, task: Any, result: Config) -> tuple[Config, list[Config]]:
    """Turn what the harness found into a score as scores.json has it, and rows of answers.parquet.

    Args:
        asked: the task as it was asked for. task: the harness's. result: of `lm_eval.evaluate`, asked alone or not.

    Returns:
        value, n, standard_error (None where the harness has none), chance, and what is needed to repeat it; one row an
        item, whose `correct` is what the item adds to the score (empty where the metric is no mean over items).

    Raises:
        InputError: a metric that the task does not give, or a value outside of its unit.
    """
    name = asked.benchmark
    found = result["results"][name]
    keys = [key for key in found if "," in key and "_stderr," not in key and isinstance(found[key], int | float)]
    key = _choose_key(asked, keys)
    metric, _, chosen = key.partition(",")
    samples = sorted((s for s in result["samples"][name] if s["filter"] == chosen), key=lambda s: s["doc_id"])
    higher = asked.direction or ("higher" if task.higher_is_better().get(metric, True) else "lower")
    scale = _Scale(asked, float(found[key]), higher == "lower")
    error = found.get(f"{metric}_stderr,{chosen}")
    is_mean = _is_mean(task, metric)
    scored = [sample for sample in samples if metric in sample]
    rows = [_build_row(name, task, sample, scale, metric if is_mean else None) for sample in samples]
    details: Config = {"metrics": {one: found[one] for one in keys}}
    if len(scored) < len(samples):
        details["unscored"] = len(samples) - len(scored)
    chance = None if asked.chance == MEASURED else asked.chance
    if asked.chance == MEASURED:
        level = compute_guess(task, samples, metric)
        if task.OUTPUT_TYPE == "multiple_choice":
            chance = None if level is None else round(scale.turn(level), 12)
        else:
            details["floor"] = None if level is None else scale.turn(level)
    kind = {"multiple_choice": "multiple choice", "loglikelihood": "completion"}.get(task.OUTPUT_TYPE, "free answer")
    return {
        "value": scale.value, "n": len(scored), "chance": chance, "unextracted": None, "details": details,
        "standard_error": abs(float(error) / scale.width) if isinstance(error, int | float) else None,
        "protocol": "harness", "task_version": result["versions"][name], "template_hash": hash_template(task),
        "shots": result["n-shot"][name],
        "generation": dict(task.config.generation_kwargs) if task.OUTPUT_TYPE == "generate_until" else {},
        "task": {"name": asked.task, "metric": key, "title": asked.title or asked.task, "answer_form": kind,
                 "capability": asked.capability, "chance": asked.chance, "direction": higher, "unit": asked.unit,
                 "harness": importlib.metadata.version("lm_eval")},
    }, rows  # fmt: skip


class _Scale:
    """A metric's unit and direction: turns its values into fractions of which higher is better."""

    def __init__(self, asked: HarnessTask, value: float, is_lower: bool) -> None:
        named = {"percent": (0.0, 100.0), "fraction": (0.0, 1.0)}
        self.low, high = named[asked.unit] if isinstance(asked.unit, str) else asked.unit
        self.width, self.is_lower = high - self.low, is_lower
        if not self.low - 1e-9 <= value <= high + 1e-9:
            raise InputError(
                f"{asked.benchmark}: {value:g} is outside of {self.low:g} to {high:g}: declare its `unit`, percent or "
                "[lowest, highest] (its answers are kept)"
            )
        self.value = min(max(self.turn(value), 0.0), 1.0)

    def turn(self, value: float) -> float:
        share = (float(value) - self.low) / self.width
        return 1 - share if self.is_lower else share


def _choose_key(asked: HarnessTask, keys: list[str]) -> str:
    """Return the result that is the score: "metric,filter"."""
    metrics = list(dict.fromkeys(key.partition(",")[0] for key in keys))
    if not metrics:
        raise InputError(f"{asked.task} gives no metric that is a number: choose another task")
    metric, _, chosen = (asked.metric or choose_metric(metrics)).partition(",")
    fit = [key for key in keys if key.partition(",")[0] == metric and chosen in ("", key.partition(",")[2])]
    if not fit:
        raise InputError(f"{asked.task} has no metric '{asked.metric}': choose from {', '.join(keys)}")
    return fit[0]


def _is_mean(task: Any, metric: str) -> bool:
    from lm_eval.api.metrics import mean

    return task.aggregation().get(metric, mean) is mean


def _build_row(name: str, task: Any, sample: Config, scale: _Scale, metric: str | None) -> Config:
    """Return one row of answers.parquet; `metric`: whose mean the score is, None where it is no mean."""
    prompt, read = str(sample["arguments"][0][0]), sample["filtered_resps"]
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = [str(choice) for choice in task.doc_to_choice(sample["doc"])]
        logps = [logp for logp, _ in read[: len(choices)]]
        answer = ", ".join(f"{place} {logp:.4f}" for place, logp in enumerate(logps, 1))
        extracted = choices[logps.index(max(logps))]
    elif task.OUTPUT_TYPE == "loglikelihood":
        answer, extracted = f"{read[0][0]:.4f}", "greedy" if read[0][1] else "not greedy"
    else:
        answer, extracted = str(sample["resps"][0][0]), str(read[0])
    credit, n = None, 1
    if metric is not None:
        credit, n = (scale.turn(float(sample[metric])), 1) if metric in sample else (0.0, 0)
    return {"benchmark": name, "item_id": f"{name}-{sample['doc_id'] + 1:05d}", "prompt": prompt, "answer": answer,
            "extracted": extracted, "correct": credit, "n": n}  # fmt: skip


def compute_guess(task: Any, samples: list[Config], metric: str) -> float | None:
    """Return what answers that carry no information get by a task's own scoring (`chance: measured`, see above).

    Args:
        task: the harness's. samples: one an item. metric: a name. None where no answer can be tried.
    """
    if task.OUTPUT_TYPE == "multiple_choice":
        tried = [list(_bet(task, sample, metric)) for sample in samples]
    elif task.OUTPUT_TYPE == "generate_until":
        tried = [list(_swap(task, samples, place, metric)) for place in range(len(samples))]
    else:
        return None
    tried = [values for values in tried if values]
    if not tried:
        return None
    if _is_mean(task, metric):
        return float(np.mean([np.mean([float(value) for value in values]) for values in tried]))
    rng, aggregate = np.random.default_rng(0), task.aggregation()[metric]
    draws = [aggregate([values[rng.integers(len(values))] for values in tried]) for _ in range(N_DRAWS)]
    return float(np.mean(draws))


def _bet(task: Any, sample: Config, metric: str) -> Iterator[Any]:
    """Yield what each choice of an item gets if all is bet on it; requests beside the choices say nothing."""
    n_choices, n_requests = len(task.doc_to_choice(sample["doc"])), len(sample["arguments"])
    for mine in range(n_choices):
        bets = [(0.0, True) if k == mine else (FAR, False) for k in range(n_choices)]
        bets += [(FAR, False)] * (n_requests - n_choices)
        verdicts = task.process_results(sample["doc"], bets)
        if metric in verdicts:
            yield verdicts[metric]


def _swap(task: Any, samples: list[Config], place: int, metric: str, n_others: int = 3) -> Iterator[Any]:
    """Yield what the answers to up to three other items, spread evenly over all, get on this one."""
    n = len(samples)
    steps = sorted({round(k * n / (n_others + 1)) for k in range(1, n_others + 1)} - {0, n})
    for step in steps:
        other = samples[(place + step) % n]["filtered_resps"]
        verdicts = task.process_results(samples[place]["doc"], other)
        if metric in verdicts:
            yield verdicts[metric]


def hash_template(task: Any) -> str:
    """Return the digest of what a task makes of an item, prompt, choices and scoring: not where its files lie."""
    elsewhere = ("metadata", "dataset_kwargs", "custom_dataset", "task", "task_alias", "num_fewshot",
                 "generation_kwargs", "training_split", "fewshot_split", "fewshot_config")  # fmt: skip
    config = {key: value for key, value in task.dump_config().items() if key not in elsewhere}
    return compute_digest(re.sub(r" at 0x[0-9a-f]+", "", repr(sorted(config.items(), key=lambda item: item[0]))))
