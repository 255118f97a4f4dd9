"""Where a study's time went: core-seconds of each stage, as the study's own provenance recorded them.

    python bench/demo.py [params/demo.yaml]

Prints one line a stage: jobs, seconds of wall time summed over them, core-seconds; then the minutes from first to last,
as a ratio of the 20 that a study on a laptop may take. Runs nothing: run `make demo` first. With --check it exits 1
where the goal is missed.
"""

import sys

from common import Ratio, conclude

from karma.study.experiment import load_experiment
from karma.study.provenance import compute_minutes, group_by_stage, load_records

GOAL_MINUTES = 20


def main() -> int:
    """Print the table of one experiment (default: the demo), or say that it has not been run."""
    name = next((arg for arg in sys.argv[1:] if not arg.startswith("-")), "params/demo.yaml")
    records = load_records(load_experiment(name))
    if not records:
        print(f"{name}: no finished job: run `karma run {name}` first")
        return 0
    print(f"{name} on {', '.join(sorted({one['device'] for one in records.values()}))}")
    for stage, few in group_by_stage(records).items():
        seconds, cores = (sum(one[key] for one in few) for key in ("seconds", "core_seconds"))
        print(f"{stage:24} {len(few):3} jobs {seconds:7.0f} s {cores:7.0f} core-s")
    total = sum(one["core_seconds"] for one in records.values())
    print(f"{'all':24} {len(records):3} jobs {total:19.0f} core-s")
    ratio = compute_minutes(records.values()) / GOAL_MINUTES
    return conclude([Ratio(f"minutes from first job to last / {GOAL_MINUTES}", ratio, 1)], "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
