import type { Page } from "playwright-core";
import { z } from "zod";

/** Visible controls without a name that a screen reader could say, as HTML. */
export async function namelessControls(page: Page): Promise<string[]> {
  return z.array(z.string()).parse(
    await page.evaluate(`[...document.querySelectorAll("button, a, input, select, textarea, progress, dialog[open]")]
      .filter(element => element.checkVisibility())
      .filter(element => {
        const referred = element.getAttribute("aria-labelledby");
        const texts = [
          element.getAttribute("aria-label"),
          referred && document.getElementById(referred)?.textContent,
          ...[...(element.labels ?? [])].map(label => label.textContent),
          element.matches("button, a") ? element.textContent : "",
        ];
        return !texts.some(text => text?.trim());
      })
      .map(element => element.outerHTML.slice(0, 120))`),
  );
}

/** Visible text whose contrast with what lies behind it is below WCAG AA for normal text, 4.5 : 1. Text of disabled controls is exempt. */
export async function faintTexts(page: Page): Promise<string[]> {
  return z.array(z.string()).parse(await page.evaluate(`(${contrastScript})(4.5)`));
}

const contrastScript = `least => {
  const brush = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const paint = colours => {
    brush.clearRect(0, 0, 1, 1);
    for (const colour of colours) {
      brush.fillStyle = colour;
      brush.fillRect(0, 0, 1, 1);
    }
    return [...brush.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => {
    const [lr, lg, lb] = [r, g, b].map(v => v / 255).map(v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * lr + 0.7152 * lg + 0.0722 * lb;
  };
  const backgrounds = element => (element ? [...backgrounds(element.parentElement), getComputedStyle(element).backgroundColor] : ["white"]);
  const contrast = element => {
    const behind = backgrounds(element);
    const levels = [luminance(paint(behind)), luminance(paint([...behind, getComputedStyle(element).color]))].sort((a, b) => b - a);
    return (levels[0] + 0.05) / (levels[1] + 0.05);
  };
  const hasText = element => [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
  return [...document.body.querySelectorAll("*")]
    .filter(element => hasText(element) && element.checkVisibility({ opacityProperty: true }) && !element.closest("svg, option, :disabled, .sr-only, .toast"))
    .map(element => [contrast(element), element])
    .filter(([ratio]) => !(ratio >= least))
    .map(([ratio, element]) => ratio.toFixed(2) + ": " + element.outerHTML.slice(0, 120));
}`;
