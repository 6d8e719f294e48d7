// Uses the page of a prober that lets nobody in without a key and prints what it saw as one line of JSON:
//     node tests/e2e/page_key.mjs ADDRESS SPEECH.wav KEY [FOLDER FOR SCREENSHOTS]
// It judges nothing; tests/e2e/test_page.py does.
import { launch } from "./browser.mjs";

const [address, speech, key, shots] = process.argv.slice(2);
const seen = { requests: [] };
const browser = await launch([
  "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", `--use-file-for-fake-audio-capture=${speech}`,
]);
const text = (page, selector) => page.locator(selector).innerText();
const forget = (page) => page.evaluate(() => Object.assign(document.getElementById("problem"), { hidden: true, textContent: "" }));
// The next problem after `forget`: what is shown already may leave while it is read.
const problem = async (page) => {
  const said = await page.waitForFunction(() => !document.getElementById("problem").hidden && document.getElementById("problem").innerText);
  return said.jsonValue();
};
const settled = (page) => page.waitForFunction(() => /^\d+ windows/.test(document.getElementById("status").textContent), null, { timeout: 60_000 });

async function heard(page) {
  await settled(page);
  return { used: await text(page, "#used"), notice: await text(page, "#notice"), windows: await page.locator("#table tbody tr").count() };
}

try {
  const context = await browser.newContext({ viewport: { width: 1100, height: 900 }, permissions: ["microphone"] });
  const page = await context.newPage();
  page.on("request", (request) => seen.requests.push(request.url()));
  page.on("websocket", (socket) => seen.requests.push(socket.url()));
  await page.goto(address);
  seen.without = await problem(page);
  seen.asked = await page.locator("#key").isVisible(); // the fields unfold by themselves

  await forget(page);
  await page.fill("#key", "sxk_0000000000000000_wrong");
  await page.locator("#key").blur();
  seen.wrong = await problem(page);

  await page.fill("#key", key);
  await page.locator("#key").blur();
  await page.waitForSelector("#head option", { state: "attached" });
  await page.waitForSelector("#problem[hidden]", { state: "attached" });
  await page.fill("#window", "1");
  await page.fill("#hop", "0.5");
  await page.fill("#tenant", "call-centre");
  await page.setInputFiles("#file", speech);
  seen.file = await heard(page);
  if (shots) await page.screenshot({ path: `${shots}/key.png`, fullPage: true });

  await page.check("#uncalibrated");
  await page.click("#record");
  await page.waitForSelector('#record[aria-pressed="true"]'); // the rows of the file are gone
  await page.waitForFunction(() => document.querySelectorAll("#table tbody tr").length >= 3, null, { timeout: 60_000 });
  await page.click("#record");
  seen.live = await heard(page);

  await page.fill("#purpose", "workplace");
  await page.setInputFiles("#file", speech);
  seen.forbidden = await problem(page);
  await forget(page);
  await page.click("#record");
  seen.forbiddenLive = await problem(page);
  seen.stored = await page.evaluate(() => JSON.stringify([Object.entries(localStorage), Object.entries(sessionStorage), document.cookie]));
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
