"""Where a study's time went: core-seconds of each stage, as the study's own provenance recorded them.

    python bench/demo.py [params/demo.yaml]

Prints one line a stage: jobs, seconds of wall time summed over them, core-seconds. Runs nothing: run `make demo` first.
"""

import sys
from collections import defaultdict

from karma.study.experiment import load_experiment
from karma.study.provenance import load_records


def main() -> None:
    """Print the table of one experiment (default: the demo), or say that it has not been run."""
    name = next((arg for arg in sys.argv[1:] if not arg.startswith("-")), "params/demo.yaml")
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    devices = set()
    for label, record in load_records(load_experiment(name)).items():
        if "core_seconds" in record:  # older provenance holds none
            found[label.split(".")[0]].append((record["seconds"], record["core_seconds"]))
            devices.add(record["device"])
    if not found:
        print(f"{name}: no finished job: run `karma run {name}` first")
        return
    print(f"{name} on {', '.join(sorted(devices))}")
    for stage, times in found.items():
        seconds, cores = (sum(column) for column in zip(*times, strict=True))
        print(f"{stage:24} {len(times):3} jobs {seconds:7.0f} s {cores:7.0f} core-s")
    total = sum(cores for times in found.values() for _, cores in times)
    print(f"{'all':24} {sum(map(len, found.values())):3} jobs {total:19.0f} core-s")


if __name__ == "__main__":
    main()
