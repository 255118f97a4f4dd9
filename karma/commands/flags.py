"""What an experiment's settings are called on a command line, so that a remedy names what its reader can type.

The kit's code says "raise training.max_length", which is right in an experiment. Who typed `karma train` has no
experiment: there it is `-p max_length`. Decision: translated once, where errors and warnings are shown.
"""

import re
from collections.abc import Collection

FLAGS = {
    "compute.address": "--address", "compute.backend": "--backend", "compute.device": "--device",
    "compute.dtype": "--dtype", "compute.engine": "--engine", "compute.threads": "--threads",
    "benchmarks.batch_size": "--batch-size", "benchmarks.folder": "--benchmark-data", "benchmarks.limit": "--limit",
    "kinship.cut": "--cut", "kinship.measure": "--measure", "kinship.tau": "--tau", "kinship.weights": "--weight",
    "labels.tie": "--tie", "pairs.calibration": "--calibration", "pairs.held_out": "--held-out",
    "pairs.min_confidence": "--min-confidence", "pool.excluded_origin_models": "--exclude-model",
    "pool.instructions": "--instructions", "potential.explicit": "--explicit", "scores.missing": "--missing",
}  # fmt: skip
_VALUE = re.compile(r"([a-z_]+) is ")  # how a message begins that is about one value
_SETTING = re.compile(r"(?<![\w./-])([a-z_]+)\.([a-z_]+(?:\.[a-z_]+)*)(?![\w(]|\.\w)")


def name_flags(text: str, command: str, options: Collection[str]) -> str:
    """Return a message with settings by the names of a command's own options; others stay as they are.

    Args:
        text: the message. command: its name. options: what it takes, as "--device".

    Example:
        >>> name_flags("raise training.max_length, or lower compute.threads", "train", ("-p", "--threads"))
        'raise -p max_length, or lower --threads'
        >>> name_flags("raise training.max_length; see outputs/demo/training.json", "run", ("--cores",))
        'raise training.max_length; see outputs/demo/training.json'
        >>> name_flags("held_out is 1.0: a share below 1", "export", ("--held-out",))
        '--held-out is 1.0: a share below 1'
    """

    def translate(found: re.Match[str]) -> str:
        if command == "train" and found[1] == "training" and found[2] != "json":
            return f"-p {found[2]}"
        option = FLAGS.get(found[0])
        return option if option in options and option is not None else found[0]

    text = _SETTING.sub(translate, text)
    if (told := _VALUE.match(text)) and (option := f"--{told[1].replace('_', '-')}") in options:
        return option + text[told.end(1) :]
    return text
