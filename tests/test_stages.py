"""The graph of a study: jobs, folders, and what each waits for."""

import pytest

from karma.errors import InputError
from karma.files.places import find_project_root
from karma.study.experiment import load_experiment
from karma.study.open import find_siblings
from karma.study.stages import STAGES, find_job, list_jobs

STUDY = find_project_root() / "tests" / "study.yaml"


@pytest.fixture(scope="module")
def demo():
    return load_experiment(str(STUDY))


def test_the_demo_has_eight_trainings_each_evaluated_and_the_start(demo):
    names = [job.stage.name for job in list_jobs(demo)]
    assert names.count("04_alignment_training") == 8
    assert names.count("05_policy_evaluation") == 9
    assert names.count("01_origin_evaluation") == 6
    assert names.count("07_alignment_potential") == 2


def test_the_paper_needs_no_origin_evaluation():
    names = {job.stage.name for job in list_jobs(load_experiment("paper"))}
    assert not names & {"01_origin_evaluation", "annotation", "07_alignment_potential"}


def test_every_input_is_made_by_a_job_of_the_study(demo):
    made = {path for job in list_jobs(demo) for path in job.products}
    for job in list_jobs(demo):
        assert {p for needed in job.inputs for p in needed.products} <= made, job.label


def test_no_two_jobs_write_the_same_file(demo):
    paths = [path for job in list_jobs(demo) for path in job.products]
    assert len(paths) == len(set(paths))


def test_labels_are_unique_file_names(demo):
    labels = [job.label for job in list_jobs(demo)]
    assert len(labels) == len(set(labels)) and not any("/" in label for label in labels)


def test_a_run_lies_where_the_architecture_says(demo):
    run = {"policy": "smollm2-135m", "strategy": "k_sim", "method": "dpo", "seed": 0}
    job = find_job(demo, "04_alignment_training", run)
    assert job.folder.relative_to(demo.outputs).as_posix() == "runs/smollm2-135m/k_sim/dpo/seed0"
    start = find_job(demo, "05_policy_evaluation", {"policy": "smollm2-135m", "strategy": "start"})
    assert start.folder.relative_to(demo.outputs).as_posix() == "runs/smollm2-135m/start"


def test_a_selection_lies_where_the_architecture_says_and_the_report_waits_for_it(demo):
    wanted = {"policy": "smollm2-135m", "strategy": "k_score_sim", "metric": "m_ap", "ratio": 0.4}
    job = find_job(demo, "07_alignment_potential", wanted)
    assert job.folder.relative_to(demo.outputs).as_posix() == "selections/smollm2-135m/k_score_sim+m_ap-0.4"
    report = find_job(demo, "06_results", {})
    assert job.label in {needed.label for needed in report.inputs}


def test_selections_of_one_policy_may_share_a_training():
    """All of any metric is the same data, so a job looks for its twin among the policy's other selections."""
    study = load_experiment("potential")
    jobs = {(j.params["metric"], j.params["ratio"]): j for j in list_jobs(study) if j.stage.name.startswith("07")}
    assert len(jobs) == 20
    siblings = find_siblings(jobs["m_ap", "1.0"])
    assert len(siblings) == 19 and jobs["random", "1.0"].folder in siblings


def test_metrics_alone_switch_the_selection_study_on(tmp_path):
    path = tmp_path / "chosen.yaml"
    path.write_text("name: chosen\nmodels: {a: {random: {hidden_size: 8, layers: 1, heads: 1}}}\npolicies: [a]\n"
                    "scores: {table: paper}\npotential: {metrics: [m_ap], ratios: [0.4, 1]}\n")  # fmt: skip
    jobs = [job for job in list_jobs(load_experiment(path)) if job.stage.name == "07_alignment_potential"]
    assert len(jobs) == 8 and {job.params["ratio"] for job in jobs} == {"0.4", "1.0"}


def test_rounds_of_self_play_wait_for_the_one_before_and_results_for_the_last():
    smoke = load_experiment("smoke")
    jobs = [job for job in list_jobs(smoke) if job.stage.name == "08_self_play"]
    assert [job.label for job in jobs] == [f"08_self_play.tiny-a.select_then_evolve.round{r}" for r in (1, 2)]
    for job in jobs:
        earlier = [{**job.params, "round": "1"}] if job.params["round"] == "2" else []
        assert [needed.params for needed in job.inputs] == earlier
        place = f"self_play/tiny-a/{job.params['arm']}/round{job.params['round']}"
        assert job.folder.relative_to(smoke.outputs).as_posix() == place
        assert set(job.models) == {"tiny-a", "tiny-b"}  # the policy and the judge
    waited = [job.params for job in find_job(smoke, "06_results", {}).inputs if job.stage.name == "08_self_play"]
    assert waited == [{"policy": "tiny-a", "arm": arm, "round": "2"} for arm in ("select_then_evolve",)]


def test_labels_are_audited_only_where_a_study_says_so(demo):
    assert "09_label_audit" not in {job.stage.name for job in list_jobs(demo)}
    (job,) = [job for job in list_jobs(load_experiment("smoke")) if job.stage.name == "09_label_audit"]
    assert job.folder.relative_to(job.experiment.outputs).as_posix() == "labels"
    waited = [needed.label for needed in job.inputs]
    assert waited[:3] == ["pool", "02_kinship_analysis", "annotation"]
    assert waited[3:] == [f"03_binarization.{s}" for s in job.experiment.settings.strategies]


def test_a_study_of_self_play_alone_has_no_other_job_and_another_round_reruns_none(tmp_path):
    study = load_experiment("self_play")
    assert {job.stage.name for job in list_jobs(study)} == {"08_self_play"} and len(list_jobs(study)) == 3 * 2
    text = study.path.read_text().replace("rounds: 2", "rounds: 3")
    (tmp_path / "more.yaml").write_text(text)
    before, after = (
        {job.label: job.settings.as_dict() for job in list_jobs(s)}
        for s in (study, load_experiment(tmp_path / "more.yaml"))
    )
    assert before.items() <= after.items() and len(after) == 3 * 3


@pytest.mark.parametrize(
    ("stage", "params", "message"),
    [
        ("08_self_play", {"policy": "smollm2-135m", "arm": "fresh", "round": 1}, "no job of this stage there"),
        ("03_binarization", {"strategy": "k_sin"}, "choose from rlaif, k_score, k_sim, k_score_sim"),
        ("03_binarization", {}, "strategy=nothing is not in study.yaml"),
        ("03_binarization", {"strategy": "k_sim", "tau": 1}, "takes no parameter 'tau'; it takes strategy"),
        ("07_alignment_potential", {"policy": "smollm2-135m", "strategy": "k_sim"}, "choose from k_score_sim"),
        ("09_nothing", {}, "no stage '09_nothing'; there are 01_origin_evaluation"),
    ],
)
def test_wrong_parameters_are_named(demo, stage, params, message):
    with pytest.raises(InputError, match=message):
        find_job(demo, stage, params)


def test_a_missing_file_names_the_notebook_to_run_first(tmp_path, demo):
    demo_elsewhere = load_experiment(str(STUDY))
    demo_elsewhere.outputs = tmp_path
    job = find_job(demo_elsewhere, "03_binarization", {"strategy": "k_sim"})
    with pytest.raises(InputError, match=r"pool\.parquet is missing: run karma pool"):
        job.check_inputs()


def test_every_declared_setting_exists(demo):
    for stage in STAGES.values():
        demo.select(stage.reads, stage.name)


def test_a_perturbed_copy_brings_its_father(demo):
    job = find_job(demo, "01_origin_evaluation", {"origin_model": "smollm2-drop-1"})
    assert set(job.models) == {"smollm2-drop-1", "smollm2-135m"}
