// Images that are dropped on the page or pasted into it, anywhere.

import { find } from "./dom.js";

export function listenForImages(use) {
  const imageIn = (data) => [...(data?.files ?? [])].find(({ type }) => type.startsWith("image/")) ?? data?.files?.[0];
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
    const file = imageIn(event.dataTransfer);
    if (file) use(file);
  });
  addEventListener("paste", (event) => {
    const file = imageIn(event.clipboardData);
    if (file) use(file);
  });
}
