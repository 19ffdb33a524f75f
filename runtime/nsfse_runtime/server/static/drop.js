// Files that are dropped on the page or pasted into it, anywhere, and those that are chosen.

import { find } from "./dom.js";

export function listenForFiles(use) {
  const dropping = find("#dropping");
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    dropping.hidden = false;
  });
  addEventListener("dragleave", (event) => event.relatedTarget || (dropping.hidden = true));
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    dropping.hidden = true;
    use([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) use(files);
  });
}

// `use` is called with the files that are chosen in `input`.
export function listenForChoice(input, use) {
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = "";
    if (files.length) use(files);
  });
}

export function chooseFiles(use) {
  const input = Object.assign(document.createElement("input"), { type: "file", multiple: true, accept: find("#file").accept });
  listenForChoice(input, use);
  input.click();
}
