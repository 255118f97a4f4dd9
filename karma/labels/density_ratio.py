"""The labeller density_ratio: what a strong model favours over a weak one, by the log-probabilities of both.

A response y to a prompt x scores ln pi_strong(y|x) - ln pi_weak(y|x), in nats, each log-probability summed over the
tokens of the response in its model's own chat format, the end of the turn included (`karma.models.logprobs`). The pair
of a prompt is then made of these scores as rlaif's is of annotations (`karma.strategies.choose_by_annotation`).
Decision: the sum, as the method defines it, not the mean a token: the ratio is of probabilities of the whole text.
Limit: a sum grows with length, so that its sign and size hang on how long a response is; two models of other
tokenisers are compared all the same, since both give the probability of the same text. A prompt that fills
`training.max_length` leaves no response to score, and one that is cut there is scored as far as it goes.

Paper: Dr.SoW (arXiv 2411.02481); here two models of the user's choice, without its prompt tuning.
"""

import gc
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from karma.files.writing import atomic_path, save_json
from karma.models.load import Specs, choose_device, choose_dtype, load_model, load_tokenizer
from karma.models.logprobs import choose_pass_tokens, compute_side_logps, tokenize_row
from karma.pool.responses import list_responses
from karma.study.sections import Compute

Row = dict[str, str]


def score_densities(
    rows: Sequence[Row], models: Specs, strong: str, weak: str, compute: Compute, max_length: int
) -> tuple[pa.Table, dict[str, Any]]:
    """Score each response by how much likelier it is under a strong model than under a weak one.

    Args:
        rows: dictionaries with row_id, response_id, model, instruction, response; those of a row_id share it.
        models: name -> specification. strong, weak: which two of them are asked.
        compute: the experiment's `compute`. max_length: tokens of prompt and response kept, from the start.

    Returns:
        A table (row_id, response_id, model, score, logps_strong, logps_weak) in nats, null where no token of a response
        is left; and what it cost (responses, forward tokens, seconds).
    """
    started, device = time.perf_counter(), choose_device(compute.device)
    torch.set_num_threads(compute.threads)
    found: dict[str, list[float | None]] = {}
    n_tokens = 0
    for role, name in (("strong", strong), ("weak", weak)):
        found[role], asked = _ask(rows, models, name, compute, device, max_length)
        n_tokens += asked
        gc.collect()  # one model at a time
    scores = [None if one is None or other is None else one - other for one, other in zip(*found.values(), strict=True)]
    columns = {key: [row[key] for row in rows] for key in ("row_id", "response_id", "model")}
    numbers = {"score": scores, **{f"logps_{role}": values for role, values in found.items()}}
    table = pa.table({**columns, **{key: pa.array(values, pa.float64()) for key, values in numbers.items()}})
    cost = {"strong": strong, "weak": weak, "responses": len(rows), "tokens": n_tokens, "device": device,
            "seconds": round(time.perf_counter() - started, 3)}  # fmt: skip
    return table, cost


def _ask(
    rows: Sequence[Row], models: Specs, name: str, compute: Compute, device: str, max_length: int
) -> tuple[list[float | None], int]:
    """Return each response's summed log-probability under one model, and how many tokens were run."""
    tokenizer = load_tokenizer(models, name)
    model = load_model(models, name, choose_dtype(compute.dtype, device), device)
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row["row_id"], []).append(place)
    asked = [
        tokenize_row(tokenizer, _turn("user", rows[some[0]]["instruction"]),
                     [_turn("assistant", rows[place]["response"]) for place in some], max_length)
        for some in groups.values()
    ]  # fmt: skip
    with tqdm(total=len(asked), desc=f"{name}: log-probabilities", unit="prompt") as bar:
        logps = compute_side_logps(model, asked, tokenizer.pad_token_id, choose_pass_tokens(device), bar.update)
    values: list[float | None] = [None] * len(rows)
    for some, laid, sides in zip(groups.values(), asked, logps, strict=True):
        for place, side, value in zip(some, laid.sides, sides.tolist(), strict=True):
            values[place] = value if len(side.ids) > side.start else None
    return values, sum(laid.width for laid in asked)


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def run(job: Any) -> None:
    """Score an experiment's pool with its strong and its weak model."""
    settings = job.settings
    rows = list_responses(job.experiment.outputs / "pool" / "pool.parquet")
    chosen = settings.density_ratio
    table, cost = score_densities(rows, job.models, chosen.strong, chosen.weak, settings.compute,
                                  settings.training.max_length)  # fmt: skip
    with atomic_path(job.folder / "densities.parquet") as temporary:
        pq.write_table(table, temporary)
    save_json(cost, job.folder / "density_cost.json")
