// A picture of a report: node scripts/screenshot.mjs REPORT.html OUT.png [--width 1280] [--selector "#pairs"] [--dark]
//     [--full] [--scale 1] [--set "#map-correction=standardise-all"]
// Needs `npm install` and Debian's chromium (CHROMIUM names another one). --set chooses an option before the picture.
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    width: { type: "string", default: "1280" },
    scale: { type: "string", default: "1" },
    selector: { type: "string" },
    dark: { type: "boolean", default: false },
    full: { type: "boolean", default: false },
    set: { type: "string", multiple: true, default: [] },
  },
});
const [report, picture] = positionals;
if (!report || !picture) {
  console.error("usage: node scripts/screenshot.mjs REPORT.html OUT.png [--width N] [--selector CSS] [--dark] [--full]");
  process.exit(2);
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ],
});
try {
  const page = await browser.newPage({
    viewport: { width: Number(values.width), height: 900 },
    deviceScaleFactor: Number(values.scale),
    colorScheme: values.dark ? "dark" : "light",
  });
  await page.goto(pathToFileURL(report).href);
  for (const choice of values.set) {
    const at = choice.indexOf("=");
    await page.locator(choice.slice(0, at)).selectOption(choice.slice(at + 1));
  }
  const part = values.selector ? page.locator(values.selector) : page;
  await part.screenshot({ path: picture, ...(values.full && !values.selector ? { fullPage: true } : {}) });
} finally {
  await browser.close();
}
