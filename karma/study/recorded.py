"""A finished study in one small file: what notebooks, report and class read, without weights, figures and caches.

`pack_study` writes it, the same bytes from the same study; `unpack_study` puts it below outputs/ on another machine.
Decision: a file that comes from elsewhere is not trusted. Every member is a plain file below the study's folder with
the digest that the list inside says, and nothing appears under outputs/ before all of them are checked. Limit: digests
find what was damaged, not who made it; a policy's weights are missing, so 05 asks for 04 first.
"""

import gzip
import io
import json
import re
import tarfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from karma.errors import InputError
from karma.files.reading import check_file, compute_digest, parse_json
from karma.files.writing import atomic_path
from karma.study.experiment import Experiment
from karma.study.provenance import load_finished
from karma.study.stages import STAGES, Job, list_jobs

MANIFEST = "recorded.json"
MOST_BYTES = 5_000_000  # of the file: it is to go by mail
MOST_UNPACKED = 200_000_000
MOST_FILES = 5_000
_LEFT_OUT = ("answers", "logps", "model", "checkpoints", "figures")  # caches, weights, what notebooks and report show
_SHOWN = {"strategy": "k_sim", "method": "dpo", "metric": "m_ap", "round": "1"}
_TEXTS = (".json", ".ipynb", ".html", ".md", ".csv", ".tex", ".yaml")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def pack_study(experiment: Experiment, path: Path) -> int:
    """Write a finished study without weights as .tar.gz; the same study gives the same bytes.

    Args:
        experiment: whose outputs. path: of the file.

    Returns:
        Its size, in bytes; at most `MOST_BYTES`.

    Raises:
        InputError: the study is not finished, or too large.
    """
    records = load_finished(experiment)
    contents = {name: _read(experiment, file) for name, file in _list_files(experiment).items()}
    first = next(iter(records.values()))
    finished = max(record["finished_at"] for record in records.values())
    manifest = {"study": experiment.settings.name, "experiment": f"params/{experiment.path.name}",
                "finished_at": finished, "commit": first["commit"], "device": first["device"],
                "files": {name: compute_digest(content) for name, content in contents.items()}}  # fmt: skip
    contents[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    packed = _pack(contents, experiment.settings.name, int(datetime.fromisoformat(finished).timestamp()))
    if len(packed) > MOST_BYTES:
        largest = max(contents, key=lambda name: len(contents[name]))
        raise InputError(f"the recorded study has {len(packed):,} bytes, {MOST_BYTES:,} at most are wanted: {largest} "
                         "is the largest of its files")  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed)
    return len(packed)


def _pack(contents: dict[str, bytes], folder: str, time: int) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(contents):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mtime, member.mode = len(contents[name]), time, 0o644
            archive.addfile(member, io.BytesIO(contents[name]))
    return gzip.compress(whole.getvalue(), mtime=0)


def find_shown(experiment: Experiment, stage: str, wanted: Mapping[str, object] | None = None) -> Job | None:
    """Return the executed job of a stage that stands for the others: K_sim by DPO where there is one.

    Args:
        experiment: whose. stage: its name. wanted: parameters that count before that.

    Returns:
        The job with most of these parameters, the first of equals; None where no notebook of the stage was executed.
    """
    sought = {**_SHOWN, **{key: str(value) for key, value in (wanted or {}).items()}}
    jobs = [job for job in list_jobs(experiment) if job.stage.name == stage and job.executed_notebook.is_file()]
    return max(jobs, key=lambda job: sum(job.params.get(k) == value for k, value in sought.items()), default=None)


def _list_files(experiment: Experiment) -> dict[str, Path]:
    """Return name -> file of what is recorded: of the executed notebooks one a stage, of 06 the report alone."""
    outputs, found = experiment.outputs, dict[str, Path]()
    shown = {job.executed_notebook for stage in STAGES if (job := find_shown(experiment, stage))}
    for file in sorted(outputs.rglob("*")):
        parts = file.relative_to(outputs).parts
        if not file.is_file() or file.is_symlink() or any(p.startswith(".") or p in _LEFT_OUT for p in parts):
            continue
        if parts[0] != "notebooks" or (file in shown and not parts[1].startswith("06")):
            found["/".join(parts)] = file
    return found


def _read(experiment: Experiment, file: Path) -> bytes:
    """Return a file's bytes; paths of this machine become relative to the clone."""
    content = file.read_bytes()
    if file.suffix not in _TEXTS:
        return content
    root = str(experiment.root)
    return content.replace(f"{root}/".encode(), b"").replace(root.encode(), b".")


def unpack_study(path: str | Path, root: Path, replace: bool = False) -> tuple[Path, dict[str, Any]]:
    """Unpack a recorded study below outputs/.

    Args:
        path: of the file. root: the clone's top folder. replace: whether a study that lies there may be replaced.

    Returns:
        The study's folder, and what the file says of it: study, experiment, finished_at, commit, device.

    Raises:
        InputError: no recorded study, damaged, something in it that has no place there, or a study is there already.
    """
    file = check_file(path, "recorded study")
    try:
        with gzip.open(file) as stream, tarfile.open(fileobj=_Bounded(stream), mode="r|") as archive:
            contents = _read_members(archive, file)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{path} is no recorded study ({error}): make one with `make recorded`") from None
    manifest = _check(contents, path)
    target = root / "outputs" / manifest["study"]
    if target.exists() and not replace:
        raise InputError(f"outputs/{target.name} is there already: move it away, or add --replace to lose it")
    with atomic_path(target) as temporary, tarfile.open(file) as archive:
        archive.extractall(temporary.parent / "unpacked", filter="data")
        unpacked = temporary.parent / "unpacked" / manifest["study"]
        (unpacked / MANIFEST).unlink()
        unpacked.rename(temporary)
    return target, {key: value for key, value in manifest.items() if key != "files"}


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where a small file unpacks to a huge one."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._left = stream, MOST_UNPACKED

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, until there were too many."""
        content: bytes = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {MOST_UNPACKED:,} bytes")
        return content


def _read_members(archive: tarfile.TarFile, path: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for member in archive:
        parts = member.name.split("/")
        plain = member.isfile() and len(parts) > 1 and all(parts) and not {"", ".", ".."} & {*parts}
        if not plain or "\\" in member.name or ":" in member.name or member.name in contents:
            raise ValueError(f"{member.name!r} has no place in it")
        if len(contents) >= MOST_FILES:
            raise ValueError(f"it holds more than {MOST_FILES:,} files")
        stream = archive.extractfile(member)
        contents[member.name] = stream.read() if stream else b""
    return contents


def _check(contents: dict[str, bytes], path: str | Path) -> dict[str, Any]:
    """Return the list of a recorded study, when every file is what it says."""
    manifests = [name for name in contents if name.count("/") == 1 and name.endswith(f"/{MANIFEST}")]
    try:
        manifest = parse_json(contents[manifests[0]].decode())
        name = manifest["study"]
        told = {f"{name}/{file}": digest for file, digest in manifest["files"].items()}
        known = (
            len(manifests) == 1
            and bool(told)
            and all(
                isinstance(manifest[key], str) for key in ("study", "experiment", "finished_at", "commit", "device")
            )
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        known = False
    if not known or not _NAME.fullmatch(name) or name.startswith("."):
        raise InputError(f"{path} is no recorded study (it has no list {MANIFEST}): make one with `make recorded`")
    found = {file: compute_digest(content) for file, content in contents.items() if file not in manifests}
    for file in sorted({*found, *told}):
        if found.get(file) != told.get(file):
            raise InputError(f"{path} is damaged: {file} is not what its list says; fetch it again")
    return dict(manifest)


def describe_recorded(manifest: dict[str, Any]) -> str:
    """Say in one line where a recorded study came from."""
    return (f"the study {manifest['study']} as it was run on {str(manifest['finished_at'])[:10]} "
            f"({manifest['device']}, commit {str(manifest['commit'])[:8]}), without weights")  # fmt: skip
