"""An asker for Ray's workers whose process dies, or whose engine fails, as often as a file says."""

import os
import resource
from pathlib import Path


class Unlucky:
    """Answers a prompt with its key in capitals; what it was asked is a line of `log`.

    Args:
        folder: of `log`, and of a file a trouble that is still to come, which is removed when it comes.
        at: key of the prompt at which it comes.
        answer_bytes: of an answer. file_bytes: none can be larger in this process; None: as large as it likes.
    """

    def __init__(self, folder, at, answer_bytes=0, file_bytes=None):
        self.folder, self.at, self.more = Path(folder), at, "." * answer_bytes
        if file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    def load(self):
        pass

    def ask(self, piece, advance):
        if piece.key == self.at:
            for trouble in sorted(self.folder.glob("trouble*")):
                how = trouble.read_text()
                trouble.unlink()
                if how == "killed":
                    os._exit(137)  # as the kernel ends a process that takes too much memory
                raise MemoryError("out of memory")
        with (self.folder / "log").open("a") as stream:
            stream.write(piece.key + "\n")
        return {"answers": [piece.key.upper() + self.more]}


def open_asker(**options):
    return Unlucky(**options)
