"""What the page adds to a report's body: numbers and captions, folds, chips, downloads.

The paper's own tables and figures keep its numbers ("Table 2", "Figure 5") and are marked as the paper's where they
show its numbers; all others count S1, S2 and so on in their order. Decision: the body is changed as a tree, after what
is alive was taken out of it, so that no text of a study becomes markup. Limit: a table is folded by its length alone.
"""

import csv
import io
import re
from base64 import b64encode
from typing import Any

from karma.figures.claims import find_verdict
from karma.results.readings import TABLES
from karma.study.escape import escape_formula

MOST_ROWS = 12  # of a table that is shown at once
LEAST_TO_FILTER = 8
FOLDED = ("settings", "records", "intervals")


def furnish(body: Any) -> list[tuple[str, str]]:
    """Number, caption and fold what is in a page's body, and return its contents: (id, heading) of every h2.

    Args:
        body: a BeautifulSoup, which is changed.
    """
    contents = _number_headings(body)
    for count, table in enumerate(body.select("table"), 1):
        _furnish_table(body, table, count)
    _number(body, "figure.table", "Table", "table")
    for figure in body.select("figure.picture"):
        figure["id"] = f"figure-{figure['data-name']}-{figure['data-source']}"
        button = body.new_tag("button", attrs={"class": "download", "type": "button"})
        button.string = "SVG" if "svg" in figure.img["src"][:20] else "PNG"
        figure.append(button)
        figure.img.wrap(body.new_tag("div", attrs={"class": "scroll"}))
    _number(body, "figure.picture", "Figure", "figure")
    for chip in body.select("[data-verdict]"):
        chip["data-verdict"] = find_verdict(chip["data-verdict"]) or "other"
    return contents


def _number_headings(body: Any) -> list[tuple[str, str]]:
    """Give every h2 an id, and every picture without words the heading above it as its text; return the contents."""
    contents: list[tuple[str, str]] = []
    heading = ""
    for tag in body.find_all(["h1", "h2", "h3", "img"]):
        if tag.name == "img":
            tag["alt"] = tag.get("alt") if tag.find_parent("figure") else heading
            continue
        heading = tag.get_text().strip()
        if tag.name == "h2":
            tag["id"] = f"section-{len(contents) + 1}"
            contents.append((tag["id"], heading))
    return contents


def _number(body: Any, selector: str, word: str, own: str) -> None:
    """Write each one's number before its caption: the paper's where it has one, else the next of S1, S2, ..."""
    n_further = 0
    for figure in body.select(selector):
        known = re.fullmatch(rf"{own}(\d)", figure["data-name"])
        n_further += 0 if known else 1
        number = f"{word} {known[1] if known else f'S{n_further}'}"
        if figure.get("data-source") == "paper":
            number = f"The paper's {number.lower()}" if known else f"{number}, the paper's numbers"
        label = body.new_tag("span", attrs={"class": "number-label"})
        label.string = f"{number}. "
        figure.find(class_="words").insert(0, label)


def _furnish_table(body: Any, table: Any, count: int) -> None:
    """Wrap a table in a figure with caption, reading, download and notes; fold it where it is long."""
    _join_heads(table)
    name = str(table.get("id") or f"table-{count}")
    source = "paper" if name.endswith("_paper") and not name.endswith("beside_paper") else "study"
    name = name.removesuffix("_paper") if source == "paper" else name
    n_rows = len(table.select("tbody tr"))
    caption = table.caption.extract().get_text().strip() if table.caption else name.replace("_", " ").capitalize()
    title = re.sub(r"^Table \d\.? ", "", caption)
    title = title[:1].upper() + title[1:]
    attrs = {"class": "table", "id": f"{name}-{count}", "data-name": name, "data-source": source}
    figure = body.new_tag("figure", attrs=attrs)
    notes = table.find_next_sibling()
    table.wrap(figure)
    table["aria-label"] = title
    del table["id"]
    scroll = table.wrap(body.new_tag("div", attrs={"class": "scroll"}))
    words = body.new_tag("figcaption" if not _is_folded(name, n_rows) else "summary", attrs={"class": "words"})
    strong = body.new_tag("strong", attrs={"class": "title"})
    strong.string = title
    words.append(strong)
    words.append(f" ({n_rows:,} row{'s' * (n_rows != 1)})" if words.name == "summary" else "")
    inside = [scroll]
    tools = body.new_tag("div", attrs={"class": "tools"})
    link = body.new_tag("a", attrs={"class": "download", "download": f"{name}.csv", "href": _encode_csv(table)})
    link.string = "CSV"
    if n_rows >= LEAST_TO_FILTER:
        tools["data-filter"] = "yes"
    tools.append(link)
    if reading := TABLES.get(name):
        read = body.new_tag("p", attrs={"class": "reading"})
        read.string = reading
        inside.insert(0, read)
    inside.insert(len(inside) - 1, tools)
    if notes is not None and notes.name == "ul" and "notes" in notes.get("class", []):
        inside.append(notes.extract())
    target = figure
    if words.name == "summary":
        target = body.new_tag("details", attrs={"class": "fold"})
        figure.append(target)
    target.append(words)
    for part in inside:
        target.append(part)
    _mark_verdicts(body, table)


def _is_folded(name: str, n_rows: int) -> bool:
    return n_rows > MOST_ROWS or name in FOLDED


def _mark_verdicts(body: Any, table: Any) -> None:
    """Put the verdict that a cell begins with into a chip, under a head "verdict"."""
    heads = [th.get_text().strip() for th in table.select("thead tr:last-child th")]
    if "verdict" not in heads:
        return
    for row in table.select("tbody tr"):
        cells = row.find_all(["td", "th"])
        cell = cells[heads.index("verdict")] if len(cells) == len(heads) else None
        if cell is not None and (verdict := find_verdict(text := cell.get_text().strip())):
            chip = body.new_tag("span", attrs={"class": "chip", "data-verdict": verdict})
            chip.string = verdict
            cell.clear()
            cell.extend([chip, text.removeprefix(verdict)])


def _encode_csv(table: Any) -> str:
    """Return a table's text as a data: address of CSV; what a spreadsheet would compute is kept from it."""
    file = io.StringIO()
    writer = csv.writer(file)
    for row in table.select("tr"):
        writer.writerow([escape_formula(cell.get_text().strip()) for cell in row.find_all(["th", "td"])])
    return "data:text/csv;base64," + b64encode(("\ufeff" + file.getvalue()).encode()).decode()


def _join_heads(table: Any) -> None:
    """Move the names of a frame's index into the row of its column heads, and drop layout attributes."""
    for tag in [table, *table.select("tr")]:
        for name in ("border", "style"):
            del tag[name]
    rows = table.select("thead tr")
    if len(rows) == 2 and len(rows[0].select("th")) == len(rows[1].select("th")):
        for above, below in zip(rows[0].select("th"), rows[1].select("th"), strict=True):
            if below.get_text().strip() and not above.get_text().strip():
                above.string = below.get_text().strip()
        rows[1].decompose()
