// One cell in full: its classes and its confusion matrix.

function made(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function classRow([label, clips, f1, recall]) {
  const row = document.createElement("tr");
  const plot = document.createElement("td");
  const bar = made("span", "", { class: "bar", "aria-hidden": "true" });
  bar.style.width = `${100 * (f1 ?? 0)}%`;
  plot.append(bar);
  row.append(
    made("th", label, { scope: "row" }), made("td", String(clips), { class: "num" }),
    made("td", fixed(recall), { class: "num" }), made("td", fixed(f1), { class: "num" }), plot,
  );
  return row;
}

function confusionRow(label, counts, labels) {
  const row = document.createElement("tr");
  const total = counts.reduce((sum, value) => sum + value, 0);
  row.append(made("th", label, { scope: "row" }));
  counts.forEach((value, i) => {
    const share = total ? value / total : 0;
    const td = made("td", total ? String(Math.round(100 * share)) : MISSING, { title: `${label} answered as ${labels[i]}: ${value} of ${Math.round(total)} clips` });
    td.classList.add("heat");
    td.classList.toggle("deep", share > figures.scale.deep);
    td.classList.toggle("own", labels[i] === label);
    td.style.setProperty("--v", share.toFixed(3));
    row.append(td);
  });
  return row;
}

function drawClasses(cell, correction) {
  byId("cell-classes").tBodies[0].replaceChildren(...cell.perClass[correction].map(classRow));
  const head = document.createElement("tr");
  const corner = made("th", "truth ╲ answer", { scope: "col", class: "corner" });
  head.append(corner, ...cell.classes.map((label) => made("th", label, { scope: "col" })));
  const table = byId("cell-confusion");
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...cell.classes.map((label, i) => confusionRow(label, cell.confusion[correction][i], cell.classes)));
  const dropped = Object.entries(cell.dropped);
  const why = cell.own ? "Clips that no head was tested on" : "Clips left out, because their class is not scored here";
  byId("cell-dropped").textContent = dropped.length
    ? `${why}: ${dropped.map(([label, n]) => `${label} (${n} clips)`).join(", ")}.`
    : "";
}

function startClasses() {
  const selects = Object.fromEntries(["series", "train", "test", "correction"].map((name) => [name, byId("cell-" + name)]));
  const now = () => Object.fromEntries(Object.entries(selects).map(([name, select]) => [name, select.value]));

  function draw() {
    const series = figures.series[selects.series.value];
    refill(selects.train, series.corpora.map((key) => [key, named(key)]));
    const tests = series.corpora.filter((key) => cellOf(selects.series.value, selects.train.value, key));
    refill(selects.test, tests.map((key) => [key, named(key)]));
    const at = now();
    const cell = cellOf(at.series, at.train, at.test);
    byId("cell").hidden = !cell;
    if (!cell) return;
    const scored = series.corrections.filter((name) => cell.perClass[name]);
    refill(selects.correction, scored.map((name) => [name, figures.corrections[name].name]));
    const choice = { series: at.series, correction: selects.correction.value, score: "macro_f1" };
    byId("cell-words").textContent = facts(at.train, at.test, choice).slice(0, 4).join("; ");
    drawClasses(cell, choice.correction);
  }

  function open(series, train, test, correction) {
    if (!cellOf(series, train, test)) return;
    for (const [name, value] of [["series", series], ["train", train], ["test", test], ["correction", correction]]) {
      selects[name].value = value;
      draw(); // each choice fills in what can be chosen next
    }
  }

  if (!Object.keys(figures.series).length) return () => {};
  for (const select of Object.values(selects)) select.addEventListener("change", draw);
  byId("cell-controls").hidden = false;
  draw();
  return open;
}

startMap(startClasses());
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
