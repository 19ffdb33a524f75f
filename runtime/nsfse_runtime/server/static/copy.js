// The question as something to paste elsewhere: the same fields that the page sends.

import { fields } from "./api.js";

const address = () => new URL("v1/query", location.href.split(/[?#]/)[0]).href;

export function curl(state, extra) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const parts = fields(state, extra).map(([name, value]) =>
    value instanceof File ? `-F ${name}=@${value.name}` : `--form-string ${quoted(`${name}=${value}`)}`,
  );
  return ["curl", quoted(address()), ...parts].join(" \\\n  ");
}

export function python(state, extra) {
  const parts = fields(state, extra).map(([name, value]) =>
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
    `reply = urllib3.request("POST", ${JSON.stringify(address())}, fields=fields).json()`,
    'for hit in reply["hits"]:',
    '    print(hit["id"], hit["score"], hit["confidence"])',
    "",
  ].join("\n");
}

export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Only pages from this machine or over TLS have a clipboard; elsewhere this is the way.
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
