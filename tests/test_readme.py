"""The README and the pages of docs/ that it leads to: every command and example runs, every path exists."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from karma.study.experiment import load_base, load_experiment
from tests.conftest import ROOT, plain_environment, project_environment, run_karma

README = (ROOT / "README.md").read_text()
# pools.md, scores.md and scale.md have tests of their own; footguns.md and reliability.md show no command
NAMES = ("commands", "demo", "differences", "labels", "selection", "self_play", "training", "win_rates", "your_data")
PAGES = {"README.md": README} | {f"docs/{name}.md": (ROOT / "docs" / f"{name}.md").read_text() for name in NAMES}
EVERYTHING = PAGES | {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "docs").glob("*.md")}


def fenced(kind: str) -> list[str]:
    return [
        block for page in PAGES.values() for block in re.findall(rf"^```{kind}\n(.*?)^```", page, flags=re.M | re.S)
    ]


COMMANDS = [line for block in fenced("sh") for line in block.splitlines() if line.strip()]
MODELS = ("gpt-4", "bard", "llama-2-7b-chat", "alpaca-7b")


@pytest.fixture
def project(smoke) -> Path:
    """The smoke project with what the README's reader has: a pool, recorded answers and responses of their own."""
    items = (smoke / "karma/data/demo/arc_easy.jsonl").read_text().splitlines()
    answers = [{"item_id": json.loads(item)["id"], "answer": "The answer is (A)."} for item in items]
    (smoke / "my_answers.jsonl").write_text("\n".join(json.dumps(answer) for answer in answers))
    rows = [{"source": "mine", "instruction": f"Name {i} fruits.", "completions": [{"model": m, "response": f"{m} names {i}"} for m in MODELS]}
            for i in range(10)]  # fmt: skip
    (smoke / "my_pool.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name in "ab":
        rows = [{"prompt": f"Name {i} fruits.", "response": f"{name} names {i}"} for i in range(4)]
        (smoke / f"my_responses_{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return smoke


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 8 and "make demo" in README and "make test" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(project, command):
    program, *words = shlex.split(command.replace("params/demo.yaml", "params/smoke.yaml"))
    before = {path: path.read_bytes() for path in project.glob("outputs/smoke/pairs/*/pairs.parquet")}
    if program == "karma":
        result = run_karma(project, *words)
    else:  # a kernel without the kit's help, as in JupyterLab
        result = subprocess.run([sys.executable, "-m", program, *words], cwd=project, env=plain_environment(project),
                                text=True, capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, f"{command}\n{result.stdout[-1500:]}\n{result.stderr[-1500:]}"
    assert before and {path: path.read_bytes() for path in before} == before, "the same pairs, however they are made"


def test_the_first_screen_s_python_prints_a_real_pair_with_nothing_to_download(tmp_path):
    """Five lines, in an empty folder, without the network's libraries reaching for anything."""
    (code,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "KARMA_CACHE": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    heads = [line.split(" ")[0] for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert heads == ["prompt", "chosen", "rejected", "kinship"] and not list(tmp_path.iterdir())
    rows = [json.loads(line) for line in (ROOT / "karma/data/sample/pool.jsonl").read_text().splitlines()]
    shown = " ".join(result.stdout.split())
    (row,) = [row for row in rows if " ".join(row["instruction"].split()) in shown]
    written = {one["model"]: " ".join(one["response"].split()) for one in row["completions"]}
    sides = re.findall(r"^(?:chosen|rejected) \(([\w-]+), score", result.stdout, flags=re.M)
    assert len(set(sides)) == 2 and all(written[name] in shown for name in sides), "no model wrote that"


@pytest.mark.parametrize("code", [code for code in fenced("python") if code not in README])
def test_the_python_example_runs(project, code):
    result = subprocess.run([sys.executable, "-c", code], cwd=project, env=project_environment(project), text=True,
                            capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("10 ")


def test_the_yaml_example_is_a_valid_experiment(tmp_path):
    (example,) = fenced("yaml")
    (tmp_path / "mine.yaml").write_text(example)
    assert load_experiment(tmp_path / "mine.yaml").settings.name == yaml.safe_load(example)["name"]


def test_every_linked_file_exists():
    n = 0
    for page, text in EVERYTHING.items():
        for link in re.findall(r"\]\((?!http)([^)#]+)\)|src=\"([^\"]+)\"", text):
            assert ((ROOT / page).parent / (link[0] or link[1])).is_file(), (page, link)
            n += 1
    assert n > 30


def test_every_page_of_docs_is_led_to():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README, page.name


def test_the_first_screen_answers_a_stranger_s_questions():
    """What is it, what does it look like, how do I start, how long, does it work; the page itself stays short."""
    assert len(README.splitlines()) <= 120
    order = ["**Turn benchmark scores into preference pairs", "*Score*", "**S_pref**", "](docs/karma.png)", "```python", "make demo",
             "it takes", "it downloads", "## Does it work?", "no kinship strategy is above RLAIF", "recorded_labels.png",
             "**What is not shown.**", "CITATION.cff"]  # fmt: skip
    places = [README.index(text) for text in order]
    assert places == sorted(places), dict(zip(order, places, strict=True))
    words = re.findall(
        r"(?:an|the|two answers|mean score)? ?\*\*([\w ]+)\*\*", README[README.index("Eight words") :].splitlines()[0]
    )
    assert words == ["origin model", "pool", "S_pref", "kinship", "pair", "strategy", "label", "policy"]


def test_every_command_in_prose_exists_with_its_options():
    """`karma x --y` between backticks, on every page: the command is there, and has the option."""
    from importlib import import_module

    from karma.cli import COMMANDS as FILES
    from karma.cli import _build

    n = 0
    for page, text in EVERYTHING.items():
        for shown in re.findall(r"`(?:\.venv/bin/)?karma ([a-z_][a-z_-]*)([^`]*)`", text):
            name, rest = shown
            assert name in FILES, f"{page}: karma {name}"
            command = _build(name, getattr(import_module(f"karma.commands.{FILES[name]}"), name.replace("-", "_")))
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest):
                assert option in known, f"{page}: karma {name} {option}"
                n += 1
            for file in re.findall(r"params/[\w/]+\.yaml", rest):
                assert file == "params/mine.yaml" or (ROOT / file).is_file(), f"{page}: {file}"
        for target in re.findall(r"`make ([a-z-]+)`", text):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M), f"{page}: make {target}"
    assert n > 10


# --- what `make readme` writes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    """docs/make_readme.py with the modules beside it."""
    sys.path.insert(0, str(ROOT / "docs"))
    import make_readme

    yield make_readme
    sys.path.remove(str(ROOT / "docs"))


def find_block(text: str, markers: tuple[str, str]) -> str:
    return text.split(markers[0])[1].split(markers[1])[0].strip()


def test_what_is_said_of_the_published_tables_is_computed(made):
    assert find_block(README, made.FOUND).splitlines()[0] == made.build_published()


def test_the_ladder_is_of_recorded_runs_that_name_date_and_processor(made):
    from karma.study.times import load_times

    block = find_block(README, made.LADDER)
    for run in load_times():
        assert (
            f"{run['minutes']:.0f} min ({run['n_jobs']} jobs)" in block
            and run["device"] in block
            and run["date"] in block
        )
    rows = made.make_ladder.build_ladder([], list(load_times()), "a machine", "a day").splitlines()
    told = {" ".join(row.split()) for row in block.splitlines()}
    assert {" ".join(row.split()) for row in rows if "karma run" in row or "`make " in row} <= told
    timed = [
        row for row in block.splitlines() if re.match(r"\| (the lines above|`karma report paper`|`make lab`)", row)
    ]
    assert len(timed) == 3 and all(
        re.search(r"\| \d+(\.\d)? (s|min|h) ", row) and re.search(r"\(20\d\d-\d\d-\d\d\)", row) for row in timed
    )


def test_the_picture_is_of_the_package_s_own_pool_and_its_text_fits(made):
    from matplotlib.patches import FancyBboxPatch

    from tests.boxes import check_boxes

    picture = made.make_picture
    shown = picture.choose(picture.list_examples())
    figure = picture.draw(shown)
    texts = [text for ax in figure.axes for text in ax.texts]
    check_boxes(figure)
    boxes = [
        patch.get_window_extent() for ax in figure.axes for patch in ax.patches if isinstance(patch, FancyBboxPatch)
    ]
    inside = [(text, box) for text in texts for box in boxes if box.contains(*text.get_window_extent().min + 4)]
    assert len(inside) == len(boxes) == 1 + 4 + 2 + 2
    for text, box in inside:
        assert box.contains(*text.get_window_extent().max), f"out of its box: {text.get_text()}"
    words = " ".join(text.get_text() for text in texts)
    assert all(name in words and f"{value:.2f}" in words for name, value in shown.s_pref.items())
    assert f"kinship {shown.kinship:.3f}" in words and f"chosen: {shown.chosen}" in words
    assert shown.s_pref[shown.chosen] > shown.s_pref[shown.rejected] and len(shown.answers) == 4
    svg = (ROOT / "docs" / "karma.svg").read_text()
    assert (ROOT / "docs" / "karma.png").stat().st_size > 20_000 and "<svg" in svg


def test_the_tree_is_the_tree():
    (tree,) = [block for block in re.findall(r"^```\n(.*?)^```", README, flags=re.M | re.S) if "notebooks/" in block]
    for name in re.findall(r"^([a-z]+)/", tree, flags=re.M):
        assert (ROOT / name).is_dir(), name


def test_pure_modules_import_no_torch():
    """In turn, so that the module that brings it is named."""
    code = """import sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(f"karma.{name}")
    print(name, [m for m in ("torch", "transformers", "trl", "datasets") if m in sys.modules])"""
    pure = ("scores.read", "kinship.study", "pairs.build", "pairs.quality_gap", "potential.margins",
            "potential.selection", "potential.study", "results.claims")  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code, *pure], text=True, capture_output=True, check=True)
    assert result.stdout.splitlines() == [f"{name} []" for name in pure]


def test_a_wheel_brings_the_command_and_its_data(tmp_path):
    """Built without the network from the installed backend, unpacked, and used outside of any clone."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")], cwd=ROOT,
                   check=True, capture_output=True)  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site")], check=True)
    assert "karma = karma.cli:main" in next((tmp_path / "site").glob("*.dist-info/entry_points.txt")).read_text()
    (tmp_path / "away").mkdir()
    rows = [{"source": "mine", "instruction": "Hi", "completions": [{"model": m, "response": m} for m in MODELS]}]
    (tmp_path / "away" / "pool.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KARMA")} | {
        "PYTHONPATH": str(tmp_path / "site")
    }
    result = subprocess.run([sys.executable, "-m", "karma.cli", "binarize", "--pool", "pool.jsonl", "--strategy", "k_sim", "--out", "pairs"],
                            cwd=tmp_path / "away", env=environment, text=True, capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "away" / "pairs" / "pairs.parquet").is_file()


def test_base_yaml_says_what_every_value_is():
    """Each value's line carries a comment with its unit or its source."""
    load_base()
    bare = [line for line in (ROOT / "params" / "base.yaml").read_text().splitlines()
            if re.match(r"\s+\w+: \S", line) and "#" not in line]  # fmt: skip
    assert not bare


def test_the_example_is_put_between_its_markers_and_twice_is_once(made):
    page = PAGES["docs/demo.md"]
    once = made.insert_example(page, "the example")
    assert f"{made.BEGIN}\n\nthe example\n\n{made.END}" in once and made.insert_example(once, "the example") == once
    assert once.split(made.BEGIN)[0] == page.split(made.BEGIN)[0]
    assert once.split(made.END)[1] == page.split(made.END)[1]
    with pytest.raises(made.InputError, match="put both where the example is to stand"):
        made.insert_example("# a README without markers", "the example")
