// Elements are made here and nowhere else. Text always stays text: the name of a file may hold anything.

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

export const prefersReducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// A function that calls `act` once it has not been called for `delay` milliseconds.
export function debounce(delay, act) {
  let timer = 0;
  const schedule = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(act, delay, ...values);
  };
  schedule.cancel = () => clearTimeout(timer);
  return schedule;
}
