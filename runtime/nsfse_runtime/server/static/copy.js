// The query as a command or a program to paste elsewhere, with the same fields that the page sends.

import { queryFields } from "./api.js";
import { say } from "./strings.js";

const queryUrl = () => new URL("v1/query", location.href.split(/[?#]/)[0]).href;

export function curlSnippet(state, extra) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const parts = queryFields(state, extra).map(([name, value]) =>
    value instanceof File ? `-F ${name}=@${value.name}` : `--form-string ${quoted(`${name}=${value}`)}`,
  );
  return ["curl", quoted(queryUrl()), ...parts].join(" \\\n  ");
}

export function pythonSnippet(state, extra) {
  const parts = queryFields(state, extra).map(([name, value]) =>
    value instanceof File
      ? `("${name}", ("${value.name}", open("${value.name}", "rb").read())),`
      : `("${name}", ${JSON.stringify(value)}),`,
  );
  return [
    "import urllib3",
    "",
    "fields = [",
    ...parts.map((part) => `    ${part}`),
    "]",
    `reply = urllib3.request("POST", ${JSON.stringify(queryUrl())}, fields=fields).json()`,
    'for hit in reply["hits"]:',
    '    print(hit["id"], hit["score"], hit["confidence"])',
    "",
  ].join("\n");
}

// Copy a text and say so on the button that was pressed.
export async function copyFrom(button, text) {
  await copyText(text, button.closest("dialog") ?? document.body);
  const before = button.textContent;
  button.textContent = say("copied");
  setTimeout(() => (button.textContent = before), 1400);
}

// `within` is the open dialog, if any: nothing outside it can be selected.
async function copyText(text, within) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Browsers give a clipboard only to pages from this machine or over TLS.
  const area = Object.assign(document.createElement("textarea"), { value: text });
  within.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
