"""What one machine must bear: selection among 50,000 short pairs, and the report of ten seeds x eight strategies.

    python bench/one_machine.py [--pairs 50000] [--seeds 10] [--check]

The policy is a random model of two layers, so that what the kit itself does is seen: selection is set against a tenth
of the pairs, in time and memory; the report (stage 06, the executed notebook) against a minute. The study is made up,
in the files' own formats: 8 strategies x 2 methods x seeds, each with 300 answers a benchmark.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from common import Ratio, conclude, read_options

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the study is written by what writes the tests' studies
GOAL_TIME, GOAL_MEMORY, GOAL_REPORT_S = 12.0, 1.5, 60.0
STRATEGIES = ["rlaif", "k_score", "k_sim", "k_score_sim", "delta", "random", "least_kin", "k_sure"]
N_ANSWERS = 300  # of each benchmark


def run(*words: object) -> tuple[float, float]:
    """Run a command; return its seconds, and its peak memory in MiB."""
    started = time.perf_counter()
    code = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=2).returncode; "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024); sys.exit(done)"
    asked = [sys.executable, "-c", code, sys.executable, "-m", "karma.cli", *map(str, words)]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"karma {words[0]} failed: {done.stderr[-500:]}")
    return time.perf_counter() - started, float(done.stdout)


def write_pairs(folder: Path, n: int) -> None:
    import pyarrow as pa

    from karma.pairs.accounting import Accounting
    from karma.pairs.folder import save_pairs
    from karma.pairs.pairs import PAIR_SCHEMA, PairSet

    rows = [
        {"row_id": f"{k:032x}", "source": "made", "prompt": [{"role": "user", "content": f"Count to {k}."}],
         **{side: [{"role": "assistant", "content": " ".join(f"{k + i}" for i in range(2 + (k * a) % 9))}]
            for side, a in (("chosen", 5), ("rejected", 7))},
         "chosen_model": "a", "rejected_model": "b", "chosen_score": 0.9, "rejected_score": (k % 89) / 100,
         "kinship": 0.5, "strategy": "k_sim", "chosen_id": f"c{k}", "rejected_id": f"r{k}"}
        for k in range(n)
    ]  # fmt: skip
    books = Accounting("k_sim", rows_in=n, pairs_out=n, responses_in=2 * n, responses_usable=2 * n)
    save_pairs(PairSet(pa.Table.from_pylist(rows, PAIR_SCHEMA), books), folder)


def write_policy(folder: Path) -> None:
    from karma.models.load import load_model, load_tokenizer
    from karma.study.sections import ModelSpec

    specs = {"tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=1).model_dump()}
    for part in (load_model(specs, "tiny"), load_tokenizer(specs, "tiny")):
        part.save_pretrained(folder)


def measure_selection(folder: Path, n: int) -> tuple[float, float]:
    pairs = folder / f"pairs{n}"
    write_pairs(pairs, n)
    where = ("--cache", folder / f"cache{n}", "--out", folder / f"selected{n}")
    return run("select", "--pairs", pairs, "--policy", folder / "tiny", "--ratio", 0.4, *where)


def measure_report(folder: Path, n_seeds: int) -> tuple[float, float]:
    from karma.study.experiment import load_experiment
    from karma.study.stages import list_jobs
    from tests import study_files

    study_files.N_ITEMS = N_ANSWERS
    settings = yaml.safe_load((ROOT / "tests" / "study.yaml").read_text("utf-8"))
    settings |= {"name": f"bench-{folder.name}", "seeds": list(range(n_seeds)), "strategies": STRATEGIES}
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in settings.items() if k not in ("potential", "self_play")}))
    experiment = load_experiment(file)
    study_files.write_study(experiment)
    for folder in (path for job in list_jobs(experiment) for path in job.products if not path.suffix):
        folder.mkdir(parents=True, exist_ok=True)  # of weights, which no result reads
    try:
        return run("notebook", "06_results", file)
    finally:
        shutil.rmtree(experiment.outputs)


def main() -> int:
    options = read_options(__doc__, pairs=50_000, seeds=10)
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs", prefix="bench-") as name:
        folder = Path(name)
        write_policy(folder / "tiny")
        few, many = (measure_selection(folder, n) for n in (options.pairs // 10, options.pairs))
        print(
            f"select: {few[0]:.1f} s, {few[1]:.0f} MiB of a tenth; {many[0]:.1f} s, {many[1]:.0f} MiB of all",
            flush=True,
        )
        seconds, peak = measure_report(folder, options.seeds)
    print(f"report of {options.seeds} seeds x {len(STRATEGIES)} strategies: {seconds:.1f} s, {peak:.0f} MiB")
    found = [
        Ratio("select: ten times the pairs, time", many[0] / few[0], GOAL_TIME),
        Ratio("select: ten times the pairs, memory", many[1] / few[1], GOAL_MEMORY),
        Ratio("report / a minute", seconds / GOAL_REPORT_S, 1.0),
    ]
    return conclude(found, options.check)


if __name__ == "__main__":
    sys.exit(main())
