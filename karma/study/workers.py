"""Ray, joined or started: what `compute.engine: ray` and `karma binarize --engine ray` do their work on.

Ray is an extra (`pip install 'karma-kit[cluster]'`) and imported only here. Decision: workers get no files of ours,
they read and write the same folders, so the project's root lies on a disk that every node sees. Limit: one cluster a
process.
"""

import logging
import os
import socket
from typing import Any

from karma.errors import InputError


def connect(address: str | None = None) -> Any:
    """Return the `ray` module, connected.

    Args:
        address: `auto` or HOST:PORT of a running cluster; None starts one on this machine, which ends with the process.

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("engine ray: Ray is not installed: pip install 'karma-kit[cluster]'") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports usage unless it is told not to
        options: dict[str, Any] = {} if address else {"include_dashboard": False}
        try:
            _check_port(address)  # Ray itself would try for minutes
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"engine ray: no cluster at {address or 'this machine'} ({reason}): start "
                             "Ray's head node, or leave the address out") from None  # fmt: skip
    return ray


def _check_port(address: str | None) -> None:
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=5).close()
