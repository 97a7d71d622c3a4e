/**
 * The element with this id.
 * @template {Element} T
 * @param {string} id
 * @param {{ new (): T, prototype: T }} type what the page promises it to be
 * @returns {T}
 */
export function byId(id, type) {
  return expect(document.getElementById(id), type, `#${id}`);
}

/**
 * A named part of a copied template: the element with `data-part="name"`.
 * @template {Element} T
 * @param {ParentNode} root
 * @param {string} name
 * @param {{ new (): T, prototype: T }} type
 * @returns {T}
 */
export function part(root, name, type) {
  return expect(root.querySelector(`[data-part="${name}"]`), type, `[data-part=${name}]`);
}

/**
 * A copy of the one element in a template.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function copyOf(id) {
  return expect(byId(id, HTMLTemplateElement).content.firstElementChild?.cloneNode(true), HTMLElement, `#${id}`);
}

/**
 * @template {Element} T
 * @param {unknown} element
 * @param {{ new (): T, prototype: T }} type
 * @param {string} selector
 * @returns {T}
 */
function expect(element, type, selector) {
  if (!(element instanceof type)) throw new Error(`the page has no ${type.name} ${selector}`);
  return element;
}

/**
 * A new element with properties and children; text stays text.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Partial<HTMLElementTagNameMap[K]>} [properties]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/**
 * An icon of the sprite in index.html.
 * @param {string} name
 * @returns {SVGSVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/**
 * Says something to screen readers, without moving the focus.
 * @param {string} text
 */
export function announce(text) {
  byId("announcer", HTMLElement).textContent = text;
}

/** @type {number | undefined} */
let toastTimer;

/**
 * Says something briefly to everyone.
 * @param {string} text
 */
export function toast(text) {
  const box = byId("toast", HTMLElement);
  box.textContent = text;
  box.classList.add("shown");
  announce(text);
  clearTimeout(toastTimer);
  toastTimer = window.setTimeout(() => box.classList.remove("shown"), 2500);
}
