"""Bad input: exit code 2, one line that names it, nothing left behind; over every argument and every class of badness.

The corpus is `tests/bad_inputs.py`. Each case is a fork of the fork server that the tests have anyway: the command line
as a user runs it, without the seconds that imports take, and with an end where it hangs.
"""

import csv
import json
import os
import select
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from karma.errors import show_line
from karma.study.forks import start_server
from tests.bad_inputs import ARGUMENTS, LINES, Case, build_words, list_cases, write_good
from tests.conftest import ROOT, project_environment

LIMIT_S = 60  # of one command; few take a hundredth of it


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (None: it hung), and what it said."""

    code: int | None
    out: str
    err: str


class Bench:
    """Good things to put beside a bad one, and a way to run the command line."""

    def __init__(self, folder: Path, address: str):
        self.good, self.project, self.work, self.address = folder / "good", folder / "project", folder / "work", address
        self.good.mkdir()
        write_good(self.good)
        self.project.mkdir()
        for name in ("notebooks", "params"):
            shutil.copytree(ROOT / name, self.project / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        (self.project / "karma").symlink_to(ROOT / "karma")
        self.environment = {
            **{name: value for name, value in project_environment(ROOT).items() if name != "KARMA_FORKS"},
            "KARMA_ROOT": str(self.project), "KARMA_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "120",
        }  # fmt: skip

    def run(self, words: list[str], folder: Path, limit_s: float = LIMIT_S) -> Ended:
        paths = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err")]
        environment = {**self.environment, "TMPDIR": str(folder / "tmp")}
        values = {"kind": "cli", "arguments": words, "folder": str(folder), "environment": environment}
        with ExitStack() as stack:
            outputs = [stack.enter_context(path.open("wb")) for path in paths]
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(self.address)
            message = json.dumps(values).encode()
            socket.send_fds(connection, [len(message).to_bytes(8, "big")], [o.fileno() for o in outputs])
            connection.sendall(message)
            code = int(connection.recv(16) or -1) if select.select([connection], [], [], limit_s)[0] else None
        out, err = (path.read_text("utf-8", "replace") for path in paths)
        return Ended(code, out, err)

    def try_case(self, case: Case, number: int) -> list[str]:
        """Run one case; return its faults."""
        folder = self.work / str(number)
        (folder / "tmp").mkdir(parents=True)
        words, value = case.build_words(folder, self.good)
        watched = (folder, self.good, self.project)
        before = [take_stock(place) for place in watched]
        ended = self.run(words, folder)
        after = [take_stock(place) for place in watched]
        shutil.rmtree(folder, ignore_errors=True)
        changed = [
            p for one, two in zip(before, after, strict=True) for p in sorted(set(one.items()) ^ set(two.items()))
        ]
        return list(find_faults(case, value, ended, [str(path) for path, _ in changed]))


def take_stock(folder: Path) -> dict[str, Any]:
    """Return what lies in a folder: kind, size and time of each file."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        found[str(path)] = (state.st_mode, *((state.st_size, state.st_mtime_ns) if path.is_file() else ()))
    return found


def find_faults(case: Case, value: str, ended: Ended, changed: list[str]) -> Iterator[str]:
    """Say what a careful command would not have done."""
    lines = ended.err.splitlines()
    if ended.code is None:
        yield "hung"
        return
    if "Traceback" in ended.err + ended.out:
        yield "a traceback"
    if ended.code == 0:
        if case.must_refuse:
            yield "accepted"
        return
    if ended.code != 2:
        yield f"exit {ended.code}"
    if len(lines) != 1:
        yield f"{len(lines)} lines"
    if any(not c.isprintable() for line in lines for c in line):
        yield "control characters"
    if ended.code == 2 and len(ended.err) > 2000:
        yield "a line without end"
    if ended.out:
        yield "noise on standard output"
    if changed:
        yield f"left behind: {Path(changed[0]).name}"
    option = case.argument.strip("-")
    besides = [str(v).strip("@") for v in case.besides.values() if str(v).startswith("@")]  # the table of a column map
    inside = {
        "items": ["arc_easy"],
        "ifeval items": ["ifeval"],
        "judgments": ["annotations.json"],
        "annotations": ["annotation", "density_ratio"],
    }
    inside = inside.get(case.kind, [])
    inside += [] if value.strip() else ["an argument is empty"]
    shown = show_line(value)  # as errors do
    starts = [shown[-12:], Path(value).name[:12].split("\n")[0], value.split("\n")[0][:12]] if value.strip() else []
    names = [option if len(option) > 1 else "", option.replace("-", "_"), *starts, *besides, *inside, "new\\nline"]
    if not any(name and name in ended.err for name in names):
        yield "does not name it"


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    if sys.platform != "linux":
        pytest.skip("no fork server here: it needs Linux")
    with ExitStack() as stack:
        if "KARMA_FORKS" in os.environ:
            address = os.environ["KARMA_FORKS"]
        else:
            environment = project_environment(ROOT)
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(start_server(environment, nowhere))
            address = environment["KARMA_FORKS"]
        made = Bench(tmp_path_factory.mktemp("bad"), address)
        while not Path(address).exists():
            pass
        folder = made.work / "first"
        (folder / "tmp").mkdir(parents=True)
        made.run(["--help"], folder, 300)  # imports everything
        yield made


def choose_few(cases: list[Case]) -> list[Case]:
    """Return a part in which every class stands once, and every argument."""
    seen: set[Any] = set()
    found = []
    for case in cases:
        marks = {(case.kind, case.badness), (case.command, case.argument)}
        if not marks <= seen:
            seen |= marks
            found.append(case)
    return found


def try_all(bench: Bench, cases: list[Case]) -> dict[str, list[str]]:
    with ThreadPoolExecutor(2) as pool:
        faults = pool.map(bench.try_case, cases, range(len(cases)))
        return {case.name: found for case, found in zip(cases, faults, strict=True)}


@pytest.mark.parametrize("command", [n for n in LINES if n not in ("notebook", "pool", "annotation", "density_ratio",
                                     "cross_evaluation", "reward_evaluation", "selection_evaluation",
                                     "pairwise_evaluation", "models")])  # fmt: skip
def test_the_good_lines_are_good(bench, tmp_path, command):
    """What is refused below is refused for its one bad value."""
    (tmp_path / "tmp").mkdir()
    ended = bench.run(build_words(command, bench.good, {}), tmp_path, 300)
    assert ended.code == 0, ended


def describe(faults: dict[str, list[str]]) -> str:
    bad = [f"{name}: {', '.join(found)}" for name, found in faults.items() if found]
    return "\n".join([f"{len(bad)} of {len(faults)} bad inputs were not refused as they should be", *bad[:40]])


def test_a_part_of_the_corpus(bench):
    """One case of every argument, and the classes that hung, crashed or were accepted once."""
    found = try_all(bench, choose_some(list_cases()))
    assert not any(found.values()), describe(found)


@pytest.mark.corpus
def test_the_whole_corpus(bench):
    found = try_all(bench, list_cases())
    write_matrix(found, ROOT / "outputs" / "bench" / "bad_inputs.csv")
    assert not any(found.values()), describe(found)


def choose_some(cases: list[Case]) -> list[Case]:
    """Return one case of every argument, each of another class as far as there are such."""
    seen: set[str] = set()
    found = []
    for argument in ARGUMENTS:
        own = [c for c in cases if (c.command, c.argument, c.kind) == argument[:3] and c.must_refuse]
        chosen = next((c for c in own if c.badness not in seen), own[0])
        seen.add(chosen.badness)
        found.append(chosen)
    return found


def write_matrix(faults: dict[str, list[str]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["command", "argument", "kind", "badness", "faults"])
        for case in list_cases():
            row = (case.command, case.argument, case.kind, case.badness.rstrip("?"), "; ".join(faults[case.name]))
            table.writerow([repr(cell)[1:-1] for cell in row])


def test_every_argument_of_every_command_is_in_the_corpus():
    """A new option is one line more in `ARGUMENTS`; switches and words that anything may be are listed here."""
    from importlib import import_module

    from karma.cli import COMMANDS, _build

    free = {"--prefer", "--annotator", "--match-rows", "--drop-truthfulqa", "--same-system-prompt", "--strict",
            "--drop-unusable", "--with-paper", "--dry-run", "--help", "--affinity", "--models", "--public", "--open", "--replace"}  # fmt: skip
    alike = {("select", "--revision"), ("train", "--revision"), ("evaluate", "--revision"), ("win-rate", "--revision"),
             ("evaluate", "--descriptive-tokens"), ("win-rate", "--key-env"),
             ("binarize", "--address")}  # fmt: skip
    tried = {(command, argument) for command, argument, *_ in ARGUMENTS}
    for name, file in COMMANDS.items():
        command = _build(name, getattr(import_module(f"karma.commands.{file}"), name.replace("-", "_")))
        for parameter in command.params:
            option = parameter.opts[0]
            if option.startswith("-") and option not in free and (name, option) not in alike:
                assert (name, option) in tried, f"{name} {option} meets no bad input: add it to ARGUMENTS"


# --- settings -------------------------------------------------------------------------------------------------------


def list_settings(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from list_settings(value, (*path, key))
        else:
            yield (*path, key), value


def build_values() -> dict[str, Any]:
    from karma.files.yaml import load_yaml

    return {**load_yaml(ROOT / "params" / "base.yaml"), "scores": {"table": "paper"}}


BAD_NUMBERS = st.one_of(
    st.sampled_from([float("nan"), float("inf"), float("-inf"), -1, -(2**70), 2**70, 10**400, -1.5, 1e308]),
    st.integers(max_value=-1), st.integers(min_value=2**40), st.floats(max_value=-0.001), st.floats(min_value=1e16),
)  # fmt: skip
BAD_ANYTHING = st.one_of(st.binary(min_size=1), st.lists(st.lists(st.integers()), min_size=1),
                         st.dictionaries(st.text(min_size=1), st.none(), min_size=1), st.complex_numbers())  # fmt: skip
BASE = build_values()
SETTINGS = [*list_settings(BASE)]
MAY_BE_NEGATIVE = {"kinship.tau"}  # a cosine


@given(st.sampled_from(SETTINGS), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_setting_takes_what_it_cannot_mean(setting, data):
    """Random bad values of every setting of base.yaml: one line that names the key."""
    from karma.errors import InputError, show_line
    from karma.study.experiment import _validate

    path, usual = setting
    number = isinstance(usual, int | float) and not isinstance(usual, bool)
    value = data.draw(BAD_NUMBERS if number else BAD_ANYTHING)
    if number and ".".join(path) in MAY_BE_NEGATIVE and -1 <= value <= 1:
        return
    values = json.loads(json.dumps(BASE))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InputError) as caught:
        _validate(values, Path("mine.yaml"))
    message = str(caught.value)
    assert path[-1] in message and message.startswith("mine.yaml: ")
    assert show_line(message).isprintable() and len(show_line(message)) <= 1200
