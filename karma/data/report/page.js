"use strict";
// Tables sort by a click on a column's head: numbers as numbers, gaps (n/a) always last.
const key = (cell) => cell ? cell.textContent.trim() : "";
const number = (text) => /^[-+]?[\d,.]+%?$/.test(text) && /\d/.test(text) ? parseFloat(text.replaceAll(",", "")) : NaN;
const isGap = (text) => text === "" || text === "n/a";
function compare(a, b, sign) {
  if (isGap(a) || isGap(b)) return isGap(a) - isGap(b);
  const [x, y] = [number(a), number(b)];
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
}
for (const table of document.querySelectorAll("main table")) {
  const heads = table.tHead ? [...table.tHead.rows[table.tHead.rows.length - 1].cells] : [];
  const body = table.tBodies[0];
  if (!body || table.querySelector("tbody [rowspan], tbody [colspan]") || table.tHead.rows.length !== 1) continue;
  heads.forEach((head, column) => {
    const cells = [...body.rows].map((row) => row.cells[column]);
    const texts = cells.map(key).filter((text) => !isGap(text));
    if (texts.length && texts.every((text) => !Number.isNaN(number(text)))) {
      for (const cell of [head, ...cells]) cell.classList.add("number");
    }
  });
  heads.forEach((head, column) => {
    const button = document.createElement("span");  // a real button vanishes from the head that print repeats
    button.setAttribute("role", "button");
    button.tabIndex = 0;
    button.append(...head.childNodes);
    head.append(button);
    head.classList.add("sortable");
    button.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); button.click(); }
    });
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const rows = [...body.rows];
      rows.sort((r, s) => compare(key(r.cells[column]), key(s.cells[column]), sign));
      body.append(...rows);
    });
  });
}
