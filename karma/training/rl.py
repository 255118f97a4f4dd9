"""GRPO and RLOO: the policy answers the pairs' prompts itself, answers are rewarded, and better ones become likelier.

Of a prompt's n answers with rewards r, an answer's advantage is (r - mean) / (standard deviation + 1e-4) in GRPO, and
r - the mean of the other n - 1 in RLOO, whose rewards have beta times the answer's KL from the policy before training
taken off; GRPO adds beta times a token's KL to the loss. Both are TRL's stable trainers with a cheaper forward pass
(`karma.training.sampled`), configured as the papers say where TRL's defaults differ: GRPO's loss is the mean over
answers of the mean over tokens (TRL: over all tokens), and its KL has no importance weight.
A reward is a weighted sum of `instructions`, the share of a prompt's instructions that programs confirm, strict, and
`reward_model`, a sequence classifier's. Where a classifier rewards, the instructions of prompts that have some are
checked beside it, with weight 0: they are the truth that `karma.training.hacking` holds the reward against.
Decisions: an update has as many prompts as one of another method has pairs, so that budgets compare; a micro-batch has
`per_device_batch_size` prompts with all their answers, sampled when its turn comes (those of a whole update at once,
where several updates learn from them). The policy before training is a copy in memory, or the policy without its
adapter.
Limits: prompts beyond the last whole micro-batch of an epoch wait for the next; a fully tuned policy shared out among
processes has no place for its copy.

Paper: DeepSeekMath (arXiv 2402.03300), Eq. 3 and 4; arXiv 2402.14740, section 3.
"""

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from karma.errors import InputError
from karma.evaluation.prompts import Prompt, load_prompts
from karma.models.load import Specs
from karma.study.training_settings import Online, Training

INSTRUCTIONS = "instructions"  # column: a prompt's instruction_id_list and kwargs as JSON, null where it has none
Reward = Callable[..., list[float | None]]
_NOT_TAKEN = ("max_length",)  # of what all other trainers are given


def add_instructions(pairs: pa.Table, prompts: Sequence[Prompt]) -> pa.Table:
    """Return pairs with the instructions of their prompts, found by the text of the last turn.

    Args:
        pairs: with `prompt`, a list of messages. prompts: verifiable ones.

    Returns:
        The same pairs with a column `instructions`, null where a prompt is none of `prompts`.

    Example:
        >>> from karma.evaluation.prompts import build_prompt
        >>> known = build_prompt("Name a tree.", ["punctuation:no_comma"], "[{}]")
        >>> asked = [[{"role": "user", "content": text}] for text in (known.text, "Name a bird.")]
        >>> add_instructions(pa.table({"prompt": asked}), [known])["instructions"].to_pylist()
        ['{"instruction_id_list": ["punctuation:no_comma"], "kwargs": "[{}]"}', None]
    """
    known = {p.text: json.dumps({"instruction_id_list": list(p.instruction_ids), "kwargs": p.kwargs}) for p in prompts}
    found = [known.get(prompt[-1]["content"]) for prompt in pairs["prompt"].to_pylist()]
    kept = pairs.drop_columns([INSTRUCTIONS]) if INSTRUCTIONS in pairs.column_names else pairs
    return kept.append_column(INSTRUCTIONS, pa.array(found, pa.string()))


def load_instructions(pairs: pa.Table, method: str, settings: Training, file: Path | None) -> pa.Table:
    """Return pairs with their prompts' instructions out of a file, where a method is rewarded; else as they are.

    Args:
        pairs: any. method: a name of `karma.vocabulary.METHODS`. settings: the experiment's `training`.
        file: JSON lines of prompts, as `pool.instructions`; None: none are known.

    Raises:
        InputError: a file that holds no prompts.
    """
    if file is None or not isinstance(getattr(settings, method, None), Online):
        return pairs
    return add_instructions(pairs, [prompt for prompt in load_prompts(file, False) if prompt.instruction_ids])


def list_instructions(pairs: pa.Table) -> list[str | None]:
    """Return each pair's instructions, None where none are known."""
    known = INSTRUCTIONS in pairs.column_names
    return pairs[INSTRUCTIONS].to_pylist() if known else [None] * pairs.num_rows


def find_unrewarded(instructions: Sequence[str | None], online: Online) -> list[int]:
    """Return the places of prompts that nothing rewards: without instructions, where these alone are the reward."""
    return [] if "reward_model" in online.reward else [k for k, one in enumerate(instructions) if one is None]


def check_online(settings: Training, method: str) -> None:
    """Raise an InputError where a method that samples answers cannot be trained as set.

    Example:
        >>> from karma.study.experiment import load_base
        >>> check_online(load_base().training, "grpo")
        Traceback (most recent call last):
        karma.errors.InputError: grpo has no reward: set training.grpo.reward, to {instructions: 1.0} or the like
    """
    online: Online = getattr(settings, method)
    if not online.reward:
        raise InputError(f"{method} has no reward: set training.{method}.reward, to {{instructions: 1.0}} or the like")
    if settings.checkpoint_steps % online.iterations:
        raise InputError(
            f"training.checkpoint_steps {settings.checkpoint_steps} is no multiple of training.{method}.iterations "
            f"{online.iterations}: answers would be sampled anew in their midst"
        )
    if settings.accelerate and "ddp" not in settings.accelerate and not settings.lora and online.beta:
        raise InputError(
            f"training.accelerate: {method} needs the policy before training, which has no place beside one that is "
            f"shared out: set training.lora, or training.{method}.beta to 0"
        )


def count_online_updates(n_prompts: int, settings: Training, online: Online, accumulation: int) -> tuple[int, int]:
    """Return a training's updates, and the prompts of an epoch that wait for the next: answers are sampled to so many.

    Args:
        n_prompts: that are trained on. settings, online: of the training. accumulation: micro-batches an update.

    Raises:
        InputError: there are fewer prompts than are sampled for at once.

    Example:
        >>> from karma.study.experiment import load_base
        >>> how = load_base().training
        >>> count_online_updates(100, how, how.grpo, 16)  # one update of 16 micro-batches of 6 prompts
        (1, 4)
    """
    at_once = settings.per_device_batch_size * (settings.devices if settings.accelerate else 1)
    at_once *= accumulation if online.iterations > 1 else 1
    if n_prompts < at_once:
        raise InputError(
            f"{n_prompts} prompts are fewer than the {at_once} that are answered at once: lower "
            "training.per_device_batch_size, or training.gradient_accumulation where iterations is above 1"
        )
    batches = n_prompts // at_once
    in_an_epoch = batches * online.iterations if online.iterations > 1 else -(-batches // accumulation)
    return math.ceil(in_an_epoch * settings.epochs), n_prompts % at_once


def build_online(method: str, model: Any, settings: Training, shared: dict[str, Any], options: dict[str, Any],
                 rewards: Sequence[tuple[Reward, float]]) -> Any:  # fmt: skip
    """Build TRL's trainer of a method that samples answers.

    Args:
        method: "grpo" or "rloo". model: the policy. settings: the experiment's `training`.
        shared, options: of `karma.training.trainers.build_trainer`; the data set has prompt and instructions.
        rewards: (function, weight), of `build_rewards`.
    """
    from trl import GRPOConfig, RLOOConfig

    from karma.training.sampled import SampledGRPOTrainer, SampledRLOOTrainer

    online: Online = getattr(settings, method)
    grpo, rloo = (GRPOConfig, SampledGRPOTrainer), (RLOOConfig, SampledRLOOTrainer)
    kinds: tuple[Any, Any] = grpo if method == "grpo" else rloo
    papers = (
        {"loss_type": "grpo", "scale_rewards": "group", "use_bias_correction_kl": False} if method == "grpo" else {}
    )
    whole = settings.lora is None and online.beta > 0  # then TRL would load the policy's folder again, if it has one
    config = kinds[0](
        **{key: value for key, value in shared.items() if key not in _NOT_TAKEN}
        | {"per_device_train_batch_size": settings.per_device_batch_size * online.generations},
        steps_per_generation=shared["gradient_accumulation_steps"] if online.iterations > 1 else 1,
        beta=0.0 if whole else online.beta, num_generations=online.generations, temperature=online.temperature,
        max_completion_length=online.max_new_tokens, epsilon=online.epsilon, num_iterations=online.iterations,
        reward_weights=[weight for _, weight in rewards], remove_unused_columns=False, disable_dropout=False,
        shuffle_dataset=shared["train_sampling_strategy"] != "sequential", **papers,
    )  # fmt: skip
    start: Any = copy.deepcopy(model).requires_grad_(False) if whole else None
    data = _keep_usable(options["train_dataset"], options["processing_class"], settings, online)
    trainer = kinds[1](model, [reward for reward, _ in rewards], args=config, **{**options, "train_dataset": data})
    if whole:
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(start, temperature=online.temperature)
        trainer.beta = online.beta
        trainer.ref_model = trainer.accelerator.prepare_model(start, evaluation_mode=True)
    trainer.share_prompts(online.temperature)
    return trainer


def _keep_usable(data: Any, tokenizer: Any, settings: Training, online: Online) -> Any:
    """Leave out prompts that nothing rewards, or that leave no room for an answer; `check_pairs` counts them."""
    lost = {*find_unrewarded(data[INSTRUCTIONS], online), *find_long(data["prompt"], tokenizer, settings, online)}
    return data.select([k for k in range(len(data)) if k not in lost])


def find_long(prompts: Sequence[Any], tokenizer: Any, settings: Training, online: Online) -> list[int]:
    """Return the places of prompts that with a longest answer are longer than `max_length`."""
    room = settings.max_length - online.max_new_tokens
    return [k for k, prompt in enumerate(prompts) if count_prompt_tokens(prompt, tokenizer) > room]


def count_prompt_tokens(prompt: list[dict[str, str]], tokenizer: Any) -> int:
    """Return the tokens of a prompt in its chat format, to where the answer begins."""
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    return len(ids)


def build_rewards(online: Online, models: Specs, dtype: str, device: str) -> list[tuple[Reward, float]]:
    """Return what rewards an answer, with weights; what only tells the truth beside a reward model weighs 0.

    Args:
        online: the method's settings. models: name -> specification, with the reward model.
        dtype, device: that it computes in.
    """
    found: list[tuple[Reward, float]] = [(reward_instructions, online.reward.get("instructions", 0.0))]
    if online.reward_model is not None:
        found.append((_load_rater(online.reward_model, models, dtype, device), online.reward["reward_model"]))
    return found


def reward_instructions(completions: list[Any], instructions: list[str | None], **_: Any) -> list[float | None]:
    """Return the share of its prompt's instructions that each answer follows, strict; None where there are none.

    Args:
        completions: of each answer its messages. instructions: of each, the data set's column.

    Example:
        >>> asked = json.dumps({"instruction_id_list": ["punctuation:no_comma"], "kwargs": "[{}]"})
        >>> answers = [[{"role": "assistant", "content": text}] for text in ("An oak.", "Well, an oak.", "?")]
        >>> reward_instructions(answers, [asked, asked, None])
        [1.0, 0.0, None]
    """
    from karma.evaluation.ifeval import check_instructions

    rewards: list[float | None] = []
    for completion, asked in zip(completions, instructions, strict=True):
        if asked is None:
            rewards.append(None)
            continue
        item = {"item_id": asked, "prompt": "", **json.loads(asked)}
        verdicts = check_instructions(item, completion[-1]["content"])["strict"]
        rewards.append(sum(verdicts) / len(verdicts))
    return rewards


reward_instructions.__name__ = "instructions"  # what TRL logs it as


def _load_rater(name: str, models: Specs, dtype: str, device: str) -> Reward:
    """Return what rates answers with a reward model, which is loaded here."""
    from karma.models.load import load_tokenizer
    from karma.models.rewards import load_reward_model, score_responses

    tokenizer, model = load_tokenizer(models, name), load_reward_model(models, name, dtype, device)

    def reward_model(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
        return score_responses(model, tokenizer, prompts, completions).tolist()

    return reward_model
