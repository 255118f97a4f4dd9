"""What a training of a study starts from: the untrained policy, or what the step of its recipe before it made.

A recipe is a list of methods; its steps stand wherever a method does, under names that say which they are
(distil-1-sft, distil-2-dpo), so that each has folders, scores and a row of every table. A step is an ordinary training
of its method: its reference policy, its answers and margins "before", are those of the policy it starts from. The first
step is the same training as the method alone, and takes its weights over where that was done (`karma.training.train`).
Decision: with adapters every step but the first saves whole weights, so that what is trained is evaluated without the
steps before it. Limit: so a recipe's later steps take the room of whole models on disk.

Paper: preference distillation with reinforcement learning, the summary of arXiv 2502.18744; the recipe is ours.
"""

from dataclasses import dataclass
from typing import Any

from karma.models.load import Specs, add_trained
from karma.study.training_settings import Training
from karma.vocabulary import find_method, title_of


@dataclass(frozen=True)
class Start:
    """What `describe_run` takes of a job of stage 04.

    Attributes:
        models: name -> specification. policy: which of them is tuned.
        method: a name of `karma.vocabulary.METHODS`. settings: the experiment's `training`.
    """

    models: Specs
    policy: str
    method: str
    settings: Training


def find_start(job: Any) -> Start:
    """Return what a job of stage 04 starts from.

    Example:
        >>> from karma.study.experiment import load_experiment
        >>> from karma.study.stages import list_jobs
        >>> trainings = [job for job in list_jobs(load_experiment("smoke")) if job.stage.name.startswith("04")]
        >>> find_start(trainings[0]).policy, find_start(trainings[0]).method
        ('tiny-a', 'sft')
    """
    policy, method, settings = job.params["policy"], job.params["method"], job.settings.training
    before = [needed for needed in job.inputs if needed.stage.name == job.stage.name]
    if not before:
        return Start(job.models, policy, find_method(method), settings)
    specs, name = add_trained(job.models, policy, before[0].folder / "model")
    title = f"{policy}, {title_of(before[0].params['method'])}"
    models = {**{key: spec for key, spec in specs.items() if key != name}, title: specs[name]}
    whole = settings.model_copy(update={"merge_adapter": settings.lora is not None})
    return Start(models, title, find_method(method), whole)
