"""The audit of recorded judgments against three minutes and 2 GiB: 60 made-up models, 805 prompts, AlpacaEval's layout.

python bench/audit_labels.py [--models 60] [--prompts 805] [--check]
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import Ratio, conclude, read_options

GOAL_S, GOAL_GIB = 180.0, 2.0
BENCHMARKS = ("ifeval", "mmlu_stem", "mmlu_pro", "hellaswag", "arc_easy", "arc_challenge")


def write_source(folder: Path, n_models: int, n_prompts: int) -> None:
    rng = np.random.default_rng(0)
    ability = rng.random(n_models)
    scores = np.clip(ability[:, None] + 0.1 * rng.normal(size=(n_models, len(BENCHMARKS))), 0, 1)
    rows = [f"model-{m}," + ",".join(f"{v:.4f}" for v in own) for m, own in enumerate(scores)]
    (folder / "scores.csv").write_text("\n".join([f"origin_model,{','.join(BENCHMARKS)}", *rows]))
    for m in range(n_models):
        values = 1 + 1 / (1 + np.exp(-(6 * ability[m] - 4 + rng.normal(size=n_prompts))))
        text = "word " * 100
        answers = [
            {"instruction": f"prompt {p}", "output": text[: 50 + int(rng.integers(400))]} for p in range(n_prompts)
        ]
        judged = [
            {"instruction": f"prompt {p}", "preference": float(v)} for p, v in enumerate(values) if rng.random() > 1e-3
        ]
        target = folder / "results" / f"model-{m}" / "weighted_alpaca_eval_gpt4_turbo"
        target.mkdir(parents=True)
        (target / "annotations.json").write_text(json.dumps(judged))
        (target.parent / "model_outputs.json").write_text(json.dumps(answers))


def main() -> int:
    from karma.commands.audit_labels import run_audit_labels

    options = read_options(__doc__, models=60, prompts=805)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder, options.models, options.prompts)
        started = time.perf_counter()
        told = list(run_audit_labels(str(folder), str(folder / "scores.csv"), folder / "out", None, 0.02, None, 0, 0.1,
                                     None, "overall_score", None))  # fmt: skip
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("\n".join(told[:4]))
    print(f"{options.models} models x {options.prompts} prompts: {seconds:.1f} s, peak {peak:.2f} GiB")
    found = [Ratio("audit / three minutes", seconds / GOAL_S, 1), Ratio("peak memory / 2 GiB", peak / GOAL_GIB, 1)]
    return conclude(found, options.check)


if __name__ == "__main__":
    sys.exit(main())
