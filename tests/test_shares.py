"""Jobs that help a stage answer its prompts: the same requests, none of its files, and no job that is not needed."""

import os

import pytest
import yaml
from typer.testing import CliRunner

from karma.cli import app
from karma.evaluation.runner import evaluate
from karma.evaluation.shares import answer_share
from karma.models import shards
from karma.models.ask import CachedModel
from karma.pool import generate, rate
from karma.study.experiment import Experiment, load_experiment
from karma.study.plan import plan_sweep
from karma.study.progress import read_events, render
from karma.study.shares import count_helpers, list_markers, place_marker
from karma.study.stages import STAGES, find_job, list_jobs
from tests.conftest import copy_project, list_kept, run_karma


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    """The smoke study, its files elsewhere, in shards of eight prompts."""
    monkeypatch.setattr(shards, "SIZE", 8)
    study = load_experiment("smoke")
    study.outputs = tmp_path / "outputs"
    return study


def ask_origin(job, cache):
    settings = job.settings.benchmarks
    model = CachedModel(job.models, "tiny-a", job.settings.compute, settings.batch_size, cache)
    return model, evaluate(model, settings.origin, settings, job.experiment.root, settings.protocol)[1]


def test_a_share_of_an_evaluation_is_found_by_its_stage(smoke, tmp_path):
    job = find_job(smoke, "01_origin_evaluation", {"origin_model": "tiny-a"})
    alone, expected = ask_origin(job, tmp_path / "alone")
    answer_share(job, 1, 2)
    assert [path.name for path in smoke.outputs.iterdir()] == ["answers"], "none of the stage's files"
    stage, answers = ask_origin(job, smoke.outputs / "answers")
    assert answers.equals(expected) and stage.n_cached == alone.n_asked, "a helper that is alone does all of it"


def test_shares_of_a_pool_and_its_ratings_are_found_by_their_stages(smoke, monkeypatch):
    job = find_job(smoke, "pool", {})
    generate.answer_share(job, 0, 2)
    n_kept = len(list_kept(smoke.outputs / "answers"))
    generate.run(job)
    assert n_kept and len(list_kept(smoke.outputs / "answers")) == n_kept, "the stage asked nothing"
    judged = find_job(smoke, "annotation", {})
    rate.answer_share(judged, 1, 3)
    monkeypatch.setattr("karma.models.judge.load_model", lambda *args: pytest.fail("the judge was asked again"))
    rate.run(judged)
    assert (judged.folder / "annotations.parquet").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pool", "smoke", "--shard", "2/2"], "expected k/N with k from 0 to N - 1"),
        (["pool", "smoke", "--shard", "1"], "expected k/N"),
        (["02_kinship_analysis", "smoke", "--shard", "0/2"], "has no prompts to share"),
        (["01_origin_evaluation", "smoke", "--shard", "0/2"], "origin_model=nothing"),
    ],
)
def test_wrong_shares_are_named(arguments, message):
    result = CliRunner().invoke(app, ["shard", *arguments])
    assert message in str(result.exception)


def set_shards(project, n, **more):
    path = project / "params" / "smoke.yaml"
    values = yaml.safe_load(path.read_text("utf-8"))
    values.setdefault("compute", {}).update({"shards": n, **more})
    path.write_text(yaml.safe_dump(values), "utf-8")
    return open_smoke(project)


def open_smoke(project):
    """Return a copied project's smoke study, with its own folders."""
    study = load_experiment(project / "params" / "smoke.yaml")
    return Experiment(study.settings, study.sources, study.path, project)


def test_helpers_are_of_jobs_that_are_to_be_done_and_of_no_other(tmp_path):
    study = set_shards(copy_project(tmp_path), 3)
    sharing = [job for job in list_jobs(study) if job.stage.shares]
    assert count_helpers(study) == 2 and {job.stage.name for job in sharing} >= {"01_origin_evaluation", "pool"}
    expected = [f"{place_marker(job)}/{k}of3" for job in sharing for k in (1, 2)]
    assert list_markers(study) == expected and len(set(expected)) == len(expected)
    for number, job in enumerate(list_jobs(study)):  # as a sweep that has done everything leaves it
        made = [study.outputs / ".sweep" / "settings" / f"{job.label}.json",
                study.outputs / ".sweep" / "code" / f"{job.stage.name}.json", *job.products]  # fmt: skip
        for path in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (10 * number + 10**9 if path in job.products else 10**9,) * 2)
    assert list_markers(study) == []
    (origin,) = [job for job in list_jobs(study) if job.label == "01_origin_evaluation.tiny-a"]
    os.utime(study.outputs / ".sweep" / "settings" / f"{origin.label}.json")
    assert f"{place_marker(origin)}/1of3" in list_markers(study)
    assert list_markers(study, "pool") == [], "which does not wait for it"
    assert list_markers(set_shards(tmp_path, 3, engine="ray")) == [], "Ray's workers share instead"


def test_a_plan_shows_helpers_and_counts_the_stages_jobs_as_ever(tmp_path):
    project = copy_project(tmp_path)
    plain = {state["label"] for state in plan_sweep(open_smoke(project))}
    study = set_shards(project, 3)
    states = plan_sweep(study)
    assert {state["label"] for state in states if not state["helps"]} == plain
    helping = [state["label"] for state in states if state["helps"]]
    sharing = [job for job in list_jobs(study) if job.stage.shares]
    assert sorted(helping) == sorted(f"{job.label}.shard{k}" for job in sharing for k in (1, 2))
    numbered = {str(number): state for number, state in enumerate(states)}
    table = render(study, numbered, 1.0, {})
    assert table.row_count == sum(any(True for _ in stage.jobs(study.settings)) for stage in STAGES.values())


@pytest.mark.heavy
def test_a_sweep_with_helpers_ends_in_the_same_answers_and_another_number_reruns_nothing(tmp_path):
    project = copy_project(tmp_path)
    study = set_shards(project, 2)
    result = run_karma(project, "run", "params/smoke.yaml", "--until", "pool")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    states = read_events(study, study.outputs / ".sweep" / "events.jsonl").values()
    assert sorted((state["label"], state["status"]) for state in states) == [("pool", "done"), ("pool.shard1", "done")]
    assert "share 1/2 done" in (study.outputs / ".sweep" / "logs" / "pool.shard1.log").read_text()
    for n in (5, 1):
        set_shards(project, n)
        result = run_karma(project, "run", "params/smoke.yaml", "--until", "pool")
        assert result.returncode == 0 and "everything is up to date" in result.stdout, result.stdout
