"""Win rates inside a study: each training against rlaif's and the untrained policy, from the model to the table."""

from types import SimpleNamespace

import pandas as pd
import pytest

from karma.errors import InputError
from karma.files.reading import compute_digest, load_json
from karma.labels import policies
from karma.labels.policies import collect_prompts, list_pairs
from karma.models.load import load_model, load_tokenizer
from karma.results.study import collect_results
from karma.results.win_rates import show_win_rates
from karma.study.experiment import load_experiment
from karma.study.sections import ModelSpec
from karma.study.stages import STAGES, Job, list_jobs
from tests.study_files import make_experiment, write_study

POLICY = "smollm2-135m"
SHAPE = {"hidden_size": 32, "layers": 2, "heads": 2}
MODELS = {name: ModelSpec(random=SHAPE, seed=seed).model_dump() for name, seed in ((POLICY, 1), ("judge", 7))}
WIN_RATES = "{judge: smollm2-drop-1, n_prompts: 5, max_new_tokens: 6, batch_size: 4}"


@pytest.fixture
def experiment(tmp_path):
    """The tests' study with a judge, its files written, two strategies trained by one method."""
    father = make_experiment(tmp_path)
    (tmp_path / "judged.yaml").write_text(
        f"extends: {father.path}\nname: judged\nstrategies: [rlaif, k_sim]\nmethods: [dpo]\n"
        f"potential: {{metrics: [], strategies: []}}\nwin_rates: {WIN_RATES}\n"
    )
    made = load_experiment(tmp_path / "judged.yaml")
    made.outputs = father.outputs
    write_study(made)
    for job in list_jobs(made):
        if job.stage.name == "04_alignment_training":  # trained: another model, another one for each strategy
            seed = {"rlaif": 3, "k_sim": 4}[job.params["strategy"]]
            other = {"other": ModelSpec(random=SHAPE, seed=seed).model_dump()}
            load_model(other, "other").save_pretrained(job.folder / "model")
            load_tokenizer(other, "other").save_pretrained(job.folder / "model")
    return made


def run(experiment):
    job = Job(experiment, STAGES["pairwise_evaluation"], {"policy": POLICY})
    models = {POLICY: MODELS[POLICY], experiment.settings.win_rates.judge: MODELS["judge"]}
    policies.run(SimpleNamespace(params=job.params, folder=job.folder, experiment=experiment, settings=job.settings,
                                 models=models, inputs=job.inputs))  # fmt: skip
    return job


def test_the_stage_judges_each_training_and_the_report_shows_it(experiment, tmp_path):
    job = run(experiment)
    assert all(path.is_file() for path in job.products)
    rates = pd.read_csv(job.folder / "win_rates.csv")
    pairs = list(zip(rates["model_a"], rates["model_b"], strict=True))
    assert pairs == [("rlaif/dpo/seed0", "start"), ("k_sim/dpo/seed0", "start"), ("k_sim/dpo/seed0", "rlaif/dpo/seed0")]
    assert (rates["n_prompts"] > 0).all() and (rates["n_unread"] == 0).all()
    assert rates["win_rate"].between(0, 1).all() and rates["win_rate"].nunique() > 1
    verdicts = pd.read_parquet(job.folder / "verdicts.parquet")
    assert verdicts["prompt_id"].nunique() <= 5
    _, table = show_win_rates(experiment, tmp_path / "tables", tmp_path / "figures")
    row = table.frame.loc[(POLICY, "DPO on K_sim, seed 0", "RLAIF (weak judge)")]
    assert row["win rate"] == pytest.approx(rates["win_rate"].iloc[2], abs=1e-3)
    assert (tmp_path / "figures" / "win_rates.png").is_file()
    assert "one seed" in str(table.notes)
    assert collect_results(experiment).gaps["file"].tolist() == []


def test_the_stage_goes_on_where_it_was(experiment, monkeypatch):
    """Answers and verdicts are kept: the same run asks no model again, and another training only its own."""
    first = load_json(run(experiment).folder / "accounting.json")
    again = load_json(run(experiment).folder / "accounting.json")
    assert first["asked_now"] > 0 and again["asked_now"] == 0
    assert again["kept_from_before"] == first["asked_now"]


def test_held_out_prompts_are_those_that_no_training_saw(experiment):
    s = experiment.settings
    folders = [experiment.outputs / "pairs" / name for name in s.strategies]
    prompts = collect_prompts(folders, s.pairs.held_out, s.pairs.seed, None)
    assert 5 < len(prompts) < 40, "a quarter of 80 prompts"
    few = collect_prompts(folders, s.pairs.held_out, s.pairs.seed, 5)
    assert len(few) == 5 and few.items() <= prompts.items()
    assert few == collect_prompts(folders[::-1], s.pairs.held_out, s.pairs.seed, 5)
    assert all(name == compute_digest(text) for name, text in few.items())
    with pytest.raises(InputError, match=r"win_rates\.n_prompts: 500 is more than the"):
        collect_prompts(folders, s.pairs.held_out, s.pairs.seed, 500)


def test_without_the_baseline_the_untrained_policy_is_the_only_rival():
    names = ["k_sim/sft/seed0", "k_sim/dpo/seed1", "rlaif/dpo/seed0"]
    assert list_pairs(names) == [(name, "start") for name in names], "another method's or seed's rlaif is no rival"


def test_it_is_off_by_default_and_shows_nothing(tmp_path):
    plain = make_experiment(tmp_path)
    assert plain.settings.win_rates.judge is None
    assert not [job for job in list_jobs(plain) if job.stage.name == "pairwise_evaluation"]
    assert list(show_win_rates(plain, tmp_path, tmp_path)) == []


def test_what_is_not_judged_yet_is_a_named_gap(experiment):
    gaps = collect_results(experiment).gaps
    assert gaps["file"].tolist() == [f"win_rates/{POLICY}/win_rates.csv", f"win_rates/{POLICY}/verdicts.parquet"]
    assert gaps["made_by"].str.startswith("karma pairwise_evaluation judged.yaml -p policy=").all()


@pytest.mark.parametrize(("change", "message"), [
    ("win_rates: {judge: ghost}", "win_rates.judge: 'ghost' is not a model of this experiment"),
    ("win_rates: {judge: smollm2-drop-1}\npairs: {held_out: 0.0}", "win_rates.judge: no prompt is held out"),
    ("win_rates: {judge: smollm2-drop-1, tie: 1.0}", "win_rates.tie is 1.0"),
])  # fmt: skip
def test_wrong_settings_are_named(tmp_path, change, message):
    father = make_experiment(tmp_path)
    (tmp_path / "wrong.yaml").write_text(f"extends: {father.path}\nname: wrong\n{change}\n")
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        load_experiment(tmp_path / "wrong.yaml")
