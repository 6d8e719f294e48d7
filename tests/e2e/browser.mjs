// What the checks of pages share: Debian's Chromium, and how well text can be read.
import { chromium } from "playwright-core";

export const launch = (further = []) => chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", ...further,
  ],
});

// Runs in a page: `contrast(element)` and `luminance(colour)` by WCAG 2.2, on the nearest background that is not
// transparent, and `worst()`, the element with text of its own that is hardest to read.
export const measures = `(() => {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    return [...pixel.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [r, g, b] = rgba(colour).slice(0, 3).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (rgba(colour)[3] === 255) return colour;
    }
    return "white";
  };
  const contrast = (element) => {
    const [low, high] = [luminance(getComputedStyle(element).color), luminance(background(element))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const holdsText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const texts = () => [...document.body.querySelectorAll("*")]
    .filter((element) => !["SCRIPT", "STYLE", "OPTION", "NOSCRIPT"].includes(element.tagName) && holdsText(element) && element.checkVisibility());
  const worst = () => texts().map((element) => ({ contrast: contrast(element), where: element.tagName + "." + element.className + ": " + element.textContent.slice(0, 40) }))
    .sort((a, b) => a.contrast - b.contrast)[0];
  return { contrast, worst, page: () => luminance(background(document.body)), elements: () => texts().length };
})()`;
