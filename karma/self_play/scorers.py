"""What rates the policy's answers: instruction checkers (real and free), a judge model, or a reward model.

`instructions`: the share of a prompt's verifiable instructions that the answer follows, strict (no markdown stripped),
0 to 1. `judge`: the expected rating 1 to 5 of `karma.models.judge`. `reward_model`: the one output of a sequence
classifier (`karma.models.rewards`), in its own unit, higher is better. Limit: the checkers read form only; an answer
that says nothing can follow every instruction.
"""

from pathlib import Path

from karma.evaluation.prompts import Prompt
from karma.files.reading import compute_digest
from karma.models.load import Specs, choose_device, choose_dtype, compute_weights_digest, load_tokenizer
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
    import torch

    from karma.models.rewards import load_reward_model, score_responses

    device = choose_device(compute.device)
    torch.set_num_threads(compute.threads)
    model = load_reward_model(models, name, choose_dtype(compute.dtype, device), device)
    prompts, answers = ([[{"role": role, "content": row[side]}] for row in rows]
                        for side, role in enumerate(("user", "assistant")))  # fmt: skip
    tokenizer = load_tokenizer(models, name)
    return score_responses(model, tokenizer, prompts, answers, progress=f"{name} rates").tolist()
