// Opens a report in Debian's Chromium as a person would and prints what it saw as one line of JSON:
//     node tests/e2e/report.mjs REPORT.html
// It judges nothing; tests/e2e/test_report.py does.
import { pathToFileURL } from "node:url";
import { launch, measures } from "./browser.mjs";

const address = pathToFileURL(process.argv[2]).href;
const seen = { console: [], requests: [] };
const browser = await launch();

async function open({ width = 1280, dark = false, scripts = true } = {}) {
  const context = await browser.newContext({
    viewport: { width, height: 800 }, colorScheme: dark ? "dark" : "light", javaScriptEnabled: scripts,
  });
  const page = await context.newPage();
  page.on("console", (message) => seen.console.push(message.text()));
  page.on("pageerror", (error) => seen.console.push(String(error)));
  page.on("request", (request) => seen.requests.push(request.url()));
  await page.goto(address);
  return page;
}

const map = (page) => page.evaluate(() => Object.fromEntries(
  [...document.querySelectorAll("#map td[data-train]")].map((td) => [`${td.dataset.train}→${td.dataset.test}`, td.textContent]),
));
const rows = (page, table) => page.evaluate((id) => [...document.getElementById(id).tBodies[0].rows].map(
  (row) => [...row.cells].map((cell) => cell.textContent),
), table);
const lines = (page, selector) => page.locator(selector).innerText();

async function choose(page, choices) {
  for (const [name, value] of Object.entries(choices)) await page.selectOption("#map-" + name, value);
  return {
    cells: await map(page), caption: await lines(page, "#map caption"), mean: await page.locator("#map tfoot td").last().textContent(),
    scale: await lines(page, "#map-scale"),
  };
}

// Contrast of the text that is hardest to read, and of the map's cells over their whole scale.
const contrasts = (page) => page.evaluate((measures) => {
  const { contrast, worst, page: luminance, elements } = (0, eval)(measures);
  const read = { worst: worst(), page: luminance(), elements: elements() };
  const deep = JSON.parse(document.getElementById("figures").textContent).scale.deep;
  const cell = document.querySelector("#map td.heat");
  const ramps = [];
  for (const under of [false, true]) for (let share = 0; share <= 1; share += 0.01) {
    cell.className = "heat";
    cell.classList.toggle("under", under);
    cell.classList.toggle("deep", share > deep);
    cell.style.setProperty("--v", share.toFixed(3));
    ramps.push(contrast(cell));
  }
  return { ...read, ramp: Math.min(...ramps) };
}, measures);

try {
  const page = await open();
  seen.title = await page.title();
  seen.first = await choose(page, {});
  seen.uar = await choose(page, { series: await page.locator("#map-series option").nth(1).getAttribute("value"), correction: "standardise-all", score: "uar" });
  seen.gain = await choose(page, { score: "macro_f1", view: "gain" });
  seen.floor = await choose(page, { view: "floor" });
  seen.ece = await choose(page, { score: "ece" });
  seen.floorAllowed = await page.locator('#map-view option[value="floor"]').isEnabled();
  await page.reload();

  await page.focus("#map-view");
  for (let i = 0; i < 3 && !(await page.evaluate(() => document.activeElement.closest("#map"))); i += 1) await page.keyboard.press("Tab");
  for (const key of ["ArrowRight", "ArrowRight", "ArrowDown"]) await page.keyboard.press(key);
  seen.onFocus = await lines(page, "#map-detail");
  await page.keyboard.press("Enter");
  seen.stops = await page.locator('#map button[tabindex="0"]').count();
  seen.selected = await page.locator('#map td[aria-selected="true"]').evaluateAll((tds) => tds.map((td) => `${td.dataset.train}→${td.dataset.test}`));
  seen.label = await page.evaluate(() => document.activeElement.getAttribute("aria-label"));
  seen.outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  seen.drill = { words: await lines(page, "#cell-words"), classes: await rows(page, "cell-classes"), confusion: await rows(page, "cell-confusion"), dropped: await lines(page, "#cell-dropped") };
  await page.focus("#cell-test");
  await page.keyboard.type("U");
  seen.typed = await lines(page, "#cell-words");

  seen.widths = {};
  for (const width of [320, 375, 400, 1280]) {
    const narrow = await open({ width });
    seen.widths[width] = await narrow.evaluate(() => document.documentElement.scrollWidth);
    await narrow.context().close();
  }
  for (const dark of [false, true]) {
    const lit = await open({ dark });
    seen[dark ? "dark" : "light"] = await contrasts(lit);
    await lit.context().close();
  }
  const plain = await open({ scripts: false });
  seen.plain = { text: await plain.locator("#map").innerText(), tables: await plain.locator("table caption:visible").count(), controls: await plain.locator("form:visible").count() };
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
