"""What reward_evaluation says of a reward model: labels, truth, length and best of n, by hand and from the model."""

import json
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from karma.commands.named import check_named
from karma.errors import InputError
from karma.evaluation.prompts import build_prompt
from karma.labels.best_of_n import compute_best_of_n, expect_best
from karma.labels.rewards import compare_truth, measure_reward_model, run
from karma.models.judge import annotate
from karma.models.load import load_tokenizer
from karma.models.rewards import load_reward_model, score_responses
from karma.pairs.accounting import Accounting
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import PAIR_SCHEMA, PairSet
from karma.pool.responses import list_responses
from karma.results.rewards import collect_rewards, show_reward_models
from karma.results.study import collect_results
from karma.results.tables import build_tables
from karma.self_play.best_of_n import answer_best_of_n, measure_best_of_n
from karma.study.experiment import load_experiment
from karma.study.stages import list_jobs
from tests.conftest import change_base
from tests.study_files import make_experiment, write_study
from tests.test_rewards import TINY, make_reward_model, save_whole

COMPUTE = change_base("compute", device="cpu", dtype="float32")


@pytest.mark.parametrize("m", range(1, 6))
def test_the_best_of_n_is_what_drawing_gives(m):
    rng = np.random.default_rng(m)
    rewards, truths = rng.permutation(m).astype(float), rng.integers(0, 3, m) / 2
    for n in range(1, m + 1):
        drawn = [list(subset) for subset in combinations(range(m), n)]
        best = [truths[subset][rewards[subset].argmax()] for subset in drawn]
        assert expect_best(rewards, truths, n) == pytest.approx(np.mean(best))
        assert expect_best(truths, truths, n) == pytest.approx(np.mean([truths[subset].max() for subset in drawn]))
    assert expect_best(rewards, truths, 1) == pytest.approx(truths.mean())


def test_answers_of_equal_reward_are_a_draw():
    assert expect_best([1.0, 1.0, 0.0], [1.0, 0.0, 0.0], 3) == 0.5


def test_a_perfect_reward_gains_what_is_perfect_and_a_reversed_one_loses():
    rng = np.random.default_rng(0)
    truths = [rng.random(4) for _ in range(30)]
    perfect, reversed_ = (compute_best_of_n([(sign * t, t) for t in truths]) for sign in (1, -1))
    assert perfect["truth"].tolist() == pytest.approx(perfect["perfect"].tolist())
    assert perfect["gain_low"].iloc[-1] > 0 > reversed_["gain_high"].iloc[-1] and perfect["n"].tolist() == [1, 2, 3, 4]
    assert compute_best_of_n([([1.0], [1.0])]).empty


def make_set(rows):
    table = pa.Table.from_pylist([dict(zip(("row_id", "chosen_id", "rejected_id"), row, strict=True)) for row in rows])
    return PairSet(table, Accounting("k_sim", rows_in=len(rows), pairs_out=len(rows)))


TABLE = pd.DataFrame(
    [("p", "a", 2.0, 10, 1.0), ("p", "b", 1.0, 30, 0.0), ("p", "c", 3.0, 11, 0.5),
     ("q", "a", 0.0, 10, 1.0), ("q", "b", 1.0, 12, 0.0), ("r", "a", 0.0, 5, 0.5), ("r", "b", 9.0, 5, 0.5)],
    columns=["row_id", "response_id", "reward", "characters", "truth"],
)  # fmt: skip


def test_the_scores_by_hand():
    sets = {"k_sim": make_set([("p", "a", "b"), ("q", "a", "b")]), "delta": make_set([("r", "b", "a")])}
    found = measure_reward_model(TABLE, sets)
    assert (found["n_prompts"], found["n_responses"]) == (3, 7)
    assert found["pairs"]["k_sim"]["accuracy"] == 0.5 and found["pairs"]["delta"]["accuracy"] == 1.0
    assert found["pairs"]["k_sim"]["length"]["longer_preferred"]["value"] == 0.5  # q's longer, not p's
    truth = found["truth"]  # p: a > b right, a > c wrong, c > b right; q: wrong; r: nothing to tell
    assert truth["value"] == pytest.approx(2 / 4) and (truth["n_pairs"], truth["n_prompts"]) == (4, 2)
    assert truth["longer"]["value"] == pytest.approx(0.0 + 0 / 4) and truth["low"] < 0.5 < truth["high"]
    best = found["best_of_n"]
    assert [row["n"] for row in best] == [1, 2] and best[1]["n_prompts"] == 3
    assert best[1]["truth"] == pytest.approx(np.mean([2 / 3 * 0.5 + 1 / 3 * 1.0, 0.0, 0.5]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_truth_there_is_none_and_a_lost_response_is_named():
    table = TABLE.assign(truth=np.nan)
    found = measure_reward_model(table, {"k_sim": make_set([("p", "a", "b")])})
    assert found["truth"] is None and found["best_of_n"] == []
    with pytest.raises(InputError, match="k_sim: a held-out pair names a response that was not rated: run reward_eval"):
        measure_reward_model(table, {"k_sim": make_set([("p", "a", "zz")])})


def test_pairs_of_one_prompt_are_one_unit():
    rows = [(str(k), "ab"[j], float(j), 1, float(j)) for k in range(4) for j in range(2)]
    wide = compare_truth(pd.DataFrame(rows, columns=TABLE.columns))
    assert wide["value"] == 1.0 and wide["low"] < 0.6 and wide["n_prompts"] == 4


# --- from the model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_whole(make_reward_model(), tmp_path_factory.mktemp("models") / "rm")


def write_pool(folder):
    """Six prompts whose three answers follow their instruction (no commas), or not; and the pairs of two strategies."""
    prompts = [build_prompt(f"Describe tree {k}.", ["punctuation:no_comma"], "[{}]") for k in range(6)]
    texts = ["An oak of {k}.", "An oak, of {k}, here.", "It has leaves, {k}"]
    rows = [{"source": "s", "instruction": prompt.text, "completions": [
                {"model": f"m{j}", "response": text.format(k=k)} for j, text in enumerate(texts)]}
            for k, prompt in enumerate(prompts)]  # fmt: skip
    (folder / "pool").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "pool" / "pool.parquet")
    lines = [json.dumps({"topic": f"Describe tree {k}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})
             for k in range(6)]  # fmt: skip
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    said = list_responses(folder / "pool" / "pool.parquet")
    for name, (chosen, rejected) in {"k_sim": (0, 1), "delta": (1, 2)}.items():
        pairs = []
        for k in range(0, len(said), 3):
            sides = {"chosen": said[k + chosen], "rejected": said[k + rejected]}
            pairs.append({"row_id": said[k]["row_id"], "source": "s", "kinship": 0.9, "strategy": name,
                          "prompt": [{"role": "user", "content": said[k]["instruction"]}],
                          **{side: [{"role": "assistant", "content": one["response"]}] for side, one in sides.items()},
                          **{f"{side}_{key}": one[key.replace("id", "response_id")] for side, one in sides.items() for key in ("model", "id")},
                          "chosen_score": 0.9, "rejected_score": 0.1})  # fmt: skip
        books = Accounting(name, rows_in=6, pairs_out=6, responses_in=18, responses_usable=18)
        save_pairs(PairSet(pa.Table.from_pylist(pairs, PAIR_SCHEMA), books), folder / "pairs" / name)
    return said


def test_a_trained_reward_model_is_measured_on_all_labels_and_the_truth(models, tmp_path):
    said = write_pool(tmp_path)
    folder = tmp_path / "runs" / "tiny"
    save_whole(make_reward_model(), folder / "model")
    settings = SimpleNamespace(
        strategies=["k_sim", "delta"], pairs=SimpleNamespace(held_out=0.9999, seed=0), compute=COMPUTE,
        pool=SimpleNamespace(instructions="prompts.jsonl", excluded_origin_models=[]))  # fmt: skip
    experiment = SimpleNamespace(outputs=tmp_path, root=tmp_path)
    run(
        SimpleNamespace(settings=settings, experiment=experiment, folder=folder, models=TINY, params={"policy": "tiny"})
    )
    table, scores = pd.read_parquet(folder / "rewards.parquet"), json.loads((folder / "reward_scores.json").read_text())
    assert scores["n_responses"] == len(table) == 18 and set(scores["pairs"]) == {"k_sim", "delta"}
    own = {(one["row_id"], one["response_id"]): one for one in said}
    asked = [own[key] for key in zip(table["row_id"], table["response_id"], strict=True)]
    model, tokenizer = load_reward_model(models, "rm"), load_tokenizer(models, "rm")
    rewards = score_responses(model, tokenizer, [[{"role": "user", "content": one["instruction"]}] for one in asked],
                              [[{"role": "assistant", "content": one["response"]}] for one in asked])  # fmt: skip
    assert table["reward"].tolist() == pytest.approx(rewards.tolist(), rel=1e-4)
    assert table["truth"].tolist() == [float("," not in one["response"]) for one in asked]
    by_hand = [table["reward"][table["truth"] == 1].to_numpy()[k] > other
               for k, (_, part) in enumerate(table[table["truth"] == 0].groupby("row_id", sort=False))
               for other in part["reward"]]  # fmt: skip
    assert scores["truth"]["value"] == pytest.approx(np.mean(by_hand)) and scores["truth"]["n_pairs"] == 12
    assert [row["n"] for row in scores["best_of_n"]] == [1, 2, 3]


def test_a_judge_that_is_a_reward_model_gives_its_rewards(models, tmp_path):
    """Also from the answers it kept: a second call asks nothing."""
    rows = [{"row_id": row, "response_id": f"{row}{k}", "model": "m", "instruction": f"Ask {row}.", "response": text}
            for row in "pq" for k, text in enumerate(["Yes.", "No, never."])]  # fmt: skip
    table, cost = annotate(rows, models, "rm", COMPUTE, 2, tmp_path)
    model, tokenizer = load_reward_model(models, "rm"), load_tokenizer(models, "rm")
    rewards = score_responses(model, tokenizer, [[{"role": "user", "content": row["instruction"]}] for row in rows],
                              [[{"role": "assistant", "content": row["response"]}] for row in rows])  # fmt: skip
    assert table["score"].to_pylist() == pytest.approx(rewards.tolist(), rel=1e-4) and cost["calls"] == 4
    again, cost_again = annotate(rows, models, "rm", COMPUTE, 2, tmp_path)
    assert again == table and cost_again == cost


def test_the_best_of_n_from_a_policy_is_the_reward_model_s_choice(models, tmp_path):
    prompts = [build_prompt(f"Name tree {k}.", ["punctuation:no_comma"], "[{}]") for k in range(3)]
    how = change_base("self_play", scorer="reward_model", scorer_model="rm", samples=3, max_new_tokens=8, batch_size=4,
                      temperature=1.0)  # fmt: skip
    best = answer_best_of_n(models, "tiny", prompts, how, COMPUTE, tmp_path)
    found = measure_best_of_n(models, "tiny", prompts, how, COMPUTE, tmp_path)
    truths = [float("," not in answer) for answer in best]
    assert found["n"].tolist() == [1, 2, 3] and found["truth"].iloc[-1] == pytest.approx(np.mean(truths), abs=1 / 3)


# --- in a study -------------------------------------------------------------------------------------------------------


def extend(tmp_path, text):
    father = make_experiment(tmp_path)
    (tmp_path / "rewards.yaml").write_text(f"extends: {father.path}\nname: rewards\n{text}\n")
    made = load_experiment(tmp_path / "rewards.yaml")
    made.outputs = father.outputs
    return made


METHODS_HERE = "methods: [sft, dpo, reward_model]"


def test_a_study_evaluates_policies_rates_by_reward_models_and_shows_both(tmp_path):
    experiment = extend(tmp_path, METHODS_HERE)
    by_stage = {}
    for job in list_jobs(experiment):
        by_stage.setdefault(job.stage.name, set()).add(job.params.get("method"))
    assert by_stage["04_alignment_training"] == {"sft", "dpo", "reward_model"}
    assert by_stage["05_policy_evaluation"] == {"start", "sft", "dpo"}
    assert by_stage["reward_evaluation"] == {"reward_model"}
    write_study(experiment)
    study = collect_results(experiment)
    assert study.methods == ("sft", "dpo") and set(study.trainings["method"]) == {"sft", "dpo"} and study.gaps.empty
    assert "reward model" not in " ".join(table.to_markdown() for table in build_tables(study)).lower()
    _, table = show_reward_models(experiment, tmp_path / "tables", tmp_path / "figures")
    assert table.frame["K_sim's pairs"].iloc[0] == "0.75 [0.53, 0.89], 20"
    assert {"truth", "truth, by length", "prefers the longer", "gain of best of 3"} <= set(table.frame.columns)
    assert (tmp_path / "figures" / "reward_models.png").is_file()
    assert (tmp_path / "tables" / "reward_models_long.csv").is_file()
    next(experiment.outputs.rglob("reward_scores.json")).unlink()
    gaps = collect_results(experiment).gaps
    assert gaps["made_by"].str.startswith("karma reward_evaluation rewards.yaml -p policy=").all() and len(gaps) == 1


def test_a_study_without_reward_models_shows_none(tmp_path):
    experiment = extend(tmp_path, "methods: [dpo]\ntrained_on: {sft: null}")
    assert collect_rewards(experiment)[0].empty
    assert list(show_reward_models(experiment, tmp_path / "tables", tmp_path / "figures")) == []
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [reward_model]\ntrained_on: {sft: null, dpo: null}", "methods: reward_model alone makes no policy to evaluate: name another method too"),
        (f"{METHODS_HERE}\npotential: {{metrics: [m_ap], methods: [reward_model]}}", "potential.methods: reward_model makes no policy"),
        (f"{METHODS_HERE}\nself_play: {{rounds: 1, method: reward_model}}", "self_play.method: reward_model makes no policy"),
        (f"{METHODS_HERE}\ntraining: {{label_smoothing: 0.1}}", "training.label_smoothing means nothing to reward_model"),
    ],
)  # fmt: skip
def test_a_reward_model_where_a_policy_is_wanted_is_refused_by_the_experiment(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        extend(tmp_path, text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"), [("policies: [rm]", "policies"), ("win_rates: {judge: rm}", "win_rates.judge")]
)
def test_a_reward_model_s_folder_where_a_language_model_is_wanted_is_refused_before_work(models, tmp_path, text, key):
    experiment = extend(tmp_path, f"models: {{rm: {{path: {models['rm']['path']}}}}}\n{text}")
    with pytest.raises(InputError, match=f"rewards.yaml: {key}: model 'rm' is a reward model: it rates responses"):
        check_named(experiment)
