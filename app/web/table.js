// All clips of this visit: sorted, filtered, exported.

import { locale, say, sayProblem, tagName } from "./i18n.js";
import { clock } from "./timeline.js";

const byId = (id) => document.getElementById(id);

export class Table {
  // `clips`: the page's own list; `onChoose` is told the clip that was chosen.
  constructor(clips, onChoose) {
    this.clips = clips;
    this.onChoose = onChoose;
    this.tags = [];
    this.chosen = null;
    this.order = { column: "", rising: true };
    this.rows = new WeakMap();
    byId("filter").addEventListener("input", () => this.draw());
    byId("carries").addEventListener("change", () => this.draw());
    byId("csv").addEventListener("click", () => save("music-tagger.csv", "text/csv", `\ufeff${this.csv()}`));
    byId("json").addEventListener("click", () => save("music-tagger.json", "application/json", this.json()));
  }

  setTags(tags) {
    this.tags = tags;
    this.drawHead();
  }

  drawHead() {
    const columns = [["name", say("name")], ["duration", say("duration")], ...this.tags.map((tag) => [tag, tagName(tag)])];
    byId("columns").replaceChildren(...columns.map(([column, words]) => {
      const head = document.createElement("th");
      const button = document.createElement("button");
      head.scope = "col";
      head.dataset.column = column;
      button.type = "button";
      button.textContent = words;
      button.addEventListener("click", () => this.#sortBy(column));
      head.append(button);
      return head;
    }));
    const select = byId("carries");
    const before = select.value;
    select.replaceChildren(new Option(say("any"), ""), ...this.tags.map((tag) => new Option(tagName(tag), tag)));
    select.value = this.tags.includes(before) ? before : "";
    this.draw();
  }

  #sortBy(column) {
    // Names rise at first, numbers fall: the most is what one looks for.
    const rising = this.order.column === column ? !this.order.rising : column === "name";
    this.order = { column, rising };
    this.draw();
  }

  // The clips as they stand in the table now.
  shown() {
    const words = byId("filter").value.trim().toLocaleLowerCase();
    const carried = byId("carries").value;
    const found = this.clips.filter((clip) => clip.name.toLocaleLowerCase().includes(words)
      && (!carried || clip.answer?.tags.some(({ tag, present }) => tag === carried && present)));
    const { column, rising } = this.order;
    if (!column) return found;
    const compare = new Intl.Collator(locale(), { numeric: true }).compare;
    return found.sort((one, two) => {
      const [a, b] = [valueOf(one, column), valueOf(two, column)];
      if (a === null || b === null) return (a === null) - (b === null); // those without stay at the end
      return (column === "name" ? compare(a, b) : a - b) * (rising ? 1 : -1);
    });
  }

  draw() {
    for (const head of byId("columns").children) {
      const sorted = head.dataset.column === this.order.column;
      head.setAttribute("aria-sort", sorted ? (this.order.rising ? "ascending" : "descending") : "none");
    }
    const shown = this.shown();
    const rows = shown.map((clip) => this.#row(clip));
    const before = [...byId("rows").children];
    if (rows.length !== before.length || rows.some((row, index) => row !== before[index])) {
      const focused = document.activeElement?.closest("#rows button");
      byId("rows").replaceChildren(...rows);
      focused?.focus({ preventScroll: true }); // nothing happens if it is gone
    }
    byId("shown").textContent = say("shown", shown.length, this.clips.length);
    byId("list").hidden = this.clips.length < 2;
  }

  // Of one clip, only its own row.
  touch(clip) {
    if (this.rows.has(clip)) this.#row(clip);
  }

  // A clip keeps its row, in which only what differs is written: else focus, clicks and selections would be lost.
  #row(clip) {
    if (!this.rows.has(clip)) this.rows.set(clip, this.#newRow(clip));
    const row = this.rows.get(clip);
    const chosen = clip === this.chosen;
    row.classList.toggle("chosen", chosen);
    if (chosen) row.querySelector("button").setAttribute("aria-current", "true");
    else row.querySelector("button").removeAttribute("aria-current");
    const cells = this.#cells(clip);
    while (row.cells.length > cells.length + 1) row.lastChild.remove();
    while (row.cells.length < cells.length + 1) row.append(cell(""));
    cells.forEach(([words, kind, span = 1], index) => {
      const made = row.cells[index + 1];
      if (made.textContent !== words) made.textContent = words;
      if (made.className !== kind) made.className = kind;
      if (made.colSpan !== span) made.colSpan = span;
    });
    return row;
  }

  #newRow(clip) {
    const row = document.createElement("tr");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = clip.name;
    button.title = clip.name;
    button.dir = "auto";
    button.addEventListener("click", () => this.onChoose(clip));
    row.append(cell(button));
    return row;
  }

  // [words, class, columns] of all cells after the name.
  #cells(clip) {
    if (!clip.answer) {
      const words = clip.problem ? sayProblem(clip.problem).title : clip.words();
      return [[words, clip.problem ? "bad" : "muted", this.tags.length + 1]];
    }
    const scores = this.tags.map((tag) => {
      const found = clip.answer.tags.find((each) => each.tag === tag); // of another model there may be none
      return found ? [found.score.toFixed(2), found.present ? "present" : ""] : ["–", "muted"];
    });
    return [[clock(clip.answer.audio.duration_s), ""], ...scores];
  }

  // Only what is shown, in the order in which it is shown.
  json() {
    return JSON.stringify(this.shown().map(({ name, answer, problem }) => (
      answer ? { name, ...answer } : { name, problem: problem && { ...problem } })), null, 2);
  }

  csv() {
    const rows = this.shown().map(({ name, answer, problem }) => [
      name,
      answer ? answer.audio.duration_s : "",
      ...this.tags.map((tag) => answer?.tags.find((found) => found.tag === tag)?.score ?? ""),
      answer ? answer.tags.filter(({ present }) => present).map(({ tag }) => tag).join("; ") : "",
      problem ? problem.title : "",
    ]);
    const head = ["clip", "duration_s", ...this.tags, "present", "problem"];
    return [head, ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
  }
}

function valueOf(clip, column) {
  if (column === "name") return clip.name;
  if (!clip.answer) return null;
  if (column === "duration") return clip.answer.audio.duration_s;
  return clip.answer.tags.find(({ tag }) => tag === column)?.score ?? null;
}

function cell(content, kind = "") {
  const made = document.createElement("td");
  made.className = kind;
  made.append(content);
  return made;
}

// RFC 4180; a name that a spreadsheet would run as a formula is defused.
function field(value) {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
