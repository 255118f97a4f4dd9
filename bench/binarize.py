"""Binarization against merely reading and writing the same bytes, in the same run.

    python bench/binarize.py [--rows 64000] [--check]

Lengths follow UltraFeedback: prompts of about 60 tokens (99 % below 496), responses of
about 200 (99 % below 888).
Every measurement runs in a process of its own, so that one's memory is not another's.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import Ratio, conclude, read_options

MODELS = [
    "gpt-4",
    "gpt-3.5-turbo",
    "bard",
    "llama-2-7b-chat",
    "llama-2-13b-chat",
    "llama-2-70b-chat",
    "ultralm-13b",
    "wizardlm-7b",
    "wizardlm-13b",
    "wizardlm-70b",
    "vicuna-33b",
    "alpaca-7b",
    "falcon-40b-instruct",
    "mpt-30b-chat",
    "starchat",
    "ultralm-65b",
]
STRATEGIES = ["rlaif", "k_score", "k_sim", "k_score_sim", "delta", "random", "least_kin"]
RULES = {"tau": 0.1, "seed": 0, "excluded_origin_models": ["ultralm-65b"]}
GOALS = {"one strategy": 2.0, "all strategies": 3.0, "plain loop": 1.0, "memory": 1.3}
CHUNK = 8000


def make_pool(path: Path, n_rows: int) -> None:
    """Write a pool of word salad with UltraFeedback's shape and lengths (4 bytes a token)."""
    dice = np.random.default_rng(0)
    words = np.array([bytes(dice.integers(97, 123, n).tolist()).decode() for n in dice.integers(2, 11, 20_000)])
    ocean = " ".join(words[dice.zipf(1.3, 3_000_000) % len(words)])
    kind = pa.struct(
        [
            ("model", pa.string()),
            ("custom_system_prompt", pa.string()),
            ("response", pa.string()),
            ("critique", pa.string()),
            ("overall_score", pa.float64()),
        ]
    )
    schema = pa.schema([("source", pa.string()), ("instruction", pa.string()), ("completions", pa.list_(kind))])

    def cut(n: int, median: float, p99: float) -> pa.Array:
        lengths = (4 * median * np.exp(dice.normal(size=n) * np.log(p99 / median) / 2.326)).astype(int).clip(4, 100_000)
        starts = dice.integers(0, len(ocean) - 100_000, n)
        return pa.array([ocean[a : a + k] for a, k in zip(starts.tolist(), lengths.tolist(), strict=True)])

    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, n_rows, CHUNK):
            n = min(CHUNK, n_rows - start)
            models = np.argsort(dice.random((n, len(MODELS))), axis=1)[:, :4].ravel()
            columns = [
                pa.array(MODELS).take(pa.array(models)),
                cut(4 * n, 20, 40),
                cut(4 * n, 200, 888),
                cut(4 * n, 150, 400),
                pa.array(dice.integers(1, 11, 4 * n).astype(float)),
            ]
            flat = pa.StructArray.from_arrays(columns, fields=list(kind))
            nested = pa.ListArray.from_arrays(pa.array(np.arange(0, 4 * n + 1, 4, dtype=np.int32)), flat)
            writer.write_table(pa.Table.from_arrays([pa.repeat("sharegpt", n), cut(n, 60, 496), nested], schema=schema))


def binarize(pool: Path, out: Path, strategies: list[str]) -> None:
    from karma.pairs.build import save_pair_sets
    from karma.pool.pool import load_pool
    from karma.scores.read import load_score_table

    save_pair_sets(load_pool(pool), load_score_table("paper"), {s: out / s for s in strategies}, **RULES)


def read_and_write(pool: Path, out: Path, strategies: list[str]) -> None:
    """The floor: read the columns that binarization reads, write the tables that it wrote."""
    leaves = [f"completions.list.element.{k}" for k in ("model", "response", "custom_system_prompt", "overall_score")]
    for _ in pq.ParquetFile(pool).iter_batches(4096, columns=["source", "instruction", *leaves]):
        pass
    for strategy in strategies:
        source = pq.ParquetFile(out / strategy / "pairs.parquet")
        tables = TABLES[strategy]
        with pq.ParquetWriter(out / f"{strategy}.again.parquet", source.schema_arrow) as writer:
            for table in tables:
                writer.write_table(table)


TABLES: dict[str, list] = {}


def loop_over_rows(pool: Path, out: Path, strategies: list[str]) -> None:
    """What one writes first: Python dictionaries, row by row."""
    from itertools import combinations

    from karma.kinship.similarity import compute_kinship
    from karma.scores.names import canonical_model_name
    from karma.scores.normalise import compute_s_pref
    from karma.scores.read import load_score_table

    scores = load_score_table("paper")
    s_pref = {canonical_model_name(k): v for k, v in compute_s_pref(scores).items()}
    kinship = compute_kinship(scores).rename(index=canonical_model_name, columns=canonical_model_name).stack().to_dict()
    rows = []
    for batch in pq.ParquetFile(pool).iter_batches(4096):
        for row in batch.to_pylist():
            answers = [c for c in row["completions"] if c["model"] in s_pref and c["response"].strip()]
            pairs = [p for p in combinations(answers, 2) if kinship[p[0]["model"], p[1]["model"]] >= RULES["tau"]]
            if not pairs:
                continue
            pair = max(pairs, key=lambda p: kinship[p[0]["model"], p[1]["model"]])
            chosen, rejected = sorted(pair, key=lambda c: -s_pref[c["model"]])
            rows.append({
                "prompt": [{"role": "user", "content": row["instruction"]}],
                "chosen": [{"role": "assistant", "content": chosen["response"]}],
                "rejected": [{"role": "assistant", "content": rejected["response"]}],
                "chosen_model": chosen["model"], "rejected_model": rejected["model"],
            })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), out / "loop.parquet")


def measure(work, *args) -> dict[str, float]:
    """Run in a fresh process; return seconds and peak memory in MiB."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, work, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _report(sender, work, args) -> None:
    import karma.pairs  # noqa: F401 - imports are not what is measured
    from karma.scores.read import load_score_table

    load_score_table("paper")

    if work is read_and_write:
        for strategy in args[2]:
            TABLES[strategy] = list(pq.ParquetFile(args[1] / strategy / "pairs.parquet").iter_batches(4096))
            TABLES[strategy] = [pa.Table.from_batches([b]) for b in TABLES[strategy]]
    start = time.perf_counter()
    work(*args)
    seconds = time.perf_counter() - start
    sender.send({"seconds": seconds, "peak_mib": _read_peak_mib()})


def _read_peak_mib() -> float:
    """Return this process's own peak; getrusage would report its parent's where that was larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def best_of(n: int, work, *args) -> dict[str, float]:
    return min((measure(work, *args) for _ in range(n)), key=lambda m: m["seconds"])


def main() -> int:
    options = read_options(__doc__, rows=64_000, repeats=2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pool(folder / "pool.parquet", options.rows)
        make_pool(folder / "large.parquet", 10 * options.rows)
        n = options.repeats
        one = best_of(n, binarize, folder / "pool.parquet", folder, ["k_sim"])
        floor = best_of(n, read_and_write, folder / "pool.parquet", folder, ["k_sim"])
        every = best_of(n, binarize, folder / "pool.parquet", folder, STRATEGIES)
        floor_all = best_of(n, read_and_write, folder / "pool.parquet", folder, STRATEGIES)
        loop = measure(loop_over_rows, folder / "pool.parquet", folder, ["k_sim"])
        large = measure(binarize, folder / "large.parquet", folder, ["k_sim"])
    ratios = {
        "one strategy": one["seconds"] / floor["seconds"],
        "all strategies": every["seconds"] / floor_all["seconds"],
        "plain loop": one["seconds"] / loop["seconds"],
        "memory": large["peak_mib"] / one["peak_mib"],
    }
    print(json.dumps({"rows": options.rows, "one": one, "floor": floor, "all": every, "floor_all": floor_all,
                      "loop": loop, "ten_times_the_rows": large}))  # fmt: skip
    return conclude([Ratio(f"binarize: {what}", value, GOALS[what]) for what, value in ratios.items()], options.check)


if __name__ == "__main__":
    sys.exit(main())
