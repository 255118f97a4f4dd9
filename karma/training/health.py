"""Is a training healthy? Alarms over its history, each with advice, and answers before and after it.

Every rule reads what TRL logs at each update, so that it can speak while the training runs; the thresholds are ours,
from what is known to go wrong: a loss near 0 or an accuracy of 1 too early is collapse or leakage, both
log-probabilities falling together is likelihood displacement (arXiv 2410.08847), a flat margin is a policy that does
not learn, and answers that grow are DPO's length bias (arXiv 2403.19159).
Limit: a rule sees numbers, not texts; an alarm is a reason to read the ten answers, not a verdict.
"""

import math
from typing import Any

import numpy as np
import torch

from karma.training.hacking import find_hacking

LEAST_LOSS = 1e-4  # nats
EARLY_SHARE, EARLY_PAIRS = 0.25, 32  # of the updates, and pairs seen
LEAST_MARGIN = 0.005  # nats, beta included
FALLING, FALLING_PER_TOKEN = 1.0, 0.05  # nats a response (DPO), nats a token (SimPO)
LONGER = 1.5  # times
LARGEST_DRIFT = 5.0  # of a reward model's mean reward from 0; a pair's loss sees differences alone
N_ANSWERS = 10


def find_alarms(
    history: list[dict[str, Any]], n_updates: int, pairs_an_update: int, beta: float, per_token: bool = False,
    makes: str = "policy", method: str = "",
) -> list[str]:  # fmt: skip
    """Return what is wrong with a training so far, each alarm a sentence with advice.

    Args:
        history: one entry a logged update, with TRL's keys (loss, rewards/margins, rewards/accuracies, ...).
        n_updates: of the whole training. pairs_an_update: pairs. beta: of the rewards.
        per_token: rewards are of mean log-probabilities (SimPO).
        makes: "policy", or "reward_model", whose rewards are no log-probabilities.
        method: whose settings the advice names.

    Example:
        >>> find_alarms([{"step": 1, "loss": float("nan")}], n_updates=9, pairs_an_update=4, beta=0.1)
        ['update 1: the loss is nan: lower training.learning_rate, or set compute.dtype to float32']
    """
    if history and "reward" in history[0]:  # rewarded for its own answers: its loss starts at 0, and has no pairs
        own = [alarm_not_a_number(history), *find_hacking(history, n_updates, method)]
        return [alarm for alarm in own if alarm]
    rules = (alarm_not_a_number, _alarm_no_loss_left, _alarm_early_accuracy)
    alarms = [rule(history, n_updates, pairs_an_update) for rule in rules]
    if history and len(history) >= max(n_updates, 8):  # the whole training, long enough to have quarters
        alarms += [_alarm_flat_margin(history) if makes == "policy" else _alarm_flat_rewards(history)]
        alarms += [_alarm_displacement(history, beta, per_token) if makes == "policy" else _alarm_drift(history)]
    return [alarm for alarm in alarms if alarm]


def alarm_not_a_number(history: list[dict[str, Any]], *_: int) -> str | None:
    """Return the alarm of the first update whose loss or gradient is not finite, or None."""
    for entry in history:
        if not math.isfinite(entry.get("loss", 0.0)) or not math.isfinite(entry.get("grad_norm", 0.0)):
            what = "loss" if not math.isfinite(entry.get("loss", 0.0)) else "gradient"
            value = entry["loss"] if what == "loss" else entry["grad_norm"]
            return (f"update {entry['step']}: the {what} is {value}: lower training.learning_rate, "
                    "or set compute.dtype to float32")  # fmt: skip
    return None


def _alarm_no_loss_left(history: list[dict[str, Any]], *_: int) -> str | None:
    for entry in history:
        if 0 <= entry["loss"] < LEAST_LOSS:
            return (f"update {entry['step']}: the loss is {entry['loss']:.1e}, below {LEAST_LOSS:g}: the policy "
                    "collapsed, or chosen texts give themselves away; read them, lower the rate")  # fmt: skip
    return None


def _alarm_early_accuracy(history: list[dict[str, Any]], n_updates: int, pairs_an_update: int) -> str | None:
    n_early = max(math.ceil(EARLY_SHARE * n_updates), math.ceil(EARLY_PAIRS / pairs_an_update))
    early = [entry["rewards/accuracies"] for entry in history[:n_early] if "rewards/accuracies" in entry]
    if len(early) == n_early < n_updates and min(early[1:] or [0]) >= 1.0:  # at the first update all margins are 0
        return (f"reward accuracy is 1.0 from the start to update {n_early}: chosen and rejected differ in something "
                "trivial (length, origin model's style); read the pairs")  # fmt: skip
    return None


def _alarm_flat_margin(history: list[dict[str, Any]]) -> str | None:
    margins = [entry["rewards/margins"] for entry in history if "rewards/margins" in entry]
    moved = abs(_last_quarter(margins) - margins[0]) if margins else math.inf
    if moved < LEAST_MARGIN:
        return (f"the reward margin moved by {moved:.4f} nats only: the policy did not learn; raise "
                "training.learning_rate or epochs, or lower training.warmup_steps")  # fmt: skip
    return None


def _alarm_flat_rewards(history: list[dict[str, Any]]) -> str | None:
    moved = abs(_last_quarter([entry["rewards/margins"] for entry in history]) - history[0]["rewards/margins"])
    if moved < LEAST_MARGIN:
        return (f"the reward margin moved by {moved:.4f} only: the reward model did not learn; raise "
                "training.reward_model's learning_rate or training.epochs, or lower training.warmup_steps")  # fmt: skip
    return None


def _alarm_drift(history: list[dict[str, Any]]) -> str | None:
    mean = _last_quarter([(entry["rewards/chosen"] + entry["rewards/rejected"]) / 2 for entry in history])
    if abs(mean) > LARGEST_DRIFT:
        return (f"the mean reward is {mean:.1f}, far from 0: rewards drift, and cannot be compared between models; "
                "raise training.reward_model's centring")  # fmt: skip
    return None


def _alarm_displacement(history: list[dict[str, Any]], beta: float, per_token: bool) -> str | None:
    if "rewards/chosen" not in history[0]:
        return None
    fall = [(_last_quarter([e[f"rewards/{side}"] for e in history]) - history[0][f"rewards/{side}"]) / beta
            for side in ("chosen", "rejected")]  # fmt: skip
    if max(fall) < -(FALLING_PER_TOKEN if per_token else FALLING):
        unit = "token" if per_token else "response"
        return (f"both log-probabilities fell (chosen {fall[0]:.2f}, rejected {fall[1]:.2f} nats a {unit}): "
                "likelihood displacement; lower training.learning_rate, or raise training.beta")  # fmt: skip
    return None


def _last_quarter(values: list[float]) -> float:
    return float(np.mean(values[-max(len(values) // 4, 1) :]))


@torch.no_grad()
def sample_answers(model: Any, tokenizer: Any, prompts: list[list[dict[str, str]]], n_tokens: int) -> list[dict]:
    """Answer a few prompts greedily.

    Args:
        model, tokenizer: a policy. prompts: lists of messages; the first ten are asked.
        n_tokens: new tokens at most.

    Returns:
        One entry a prompt: text, tokens (its length), and finished (False: cut off at `n_tokens`).
    """
    asked = prompts[:N_ANSWERS]
    if not asked or not n_tokens:
        return []
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=True,
                                           padding=True, return_tensors="pt").to(model.device)  # fmt: skip
    tokenizer.padding_side = side
    made = model.generate(**inputs, do_sample=False, max_new_tokens=n_tokens, pad_token_id=tokenizer.pad_token_id,
                          temperature=None, top_p=None, top_k=None)[:, inputs["input_ids"].shape[1] :]  # fmt: skip
    own = model.generation_config.eos_token_id  # an id, several, or none
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    return [_describe_answer(row.tolist(), tokenizer, ends) for row in made]


def _describe_answer(ids: list[int], tokenizer: Any, ends: set) -> dict[str, Any]:
    stops = [place for place, token in enumerate(ids) if token in ends]
    kept = ids[: stops[0]] if stops else ids
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return {"text": text, "tokens": len(kept), "finished": bool(stops)}


def compare_lengths(before: list[dict], after: list[dict]) -> str | None:
    """Return an alarm where answers run away in length: half as long again, or no longer coming to an end.

    Example:
        >>> short, long = {"tokens": 10, "finished": True}, {"tokens": 64, "finished": False}
        >>> compare_lengths([short] * 4, [short] * 4) is None
        True
        >>> compare_lengths([short] * 4, [long] * 4)  # doctest: +ELLIPSIS
        'answers grew from 10 to 64 tokens, and 4 of 4 no longer end (before: 0): length runs away; ...'
    """
    if not before or not after:
        return None
    lengths = [float(np.mean([answer["tokens"] for answer in side])) for side in (before, after)]
    endless = [sum(not answer["finished"] for answer in side) for side in (before, after)]
    if lengths[1] > LONGER * max(lengths[0], 1) or endless[1] - endless[0] > len(after) // 2:
        return (f"answers grew from {lengths[0]:.0f} to {lengths[1]:.0f} tokens, and {endless[1]} of {len(after)} no "
                f"longer end (before: {endless[0]}): length runs away; read them, lower training.learning_rate, or "
                "pair responses of like length")  # fmt: skip
    return None
