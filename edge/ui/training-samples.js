import { make } from "./dom.js";

/** @typedef {Extract<import("../../shared/job.ts").JobEvent, { type: "sample" }>} Sample */

/**
 * What a training has drawn on its way: a strip for each prompt, in the order of the steps.
 * @param {HTMLElement} section hidden while there is none
 */
export function createSamples(section) {
  /** @type {Map<string, { list: HTMLElement, steps: Set<number> }>} */
  const strips = new Map();

  /** @param {string} prompt */
  function stripOf(prompt) {
    const known = strips.get(prompt);
    if (known) return known;
    const list = make("ol", { className: "strip", tabIndex: 0, ariaLabel: `Samples of ${prompt}` });
    const strip = { list, steps: new Set() };
    strips.set(prompt, strip);
    section.append(make("p", { className: "strip-prompt" }, prompt), list);
    return strip;
  }

  return {
    /** @param {Sample} sample */
    add({ prompt, step, preview }) {
      const { list, steps } = stripOf(prompt);
      // Another runner that takes over draws some of them again.
      if (steps.has(step)) return;
      steps.add(step);
      const picture = make("img", { src: preview, alt: `${prompt}, after ${step} steps` });
      list.append(make("li", {}, picture, make("span", { className: "hint" }, `step ${step}`)));
      list.scrollLeft = list.scrollWidth;
      section.hidden = false;
    },
    clear() {
      strips.clear();
      section.replaceChildren(make("h3", {}, "Samples"));
      section.hidden = true;
    },
  };
}
