// The page's manners: theme, sorting, filters, and what stands behind a value. Without it every table can still be read.
// Text from records only ever becomes text (textContent), never markup.
"use strict";

const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

/** An element with attributes and children; strings among the children become text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Tell a screen reader, without showing it. */
function say(text) {
  let region = document.getElementById("said");
  if (!region) document.body.append((region = element("p", { id: "said", class: "unseen", role: "status" })));
  region.textContent = text;
}

// Theme: the system's until the reader chooses; the choice is remembered where the browser allows it.
const THEMES = ["auto", "light", "dark"];
const remembered = {
  get: () => { try { return localStorage.getItem("adbench-theme"); } catch { return null; } },
  set: (value) => { try { localStorage.setItem("adbench-theme", value); } catch { /* for this visit only */ } },
};
let theme = THEMES.includes(remembered.get()) ? remembered.get() : "auto";

function applyTheme() {
  root.dataset.theme = theme;
  all(".theme").forEach((button) => { button.textContent = `Theme: ${theme}`; });
}
applyTheme(); // before the first paint

function setUpTheme(button) {
  applyTheme();
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    remembered.set(theme);
    applyTheme();
    say(`Theme: ${theme}`);
  });
}

// Sorting: best first, then worst first, then as it was. Rows stay within their block.
const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** The number that a cell begins with; NaN for a dash, "failed" or words. */
const number = (cell) => parseFloat(cell.textContent.replace(/\u2212/g, "-").replace(/[<\u202f\s]/g, ""));

function sortTable(table, header, direction) {
  const index = header.cellIndex;
  for (const body of table.tBodies) {
    const rows = all("tr:not(.block)", body);
    if (!body.order) body.order = rows;
    let sorted = body.order;
    if (direction !== "none") {
      const sign = direction === "descending" ? -1 : 1;
      const numeric = header.classList.contains("number");
      sorted = body.order
        .map((row) => [row, numeric ? number(row.cells[index]) : row.cells[index].textContent.trim()])
        .sort(([, a], [, b]) => numeric
          ? Number.isNaN(a) - Number.isNaN(b) || sign * (a - b) || 0 // what has no number stays last
          : sign * collator.compare(a, b))
        .map(([row]) => row);
    }
    body.append(...sorted);
  }
  all("th[aria-sort]", table).forEach((th) => th.removeAttribute("aria-sort"));
  if (direction !== "none") header.setAttribute("aria-sort", direction);
}

function setUpSorting(table) {
  const headers = all("thead tr:last-child th", table);
  for (const header of headers) {
    const button = element("button", { type: "button" }, ...header.childNodes);
    header.replaceChildren(button);
    const turns = header.matches(".number:not(.lower)") ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort") ?? "none";
      const next = turns[(turns.indexOf(now) + 1) % turns.length];
      sortTable(table, header, next);
      say(next === "none" ? "Original order" : `Sorted by ${button.textContent}, ${next}, within each group of rows`);
    });
  }
}

// Filters. A table, figure, row or column that names another value of a chosen facet is hidden; one that names none stays.
const filters = { facets: {}, words: [] };
const differs = (node) => Object.entries(filters.facets).some(([facet, value]) => node.dataset[facet] !== undefined && node.dataset[facet] !== value);

function filterTable(table) {
  const box = table.closest(".table");
  let kept = 0;
  for (const body of table.tBodies) {
    const block = body.querySelector(".block")?.textContent ?? "";
    let inBody = 0;
    for (const row of all("tr:not(.block)", body)) {
      row.words ??= `${block} ${row.textContent}`.toLowerCase();
      row.hidden = differs(row) || !filters.words.every((word) => row.words.includes(word));
      inBody += !row.hidden;
    }
    body.hidden = inBody === 0;
    kept += inBody;
  }
  const heads = all("thead tr:last-child th", table);
  const off = heads.map(differs);
  if (table.offColumns || off.includes(true)) {
    table.offColumns = off.includes(true);
    all("thead tr:first-child .group", table).forEach((group) => { group.hidden = differs(group); });
    for (const row of all("tr:not(.block)", table)) {
      if (row.closest("thead") && row !== heads[0].parentNode) continue;
      off.forEach((hide, i) => { row.cells[i].hidden = hide; });
    }
  }
  box.hidden = differs(box) || kept === 0 || (off.includes(true) && !heads.some((head, i) => i > 0 && !off[i]));
  return box.hidden ? 0 : kept;
}

function applyFilters(bar) {
  filters.facets = Object.fromEntries(all("select", bar).filter((s) => s.value).map((s) => [s.dataset.facet, s.value]));
  filters.words = bar.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
  const active = filters.words.length > 0 || Object.keys(filters.facets).length > 0;
  let kept = 0;
  let total = 0;
  for (const table of all("main table")) {
    kept += filterTable(table);
    total += all("tbody tr:not(.block)", table).length;
  }
  all("main figure").forEach((figure) => { figure.hidden = differs(figure); });
  document.dispatchEvent(new CustomEvent("filtered", { detail: filters.facets.method }));
  for (const section of all("main section")) {
    const content = all(".table, figure", section);
    const empty = content.length > 0 && content.every((node) => node.hidden);
    const none = section.querySelector(".none");
    if (none) none.hidden = !empty;
    const link = document.querySelector(`nav a[href="#${CSS.escape(section.getAttribute("aria-labelledby"))}"]`);
    link?.classList.toggle("empty", empty);
  }
  all(".finding").forEach((finding) => { finding.hidden = differs(finding); });
  all("select", bar).forEach((select) => select.classList.toggle("chosen", select.value !== ""));
  bar.querySelector("[type=reset]").hidden = !active;
  bar.querySelector(".shown").textContent = active ? `${kept} of ${total} rows` : `${total} rows`;
  fit();
}

function setUpFilters(bar) {
  const form = bar.querySelector("form");
  let waiting = 0;
  const later = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(() => applyFilters(bar)); };
  form.addEventListener("input", later);
  form.addEventListener("reset", () => setTimeout(later));
  form.addEventListener("submit", (event) => event.preventDefault());
  const opener = bar.querySelector(".filters");
  opener.addEventListener("click", () => {
    opener.setAttribute("aria-expanded", form.classList.toggle("open"));
    fit();
  });
  bar.hidden = false;
  applyFilters(bar);
}

/** Tables that fit keep their heads below the bar while the page scrolls; others scroll by themselves. */
function fit() {
  const bar = document.querySelector(".bar");
  root.style.setProperty("--bar", `${bar.offsetHeight}px`);
  const boxes = all(".scroll");
  const whole = boxes.map((box) => box.firstElementChild.offsetWidth <= box.parentNode.clientWidth); // read all, then write
  boxes.forEach((box, i) => box.classList.toggle("whole", whole[i]));
}

// What stands behind a value: one card for all, shown on hover and focus, kept by a click, gone with Escape.
const card = {
  node: null,
  owner: null,
  hiding: 0,
  show(owner, content, kept, where = () => owner.getBoundingClientRect()) {
    clearTimeout(this.hiding);
    if (this.owner !== owner) this.owner?.removeAttribute("aria-describedby");
    this.owner?.setAttribute("aria-expanded", "false");
    this.owner = owner;
    this.where = where;
    this.node.replaceChildren(...content);
    this.node.toggleAttribute("data-kept", kept);
    this.node.hidden = false;
    owner.setAttribute("aria-describedby", "card");
    if (owner.tagName === "BUTTON") owner.setAttribute("aria-expanded", kept);
    this.place();
  },
  place() {
    const where = this.where();
    const { width, height } = this.node.getBoundingClientRect();
    const below = where.bottom + 8 + height < innerHeight || where.top < height + 8;
    this.node.style.left = `${Math.max(12, Math.min(where.left + where.width / 2 - width / 2, innerWidth - width - 12))}px`;
    this.node.style.top = `${Math.max(8, below ? Math.min(where.bottom + 8, innerHeight - height - 8) : where.top - height - 8)}px`;
  },
  hide() {
    clearTimeout(this.hiding);
    this.node.hidden = true;
    this.owner?.setAttribute("aria-expanded", "false");
    this.owner?.removeAttribute("aria-describedby");
    this.owner = null;
  },
  get kept() { return !this.node.hidden && this.node.hasAttribute("data-kept"); },
  later() { if (!this.kept) { clearTimeout(this.hiding); this.hiding = setTimeout(() => this.hide(), 160); } },
};

/** What `evidence` tells about a cell, as the card shows it. */
function behind(cell, evidence) {
  const [details, records] = evidence.cells[cell.dataset.e];
  const row = cell.parentNode;
  const table = cell.closest("table");
  const head = all("thead tr:last-child th", table)[cell.cellIndex];
  const group = head.dataset.group ?? "";
  const block = row.parentNode.querySelector(".block")?.textContent.trim() ?? "";
  const of = [row.cells[0] === cell ? "" : row.cells[0].textContent.trim(), block, group, head.textContent].filter(Boolean);
  const list = element("dl");
  for (let i = 0; i < details.length; i += 2) {
    list.append(element("dt", {}, evidence.texts[details[i]]), element("dd", {}, evidence.texts[details[i + 1]]));
  }
  if (records.length) {
    const paths = records.map((i) => element("li", {}, element("code", {}, evidence.texts[i])));
    list.append(element("dt", { class: "paths" }, records.length > 1 ? "Records" : "Record"), element("dd", { class: "paths" }, element("ul", {}, ...paths)));
  }
  return [
    element("p", { class: "of" }, of.join(" · ")),
    element("p", { class: "value" }, [...cell.childNodes].map((node) => node.textContent.trim()).join(" ").trim()),
    list,
  ];
}

function setUpEvidence(evidence) {
  card.node = element("div", { class: "card", id: "card", role: "tooltip", hidden: "" });
  document.body.append(card.node);
  for (const cell of all("[data-e]")) {
    const button = element("button", { type: "button", tabindex: "-1", "aria-expanded": "false" });
    button.append(...[...cell.childNodes].filter((node) => !node.classList?.contains("spread")));
    cell.prepend(button);
  }
  for (const table of all("table")) table.querySelector("td button")?.setAttribute("tabindex", "0");
  const target = (event) => event.target.closest?.("[data-e]")?.querySelector("button");
  const open = (button, kept) => card.show(button, behind(button.parentNode, evidence), kept);
  const main = document.querySelector("main");
  main.addEventListener("pointerover", (event) => {
    const button = target(event);
    if (button && event.pointerType === "mouse" && !card.kept) open(button, false);
  });
  main.addEventListener("pointerout", (event) => { if (target(event) && event.pointerType === "mouse") card.later(); });
  card.node.addEventListener("pointerenter", () => clearTimeout(card.hiding));
  card.node.addEventListener("pointerleave", () => card.later());
  main.addEventListener("focusin", (event) => {
    const button = target(event);
    if (!button || event.target !== button) return;
    all("td button[tabindex='0']", button.closest("table")).forEach((other) => other.setAttribute("tabindex", "-1"));
    button.setAttribute("tabindex", "0");
    if (button.matches(":focus-visible")) open(button, false);
  });
  main.addEventListener("focusout", (event) => { if (event.target === card.owner) card.later(); });
  document.addEventListener("click", (event) => {
    const button = target(event);
    if (button && !(card.kept && card.owner === button)) open(button, true);
    else if (!card.node.contains(event.target)) card.hide();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !card.node.hidden) card.hide();
    if (document.activeElement?.matches("[data-e] > button")) move(event);
  });
  // A focused value scrolls into view by itself: its card goes along.
  document.addEventListener("scroll", (event) => {
    if (card.node.hidden || event.target === card.node) return;
    if (card.kept || card.owner === document.activeElement) card.place();
    else card.hide();
  }, { passive: true, capture: true });
}

/** Arrow keys go from value to value, Home and End to a row's first and last. */
function move(event) {
  const button = document.activeElement;
  const cell = button.parentNode;
  const rows = all("tbody tr:not(.block)", cell.closest("table")).filter((row) => row.offsetParent);
  const values = (row) => all("[data-e]:not([hidden])", row);
  const here = values(cell.parentNode);
  const column = (row) => values(row).find((other) => other.cellIndex === cell.cellIndex);
  const place = rows.indexOf(cell.parentNode);
  const to = {
    ArrowRight: () => here[here.indexOf(cell) + 1],
    ArrowLeft: () => here[here.indexOf(cell) - 1],
    ArrowDown: () => rows.slice(place + 1).map(column).find(Boolean),
    ArrowUp: () => rows.slice(0, place).reverse().map(column).find(Boolean),
    Home: () => here[0],
    End: () => here.at(-1),
  }[event.key]?.();
  if (to) { event.preventDefault(); to.querySelector("button").focus(); }
}

/** Mark in the contents where the reader is. */
function setUpContents() {
  const links = new Map(all("nav a").map((link) => [document.getElementById(link.hash.slice(1)), link]));
  const watch = new IntersectionObserver(() => {
    const passed = [...links.keys()].filter((heading) => heading.getBoundingClientRect().top < innerHeight / 3);
    links.forEach((link) => link.removeAttribute("aria-current"));
    if (passed.length) links.get(passed.at(-1)).setAttribute("aria-current", "true");
  }, { rootMargin: "0px 0px -66% 0px", threshold: [0, 1] });
  links.forEach((_, heading) => watch.observe(heading));
}

document.addEventListener("DOMContentLoaded", () => {
  const bar = document.querySelector(".bar");
  setUpTheme(bar.querySelector(".theme"));
  setUpEvidence(JSON.parse(document.getElementById("evidence").textContent));
  all("table").forEach(setUpSorting);
  all("[data-chart]").forEach(setUpChart);
  setUpFilters(bar);
  setUpContents();
  new ResizeObserver(fit).observe(document.body);
  all("details").forEach((details) => details.addEventListener("toggle", fit));
});
