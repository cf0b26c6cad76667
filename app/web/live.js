// Tags what the microphone hears, or a file as it plays: samples go to WS /v1/stream, scores come back at every hop.

import { Problem, sentKey, unreachable } from "./api.js";
import { microphone } from "./sound.js";

const PEAKS_PER_S = 10; // as pcm.js posts them
const MOST_SILENCE_S = 30; // of the service: its scores come every 5 s
const PATIENCE_MS = 15_000; // for the scores of the whole
const MOST_WAITING = 4_000_000; // bytes that the network has not taken: more would only be stale

// What is heard so far, in the form of an answer, so that bars and timeline show it like any other.
export class Live {
  // `tags()`: the model's, as soon as they are known; `on`: {window(), final(), failed(problem), nothing()}, called as they happen.
  constructor(tags, on) {
    this.tags = tags;
    this.on = on;
    this.windows = [];
    this.loudest = [];
    this.latency_ms = 0;
    this.over = false;
  }

  // From the microphone, or from a file that is played from its start. Rejects if the sound cannot be had.
  async start(file) {
    this.context = new AudioContext();
    try {
      const source = file ? await this.#played(file) : await this.#heard();
      if (this.over) { this.#silence(); return; } // stopped while the browser asked for the microphone
      await this.context.audioWorklet.addModule("web/pcm.js");
      await this.context.resume();
      this.samples = new AudioWorkletNode(this.context, "samples", { numberOfOutputs: 0 });
      await this.#connect();
      if (this.over) { this.#silence(); return; } // stopped, or refused, meanwhile
      source.connect(this.samples);
      await this.player?.play();
    } catch (error) {
      this.drop();
      throw error;
    }
  }

  async #heard() {
    this.stream = await microphone();
    if (this.over) return null;
    return this.context.createMediaStreamSource(this.stream);
  }

  async #played(file) {
    this.player = new Audio(URL.createObjectURL(file));
    this.player.addEventListener("ended", () => this.stop());
    const source = this.context.createMediaElementSource(this.player);
    source.connect(this.context.destination);
    return source;
  }

  // Resolves when it is open, or has failed, which is told: what is heard before would be lost.
  #connect() {
    const address = new URL("v1/stream", document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(address);
    this.socket.addEventListener("open", () => {
      this.socket.send(JSON.stringify({ encoding: "pcm_s16le", sample_rate_hz: this.context.sampleRate, ...sentKey() }));
    });
    this.socket.addEventListener("message", (message) => this.#told(JSON.parse(message.data)));
    this.socket.addEventListener("close", () => { if (!this.over) this.#fail(unreachable()); });
    this.samples.port.onmessage = ({ data }) => this.#hear(data);
    return new Promise((resolve) => {
      this.socket.addEventListener("open", resolve);
      this.socket.addEventListener("close", resolve);
    });
  }

  #hear(samples) {
    if (this.over || this.stopped || this.socket.readyState !== WebSocket.OPEN) return;
    const unanswered = this.seconds - (this.windows.at(-1)?.end_s ?? 0);
    if (this.socket.bufferedAmount > MOST_WAITING || unanswered > MOST_SILENCE_S) { this.#fail(unreachable()); return; }
    this.loudest.push(samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0));
    this.socket.send(samples);
  }

  #told(message) {
    if (message.event === "problem") { this.#fail(new Problem(message)); return; }
    if (message.event === "final") {
      this.final = message;
      this.drop();
      this.on.final();
      return;
    }
    // The first segment alone was a makeshift: the window that begins with it replaces it.
    if (this.windows.at(-1)?.start_s === message.start_s) this.windows.pop();
    this.windows.push(message);
    this.latency_ms = message.latency_ms;
    this.on.window();
  }

  #fail(problem) {
    this.drop();
    this.on.failed(problem);
  }

  get seconds() { return this.loudest.length / PEAKS_PER_S; }

  // Scores are the last window's while it goes on, the whole stream's at the end; none before the first window.
  answer() {
    const last = this.windows.at(-1);
    if (!last) return null;
    const tags = this.final?.tags ?? this.tags().map(({ tag, threshold }) => (
      { tag, score: last.scores[tag], present: last.present[tag], threshold }));
    const audio = this.final?.audio ?? { duration_s: last.end_s };
    return { tags, audio, windows: this.windows.map(({ start_s, end_s, scores }) => ({ start_s, end_s, scores })) };
  }

  peaks() {
    const heard = this.loudest.slice(0, Math.ceil((this.windows.at(-1)?.end_s ?? 0) * PEAKS_PER_S));
    const most = heard.reduce((one, other) => Math.max(one, other), 1);
    return Float32Array.from(heard, (peak) => peak / most);
  }

  // Ends the sound; the service then tells the scores of the whole.
  stop() {
    if (this.over || this.stopped) return;
    if (this.socket?.readyState !== WebSocket.OPEN && !this.windows.length) { this.drop(); this.on.nothing(); return; } // it has not begun
    this.stopped = true;
    this.#silence();
    if (this.socket.readyState !== WebSocket.OPEN) { this.#fail(unreachable()); return; }
    this.socket.send(JSON.stringify({ end: true }));
    setTimeout(() => { if (!this.over) this.#fail(unreachable()); }, PATIENCE_MS); // the line may be dead, and nobody tells
  }

  // Lets everything go, whatever came of it.
  drop() {
    this.over = true;
    this.#silence();
    this.socket?.close();
  }

  #silence() {
    this.player?.pause();
    if (this.player) URL.revokeObjectURL(this.player.src);
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    if (this.context && this.context.state !== "closed") void this.context.close();
  }
}
