"""Is a reward hacked? Alarms over the history of a training whose policy answers itself and is rewarded (GRPO, RLOO).

What is known to go wrong where a reward stands in for what is wanted: answers grow, or no longer end; the policy leaves
the one before training so far that its reward means nothing (arXiv 2210.10760 finds the true reward to fall beyond some
10 nats an answer, later for larger reward models); a reward model's reward rises while what programs can check falls.
And what makes nothing happen: groups whose answers are all rewarded alike.
Every rule reads what TRL logs at each update; the KL, which has no noise of rewards in it, is watched while the
training runs, the others at its end, the last quarter of the updates against the first. The thresholds are ours.
Limit: without instructions that programs check there is no truth beside a reward model, and its hacking goes unseen.
"""

import math
from typing import Any

import numpy as np

FAR = 10.0  # nats an answer, KL from the policy before training
LONGER, CUT = 1.5, 0.5  # times as long; more of the answers cut off, as a share
ALIKE = 0.9  # share of groups without a difference of rewards
SURE = 2.0  # standard errors of a difference of two quarters
LENGTH, KL = "completions/mean_length", "kl"  # TRL's keys
TRUTH, RATED = "rewards/instructions/mean", "rewards/reward_model/mean"


def find_hacking(history: list[dict[str, Any]], n_updates: int, method: str = "") -> list[str]:
    """Return what is wrong with a rewarded training so far, each alarm a sentence with advice.

    Args:
        history: one entry a logged update, with TRL's keys. n_updates: of the whole training.
        method: whose settings the advice names; "": any.

    Example:
        >>> find_hacking([{"step": 3, "reward": 0.5, "kl": 0.5, "completions/mean_length": 60.0}], 9, "grpo")
        ['update 3: the policy is 30.0 nats an answer away from where it began, beyond 10: its reward may mean nothing \
there; raise training.grpo.beta, or lower training.grpo.learning_rate']
    """
    section = f"training.{method or 'grpo'}"
    alarms = [_alarm_far(history, section)]
    if history and len(history) >= max(n_updates, 8):
        alarms += [_alarm_length(history, section), _alarm_truth(history, section), _alarm_alike(history, section)]
    return [alarm for alarm in alarms if alarm]


def _alarm_far(history: list[dict[str, Any]], section: str) -> str | None:
    for entry in history:
        away = (entry.get(KL) or 0.0) * (entry.get(LENGTH) or 0.0)
        if away > FAR:
            return (f"update {entry['step']}: the policy is {away:.1f} nats an answer away from where it began, beyond "
                    f"{FAR:g}: its reward may mean nothing there; raise {section}.beta, or lower "
                    f"{section}.learning_rate")  # fmt: skip
    return None


def _alarm_length(history: list[dict[str, Any]], section: str) -> str | None:
    lengths, cut = (compare_quarters(history, key) for key in (LENGTH, "completions/clipped_ratio"))
    if lengths and lengths[1] > LONGER * max(lengths[0], 1.0):
        return (f"answers grew from {lengths[0]:.0f} to {lengths[1]:.0f} tokens while the reward was learnt: length "
                f"runs away; read them, and raise {section}.beta")  # fmt: skip
    if cut and cut[1] - cut[0] > CUT:
        return (f"{cut[1]:.0%} of the answers no longer end (at first: {cut[0]:.0%}): length runs away; read them, and "
                f"raise {section}.beta or {section}.max_new_tokens")  # fmt: skip
    return None


def _alarm_truth(history: list[dict[str, Any]], section: str) -> str | None:
    rated, truth = compare_quarters(history, RATED), compare_quarters(history, TRUTH)
    if rated and truth and rated[1] > rated[0] and truth[0] - truth[1] > SURE * truth[2]:
        return (f"the reward model's reward rose from {rated[0]:.2f} to {rated[1]:.2f} while the instructions that "
                f"programs confirm fell from {truth[0]:.2f} to {truth[1]:.2f}: the reward is hacked; weigh "
                f"instructions in {section}.reward, raise {section}.beta, or train fewer updates")  # fmt: skip
    return None


def _alarm_alike(history: list[dict[str, Any]], section: str) -> str | None:
    shares = [entry["frac_reward_zero_std"] for entry in history if entry.get("frac_reward_zero_std") is not None]
    if shares and float(np.mean(shares)) > ALIKE:
        return (f"in {np.mean(shares):.0%} of the groups all answers were rewarded alike: nothing was learnt of them; "
                f"take prompts that the policy follows now and then, or raise {section}.generations or "
                f"{section}.temperature")  # fmt: skip
    return None


def compare_quarters(history: list[dict[str, Any]], key: str) -> tuple[float, float, float] | None:
    """Return a curve's mean over the first and the last quarter of its updates, and the standard error of the change.

    The error is that of two means of independent updates, 0 where a quarter is one update; None without the curve.

    Example:
        >>> history = [{"reward": value} for value in (0.1, 0.3, 0.4, 0.5, 0.5, 0.6, 0.6, 0.8)]
        >>> [round(value, 4) for value in compare_quarters(history, "reward")]
        [0.2, 0.7, 0.1414]
    """
    values = [float(entry[key]) for entry in history if entry.get(key) is not None]
    if not values:
        return None
    n = max(len(values) // 4, 1)
    ends = (values[:n], values[-n:])
    error = math.sqrt(sum(float(np.var(end, ddof=1)) / n for end in ends)) if n > 1 else 0.0
    return float(np.mean(ends[0])), float(np.mean(ends[1])), error
