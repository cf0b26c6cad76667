// The page: clips come in, are tagged two at a time, and are shown one at a time.

import { Problem, answeredBy, describeModel, problemOf, tag, unreachable, useKey } from "./api.js";
import { languages, locale, other, say, sayProblem, tagMeaning, tagName, translate, use } from "./i18n.js";
import { Live } from "./live.js";
import { peaksOf, record } from "./sound.js";
import { Table } from "./table.js";
import { Timeline, clock } from "./timeline.js";

const AT_ONCE = 2;
const HOP_S = 5;
const byId = (id) => document.getElementById(id);
const audio = byId("audio");
const clips = [];
let model = null;
let shown = null;
let running = 0;
let keyProblem = null;

// One clip's life: waiting, uploading, analysing, retrying; then it has an answer or a problem.
class Clip {
  constructor(file) {
    this.file = file;
    this.name = file.name;
    this.url = URL.createObjectURL(file);
    this.stopper = new AbortController();
    this.restart();
  }

  restart() {
    Object.assign(this, { phase: "waiting", amount: 0, answer: null, problem: null, peaks: null, waveNote: "" });
  }

  words() {
    if (this.phase === "live") return say("liveWaiting", HOP_S);
    if (this.phase === "uploading") return say("uploading", Math.round(this.amount * 100));
    return say(this.phase, this.amount); // of the other phases, those that wait tell seconds
  }

  drop() {
    this.stopper.abort();
    this.live?.drop();
    clearInterval(this.ticking);
    URL.revokeObjectURL(this.url);
  }
}

const isLive = () => shown?.phase === "live";

const player = {
  time: () => (isLive() ? shown.live.seconds : audio.currentTime),
  canSeek: () => isLive() || !byId("play").disabled,
  seek(seconds) { if (isLive()) return; audio.currentTime = seconds; timeline.moveTo(seconds); drawClock(); },
  play() { if (!isLive()) audio.play().catch(() => {}); },
  pause() { audio.pause(); },
  toggle() { if (audio.paused) player.play(); else player.pause(); },
};
const timeline = new Timeline(player);
const table = new Table(clips, (clip) => { show(clip); reveal(); });

// What comes in

function add(files) {
  const made = [...files].map((file) => new Clip(file));
  if (!made.length) return;
  clips.push(...made);
  if (!isLive()) show(made[0]);
  table.draw();
  work();
}

const MUSIC = /\.(wav|flac|mp3|og[ga]|opus|m4a|mp4|aac|webm|aiff?)$/i;

// Folders are walked, as an album is dropped as one; of what is in them, only music is taken.
async function filesOf(transfer) {
  const files = [...transfer.files];
  const entries = [...transfer.items].filter(({ kind }) => kind === "file").map((item) => item.webkitGetAsEntry());
  const found = await Promise.all(entries.map((entry, index) => (entry?.isDirectory ? walk(entry) : [files[index]])));
  return found.flat();
}

async function walk(folder) {
  const reader = folder.createReader();
  const entries = [];
  for (;;) {
    const some = await new Promise((resolve) => { reader.readEntries(resolve, () => resolve([])); }); // some hundred at a time
    if (!some.length) break;
    entries.push(...some);
  }
  entries.sort((one, two) => one.name.localeCompare(two.name, undefined, { numeric: true }));
  const found = await Promise.all(entries.map((entry) => {
    if (entry.isDirectory) return walk(entry);
    return MUSIC.test(entry.name) && !entry.name.startsWith(".") ? new Promise((resolve) => { entry.file(resolve, () => resolve([])); }) : [];
  }));
  return found.flat();
}

function work() {
  for (const clip of clips) {
    if (running < AT_ONCE && clip.phase === "waiting") void analyse(clip);
  }
}

const verdict = ({ tags }) => tags.filter(({ present }) => present).map(({ tag: name }) => tagName(name)).join(", ") || say("nothing");

async function analyse(clip) {
  running += 1;
  step(clip, "uploading", 0);
  try {
    clip.answer = await tag(clip.file, (phase, amount) => step(clip, phase === "waiting" ? "retrying" : phase, amount), clip.stopper.signal);
    clip.phase = "done";
    if (model?.sha256 !== clip.answer.model.sha256) void meetModel(); // another one since the page opened
    tell(clip, verdict(clip.answer));
  } catch (error) {
    if (error.name === "AbortError") return;
    clip.problem = problemOf(error);
    clip.phase = "failed";
    tell(clip, sayProblem(clip.problem).title);
    askForKey(clip.problem);
  } finally {
    running -= 1;
    if (clips.includes(clip)) refresh(clip);
    work();
  }
  if (clip.answer) await paint(clip);
}

// Live: a clip whose answer grows until it is stopped

// From the microphone, or from a file as it plays. One at a time: another one stops the one before.
async function goLive(file) {
  endLive();
  const now = new Date().toLocaleTimeString(locale());
  const clip = new Clip(file ?? new File([], say("live", now)));
  clip.phase = "live";
  clip.again = () => { clips.splice(clips.indexOf(clip), 1)[0].drop(); void goLive(file); };
  const known = meetModel(); // it may be another one since the page opened
  clip.live = new Live(() => model?.tags ?? [], {
    window: () => hearLive(clip),
    final: () => finishLive(clip),
    failed: (problem) => failLive(clip, problem),
    nothing: () => forgetLive(clip),
  });
  clips.push(clip);
  show(clip);
  table.draw();
  try {
    await known;
    await clip.live.start(file);
  } catch (error) {
    if (clips.includes(clip)) failLive(clip, file ? noSound(error) : noMicrophone(error));
    return;
  }
  if (!clips.includes(clip)) return;
  clip.ticking = setInterval(() => { if (clip === shown) drawClock(); }, 500);
  byId("live-stop").focus();
}

function hearLive(clip) {
  clip.answer = clip.live.answer();
  clip.peaks = clip.live.peaks();
  refresh(clip);
}

function finishLive(clip) {
  hearLive(clip);
  if (!clip.live.stopped) { failLive(clip, cutShort()); return; }
  leaveLive(clip, "done");
  tell(clip, verdict(clip.answer));
}

// Stopped before it began: as if it had never been asked for.
function forgetLive(clip) {
  clips.splice(clips.indexOf(clip), 1);
  if (clips.length) show(clips.at(-1));
  else showNothing();
  byId("live-microphone").focus();
}

function failLive(clip, problem) {
  clip.problem = problem;
  leaveLive(clip, "failed");
  tell(clip, sayProblem(problem).title);
  askForKey(problem);
}

const cutShort = () => new Problem({
  type: "/problems/draining", status: 503, title: "The service is stopping", detail: "", hint: "Start again in a moment.",
});

function leaveLive(clip, phase) {
  clearInterval(clip.ticking);
  clip.phase = phase;
  if (!clip.file.size) clip.waveNote = "liveGone";
  const stopping = document.activeElement === byId("live-stop");
  refresh(clip);
  if (stopping) byId(clip.problem ? "again" : "stage").focus({ preventScroll: true });
}

function endLive() {
  for (const clip of clips) if (clip.phase === "live") clip.live.stop();
}

const noSound = (error) => (!isSecureContext ? insecure() : new Problem({
  type: "/problems/no-sound", title: "The file cannot be played", detail: error.message ?? "",
  hint: "Choose an audio file that this browser plays.",
}));

async function paint(clip) {
  try {
    clip.peaks = await peaksOf(clip.file, clip.answer.audio.duration_s);
    clip.waveNote = clip.peaks ? "" : "longWave";
  } catch {
    clip.waveNote = "noWave";
  }
  if (clip === shown) drawResult();
}

function step(clip, phase, amount = 0) {
  const same = clip.phase === phase;
  Object.assign(clip, { phase, amount });
  if (!same) { refresh(clip); return; }
  table.touch(clip);
  if (clip === shown) drawProgress(clip);
}

// What failed for reasons that pass; nobody is recorded unasked.
const isWorthATry = ({ problem, again }) => problem && !again && problem.slug !== "unreadable" && (!problem.status || problem.status === 408 || problem.status === 429 || problem.status >= 500);

function refresh(clip) {
  table.draw();
  drawStop();
  if (clip === shown) drawResult();
}

function tell(clip, words) {
  byId("news").textContent = say("done", clip.name, words);
}

// What is shown

function show(clip) {
  if (clip !== shown) {
    shown = clip;
    table.chosen = clip;
    load(clip.file.size ? clip.url : "");
  }
  table.draw();
  drawResult();
}

// What was chosen far down in a long table is shown above it, out of sight.
function reveal() {
  const { top } = byId("result").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) byId("result").scrollIntoView();
}

function showNothing() {
  shown = table.chosen = null;
  load("");
  table.draw();
  drawResult();
}

function load(url) {
  if (url) audio.src = url;
  else audio.removeAttribute("src");
  audio.load();
}

function drawResult() {
  const clip = shown;
  byId("result").hidden = !clip;
  if (!clip) return;
  byId("clip-name").textContent = byId("clip-name").title = clip.name;
  byId("clip-facts").textContent = clip.answer ? facts(clip) : "";
  const note = clip.unplayable && clip.waveNote === "longWave" ? "noWave" : clip.waveNote;
  byId("play").disabled = !clip.answer || isLive() || clip.unplayable || ["noWave", "liveGone"].includes(note);
  byId("timeline-help").hidden = byId("play").disabled;
  drawStop();
  byId("remove").hidden = isLive() || !clips.includes(clip);
  byId("remove").textContent = say(clip.answer || clip.problem ? "remove" : "cancel");
  drawProgress(clip);
  drawProblem(clip);
  byId("findings").hidden = !clip.answer;
  if (clip.answer) {
    byId("scores").replaceChildren(...clip.answer.tags.map(scoreRow));
    byId("wave-note").hidden = !note;
    byId("wave-note").textContent = note && say(note);
    timeline.show(clip);
  }
  drawClock();
}

// Also while another clip is shown: nobody shall search for how to stop a microphone.
function drawStop() {
  byId("live-stop").hidden = !clips.some(({ phase }) => phase === "live");
  byId("again-all").hidden = !clips.some(isWorthATry);
}

function facts({ live, answer, phase }) {
  if (phase === "live") {
    const { start_s: start, end_s: end } = answer.windows.at(-1);
    return say("liveFacts", Math.round(end - start), Math.round(live.latency_ms));
  }
  const { format, codec, sample_rate_hz: rate, channels } = answer.audio;
  if (!format) return "";
  const kinds = { 1: say("mono"), 2: say("stereo") };
  return say("facts", format, codec, rate.toLocaleString(locale()), kinds[channels] ?? say("channels", channels));
}

function drawProgress(clip) {
  const busy = !clip.answer && !clip.problem;
  byId("progress-area").hidden = !busy;
  if (!busy) return;
  byId("progress-text").textContent = clip.words();
  if (clip.phase === "uploading") byId("progress").value = clip.amount;
  else byId("progress").removeAttribute("value"); // it cannot be told how long the rest takes
}

function drawProblem({ problem }) {
  const again = problem && byId("problem").hidden && document.activeElement === byId("clip-name");
  byId("problem").hidden = !problem;
  if (!problem) return;
  const { title, detail, hint } = sayProblem(problem);
  byId("problem-title").textContent = title;
  byId("problem-detail").textContent = detail ?? "";
  byId("problem-detail").hidden = !detail;
  byId("problem-hint").textContent = hint ?? "";
  if (again) byId("again").focus({ preventScroll: true }); // tried again in vain
}

function scoreRow({ tag: name, score, present, threshold }, index) {
  const row = document.createElement("li");
  row.className = present ? "present" : "absent";
  row.dataset.tag = name;
  const meaning = model?.tags.find((known) => known.tag === name)?.meaning ?? "";
  const label = part("span", `tag-name c${index % 6}`, tagName(name));
  label.title = tagMeaning(meaning);
  const bar = part("span", `bar c${index % 6}`);
  const fill = part("i");
  const mark = part("b");
  fill.style.width = `${score * 100}%`;
  mark.style.left = `${threshold * 100}%`;
  bar.append(fill, mark);
  bar.title = say("threshold", threshold.toFixed(2));
  const verdict = part("span", "verdict", say(present ? "present" : "absent"));
  verdict.append(part("span", "visually-hidden", `, ${say("threshold", threshold.toFixed(2))}`));
  row.append(label, bar, part("span", "number", score.toFixed(2)), verdict);
  return row;
}

function part(kind, classes = "", text = "") {
  const made = document.createElement(kind);
  made.className = classes;
  made.textContent = text;
  return made;
}

function drawClock() {
  const seconds = shown?.answer?.audio.duration_s;
  if (isLive()) { byId("clock").textContent = clock(shown.live.seconds); return; }
  byId("clock").textContent = seconds ? `${clock(audio.currentTime)} / ${clock(seconds)}` : "";
  byId("play").classList.toggle("playing", !audio.paused);
  byId("play").setAttribute("aria-label", say(audio.paused ? "play" : "pause"));
}

let frame = 0;
function follow() {
  cancelAnimationFrame(frame); // each seek begins to follow, too
  timeline.moveTo(audio.currentTime);
  drawClock();
  if (!audio.paused) frame = requestAnimationFrame(follow);
}

// Keys, model, words and light

const isRefused = (problem) => problem?.status === 401 || problem?.status === 403;

function askForKey(problem) {
  if (isRefused(problem)) byId("key-form").hidden = false;
}

async function takeKey() {
  byId("key-send").disabled = true; // an answer to the key before must not be taken for this one's
  try {
    useKey(byId("key").value.trim());
    keyProblem = await meetModel();
  } catch (error) {
    keyProblem = problemOf(error);
  }
  byId("key-send").disabled = false;
  drawKeyProblem();
  if (keyProblem) {
    byId("news").textContent = sayProblem(keyProblem).title;
    byId("key").select();
  } else {
    byId("key").value = "";
    byId("news").textContent = say("keyTaken");
    byId(shown?.again && isRefused(shown.problem) ? "again" : "choose").focus(); // the form is gone, and the focus with it
    tryRefusedAgain();
  }
}

function drawKeyProblem() {
  byId("key-problem").hidden = !keyProblem;
  if (keyProblem) {
    const { title, hint } = sayProblem(keyProblem);
    byId("key-problem").textContent = say("keyProblem", title, hint ?? "");
  }
  byId("key").setAttribute("aria-invalid", Boolean(keyProblem));
}

function tryRefusedAgain() {
  for (const clip of clips.filter(({ problem, again }) => isRefused(problem) && !again)) { // nobody is recorded unasked
    clip.restart();
    refresh(clip);
  }
  work();
}

// Returns the Problem, if there is one.
async function meetModel() {
  try {
    model = await describeModel();
    byId("key-form").hidden = true;
    table.setTags(model.tags.map((known) => known.tag));
    drawModel();
    return null;
  } catch (error) {
    const problem = problemOf(error);
    askForKey(problem);
    return problem;
  }
}

function drawModel() {
  if (model) byId("model").textContent = say("model", model.name, model.version, model.device);
}

const THEMES = ["", "light", "dark"];
const theme = () => document.documentElement.dataset.theme ?? "";

function drawTheme() {
  const words = say({ "": "themeAuto", light: "themeLight", dark: "themeDark" }[theme()]);
  byId("theme").title = words;
  byId("theme").setAttribute("aria-label", words);
}

function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  try { localStorage.setItem("theme", next); } catch { /* it holds for this page at least */ }
  drawTheme();
  timeline.draw();
}

function drawWords() {
  translate();
  byId("language").textContent = languages[other()];
  byId("language").lang = other() === "zh" ? "zh-CN" : "en";
  if (!recording) byId("record-text").textContent = say("record");
  drawTheme();
  drawModel();
  drawKeyProblem();
  table.drawHead();
  drawResult();
}

// The microphone

let recording = null;
let switching = false;

async function toggleRecording() {
  if (switching) return; // not `disabled`, which takes the focus away
  switching = true;
  try {
    if (recording) await endRecording();
    else await beginRecording();
  } finally {
    switching = false;
  }
}

async function beginRecording() {
  const now = new Date().toLocaleTimeString(locale());
  let session;
  try {
    session = await record(`${say("recording")} ${now}.webm`);
  } catch (error) {
    failWithout(say("record"), noMicrophone(error), () => void toggleRecording());
    return;
  }
  if (shown && !clips.includes(shown)) { // what told that it could not be had
    if (clips.length) show(clips.at(-1));
    else showNothing();
  }
  session.lost.then(() => { if (recording?.session === session) void toggleRecording(); });
  const began = Date.now();
  const tick = () => { byId("record-text").textContent = say("stop", clock((Date.now() - began) / 1000)); };
  recording = { session, ticking: setInterval(tick, 500) };
  byId("record").setAttribute("aria-pressed", "true");
  tick();
}

async function endRecording() {
  const { session, ticking } = recording;
  clearInterval(ticking);
  recording = null;
  byId("record").setAttribute("aria-pressed", "false");
  byId("record-text").textContent = say("record");
  add([await session.stop()]);
}

const insecure = () => new Problem({
  type: "/problems/insecure", title: "A page opened by http can neither record nor listen live", detail: "",
  hint: "Open it by https, or as localhost on the machine of the service. Files can be dropped or chosen all the same.",
});

const noMicrophone = (error) => (!isSecureContext ? insecure() : new Problem({
  type: "/problems/no-microphone", title: "The microphone cannot be used", detail: error.message ?? "",
  hint: "Allow this page to use the microphone in the browser, then try again.",
}));

// Tells of a clip that there is none of.
function failWithout(name, problem, again) {
  const clip = new Clip(new File([], name));
  clip.phase = "failed";
  clip.problem = problem;
  clip.again = again;
  tell(clip, sayProblem(problem).title);
  shown = clip; // shown, but not one of the clips
  load("");
  table.chosen = null;
  table.draw();
  drawResult();
}

// Wiring

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
byId("record").addEventListener("click", () => void toggleRecording());
byId("live-microphone").addEventListener("click", () => void goLive(null));
byId("live-file").addEventListener("click", () => byId("live-files").click());
byId("live-files").addEventListener("change", (event) => { void goLive(event.target.files[0]); event.target.value = ""; });
byId("live-stop").addEventListener("click", endLive);
byId("play").addEventListener("click", () => player.toggle());
byId("language").addEventListener("click", () => { use(other()); drawWords(); });
byId("theme").addEventListener("click", nextTheme);
byId("remove").addEventListener("click", () => {
  const index = clips.indexOf(shown);
  clips.splice(index, 1)[0].drop();
  if (clips.length) show(clips[Math.min(index, clips.length - 1)]);
  else showNothing();
  byId(!clips.length ? "choose" : isLive() ? "live-stop" : "remove").focus();
});
byId("clear").addEventListener("click", () => {
  for (const clip of clips.splice(0)) clip.drop();
  showNothing();
  byId("choose").focus();
});
byId("again").addEventListener("click", () => {
  byId("clip-name").focus({ preventScroll: true }); // the button goes, and the focus would go with it
  if (shown.again) { shown.again(); return; }
  shown.restart();
  refresh(shown);
  work();
});
byId("again-all").addEventListener("click", () => {
  for (const clip of clips.filter(isWorthATry)) clip.restart();
  byId("list").querySelector(".scroll").focus({ preventScroll: true }); // the button goes
  table.draw();
  drawResult();
  work();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  void takeKey();
});
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => {
    const name = `${button.dataset.sample}.opus`;
    const response = await fetch(`web/samples/${name}`).catch(() => null);
    const data = response?.ok ? await response.arrayBuffer().catch(() => null) : null;
    if (data) add([new File([data], name, { type: "audio/ogg" })]);
    else failWithout(name, response && !response.ok ? answeredBy(response.status) : unreachable(), () => button.click());
  });
}
for (const event of ["dragenter", "dragover"]) {
  document.addEventListener(event, (drag) => {
    if (!drag.dataTransfer?.types.includes("Files")) return;
    drag.preventDefault();
    byId("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (drag) => {
  if (!drag.relatedTarget) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (drag) => {
  if (!drag.dataTransfer?.types.includes("Files")) return; // text, into the filter
  drag.preventDefault();
  byId("drop").classList.remove("over");
  void filesOf(drag.dataTransfer).then(add);
});
document.addEventListener("paste", (paste) => {
  if (paste.clipboardData?.files.length) { paste.preventDefault(); add(paste.clipboardData.files); }
});
audio.addEventListener("error", () => {
  if (!shown || !audio.getAttribute("src")) return;
  shown.unplayable = true; // what is too long for a picture is not decoded otherwise
  drawResult();
});
for (const event of ["play", "pause", "ended", "seeked"]) audio.addEventListener(event, follow);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => timeline.draw());

drawWords();
void meetModel();
