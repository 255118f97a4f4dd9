"""Evaluation against lm-evaluation-harness's own `hf` backend, on the same items in the same run.

    python bench/evaluation.py [--items 24] [--tokens 128] [--threads 2] [--check]

SmolLM2-135M-Instruct answers the demo's items of all six benchmarks, on the CPU. In float32 with the same fixed batches
the answers must be the same, item by item, and no slower (0.95, for the clock's noise); in the precision the kit picks
on this CPU and the demo's batches of 32, at least twice as many items a second as that backend in float32 at batch 16,
with the share of answers that changed printed beside it. Asked as cloze in float32, options in one row must be twice as
fast as that backend, which gives each option a row of its own; the largest difference of a log-probability is printed.
Each way is warmed up on one batch; rounds take turns, so that a busy machine hurts all alike; the best round counts.
CPU seconds are printed too: on a shared machine they say more.
"""

import sys
import time

from common import Ratio, conclude, read_options

BENCHMARKS = ("arc_easy", "arc_challenge", "hellaswag", "mmlu_stem", "mmlu_pro", "ifeval")
GOAL_SAME_DTYPE, GOAL_PICKED_DTYPE, GOAL_OPTIONS = 0.95, 2.0, 2.0
BATCH, DEMO_BATCH = 16, 32  # prompts


def build_requests(model, benchmark: str, n_items: int, n_tokens: int) -> list:
    from lm_eval.api.instance import Instance

    from karma.evaluation.answers import write_prompt
    from karma.evaluation.items import load_items
    from karma.files.places import find_project_root

    items = load_items(benchmark, find_project_root() / "karma" / "data" / "demo", n_items)
    settings = {"until": [], "do_sample": False, "max_gen_toks": n_tokens}
    chats = [[{"role": "user", "content": write_prompt(benchmark, item)}] for item in items]
    return [
        Instance("generate_until", {}, (model.apply_chat_template(chat), dict(settings)), k, (benchmark, k, 1))
        for k, chat in enumerate(chats)
    ]


def build_comparisons(benchmark: str, n_items: int) -> list:
    from lm_eval.api.instance import Instance

    from karma.evaluation.items import load_items
    from karma.evaluation.protocol import write_bare_context, write_cloze_context
    from karma.files.places import find_project_root

    items = load_items(benchmark, find_project_root() / "karma" / "data" / "demo", n_items)
    write = write_bare_context if benchmark == "hellaswag" else write_cloze_context
    return [Instance("loglikelihood", item, (write(item), f" {option}"), k, (benchmark, number, 1))
            for number, item in enumerate(items) for k, option in enumerate(item["options"])]  # fmt: skip


def measure_options(ways: dict, n_items: int, rounds: int) -> float:
    """Return how many times as fast options in one row are."""
    requests = [build_comparisons(name, n_items) for name in BENCHMARKS if name != "ifeval"]
    seconds, logps = {name: [] for name in ways}, {}
    for number in range(rounds + 1):
        for name, model in ways.items():
            started = time.perf_counter()
            compared = [pair for some in requests[: len(requests) if number else 1]
                        for pair in model.loglikelihood(some, disable_tqdm=True)]  # fmt: skip
            if number:  # the first round is a warm-up on one benchmark
                seconds[name].append(time.perf_counter() - started)
                logps[name] = [logp for logp, _ in compared]
    base, ours = ways
    for name, took in seconds.items():
        print(f"cloze, {name}: {len(requests) * n_items / min(took):.2f} items/s")
    difference = max(abs(a - b) for a, b in zip(logps[base], logps[ours], strict=True))
    print(f"cloze: log-probabilities of {len(logps[base])} options differ by at most {difference:.1e} nats")
    return min(seconds[base]) / min(seconds[ours])


def build_ways(threads: int) -> dict:
    """Return name -> model: the harness's own in float32, ours in float32, ours in the precision picked here."""
    from lm_eval.models.huggingface import HFLM

    from karma.commands.options import replace_options
    from karma.models.ask import CachedModel
    from karma.models.load import choose_dtype, load_model, load_tokenizer
    from karma.study.experiment import load_base
    from karma.study.sections import ModelSpec

    name = "smollm2-135m"
    models = {name: ModelSpec(packaged=name).model_dump()}
    ways = {
        f"ours {dtype} batch {batch}": CachedModel(
            models, name, replace_options(load_base().compute, device="cpu", dtype=dtype, threads=threads), batch
        )
        for dtype, batch in (("float32", BATCH), (choose_dtype("auto", "cpu"), DEMO_BATCH))
    }
    theirs = HFLM(pretrained=load_model(models, name), tokenizer=load_tokenizer(models, name), backend="causal",
                  batch_size=BATCH)  # fmt: skip
    return {f"lm-eval hf float32 batch {BATCH}": theirs, **ways}


def measure(model, requests: dict[str, list]) -> tuple[float, float, list[str]]:
    """Return seconds by the clock and of CPU, and the answers to all benchmarks, asked one after the other."""
    started, cpu_started = time.perf_counter(), time.process_time()
    answers = [text for some in requests.values() for text in model.generate_until(some, disable_tqdm=True)]
    return time.perf_counter() - started, time.process_time() - cpu_started, answers


def main() -> int:
    options = read_options(__doc__, items=24, tokens=128, threads=2, rounds=2)
    import torch

    torch.set_num_threads(options.threads)
    ways = build_ways(options.threads)
    ours = ways[f"ours float32 batch {BATCH}"]
    requests = {name: build_requests(ours, name, options.items, options.tokens) for name in BENCHMARKS}
    for model in ways.values():
        model.generate_until(build_requests(ours, "arc_easy", BATCH, 4), disable_tqdm=True)
    seconds, answers = {name: [] for name in ways}, {}
    for _ in range(options.rounds):
        for name, model in ways.items():
            took, cpu, answers[name] = measure(model, requests)
            seconds[name].append((took, cpu))
    theirs = ways[f"lm-eval hf float32 batch {BATCH}"]
    options_ways = {"lm-eval hf, a row an option": theirs, "ours, options in one row": ours}
    compared = measure_options(options_ways, options.items, options.rounds)
    return compare({name: min(both) for name, both in seconds.items()}, answers, compared, options.check)


def compare(
    seconds: dict[str, tuple[float, float]], answers: dict[str, list[str]], compared: float, check: bool
) -> int:
    base, same, picked = seconds
    n = len(answers[base])
    for name, (took, cpu) in seconds.items():
        changed = sum(a != b for a, b in zip(answers[name], answers[base], strict=True))
        differ = f"{changed} of {n} answers differ from {base} ({changed / n:.1%})"
        print(f"{name}: {n / took:.2f} items/s ({cpu:.0f} CPU s), {differ}")
    equal = sum(a == b for a, b in zip(answers[same], answers[base], strict=True)) / n
    speed = {name: seconds[base][0] / seconds[name][0] for name in seconds}
    ratios = (
        ("equal answers, ours / lm-eval hf, float32", equal, 1.0),
        ("items per second, ours / lm-eval hf, float32", speed[same], GOAL_SAME_DTYPE),
        (f"items per second, {picked} / lm-eval hf float32", speed[picked], GOAL_PICKED_DTYPE),
        ("cloze items per second, options in one row / lm-eval hf, a row an option", compared, GOAL_OPTIONS),
    )
    return conclude([Ratio(*one, at_least=True) for one in ratios], check)


if __name__ == "__main__":
    sys.exit(main())
