"""Recipes: methods one after another, each step from the policy that the one before made; their jobs, folders, words."""

import math

import pytest
import torch

from karma.errors import InputError
from karma.files.reading import load_json
from karma.models.load import compute_weights_digest, load_model, load_tokenizer
from karma.study.current import fingerprint_settings
from karma.study.experiment import load_experiment
from karma.study.open import find_siblings
from karma.study.stages import find_job, list_jobs
from karma.training.held_out import measure_pairs
from karma.training.recipe import find_start
from karma.training.rl import load_instructions
from karma.training.run import describe_run
from karma.training.train import train
from karma.vocabulary import title_of
from tests.conftest import ROOT
from tests.test_rl import make_prompts

STUDY = """
extends: smoke
name: recipes
strategies: [k_sim, k_score]
methods: [sft, distil]
recipes: {distil: [sft, dpo, grpo]}
trained_on: {distil: [k_sim]}
potential: {metrics: [], on_benchmarks: false}
self_play: {rounds: 0}
training:
  per_device_batch_size: 4
  learning_rate: 1.0e-3
  warmup_steps: 0
  checkpoint_steps: 0
  sample_tokens: 4
  lora: {rank: 2, alpha: 4, dropout: 0.0, last_layers: 1}
  grpo: {learning_rate: 1.0e-3, generations: 2, max_new_tokens: 6, reward: {instructions: 1.0}}
"""


def write_study(folder, changes=""):
    file = folder / "recipes.yaml"
    file.write_text(STUDY + changes)
    experiment = load_experiment(file)
    experiment.outputs = folder / "outputs"
    return experiment


def find_training(experiment, method, strategy="k_sim"):
    wanted = {"policy": "tiny-a", "strategy": strategy, "method": method, "seed": 0}
    return find_job(experiment, "04_alignment_training", wanted)


def test_each_step_is_trained_evaluated_and_waits_for_the_one_before(tmp_path):
    experiment = write_study(tmp_path)
    steps = ["distil-1-sft", "distil-2-dpo", "distil-3-grpo"]
    for stage in ("04_alignment_training", "05_policy_evaluation", "cross_evaluation"):
        found = [
            (job.params["strategy"], job.params["method"]) for job in list_jobs(experiment) if job.stage.name == stage
        ]
        assert [cell for cell in found if cell[0] != "start"] == [
            ("k_sim", "sft"), *(("k_sim", step) for step in steps), ("k_score", "sft")]  # fmt: skip
    for before, step in zip([None, *steps], steps, strict=False):
        job = find_training(experiment, step)
        assert job.folder.relative_to(experiment.outputs).as_posix() == f"runs/tiny-a/k_sim/{step}/seed0"
        waits = [needed.params["method"] for needed in job.inputs if needed.stage is job.stage]
        assert waits == ([before] if before else [])
        assert [needed.label for needed in job.inputs if needed.stage is not job.stage] == ["03_binarization.k_sim"]
    report = find_job(experiment, "06_results", {})
    assert {needed.params["method"] for needed in report.inputs if "method" in needed.params} >= set(steps)


def test_words_and_tables_know_a_step(tmp_path):
    from karma.results.study import collect_results

    assert [title_of(name) for name in ("distil-1-sft", "distil-3-grpo")] == [
        "distil, step 1: SFT",
        "distil, step 3: GRPO",
    ]
    study = collect_results(write_study(tmp_path))
    assert study.methods == ("sft", "distil-1-sft", "distil-2-dpo", "distil-3-grpo") and study.common_methods == (
        "sft",
    )


def test_another_recipe_reruns_no_training_of_the_others(tmp_path):
    before = write_study(tmp_path)
    after = write_study(tmp_path, "")
    after.settings = after.settings.model_copy(update={"recipes": {**after.settings.recipes, "other": ["dpo", "dpo"]},
                                                       "methods": [*after.settings.methods, "other"]})  # fmt: skip
    for method in ("sft", "distil-2-dpo"):
        texts = [fingerprint_settings(find_training(experiment, method)) for experiment in (before, after)]
        assert texts[0] == texts[1]
    assert find_training(after, "other-2-dpo").inputs[-1].params["method"] == "other-1-dpo"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """SFT alone, then the recipe's three steps, as the notebook trains them."""
    experiment, pairs, held_out = write_study(tmp_path_factory.mktemp("recipe")), make_prompts(), make_prompts(3)
    records = {}
    for method in ("sft", "distil-1-sft", "distil-2-dpo", "distil-3-grpo"):
        job = find_training(experiment, method)
        start = find_start(job)
        what = (pairs, start.models, start.policy, start.method, 0, start.settings, job.settings.compute, job.folder)
        run = describe_run(*what, code="x", reference_folder=job.folder.parent)
        records[method] = train(run, pairs, held_out, find_siblings(job)), run, start
    return experiment, records, held_out


def test_the_first_step_is_the_method_s_own_training(trained):
    _, records, _ = trained
    assert records["sft"][0]["same_data_as"] is None
    assert records["distil-1-sft"][0]["same_data_as"] == "../../sft/seed0"
    assert records["distil-1-sft"][1].identity == records["sft"][1].identity


def test_a_step_starts_from_the_policy_of_the_one_before_which_is_its_reference(trained):
    experiment, records, held_out = trained
    for before, step in (("distil-1-sft", "distil-2-dpo"), ("distil-2-dpo", "distil-3-grpo")):
        record, _, start = records[step]
        folder = find_training(experiment, before).folder / "model"
        assert start.policy == f"tiny-a, {title_of(before)}" and record["policy"] == start.policy
        kept = (folder / "adapter_config.json").is_file()
        assert kept == (before == "distil-1-sft"), "a step but the first saves whole weights"
        logps = measure_pairs(
            load_model(start.models, start.policy), load_tokenizer(start.models, start.policy), held_out, 256, ""
        )
        import pyarrow.parquet as pq

        told = pq.read_table(find_training(experiment, step).folder / "held_out.parquet")
        assert told["chosen_logps_before"].to_pylist() == pytest.approx(logps[:, 0, 0].tolist(), abs=1e-3)
    dpo = records["distil-2-dpo"][0]
    assert dpo["history"][0]["loss"] == pytest.approx(math.log(2), abs=1e-4), "the reference is another policy"
    assert dpo["method"] == "dpo" and records["distil-3-grpo"][0]["history"][0]["kl"] == pytest.approx(0, abs=1e-5)


def test_each_step_changes_the_policy(trained):
    experiment, records, _ = trained
    digests = {compute_weights_digest(start.models, start.policy) for _, _, start in records.values()}
    assert len(digests) == 3  # untrained (twice), after sft, after dpo
    last = torch.cat([w.flatten() for w in load_model(*_trained(experiment, records, "distil-3-grpo")).parameters()])
    start = records["distil-3-grpo"][2]
    first = torch.cat([w.flatten() for w in load_model(start.models, start.policy).parameters()])
    assert not torch.equal(last, first)


def _trained(experiment, records, step):
    from karma.models.load import add_trained

    start = records[step][2]
    return add_trained(start.models, start.policy, find_training(experiment, step).folder / "model")


def test_one_step_by_command_goes_on_from_a_run_s_folder(trained, tmp_path):
    from karma.models.describe import name_model

    experiment, records, _ = trained
    folder = find_training(experiment, "distil-2-dpo").folder
    specs, name = name_model(str(folder))
    assert compute_weights_digest(specs, name) == compute_weights_digest(
        *(lambda s: (s.models, s.policy))(records["distil-3-grpo"][2]))  # fmt: skip
    assert load_json(folder / "training.json")["adapter"] is False


def test_the_notebook_finds_the_instructions_of_a_step(tmp_path):
    job = find_training(write_study(tmp_path), "distil-3-grpo")
    start = find_start(job)
    found = load_instructions(make_prompts(2), start.method, start.settings, ROOT / job.settings.pool.instructions)
    assert found["instructions"].to_pylist() == [None, None]  # none of the file's


@pytest.mark.parametrize(("changes", "message"), [
    ({"recipes": "{distil: [sft, no_such]}"}, r"recipes\.distil\.1 is 'no_such': choose from sft, dpo"),
    ({"recipes": "{distil: [sft]}"}, r"recipes\.distil: a recipe has two steps or more; write one method under methods"),
    ({"recipes": "{dpo: [sft, dpo]}", "methods": "[dpo]"}, "recipes: 'dpo' is the name of a method"),
    ({"recipes": "{A-b: [sft, dpo]}", "methods": "[sft]"}, "recipes: 'A-b': name a recipe in small letters"),
    ({"methods": "[sft, other]"}, "methods: 'other' is no method and none of recipes: choose from sft, dpo, .*, distil"),
    ({"trained_on": "{other: [k_sim]}"}, r"trained_on\.other: there is no such method or recipe"),
    ({"training": "{grpo: {reward: {}}}"}, r"training\.grpo\.reward: grpo needs one: \{instructions: 1\.0\}"),
    ({"training": "{grpo: {reward: {reward_model: 1.0}}}"}, "reward_model: name a model where reward weighs one"),
    ({"training": "{grpo: {reward: {instructions: 1.0, reward_model: 1.0}, reward_model: ghost}}"},
     r"training\.grpo\.reward_model: 'ghost' is not a model of this experiment"),
    ({"pool": "{source: some/pool, instructions: null}", "annotation": "{source: recorded}", "labels": "{audit: false}"},
     r"training\.grpo\.reward: instructions are the pool's verifiable prompts': name pool\.instructions"),
    ({"potential": "{metrics: [random], methods: [grpo], on_benchmarks: false}"}, "potential.methods: grpo learns from prompts, not from pairs"),
    ({"self_play": "{rounds: 1, method: grpo}"}, "self_play.method: grpo learns from prompts, not from pairs"),
])  # fmt: skip
def test_a_recipe_that_cannot_be_followed_is_refused(tmp_path, changes, message):
    import yaml

    values = yaml.safe_load(STUDY)
    own = {key: yaml.safe_load(text) for key, text in changes.items()}
    if "training" in own:
        values["training"] = {key: value for key, value in values["training"].items() if key != "grpo"} | own.pop(
            "training"
        )
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(values | own))
    with pytest.raises(InputError, match=message):
        load_experiment(file)


def test_a_reward_model_is_no_step(tmp_path):
    with pytest.raises(InputError, match=r"recipes\.distil: reward_model makes no policy that a step could start from"):
        file = tmp_path / "steps.yaml"
        file.write_text(STUDY.replace("[sft, dpo, grpo]", "[reward_model, grpo]"))
        load_experiment(file)


def test_a_reward_model_is_loaded_by_the_jobs_that_it_rewards(tmp_path):
    text = STUDY.replace("{instructions: 1.0}}", "{reward_model: 1.0}, reward_model: tiny-b}")
    file = tmp_path / "rated.yaml"
    file.write_text(text)
    experiment = load_experiment(file)
    assert list(find_training(experiment, "distil-3-grpo").models) == ["tiny-a", "tiny-b"]
    assert list(find_training(experiment, "distil-2-dpo").models) == ["tiny-a"]


def test_the_sweep_plans_every_step_in_order(tmp_path):
    """Snakemake's own dry run: each step once, and none that it does not know how to make."""
    from karma.study.plan import plan_sweep

    labels = [state["label"] for state in plan_sweep(write_study(tmp_path), until="04_alignment_training")]
    steps = [label for label in labels if "distil" in label and label.startswith("04")]
    assert sorted(steps) == [f"04_alignment_training.tiny-a.k_sim.distil-{k}-{m}.seed0"
                             for k, m in enumerate(("sft", "dpo", "grpo"), 1)]  # fmt: skip
