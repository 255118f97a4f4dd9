"""The two ways a command can end badly, and their exit codes.

A message is one line: what was wrong, where, and what to do about it. `karma.cli` prints it without a traceback.
"""


class KarmaError(Exception):
    """Something failed while running (exit code 1)."""

    exit_code = 1


class InputError(KarmaError, ValueError):
    """The user's input cannot be used as it is (exit code 2)."""

    exit_code = 2


class InterruptedSweep(KarmaError):
    """The user stopped a sweep (exit code 130, as a shell's)."""

    exit_code = 130
