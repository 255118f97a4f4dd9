"""A recorded study written by hand, good or bad."""

import io
import json
import tarfile

from karma.files.reading import compute_digest
from karma.study.recorded import MANIFEST

GOOD = {"report.html": b"<p>a report</p>", "kinship/s_pref.csv": b"origin_model,s_pref\na,1\n"}


def build(path, files=GOOD, name="demo", told=None, extra=(), folder=None, **changed):
    """Write a recorded study by hand; `changed` are keys of its list."""
    known = {"study": name, "experiment": "params/demo.yaml", "finished_at": "2026-11-28T00:00:00+00:00", "commit": "c",
             "device": "d", "files": told or {file: compute_digest(content) for file, content in files.items()}} | changed  # fmt: skip
    members = [(f"{folder or name}/{file}", content) for file, content in files.items()]
    members.append((f"{folder or name}/{MANIFEST}", json.dumps(known).encode()))
    with tarfile.open(path, "w:gz") as archive:
        for file, content in members:
            member = tarfile.TarInfo(file)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member)
    return path
