// The train × test table: fills in another series, correction, score or view, and tells about one cell.
// It works on the table that the page already holds; without scripts that table stays as it was written.

const figures = JSON.parse(document.getElementById("figures").textContent);
const byId = (id) => document.getElementById(id);
const named = (key) => figures.names[key] ?? key;
const MISSING = "–";
const VIEWS = { score: "", floor: ", difference to the highest floor", gain: ", difference to no correction" };

const fixed = (value, digits = 3) => value === null || value === undefined ? MISSING : value.toFixed(digits).replace("-", "−");
const signed = (value, digits = 3) => value === null || value === undefined ? MISSING : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const cellOf = (series, train, test) => figures.cells[series]?.[train + "→" + test];

// In domain there is nothing to correct, so every correction shows the same figure there.
const scoresOf = (cell, correction) => cell?.scores[correction] ?? (cell && cell.own ? cell.scores.none : undefined);

function option(value, text) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  return made;
}

function refill(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, text]) => option(value, text)));
  if (entries.some(([value]) => value === before)) select.value = before;
}

// What a view shows of a cell: the score, or its difference to something; null where that cannot be said.
function shown(cell, choice) {
  const scores = scoresOf(cell, choice.correction);
  const held = scores?.[choice.score];
  if (!held || held[0] === null) return null;
  if (choice.view === "score") return held[0];
  const base = choice.view === "floor" ? cell.floor[choice.score] : cell.scores.none?.[choice.score][0];
  if (base === null || base === undefined || (choice.view === "gain" && cell.own)) return null;
  return held[0] - base;
}

function paint(td, value, choice) {
  const diverging = choice.view !== "score";
  const scale = diverging ? figures.scale.difference : choice.score === "ece" ? figures.scale.error : 1;
  td.classList.remove("heat", "under", "deep", "void");
  if (value === null) {
    td.classList.add("void");
    td.style.removeProperty("--v");
    return;
  }
  const share = Math.min(1, Math.abs(value) / scale);
  td.classList.add("heat");
  td.classList.toggle("under", value < 0);
  td.classList.toggle("deep", share > figures.scale.deep);
  td.style.setProperty("--v", share.toFixed(3));
}

const title = (choice) => `${figures.scores[choice.score]}, ${figures.corrections[choice.correction].name}${VIEWS[choice.view]}`;

// What is known of a cell, as short lines: where, the score, its interval, its floor, its classes.
function facts(train, test, choice) {
  const cell = cellOf(choice.series, train, test);
  const where = train === test ? `${named(train)} in domain` : `${named(train)} → ${named(test)}`;
  const refused = figures.refused[train + "→" + test] ?? figures.refused[test] ?? figures.refused[train];
  if (!cell) return [where, MISSING, refused ? `not scored: ${refused}` : "not scored"];
  const held = scoresOf(cell, choice.correction)?.[choice.score];
  if (!held) return [where, MISSING, "this correction was not scored here"];
  const interval = held[1] === null || held[2] === null ? "no interval" : `95 % interval ${fixed(held[1])}–${fixed(held[2])}`;
  const lines = [where, `${figures.scores[choice.score]} ${fixed(held[0])}`, interval];
  const floor = cell.floor[choice.score];
  if (floor !== null) lines.push(`highest floor ${fixed(floor)}, difference ${signed(held[0] - floor)}`);
  const plain = cell.own || choice.correction === "none" ? null : cell.scores.none?.[choice.score][0] ?? null;
  if (plain !== null) lines.push(`no correction ${fixed(plain)}, difference ${signed(held[0] - plain)}`);
  return [...lines, `${cell.classes.length} classes: ${cell.classes.join(", ")}`];
}

const told = (train, test, choice) => facts(train, test, choice).slice(0, 4).join("; ");

function tell(td, choice) {
  const lines = facts(td.dataset.train, td.dataset.test, choice).map((text, i) => {
    const line = document.createElement("p");
    line.className = ["where", "n"][i] ?? "";
    line.textContent = text;
    return line;
  });
  byId("map-detail").replaceChildren(...lines);
}

// Means over the pairs of each row, each column, and all.
function drawMeans(table, rows, valueAt, write) {
  const mean = (tds) => {
    const values = tds.filter((td) => td.dataset.train !== td.dataset.test).map(valueAt).filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  };
  rows.forEach((tds, i) => { table.tBodies[0].rows[i].lastElementChild.textContent = write(mean(tds)); });
  const foot = [...table.tFoot.rows[0].cells].slice(1);
  rows[0].forEach((_, i) => { foot[i].textContent = write(mean(rows.map((tds) => tds[i]))); });
  foot.at(-1).textContent = write(mean(rows.flat()));
}

function startMap(openCell) {
  const table = byId("map");
  if (!table) return;
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1, -1));
  const tds = rows.flat();
  const controls = ["series", "correction", "score", "view"].map((name) => byId("map-" + name));
  const choice = () => Object.fromEntries(["series", "correction", "score", "view"].map((name, i) => [name, controls[i].value]));

  table.setAttribute("role", "grid");
  for (const td of tds) {
    const button = document.createElement("button");
    button.type = "button";
    button.tabIndex = -1;
    td.replaceChildren(button);
    td.setAttribute("aria-selected", "false");
  }
  tds[0].firstChild.tabIndex = 0;

  function draw() {
    const now = choice();
    const diverging = now.view !== "score";
    const write = (value) => (diverging ? signed(value, 2) : fixed(value, 2));
    const valueAt = (td) => shown(cellOf(now.series, td.dataset.train, td.dataset.test), now);
    for (const td of tds) {
      const value = valueAt(td);
      paint(td, value, now);
      td.firstChild.textContent = write(value);
      td.firstChild.setAttribute("aria-label", told(td.dataset.train, td.dataset.test, now));
    }
    const end = diverging ? figures.scale.difference : now.score === "ece" ? figures.scale.error : 1;
    byId("map-scale").classList.toggle("diverging", diverging);
    byId("map-scale").firstElementChild.textContent = diverging ? signed(-end, 1) : "0";
    byId("map-scale").lastElementChild.textContent = diverging ? signed(end, 1) : String(end);
    drawMeans(table, rows, valueAt, write);
    byId("map-words").textContent = title(now);
    byId("map-of").textContent = figures.series[now.series].name;
    const chosen = table.querySelector('[aria-selected="true"]');
    if (chosen) tell(chosen, now);
  }

  function choose(td) {
    for (const other of tds) {
      other.setAttribute("aria-selected", String(other === td));
      other.firstChild.tabIndex = other === td ? 0 : -1;
    }
    const now = choice();
    tell(td, now);
    openCell(now.series, td.dataset.train, td.dataset.test, now.correction);
  }

  function move(event) {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const td = event.target.closest("td");
    if (!step || !td) return;
    const row = rows.findIndex((cells) => cells.includes(td));
    const next = rows[row + step[0]]?.[rows[row].indexOf(td) + step[1]];
    event.preventDefault();
    if (!next) return;
    td.firstChild.tabIndex = -1;
    next.firstChild.tabIndex = 0;
    next.firstChild.focus();
  }

  function limit() {
    const now = choice();
    const series = figures.series[now.series];
    refill(controls[1], series.corrections.map((name) => [name, figures.corrections[name].name]));
    const floors = now.score === "macro_f1" || now.score === "uar";
    for (const entry of controls[3].options) entry.disabled = entry.value === "floor" && !floors;
    if (now.view === "floor" && !floors) controls[3].value = "score";
    draw();
  }

  const at = (act) => (event) => {
    const td = event.target.closest("td");
    if (tds.includes(td)) act(td);
  };
  table.addEventListener("click", at(choose));
  table.addEventListener("keydown", move);
  table.addEventListener("pointerleave", () => {
    const chosen = table.querySelector('[aria-selected="true"]');
    if (chosen) tell(chosen, choice());
  });
  table.addEventListener("focusin", at((td) => tell(td, choice())));
  table.addEventListener("pointerover", at((td) => tell(td, choice())));
  for (const control of controls) control.addEventListener("change", limit);
  byId("map-controls").hidden = false;
  limit();
}
