"""What rates the policy's answers: instruction checkers (real and free), a judge model, or a reward model.

`instructions`: the share of a prompt's verifiable instructions that the answer follows, strict (no markdown stripped),
0 to 1. `judge`: the expected rating 1 to 5 of `karma.models.judge`. `reward_model`: the one output of a sequence
classifier, in its own unit, higher is better. Limit: the checkers read form only; an answer that says nothing can
follow every instruction.
"""

from pathlib import Path

from karma.errors import InputError
from karma.evaluation.prompts import Prompt
from karma.files import compute_digest
from karma.models.load import Specs, choose_device, choose_dtype, compute_weights_digest, find_model, load_tokenizer
from karma.self_play.answers import remember
from karma.study.sections import Compute, SelfPlay


def score_answers(
    prompts: list[Prompt], answers: list[list[str]], settings: SelfPlay, models: Specs, compute: Compute, cache: Path
) -> list[list[float]]:
    """Score every answer; empty ones too.

    Args:
        prompts: n prompts. answers: of each the same number of answers.
        settings: the experiment's `self_play` (scorer, scorer_model, batch_size).
        models: name -> specification. compute: the experiment's `compute`.
        cache: folder where a model's scores are kept.

    Returns:
        Scores, shaped as the answers; higher is better.
    """
    if settings.scorer == "instructions":
        return [[score_by_instructions(p, a) for a in own] for p, own in zip(prompts, answers, strict=True)]
    name = settings.scorer_model or ""  # `SelfPlay` sees to it that these two scorers have one
    rows = [(prompt.text, answer) for prompt, own in zip(prompts, answers, strict=True) for answer in own]
    identity = [settings.scorer, compute_weights_digest(models, name), compute.dtype, rows]
    path = cache / "scores" / f"{compute_digest(identity)}.json"

    def rate() -> list[float]:
        if settings.scorer == "judge":
            return _rate_by_judge(rows, models, name, compute, settings.batch_size, cache)
        return _rate_by_reward_model(rows, models, name, compute)

    flat = iter(remember(path, rate))
    return [[next(flat) for _ in own] for own in answers]


def score_by_instructions(prompt: Prompt, answer: str) -> float:
    """Return the share of a prompt's instructions that an answer follows, strict.

    Example:
        >>> from karma.evaluation.prompts import build_prompt
        >>> prompt = build_prompt("Name a tree.", ["punctuation:no_comma"], "[{}]")
        >>> score_by_instructions(prompt, "An oak."), score_by_instructions(prompt, "Well, an oak.")
        (1.0, 0.0)
    """
    from karma.evaluation.ifeval import check_instructions

    verdicts = check_instructions(prompt.item, answer)["strict"]
    return sum(verdicts) / len(verdicts)


def _rate_by_judge(
    rows: list[tuple[str, str]], models: Specs, judge: str, compute: Compute, batch_size: int, cache: Path
) -> list[float]:
    from karma.models.judge import annotate

    todo = [{"row_id": str(i), "response_id": str(i), "model": "", "instruction": prompt, "response": answer}
            for i, (prompt, answer) in enumerate(rows)]  # fmt: skip
    table, _ = annotate(todo, models, judge, compute, batch_size, cache)
    return table["score"].to_pylist()


def _rate_by_reward_model(rows: list[tuple[str, str]], models: Specs, name: str, compute: Compute) -> list[float]:
    """Rate answers one at a time: padding would make a score depend on the answers beside it."""
    import torch
    from tqdm.auto import tqdm

    device = choose_device(compute.device)
    torch.set_num_threads(compute.threads)
    tokenizer = load_tokenizer(models, name)
    model = load_reward_model(models, name, choose_dtype(compute.dtype, device)).to(device)
    scores = []
    for prompt, answer in tqdm(rows, desc=f"{name} rates", unit="answer"):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            scores.append(float(model(ids.to(device)).logits[0, 0]))
    return scores


def load_reward_model(models: Specs, name: str, dtype: str):
    """Load a sequence classifier with one output.

    Raises:
        InputError: not a classifier, or one with several outputs, of which none says which is the reward.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    location, extra = find_model(models, name)
    try:
        model, facts = AutoModelForSequenceClassification.from_pretrained(
            location, dtype=getattr(torch, dtype), trust_remote_code=False, output_loading_info=True, **extra
        )
    except (OSError, ValueError) as error:
        raise InputError(f"reward model '{name}' cannot be loaded: {str(error).splitlines()[0]}") from error
    if facts["missing_keys"] or model.config.num_labels != 1:
        lacks = "no trained head" if facts["missing_keys"] else f"{model.config.num_labels} outputs"
        raise InputError(f"reward model '{name}' has {lacks}: give a sequence classifier with one output")
    return model.eval()
