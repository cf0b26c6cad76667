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
    byId("filter").addEventListener("input", () => this.draw());
    byId("carries").addEventListener("change", () => this.draw());
    byId("csv").addEventListener("click", () => save("music-tagger.csv", "text/csv", this.csv()));
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
    const focused = document.activeElement?.closest("#rows tr")?.clip;
    byId("rows").replaceChildren(...shown.map((clip) => this.#row(clip)));
    const again = focused && [...byId("rows").children].find((row) => row.clip === focused);
    again?.querySelector("button").focus({ preventScroll: true });
    byId("shown").textContent = say("shown", shown.length, this.clips.length);
    byId("list").hidden = this.clips.length < 2;
  }

  #row(clip) {
    const row = document.createElement("tr");
    row.clip = clip;
    row.classList.toggle("chosen", clip === this.chosen);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = clip.name;
    button.title = clip.name;
    if (clip === this.chosen) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      const index = [...byId("rows").children].indexOf(row);
      this.onChoose(clip);
      byId("rows").children[index]?.querySelector("button").focus();
    });
    row.append(cell(button));
    if (clip.answer) {
      row.append(cell(clock(clip.answer.audio.duration_s)));
      for (const { score, present } of clip.answer.tags) row.append(cell(score.toFixed(2), present ? "present" : ""));
    } else {
      const rest = cell(clip.problem ? sayProblem(clip.problem).title : clip.words(), clip.problem ? "bad" : "muted");
      rest.colSpan = this.tags.length + 1;
      row.append(rest);
    }
    return row;
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
      answer ? answer.tags.filter(({ present }) => present).map(({ tag }) => tag).join(" ") : "",
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
