"""What decides labels does not depend on the number of threads: the demo's models, S_pref order and pairs."""

import pytest

from karma import build_pairs, compute_s_pref, load_pool
from karma.evaluation.prompts import load_prompts
from karma.evaluation.runner import evaluate
from karma.files.places import find_project_root
from karma.models.ask import CachedModel, sample_responses
from karma.scores.measured import build_score_table
from karma.study.experiment import load_experiment

pytestmark = pytest.mark.heavy  # minutes of a real model
NAMES = ("smollm2-135m", "smollm2-noise-12", "smollm2-drop-3")


def _run(threads: int):
    root = find_project_root()
    settings = load_experiment(str(root / "params" / "demo.yaml")).settings
    models = {name: settings.models[name].model_dump(mode="json") for name in NAMES}
    compute = settings.compute.model_copy(update={"dtype": "float32", "threads": threads, "device": "cpu"})
    limits = {"ifeval": 6, "arc_easy": 12, "hellaswag": 6}
    asked = settings.benchmarks.model_copy(update={"limits": limits, "descriptive_tokens": 12})
    drawing = settings.pool.model_copy(update={"max_new_tokens": 12})
    prompts = [p.text for p in load_prompts(root / "karma" / "data" / "demo" / "pool.jsonl", True)[:6]]
    scores, completions = {}, {text: [] for text in prompts}
    for name in NAMES:
        model = CachedModel(models, name, compute, batch_size=6)
        scores[name], _ = evaluate(model, ["ifeval", "arc_easy", "hellaswag"], asked, root, "cloze")
        for text, response in zip(prompts, sample_responses(model, prompts, drawing, seed=0), strict=True):
            completions[text].append({"model": name, "response": response})
    table = build_score_table(scores, drop_constant=True)
    pool = load_pool([{"source": "test", "instruction": t, "completions": c} for t, c in completions.items()])
    return table.scores, compute_s_pref(table), build_pairs(pool, table, "k_sim", tau=-1.0, seed=0).table


@pytest.fixture(scope="module")
def both():
    import torch

    before = torch.get_num_threads()
    found = [_run(threads) for threads in (1, 2)]
    torch.set_num_threads(before)
    return found


def test_one_and_two_threads_give_the_same_order(both):
    (_, s_pref, _), (_, s_pref_2, _) = both
    assert s_pref.rank().equals(s_pref_2.rank())
    assert s_pref.nunique() == len(NAMES), "equal S_pref would show nothing"


def test_one_and_two_threads_give_the_same_pairs(both):
    assert both[0][2].num_rows and both[0][2].equals(both[1][2])
