// Pictures that are dropped on the page or pasted into it, anywhere.

import { find } from "./dom.js";

export function listenForPictures(take) {
  const pictureIn = (data) => [...(data?.files ?? [])].find(({ type }) => type.startsWith("image/")) ?? data?.files?.[0];
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
    const file = pictureIn(event.dataTransfer);
    if (file) take(file);
  });
  addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    if (file) take(file);
  });
}
