// Several files become images of the gallery: a question first, then progress, then what was refused.

import { ApiError, postImage } from "./api.js";
import { find, make } from "./dom.js";
import { say } from "./strings.js";

const dialog = find("#adding");
let stop = new AbortController();

// `on.search(file)` searches with one instead; `on.added()` is called after the last file, if any was sent.
export function askToAdd(files, gallery, on) {
  find("#adding-title").textContent = say("addAsk", { count: files.length, gallery });
  find(".refused", dialog).replaceChildren();
  find("#adding-progress").hidden = true;
  find(".about", dialog).hidden = false;
  const [add, search, close] = [".add", ".search-first", ".close"].map((name) => find(name, dialog));
  for (const button of [add, search]) button.hidden = false;
  close.textContent = say("cancel");
  add.onclick = async () => {
    for (const item of [add, search, find(".about", dialog)]) item.hidden = true;
    await addAll(files, gallery);
    close.textContent = say("close");
    close.focus();
    on.added();
  };
  search.onclick = () => {
    dialog.close();
    on.search(files[0]);
  };
  close.onclick = () => dialog.close();
  dialog.onclose = () => stop.abort();
  stop = new AbortController();
  dialog.showModal();
  add.focus();
}

// One after the other; a refused file does not stop the others, a server that is gone or wants another key does.
async function addAll(files, gallery) {
  const { signal } = stop;
  const counts = { added: 0, known: 0, failed: 0 };
  for (const [index, file] of files.entries()) {
    showProgress(index, files.length);
    try {
      const { change } = await postImage(file, gallery, signal);
      counts[change === "added" ? "added" : "known"] += 1;
    } catch (error) {
      if (signal.aborted) break;
      if (!(error instanceof ApiError)) throw error;
      counts.failed += 1;
      find(".refused", dialog).append(make("li", {}, `${file.name}: ${error.message}`));
      if (error.gone || [401, 403].includes(error.status)) break;
    }
  }
  find("#adding-progress").hidden = true;
  find("#adding-title").textContent = say("addedAll", counts);
}

function showProgress(done, count) {
  find("#adding-title").textContent = say("adding", { done, count });
  Object.assign(find("#adding-progress"), { hidden: false, max: count, value: done });
}
