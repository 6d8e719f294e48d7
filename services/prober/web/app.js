// The page: settings in, a file or the microphone, windows out.
import { openMicrophone } from "./capture.js";
import { chosenPrior, showClasses } from "./prior.js";
import { clock, download, fromServer, tableHead, tableRow, toCsv, toJson, usedWords, words } from "./results.js";
import { LiveStream, Problem, heads, ready, recognize, useKey } from "./service.js";
import { Timeline } from "./timeline.js";

const by = (id) => document.getElementById(id);
const timeline = new Timeline(by("timeline"));
const known = new Map(); // heads by name
let results = null; // { head, settings, classes, windows, overall }
let running = null; // how to stop what runs: a function
let asking = null; // the press that waits for the microphone

function show(problem) {
  const box = by("problem");
  box.hidden = !problem;
  const title = Object.assign(document.createElement("strong"), { textContent: problem?.title ?? "" });
  box.replaceChildren(title, problem?.message ?? "");
}

const status = (text) => { by("status").textContent = text; };

function settings() {
  if (!by("settings").reportValidity()) return null;
  const [window_ms, hop_ms] = ["window", "hop"].map((id) => Math.round(1000 * by(id).valueAsNumber));
  if (hop_ms > window_ms) throw new Error("The step is longer than the window: speech between two windows would go unheard.");
  const [tenant, purpose] = ["tenant", "purpose"].map((id) => by(id).value.trim());
  const [every_window, uncalibrated] = ["every", "uncalibrated"].map((id) => by(id).checked);
  return { head: by("head").value, window_ms, hop_ms, prior: chosenPrior(), every_window, tenant, purpose, uncalibrated };
}

// Begins a new result; null where the settings do not hold.
function begin({ live, seek }) {
  show(null);
  let chosen;
  try {
    if (!known.size) throw new Error("The server has no head yet: train or import one.");
    chosen = settings();
  } catch (error) {
    show(new Problem({ title: "Check the settings", detail: error.message }));
  }
  if (!chosen) return null;
  const { classes } = known.get(chosen.head);
  results = { head: chosen.head, settings: chosen, classes, windows: [], overall: null };
  tableHead(by("table"), classes);
  timeline.begin(classes, { live, seek });
  by("now").textContent = "Listening …";
  for (const id of ["notice", "used"]) by(id).hidden = true;
  for (const id of ["json", "csv"]) by(id).disabled = true;
  return chosen;
}

function answeredBy(used) {
  results.used = used;
  by("used").textContent = usedWords(used);
  by("notice").textContent = used.notice ?? "";
  by("used").hidden = false;
  by("notice").hidden = !used.notice;
}

function add(said) {
  const window = fromServer(said);
  results.windows.push(window);
  timeline.add(window);
  tableRow(by("table"), window, results.classes);
  say(window);
  for (const id of ["json", "csv"]) by(id).disabled = false;
}

let said = "";
function say(window) { // a screen reader hears changes, not every window
  const text = words(window);
  const time = Object.assign(document.createElement("small"), { textContent: ` at ${clock(window.end_ms)}` });
  if (window.label + window.abstention === said) return;
  said = window.label + window.abstention;
  by("now").replaceChildren(text, time);
}

function finish() {
  running = null;
  said = "";
  const answered = results.windows.filter((window) => window.probabilities).length;
  status(`${results.windows.length} windows, ${answered} with an answer.`);
  if (results.overall) {
    by("now").textContent = `Overall: ${words(results.overall)}`;
    timeline.finish(results.overall);
  }
  by("cancel").hidden = true;
}

function failed(problem) {
  running = null;
  by("cancel").hidden = true;
  status("");
  if (!results?.windows.length) by("now").textContent = "Nothing heard yet.";
  show(problem);
}

async function takeFile(file) {
  asking = null;
  if (running) await running();
  const player = by("player");
  const chosen = begin({ live: false, seek: (ms) => { player.currentTime = ms / 1000; } });
  if (!chosen) return;
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(file);
  player.hidden = false;
  const abort = new AbortController();
  running = () => abort.abort();
  by("cancel").hidden = false;
  status(`Reading ${file.name} …`);
  try {
    const overall = await recognize(file, chosen, add, abort.signal);
    results.overall = overall?.overall ? fromServer(overall.overall) : null;
    if (overall) answeredBy(overall);
    finish();
  } catch (error) {
    if (error.name === "AbortError") failed(new Problem({ title: "Cancelled", detail: "What was heard so far is below." }));
    else failed(error);
  }
}

// The microphone; null where it cannot be opened, or a file was chosen before it came.
async function askMicrophone() {
  const press = asking = Symbol("press");
  let microphone = null;
  try {
    microphone = await openMicrophone();
  } catch (error) {
    if (asking === press) failed(error);
  }
  if (asking === press) {
    asking = null;
    return microphone;
  }
  await microphone?.stop();
  return null;
}

async function record() {
  if (asking) return; // one microphone is enough
  if (running) return running();
  const microphone = await askMicrophone();
  if (!microphone) return;
  const chosen = begin({ live: true });
  if (!chosen) return microphone.stop();
  by("player").hidden = true;
  const over = async () => { pressed(false); await microphone.stop(); };
  let stream;
  const stop = async () => { status("Waiting for the last window …"); await over(); stream.end(); };
  try {
    stream = new LiveStream({ ...chosen, rate_hz: microphone.rate_hz }, {
      onReady: ({ type: _, ...used }) => answeredBy(used),
      onWindow: add,
      onEnd: () => { over(); finish(); },
      onProblem: (problem) => { over(); failed(problem); },
    });
    microphone.start((samples) => stream.push(samples), stop);
  } catch (error) {
    await over();
    stream?.end();
    const detail = error.name === "SyntaxError" ? "The key holds a character that no key has." : error.message;
    return failed(new Problem({ title: "The recording cannot begin", detail }));
  }
  running = stop;
  pressed(true);
  status("Recording. Press the button again to stop.");
}

function pressed(on) {
  by("record").setAttribute("aria-pressed", String(on));
  by("record-label").textContent = on ? "Stop" : "Record";
}

function showHead() {
  const head = known.get(by("head").value);
  if (!head) return;
  showClasses(head.classes);
  by("head-facts").textContent = `${head.name} ${head.version ?? ""}: ${head.classes.length} emotions, ${head.kind}.`;
}

async function load() {
  try {
    for (const summary of await heads()) {
      const { name, version } = summary.head;
      if (known.has(name) && !summary.production) continue; // a name answers with its production version
      known.set(name, { name, version, classes: summary.classes, kind: (summary.kind ?? "").replace("HEAD_KIND_", "").toLowerCase() });
    }
    by("head").replaceChildren(...[...known.keys()].map((name) => new Option(name)));
    if (!known.size) by("head-facts").textContent = "The server has no head yet: train or import one.";
    showHead();
  } catch (error) {
    if (error.status === 401) by("access").open = true;
    show(error);
  }
}

async function watch() {
  const yes = await ready();
  by("ready").className = "ready " + (yes ? "yes" : "no");
  const text = yes ? "ready" : "not ready";
  if (by("ready").textContent !== text) by("ready").textContent = text;
  setTimeout(watch, 10_000);
}

by("record").addEventListener("click", record);
by("cancel").addEventListener("click", () => running?.());
by("file").addEventListener("change", ({ target }) => { if (target.files[0]) takeFile(target.files[0]); target.value = ""; });
by("head").addEventListener("change", showHead);
by("key").addEventListener("change", ({ target }) => { useKey(target.value); show(null); load(); });
by("settings").addEventListener("submit", (event) => event.preventDefault());
by("json").addEventListener("click", () => download("servox.json", "application/json", toJson(results)));
by("csv").addEventListener("click", () => download("servox.csv", "text/csv", toCsv(results)));
by("player").addEventListener("timeupdate", ({ target }) => timeline.at(1000 * target.currentTime));
const drop = by("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) takeFile(event.dataTransfer.files[0]);
  });
}
load();
watch();
