// Uses the prober's page in Debian's Chromium as a person would and prints what it saw as one line of JSON:
//     node tests/e2e/page.mjs ADDRESS SPEECH.wav [FOLDER FOR SCREENSHOTS]
// It judges nothing; tests/e2e/test_page.py does.
import { readFile } from "node:fs/promises";
import { launch, measures } from "./browser.mjs";

const [address, speech, shots] = process.argv.slice(2);
const seen = { console: [], requests: [] };
// The browser's own test device plays the file in a loop as the microphone.
const browser = await launch([
  "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", `--use-file-for-fake-audio-capture=${speech}`,
]);

async function open({ width = 1100, dark = false, allowed = true } = {}) {
  const context = await browser.newContext({
    viewport: { width, height: 900 }, colorScheme: dark ? "dark" : "light", acceptDownloads: true,
    permissions: allowed ? ["microphone"] : [],
  });
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && seen.console.push(message.text()));
  page.on("pageerror", (error) => seen.console.push(String(error)));
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("websocket", (socket) => seen.requests.push(socket.url()));
  await page.goto(address);
  await page.waitForFunction(() => document.querySelector("#head option") && document.querySelector("#ready.yes"));
  return page;
}

const shoot = (page, name) => shots && page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
const settled = (page) => page.waitForFunction(() => /^\d+ windows/.test(document.getElementById("status").textContent), null, { timeout: 60_000 });
const text = (page, selector) => page.locator(selector).innerText();
const rows = (page) => page.evaluate(() => [...document.querySelectorAll("#table tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent)));
const problem = async (page) => {
  await page.waitForSelector("#problem:not([hidden])");
  return text(page, "#problem");
};

async function downloaded(page, button) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(button)]);
  return { name: download.suggestedFilename(), text: await readFile(await download.path(), "utf8") };
}

async function outcome(page) {
  await settled(page);
  return {
    status: await text(page, "#status"), now: await text(page, "#now"), rows: await rows(page),
    lanes: await page.locator("#timeline .row").count(),
    drawn: await page.evaluate(() => [...document.querySelectorAll("#timeline path")].filter((path) => path.getAttribute("d")).length),
  };
}

async function dropped(page, bytes, name, type) {
  const transfer = await page.evaluateHandle(([held, name, type]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(held)], name, { type }));
    return transfer;
  }, [[...bytes], name, type]);
  await page.dispatchEvent("#drop", "drop", { dataTransfer: transfer });
}

try {
  const page = await open();
  seen.title = await page.title();
  seen.heads = await page.locator("#head option").allInnerTexts();
  seen.facts = await text(page, "#head-facts");
  await page.fill("#window", "1");
  await page.fill("#hop", "0.5");
  await page.setInputFiles("#file", speech);
  seen.file = await outcome(page);
  await shoot(page, "file-light");
  seen.used = await text(page, "#used");
  seen.json = await downloaded(page, "#json");
  seen.csv = await downloaded(page, "#csv");
  await page.waitForFunction(() => document.getElementById("player").duration > 0);
  seen.player = await page.locator("#player").evaluate((player) => player.duration);

  await page.selectOption("#prior", "uniform");
  await dropped(page, await readFile(speech), "dropped.wav", "audio/wav");
  seen.dropped = await outcome(page);

  await page.selectOption("#prior", "explicit");
  seen.shares = await page.locator("#shares input").count();
  for (const input of await page.locator("#shares input").all()) await input.fill("0");
  await page.setInputFiles("#file", speech);
  seen.noShare = await problem(page);
  await page.locator("#shares input").first().fill("100");
  await page.setInputFiles("#file", speech);
  await page.waitForSelector("#problem[hidden]", { state: "attached" });
  seen.explicit = await outcome(page);
  await page.selectOption("#prior", "train");

  await page.fill("#hop", "2");
  await page.setInputFiles("#file", speech);
  seen.longHop = await problem(page);
  await page.fill("#hop", "0.5");
  await page.setInputFiles("#file", { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("This is no audio at all, only words.") });
  await page.waitForFunction(() => !document.getElementById("problem").hidden && !document.getElementById("problem").textContent.includes("step"));
  seen.noAudio = await problem(page);

  // From the top by keyboard alone.
  await page.reload();
  await page.waitForSelector("#head option", { state: "attached" });
  await page.evaluate(() => { document.getElementById("window").value = 1; document.getElementById("hop").value = 0.5; });
  seen.stops = [];
  for (let i = 0; i < 20 && !seen.stops.includes("record"); i += 1) {
    await page.keyboard.press("Tab");
    seen.stops.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
    seen.outline ??= await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  }
  await page.keyboard.press("Space");
  await page.waitForSelector('#record[aria-pressed="true"]');
  await page.waitForFunction(() => document.querySelectorAll("#table tbody tr").length >= 4, null, { timeout: 60_000 });
  await shoot(page, "live-light");
  seen.recording = { label: await text(page, "#record"), status: await text(page, "#status") };
  await page.keyboard.press("Space");
  seen.live = await outcome(page);
  seen.pressed = await page.getAttribute("#record", "aria-pressed");
  await page.context().close();

  // A microphone that comes when it is allowed.
  const slow = await open();
  await slow.evaluate(() => {
    const waiting = [], { mediaDevices } = navigator, real = mediaDevices.getUserMedia.bind(mediaDevices);
    Object.assign(window, { asked: 0, tracks: [], allow: () => waiting.splice(0).forEach((go) => go()) });
    mediaDevices.getUserMedia = async (wanted) => {
      window.asked += 1;
      await new Promise((go) => waiting.push(go));
      const stream = await real(wanted);
      window.tracks.push(...stream.getTracks());
      return stream;
    };
  });
  const press = (times) => slow.evaluate((times) => { for (; times; times -= 1) document.getElementById("record").click(); }, times);
  const allow = (given) => slow.evaluate(() => window.allow()).then(() => slow.waitForFunction((given) => window.tracks.length >= given, given));
  const microphones = async () => {
    await slow.waitForFunction(() => window.tracks.every((track) => track.readyState === "ended"), null, { timeout: 5_000 }).catch(() => null);
    return slow.evaluate(() => [window.asked, window.tracks.filter((track) => track.readyState === "live").length]);
  };
  seen.opened = {};
  await press(2);
  await allow(1);
  await slow.waitForSelector('#record[aria-pressed="true"]');
  await slow.waitForFunction(() => document.querySelectorAll("#table tbody tr").length);
  await press(1);
  await settled(slow);
  seen.opened.twice = await microphones();
  await press(1);
  await slow.setInputFiles("#file", speech);
  await allow(2);
  await settled(slow);
  seen.opened.file = await microphones();
  await slow.locator("#key").evaluate((key) => { key.value = "no key"; key.dispatchEvent(new Event("change")); });
  await press(1);
  await allow(3);
  seen.badKey = await problem(slow);
  seen.opened.key = await microphones();
  await slow.evaluate(() => { AudioWorklet.prototype.addModule = async () => { throw new Error("no worklet"); }; });
  await press(1);
  await allow(4);
  await slow.waitForFunction(() => document.getElementById("problem").textContent.includes("worklet"));
  seen.opened.worklet = await microphones();
  await slow.context().close();

  seen.widths = {};
  for (const width of [320, 375, 1100]) {
    const narrow = await open({ width });
    await narrow.setInputFiles("#file", speech);
    await settled(narrow);
    seen.widths[width] = await narrow.evaluate(() => document.documentElement.scrollWidth);
    await shoot(narrow, `width-${width}`);
    await narrow.context().close();
  }
  for (const dark of [false, true]) {
    const lit = await open({ dark });
    await lit.setInputFiles("#file", speech);
    await settled(lit);
    await lit.click("#results summary");
    await lit.click("#access summary");
    await lit.evaluate(() => { document.getElementById("problem").hidden = false; document.getElementById("problem").textContent = "words"; });
    seen[dark ? "dark" : "light"] = await lit.evaluate(
      `(() => { const { worst, page, elements } = ${measures}; return { worst: worst(), page: page(), elements: elements() }; })()`,
    ); // as a string: the page's own policy forbids eval
    await lit.evaluate(() => { document.getElementById("problem").hidden = true; });
    await shoot(lit, dark ? "dark" : "light");
    await lit.context().close();
  }
  const tree = await open();
  seen.named = await tree.evaluate(() => [...document.querySelectorAll("button, select, input, audio")].filter((element) => element.checkVisibility())
    .map((element) => element.getAttribute("aria-label") || element.labels?.[0]?.innerText.trim() || element.innerText.trim()));
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
