"""What a notebook calls first: its stage, with settings, folders and files, checked.

`open_stage` resolves the settings, finds the project's root wherever the kernel started, and says which notebook to run
first when a file is missing. Running notebooks without a reader is `karma.study.execute`.
"""

from pathlib import Path

from karma.errors import InputError
from karma.study.current import check_settings
from karma.study.experiment import load_experiment
from karma.study.outputs import hide_nameless_bars
from karma.study.stages import Job, find_job, list_jobs


def open_stage(name: str, experiment: str, fallback: str | None = None, **params: object) -> Job:
    """Open a stage from inside its notebook: settings, folders and files, checked.

    Args:
        name: the stage, e.g. "03_binarization".
        experiment: its file, e.g. "params/demo.yaml".
        fallback: another experiment, which is opened, and said, where this one lacks what the stage reads.
        **params: the stage's parameters, e.g. strategy="k_sim".

    Returns:
        The job: `.settings`, `.folder`, `.experiment.show(...)`.

    Example:
        >>> job = open_stage("02_kinship_analysis", "params/paper.yaml")
        >>> job.folder.relative_to(job.experiment.root).as_posix(), job.settings.kinship.tau
        ('outputs/paper/kinship', 0.1)
    """
    job = find_job(load_experiment(experiment), name, params)
    check_settings(job)
    hide_nameless_bars()
    try:
        job.check_inputs()
    except InputError as error:
        if fallback is None:
            raise
        print(f"{error}.\nUntil then {fallback} is shown here.")
        return open_stage(name, fallback, None, **params)
    job.folder.mkdir(parents=True, exist_ok=True)
    return job


def find_siblings(job: Job) -> list[Path]:
    """Return the folders of a stage's other jobs with the same policy: they may have done part of this one's work."""
    same = [other for other in list_jobs(job.experiment) if other.stage is job.stage and other.params != job.params]
    return [other.folder for other in same if other.params["policy"] == job.params["policy"]]
