"""Snakemake's events as JSON lines in $KARMA_EVENTS; `karma.study.sweep` reads them.

Snakemake finds logger plugins by module name on the path, so this one needs no installation.
"""

import json
import os
import time
from logging import LogRecord

from snakemake_interface_logger_plugins.base import LogHandlerBase


class LogHandler(LogHandlerBase):
    """Append each event with the fields that a progress display needs."""

    def emit(self, record: LogRecord) -> None:
        """Write one event."""
        event = getattr(record, "event", None)
        fields = ("jobid", "job_id", "rule_name", "wildcards", "reason", "log", "stats", "exception", "rule_msg")
        entry = {k: getattr(record, k) for k in fields if getattr(record, k, None) is not None}
        entry = {k: dict(v) if k == "wildcards" else v for k, v in entry.items()}
        entry |= {"event": str(event) if event else "message", "time": time.time(), "level": record.levelname}
        if not event or record.levelname == "ERROR":
            entry["message"] = record.getMessage() if record.msg else ""
        with open(os.environ["KARMA_EVENTS"], "a", encoding="utf-8") as stream:  # noqa: PTH123
            stream.write(json.dumps(entry, default=str) + "\n")

    @property
    def writes_to_stream(self) -> bool:
        """Stand in for Snakemake's own printing."""
        return False

    @property
    def writes_to_file(self) -> bool:
        """Tell that events go to a file."""
        return True

    @property
    def baseFilename(self) -> str:
        """The file written."""
        return os.environ["KARMA_EVENTS"]

    @property
    def has_filter(self) -> bool:
        """Take every record."""
        return True

    @property
    def has_formatter(self) -> bool:
        """Format records itself."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """Draw no graph."""
        return False
