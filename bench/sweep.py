"""A sweep with nothing left to do: the paper's study, all of its jobs done, against Snakemake alone on as many files.

    python bench/sweep.py [--experiment params/paper.yaml] [--repeats 3] [--check]

The study is pretended: each job's files are made, empty, in the order of the graph, in a copy of the project. Then
`karma run` is started as a user starts it; it must say that everything is up to date. The baseline, in the same run, is
Snakemake without work on a workflow of as many jobs, each one file made from the one before it. The best of the repeats
counts, and the goal is five seconds.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Ratio, conclude, read_options

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the project is copied by what copies it for the tests
GOAL_S = 5.0


def pretend(name: str, project: Path) -> int:
    """Make the files of all jobs of an experiment; return the number of jobs."""
    from karma.study.current import save_fingerprints
    from karma.study.experiment import load_experiment
    from karma.study.stages import list_jobs

    os.chdir(project)  # the clone that it then belongs to
    experiment = load_experiment(name)
    save_fingerprints(experiment)
    jobs = list_jobs(experiment)
    for job in jobs:
        for path, name in zip(job.products, job.stage.products, strict=True):
            folder = path if name.endswith("/") else path.parent
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".snakemake_timestamp" if name.endswith("/") else path).touch()
    return len(jobs)


def clock(command: list[str], folder: Path) -> tuple[float, str]:
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-500:]}{done.stderr[-2000:]}")
    return time.perf_counter() - started, done.stdout


def main() -> int:
    options = read_options(__doc__, experiment="params/paper.yaml", repeats=3)
    from tests.conftest import copy_project

    with tempfile.TemporaryDirectory() as folder:
        project = copy_project(Path(folder) / "project")
        n_jobs = pretend(options.experiment, project)
        alone = Path(folder) / "alone"
        alone.mkdir()
        rules = f'rule all:\n    input: "{n_jobs}.txt"\nrule one:\n    output: "0.txt"\n    shell: "touch {{output}}"\n'
        chain = 'for k in range(1, %d):\n    rule:\n        input: f"{k - 1}.txt"\n        output: f"{k}.txt"\n'
        (alone / "Snakefile").write_text(rules + chain % (n_jobs + 1) + '        shell: "touch {output}"\n')
        for k in range(n_jobs + 1):
            (alone / f"{k}.txt").touch()
        ours, theirs = [], []
        for _ in range(options.repeats):
            seconds, said = clock([sys.executable, "-m", "karma.cli", "run", options.experiment], project)
            if "everything is up to date" not in said:
                raise SystemExit(f"the sweep had something to do: {said[-2000:]}")
            ours.append(seconds)
            theirs.append(clock([sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all"], alone)[0])
    print(f"{n_jobs} jobs, all done: `karma run` {min(ours):.1f} s, Snakemake alone {min(theirs):.1f} s")
    print(f"besides: no-op sweep / Snakemake alone {min(ours) / min(theirs):.2f}")
    return conclude([Ratio(f"no-op sweep / {GOAL_S:g} s", min(ours) / GOAL_S, 1.0)], options.check)


if __name__ == "__main__":
    sys.exit(main())
