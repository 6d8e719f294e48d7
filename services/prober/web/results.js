// Windows as they came, and what can be made of them: words, a table, JSON, CSV.
export const SILENT = ["ABSTENTION_SILENCE", "ABSTENTION_TOO_SHORT"];
export const STRANGE = "ABSTENTION_OUT_OF_DISTRIBUTION";

const REASONS = {
  ABSTENTION_SILENCE: "no speech",
  ABSTENTION_TOO_SHORT: "too short",
  ABSTENTION_OUT_OF_DISTRIBUTION: "unlike the training speech",
};

export const percent = (share) => (100 * share).toFixed(0) + " %";

export function clock(ms) {
  const s = Math.round(ms / 100) / 10;
  const minutes = Math.floor(s / 60);
  return `${minutes}:${(s - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}

// The server's window in the shape that this page uses: numbers, and a map of probabilities or null.
export function fromServer(window) {
  const pairs = window.probabilities ?? [];
  const named = Array.isArray(pairs) ? pairs.map(({ label, probability }) => [label, probability]) : Object.entries(pairs);
  const shown = named.length ? Object.fromEntries(named) : null;
  const abstention = window.abstention && window.abstention !== "ABSTENTION_UNSPECIFIED" ? window.abstention : "";
  return {
    index: Number(window.index ?? 0), start_ms: Number(window.start_ms ?? 0), end_ms: Number(window.end_ms ?? 0),
    label: window.label ?? "", confidence: window.confidence ?? 0, abstention, probabilities: shown,
    speech: window.speech ?? null, novelty: window.novelty ?? null,
    ...(window.uncalibrated?.length ? { uncalibrated: shares(window.uncalibrated) } : {}),
  };
}

const shares = (pairs) => Object.fromEntries(pairs.map(({ label, probability }) => [label, probability]));

const STAGES = { STAGE_PRODUCTION: "in production", STAGE_CANARY: "a canary", STAGE_UNSPECIFIED: "a candidate" };

// What answered: the head, and whose calibration.
export function usedWords({ head, stage, calibration }) {
  const { tenant, state, clips } = calibration ?? {};
  const own = ["CALIBRATION_STATE_READY", "CALIBRATION_STATE_FROZEN"].includes(state);
  const whose = tenant ? `; calibration of ${tenant}: ${own ? `its own, from ${clips} clips` : `still collecting, ${clips} clips so far`}` : "";
  return `Answered by ${head.name} ${head.version}, ${STAGES[stage] ?? "a candidate"}${whose}.`;
}

export function words(window) {
  const reason = REASONS[window.abstention];
  if (!window.probabilities) return reason ?? "no answer";
  return `${window.label}, ${percent(window.confidence)}` + (reason ? ` (${reason})` : "");
}

export const toJson = (results) => JSON.stringify(results, null, 2);

const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

export function toCsv({ classes, windows }) {
  const head = ["index", "start_ms", "end_ms", "label", "confidence", "abstention", "speech", "novelty", ...classes];
  const plain = windows.some((window) => window.uncalibrated);
  if (plain) head.push(...classes.map((label) => `uncalibrated ${label}`));
  const rows = windows.map((window) => [
    ...head.slice(0, 8).map((name) => window[name] ?? ""),
    ...classes.map((label) => window.probabilities?.[label] ?? ""),
    ...(plain ? classes.map((label) => window.uncalibrated?.[label] ?? "") : []),
  ]);
  return [head, ...rows].map((row) => row.map((value) => quoted(String(value))).join(",")).join("\r\n") + "\r\n";
}

export function download(name, type, text) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function tableHead(table, classes) {
  const row = document.createElement("tr");
  for (const name of ["From", "To", "Answer", ...classes]) {
    const cell = Object.assign(document.createElement("th"), { scope: "col", textContent: name });
    if (name === "Answer") cell.className = "words";
    row.append(cell);
  }
  table.tHead.replaceChildren(row);
  table.tBodies[0].replaceChildren();
}

export function tableRow(table, window, classes) {
  const row = table.tBodies[0].insertRow();
  for (const value of [clock(window.start_ms), clock(window.end_ms)]) row.insertCell().textContent = value;
  Object.assign(row.insertCell(), { className: "words", textContent: words(window) });
  for (const label of classes) row.insertCell().textContent = window.probabilities ? window.probabilities[label].toFixed(3) : "–";
}
