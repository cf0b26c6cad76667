// Tags one clip: a File or Blob in a browser, a Buffer in Node.
export async function tag(clip, { url = "http://127.0.0.1:8000", key, attempts = 5 } = {}) {
  for (let attempt = 1; ; attempt++) {
    const response = await fetch(`${url}/v1/tags`, {
      method: "POST",
      body: clip,
      headers: { "Content-Type": "application/octet-stream", ...(key && { Authorization: `Bearer ${key}` }) },
    });
    if (response.ok) return response.json();
    if (![429, 502, 503].includes(response.status) || attempt === attempts) {
      const problem = await response.json().catch(() => null); // a proxy's own page
      throw new Error(problem ? `${problem.title}: ${problem.detail} ${problem.hint}` : `HTTP ${response.status}`);
    }
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => setTimeout(resolve, (seconds + Math.random()) * 1000));
  }
}
