"""Reward models: a language model whose head gives one number, the reward of a response; higher is better.

The reward is read where transformers reads it, at the last token of prompt and response that is no padding token, in
the model's own unit. Responses to one prompt lie in one row that shares what they begin with, hidden from each other
(`karma.models.logprobs`), so that n answers to a prompt cost the prompt once.
Decision: a text is read whole, however long; one that was cut would be rated for its cut. Limit: a model whose layers
see more than a causal mask says, or whose head is no plain `score` layer, is asked one response at a time.

Paper: the reward of a response, arXiv 2203.02155, section 3.5.
"""

from collections.abc import Callable, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from karma.errors import InputError, show_line
from karma.models.chat import Messages, TokenizedResponse, apply_template
from karma.models.folder import check_whole, read_header
from karma.models.load import Specs, find_model, load_model
from karma.models.logprobs import (
    SharedRow,
    can_share_prompts,
    choose_pass_tokens,
    get_causal,
    plan_batches,
    run_states,
)


@torch.no_grad()
def score_responses(
    model: Any, tokenizer: Any, prompts: Sequence[Messages], responses: Sequence[Messages], *,
    batch_tokens: int | None = None, progress: str | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return the reward of each response to its prompt.

    Args:
        model: a reward model (`load_reward_model`); its dtype and device are kept. tokenizer: its own.
        prompts: n lists of messages. responses: n lists of one assistant message; those to one prompt share it where
            they follow each other.
        batch_tokens: tokens a forward pass, padding included; a longer row makes a pass of its own. None: as
            `choose_pass_tokens` says.
        progress: what to call the progress bar; None shows none.

    Returns:
        Rewards (n,) in float32, on the CPU, in the model's own unit.

    Example:
        >>> from karma.models.load import load_model, load_tokenizer
        >>> from karma.study.experiment import load_experiment
        >>> models = {name: spec.model_dump() for name, spec in load_experiment("smoke").settings.models.items()}
        >>> untrained = build_reward_model(load_model(models, "tiny-a"))
        >>> asked, said = [{"role": "user", "content": "Is 1 odd?"}], [{"role": "assistant", "content": "Yes."}]
        >>> score_responses(untrained, load_tokenizer(models, "tiny-a"), [asked], [said]).tolist()  # no opinion yet
        [0.0]
    """
    pad = model.config.get_text_config().pad_token_id
    rows = [
        build_reward_row([tokenize_whole(tokenizer, prompt, response) for _, response in own], pad)
        for prompt, own in groupby(zip(prompts, responses, strict=True), key=lambda one: one[0])
    ]
    with tqdm(total=len(responses), desc=progress, disable=progress is None, unit="response") as bar:
        found = compute_rewards(model, rows, batch_tokens or choose_pass_tokens(model.device.type), bar.update)
    return torch.cat(found) if found else torch.zeros(0)


def tokenize_whole(tokenizer: Any, prompt: Messages, response: Messages) -> list[int]:
    """Return the tokens of a prompt and its response, as TRL tokenises them for a reward model."""
    return apply_template(tokenizer, [*prompt, *response])


def build_reward_row(texts: Sequence[list[int]], pad: int | None) -> SharedRow:
    """Lay texts that begin alike out as a row; each side ends with the token whose state is scored.

    Args:
        texts: tokens of a prompt and each of its responses. pad: the model's padding token, never scored.

    Example:
        >>> row = build_reward_row([[7, 8, 1, 2], [7, 8, 1, 0], [7, 8]], pad=0)
        >>> row.shared, [side.ids for side in row.sides]
        (1, [[7, 8, 1, 2], [7, 8, 1], [7, 8]])
    """
    ends = [max((place for place, token in enumerate(ids) if token != pad), default=0) + 1 for ids in texts]
    sides = tuple(TokenizedResponse(ids[:end], end) for ids, end in zip(texts, ends, strict=True))
    columns = zip(*(side.ids[:-1] for side in sides), strict=False)  # a side keeps a token of its own: the scored one
    return SharedRow(sides, sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns)))


def can_share_rewards(model: Any) -> bool:
    """Tell whether responses to one prompt may lie in one row: plain attention, and a head that is one layer."""
    return can_share_prompts(model) and hasattr(get_causal(model), "score")


def compute_rewards(
    model: Any, rows: Sequence[SharedRow], batch_tokens: int, advance: Callable[[int], Any] = lambda n: None
) -> list[torch.Tensor]:
    """Return the rewards (sides,) of each row's responses in float32; `advance` hears of responses done."""
    rewards: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    if not can_share_rewards(model):
        for k, row in enumerate(rows):
            each = [model(input_ids=torch.tensor([side.ids], device=model.device)).logits[0] for side in row.sides]
            rewards[k] = torch.cat(each).float().cpu()
            advance(len(each))
        return rewards
    for batch in plan_batches([row.width for row in rows], batch_tokens):
        for k, own in zip(batch, compute_row_rewards(model, [rows[i] for i in batch]), strict=True):
            rewards[k] = own.float().cpu()
            advance(len(own))
    return rewards


def compute_row_rewards(model: Any, rows: Sequence[SharedRow]) -> list[torch.Tensor]:
    """Return the rewards (sides,) of each row from one forward pass; gradients flow.

    Args:
        model: one that `can_share_rewards`. rows: from `build_reward_row`.
    """
    states = run_states(rows, model, pad=0)
    return [get_causal(model).score(states[k, _find_last(row)])[:, 0] for k, row in enumerate(rows)]


def _find_last(row: SharedRow) -> list[int]:
    """Return the column of each side's last token."""
    places, end = [], row.shared
    for side in row.sides:
        end += len(side.ids) - row.shared
        places.append(end - 1)
    return places


def build_reward_model(policy: Any) -> Any:
    """Put a head that gives one number on a language model's layers, which are not copied.

    The head starts at 0: every response has the reward 0, so that a training starts at a loss of ln 2 whatever its
    seed, and the first updates do not undo what a random head would prefer.

    Args:
        policy: a causal language model (`karma.models.load.load_model`).

    Raises:
        InputError: transformers has no sequence classifier with a plain head for this kind of model.
    """
    from transformers import AutoModelForSequenceClassification

    config = type(policy.config).from_dict(policy.config.to_dict())
    config.num_labels = 1
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
        assert isinstance(model.score, torch.nn.Linear)
    except (ValueError, AttributeError, AssertionError):
        kind = policy.config.model_type
        raise InputError(f"no reward model can be made of a {kind}: it has no sequence classifier in transformers with "
                         "a plain head; start from a policy of another kind") from None  # fmt: skip
    weight = policy.get_input_embeddings().weight
    setattr(model, model.base_model_prefix, policy.base_model)
    model.score = torch.nn.Linear(config.get_text_config().hidden_size, 1, bias=False).to(weight.device, weight.dtype)
    torch.nn.init.zeros_(model.score.weight)
    return model


def load_reward_model(models: Specs, name: str, dtype: str = "float32", device: str = "cpu") -> Any:
    """Load a sequence classifier with one output, in evaluation mode: one that `karma train` made, or another's.

    Args:
        models: name -> specification. name: which one. dtype: "float32" or "bfloat16". device: "cpu" or "cuda".

    Raises:
        InputError: not a classifier, or one with several outputs, of which none says which is the reward.
    """
    from transformers import AutoModelForSequenceClassification

    spec = models.get(name, {})
    if spec.get("adapter"):  # as it lies in the folder of its training
        from peft import PeftModel

        base = build_reward_model(load_model(models, spec["base"]))
        read_header(Path(spec["adapter"]) / "adapter_model.safetensors")
        model = PeftModel.from_pretrained(base, spec["adapter"]).merge_and_unload()
        return model.to(device=device, dtype=getattr(torch, dtype)).eval()
    location, extra = find_model(models, name)
    try:
        model, facts = AutoModelForSequenceClassification.from_pretrained(
            location,
            dtype=getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **extra,
        )
    except Exception as error:  # transformers raises many kinds; each becomes one line
        reason = show_line((str(error).splitlines() or [type(error).__name__])[0])
        raise InputError(f"reward model '{name}' cannot be loaded: {reason}") from error
    if facts["missing_keys"] or model.config.num_labels != 1:
        lacks = "no trained head" if facts["missing_keys"] else f"{model.config.num_labels} outputs"
        raise InputError(f"reward model '{name}' has {lacks}: give a sequence classifier with one output")
    check_whole([], model.named_parameters(), f"reward model '{name}' ({location})")
    return model.to(device).eval()
