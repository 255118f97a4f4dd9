"""The book and the course, built as `make book` and `make course` build them: no warning, no dead link, no network."""

import re
from urllib.parse import unquote

import pytest

from docs.book import build as book
from docs.book import docstrings
from docs.course import build as course
from docs.course import notebooks
from karma.errors import InputError, KarmaError
from karma.study.experiment import load_experiment
from karma.study.recorded import pack_study, unpack_study
from tests.conftest import ROOT, copy_project

STUDY = "params/smoke.yaml"


@pytest.fixture(scope="module")
def built(smoke, tmp_path_factory):
    pytest.importorskip("myst_nb", reason="the book needs Sphinx: `make book` installs it (pip install -e '.[book]')")
    out = tmp_path_factory.mktemp("book")
    clone = copy_project(tmp_path_factory.mktemp("reader") / "clone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(smoke)
        pack_study(load_experiment(STUDY), out / "recorded.tar.gz")
        patch.chdir(clone)  # a reader's, who has the recorded study alone
        unpack_study(out / "recorded.tar.gz", clone)
        assert book.build_book(load_experiment(STUDY), out) == []
    return out / "html"


@pytest.mark.heavy
def test_the_book_has_every_notebook_with_outputs_and_every_page(built):
    for path in notebooks.NOTEBOOKS:
        page = (built / "notebooks" / f"{path.stem}.html").read_text("utf-8")
        assert "cell_output" in page and ("<math" in page or path.stem.startswith("06"))
        assert "text_error" not in page and "cannot be drawn" not in page
    for name in ("index", "course", "solutions", "glossary", "footguns", "gallery", "api", "api/pairs", "scores"):
        assert (built / f"{name}.html").is_file(), name
    reference = (built / "api" / "pairs.html").read_text("utf-8")
    assert 'id="karma.pairs.build.build_pairs"' in reference and "Raises" in reference
    assert len(re.findall(r"<img[^>]*_images/\d\d_", (built / "gallery.html").read_text("utf-8"))) > 20


@pytest.mark.heavy
def test_every_link_within_the_book_leads_somewhere_and_nothing_is_fetched(built):
    assert book.find_fetched(built) == []
    n = 0
    for page in (path for path in built.rglob("*.html") if "_static" not in path.parts):  # the theme's templates
        for link in re.findall(
            r"<(?:a|img|link|script)\b[^>]*\b(?:href|src)=[\"']([^\"'#?]+)", page.read_text("utf-8")
        ):
            if re.match(r"(https?:|mailto:|data:)", link):
                continue
            assert (page.parent / unquote(link)).exists(), f"{page.name}: {link}"
            n += 1
    assert n > 1000


@pytest.mark.heavy
def test_the_course_is_built_as_make_course_does(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(smoke)
    assert course.build_course(load_experiment(STUDY), tmp_path / "course") == []
    assert len([*(tmp_path / "course").rglob("*.ipynb")]) == 2 * len(notebooks.NOTEBOOKS) + 1


def test_what_a_browser_would_fetch_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<script async src="https://cdn.example/x.js"></script><a href="https://fine.example">a</a>'
    )
    (tmp_path / "b.html").write_text("<link rel='stylesheet' href='//fonts.example/f.css'><img src='local.png'>")
    (tmp_path / "c.css").write_text(
        '@import "https://fonts.example/g.css"; p { background: url(http://x.example/p.png) }'
    )
    (tmp_path / "d.css").write_text("p { background: url(data:image/png;base64,AA) }")
    assert [line.partition(": ")[2] for line in book.find_fetched(tmp_path)] == [
        "https://cdn.example/x.js", "//fonts.example/f.css", "https://fonts.example/g.css", "http://x.example/p.png"]  # fmt: skip


def test_a_fault_in_a_page_fails_the_build(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(book, "build_sources", lambda experiment, out: [out.mkdir(parents=True)][:0])
    monkeypatch.setattr(book, "sys", type("Sys", (), {"executable": "/bin/false"}))
    with pytest.raises(KarmaError, match="the book has faults"):
        book.build_book(load_experiment(ROOT / STUDY), tmp_path)


def test_a_study_without_a_finished_job_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_project(tmp_path / "clone"))
    with pytest.raises(InputError, match="smoke has no finished job: run it, or name another with --study"):
        book.build_book(load_experiment(STUDY), tmp_path / "book")
    assert not (tmp_path / "book").exists()


def test_docstrings_are_made_readable_for_sphinx():
    assert docstrings.mend(["Args:", "    **options: of `Rules`, |a|; held_out_ is cut.", "", "Example:", "    >>> 'a*b'"], False) == [
        "Args:", "    \\**options: of `Rules`, \\|a\\|; held_out\\_ is cut.", "", "Example:", "    >>> 'a*b'"]  # fmt: skip
    assert docstrings.mend(["`Batch`es", "", "    a = |b|", "", "then"], True) == [
        "Batches",
        "",
        "::",
        "",
        "    a = |b|",
        "",
        "then",
    ]


def test_links_to_what_is_no_page_stay_as_text_and_fences_have_a_language(tmp_path):
    text = "[here](scores.md#x) [code](../karma/cli.py) [away](https://a.example) [book](../notebooks/00_karma_in_one_page.ipynb)"
    assert book.mend_links(text, tmp_path, ROOT / "docs") == (
        "[here](/scores.md) code [away](https://a.example) [book](/notebooks/00_karma_in_one_page.ipynb)")  # fmt: skip
    cell = {
        "outputs": [
            {
                "data": {
                    "text/html": '<a href="kinship/x.json">x</a> <a href="https://a.example">y</a> <a href="#z">z</a>'
                }
            }
        ]
    }
    book.unlink_outputs(cell)
    assert cell["outputs"][0]["data"]["text/html"] == 'x <a href="https://a.example">y</a> <a href="#z">z</a>'
    assert book.mend_fences("```csv my.csv\na,b\n```\n```python\nx\n```") == "```text\na,b\n```\n```python\nx\n```"
