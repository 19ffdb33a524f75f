// A state is one question: the steps that led to it, the last of which is asked, and what narrows it.
// It lives in the address, in the order of the steps: ?id=a.png&text=make+it+red&id=b.png&text=with+stripes
// A step has an image, more images to be like (and-like, and-upload), edits that are done (edit), and the one that is
// being typed (text).

export const MOST = 8; // of images and of edits, as many as a query may have

export const begun = (image, text = "") => ({ ...image, more: [], edits: [], text });
export const images = ({ id, upload, more }) => [upload ? { upload } : { id }, ...more];
export const edits = (step) => [...step.edits, step.text].map((each) => each.trim()).filter(Boolean);
export const said = (step) => edits(step).join(", ");

export const empty = (gallery = "") => ({ gallery, steps: [], without: "", minus: [], balance: 0.5, where: {} });

export function read(search) {
  const state = empty();
  for (const [name, value] of new URLSearchParams(search)) {
    const step = state.steps.at(-1);
    if (name === "id" || name === "upload") state.steps.push(begun({ [name]: value }));
    else if (name === "text" && step) step.text = value;
    else if (name === "edit" && step) step.edits.push(value);
    else if (name === "and-like" && step) step.more.push({ id: value });
    else if (name === "and-upload" && step) step.more.push({ upload: value });
    else if (name === "not") state.minus.push(value);
    else if (name === "without" || name === "gallery") state[name] = value;
    else if (name === "balance") state.balance = Math.min(1, Math.max(0, Number(value) || 0));
    else if (name.startsWith("where.")) (state.where[name.slice(6)] ??= []).push(value);
  }
  return state;
}

export function write(state, firstGallery) {
  const found = new URLSearchParams();
  if (state.gallery !== firstGallery) found.append("gallery", state.gallery);
  for (const { id, upload, more, edits, text } of state.steps) {
    found.append(...(upload ? ["upload", upload] : ["id", id]));
    for (const each of more) found.append(...(each.upload ? ["and-upload", each.upload] : ["and-like", each.id]));
    for (const each of edits) found.append("edit", each);
    if (text.trim()) found.append("text", text);
  }
  if (state.without.trim()) found.append("without", state.without);
  for (const id of state.minus) found.append("not", id);
  if (state.balance !== 0.5) found.append("balance", state.balance);
  for (const [column, values] of Object.entries(state.where)) {
    for (const value of values) found.append(`where.${column}`, value);
  }
  return found.size ? `?${found}` : "";
}

// The last step with something changed.
export function altered(state, part) {
  const step = state.steps.at(-1);
  return { ...state, steps: state.steps.with(-1, { ...step, ...part(step) }) };
}

export function stepped(state, step) {
  return { ...state, steps: [...state.steps, step], minus: state.minus.filter((id) => id !== step.id) };
}

export function filtered(state, column, value, on) {
  const { [column]: before = [], ...where } = state.where;
  const values = before.filter((each) => each !== value).concat(on ? [value] : []);
  return { ...state, where: values.length ? { ...where, [column]: values } : where };
}
