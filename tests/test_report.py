"""report.html: what is on it, and that a browser shows it whole."""

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from typer.testing import CliRunner

from karma.cli import app
from karma.commands.report import write_report
from karma.errors import InputError
from karma.files.places import find_project_root
from karma.results.page import export_html, render_page
from karma.study.experiment import load_experiment
from tests.conftest import CALL_LIMIT, run_karma
from tests.study_files import part_pairs, write_study

BEFORE = """<script>window.seen = [];
addEventListener("error", (e) => seen.push(e.message || String(e.target.src || e.target.href)), true);
console.error = (...all) => seen.push(all.join(" "));</script>"""
AFTER = r"""<script>addEventListener("load", () => {
const folded = document.querySelectorAll("main details:not([open])").length;
for (const one of document.querySelectorAll("details")) one.open = true;
const cut = [...document.querySelectorAll("main h1, main h2, p, li, th, td, figcaption, summary, pre, nav, .facts, .answer")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline");
const pictures = [...document.images].map((i) => [i.naturalWidth, i.clientWidth, i.clientHeight, i.alt]);
const sorted = [];
for (const table of document.querySelectorAll("main table")) {
  const button = [...table.querySelectorAll('th [role=button]')].at(-1);
  if (!button || table.tBodies[0].rows.length < 3) continue;
  const text = () => [...table.tBodies[0].rows].map((r) => r.cells[r.cells.length - 1].textContent.trim());
  const first = text(); button.click(); const up = text(); button.click(); const down = text();
  sorted.push({first, up, down});
}
const field = document.querySelector(".tools input");
const rows = field ? [...field.closest("figure").querySelectorAll("tbody tr")] : [];
if (field) { field.value = rows[0].textContent.trim().slice(0, 12).replace(/\s+/g, " "); field.dispatchEvent(new Event("input")); }
const filtered = [rows.filter((r) => !r.hidden).length, rows.length];
const page = () => getComputedStyle(document.body).backgroundColor;
const light = page(); document.querySelector("#theme").click(); const dark = page();
const prompts = () => [...document.querySelectorAll(".browser .prompt:not([hidden])")].map((p) => p.textContent);
const one = prompts(); document.querySelectorAll(".browser .steps button")[1]?.click();
const files = [...document.querySelectorAll("a.download")].map((a) => [a.download, a.href.slice(0, 22)]);
const found = {folded, filtered, light, dark, files, prompts: [one, prompts()],
  current: document.querySelectorAll("nav a[aria-current]").length,
  small: [...document.querySelectorAll("main p, main td, figcaption")].filter((e) => parseFloat(getComputedStyle(e).fontSize) < 12).length,
  seen, pictures, sorted, cut: cut.map((e) => e.tagName + ": " + e.textContent.slice(0, 80)),
  links: [...document.querySelectorAll("nav a")].every((a) => document.querySelector(a.getAttribute("href"))),
  wide: document.documentElement.scrollWidth - innerWidth};
parent.postMessage(JSON.stringify(found), "*"); });</script>"""
FRAME = """<body style="margin:0"><iframe src="looked_at.html" style="width:{width}px;height:1600px;border:0"></iframe>
<script>addEventListener("message", (event) => {{ const out = document.createElement("pre"); out.id = "check";
out.textContent = event.data; document.body.append(out); }});</script></body>"""


def find_chromium() -> str:
    names = [os.environ.get("KARMA_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        message = "no Chromium here: install it, or set KARMA_CHROMIUM, to see whether the report shows whole"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def look_at(page: Path, folder: Path, width: int = 1280) -> dict:
    """Open a page in headless Chromium and return what it says about itself."""
    html = re.sub("<meta http-equiv[^>]*>", "", page.read_text())  # it forbids what looks at the page, too
    html = html.replace("<head>", "<head>" + BEFORE, 1).replace("</body>", AFTER + "</body>", 1)
    copy = folder / "looked_at.html"
    copy.write_text(html)
    frame = folder / "frame.html"  # a window is never narrower than 500 pixels, a frame may be
    frame.write_text(FRAME.format(width=width))
    command = [find_chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,1800",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
               frame.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_LIMIT, check=True)
    check = BeautifulSoup(done.stdout, "lxml").select_one("#check")
    assert check is not None, done.stderr[-500:]
    return json.loads(check.get_text())


def expect_whole(found: dict, n_pictures: int) -> None:
    assert found["seen"] == [], "errors on the page's console"
    assert len(found["pictures"]) >= n_pictures
    assert all(
        natural > 300 and width > 300 and height > 40 and alt for natural, width, height, alt in found["pictures"]
    )
    assert found["cut"] == [], "text is cut"
    assert found["wide"] <= 0, "the page scrolls sideways"
    assert found["links"], "a line of the contents leads nowhere"
    assert found["sorted"], "no table can be sorted"
    assert found["small"] == 0, "text below 12 pixels"
    assert found["folded"] > 2 and found["current"] == 1, "settings are folded, the contents mark one section"
    shown, n_rows = found["filtered"]
    assert 0 < shown < n_rows, "a word leaves some rows"
    assert found["light"] == "rgb(255, 255, 255)" != found["dark"], "the page has a dark side"
    kinds = [(name.rpartition(".")[2], href.partition(";")[0]) for name, href in found["files"]]
    pictures = [each for each in kinds if each[0] != "csv"]
    assert set(pictures) == {("svg", "data:image/svg+xml"), ("bib", "data:text/plain")}
    assert len(pictures) == len(found["pictures"]) + 1 and ("csv", "data:text/csv") in kinds


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_report("paper", out=tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """The page of a half-finished study in a clone of its own, made as `karma report` makes it."""
    root, here = find_project_root(), Path.cwd()
    clone = tmp_path_factory.mktemp("clone")
    for name in ("params", "notebooks"):
        shutil.copytree(root / name, clone / name)
    shutil.copy(root / "tests" / "study.yaml", clone / "params" / "demo.yaml")
    try:
        os.chdir(clone)
        experiment = load_experiment("params/demo.yaml")
        assert experiment.outputs == clone / "outputs" / "demo"
        write_study(experiment)
        part_pairs(experiment)
        (experiment.outputs / "runs/smollm2-135m/k_sim/dpo/seed0/scores.json").unlink()
        return write_report("params/demo.yaml", price=2.0)
    finally:
        os.chdir(here)


def test_the_published_report_holds_everything(published):
    folder = published.parent
    for number in (1, 2, 3, 4, 5, 6, 7, 9):
        for suffix in ("png", "svg"):
            assert (folder / "figures" / f"figure{number}.{suffix}").stat().st_size > 5000
    for number in (1, 2, 3, 4):
        for suffix in ("csv", "md", "tex"):
            assert (folder / "tables" / f"table{number}.{suffix}").is_file()
    assert len(pd.read_csv(folder / "tables" / "audit.csv")) > 25
    text = BeautifulSoup(published.read_text(), "lxml").get_text()
    for piece in ("three cells differ", "contradicts itself", "0.3177", "Qwen2.5-7B", "inferred"):
        assert piece in text


def test_pages_fetch_nothing_and_show_no_code(published, measured):
    for page in (published, measured):
        html = page.read_text()
        assert not re.search(r"""(src|href)=["'](https?:)?//""", html)
        assert "@import" not in html and "url(" not in html and "MathJax" not in html
        body = BeautifulSoup(html, "lxml")
        assert "open_results(" not in body.get_text() and not body.select(".highlight, .input, .input_area")
        alts = [image["alt"] for image in body.select("img")]
        assert all(len(alt) > 30 for alt in alts) and "{" not in "".join(alts)


def test_a_half_finished_study_is_reported_with_its_gap(measured):
    html = measured.read_text()
    text = " ".join(BeautifulSoup(html, "lxml").get_text().split())
    assert "runs/smollm2-135m/k_sim/dpo/seed0/scores.json" in text and "n/a" in text
    assert "cannot tell: its runs are missing" in text and "cannot tell with n = " in text
    assert "break-even" in text and "0.18" in text
    folder = measured.parent
    assert folder.name == "demo" and len(list((folder / "figures").glob("figure?.png"))) == 9
    for name in (
        "table1",
        "table2",
        "table3",
        "table4",
        "table2_beside_paper",
        "claims",
        "ledger",
        "gaps",
        "intervals",
    ):
        assert {p.suffix for p in (folder / "tables").glob(f"{name}.*")} == {".csv", ".md", ".tex"}, name
    for link in BeautifulSoup(html, "lxml").select("main a[href]"):
        target = link["href"]
        assert target.startswith(("#", "data:text/")) or (folder / target).exists(), target


@pytest.mark.parametrize("width", [420, 1400])
def test_the_published_report_in_a_browser(published, tmp_path, width):
    expect_whole(look_at(published, tmp_path, width), n_pictures=8)


@pytest.mark.parametrize("width", [420, 1400])
def test_a_measured_report_in_a_browser(measured, tmp_path, width):
    expect_whole(look_at(measured, tmp_path, width), n_pictures=18)


def test_ours_and_the_papers_are_told_apart_and_everything_has_a_number(measured):
    body = BeautifulSoup(measured.read_text(), "lxml")
    for kind, n_least in (("picture", 18), ("table", 15)):
        figures = body.select(f"figure.{kind}")
        labels = [figure.select_one(".number-label").get_text() for figure in figures]
        assert len(labels) == len(set(labels)) >= n_least, "numbers are given twice"
        assert all(figure.select_one(".title").get_text().strip() for figure in figures)
    own = {f["data-source"]: f for f in body.select("figure.picture[data-name=figure5]")}
    assert own["study"].select_one(".number-label").get_text() == "Figure 5. "
    assert own["paper"].select_one(".number-label").get_text() == "The paper's figure 5. "
    section = own["paper"].find_previous("h2").get_text()
    assert section == "The paper's own numbers" != own["study"].find_previous("h2").get_text()


def test_every_table_of_a_report_says_how_it_is_read(measured, published):
    for page in (measured, published):
        unread = [figure["data-name"] for figure in BeautifulSoup(page.read_text(), "lxml").select("figure.table")
                  if not figure.select_one(".reading")]  # fmt: skip
        assert not unread


def test_the_first_screen_says_what_was_found(measured):
    body = BeautifulSoup(measured.read_text(), "lxml")
    assert body.h1.get_text() == "Study demo: what did kinship change?"
    assert {dt.get_text() for dt in body.select(".facts dt")} == {"study", "finished", "device", "commit", "whole"}
    assert len(body.select(".findings li")) == len(body.select(".findings .caveat")) == 5
    chips = {chip["data-verdict"] for chip in body.select("figure.table .chip")}
    assert chips and chips <= {"supported", "contradicted", "no difference", "cannot tell"}
    assert "By hand" not in body.get_text() and "Exercises" not in body.get_text(), "lessons stay in the notebook"


def test_tables_sort_as_numbers_with_gaps_last(tmp_path):
    frame = "<table><thead><tr><th>k</th><th>v</th></tr></thead><tbody>" + "".join(
        f"<tr><td>{k}</td><td>{v}</td></tr>" for k, v in [("a", "10"), ("b", "n/a"), ("c", "9.5"), ("d", "-1")]
    )
    cells = [nbformat.v4.new_markdown_cell("# t\n\n## One"),
             nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output(
                 "display_data", data={"text/html": frame + "</tbody></table>"})])]  # fmt: skip
    page = tmp_path / "page.html"
    page.write_text(render_page(nbformat.v4.new_notebook(cells=cells)))
    found = look_at(page, tmp_path)
    assert found["sorted"][0]["up"] == ["-1", "9.5", "10", "n/a"]
    assert found["sorted"][0]["down"] == ["10", "9.5", "-1", "n/a"]


def test_a_notebook_that_never_ran_is_refused(tmp_path):
    notebook = find_project_root() / "notebooks" / "06_results.ipynb"
    with pytest.raises(InputError, match="has no outputs, expected an executed notebook"):
        export_html(notebook, tmp_path / "report.html")
    with pytest.raises(InputError, match="does not exist: run `karma notebook 06_results"):
        export_html(tmp_path / "absent.ipynb", tmp_path / "report.html")


def test_the_paper_is_not_compared(tmp_path):
    with pytest.raises(InputError, match="'paper' is no measured study"):
        write_report("paper", "params/demo.yaml", out=tmp_path)


def test_two_studies_are_compared_from_the_command_line(measured, monkeypatch):
    clone = measured.parents[2]
    monkeypatch.chdir(clone)
    text = (clone / "params/demo.yaml").read_text().replace("name: demo", "name: other") + "\nseeds: [1]\n"
    (clone / "params/other.yaml").write_text(text)
    write_study(load_experiment("params/other.yaml"))
    page = write_report("params/demo.yaml", "params/other.yaml")
    assert page == clone / "outputs/demo/compared/demo_against_other.md"
    table = pd.read_csv(page.with_suffix(".csv"))
    assert len(table) == 6 * (1 + 7), "one run of demo is missing: seven pairs of runs, and the start"
    assert "40 scores compared; 0 only in demo, 5 only in other." in page.read_text()
    assert (table["low"] <= table["difference"]).all() and (table["difference"] <= table["high"]).all()


@pytest.mark.parametrize(("arguments", "message"), [
    (["nosuch"], "experiment 'nosuch' not found"), (["paper", "params/demo.yaml"], "is no measured study"),
])  # fmt: skip
def test_errors_are_one_line(arguments, message):
    done = run_karma(find_project_root(), "report", *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith("karma: ") and done.stderr.count("\n") == 1


def _luminance(color):
    """WCAG 2.1's relative luminance of #rrggbb or #rgb."""
    digits = color.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * c for c in digits)
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def spoil_parquet(study):
    for path in study.rglob("*.parquet"):
        path.write_bytes(b"garbage" * 99)
    return "answers.parquet cannot be read as parquet"


def cut_pool(study):
    path = study / "pool" / "pool.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"PAR1 garbage PAR1")
    return "pool.parquet cannot be read as parquet"


def damage_a_page(study):
    path = next(study.rglob("pairs/*/pairs.parquet"))
    raw = bytearray(path.read_bytes())
    raw[8:400] = bytes(392)
    path.write_bytes(raw)
    return "pairs.parquet cannot be read as parquet"


def cut_scores(study):
    path = next(study.rglob("scores.json"))
    path.write_text(path.read_text()[:40])
    return "scores.json cannot be read as JSON"


def list_training(study):
    next(study.rglob("training.json")).write_text("[1]")
    return "training.json is [1]: expected an object"


@pytest.mark.parametrize("damage", [spoil_parquet, cut_pool, damage_a_page, cut_scores, list_training])
def test_a_damaged_study_is_refused_before_anything_is_written(measured, tmp_path, monkeypatch, damage):
    clone = tmp_path / "clone"
    shutil.copytree(measured.parents[2], clone)
    monkeypatch.chdir(clone)
    message = damage(clone / "outputs" / "demo")
    before = sorted(str(path) for path in clone.rglob("*"))
    for arguments in (["params/demo.yaml", "--out", "page"], ["params/demo.yaml"]):
        result = CliRunner().invoke(app, ["report", *arguments])
        assert isinstance(result.exception, InputError), result.output
        said = str(result.exception)
        assert message in said and "outputs/demo" in said and " again" in said and "\n" not in said
    assert sorted(str(path) for path in clone.rglob("*")) == before


def test_text_can_be_read_on_the_light_and_on_the_dark_page():
    style = (find_project_root() / "karma" / "data" / "report" / "page.css").read_text()
    themes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6});", block)) for block in re.findall(r"\{([^{}]*)\}", style)
    ]
    light, dark, chosen = [theme for theme in themes if theme][:3]
    assert dark == chosen and dark.keys() == light.keys(), "asked for by the system, or by the button"
    pairs = [(text, back) for text in ("ink", "dim", "link") for back in ("paper", "soft")]
    pairs += [(name, f"{name}-back") for name in ("yes", "no", "same", "open")]
    for theme in (light, dark):
        for text, back in pairs:
            one, two = sorted((_luminance(theme[text]), _luminance(theme[back])))
            assert (two + 0.05) / (one + 0.05) >= 4.5, f"{text} {theme[text]} on {back} {theme[back]}: WCAG 2.1, AA"


def test_what_killed_reports_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("karma.results.paper_report.report_paper", lambda out: out / "report.html")
    own, machine = tmp_path / "figures", socket.gethostname().partition(".")[0][:40]
    left = [own / f".figure3.svg.{machine}-{pid}-abcdefgh" for pid in (999_999_999, os.getpid())]
    for folder in left:
        folder.mkdir(parents=True)
    write_report("paper", out=tmp_path)
    assert [folder.exists() for folder in left] == [False, True], "what is at work is left alone"
