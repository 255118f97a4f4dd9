"""Record a finished study in one small file: `make recorded` after `make demo`."""

import argparse
import sys
from pathlib import Path

from karma import load_experiment
from karma.commands.next_step import tell_next
from karma.errors import KarmaError
from karma.study.recorded import pack_study


def main() -> None:
    """Write dist/karma-<study>-recorded.tar.gz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", nargs="?", default="params/demo.yaml")
    try:
        experiment = load_experiment(parser.parse_args().experiment)
        path = Path("dist") / f"karma-{experiment.settings.name}-recorded.tar.gz"
        size = pack_study(experiment, experiment.root / path)
    except KarmaError as error:
        sys.exit(f"recorded: {error}")
    print(f"written: {path} ({size:,} bytes)")
    print(tell_next("karma", "demo", "--recorded", path))


if __name__ == "__main__":
    main()
