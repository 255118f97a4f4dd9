"""The CUDA devices a job may use: a scheduler's where there is one, else those that no other job of this machine holds.

Decision: a job that a scheduler has placed takes what it was given and locks nothing; locks in a home that several
nodes share would be of the wrong machine. Limit: jobs of other programs are not seen.
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout

from karma.files.locks import open_lock
from karma.files.places import cache_folder


@contextmanager
def hold_devices(n: int) -> Iterator[None]:
    """Hold `n` CUDA devices by file locks while a job runs, and show it only those.

    A job on a cluster sees those that its scheduler gave it ($KARMA_SCHEDULED says that there is one).
    """
    there = [] if "KARMA_SCHEDULED" in os.environ else list_gpus()
    with ExitStack() as stack:
        held: list[str] = []
        while len(held) < min(n, len(there)):
            for device in there:
                if len(held) < n and device not in held:
                    lock = open_lock(cache_folder() / f"cuda-{platform.node()}-{device}.lock", timeout=0)
                    try:
                        stack.enter_context(lock)
                        held.append(device)
                    except Timeout:
                        continue
            if len(held) < min(n, len(there)):
                time.sleep(1)
        if held:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        yield


def list_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, without importing torch.

    They are those of $CUDA_VISIBLE_DEVICES where it is set (by a scheduler, or by you), else all that the driver shows.
    """
    folder = Path("/proc/driver/nvidia/gpus")
    n = len(list(folder.glob("*"))) if folder.is_dir() else 0
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not n or shown is None:
        return [str(device) for device in range(n)]
    return [device for device in (part.strip() for part in shown.split(",")) if device and device != "-1"]
