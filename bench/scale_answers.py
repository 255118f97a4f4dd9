"""Answers at scale: what keeping them costs beside the work, and judge calls a second by one and two of Ray's workers.

    python bench/scale_answers.py [--calls 256] [--check]

The judge is SmolLM2-135M-Instruct on the CPU in float32, one thread a worker, asked which of two responses is better,
as `karma win-rate` asks. Bookkeeping is all that a store does for 1,000 prompts (claims, journal with its syncs,
sealing, digests, reading back in another process's place), answered in batches of 16 by nothing; it is set against the
judge's seconds for as many calls in this process. The calls a second at which bookkeeping would reach 2 % are printed
too: a GPU is faster than this judge.
Ray's workers are on a cluster of one and of two nodes on this machine, each of one CPU, and have answered before the
clock starts, so that starting them and loading the model do not count.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from common import Ratio, conclude, read_options

GOAL_BOOKS, GOAL_WORKERS = 0.02, 1.5
MODEL = "smollm2-135m"
N_KEPT, BATCH = 4000, 16  # prompts
WORDS = "A response of about as many words as people give to a short question, with a reason and an example. "


def measure_books() -> float:
    """Return the seconds that a store takes for 1,000 prompts, answered by nothing and read back."""
    from karma.files.reading import compute_digest
    from karma.models.shards import Piece, answer_here, cut_shards
    from karma.models.store import AnswerStore

    class Nothing:
        def load(self) -> None:
            pass

        def ask(self, piece: Piece, advance: object) -> dict:
            return {**piece.asked, "answers": piece.asked["prompts"], "cost": {"seconds": 0.1}}

    prompts = [[f"{k} {i} {6 * WORDS}" for i in range(BATCH)] for k in range(N_KEPT // BATCH)]
    batches = [[Piece(compute_digest(some), {"prompts": some, "settings": {}}, BATCH)] for some in prompts]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for _ in range(2):  # made, then read
            for _ in answer_here(Nothing(), AnswerStore(Path(folder)), cut_shards(batches)):
                pass
        return (time.perf_counter() - started) / N_KEPT * 1000


def build_questions(model: object, first: int, n: int) -> list:
    from lm_eval.api.instance import Instance

    from karma.labels.pairwise import JUDGE_PROMPT

    requests = []
    for k in range(first, first + n):
        text = JUDGE_PROMPT.format(prompt=f"Say {k}.", first=f"{2 * WORDS}{k}", second=f"{WORDS}{k}")
        context = model.apply_chat_template([{"role": "user", "content": text}])
        requests += [Instance("loglikelihood", {}, (context, option), 0, ("judge", k, 1)) for option in (" A", " B")]
    return requests


def measure_calls(n: int, folder: str, **where: object) -> float:
    """Return judge calls a second, after as many as start all workers."""
    from karma.models.ask import CachedModel
    from karma.study.experiment import load_base
    from karma.study.sections import ModelSpec

    compute = load_base().compute.model_copy(update={"device": "cpu", "dtype": "float32", "threads": 1, **where})
    model = CachedModel({MODEL: ModelSpec(packaged=MODEL).model_dump()}, MODEL, compute, BATCH, Path(folder))
    model.loglikelihood(build_questions(model, 0, 4 * BATCH), disable_tqdm=True)
    started = time.perf_counter()
    model.loglikelihood(build_questions(model, 4 * BATCH, n), disable_tqdm=True)
    return n / (time.perf_counter() - started)


def measure_workers(n: int) -> dict[int, float]:
    """Return number of Ray's workers -> judge calls a second."""
    os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # workers as urgent as this process
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(cluster.address, log_to_driver=False)
    rates = {}
    try:
        for n_workers in (1, 2):
            if n_workers == 2:
                cluster.add_node(num_cpus=1)
            with tempfile.TemporaryDirectory() as folder:
                rates[n_workers] = measure_calls(n, folder, engine="ray", address=cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return rates


def main() -> int:
    options = read_options(__doc__, calls=256)
    with tempfile.TemporaryDirectory() as folder:
        local = measure_calls(options.calls, folder)
    books = measure_books()
    share = books * local / 1000
    print(
        f"judge calls a second: {local:.2f} in this process; bookkeeping: {books:.3f} s for 1,000 prompts", flush=True
    )
    print(f"bookkeeping reaches 2 % of the work at {GOAL_BOOKS * 1000 / books:.0f} calls a second of one worker")
    ratios = [Ratio("shard bookkeeping / the work", share, GOAL_BOOKS, form=".4g")]
    try:
        rates = measure_workers(options.calls)
    except ModuleNotFoundError:
        print("Ray's workers were not measured: pip install 'karma-kit[cluster]'")
    else:
        for n_workers, rate in rates.items():
            print(f"judge calls a second: {rate:.2f} by {n_workers} of Ray's workers")
        gain = rates[2] / rates[1]
        ratios.append(Ratio("judge calls a second, 2 of Ray's workers / 1", gain, GOAL_WORKERS, True, ".4g"))
    return conclude(ratios, options.check)


if __name__ == "__main__":
    sys.exit(main())
