"""Recorded studies: small, the same bytes each time, and unpacked without trust."""

import gzip
import tarfile

import pytest

from karma.errors import InputError
from karma.files.reading import compute_digest
from karma.study import recorded
from karma.study.experiment import load_experiment
from karma.study.open import open_stage
from karma.study.recorded import MANIFEST, MOST_BYTES, pack_study, unpack_study
from tests.conftest import ROOT, copy_project, run_karma
from tests.recorded_files import GOOD, build


@pytest.fixture(scope="module")
def packed(smoke, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(smoke)
        path = tmp_path_factory.mktemp("dist") / "karma-smoke-recorded.tar.gz"
        pack_study(load_experiment("params/smoke.yaml"), path)
    return path


def test_the_same_study_gives_the_same_small_file(smoke, packed, tmp_path, monkeypatch):
    monkeypatch.chdir(smoke)
    again = tmp_path / "again.tar.gz"
    assert pack_study(load_experiment("params/smoke.yaml"), again) == packed.stat().st_size < MOST_BYTES
    assert again.read_bytes() == packed.read_bytes()


def test_it_holds_what_is_read_and_no_weights_no_caches_and_no_path_of_this_machine(smoke, packed):
    with tarfile.open(packed) as archive:
        names = archive.getnames()
        contents = {m.name: archive.extractfile(m).read() for m in archive}
        assert {(m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, "", 0o644)}
    assert names == sorted(names) and len({*names}) == len(names)
    for wanted in ("report.html", "kinship/kinship.csv", "labels/strategies.csv", "runs/tiny-a/k_sim/dpo/seed0/training.json",
                   "notebooks/04_alignment_training.tiny-a.k_sim.dpo.seed0.ipynb", "pool/pool.parquet"):  # fmt: skip
        assert f"smoke/{wanted}" in names
    assert not [
        name for name in names if name.endswith((".safetensors", ".bin")) or {"answers", "model"} & {*name.split("/")}
    ]
    assert not [name for name, content in contents.items() if str(smoke).encode() in content]


def test_a_stranger_unpacks_it_and_reads_on(packed, tmp_path):
    project = copy_project(tmp_path / "clone")
    done = run_karma(project, "demo", "--recorded", str(packed))
    assert done.returncode == 0, done.stderr
    assert (
        "written: outputs/smoke: the study smoke as it was run on 20" in done.stdout
        and "next: open outputs/smoke/report.html" in done.stdout
    )
    assert not (project / "outputs" / "smoke" / MANIFEST).exists()
    assert sorted(p.name for p in (project / "outputs").iterdir()) == ["smoke"]
    for name in ("02_kinship_analysis", "09_label_audit"):
        ran = run_karma(project, "notebook", name, "params/smoke.yaml")
        assert ran.returncode == 0, ran.stderr
    again = run_karma(project, "demo", "--recorded", str(packed))
    assert (again.returncode, again.stderr) == (
        2,
        "karma: outputs/smoke is there already: move it away, or add --replace to lose it\n",
    )
    (project / "outputs" / "smoke" / "mine.txt").write_text("mine")
    assert run_karma(project, "demo", "--recorded", str(packed), "--replace").returncode == 0
    assert not (project / "outputs" / "smoke" / "mine.txt").exists()


def test_a_study_that_is_not_finished_is_not_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_project(tmp_path / "clone"))
    with pytest.raises(InputError, match=r"has not been run: run `karma run params/smoke.yaml` first"):
        pack_study(load_experiment("params/smoke.yaml"), tmp_path / "x.tar.gz")


def test_a_study_that_would_be_too_large_names_its_largest_file(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(smoke)
    monkeypatch.setattr(recorded, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"1,000 at most are wanted: report.html is"):
        pack_study(load_experiment("params/smoke.yaml"), tmp_path / "x.tar.gz")
    assert not [*tmp_path.iterdir()]


def make_member(name, kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(("bad", "said"), [
    ({"extra": [make_member("demo/../../evil")]}, "has no place in it"),
    ({"extra": [make_member("/etc/evil")]}, "has no place in it"),
    ({"extra": [make_member("demo/link", tarfile.SYMTYPE, "/etc/passwd")]}, "has no place in it"),
    ({"extra": [make_member("demo/hard", tarfile.LNKTYPE, "demo/report.html")]}, "has no place in it"),
    ({"extra": [make_member("demo/pipe", tarfile.FIFOTYPE)]}, "has no place in it"),
    ({"extra": [make_member("demo/report.html")]}, "has no place in it"),
    ({"extra": [make_member("demo/more.txt")]}, "demo/more.txt is not what its list says"),
    ({"extra": [make_member("other/more.txt")]}, "other/more.txt is not what its list says"),
    ({"told": {"report.html": "0" * 16}}, "is not what its list says"),
    ({"told": {**{k: compute_digest(v) for k, v in GOOD.items()}, "gone.csv": "0" * 16}}, "demo/gone.csv is not what"),
    ({"study": ".."}, "it has no list recorded.json"), ({"study": "a/b"}, "it has no list recorded.json"),
    ({"study": 7}, "it has no list recorded.json"), ({"told": ["x"]}, "it has no list recorded.json"),
    ({"commit": None}, "it has no list recorded.json"), ({"folder": "other"}, "is not what its list says"),
])  # fmt: skip
def test_what_has_no_place_in_it_is_refused_and_nothing_is_written(tmp_path, bad, said):
    path = build(tmp_path / "bad.tar.gz", **bad)
    with pytest.raises(InputError, match=said):
        unpack_study(path, tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a tar", gzip.compress(b"not a tar" * 100), gzip.compress(b"\0" * 10_240)]
)
def test_what_is_no_recorded_study_is_refused(tmp_path, content):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.tar\.gz is no recorded study"):
        unpack_study(path, tmp_path)
    with pytest.raises(InputError, match="it is a folder"):
        unpack_study(tmp_path, tmp_path)


def test_a_file_that_was_cut_off_and_one_that_unpacks_to_a_huge_one_are_refused(tmp_path, monkeypatch):
    path = build(tmp_path / "good.tar.gz", {"a.bin": bytes(range(256)) * 4000})
    (tmp_path / "cut.tar.gz").write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="is no recorded study"):
        unpack_study(tmp_path / "cut.tar.gz", tmp_path)
    monkeypatch.setattr(recorded, "MOST_UNPACKED", 10_000)
    with pytest.raises(InputError, match="it unpacks to more than 10,000 bytes"):
        unpack_study(path, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(recorded, "MOST_FILES", 1)
    with pytest.raises(InputError, match="it holds more than 1 files"):
        unpack_study(build(tmp_path / "many.tar.gz"), tmp_path)


def test_a_good_one_is_unpacked(tmp_path):
    folder, manifest = unpack_study(build(tmp_path / "good.tar.gz"), tmp_path)
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == GOOD
    assert manifest["study"] == "demo" and "files" not in manifest
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["demo"]


def test_02_shows_the_papers_table_where_there_is_no_study_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(copy_project(tmp_path / "clone"))
    with pytest.raises(InputError, match=r"scores.json is missing: run notebooks/01_origin_evaluation.ipynb"):
        open_stage("02_kinship_analysis", "params/smoke.yaml")
    job = open_stage("02_kinship_analysis", "params/smoke.yaml", fallback="params/paper.yaml")
    assert (
        job.experiment.settings.name == "paper" and job.folder == tmp_path / "clone" / "outputs" / "paper" / "kinship"
    )
    assert "Until then params/paper.yaml is shown here." in capsys.readouterr().out
    source = (ROOT / "notebooks" / "02_kinship_analysis.ipynb").read_text("utf-8")
    assert 'experiment, fallback=\\"params/paper.yaml\\")' in source
