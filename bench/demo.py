"""Where a study's time went: core-seconds of each stage, as the study's own provenance recorded them.

Prints one line a stage (jobs, seconds of wall time summed over jobs, core-seconds), and the ratio of the sweep's own
time to the best that two cores could do with these core-seconds. Runs nothing: run `make demo` first.
"""

import sys
from collections import defaultdict

from karma.files import load_json
from karma.study.experiment import load_experiment
from karma.study.stages import list_jobs


def main() -> None:
    """Print the table of one experiment (default: the demo), or say that it has not been run."""
    name = next((arg for arg in sys.argv[1:] if not arg.startswith("-")), "params/demo.yaml")
    experiment = load_experiment(name)
    found, devices = defaultdict(list), set()
    for job in list_jobs(experiment):
        path = job.folder / "provenance.json"
        record = load_json(path).get(job.stage.name) if path.is_file() else None
        if record:
            found[job.stage.name].append((record["seconds"], record["core_seconds"]))
            devices.add(record["device"])
    if not found:
        print(f"{name}: no finished job: run `karma run {name}` first")
        return
    print(f"{name} on {', '.join(sorted(devices))}")
    for stage, times in found.items():
        seconds, cores = (sum(column) for column in zip(*times, strict=True))
        print(f"{stage:24} {len(times):3} jobs {seconds:7.0f} s {cores:7.0f} core-s")
    total = sum(cores for times in found.values() for _, cores in times)
    print(f"{'all':24} {sum(map(len, found.values())):3} jobs {total:24.0f} core-s, {total / 120:.1f} min on two cores")


if __name__ == "__main__":
    main()
