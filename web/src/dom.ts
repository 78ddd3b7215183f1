/** Creates DOM elements, without a framework. */

type Child = Node | string | null | undefined | false;
export type Attributes = Record<string, unknown>;

/** An element with attributes (`onclick` and its like are listeners, true is an empty attribute, null none) and children. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) set(element, name, value);
  element.append(...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false));
  return element;
}

function set(element: HTMLElement, name: string, value: unknown): void {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value as EventListener);
  else element.setAttribute(name, value === true ? "" : String(value));
}

const SVG = "http://www.w3.org/2000/svg";

/** A decorative icon of 20 by 20 pixels. */
export function icon(name: keyof typeof ICONS): SVGSVGElement {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of [
    ["viewBox", "0 0 20 20"],
    ["width", "20"],
    ["height", "20"],
    ["fill", "none"],
    ["stroke", "currentColor"],
    ["stroke-width", "1.5"],
    ["stroke-linecap", "round"],
    ["stroke-linejoin", "round"],
    ["aria-hidden", "true"],
    ["class", "icon"],
  ])
    svg.setAttribute(key!, value!);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

const ICONS = {
  mark: "M10 2.5a7.5 7.5 0 1 0 0 15 7.5 7.5 0 0 0 0-15ZM10 2.5c-4.5 4-4.5 11 0 15 4.500-4 4.500-11 0-15ZM2.800 7.800h14.400M2.800 12.200h14.400",
  photo: "M3 4.500h14v11H3zM3 13l4-4 3.500 3.500L13 10l4 4M12.800 7.500h.1",
  text: "M4 5h12M4 9h12M4 13h8",
  together: "M6 3h11v9h-11zM3 7v9.500h11",
  accept: "M4 10.500l4 4 8-9",
  remove: "M4 6h12M8 6V4h4v2M5.500 6l.800 10.500h7.400L14.500 6M8.500 9v5M11.500 9v5",
  close: "M5 5l10 10M15 5L5 15",
  plus: "M10 4v12M4 10h12",
  minus: "M4 10h12",
  globe: "M10 2.500a7.500 7.500 0 1 0 0 15 7.500 7.500 0 0 0 0-15ZM10 2.500c-4.500 4-4.500 11 0 15 4.500-4 4.500-11 0-15ZM2.500 10h15",
  map: "M2.500 5l5-2 5 2 5-2v12l-5 2-5-2-5 2zM7.500 3v12M12.500 5v12",
  box: "M4 5h12v10H4zM4 5h.1M16 5h.1M4 15h.1M16 15h.1",
  polygon: "M5 15L3.500 7 10 3.500 16.500 8 14 15.500z",
  sun: "M10 6.500a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7ZM10 2v1.500M10 16.500V18M2 10h1.500M16.500 10H18M4.300 4.300l1.100 1.100M14.600 14.600l1.100 1.100M4.300 15.700l1.100-1.100M14.600 5.400l1.100-1.100",
  moon: "M16 11.800A6.500 6.500 0 0 1 8.200 4a6.500 6.500 0 1 0 7.800 7.800Z",
  auto: "M10 3a7 7 0 1 0 0 14ZM10 3a7 7 0 0 1 0 14",
  download: "M10 3v9M6.500 8.800L10 12.300l3.500-3.500M4 16h12",
  retry: "M15.500 7A6.500 6.500 0 1 0 16.500 11M15.800 3.500V7h-3.500",
  frame: "M3.500 7V3.500H7M13 3.500h3.500V7M16.500 13v3.500H13M7 16.500H3.500V13",
  layers: "M10 3l7 3.800-7 3.800-7-3.800zM3.500 10.500L10 14l6.500-3.500M3.500 13.700L10 17.200l6.500-3.500",
  copy: "M7 7h9v9H7zM4 13V4h9",
  out: "M8 5H4.500v10.500H15V12M11 4h5v5M16 4l-7 7",
  undo: "M7 4L3.500 7.500 7 11M3.500 7.500H12a4.500 4.500 0 0 1 0 9H7",
  print: "M6 7V3h8v4M5 14H3V8h14v6h-2M6 12h8v5H6z",
} as const;

/** Announces a message to screen readers. */
export function announce(message: string): void {
  const region = document.getElementById("announcer");
  if (region) region.textContent = message;
}

/** Replaces the children of an element. */
export function fill(element: Element, ...children: Child[]): void {
  element.replaceChildren(...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false));
}

let last = 0;

/** A new id for an element. */
export const unique = (name: string): string => `${name}-${++last}`;
