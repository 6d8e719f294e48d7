// What the page asks of the server: heads, a file's windows, a live stream.

// An answer that is no success, as problem+json says it.
export class Problem extends Error {
  constructor({ title, detail, status }) {
    super(detail || title);
    this.title = title || "The server refused";
    this.status = status;
  }
}

const unreachable = () => new Problem({ title: "The server does not answer", detail: "Check the connection and try again." });

let key = ""; // of this tab alone

export const useKey = (given) => { key = given.trim(); };
const authorization = () => (key ? { Authorization: `Bearer ${key}` } : {});
// A browser can send a WebSocket no header but this one; the key is never part of an address, which logs keep.
const PROTOCOL = "servox";
const protocols = () => (key ? [PROTOCOL, `bearer.${key}`] : []);

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...options.headers, ...authorization() } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  if (answer.ok) return answer;
  const held = await answer.json().catch(() => ({}));
  throw new Problem({ title: held.title || answer.statusText, detail: held.detail, status: answer.status });
}

export const ready = () => fetch("readyz").then((answer) => answer.ok, () => false);
export const heads = async () => (await (await ask("v1/heads")).json()).heads ?? [];

function query(settings) {
  const prior = typeof settings.prior === "string" ? settings.prior : JSON.stringify(settings.prior);
  return new URLSearchParams({ ...settings, prior }).toString();
}

// Calls `each` with every window as the server sends it, and returns the overall answer.
export async function recognize(file, settings, each, signal) {
  const answer = await ask("v1/recognize?" + query(settings), {
    method: "POST", body: file, signal,
    headers: { "Content-Type": "application/octet-stream", Accept: "application/x-ndjson" },
  });
  let overall = null;
  for await (const line of lines(answer.body)) {
    const said = JSON.parse(line);
    if (said.problem) throw new Problem(said.problem);
    if (said.overall) overall = said;
    else each(said.window ?? said);
  }
  return overall;
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts.filter((part) => part.trim());
  }
  if (rest.trim()) yield rest;
}

const AGAIN = [1001, 1005, 1006, 1012, 1013]; // closed by the network or by a server that others stand in for
const TRIES = 5;
const UNSENT_S = 5; // a server that is this far behind cannot keep up

// A live stream. It outlives a lost connection: what no window has answered yet is kept here and sent again.
export class LiveStream {
  constructor(settings, { onReady, onWindow, onEnd, onProblem }) {
    Object.assign(this, { settings, onReady, onWindow, onEnd, onProblem });
    this.kept = []; // [first sample, samples] of chunks that may be needed again
    this.samples = 0; // sent or waiting, since the beginning
    this.next = 0; // number of the window to come
    this.tries = 0;
    this.ended = this.over = false;
    this.open();
  }

  open() {
    const address = new URL("v1/stream", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address, protocols());
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => this.begin();
    this.socket.onmessage = (message) => this.hear(JSON.parse(message.data));
    this.socket.onclose = (closed) => this.closed(closed);
  }

  begin() {
    this.socket.send(JSON.stringify({ ...this.settings, channels: 1, format: "f32le", next_window: this.next }));
    const from = this.start(this.next - 1);
    for (const [first, samples] of this.kept) {
      if (first + samples.length > from) this.socket.send(samples.subarray(Math.max(0, from - first)));
    }
    if (this.ended) this.socket.send('{"type":"end"}');
  }

  start(index) {
    return index > 0 ? Math.floor((index * this.settings.hop_ms * this.settings.rate_hz) / 1000) : 0;
  }

  push(samples) {
    if (this.over || this.ended) return;
    this.kept.push([this.samples, samples]);
    this.samples += samples.length;
    if (this.socket.readyState !== WebSocket.OPEN) return;
    this.socket.send(samples);
    if (this.socket.bufferedAmount > UNSENT_S * 4 * this.settings.rate_hz) {
      this.fail(new Problem({ title: "The server is slower than the speech", detail: "Take a longer step and try again." }));
    }
  }

  hear(said) {
    this.tries = 0;
    if (said.type === "ready") this.onReady(said);
    if (said.type === "error") this.problem = new Problem(said.problem);
    if (said.type === "end") this.finished = true;
    if (said.type !== "window") return;
    this.next = Number(said.index ?? 0) + 1;
    const from = this.start(this.next - 1);
    while (this.kept.length && this.kept[0][0] + this.kept[0][1].length <= from) this.kept.shift();
    this.onWindow(said);
  }

  closed({ code }) {
    if (this.over) return;
    if (this.finished) { this.over = true; this.onEnd(); return; }
    if (AGAIN.includes(code) && this.tries < TRIES) {
      this.tries += 1;
      this.problem = null;
      setTimeout(() => this.over || this.open(), 250 * 2 ** this.tries);
      return;
    }
    this.fail(this.problem || unreachable());
  }

  end() {
    this.ended = true;
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send('{"type":"end"}');
  }

  fail(problem) {
    this.over = true;
    this.socket.close();
    this.onProblem(problem);
  }
}
