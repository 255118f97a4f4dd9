"""Names and answers of others are shown as they are: nothing of them runs, is fetched, or computes."""

import csv
import io
import json
import re
from pathlib import Path

import mistune
import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from hypothesis import example, given, settings
from hypothesis import strategies as st

from karma.labels import tournament
from karma.pairs.build import build_pairs
from karma.pairs.folder import save_pairs
from karma.pool.pool import load_pool
from karma.results.page import render_page, show_links
from karma.results.tables import build_plain
from karma.scores.read import load_score_table
from karma.study.escape import (
    escape_formula,
    escape_frame,
    escape_html,
    escape_latex,
    escape_markdown,
    quote_code,
    style,
    write_markdown,
)
from karma.training.card import build_model_card
from tests.conftest import ROOT
from tests.test_report import look_at

SCRIPT = "<script>window.harmed = 1; document.title = 'harmed'</script>"
PICTURE = '<img src=x onerror="window.harmed = 1">'
REMOTE = "![logo](https://example.com/beacon.png)"
LATEX = r"\input{/etc/passwd} $\frac{1}{0}$ 100% a_b #1 & ~^"
FORMULA = '=HYPERLINK("https://example.com", "click")'
LINK = "[click](javascript:alert(1)) <javascript:alert(1)> `code` **bold** | cell | ~~gone~~"
HOSTILE = [SCRIPT, PICTURE, REMOTE, LATEX, FORMULA, LINK, "'\"><svg onload=alert(1)>", "</td></table><h1>", "<!--",
           "+1+cmd|' /C calc'!A0", "@SUM(A1)", "-2+3", "\t=1", "＝1+1", "\x1b[31mred", "two\n# lines", "\u202egnp.exe",
           "---\ntitle: x\n---", "{{ 7 * 7 }}", "</script><script>alert(1)</script>"]  # fmt: skip
TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30) | st.sampled_from(HOSTILE)
TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td", "style", "caption"}


def find_live(html: str, but: str = "") -> list[str]:
    """Return what of a page would run or be fetched."""
    body = BeautifulSoup(html, "html.parser")
    found = [str(tag)[:100] for tag in body.select("script, iframe, object, embed, link, base, form, svg[onload]")]
    for tag in body.find_all(True):
        found += [f"{tag.name} {name}={value}" for name, value in tag.attrs.items()
                  if name.startswith("on") or re.match(r"\s*(javascript|https?|data:text|//)", str(value))]  # fmt: skip
    return [one for one in found if not (but and but in one)]


def find_live_markdown(text: str) -> list[str]:
    """Return what a renderer that lets HTML through would make of a Markdown text, and pictures of any address."""
    html = mistune.create_markdown(escape=False, plugins=["table", "strikethrough"])(text)
    return find_live(html) + [str(tag) for tag in BeautifulSoup(html, "html.parser").select("img, del, h1 script")]


@given(TEXTS)
@example("__0__")
@example("a__b__c")
@settings(max_examples=100, deadline=None)
def test_a_text_in_markdown_reads_as_it_is(text):
    render = mistune.create_markdown(escape=False, plugins=["table", "strikethrough"])
    html = render("x " + escape_markdown(text) + " x")
    shown = BeautifulSoup(html, "html.parser")
    assert {tag.name for tag in shown.find_all(True)} <= {"p"}, html
    item, cell = render(f"- {escape_markdown(text)}\n"), render(f"| a |\n|---|\n| {escape_markdown(text)} |\n")
    assert {tag.name for tag in BeautifulSoup(item, "html.parser").find_all(True)} <= {"ul", "li"}, item
    assert len(BeautifulSoup(cell, "html.parser").select("td")) == 1 and "<a " not in cell
    flat = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+", " ", text).split())
    assert " ".join(shown.get_text().split()) == " ".join(f"x {flat} x".split())


@given(st.lists(TEXTS, min_size=3, max_size=3))
@settings(max_examples=20, deadline=None)
def test_a_styled_table_holds_every_text_and_nothing_more(texts):
    name, index, cell = texts
    frame = pd.DataFrame({name: [cell], "n": [0.25]}, index=pd.Index([index], name=name))
    for shown in (style(frame), style(frame).format(precision=1), style(frame).format({"n": "{:.1f}"}, na_rep="-"),
                  style(frame).apply(lambda _: pd.DataFrame("", frame.index, frame.columns), axis=None),
                  style(frame).set_caption(name).set_properties(**{"text-align": "left"})):  # fmt: skip
        body = BeautifulSoup(shown.to_html(), "html.parser")
        assert {tag.name for tag in body.find_all(True)} <= TABLE_TAGS and find_live(str(body)) == []
        assert cell.replace("\r", "\n") in [td.get_text().replace("\r", "\n") for td in body.select("td")]


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_latex_holds_no_command_of_the_text(text):
    made = escape_latex(text)
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum)\{\}|\\[&%$#_{}]", "", made)
    assert not set(bare) & set("\\&%$#_{}~^\n\r")


@given(TEXTS | st.floats(allow_nan=False))
@settings(max_examples=100, deadline=None)
def test_no_cell_is_computed_and_numbers_stay(value):
    made = escape_formula(value)
    if isinstance(value, float):
        assert made is value
        return
    assert made in (value, f"'{value}")
    if str(made).lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")):
        assert not re.search(r"[A-Za-z=@|!*/]", made.replace("to", ""))


def test_cells_written_out():
    assert escape_formula("-0.031 [-0.05, -0.01]") == "-0.031 [-0.05, -0.01]"
    assert escape_formula(" =1+1") == "' =1+1" and escape_formula("-2+cmd|x") == "'-2+cmd|x"
    assert escape_markdown("gpt-3.5_turbo") == "gpt-3.5_turbo" and escape_markdown("_a_") == r"\_a\_"
    assert escape_markdown("-0.03 [-0.05, -0.01]!") == "-0.03 [-0.05, -0.01]!" and escape_markdown("- a") == r"\- a"
    assert escape_markdown("1. a") == r"1\. a" and escape_markdown("## a #1") == r"\## a #1"
    assert quote_code("a\nb") == "`a b`" and escape_html('"><b>') == "&quot;&gt;&lt;b&gt;"
    frame = pd.DataFrame(
        {"=a": ["=b", 1.5]}, index=pd.MultiIndex.from_tuples([("=c", 1), ("d", 2)], names=["=e", None])
    )
    found = escape_frame(frame, escape_formula)
    assert [*found.columns, *found.index] == ["'=a", ("'=c", 1), ("d", 2)] and found.index.names == ["'=e", None]
    assert found["'=a"].tolist() == ["'=b", 1.5]


@pytest.fixture(scope="module")
def table():
    frame = pd.DataFrame({name: HOSTILE for name in (SCRIPT, REMOTE)}, index=pd.Index(HOSTILE, name=PICTURE))
    return build_plain("t", SCRIPT, frame, notes=tuple(HOSTILE))


def test_tables_in_every_form(table, tmp_path):
    table.save(tmp_path)
    assert find_live(table.to_html()) == [] and table.to_html().count("<li>") == len(HOSTILE)
    assert find_live_markdown((tmp_path / "t.md").read_text()) == []
    latex = (tmp_path / "t.tex").read_text()
    assert r"\input" not in latex and r"\frac" not in latex and "\n# lines" not in latex
    cells = [cell for row in csv.reader(io.StringIO((tmp_path / "t.csv").read_text())) for cell in row]
    assert not [cell for cell in cells if escape_formula(cell) != cell and cell != "-2+3"]
    assert find_live_markdown(write_markdown(table.frame)) == []


def hostile_rows(n: int = 12) -> tuple[list[dict], dict[str, str]]:
    """Return a pool whose models, prompts and answers are hostile, and the names its models have in the paper."""
    names = dict(zip([SCRIPT, PICTURE, REMOTE, LATEX], ["gpt-4", "bard", "llama-2-7b-chat", "alpaca-7b"], strict=True))
    rows = [{"source": SCRIPT, "instruction": f"{i} {HOSTILE[i % len(HOSTILE)]}", "completions": [
            {"model": name, "response": f"{HOSTILE[(i + k) % len(HOSTILE)]} {k}"} for k, name in enumerate(names)]}
            for i in range(n)]  # fmt: skip
    return rows, names


def write_scores(path: Path, names: dict[str, str]) -> Path:
    known = pd.read_csv(ROOT / "karma" / "data" / "paper" / "table3.csv")
    column = known.columns[0]
    own = {real: hostile for hostile, real in names.items()}
    known = known[known[column].str.casefold().isin(own)]
    known[column] = known[column].str.casefold().map(own)
    known.to_csv(path, index=False)
    return path


def test_data_cards(tmp_path):
    rows, names = hostile_rows()
    scores = load_score_table(str(write_scores(tmp_path / "scores.csv", names)))
    pairs = build_pairs(load_pool(rows), scores, "k_score", tau=-1.0, seed=0)
    assert len(pairs) > 5
    card = (save_pairs(pairs, tmp_path / "pairs", f"karma binarize {SCRIPT} `x` {REMOTE}") / "README.md").read_text()
    body = card.split("---\n", 2)[2]
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "other"
    assert find_live_markdown(body) == [] and "window.harmed" in body


def test_model_cards():
    spec = {"hub": "a/b", "packaged": None}
    record = {"policy": SCRIPT, "method": "dpo", "n_train_pairs": 1, "data_digest": REMOTE, "seed": 0, "n_updates": 1,
              "dtype": "float32", "device": "cpu", "adapter": False, "alarms": HOSTILE, "settings": {REMOTE: SCRIPT},
              "held_out": {"n": 0}}  # fmt: skip
    held_out = {"accuracy": 0.5, "n": 4, "interval": [0.2, 0.8], "margin_mean": 0.0}
    card = build_model_card({**record, "held_out": held_out}, spec, "k_sim")
    assert find_live_markdown(card.split("---\n", 2)[2]) == []


def test_links_of_the_report(tmp_path, monkeypatch):
    folder = tmp_path / 'a"><img src=x onerror=alert(1)>'
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "<script>x.ipynb").write_text("{}")
    (folder / "provenance.json").write_text(json.dumps({SCRIPT: {}}))
    shown = show_links(type("S", (), {"folder": folder}), folder.parent).data
    assert find_live(shown) == [] and "%3Cscript%3E" in shown and "&lt;script&gt;x" in shown


@pytest.fixture
def page(table, tmp_path) -> Path:
    """A report whose notebook shows hostile tables: escaped, and one that somebody forgot to escape."""
    raw = "<table><thead><tr><th>a</th></tr></thead><tbody>" + "".join(
        f"<tr><td>{text}</td></tr>" for text in [*HOSTILE[:3], '<a href=" jAvascript:alert(1)">x</a>', "<p style='x'>y</p>",
                                                 '<iframe srcdoc="<script>parent.harmed=1</script>"></iframe>'])  # fmt: skip
    shown = [table.to_html(), style(table.frame).to_html(), raw + "</tbody></table>"]
    cells = [nbformat.v4.new_markdown_cell("# t\n\n## One"), *(nbformat.v4.new_code_cell(outputs=[
        nbformat.v4.new_output("display_data", data={"text/html": text})]) for text in shown),
        nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", text="\n".join(HOSTILE))])]  # fmt: skip
    path = tmp_path / "page.html"
    path.write_text(render_page(nbformat.v4.new_notebook(cells=cells)))
    return path


def test_a_report_holds_no_script_but_its_own_and_tells_the_browser_so(page):
    html = page.read_text()
    body = BeautifulSoup(html, "html.parser")
    (own,) = body.select("script")
    downloads = [link.extract() for link in body.select("a.download")]
    assert downloads and all(re.match(r"data:text/(csv|plain);base64,", link["href"]) for link in downloads)
    assert find_live(str(body), but=str(own)[:60]) == [] and not body.select("iframe, main img[src]")
    policy = body.select_one("meta[http-equiv=Content-Security-Policy]")["content"]
    assert (
        "default-src 'none'" in policy
        and "script-src 'sha256-" in policy
        and "unsafe-inline" not in policy.split("script-src")[1]
    )


def test_a_report_in_a_browser_runs_nothing_of_others(page, tmp_path):
    watch = "<script>addEventListener('load', () => { if (window.harmed) seen.push('harmed'); });</script></body>"
    page.write_text(page.read_text().replace("</body>", watch))
    found = look_at(page, tmp_path)
    assert found["seen"] == [] and found["links"]


def test_notebooks_style_no_table_but_by_the_helper():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        code = "\n".join(
            "".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"
        )
        assert not re.search(r"\.style\b(?!\s+import)|\bHTML\(|to_html\(|escape=False", code), path.name


def test_modules_style_no_table_but_by_the_helper():
    """LaTeX tables are styled by pandas itself, which escapes for LaTeX there."""
    for path in sorted((ROOT / "karma").rglob("*.py")):
        if path.name != "escape.py":
            found = re.findall(r"\.style\.[a-z_]+\(.*", path.read_text())
            assert not [line for line in found if 'escape="latex"' not in line], path


def test_the_same_table_is_the_same_page_and_another_one_is_not():
    frame = pd.DataFrame({"a": [1.5, 2.5]}, index=["x", "y"])
    assert style(frame).to_html() == style(frame.copy()).to_html() != style(frame + 1).to_html()
    assert style(frame).uuid != style(frame + 1).uuid


def test_the_card_of_a_tournament_escapes(monkeypatch):
    frame = pd.DataFrame({"model_a": [SCRIPT], "model_b": [REMOTE], "win_rate": [0.5]})
    assert find_live_markdown(tournament._table(("what", "value"), [(SCRIPT, REMOTE)])) == []
    assert find_live_markdown(write_markdown(frame, index=False)) == []
