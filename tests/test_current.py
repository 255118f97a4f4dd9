"""A job of a sweep reads what the sweep took the fingerprint of, or fails: nothing stale passes as current."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from filelock import FileLock

from karma.commands.show import show_status
from karma.errors import InputError, KarmaError
from karma.study.current import claim_outputs, find_changes, save_fingerprints, stay_current
from karma.study.experiment import load_experiment
from karma.study.fingerprint import find_changed_code
from karma.study.open import open_stage
from karma.study.progress import find_elapsed, read_events, read_plan
from karma.study.stages import STAGES, Job, find_job
from karma.study.sweep import run_sweep
from tests.conftest import copy_project, run_karma

MODELS = ("gpt-4", "bard", "llama-2-7b-chat", "alpaca-7b")
RUN = ("run", "params/corner.yaml", "--until", "03_binarization")
PAIRS = ("03_binarization", {"strategy": "k_sim"})


def write_settings(project: Path, tau: float = 0.1) -> None:
    settings = {"name": "corner", "strategies": ["k_sim"], "policies": ["tiny"], "scores": {"table": "paper"},
                "models": {"tiny": {"random": {"hidden_size": 8, "layers": 1, "heads": 1}}}, "kinship": {"tau": tau},
                "pool": {"source": "pool.jsonl"}}  # fmt: skip
    (project / "params" / "corner.yaml").write_text(yaml.safe_dump(settings))


def write_pool(project: Path, n: int = 20) -> None:
    rows = [{"source": "test", "instruction": f"Count to {i}.", "completions": [
            {"model": m, "response": f"{m} counts to {i}"} for m in MODELS]} for i in range(n)]  # fmt: skip
    (project / "pool.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture(scope="module")
def corner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copied project whose study stops at pairs; a test leaves its settings, pool and notebooks as they were."""
    project = copy_project(tmp_path_factory.mktemp("current"))
    write_pool(project)
    write_settings(project)
    return project


@pytest.fixture(scope="module")
def taken(corner: Path) -> Path:
    """Fingerprints as a sweep takes them, kept aside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KARMA_ROOT", str(corner))
        patch.chdir(corner)
        experiment = load_experiment("params/corner.yaml")
        save_fingerprints(experiment)
    return experiment.outputs.rename(corner / "taken")


@pytest.fixture
def swept(corner: Path, taken: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The corner study seen from within a sweep of it."""
    times = (corner / "pool.jsonl").stat()
    notebook = (corner / "notebooks" / "03_binarization.ipynb").read_text()
    shutil.copytree(taken, corner / "outputs" / "corner")
    monkeypatch.setenv("KARMA_ROOT", str(corner))
    monkeypatch.setenv("KARMA_SWEEP", str(corner / "outputs" / "corner"))
    monkeypatch.chdir(corner)
    yield corner
    shutil.rmtree(corner / "outputs" / "corner")
    (corner / "params" / "other.yaml").unlink(missing_ok=True)
    (corner / "notebooks" / "03_binarization.ipynb").write_text(notebook)
    write_settings(corner)
    write_pool(corner)
    os.utime(corner / "pool.jsonl", ns=(times.st_atime_ns, times.st_mtime_ns))


def find(name: str = PAIRS[0], **params: str) -> Job:
    return find_job(load_experiment("params/corner.yaml"), name, params or (PAIRS[1] if name == PAIRS[0] else {}))


def test_a_job_that_reads_what_the_sweep_saw_goes_through(swept):
    with stay_current(find()):
        pass
    assert find_changes(find()) == []


def test_a_setting_changed_before_the_job_is_named_with_both_values(swept):
    write_settings(swept, tau=0.95)
    text = (
        r"03_binarization.k_sim: kinship.tau \(0.1 -> 0.95\) changed since this sweep began: .* the same command takes"
    )
    with pytest.raises(KarmaError, match=text), stay_current(find()):
        pytest.fail("the job began")
    with stay_current(find("pool")):  # it does not read tau
        pass


def test_a_setting_changed_while_the_job_runs(swept):
    with pytest.raises(KarmaError, match=r"kinship\.tau"), stay_current(find()):
        write_settings(swept, tau=0.95)


def test_a_setting_changed_between_the_job_s_start_and_its_kernel_s(swept):
    job = find()
    with stay_current(job):
        write_settings(swept, tau=0.95)
        with pytest.raises(KarmaError, match=r"kinship\.tau"):
            open_stage(*PAIRS[:1], "params/corner.yaml", **PAIRS[1])
        write_settings(swept)


@pytest.mark.parametrize("during", [False, True])
def test_an_edited_pool_file(swept, during):
    if not during:
        write_pool(swept, 21)
    with pytest.raises(KarmaError, match=r"pool\.jsonl changed since"), stay_current(find("pool")):
        assert during, "the job began"
        write_pool(swept, 21)


def test_a_pool_file_edited_and_put_back_while_the_job_runs(swept):
    text = (swept / "pool.jsonl").read_text()
    with pytest.raises(KarmaError, match=r"pool\.jsonl"), stay_current(find("pool")):
        write_pool(swept, 21)
        (swept / "pool.jsonl").write_text(text)
        os.utime(swept / "pool.jsonl", (time.time() + 5, time.time() + 5))  # clocks of files may be coarse


def test_a_file_that_only_looks_newer_is_read_and_passes(swept):
    os.utime(swept / "pool.jsonl")
    with stay_current(find("pool")):
        pass


def test_a_removed_and_an_added_file_are_changes(swept):
    (swept / "pool.jsonl").unlink()
    assert find_changes(find("pool")) == ["pool.jsonl"]


@pytest.mark.parametrize("during", [False, True])
def test_edited_code_of_the_notebook(swept, during):
    path = swept / "notebooks" / "03_binarization.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source += "\nedited = True"
    if not during:
        nbformat.write(notebook, path)
    with pytest.raises(KarmaError, match=r"notebooks/03_binarization.ipynb changed"), stay_current(find()):
        assert during, "the job began"
        nbformat.write(notebook, path)


def test_edited_modules_are_named(swept):
    path = swept / "outputs" / "corner" / ".sweep" / "code" / "pool.json"
    code = json.loads(path.read_text())
    assert find_changed_code(STAGES["pool"], swept, code) == []
    path.write_text(json.dumps({**code, "modules": {**code["modules"], "karma.pool.pool": "0", "karma.gone": "0"}}))
    with pytest.raises(KarmaError, match=r"pool: karma.pool.pool, karma.gone changed"), stay_current(find("pool")):
        pytest.fail("the job began")


def test_a_fingerprint_taken_anew_while_the_job_runs(swept):
    """`karma run --dry-run` with an edited file, in another shell: what the job makes is older than it will look."""
    with pytest.raises(KarmaError, match="the fingerprint itself"), stay_current(find()):
        write_settings(swept, tau=0.95)
        save_fingerprints(load_experiment("params/corner.yaml"))


def test_a_damaged_fingerprint_is_a_change_and_no_traceback(swept):
    (swept / "outputs" / "corner" / ".sweep" / "settings" / "pool.json").write_text("{")
    with pytest.raises(KarmaError, match=r"pool.json \(damaged\)"), stay_current(find("pool")):
        pytest.fail("the job began")


def test_a_notebook_run_by_hand_with_other_settings_is_made_again_by_the_next_sweep(swept, monkeypatch):
    monkeypatch.delenv("KARMA_SWEEP")
    kept = swept / "outputs" / "corner" / ".sweep" / "settings" / "03_binarization.k_sim.json"
    with stay_current(find()):
        assert kept.is_file()
    write_settings(swept, tau=0.95)
    with stay_current(find()):
        assert not kept.exists(), "outputs of tau .95 would pass as those of .1"


def test_two_experiments_with_one_name_are_refused_before_anything_is_written(swept):
    other = swept / "params" / "other.yaml"
    other.write_text((swept / "params" / "corner.yaml").read_text())
    text = "params/other.yaml: its name, 'corner', is that of params/corner.yaml, whose files lie in outputs/corner"
    with pytest.raises(InputError, match=text):
        save_fingerprints(load_experiment("params/other.yaml"))
    (swept / "params" / "corner.yaml").unlink()  # renamed: the outputs are taken over
    claim_outputs(load_experiment("params/other.yaml"))
    assert (swept / "outputs/corner/.sweep/experiment").read_text() == "params/other.yaml"


@pytest.mark.parametrize("years", [1, 60])
def test_a_file_of_ours_from_the_future_is_dated_now_and_one_of_others_left(swept, years, capsys):
    now, path = time.time(), swept / "outputs" / "corner" / "pool" / "pool.parquet"
    path.parent.mkdir()
    path.write_text("pool")
    for file in (path, swept / "pool.jsonl"):
        os.utime(file, (now, now + years * 365 * 86400))
    save_fingerprints(load_experiment("params/corner.yaml"))
    assert now <= path.stat().st_mtime <= time.time() < (swept / "pool.jsonl").stat().st_mtime
    said = capsys.readouterr().out
    assert "outputs/corner/pool/pool.parquet is dated in the future (2" in said and "dated now" in said
    save_fingerprints(load_experiment("params/corner.yaml"))
    assert not capsys.readouterr().out


@pytest.mark.heavy
def test_tau_set_while_a_sweep_runs_and_put_back_leaves_no_stale_pairs(corner):
    """The whole of it: pairs of tau .95 would have passed as those of .1."""
    path = corner / "notebooks" / "02_kinship_analysis.ipynb"
    notebook = nbformat.read(path, as_version=4)
    at = next(k for k, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", []))
    text = (corner / "params" / "corner.yaml").read_text()
    flag = corner / "edit"
    flag.touch()
    source = (f"import pathlib\nif pathlib.Path({str(flag)!r}).exists():\n"
              f"    pathlib.Path({str(corner / 'params' / 'corner.yaml')!r}).write_text({text.replace('0.1', '0.95')!r})")  # fmt: skip
    notebook.cells[-1] = nbformat.v4.new_code_cell(source)
    assert at < len(notebook.cells) - 1
    nbformat.write(notebook, path)
    first = run_karma(corner, *RUN)
    assert first.returncode == 1 and "kinship.tau (0.1 -> 0.95)" in first.stderr
    assert not list(corner.glob("outputs/corner/pairs/*/pairs.parquet"))
    flag.unlink()
    (corner / "params" / "corner.yaml").write_text(text)
    assert run_karma(corner, *RUN).returncode == 0
    books = json.loads((corner / "outputs/corner/pairs/k_sim/accounting.json").read_text())
    assert books["settings"]["tau"] == 0.1 and books["pairs_out"] > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The corner study of 3,000 prompts, whose pairs lie on a disk of their own that cannot hold them."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("a disk of a given size needs root and mount")
    project = copy_project(tmp_path / "project")
    write_pool(project, 3000)
    write_settings(project)
    pairs = project / "outputs" / "corner" / "pairs"
    pairs.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "karma-test", pairs], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no disk of a given size here: {done.stderr.strip()}")
    yield project
    subprocess.run(["umount", "--lazy", pairs], check=True)


@pytest.mark.heavy
def test_a_disk_that_fills_in_mid_sweep_fails_its_job_and_the_same_command_goes_on(small_disk):
    first = run_karma(small_disk, *RUN)
    assert first.returncode == 1 and "No space left on device" in first.stderr, first.stderr
    pairs, pool = (small_disk / "outputs" / "corner" / name for name in ("pairs", "pool/pool.parquet"))
    assert not list(pairs.rglob("*.parquet")) and not list(pairs.rglob(".*")), "half a pair set"
    when = pool.stat().st_mtime_ns  # what is on the other disk was done
    subprocess.run(["mount", "-o", "remount,size=64m", pairs], check=True)
    assert run_karma(small_disk, *RUN).returncode == 0
    books = json.loads((pairs / "k_sim" / "accounting.json").read_text())
    assert books["rows_in"] == 3000 and books["pairs_out"] > 0 and pool.stat().st_mtime_ns == when


def test_events_and_pid_that_are_garbage_or_of_jobs_that_are_gone_do_not_hurt(swept):
    experiment, folder = load_experiment("params/corner.yaml"), swept / "outputs" / "corner" / ".sweep"
    planned = {"event": "job_info", "jobid": 1, "rule_name": "03_binarization", "time": 5.0, "reason": "x"}
    events = [
        {**planned, "wildcards": {"strategy": "k_sim"}},
        {**planned, "jobid": 2, "wildcards": {"strategy": "k_score"}},  # no strategy of the study any more
        {**planned, "jobid": 3, "rule_name": "gone"}, {**planned, "jobid": 4, "wildcards": [1]},
        {"event": "job_finished", "job_id": 1}, {"event": "x", "time": "then"}, {"stats": 3, "event": "x", "time": 1},
        {"stats": {"pool": "many"}, "event": "x", "time": 1}, [], 7, None, {},
    ]  # fmt: skip
    lines = [json.dumps(event).encode() for event in events] + [b"{", b"\xff\xfe", b"[" * 100_000, b"\x00"]
    (folder / "events.jsonl").write_bytes(b"\n".join(lines))
    states = read_events(experiment, folder / "events.jsonl")
    assert {key: state["label"] for key, state in states.items()} == {"1": "03_binarization.k_sim"}
    assert read_plan(folder / "events.jsonl") == {} and find_elapsed(folder / "events.jsonl") > 0
    (folder / "pid").write_bytes(b"\xff\n<b>1</b>")
    with FileLock(folder / "lock"):
        with pytest.raises(KarmaError, match=r"\(pid \?\)"):
            run_sweep(experiment)
        show_status(experiment)
