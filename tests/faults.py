"""`make faults`: kill what the kit does, hundreds of times, and compare what comes out with what was never killed.

A target is a command with the files that it makes. It runs once undisturbed. Then, over and over: it is started, hit by
a signal at a random moment, and looked at: is a process left, ten seconds later, is something under the output's name
that is not whole? After a few hits it runs to its end, and what it made must be that of the undisturbed run, with no
hidden folder and no foreign file beside it. The seed is printed; the figures go to outputs/bench/faults.json.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from karma.files.reading import compute_file_digest
from karma.files.writing import save_json
from karma.models.load import load_model, load_tokenizer
from karma.pairs.build import build_pairs
from karma.pairs.folder import save_pairs
from karma.pool.pool import load_pool
from karma.scores.read import load_score_table
from karma.study.sections import ModelSpec
from tests.conftest import ROOT, copy_project, plain_environment

SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
CLOCKS = (
    "seconds",
    "train_seconds",
    "core_seconds",
    "finished_at",
    "prompt_tokens_per_s",
    "tokens_per_s",
    "started_at",
    "cost",
    "prompt_tokens",  # and who of two that ask the same asked first
    "new_tokens",
    "n_asked",
    "n_cached",
    "resumed_at",  # of a training that went on: what it became is compared
)


@dataclass
class Target:
    """A command that is killed.

    Attributes:
        name: of the command. folder: in which it runs. arguments: of `karma`.
        outputs: what it makes, relative to `folder`. sweep: a study, which keeps what its jobs finished.
        whole: what the undisturbed run made. took_s: it.
    """

    name: str
    folder: Path
    arguments: list[str]
    outputs: Path
    sweep: bool = False
    whole: dict[str, str] = field(default_factory=dict)
    took_s: float = 0.0

    def start(self, mark: str) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own; all that it starts carries `mark` in its environment."""
        environment = {**plain_environment(self.folder), "KARMA_FAULT": mark, "KARMA_CACHE": str(self.folder / "cache")}
        return subprocess.Popen([sys.executable, "-m", "karma.cli", *self.arguments], cwd=self.folder, env=environment,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip

    def read(self) -> dict[str, str]:
        """Return a digest of each file that it made, of JSON files without what a clock says."""
        place = self.folder / self.outputs
        files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        if self.sweep:
            kept = ("pairs.parquet", "accounting.json", "scores.json", "s_pref.csv", "kinship.csv")
            files = [p for p in files if p.name in kept]
        return {str(p.relative_to(self.folder)): _digest(p) for p in files if p.is_file()}


def _digest(path: Path) -> str:
    if path.suffix == ".json":
        return json.dumps(_without_clocks(json.loads(path.read_text())), sort_keys=True)
    return compute_file_digest(path)


def _without_clocks(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_clocks(v) for k, v in value.items() if k not in CLOCKS}
    return [_without_clocks(v) for v in value] if isinstance(value, list) else value


def find_left(mark: str) -> list[psutil.Process]:
    """Return the processes at work that carry a mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("KARMA_FAULT") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def hit(target: Target, generator: random.Random, tally: Counter[tuple[str, str, str]]) -> None:
    """Start a target, send it a signal at a random moment of its time, and look at what is left."""
    name = generator.choice(SIGNALS)
    mark = f"{target.name}-{generator.random()}"
    process = target.start(mark)
    try:
        span = target.took_s / 2 if target.sweep else target.took_s  # what a killed sweep finished is not done again
        process.wait(generator.uniform(0.05, max(span, 1.0)))
        tally[target.name, name, "ended before"] += 1
        return
    except subprocess.TimeoutExpired:
        process.send_signal(signal.Signals[name])
    tally[target.name, name, "hits"] += 1
    try:
        _, errors = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        tally[target.name, name, "not ended after 10 s"] += 1
        process.kill()
        _, errors = process.communicate()
    if b"Traceback" in errors:  # Python's own, where Ctrl-C meets its start or the first imports, before `main`
        began = re.search(rb'/karma/cli\.py", line \d+, in main\n', errors) is not None
        tally[target.name, name, "traceback" if began else "before it began"] += 1
        print(errors.decode()[-1500:] if began else f"{target.name}: hit before it began", flush=True)
    deadline = time.monotonic() + 10
    while (left := find_left(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left and not (target.sweep and name == "SIGKILL"):  # which a sweep cannot hear: its next run ends them
        tally[target.name, name, "orphans"] += 1
        print(f"{target.name} {name}: at work after 10 s: {left}", flush=True)
    for one in left if not target.sweep else ():
        with suppress(psutil.NoSuchProcess):  # it ended by itself, late
            one.kill()
    if not target.sweep and (target.folder / target.outputs).exists() and not _is_part(target):
        tally[target.name, name, "half"] += 1
        print(f"{target.name} {name}: what lies under {target.outputs} is not whole", flush=True)


def _is_part(target: Target) -> bool:
    """Tell whether each file that is there is the undisturbed run's: a training's folder grows file by file."""
    return all(target.whole.get(name) == value for name, value in target.read().items() if name in target.whole)


def finish(target: Target, tally: Counter[tuple[str, str, str]]) -> None:
    """Let a target run to its end; compare."""
    process = target.start(f"{target.name}-last")
    _, errors = process.communicate()
    if process.returncode:
        tally[target.name, "-", "cannot go on"] += 1
        print(f"{target.name}: exit {process.returncode}: {errors.decode()[-600:]}", flush=True)
    made = target.read()
    if made != target.whole:
        tally[target.name, "-", "differs"] += 1
        names = [k for k in {*made, *target.whole} if made.get(k) != target.whole.get(k)]
        print(f"{target.name}: differs from the undisturbed run: {names[:5]}", flush=True)
        for name in (name for name in names if name.endswith(".json")):
            one, other = (json.loads(files.get(name, "null")) for files in (target.whole, made))
            if isinstance(one, dict) and isinstance(other, dict):
                odd = {k: (one.get(k), other.get(k)) for k in {*one, *other} if one.get(k) != other.get(k)}
                print(f"    {name}: {str(odd)[:1000]}", flush=True)
    place = target.folder / target.outputs
    hidden = [p for p in place.parent.iterdir() if p.name.startswith(f".{place.name}.")]
    if hidden:
        tally[target.name, "-", "hidden folders left"] += len(hidden)
        print(f"{target.name}: left behind: {[p.name for p in hidden]}", flush=True)
    tally[target.name, "-", "finished"] += 1
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def work_on(target: Target, n_hits: int, seed: int, until: float) -> Counter[tuple[str, str, str]]:
    """Hit a target until it has had its hits or the time is over, with an undisturbed end after every few of them."""
    tally: Counter[tuple[str, str, str]] = Counter()
    generator = random.Random(f"{seed}-{target.name}")
    target.start("first").communicate()  # what Python compiles is there
    shutil.rmtree(target.folder / target.outputs, ignore_errors=True)
    began = time.monotonic()
    process = target.start("whole")
    _, errors = process.communicate()
    target.took_s = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"{target.name} does not run: {errors.decode()[-1000:]}")
    target.whole = target.read()
    shutil.rmtree(target.folder / target.outputs)
    done = 0
    while done < n_hits and time.monotonic() < until:
        for _ in range(generator.randint(2, 6)):
            hit(target, generator, tally)
            done = sum(count for (_, _, what), count in tally.items() if what == "hits")
        finish(target, tally)
    print(f"{target.name}: {done} hits, {target.took_s:.0f} s undisturbed", flush=True)
    return tally


def write_inputs(folder: Path) -> dict[str, list[str]]:
    """Write a pool of 200,000 prompts, a small one's pairs and a tiny model; return each command's arguments."""
    folder.mkdir(parents=True)
    models = ("gpt-4", "bard", "alpaca-7b", "starchat")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

    def make_rows(n: int) -> list[dict[str, object]]:
        return [{"source": "made", "instruction": f"Count to {i}.", "completions": [
                {"model": m, "response": f"{m} says {' '.join(words[: 1 + (i * k) % 9])} {i}"} for k, m in enumerate(models)]}
                for i in range(n)]  # fmt: skip

    pq.write_table(pa.Table.from_pylist(make_rows(200_000)), folder / "pool.parquet", row_group_size=10_000)
    save_pairs(
        build_pairs(load_pool(make_rows(200)), load_score_table("paper"), "k_score", tau=0.1, seed=0), folder / "pairs"
    )
    specs = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=1).model_dump()}
    for part in (load_model(specs, "tiny"), load_tokenizer(specs, "tiny")):
        part.save_pretrained(folder / "tiny")
    pairs, tiny = str(folder / "pairs"), str(folder / "tiny")
    asked = ["--benchmark", "arc_easy", "--benchmark-data", "karma/data/demo", "--choice-tokens", "8"]
    return {
        "binarize": ["binarize", "--pool", str(folder / "pool.parquet"), "--scores", "paper", "--strategy", "k_sim"],
        "train": ["train", "--pairs", pairs, "--policy", tiny, "--method", "dpo", "-p", "warmup_steps=0"],
        "select": ["select", "--pairs", pairs, "--policy", tiny, "--ratio", "0.4", "--cache", "cache"],
        "evaluate": ["evaluate", "--model", tiny, *asked, "--cache", "cache"],
        "report": ["report", "paper"],
    }


def list_targets(folder: Path) -> list[tuple[Target, float]]:
    """Return the targets, each in a project of its own, with its share of the hits."""
    # More than one in sum: on two cores a sweep takes minutes, and the hour ends before it has had its share.
    shares = {"sweep": 0.13, "binarize": 0.3, "train": 0.16, "select": 0.17, "evaluate": 0.18, "report": 0.16}
    arguments, targets = write_inputs(folder / "inputs"), []
    for name, share in shares.items():
        project = copy_project(folder / name)
        out = Path("outputs") / ("smoke" if name == "sweep" else name)
        given = ["run", "params/smoke.yaml"] if name == "sweep" else [*arguments[name], "--out", str(out)]
        targets.append((Target(name, project, given, out, sweep=name == "sweep"), share))
    return targets


def main() -> None:
    """Run `make faults`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", help="one target's name")
    asked = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, and a shell's background, ignore these, and what is started
    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here would, too
    print(f"seed {asked.seed}", flush=True)
    until = time.monotonic() + asked.minutes * 60
    work: list[Callable[[], Counter[tuple[str, str, str]]]] = []
    with tempfile.TemporaryDirectory(prefix="karma-faults-") as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        for target, share in list_targets(Path(folder)):
            if asked.only in (None, target.name):
                n = round(asked.kills * (1 if asked.only else share))
                work.append(lambda target=target, n=n: work_on(target, n, asked.seed, until))
        tally = sum((future.result() for future in [pool.submit(one) for one in work]), Counter())
    rows = [{"target": t, "signal": s, "what": w, "n": n} for (t, s, w), n in sorted(tally.items())]
    save_json({"seed": asked.seed, "rows": rows}, ROOT / "outputs" / "bench" / "faults.json")
    hits = sum(row["n"] for row in rows if row["what"] == "hits")
    wrong = [row for row in rows if row["what"] not in ("hits", "ended before", "finished", "before it began")]
    for row in rows:
        print(f"{row['target']:<10} {row['signal']:<8} {row['what']:<24} {row['n']}")
    print(f"{hits} kills, {sum(row['n'] for row in wrong)} violations")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
