"""Run one job without a reader: papermill on its notebook, checks before, provenance after.

Parameters are checked before a kernel starts (papermill would only warn about a misspelt one and run the defaults),
the executed copy is kept with its traceback, and a kernel that died is reported as such.
"""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from karma.errors import InputError, KarmaError
from karma.files.reading import load_json
from karma.files.writing import atomic_path
from karma.study.current import stay_current
from karma.study.devices import hold_devices
from karma.study.experiment import load_experiment
from karma.study.forks import CLIENT
from karma.study.provenance import _relative, read_clock, save_provenance
from karma.study.stages import PARAMETER_TYPES, Job, find_job

LONGEST_SOCKET_FOLDER = 80  # characters; a socket's whole path may have 103 on some systems


def run_stage(name: str, experiment: str, params: Mapping[str, object], command: str = "") -> Job:
    """Run one job headless: its notebook, or for stages without one the module's `run`; record where it came from.

    Raises:
        InputError: unknown stage, parameter or value, or a missing input; no kernel has started.
        KarmaError: a cell failed (the executed notebook keeps the traceback), or the kernel died.
    """
    job = find_job(load_experiment(experiment), name, params)
    job.check_inputs()
    started, elsewhere = read_clock(), 0.0
    with stay_current(job), hold_devices(job.experiment.settings.compute.gpus_per_job if job.models else 0):
        if job.stage.has_notebook:
            values = {"experiment": str(job.experiment.path), **job.params}
            elsewhere = execute_notebook(job, {k: PARAMETER_TYPES.get(k, str)(v) for k, v in values.items()})
        if job.stage.module:
            import_module(f"karma.{job.stage.module}").run(job)
    save_provenance(job, (started[0], started[1] - elsewhere), command)
    return job


def execute_notebook(job: Job, values: Mapping[str, object]) -> float:
    """Execute a job's notebook with papermill; the executed copy, traceback included, lies at `job.executed_notebook`.

    Args:
        job: whose notebook. values: of the parameters; names that the notebook does not have are refused.

    Returns:
        Core-seconds of a kernel that is no child of this process: a sweep's fork server started it.

    Raises:
        InputError: no such parameter. KarmaError: a cell failed, or the kernel died.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # jsonschema would build its grammar: 1 s
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    source = job.experiment.root / "notebooks" / f"{job.stage.name}.ipynb"
    check_parameters(source, values)
    job.executed_notebook.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _tidied(job.executed_notebook), _own_kernels() as (options, usage):
            papermill.execute_notebook(
                source, job.executed_notebook, parameters=values, cwd=job.experiment.root, kernel_name="python3",
                progress_bar=sys.stderr.isatty(), log_output=False, autosave_cell_every=10, **options,
            )  # fmt: skip
            return usage()
    except PapermillExecutionError as error:
        raise KarmaError(f"{job.label}: cell {error.exec_count}: {error.ename}: {error.evalue}; "
                         f"see {_relative(job.executed_notebook)}") from error  # fmt: skip
    except DeadKernelError as error:
        seen = _relative(job.executed_notebook)
        raise KarmaError(
            f"{job.label}: the kernel died: out of memory, or killed; see {seen}, and try a smaller batch size"
        ) from error


@contextmanager
def _tidied(path: Path) -> Iterator[None]:
    """Leave an executed notebook with plain lines where bars and warnings were, also where a cell failed."""
    import nbformat

    from karma.study.outputs import tidy_outputs

    try:
        yield
    finally:
        if path.is_file():
            tidied = tidy_outputs(nbformat.read(path, as_version=4))  # type: ignore[no-untyped-call]
            with atomic_path(path) as temporary:
                nbformat.write(tidied, temporary)  # type: ignore[no-untyped-call]


@contextmanager
def _own_kernels() -> Iterator[tuple[dict[str, Any], Callable[[], float]]]:
    """Give papermill's options for a kernel, from the sweep's fork server if there is one, and what tells its use.

    Notebook and kernel talk through sockets in a folder of their own: of free ports, that another job finds free at the
    same moment too, one of the two kernels dies.
    """
    from jupyter_client.manager import AsyncKernelManager

    forked = "KARMA_FORKS" in os.environ

    class OwnKernelManager(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            super().__init__(**place, **options)

        def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
            if not forked:
                return super().format_kernel_cmd(extra_arguments)
            return [*CLIENT, "kernel", "-f", self.connection_file, *(extra_arguments or [])]

    with TemporaryDirectory(prefix="karma-") as folder:
        place = {"connection_file": f"{folder}/kernel.json"}
        if os.name == "posix" and len(folder) < LONGEST_SOCKET_FOLDER:
            place["transport"] = "ipc"
        os.environ["KARMA_USAGE"] = f"{folder}/core_seconds"
        path = Path(os.environ["KARMA_USAGE"])
        yield {"kernel_manager_class": OwnKernelManager}, lambda: float(path.read_text()) if path.is_file() else 0.0


def check_parameters(notebook: Path, values: Collection[str]) -> None:
    """Raise an InputError where a name is not in the notebook's `parameters` cell."""
    import ast

    cells = load_json(notebook)["cells"]
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if not tagged:
        raise InputError(f"{notebook.name} has no cell tagged `parameters`")
    tree = ast.parse("".join(tagged[0]["source"]))
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    known = [target.id for target in targets if isinstance(target, ast.Name)]
    for name in values:
        if name not in known:
            raise InputError(f"{notebook.name} has no parameter '{name}'; it has {', '.join(known)}")
