// One row a class: its probability over time, in the darker colour where it won.
import { SILENT, STRANGE, clock, percent } from "./results.js";

const SVG = "http://www.w3.org/2000/svg";
const LIVE_MS = 60_000; // a live recording shows its last minute

const made = (name, attributes) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

export class Timeline {
  constructor(place) {
    this.place = place;
    this.windows = [];
    this.rows = new Map();
    this.due = false;
  }

  begin(classes, { live, seek }) {
    Object.assign(this, { live, seek, windows: [], cursor_ms: null, overall: null });
    this.rows = new Map(classes.map((label) => [label, this.row(label)]));
    this.axis = Object.assign(document.createElement("div"), { className: "axis" });
    this.axis.setAttribute("aria-hidden", "true");
    this.axis.append(document.createElement("span"), document.createElement("span"));
    this.place.replaceChildren(...[...this.rows.values()].map((row) => row.box), this.axis);
  }

  row(label) {
    const box = Object.assign(document.createElement("div"), { className: "row" });
    const name = Object.assign(document.createElement("span"), { className: "name", textContent: label, title: label });
    const value = Object.assign(document.createElement("span"), { className: "value", textContent: "" });
    const picture = made("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", "aria-hidden": "true" });
    const paths = Object.fromEntries(["silent", "area", "won", "strange"].map((kind) => [kind, made("path", { class: kind })]));
    const cursor = made("line", { class: "cursor", y1: 0, y2: 100, visibility: "hidden" });
    picture.append(...Object.values(paths), cursor);
    picture.addEventListener("click", (event) => {
      const bounds = picture.getBoundingClientRect();
      this.seek?.(this.from + ((event.clientX - bounds.left) / bounds.width) * (this.to - this.from));
    });
    box.append(name, picture, value);
    return { box, value, paths, cursor };
  }

  add(window) {
    this.windows.push(window);
    this.draw();
  }

  // From now on the numbers are the overall answer's, except where the player is.
  finish(overall) {
    this.overall = overall;
    this.draw();
  }

  at(ms) {
    this.cursor_ms = ms;
    this.draw();
  }

  draw() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => { this.due = false; this.paint(); });
  }

  // A window stands for its last step: what is newest in it. The first one stands for all of itself.
  span(window, before) {
    return [before ? Math.max(before.end_ms, window.start_ms) : window.start_ms, window.end_ms];
  }

  paint() {
    const last = this.windows.at(-1);
    if (!last) return;
    this.to = Math.max(last.end_ms, this.live ? Math.min(LIVE_MS, 10_000) : 1);
    this.from = this.live ? Math.max(0, this.to - LIVE_MS) : this.windows[0].start_ms;
    const shown = this.windows.map((window, at) => [window, this.span(window, this.windows[at - 1])]).filter(([, [, end]]) => end > this.from);
    for (const [label, row] of this.rows) this.paintRow(label, row, shown, last);
    this.axis.firstChild.textContent = clock(this.from);
    this.axis.lastChild.textContent = clock(this.to);
  }

  paintRow(label, row, shown, last) {
    const drawn = { silent: "", area: "", won: "", strange: "" };
    for (const [window, [start, end]] of shown) {
      const kind = this.kind(window, label);
      const height = kind === "silent" ? 12 : 100 * window.probabilities[label];
      const [x, right] = [this.x(start), this.x(end)];
      drawn[kind] += `M${x} 100V${(100 - height).toFixed(1)}H${right}V100Z`;
    }
    for (const [kind, path] of Object.entries(row.paths)) path.setAttribute("d", drawn[kind]);
    const now = this.cursor_ms === null ? (this.overall ?? last) : (this.windows.findLast((window) => window.start_ms <= this.cursor_ms) ?? last);
    row.value.textContent = now.probabilities ? percent(now.probabilities[label]) : "–";
    row.box.classList.toggle("top", now.label === label);
    row.cursor.setAttribute("visibility", this.cursor_ms === null ? "hidden" : "visible");
    if (this.cursor_ms !== null) for (const end of ["x1", "x2"]) row.cursor.setAttribute(end, this.x(this.cursor_ms));
  }

  kind(window, label) {
    if (!window.probabilities || SILENT.includes(window.abstention)) return "silent";
    if (window.abstention === STRANGE) return "strange";
    return window.label === label ? "won" : "area";
  }

  x(ms) {
    return Math.max(0, (1000 * (ms - this.from)) / (this.to - this.from)).toFixed(1);
  }
}
