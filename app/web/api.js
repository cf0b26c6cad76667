// Talks to the service. A failure is always a Problem: {slug, status, title, detail, hint}.

const RETRIES = 4;
const STALLED_MS = 60_000; // without a byte on its way: the line is dead, and nobody tells
const ANSWER_MS = 900_000; // behind an upload: services wait for two minutes, unless they are told otherwise
let key = "";
try { key = sessionStorage.getItem("key") ?? ""; } catch { /* storage may be forbidden */ }

export class Problem extends Error {
  constructor(fields) {
    super(fields.title);
    Object.assign(this, { slug: fields.type?.replace(/^.*\/problems\//, "") ?? "internal", ...fields });
  }
}

// Throws a Problem if no request can bear such a key: headers hold ISO-8859-1, and no control characters.
export function useKey(text) {
  if (!/^[\x20-\x7e\xa0-\xff]*$/.test(text)) throw impossibleKey();
  key = text;
  try { sessionStorage.setItem("key", text); } catch { /* it holds for this page at least */ }
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// For what takes no headers: browsers cannot set them on a WebSocket.
export const sentKey = () => (key ? { key } : {});

export const unreachable = () => new Problem({
  type: "/problems/unreachable", status: 0, title: "The service cannot be reached",
  detail: "No answer came.", hint: "Check the connection, then try again.",
});

// What answered was not the service but something before it, whose words are not for a listener.
export const answeredBy = (status) => new Problem({ status, detail: `HTTP ${status}`, ...(status === 413 ? {
  type: "/problems/too-many-bytes", title: "The file is too large",
  hint: "Send a compressed file (MP3, Opus, M4A) or a part of the song.",
} : {
  type: "/problems/unreachable", title: "The service cannot be reached",
  hint: "Try again in a moment. If it fails again, tell whoever runs the service.",
}) });

const unreadable = () => new Problem({
  type: "/problems/unreadable", status: 0, title: "The file cannot be read",
  detail: "", hint: "It is a folder, or was moved or deleted since. Choose it again.",
});

const impossibleKey = () => new Problem({
  type: "/problems/key-impossible", status: 0, title: "This cannot be a key",
  detail: "", hint: "It holds a character that no key can hold, perhaps an invisible one. Copy it again, without what is around it.",
});

// Whatever went wrong that nobody thought of, so that it is told and can be tried again.
export function problemOf(error) {
  if (error instanceof Problem) return error;
  console.error(error);
  return new Problem({
    type: "/problems/unforeseen", status: 0, title: "Something went wrong on this page", detail: error?.message ?? "",
    hint: "Try again. If it fails again, reload the page.",
  });
}

export async function describeModel() {
  const signal = AbortSignal.timeout(STALLED_MS);
  const response = await fetch("v1/model", { headers: headers(), signal }).catch(() => { throw unreachable(); });
  const body = await response.json().catch(() => ({}));
  if (!response.ok || !body.tags) throw body.title ? new Problem(body) : response.ok ? unreachable() : answeredBy(response.status);
  return body;
}

// Tags one file. `onStep(phase, fraction)` is told "uploading" with 0..1, "analysing", "waiting" with seconds.
export async function tag(file, onStep, signal) {
  for (let attempt = 0; ; attempt += 1) {
    signal.throwIfAborted(); // the clip may have been cleared while it waited
    const { status, body, retryAfter } = await send(file, onStep, signal);
    if (status === 200 && body.tags) return body;
    if (status === 0 && !(await isReadable(file))) throw unreadable();
    if (![0, 429, 502, 503].includes(status) || attempt === RETRIES) {
      if (status === 0) throw unreachable();
      throw body.title ? new Problem(body) : answeredBy(status);
    }
    const seconds = Math.min(retryAfter || 2 ** attempt, 30); // 1, 2, 4, 8 s: the time of a restart
    for (let left = seconds; left > 0 && !signal.aborted; left -= 1) {
      onStep(status ? "waiting" : "reconnecting", left);
      await pause(Math.min(left, 1), signal);
    }
  }
}

// A folder is not, nor a file that was moved or changed since it was chosen; a request with it fails like one without a network.
async function isReadable(file) {
  const reader = file.stream().getReader();
  const readable = await reader.read().then(() => true, () => false);
  reader.cancel().catch(() => {});
  return readable;
}

// Ends early if the signal aborts.
function pause(seconds, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", resolve, { once: true });
  });
}

// XMLHttpRequest, because fetch does not tell how much was sent.
function send(file, onStep, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "v1/tags?windows=true");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    let stalled = 0;
    const watch = (ms, status) => { clearTimeout(stalled); stalled = setTimeout(() => { resolve({ status, body: {} }); request.abort(); }, ms); };
    watch(STALLED_MS, 0);
    request.upload.onprogress = (event) => { watch(STALLED_MS, 0); onStep("uploading", event.loaded / Math.max(event.total, 1)); };
    request.upload.onload = () => { watch(ANSWER_MS, 504); onStep("analysing"); };
    request.onloadend = () => clearTimeout(stalled);
    request.onload = () => {
      let body = {};
      try { body = JSON.parse(request.responseText); } catch { /* a proxy's page: told by its status */ }
      resolve({
        status: request.status,
        body,
        retryAfter: Number(request.getResponseHeader("Retry-After")),
      });
    };
    request.onerror = () => resolve({ status: 0, body: {} });
    request.onabort = () => reject(new DOMException("aborted", "AbortError"));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(file);
  });
}
