"""The words of the kit: strategies, methods, metrics, benchmarks and arms, each with all that is said of it, once.

Settings take their names from these tables, cards their sentences, tables and figures their titles and order (colours
follow the order, `karma.figures.style`). A new strategy, method or metric is a row here and its one function; a new
benchmark is a row of data/paper/benchmarks.csv, its task and its reader. Decision: no number depends on a word, so that
rewording a sentence reruns nothing that trains or generates (`karma.study.fingerprint`). Limit: nor does another `role`
of a known strategy rerun stage 2, whose tables list the kinship strategies.
"""

import csv
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

START = "start"  # in place of a strategy and a method: the policy before any training
START_TITLE = "untrained"

BY_S_PREF = "the S_pref of its origin model (Eq. 2), not a judgement of the text"
BY_SCORES = "the benchmark scores of the models that wrote the responses: no one read the texts"


@dataclass(frozen=True)
class Strategy:
    """Where a pair set comes from.

    Attributes:
        title: as the paper's tables print it.
        rule: which two responses of a prompt make the pair. label: what decides which of them is chosen.
        preferences: whose preferences a policy learns from it. role: in a study's comparisons.
        source: where the rule is from.
    """

    title: str
    rule: str
    label: str
    preferences: str
    role: Literal["baseline", "kinship", "rival", "control", "other"]
    source: str


STRATEGIES = {
    "rlaif": Strategy(
        "RLAIF", "the best-annotated response against a lower one", "its annotation",
        "annotations of single responses", "baseline", "the public binarised sets; section 4.1"),
    "k_score": Strategy(
        "K_score", "the two responses whose origin models score highest", BY_S_PREF, BY_SCORES,
        "kinship", "section 2.3"),
    "k_sim": Strategy(
        "K_sim", "the two responses whose origin models are nearest kin", BY_S_PREF, BY_SCORES,
        "kinship", "section 2.3"),
    "k_score_sim": Strategy(
        "K_(score,sim)", "the response of the best origin model, and that of its nearest kin",
        BY_S_PREF, BY_SCORES, "kinship", "section 2.3"),
    "delta": Strategy(
        "delta", "the response of the best origin model against that of the worst, however little kin",
        BY_S_PREF, BY_SCORES, "rival", "delta learning, arXiv 2507.06187"),
    "random": Strategy(
        "random", "two responses of eligible origin models, drawn at random (a control)", BY_S_PREF,
        BY_SCORES, "control", "ours"),
    "least_kin": Strategy(
        "least kin", "the two responses whose origin models are least kin (a control)", BY_S_PREF,
        BY_SCORES, "control", "ours"),
    "k_sure": Strategy(
        "K_sure", "the two responses whose origin models are nearest kin, of those surely told apart",
        BY_S_PREF, BY_SCORES, "rival", "ours"),
    "density_ratio": Strategy(
        "density ratio",
        "the response that a strong model favours most over a weak one, against a lower one",
        "ln pi_strong(y|x) - ln pi_weak(y|x), in nats", "those of a strong model over a weak one, by log-probability",
        "rival", "density ratio, arXiv 2411.02481"),
    "affinity": Strategy(
        "affinity", "the two responses most alike in length, readability, structure and quality, of eligible kin",
        BY_S_PREF, "the benchmark scores of the models that wrote the responses; texts were measured, not judged",
        "rival", "the paper's summary; the measure is ours"),
}  # fmt: skip
OTHER_SETS = {  # pair sets that no strategy of a study made
    "length": Strategy(
        "length", "the longest response against the shortest", "its length", "lengths of responses", "other",
        "the first confound to rule out; ours"),
    "min_confidence": Strategy(
        "K_sim, sure", "one of K_sim whose label is at least .95 sure",
        BY_S_PREF, BY_SCORES, "other", "ours"),
    "binarized": Strategy(
        "binarized", "taken as it is from a set that others made", "its annotation",
        "those of a set that others made", "other", "ours"),
    "self_play": Strategy(
        "self-play", "the best-scored and the worst-scored of several answers of the policy itself",
        "what the scorer gave this answer", "scores of the policy's own answers", "other", "arXiv 2503.01864"),
    "custom": Strategy(
        "custom", "as they were given", "not said by the pairs", "not said by the pairs", "other", "ours"),
}  # fmt: skip
BASELINE = next(name for name, row in STRATEGIES.items() if row.role == "baseline")
KINSHIP_STRATEGIES = tuple(name for name, row in STRATEGIES.items() if row.role == "kinship")
RIVALS = tuple(name for name, row in STRATEGIES.items() if row.role == "rival")
CONTROLS = tuple(name for name, row in STRATEGIES.items() if row.role == "control")


@dataclass(frozen=True)
class Method:
    """A way to tune a policy.

    Attributes:
        title: in tables. sentence: what it learns from a pair. source: its paper.
        needs: what the pairs must look like.
        learns_from: "chosen" responses alone, "pairs", or "prompts", to which it samples answers that are rewarded.
        start_loss: of a policy that is still its own reference (of DPO in nats), or of a reward model that rates all
            alike; None where there is neither.
        makes: a "policy", which answers, or a "reward_model", which rates answers and is asked no benchmark.
    """

    title: str
    sentence: str
    source: str
    needs: str
    learns_from: Literal["chosen", "pairs", "prompts"]
    start_loss: float | None = None
    makes: Literal["policy", "reward_model"] = "policy"


_TWO = "two different responses of one prompt"
_PROMPTS = "prompts alone, with instructions that programs can check, or a reward model: they reward its answers"
METHODS = {
    "sft": Method(
        "SFT", "the chosen response, token by token", "section 3.3", "a chosen response; rejected ones are not read",
        "chosen"),
    "dpo": Method(
        "DPO", "chosen against rejected, relative to the untrained policy", "arXiv 2305.18290", _TWO, "pairs",
        math.log(2)),
    "simpo": Method(
        "SimPO", "chosen against rejected a token, with a target margin", "arXiv 2405.14734", _TWO, "pairs"),
    "cdpo": Method(
        "cDPO", "as DPO, each label trusted as far as its confidence says",
        "arXiv 2305.18290, its authors' conservative form; a confidence a pair: ours",
        f"{_TWO}, and a label_confidence for every pair", "pairs", math.log(2)),
    "orpo": Method(
        "ORPO", "the chosen response, and its odds against the rejected one", "arXiv 2403.07691", _TWO, "pairs"),
    "kto": Method(
        "KTO", "chosen responses as desirable and rejected ones as undesirable, each against the untrained policy",
        "arXiv 2402.01306", f"{_TWO}, two pairs or more: the sides are the labels", "pairs", 0.5),
    "reward_model": Method(
        "reward model", "which of two responses to rate higher; it answers nothing itself",
        "arXiv 2203.02155, section 3.5", f"{_TWO}; pairs with a longer text than max_length are left out", "pairs",
        math.log(2), makes="reward_model"),
    "grpo": Method(
        "GRPO", "its own answers to the pairs' prompts, each rewarded and compared with its group",
        "DeepSeekMath, arXiv 2402.03300", _PROMPTS, "prompts"),
    "rloo": Method(
        "RLOO", "its own answers to the pairs' prompts, each rewarded and compared with the mean of the others",
        "arXiv 2402.14740", _PROMPTS, "prompts"),
}  # fmt: skip


def makes_policy(method: str) -> bool:
    """Tell a method whose outcome answers from one whose outcome rates answers; "start" is a policy.

    Example:
        >>> makes_policy("dpo"), makes_policy("reward_model"), makes_policy("start")
        (True, False, True)
    """
    return method not in METHODS or METHODS[method].makes == "policy"


@dataclass(frozen=True)
class Metric:
    """A way to rank candidate pairs for selection, whose ranking is in `karma.potential.margins`.

    Attributes:
        rule: what it keeps, and where it is from.
    """

    rule: str


METRICS = {
    "random": Metric("pairs at random (the control)"),
    "explicit_large": Metric("the largest explicit margins (a rival in arXiv 2503.01864)"),
    "explicit_small": Metric("the smallest explicit margins (a part of RIP, arXiv 2501.18578)"),
    "implicit_small": Metric(
        "the smallest implicit margins (a rival in arXiv 2503.01864; signed: arXiv 2508.04149)"),
    "implicit_large": Metric("the largest implicit margins (a part of BeeS, arXiv 2502.14560)"),
    "m_ap": Metric("the largest alignment potential, z(M_r) - w z(M_pi) (arXiv 2503.01864)"),
    "m_ap_signed": Metric(
        "the largest alignment potential of signed margins: the pairs whose rejected response the policy prefers most "
        "rank highest, mislabelled ones among them (ours)"),
    "m_ap_annotated": Metric(
        "m_ap over annotators' scores of the same pairs (the control of kinship's; ours)"),
    "random_anew": Metric("before each epoch as many pairs at random, drawn anew (the control of m_ap_anew; ours)"),
    "m_ap_anew": Metric(
        "before each epoch the largest alignment potential, as the policy of then ranks all pairs (ours)"),
}  # fmt: skip

ARMS = {  # of self-play -> title
    "evolve_then_select": "evolve, then select",
    "select_then_evolve": "select, then evolve",
    "fresh": "fresh prompts (control)",
    "fresh_random": "fresh, kept at random",
    "fresh_explicit": "fresh, explicit margin",
    "fresh_implicit": "fresh, implicit margin",
}


def _read_benchmarks() -> dict[str, dict[str, str]]:
    with (files("karma") / "data" / "paper" / "benchmarks.csv").open(encoding="utf-8") as stream:
        return {row["name"]: row for row in csv.DictReader(stream)}


BENCHMARKS = _read_benchmarks()  # name -> facts as text; `karma.scores.table.load_benchmarks` has them as numbers


def order_benchmarks(names: Collection[str], table: Literal["table2", "table4"]) -> dict[str, str]:
    """Return benchmarks in the order of one of the paper's tables, with their titles; others come last.

    Example:
        >>> order_benchmarks(["hellaswag", "ifeval", "mmlu_stem"], "table2")
        {'mmlu_stem': 'MMLU-STEM', 'ifeval': 'IFEval', 'hellaswag': 'HellaSwag'}
    """
    known = [name for name in BENCHMARKS if name in names]
    ordered = sorted(known, key=lambda name: int(BENCHMARKS[name][f"{table}_place"] or len(BENCHMARKS) + 1))
    others = {name: name for name in names if name not in BENCHMARKS}
    return {name: BENCHMARKS[name]["title"] for name in ordered} | others


def find_strategy(name: str) -> Strategy:
    """Return what is said of a pair set's strategy, or of one that no strategy made.

    Example:
        >>> find_strategy("k_sim").title, find_strategy("self_play").label
        ('K_sim', 'what the scorer gave this answer')
    """
    return STRATEGIES.get(name) or OTHER_SETS.get(name) or OTHER_SETS["custom"]


def title_strategy(name: str, source: str) -> str:
    """Return the title of a strategy in a study: a judge of its own is a weak one, and is called so.

    Args:
        name: a strategy. source: where its annotations are from, the setting annotation.source.

    Example:
        >>> title_strategy("rlaif", "judge"), title_strategy("rlaif", "recorded"), title_strategy("k_sim", "judge")
        ('RLAIF (weak judge)', 'RLAIF', 'K_sim')
    """
    return title_of(name) + (" (weak judge)" if name == BASELINE and source == "judge" else "")


_STEP = re.compile(r"([a-z][a-z0-9_]*)-([1-9][0-9]*)-([a-z][a-z0-9_]*)")


def split_step(name: str) -> tuple[str, int, str] | None:
    """Return (recipe, number, method) of a recipe's step, which stands wherever a method does; None of a method.

    Example:
        >>> split_step("distil-2-dpo"), split_step("dpo")
        (('distil', 2, 'dpo'), None)
    """
    found = _STEP.fullmatch(name)
    return (found[1], int(found[2]), found[3]) if found else None


def find_method(name: str) -> str:
    """Return the method that a step trains by, or the method itself.

    Example:
        >>> find_method("distil-2-dpo"), find_method("sft")
        ('dpo', 'sft')
    """
    step = split_step(name)
    return step[2] if step else name


def title_of(name: str) -> str:
    """Return the title of a strategy, a method or a recipe's step; of the untrained policy too.

    Example:
        >>> [title_of(name) for name in ("k_score_sim", "simpo", "start", "distil-2-dpo")]
        ['K_(score,sim)', 'SimPO', 'untrained', 'distil, step 2: DPO']
    """
    if name == START:
        return START_TITLE
    if step := split_step(name):
        return f"{step[0]}, step {step[1]}: {title_of(step[2])}"
    return METHODS[name].title if name in METHODS else find_strategy(name).title
