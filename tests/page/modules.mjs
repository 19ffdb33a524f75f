// The page's modules, from the folder in NSFSE_PAGE_MODULES or from the checkout, and the few globals of a browser that
// they read.

import { pathToFileURL } from "node:url";

const checkout = new URL("../../runtime/nsfse_runtime/server/static/", import.meta.url);
export const folder = process.env.NSFSE_PAGE_MODULES ? pathToFileURL(`${process.env.NSFSE_PAGE_MODULES}/`) : checkout;

export const load = (name) => import(new URL(name, folder));

export function fakeSessionStorage() {
  const items = new Map();
  globalThis.sessionStorage = { getItem: (key) => items.get(key) ?? null, setItem: (key, value) => items.set(key, value) };
}

// Elements as plain objects: what `make` in dom.js needs.
export function fakeDocument() {
  globalThis.document = {
    createElement: (tag) => ({
      tag,
      children: [],
      textContent: "",
      className: "",
      title: "",
      attributes: {},
      listeners: {},
      setAttribute(name, value) {
        this.attributes[name] = value;
      },
      addEventListener(event, act) {
        this.listeners[event] = act;
      },
      append(...children) {
        this.children.push(...children);
        this.textContent += children.map((child) => child.textContent ?? child).join("");
      },
    }),
  };
}
