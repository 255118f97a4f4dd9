"""Best of n from a policy: sample n answers to a prompt, keep the one that the scorer rates highest.

The scorer is self-play's (`karma.self_play.scorers`): a reward model, a judge, or the checkers themselves. Where
prompts can be checked by programs, `measure_best_of_n` says what a reward is worth to the one who answers with it: the
share of instructions followed by the best of n by reward, against n. Decision: all n up to the number of samples are
measured from the same samples (`karma.labels.best_of_n`). Limit: samples are at one temperature; a larger n than was
sampled is not extrapolated.

Paper: best-of-n, arXiv 2203.02155 and 2210.10760.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from karma.evaluation.prompts import Prompt
from karma.labels.best_of_n import compute_best_of_n
from karma.models.load import Specs
from karma.self_play.answers import sample_answers
from karma.self_play.scorers import score_answers, score_by_instructions
from karma.study.sections import Compute, SelfPlay


def keep_best(answers: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]) -> list[str]:
    """Return the answer to each prompt whose score is largest; of equal ones the first.

    Example:
        >>> keep_best([["a", "b"], ["c", "d"]], [[0.1, 0.3], [2.0, 2.0]])
        ['b', 'c']
    """
    return [own[max(range(len(own)), key=lambda k: rated[k])] for own, rated in zip(answers, scores, strict=True)]


def answer_best_of_n(
    models: Specs, policy: str, prompts: list[Prompt], settings: SelfPlay, compute: Compute, cache: Path
) -> list[str]:
    """Return a policy's best of `settings.samples` answers to each prompt, by `settings.scorer`.

    Args:
        models: name -> specification. policy: who answers. prompts: what is asked.
        settings: the experiment's `self_play` (samples and how they are drawn, scorer, scorer_model).
        compute: its `compute`. cache: folder where answers and scores are kept.
    """
    answers = _sample(models, policy, prompts, settings, compute, cache)
    return keep_best(answers, score_answers(prompts, answers, settings, models, compute, cache))


def measure_best_of_n(
    models: Specs, policy: str, prompts: list[Prompt], settings: SelfPlay, compute: Compute, cache: Path
) -> pd.DataFrame:
    """Return the truth of a policy's best of n by the scorer, for n up to `settings.samples`.

    Args:
        models, policy, settings, compute, cache: as for `answer_best_of_n`. prompts: verifiable ones.

    Returns:
        As `karma.labels.best_of_n.compute_best_of_n`: n, truth, gain over n = 1 and their 95 % intervals.
    """
    answers = _sample(models, policy, prompts, settings, compute, cache)
    scores = score_answers(prompts, answers, settings, models, compute, cache)
    truths = [[score_by_instructions(p, answer) for answer in own] for p, own in zip(prompts, answers, strict=True)]
    return compute_best_of_n(list(zip(scores, truths, strict=True)))


def _sample(
    models: Specs, policy: str, prompts: list[Prompt], settings: SelfPlay, compute: Compute, cache: Path
) -> list[list[str]]:
    texts = [prompt.text for prompt in prompts]
    return sample_answers(models, policy, texts, settings.samples, settings, compute, cache)
