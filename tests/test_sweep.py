"""The sweep: a real smoke study, what makes it run again, a failure, a kill, a dead kernel."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from karma.study.experiment import load_experiment
from karma.study.fingerprint import compute_modules, read_code
from karma.study.progress import estimate_left, find_elapsed, read_events
from karma.study.stages import find_job
from tests.conftest import (
    CALL_LIMIT,
    ROOT,
    copy_project,
    is_at_work,
    plain_environment,
    project_environment,
    run_karma,
    run_plain,
    wait_until,
)

STUDY = "outputs/smoke"


PLANS = """import json, sys
from karma.study.current import save_fingerprints
from karma.study.experiment import load_experiment
from karma.study.plan import plan_sweep
from karma.study.progress import read_events
from karma.study.sweep import _start
study, until = load_experiment(sys.argv[1]), sys.argv[2] or None
ours = {state["label"]: state["reason"] for state in plan_sweep(study, until)}
save_fingerprints(study)
events = study.outputs / ".sweep" / "reference.jsonl"
code = _start(study, events, None, until, None, "--dry-run").wait()
theirs = {state["label"]: str(state["reason"]) for state in read_events(study, events).values()}
events.unlink(missing_ok=True)
print(json.dumps([code, ours, theirs]))"""


def planned(project: Path, experiment: str = "params/smoke.yaml", until: str = "") -> dict[str, str]:
    """Return the jobs a run would do now, label -> reason; Snakemake, asked too, would do the same."""
    result = subprocess.run([sys.executable, "-c", PLANS, experiment, until], cwd=project, text=True,
                            env=project_environment(project), capture_output=True, check=True)  # fmt: skip
    code, ours, theirs = json.loads(result.stdout.splitlines()[-1])
    assert code == 0 and set(ours) == set(theirs), f"the plan says {ours}, Snakemake {theirs}"
    return ours


def stages(plan: dict[str, str]) -> set[str]:
    return {label.split(".")[0] for label in plan}


@pytest.fixture
def untouched(smoke):
    """The smoke project, put back as it was after a test that edits it."""
    kept = smoke.parent / "kept"
    for name in ("karma", "notebooks", "params"):
        shutil.copytree(smoke / name, kept / name, ignore=shutil.ignore_patterns("__pycache__"))
    yield smoke
    for name in ("karma", "notebooks", "params"):
        shutil.rmtree(smoke / name)
        shutil.copytree(kept / name, smoke / name)
    shutil.rmtree(kept)


def test_every_file_of_the_study_is_there(smoke):
    study = smoke / STUDY
    for strategy in ("rlaif", "k_score", "k_sim", "k_score_sim"):
        pairs = json.loads((study / "pairs" / strategy / "accounting.json").read_text())
        assert pairs["rows_in"] == pairs["pairs_out"] + sum(pairs["dropped"].values())
        for method in ("sft", "dpo"):
            run = study / "runs" / "tiny-a" / strategy / method / "seed0"
            training, scores = (json.loads((run / f"{name}.json").read_text()) for name in ("training", "scores"))
            assert training["history"] and training["held_out"]["n"] > 0
            for score in scores["benchmarks"].values():
                assert 0 <= score["value"] <= 1 and score["n"] >= 24 and score["standard_error"] >= 0
            assert {"04_alignment_training", "05_policy_evaluation"} <= set(
                json.loads((run / "provenance.json").read_text())
            )
    assert (study / "runs" / "tiny-a" / "start" / "scores.json").is_file()
    assert (study / "report.html").stat().st_size > 50_000
    for number in (1, 2):
        folder = study / "self_play" / "tiny-a" / "select_then_evolve" / f"round{number}"
        record, pairs = (json.loads((folder / f"{name}.json").read_text()) for name in ("self_play", "accounting"))
        assert record["after"]["score"]["n"] == 12 and record["n_added_pairs"] > 0
        assert pairs["rows_in"] == pairs["pairs_out"] + sum(pairs["dropped"].values())
        assert (folder / "figures" / "rounds.png").stat().st_size > 1000
    audit = pd.read_csv(study / "labels" / "strategies.csv").set_index("strategy")
    assert list(audit.index) == ["rlaif", "k_score", "k_sim", "k_score_sim", "truth"]
    for strategy in audit.index[:-1]:
        pairs = json.loads((study / "pairs" / strategy / "accounting.json").read_text())
        assert audit.loc[strategy, "n_pairs"] == pairs["pairs_out"]
    cost = json.loads((study / "pool" / "annotation_cost.json").read_text())
    assert audit["judge_calls"].to_dict() == {**dict.fromkeys(audit.index, 0), "rlaif": cost["calls"]}
    assert len(pd.read_csv(study / "labels" / "models.csv")) == 3
    assert "Self-play: what the policy learnt" in (study / "report.html").read_text()
    assert len((study / "tables" / "self_play.csv").read_text().splitlines()) == 1 + 3  # rounds 0, 1, 2
    for table in (1, 2, 3, 4):
        assert all((study / "tables" / f"table{table}.{kind}").is_file() for kind in ("csv", "md", "tex")), table
    for figure in (3, 4, 5, 6, 7, 9):
        assert all((study / "figures" / f"figure{figure}.{kind}").is_file() for kind in ("png", "svg")), figure


def test_the_readme_s_example_is_written_out_of_a_finished_study(smoke):
    script = "import make_readme as m; print(m.build_example(m.load_experiment('params/smoke.yaml')))"
    environment = {**project_environment(smoke), "PYTHONPATH": f"{smoke}{os.pathsep}{ROOT / 'docs'}"}
    shown = subprocess.run([sys.executable, "-c", script], cwd=smoke, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr[-2000:]
    audit = pd.read_csv(smoke / STUDY / "labels" / "strategies.csv").set_index("strategy")
    text = " ".join(shown.stdout.split())  # a table's columns are padded
    assert f"| RLAIF (weak judge) | {audit.loc['rlaif', 'n_pairs']}" in text
    assert "| truth (ceiling) |" in text and "custom" not in text
    assert shown.stdout.count("DPO on ") == 4 and "jobs in" in shown.stdout and "core-minutes" in shown.stdout


def test_every_job_left_its_executed_notebook_and_provenance(smoke):
    study = smoke / STUDY
    executed = [p.name.split(".")[0] for p in (study / "notebooks").glob("*.ipynb")]
    assert (executed.count("04_alignment_training"), executed.count("05_policy_evaluation")) == (8, 9)
    record = json.loads((study / "pairs" / "k_sim" / "provenance.json").read_text())["03_binarization"]
    assert record["core_seconds"] > 0 < record["seconds"] and "cores" in record["device"]
    assert record["params"] == {"strategy": "k_sim"} and record["seconds"] > 0
    assert record["settings"]["kinship"]["tau"] == 0.0 and record["set_by"]["kinship.tau"] == "smoke.yaml"
    assert set(record["versions"]) >= {"torch", "trl", "python"} and record["inputs"] and record["device"]


def test_each_selection_keeps_its_share_trains_on_it_and_is_tested_on_the_same_pairs(smoke):
    folders = sorted((smoke / STUDY / "selections" / "tiny-a").iterdir())
    assert [f.name for f in folders] == ["k_sim+m_ap-0.4", "k_sim+random-0.4"]
    tested = []
    for folder in folders:
        books, record = (json.loads((folder / f"{name}.json").read_text()) for name in ("accounting", "selection"))
        assert books["pairs_out"] == record["k"] == int(0.4 * record["candidates"])
        assert books["rows_in"] == books["pairs_out"] + sum(books["dropped"].values()) and books["dropped"]["held_out"]
        training = json.loads((folder / "dpo/seed0/training.json").read_text())
        assert training["n_train_pairs"] == record["k"] and training["method"] == "dpo"
        tested.append(pq.read_table(folder / "dpo/seed0/held_out.parquet").to_pandas())
        right = ((tested[-1]["margin"] > 0) + 0.5 * (tested[-1]["margin"] == 0)).mean()
        assert right == pytest.approx(training["held_out"]["accuracy"])
        assert not set(tested[-1]["row_id"]) & set(pq.read_table(folder / "pairs.parquet")["row_id"].to_pylist())
    assert tested[0]["row_id"].equals(tested[1]["row_id"])
    table = (smoke / STUDY / "tables" / "selections.md").read_text()
    assert "m_ap" in table and "The selection study" in (smoke / STUDY / "report.html").read_text()


def test_each_selection_s_policy_is_asked_what_the_untrained_one_is(smoke):
    start = pq.read_table(smoke / STUDY / "runs/tiny-a/start/answers.parquet").to_pandas()
    for metric in ("random", "m_ap"):
        folder = smoke / STUDY / "selections" / "tiny-a" / f"k_sim+{metric}-0.4" / "dpo" / "seed0"
        given = pq.read_table(folder / "answers.parquet").to_pandas()
        for column in ("benchmark", "item_id", "prompt", "n"):
            assert given[column].equals(start[column]), column
        assert list(json.loads((folder / "provenance.json").read_text())) == ["selection_evaluation"]
    shown = pd.read_csv(smoke / STUDY / "tables" / "selection_benchmark_intervals.csv")
    assert len(shown) == 2 * start["benchmark"].nunique() and shown["change"].notna().all()
    assert "The selection study on the benchmarks" in (smoke / STUDY / "report.html").read_text()


def test_one_training_where_two_sft_sets_are_the_same(smoke):
    runs = sorted((smoke / STUDY / "runs" / "tiny-a").glob("*/sft/seed0"))
    records = {run.parts[-3]: json.loads((run / "training.json").read_text()) for run in runs}
    assert records["k_score"]["data_digest"] == records["k_score_sim"]["data_digest"] != records["rlaif"]["data_digest"]
    for digest in {record["data_digest"] for record in records.values()}:
        alike = [name for name, record in records.items() if record["data_digest"] == digest]
        assert sum(records[name]["same_data_as"] is None for name in alike) == 1, f"{alike} were trained apart"
        weights = [run / "model" / "model.safetensors" for run in runs if run.parts[-3] in alike]
        assert len({path.read_bytes() for path in weights}) == 1


def test_a_second_run_does_nothing_and_says_so(smoke):
    def written() -> dict[Path, int]:
        kept = (p for p in (smoke / STUDY).rglob("*") if p.is_file() and ".s" not in p.relative_to(smoke).as_posix())
        return {path: path.stat().st_mtime_ns for path in kept}  # outside of .sweep and .snakemake

    before = written()
    result = run_karma(smoke, "run", "params/smoke.yaml")
    assert result.returncode == 0 and "everything is up to date" in result.stdout
    assert f"{STUDY}/report.html" in result.stdout and f"{STUDY}/self_play/tiny-a/" in result.stdout
    assert len(before) > 100 and written() == before, "a file was written again"


def test_status_of_a_running_sweep_counts_the_seconds_and_what_running_jobs_have_behind_them(tmp_path):
    events = tmp_path / "events.jsonl"
    assert find_elapsed(events) == 0
    events.write_text(json.dumps({"event": "message", "time": time.time() - 100}) + "\n{")
    assert 99 < find_elapsed(events) < 1000
    job = SimpleNamespace(stage=SimpleNamespace(name="04"))
    states = {"1": {"job": job, "status": "done", "started": 0.0, "ended": 60.0},
              "2": {"job": job, "status": "running", "started": 60.0, "ended": None}}  # fmt: skip
    assert [estimate_left(states, {"04": 2}, now, {}) for now in (60.0, 80.0, 500.0)] == [60.0, 40.0, 0.0]


def test_a_clock_that_is_put_back_makes_no_time_negative(tmp_path):
    demo, events = load_experiment("demo"), tmp_path / "events.jsonl"
    job = find_job(demo, "02_kinship_analysis", {})
    told = [{"event": "job_info", "rule_name": job.stage.name, "jobid": k, "time": time.time() + 3600} for k in (1, 2)]
    told.append({"event": "job_finished", "jobid": 1, "time": time.time()})
    events.write_text("\n".join(map(json.dumps, told)))
    states = read_events(demo, events)
    assert find_elapsed(events) == 0 and states["1"]["ended"] == states["1"]["started"]
    states["1"]["ended"] += 60
    assert estimate_left(states, {job.stage.name: 2}, time.time(), {}) == 60


def test_status_counts_what_is_done(smoke):
    result = run_karma(smoke, "status", "params/smoke.yaml")
    assert "04_alignment_training" in result.stdout and "no sweep is running" in result.stdout
    assert result.stdout.splitlines()[-1] == "next: open outputs/smoke/report.html"


def take_stock(project: Path) -> dict[str, tuple[int, int]]:
    return {str(path): ((found := path.lstat()).st_size, found.st_mtime_ns) for path in project.rglob("*")}


def test_a_dry_run_writes_nothing_starts_no_snakemake_and_says_what_it_would_take(untouched):
    kept = {name: (untouched / "params" / name).read_text() for name in ("smoke.yaml", "base.yaml")}
    before = take_stock(untouched)
    done = run_karma(untouched, "run", "params/smoke.yaml", "--dry-run")
    assert done.returncode == 0 and "everything is up to date" in done.stdout
    assert take_stock(untouched) == before, "a dry run of a finished study wrote something"
    (untouched / "params" / "smoke.yaml").write_text(kept["smoke.yaml"].replace("tau: 0.0", "tau: 0.9"))
    (untouched / "params" / "other.yaml").write_text("name: other\nextends: smoke\n")
    before = take_stock(untouched)
    changed, fresh = (run_karma(untouched, "run", f"params/{name}.yaml", "--dry-run") for name in ("smoke", "other"))
    assert take_stock(untouched) == before, "a dry run wrote something"
    (row,) = [line for line in changed.stdout.splitlines() if "02_kinship_analysis" in line]
    assert "changed: kinship.tau (0.0 -> 0.9)" in row and "by the last run here" in changed.stdout
    assert changed.stdout.splitlines()[-1] == "next: karma run params/smoke.yaml"
    assert "downloads: nothing" in fresh.stdout and "other: 43 jobs to do" in fresh.stdout
    (row,) = [line for line in fresh.stdout.splitlines() if "04_alignment_training" in line]
    assert "4 strategies x 2 methods" in row and "not made yet" in row and "8 pairs an update" in row


def test_a_notebook_saved_with_outputs_reruns_nothing(untouched):
    path = untouched / "notebooks" / "03_binarization.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.execution_count = number
        cell.outputs = [nbformat.v4.new_output("stream", text="saved in JupyterLab")]
    notebook.metadata["widgets"] = {}
    nbformat.write(notebook, path)
    assert planned(untouched) == {}


def test_an_edited_notebook_reruns_its_stage_and_what_follows(untouched):
    path = untouched / "notebooks" / "04_alignment_training.ipynb"
    notebook = nbformat.read(path, as_version=4)
    next(c for c in notebook.cells if c.cell_type == "code").source += "\nedited = True"
    nbformat.write(notebook, path)
    plan = planned(untouched)
    assert stages(plan) == {"04_alignment_training", "05_policy_evaluation", "06_results", "cross_evaluation"}
    assert "05_policy_evaluation.tiny-a.start" not in plan
    assert "changed: notebooks/04_alignment_training.ipynb" in plan["04_alignment_training.tiny-a.k_sim.dpo.seed0"]


def test_an_edited_module_reruns_the_stages_that_use_it(untouched):
    module = untouched / "karma" / "models" / "judge.py"
    module.write_text(module.read_text() + "\nEDITED = True\n")
    plan = stages(planned(untouched))
    assert min(plan - {"annotation"}) == "03_binarization" and "annotation" in plan


def test_a_colour_a_sentence_and_a_help_text_rerun_nothing_but_the_results(untouched):
    for module, old, new in (
        ("figures/style.py", "#0072B2", "#0072B3"),
        ("__init__.py", "The names below are", "These names are"),
        ("vocabulary.py", "the two responses whose origin models are nearest kin", "the two nearest kin's responses"),
        ("pairs/card.py", "preference pairs", "pairs"),
        ("commands/train.py", "Share of the pairs kept out", "Pairs kept out"),
    ):
        path = untouched / "karma" / module
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    assert stages(planned(untouched)) == {"06_results"}


AFTER_PAIRS = {
    "04_alignment_training",
    "05_policy_evaluation",
    "07_alignment_potential",
    "06_results",
    "cross_evaluation",
    "selection_evaluation",
}


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("training", "beta", 0.2, AFTER_PAIRS | {"08_self_play"}),
        ("kinship", "cut", 0.5, {"02_kinship_analysis", "03_binarization", "09_label_audit", *AFTER_PAIRS}),
        ("annotation", "batch_size", 8, {"annotation", "03_binarization", "09_label_audit", *AFTER_PAIRS}),
        ("potential", "weight", 2.5, {"07_alignment_potential", "06_results", "selection_evaluation"}),
        ("self_play", "weight", 1.0, {"06_results", "08_self_play"}),
    ],
)  # fmt: skip
def test_a_changed_value_reruns_the_stages_that_read_it(untouched, section, key, value, expected):
    path = untouched / "params" / "smoke.yaml"
    settings = yaml.safe_load(path.read_text())
    settings.setdefault(section, {})[key] = value
    path.write_text(yaml.safe_dump(settings))
    assert stages(planned(untouched)) == expected


def test_another_strategy_trains_only_itself(untouched):
    path = untouched / "params" / "smoke.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["strategies"] = ["rlaif", "k_score", "k_sim", "k_score_sim", "random"]
    path.write_text(yaml.safe_dump(settings))
    trained = {label for label in planned(untouched) if label.startswith("04")}
    assert trained == {f"04_alignment_training.tiny-a.random.{m}.seed0" for m in ("sft", "dpo")}


def test_a_module_is_found_through_every_form_of_import():
    reached = compute_modules(
        "from karma import build_pairs\nimport karma.training.train as t\ndef f():\n    from .karma import x\n"
    )
    assert {
        "karma.pairs.build",
        "karma.strategies",
        "karma.training.train",
        "karma.models.logprobs",
        "karma.models.load",
        "karma.errors",
    } <= set(reached)
    assert "karma.study.sweep" not in compute_modules("from karma.pairs.build import build_pairs")


def test_magic_lines_are_not_python(tmp_path):
    cells = [nbformat.v4.new_code_cell("%matplotlib inline\nx = 1"), nbformat.v4.new_markdown_cell("y")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    assert read_code(tmp_path / "n.ipynb") == "# %matplotlib inline\nx = 1"
    cells.append(nbformat.v4.new_code_cell("# 42", metadata={"tags": ["solution"]}))  # nothing is made of it
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    assert read_code(tmp_path / "n.ipynb") == "# %matplotlib inline\nx = 1"


# --- failure, kill and a dead kernel, on a corner of the graph that loads no model ---------------------------------

MODELS = ("gpt-4", "bard", "llama-2-7b-chat", "alpaca-7b")


@pytest.fixture
def corner(tmp_path):
    return make_corner(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The corner after its sweep, and its pairs."""
    project = make_corner(tmp_path_factory.mktemp("finished"))
    assert run_karma(project, *RUN_CORNER).returncode == 0
    return project, pair_bytes(project)


@pytest.fixture
def begun(finished):
    """The corner with everything but the pairs, and with its own notebooks, whatever a test before has done to it."""
    project, _ = finished
    shutil.rmtree(project / "outputs/corner/pairs", ignore_errors=True)
    yield project
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(path, project / "notebooks")
    for path in (*project.glob("slow*"), *project.glob("fail*")):
        path.unlink()


def make_corner(folder: Path) -> Path:
    """Copy the project and give it a study that stops at pairs: kinship, pool and two strategies."""
    project = copy_project(folder)
    rows = [{"source": "test", "instruction": f"Count to {i}.", "completions": [{"model": m, "response": f"{m} counts to {i}"} for m in MODELS]}
            for i in range(20)]  # fmt: skip
    (project / "pool.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    settings = {"name": "corner", "strategies": ["k_score", "k_sim"], "models": {"tiny": {"random": {"hidden_size": 8, "layers": 1, "heads": 1}}},
                "policies": ["tiny"], "scores": {"table": "paper"}, "pool": {"source": "pool.jsonl"}}  # fmt: skip
    (project / "params" / "corner.yaml").write_text(yaml.safe_dump(settings))
    return project


RUN_CORNER = ("run", "params/corner.yaml", "--until", "03_binarization")


def add_cell(project: Path, name: str, source: str) -> str:
    """Insert a code cell before a notebook's last cells; return the notebook's text before."""
    path = project / "notebooks" / f"{name}.ipynb"
    before = path.read_text()
    notebook = nbformat.read(path, as_version=4)
    last_code = max(k for k, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", []))
    notebook.cells.insert(last_code + 1, nbformat.v4.new_code_cell(source))
    nbformat.write(notebook, path)
    return before


def pair_bytes(project: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in sorted((project / "outputs/corner/pairs").glob("*/pairs.parquet"))}


def find_processes(project: Path) -> list[psutil.Process]:
    """Return what a sweep of the corner study left at work: Snakemake, jobs, kernels."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("KARMA_SWEEP") == str(project / "outputs" / "corner"):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def planned_corner(project: Path) -> set[str]:
    return {label for label in planned(project, "params/corner.yaml") if label < "04"}


def test_one_failure_keeps_its_traceback_lets_others_finish_and_alone_is_repeated(begun):
    corner = begun
    flag = corner / "fail"
    flag.touch()
    source = (
        f"import pathlib\nassert strategy != 'k_sim' or not pathlib.Path({str(flag)!r}).exists(), 'injected failure'"
    )
    before = add_cell(corner, "03_binarization", source)
    result = run_karma(corner, *RUN_CORNER)
    assert result.returncode == 1
    assert "1 of 2 jobs failed" in result.stderr and "injected failure" in result.stderr
    executed = nbformat.read(corner / "outputs/corner/notebooks/03_binarization.k_sim.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in executed.cells if c.cell_type == "code" for o in c.outputs)
    assert set(pair_bytes(corner)) == {"k_score"}
    flag.unlink()
    assert planned_corner(corner) == {"03_binarization.k_sim"}
    assert "[1/2]" in result.stdout and "started 03_binarization.k_sim" in result.stdout  # a line a job, no terminal
    assert run_karma(corner, *RUN_CORNER).returncode == 0
    assert set(pair_bytes(corner)) == {"k_score", "k_sim"}
    (corner / "notebooks" / "03_binarization.ipynb").write_text(before)  # a repair is an edit: both are made again
    assert planned_corner(corner) == {"03_binarization.k_score", "03_binarization.k_sim"}


def test_a_killed_sweep_goes_on_to_the_same_pairs(begun, finished):
    """kill -9 of `karma run` in the middle of a job; its Snakemake and kernel live on, and the next call ends them."""
    corner, whole = finished
    flag = corner / "slow"
    flag.touch()
    add_cell(
        corner,
        "03_binarization",
        f"import pathlib, time\nif pathlib.Path({str(flag)!r}).exists():\n    pathlib.Path({str(flag)!r} + strategy).touch()\n    time.sleep({10 * CALL_LIMIT})",
    )
    process = subprocess.Popen([sys.executable, "-m", "karma.cli", *RUN_CORNER], cwd=corner, env=plain_environment(corner),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    wait_until(lambda: list(corner.glob("slowk_*")) or process.poll() is not None)
    assert list(corner.glob("slowk_*")), "no job reached the slow cell"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    flag.unlink()
    orphans = find_processes(corner)
    assert orphans, "Snakemake and its jobs ended with their parent: nothing is left to end"
    try:
        result = run_karma(corner, *RUN_CORNER)
    finally:
        left = [process for process in orphans if is_at_work(process)]
        for process in left:
            process.kill()
    assert result.returncode == 0, result.stderr
    assert pair_bytes(corner) == whole
    assert not left, "the second run left the orphans at work"


ENDS = {"TERM": 143, "HUP": 129, "INT": 130, "snakemake": 1}


@pytest.mark.heavy
def test_term_hup_ctrl_c_and_the_death_of_snakemake_end_the_whole_sweep(begun, finished):
    """Each in the middle of two jobs; nothing is at work within ten seconds, and the last run makes the same pairs."""
    end_sweeps(begun, *ENDS)
    assert run_karma(begun, *RUN_CORNER).returncode == 0
    assert pair_bytes(begun) == finished[1]


def test_sigterm_ends_the_whole_sweep(begun):
    end_sweeps(begun, "TERM")


def end_sweeps(corner: Path, *ends: str) -> None:
    """End a sweep in the middle of two jobs, in each way, and see that nothing is left at work ten seconds later."""
    flag = corner / "slow"
    flag.touch()
    source = f"import pathlib, time\nif pathlib.Path({str(flag)!r}).exists():\n    pathlib.Path({str(flag)!r} + strategy).touch()\n    time.sleep({10 * CALL_LIMIT})"
    add_cell(corner, "03_binarization", source)
    for end in ends:
        process = subprocess.Popen([sys.executable, "-m", "karma.cli", *RUN_CORNER], cwd=corner, env=plain_environment(corner),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
        wait_until(lambda process=process: list(corner.glob("slowk_*")) or process.poll() is not None)
        assert list(corner.glob("slowk_*")), "no job reached the slow cell"
        if end == "snakemake":
            next(p for p in find_processes(corner) if "snakemake" in p.cmdline()).kill()
        else:
            process.send_signal(signal.Signals[f"SIG{end}"])
        _, errors = process.communicate(timeout=60)
        began = time.monotonic()
        assert process.returncode == ENDS[end] and "Traceback" not in errors, errors
        assert end in ("INT", "snakemake") or f"ended by SIG{end}" in errors
        while find_processes(corner) and time.monotonic() < began + 10:
            time.sleep(0.1)
        assert not find_processes(corner), f"{end} left processes at work"
        for path in corner.glob("slowk_*"):
            path.unlink()
    flag.unlink()


def test_a_kernel_killed_for_memory_is_reported_as_such(corner):
    add_cell(corner, "02_kinship_analysis", "import os\nos.kill(os.getpid(), 9)")
    result = run_plain(corner, "notebook", "02_kinship_analysis", "params/corner.yaml")
    assert result.returncode == 1
    assert "the kernel died: out of memory, or killed" in result.stderr and "Traceback" not in result.stderr


def test_two_sweeps_of_one_study_are_refused(corner):
    from filelock import FileLock

    folder = corner / "outputs" / "corner" / ".sweep"
    folder.mkdir(parents=True)
    (folder / "pid").write_text("42")
    with FileLock(folder / "lock"):
        result = run_karma(corner, *RUN_CORNER)
    assert result.returncode == 1 and "another `karma run` of corner is at work (pid 42)" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("run", "params/none.yaml"), "experiment 'params/none.yaml' not found; there are"),
        (("run", "params/smoke.yaml", "--until", "07"), "--until 07: no such stage"),
        (("notebook", "03_binarization", "params/smoke.yaml", "-p", "strategy=k_sin"), "choose from rlaif"),
        (("notebook", "03_binarization", "params/smoke.yaml", "-p", "strategy"), "write it as NAME=VALUE"),
        (("notebook", "03_binarization", "params/smoke.yaml", "-p", "stratgy=k_sim"), "strategy=nothing"),
    ],
)
def test_bad_commands_end_before_anything_runs(corner, args, message):
    result = run_karma(corner, *args)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not list(corner.glob("outputs/*/notebooks")), "a kernel was started"


def test_the_paper_s_plan_shows_32_trainings_and_what_each_needs(corner):
    result = run_karma(corner, "run", "params/paper.yaml", "--dry-run")
    assert result.returncode == 0, result.stderr
    text = " ".join(result.stdout.split())
    (row,) = [line for line in result.stdout.splitlines() if "04_alignment_training" in line]
    assert [cell.strip() for cell in row.split("│")][2:4] == ["32", "4 policies x 4 strategies x 2 methods"]
    for need in ("meta-llama/Llama-3.2-3B-Instruct (about 6 GB)", "4 GPUs", "96 pairs an update",
                 "openbmb/UltraFeedback (data)", "up to 2,816", "not all of these jobs were ever measured"):  # fmt: skip
        assert need in text
    assert not (corner / "outputs").exists(), "a dry run wrote something"
    submitted = run_karma(corner, "run", "params/paper.yaml", "--dry-run", "--until", "02_kinship_analysis")
    assert "paper: 1 jobs to do" in submitted.stdout and submitted.stdout.endswith("--until 02_kinship_analysis\n")
