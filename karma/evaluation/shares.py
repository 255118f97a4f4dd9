"""A share of an evaluation's prompts: what a job that helps stage 01, 05 or `selection_evaluation` asks.

The requests are built as the stage itself builds them, so that keys agree; scores are computed of what this job knows
and thrown away, since the stage reads all answers from the store. Limit: what is computed in vain is the scoring.
"""

from pathlib import Path
from typing import Any

from karma.evaluation.runner import evaluate, limit_policies
from karma.models.ask import CachedModel
from karma.models.load import add_trained
from karma.models.shards import Share
from karma.vocabulary import START


def answer_share(job: Any, number: int, n: int) -> None:
    """Answer a share of the items that an origin model or a policy is asked, into the study's `answers/`.

    Args:
        job: of one of the three stages. number: of the share, from 0. n: how many there are.
    """
    settings, models, params = job.settings.benchmarks, job.models, job.params
    if "origin_model" in params:
        name, benchmarks = params["origin_model"], settings.origin
    else:
        settings, name = limit_policies(settings), params["policy"]
        benchmarks = settings.policy
        if params["strategy"] != START:
            models, name = add_trained(models, name, Path(job.folder) / "model")
    cache = job.experiment.outputs / "answers"
    model = CachedModel(models, name, job.settings.compute, settings.batch_size, cache, Share(number, n))
    evaluate(model, benchmarks, settings, job.experiment.root, settings.protocol)
