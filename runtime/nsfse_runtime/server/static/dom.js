// Elements are made here and nowhere else. Text only ever becomes text: a file may be called anything.

export const find = (selector, within = document) => within.querySelector(selector);

export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export function later(delay, act) {
  let timer = 0;
  const wait = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(act, delay, ...values);
  };
  wait.cancel = () => clearTimeout(timer);
  return wait;
}
