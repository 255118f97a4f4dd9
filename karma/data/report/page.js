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

// A long table can be filtered: rows that hold every word stay.
for (const tools of document.querySelectorAll(".tools[data-filter]")) {
  const table = tools.parentElement.querySelector("table");
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "filter rows";
  field.setAttribute("aria-label", "filter rows");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  tools.prepend(field);
}

// A figure is saved from the picture itself, which stands in the page once.
for (const button of document.querySelectorAll("figure.picture button.download")) {
  const link = document.createElement("a");
  link.className = "download";
  link.textContent = button.textContent;
  link.href = button.parentElement.querySelector("img").src;
  link.download = `${button.parentElement.dataset.name}.${button.textContent.toLowerCase()}`;
  button.replaceWith(link);
}

// Dark or light: as the system says, until a reader chooses.
const contents = document.querySelector("#contents");
const theme = document.createElement("button");
theme.id = "theme";
theme.type = "button";
const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
const nameTheme = () => { theme.textContent = isDark() ? "Light page" : "Dark page"; };
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
nameTheme();
contents.append(theme);

// The contents mark the section that is read; on a narrow screen they are folded.
const fold = contents.querySelector("details");
if (matchMedia("(max-width: 60rem)").matches) fold.open = false;
const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.getAttribute("href").slice(1), link]));
const sections = [...document.querySelectorAll("main h2[id]")];
function markSection() {
  const above = sections.filter((section) => section.getBoundingClientRect().top < innerHeight * 0.3);
  const current = above.length ? above[above.length - 1] : sections[0];
  for (const [id, link] of links) {
    if (current && id === current.id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
addEventListener("scroll", markSection, { passive: true });
markSection();

// Print shows all that is folded, and folds it again.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("main details:not([open])")].filter((one) => !one.closest(".browser"));
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });

// The answer browser: one prompt at a time.
for (const browser of document.querySelectorAll(".browser")) {
  const prompts = [...browser.querySelectorAll(".prompt")];
  const steps = document.createElement("div");
  steps.className = "steps tools";
  const place = document.createElement("span");
  place.setAttribute("role", "status");
  const choice = document.createElement("select");
  choice.setAttribute("aria-label", "which prompts");
  const kinds = [["", "all prompts"], ["wrong", "a label is wrong"], ["right", "a label is right, none wrong"], ["differ", "strategies differ"]];
  for (const [value, text] of kinds) choice.add(new Option(text, value));
  let at = 0;
  const list = () => prompts.filter((prompt) => !choice.value || prompt.dataset.kinds.split(" ").includes(choice.value));
  const show = (step) => {
    const shown = list();
    at = shown.length ? (at + step + shown.length) % shown.length : 0;
    for (const prompt of prompts) prompt.hidden = prompt !== shown[at];
    place.textContent = shown.length ? `${at + 1} of ${shown.length}` : "none of this kind";
  };
  const add = (text, step) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => show(step));
    steps.append(button);
  };
  add("previous", -1);
  add("next", 1);
  choice.addEventListener("change", () => { at = 0; show(0); });
  steps.append(choice, place);
  browser.prepend(steps);
  show(0);
}
