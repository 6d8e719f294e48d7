// The train × test table: fills in another series, correction, score or view, and tells about one cell.
// It works on the table that the page already holds; without scripts that table stays as it was written.

const figures = JSON.parse(document.getElementById("figures").textContent);
const byId = (id) => document.getElementById(id);
const named = (key) => figures.names[key] ?? key;
const MISSING = "–";

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

// What a view shows of a cell: a value to colour and write, with the interval where it belongs to that value.
function shown(cell, choice) {
  const scores = scoresOf(cell, choice.correction);
  const held = scores?.[choice.score];
  if (!held || held[0] === null) return null;
  if (choice.view === "score") return { value: held[0], held };
  const base = choice.view === "floor" ? cell.floor[choice.score] : cell.scores.none?.[choice.score][0];
  if (base === null || base === undefined || (choice.view === "gain" && cell.own)) return null;
  return { value: held[0] - base, held };
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

function words(choice) {
  const series = figures.series[choice.series];
  const view = { score: "", floor: ", difference to the highest floor", gain: ", difference to no correction" }[choice.view];
  return `${series.name}, ${figures.corrections[choice.correction].name}: ${figures.scores[choice.score]}${view}`;
}

function told(train, test, choice) {
  const cell = cellOf(choice.series, train, test);
  const where = train === test ? `${named(train)} in domain` : `${named(train)} → ${named(test)}`;
  if (!cell) return `${where}: not scored. ${figures.refused[train + "→" + test] ?? figures.refused[test] ?? figures.refused[train] ?? ""}`;
  const held = scoresOf(cell, choice.correction)?.[choice.score];
  if (!held) return `${where}: this correction was not scored here.`;
  const interval = held[1] === null || held[2] === null ? "no interval" : `95 % interval ${fixed(held[1])} to ${fixed(held[2])}`;
  const floor = cell.floor[choice.score];
  const above = floor === null || floor === undefined ? "" : `; highest floor ${fixed(floor)}, difference ${signed(held[0] - floor)}`;
  return `${where}: ${figures.scores[choice.score]} ${fixed(held[0])}, ${interval}${above}; ${cell.classes.length} classes.`;
}

function startMap(openCell) {
  const table = byId("map");
  if (!table) return;
  const tds = [...table.querySelectorAll("td")];
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1));
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
    for (const td of tds) {
      const found = shown(cellOf(now.series, td.dataset.train, td.dataset.test), now);
      paint(td, found && found.value, now);
      td.firstChild.textContent = found ? (diverging ? signed(found.value, 2) : fixed(found.value, 2)) : MISSING;
      td.firstChild.setAttribute("aria-label", told(td.dataset.train, td.dataset.test, now));
    }
    const end = diverging ? figures.scale.difference : now.score === "ece" ? figures.scale.error : 1;
    byId("map-scale").classList.toggle("diverging", diverging);
    byId("map-scale").firstElementChild.textContent = diverging ? signed(-end, 1) : "0";
    byId("map-scale").lastElementChild.textContent = diverging ? signed(end, 1) : String(end);
    byId("map-words").textContent = words(now);
    const chosen = table.querySelector('[aria-selected="true"]');
    if (chosen) byId("map-detail").textContent = told(chosen.dataset.train, chosen.dataset.test, now);
  }

  function choose(td) {
    for (const other of tds) {
      other.setAttribute("aria-selected", String(other === td));
      other.firstChild.tabIndex = other === td ? 0 : -1;
    }
    const now = choice();
    byId("map-detail").textContent = told(td.dataset.train, td.dataset.test, now);
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

  const tell = (event) => {
    const td = event.target.closest("td");
    if (td) byId("map-detail").textContent = told(td.dataset.train, td.dataset.test, choice());
  };
  table.addEventListener("click", (event) => { const td = event.target.closest("td"); if (td) choose(td); });
  table.addEventListener("keydown", move);
  table.addEventListener("focusin", tell);
  table.addEventListener("pointerover", tell);
  for (const control of controls) control.addEventListener("change", limit);
  byId("map-controls").hidden = false;
  limit();
}
