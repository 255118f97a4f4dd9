"""Notebooks: opened by a reader, or run headless with papermill, with the same checks and the same record.

A notebook's first call is `open_stage`; it resolves the settings, finds the project's root wherever the kernel
started, and says which notebook to run first when a file is missing.
"""

from karma.params import load_experiment
from karma.stages import Job, find_job


def open_stage(name: str, experiment: str, **params: object) -> Job:
    """Open a stage from inside its notebook: settings, folders and files, checked.

    Args:
        name: the stage, e.g. "03_binarization".
        experiment: its file, e.g. "params/demo.yaml".
        **params: the stage's parameters, e.g. strategy="k_sim".

    Returns:
        The job: `.settings`, `.folder`, `.experiment.show(...)`.
    """
    from karma.figures import set_style

    set_style()
    job = find_job(load_experiment(experiment), name, params)
    job.check_inputs()
    job.folder.mkdir(parents=True, exist_ok=True)
    return job
