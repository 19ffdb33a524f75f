// The page of /docs: what /openapi.json says, without anything from another host.

import { find, make } from "./dom.js";

const nameOf = (reference) => reference.split("/").pop();

// A type in few words: "integer", "a list of string", or a link to a schema of its own.
function typeOf(schema) {
  if (schema.$ref) return make("a", { href: `#${nameOf(schema.$ref)}`, textContent: nameOf(schema.$ref) });
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return make("span", {}, ...choices.flatMap((each, at) => (at ? [" or ", typeOf(each)] : [typeOf(each)])));
  if (schema.type === "array") return make("span", {}, "list of ", typeOf(schema.items ?? {}));
  if (schema.enum) return make("span", {}, schema.enum.map((value) => JSON.stringify(value)).join(", "));
  return make("span", {}, [schema.type ?? "any"].flat().join(" or "));
}

const LIMITS = ["minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "default", "format"];
const limitsOf = (schema) =>
  LIMITS.filter((name) => name in schema).map((name) => `${name} ${JSON.stringify(schema[name])}`).join(", ");

function table(rows) {
  const cells = rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell))));
  return make("table", {}, make("tbody", {}, ...cells));
}

function fields(properties, required = []) {
  const rows = Object.entries(properties).map(([name, schema]) => [
    make("code", { textContent: name }),
    typeOf(schema),
    [required.includes(name) ? "required" : "", limitsOf(schema)].filter(Boolean).join(", "),
  ]);
  return table(rows);
}

function operation(path, method, found) {
  const parts = [];
  if (found.parameters) {
    const own = found.parameters.map((each) => [each.name, each.schema ?? Object.values(each.content)[0].schema]);
    parts.push(make("p", { textContent: "Parameters" }), fields(Object.fromEntries(own)));
  }
  for (const [kind, { schema }] of Object.entries(found.requestBody?.content ?? {}))
    parts.push(make("p", {}, "Body ", make("code", { textContent: kind }), ": ", typeOf(schema)));
  const replies = Object.entries(found.responses).map(([status, reply]) => {
    const [content] = Object.values(reply.content ?? {});
    return [status, reply.description, content?.schema ? typeOf(content.schema) : ""];
  });
  const title = make("code", { textContent: `${method.toUpperCase()} ${path}` });
  return make("details", {}, make("summary", {}, title, ` ${found.summary}`), ...parts, table(replies));
}

function schemaOf(name, schema) {
  const title = make("summary", {}, make("code", { textContent: name }), ` ${schema.description ?? ""}`);
  return make("details", { id: name }, title, fields(schema.properties ?? {}, schema.required));
}

async function show() {
  const reply = await fetch("openapi.json");
  const main = find("main");
  if (!reply.ok) {
    main.append(make("p", { textContent: `openapi.json: ${reply.status}` }));
    return;
  }
  const about = await reply.json();
  main.append(make("p", { textContent: `${about.info.title} ${about.info.version}. ${about.info.description}` }));
  for (const [path, methods] of Object.entries(about.paths))
    for (const [method, found] of Object.entries(methods)) main.append(operation(path, method, found));
  main.append(make("h2", { textContent: "Types" }));
  for (const [name, schema] of Object.entries(about.components.schemas)) main.append(schemaOf(name, schema));
  addEventListener("hashchange", open);
  open();
}

function open() {
  const target = document.getElementById(location.hash.slice(1));
  if (!target) return;
  target.open = true;
  target.scrollIntoView();
}

show();
