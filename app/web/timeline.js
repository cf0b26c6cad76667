// The waveform and one strip a tag beneath it, on one time axis; seen, clicked, hovered and driven by keys.

import { say, tagName } from "./i18n.js";

const STRIP = 36; // CSS pixels, as #lanes has it
const GAP = 6;

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const rest = `${String(Math.floor(whole / 60) % 60).padStart(whole >= 3600 ? 2 : 1, "0")}:${String(whole % 60).padStart(2, "0")}`;
  return whole >= 3600 ? `${Math.floor(whole / 3600)}:${rest}` : rest;
}

export class Timeline {
  // `player`: {canSeek(), seek(seconds), play(), toggle(), time()}
  constructor(player) {
    this.player = player;
    this.stage = document.getElementById("stage");
    this.wave = document.getElementById("wave");
    this.strips = document.getElementById("strips");
    this.lanes = document.getElementById("lanes");
    this.playhead = document.getElementById("playhead");
    this.cursor = document.getElementById("cursor");
    this.reading = document.getElementById("reading");
    this.clip = null;
    this.at = 0; // where it is read: where the player is, or where keys went if that cannot seek
    this.stage.addEventListener("click", (event) => this.#playFrom(this.#timeAt(event)));
    this.stage.addEventListener("pointermove", (event) => this.#hover(event));
    this.stage.addEventListener("pointerleave", () => { this.cursor.hidden = true; this.#read(this.at); });
    this.stage.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  show(clip) {
    this.clip = clip;
    this.lanes.replaceChildren(...clip.answer.tags.map(({ tag }, index) => {
      const lane = document.createElement("span");
      lane.className = `c${index % 6}`;
      lane.textContent = lane.title = tagName(tag);
      return lane;
    }));
    this.at = this.player.time();
    this.draw();
    this.moveTo(this.at);
  }

  get seconds() { return Math.max(this.clip?.answer?.audio.duration_s ?? 0, 1e-3); }

  // The windows overlap; each speaks from its middle, so it is drawn from half-way to its neighbours.
  #edges() {
    const windows = this.clip.answer.windows;
    const middles = windows.map((window) => (window.start_s + window.end_s) / 2);
    return windows.map((window, index) => [
      index ? (middles[index - 1] + middles[index]) / 2 : window.start_s,
      index < windows.length - 1 ? (middles[index] + middles[index + 1]) / 2 : window.end_s,
    ]);
  }

  #windowAt(seconds) {
    const edges = this.#edges();
    const found = edges.findIndex(([, end]) => seconds < end);
    return found < 0 ? edges.length - 1 : found;
  }

  draw() {
    if (!this.clip?.answer || !this.stage.clientWidth) return;
    const style = getComputedStyle(document.documentElement);
    this.#drawWave(style.getPropertyValue("--wave"));
    this.#drawStrips(style);
    this.moveTo(this.at);
  }

  #fit(canvas, height) {
    const ratio = window.devicePixelRatio || 1;
    const width = this.stage.clientWidth;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    return [pen, width];
  }

  #drawWave(colour) {
    const height = 80;
    const [pen, width] = this.#fit(this.wave, height);
    pen.fillStyle = colour;
    const peaks = this.clip.peaks;
    if (!peaks) { pen.fillRect(0, height / 2, width, 1); return; }
    for (let x = 0; x < width; x += 3) {
      const from = Math.floor((x / width) * peaks.length);
      const to = Math.max(from + 1, Math.floor(((x + 3) / width) * peaks.length));
      const size = Math.max(1, Math.max(...peaks.slice(from, to)) * (height - 16));
      pen.fillRect(x, (height - size) / 2, 2, size);
    }
  }

  #drawStrips(style) {
    const tags = this.clip.answer.tags;
    const [pen, width] = this.#fit(this.strips, tags.length * STRIP);
    const edges = this.#edges();
    const room = STRIP - GAP;
    tags.forEach(({ tag, threshold }, row) => {
      const floor = row * STRIP + STRIP - GAP / 2;
      pen.fillStyle = style.getPropertyValue("--track");
      pen.fillRect(0, floor - room, width, room);
      pen.fillStyle = style.getPropertyValue(`--tag-${row % 6}`);
      edges.forEach(([start, end], index) => {
        const score = this.clip.answer.windows[index].scores[tag];
        const left = Math.round((start / this.seconds) * width);
        const right = Math.round((end / this.seconds) * width);
        pen.globalAlpha = score >= threshold ? 1 : 0.35;
        pen.fillRect(left, floor - score * room, Math.max(right - left - 1, 1), score * room);
      });
      pen.globalAlpha = 0.7;
      pen.strokeStyle = style.getPropertyValue("--text");
      pen.setLineDash([2, 4]);
      pen.beginPath();
      pen.moveTo(0, floor - threshold * room);
      pen.lineTo(width, floor - threshold * room);
      pen.stroke();
      pen.globalAlpha = 1;
    });
  }

  moveTo(seconds) {
    if (!this.clip?.answer) return;
    this.at = seconds;
    this.playhead.style.transform = `translateX(${(Math.min(seconds / this.seconds, 1)) * this.stage.clientWidth}px)`;
    this.stage.setAttribute("aria-label", say("stage"));
    this.stage.setAttribute("aria-valuemax", String(Math.round(this.seconds)));
    this.stage.setAttribute("aria-valuenow", String(Math.min(Math.round(seconds), Math.round(this.seconds))));
    const text = this.#words(seconds);
    this.stage.setAttribute("aria-valuetext", text);
    if (this.cursor.hidden) this.#read(seconds);
  }

  #words(seconds) {
    const window = this.clip.answer.windows[this.#windowAt(seconds)];
    const scores = this.clip.answer.tags.map(({ tag }) => `${tagName(tag)} ${window.scores[tag].toFixed(2)}`);
    return `${clock(window.start_s)}–${clock(window.end_s)}: ${scores.join(", ")}`;
  }

  #read(seconds) {
    if (this.clip?.answer) this.reading.textContent = this.#words(seconds);
  }

  #timeAt(event) {
    const box = this.stage.getBoundingClientRect();
    return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * this.seconds;
  }

  #hover(event) {
    const seconds = this.#timeAt(event);
    this.cursor.hidden = false;
    this.cursor.style.transform = `translateX(${(seconds / this.seconds) * this.stage.clientWidth}px)`;
    this.#read(seconds);
  }

  #go(seconds) {
    if (this.player.canSeek()) this.player.seek(seconds);
    else this.moveTo(seconds);
  }

  #playFrom(seconds) {
    this.#go(seconds);
    this.player.play();
  }

  #key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own
    const now = this.at;
    const hop = this.seconds > 10 ? 5 : 1;
    const moves = {
      ArrowRight: now + hop, ArrowUp: now + hop, ArrowLeft: now - hop, ArrowDown: now - hop,
      PageUp: now + 6 * hop, PageDown: now - 6 * hop, Home: 0, End: this.seconds,
    };
    if (event.key in moves) this.#go(Math.min(Math.max(moves[event.key], 0), this.seconds));
    else if (event.key === "Enter") this.player.play();
    else if (event.key === " ") this.player.toggle();
    else return;
    event.preventDefault();
  }
}
