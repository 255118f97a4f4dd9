"""The stage `selection_evaluation`: a policy trained on a selection answers the benchmarks, as stage 05 asks them.

Held-out pairs say whether a selection taught its labels, benchmarks whether the policy got better at something else.
Decision: asked exactly as in 05, with the study's kept answers, so that scores compare with every other policy's and a
training that is the same as another one's costs no question. Limit: policies are asked benchmarks that also define
S_pref, from which kinship's labels and its explicit margin come.

Paper: none; arXiv 2503.01864 evaluates on AlpacaEval 2 and Arena-Hard, which need a judge.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from karma.errors import InputError
from karma.evaluation.compare import compare_answers
from karma.evaluation.runner import evaluate, limit_policies, save_evaluation
from karma.evaluation.scoring import list_warnings
from karma.models.ask import CachedModel
from karma.models.load import add_trained
from karma.vocabulary import START


def run(job: Any) -> None:
    """Evaluate one policy trained on a selection; the change from the untrained one goes into the log.

    Raises:
        InputError: stage 07 left no such training, or the untrained policy was asked other items.
    """
    folder, outputs, policy = Path(job.folder), job.experiment.outputs, job.params["policy"]
    if not (folder / "model").is_dir():
        raise InputError(
            f"{folder}: no trained policy lies there: run `karma notebook 07_alignment_potential` with its policy, "
            "strategy, metric and ratio first"
        )
    settings = limit_policies(job.settings.benchmarks)
    models, name = add_trained(job.models, policy, folder / "model")
    model = CachedModel(models, name, job.settings.compute, settings.batch_size, outputs / "answers")
    scores, given = evaluate(model, settings.policy, settings, job.experiment.root, settings.protocol)
    start = outputs / "runs" / policy / START / "answers.parquet"
    try:
        change = compare_answers(pq.read_table(start), given)
    except ValueError as error:
        raise InputError(f"{start}, {job.label}: {error}") from None
    print("\n".join(list_warnings(scores)))
    print(f"asked {model.n_asked} prompts now, {model.n_cached} came from earlier runs with the same weights")
    print(change.round(3).to_string())
    save_evaluation(scores, given, folder)
