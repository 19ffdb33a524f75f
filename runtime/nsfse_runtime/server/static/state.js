// The state of the page: the steps of a search, of which the last is the query, and what restricts it.
// The address holds it, in the order of the steps: ?id=a.png&text=make+it+red&id=b.png&text=with+stripes
// A step has an image (id, upload), extra reference images (and-like, and-upload), finished texts (edit), and the text
// that is being typed (text). The first step may be words alone.

export const MAX_PARTS = 8; // images, texts and negative images of a query: as many as the service takes

export const newStep = (image = {}, text = "") => ({ ...image, extraImages: [], edits: [], text });
export const imagesOf = ({ id, upload, extraImages }) =>
  [...(upload ? [{ upload }] : id ? [{ id }] : []), ...extraImages];
export const textsOf = (step) => [...step.edits, step.text].map((text) => text.trim()).filter(Boolean);
export const textOf = (step) => textsOf(step).join(", ");

// `negativeText` is one text field, with commas between its texts; `where` are values by column.
export const emptyState = (gallery = "") =>
  ({ gallery, steps: [], negativeText: "", negativeIds: [], balance: 0.5, where: {} });

export function parseState(search) {
  const state = emptyState();
  for (const [name, value] of new URLSearchParams(search)) {
    if ((name === "text" || name === "edit") && value.trim() && !state.steps.length) state.steps.push(newStep());
    const step = state.steps.at(-1);
    if (name === "id" || name === "upload") state.steps.push(newStep({ [name]: value }));
    else if (name === "text" && step) step.text = value;
    else if (name === "edit" && step) step.edits.push(value);
    else if (name === "and-like" && step) step.extraImages.push({ id: value });
    else if (name === "and-upload" && step) step.extraImages.push({ upload: value });
    else if (name === "not") state.negativeIds.push(value);
    else if (name === "without") state.negativeText = value;
    else if (name === "gallery") state.gallery = value;
    else if (name === "balance") state.balance = Math.min(1, Math.max(0, Number(value) || 0));
    else if (name.startsWith("where.")) (state.where[name.slice(6)] ??= []).push(value);
  }
  return state;
}

// The address of a state; the first gallery goes without saying.
export function formatState(state, firstGallery) {
  const params = new URLSearchParams();
  if (state.gallery !== firstGallery) params.append("gallery", state.gallery);
  for (const { id, upload, extraImages, edits, text } of state.steps) {
    if (upload || id) params.append(...(upload ? ["upload", upload] : ["id", id]));
    for (const image of extraImages) {
      params.append(...(image.upload ? ["and-upload", image.upload] : ["and-like", image.id]));
    }
    for (const edit of edits) params.append("edit", edit);
    if (text.trim()) params.append("text", text);
  }
  if (state.negativeText.trim()) params.append("without", state.negativeText);
  for (const id of state.negativeIds) params.append("not", id);
  if (state.balance !== 0.5) params.append("balance", state.balance);
  for (const [column, values] of Object.entries(state.where)) {
    for (const value of values) params.append(`where.${column}`, value);
  }
  return params.size ? `?${params}` : "";
}

// The state with `change(step)` in its last step.
export function withLastStep(state, change) {
  const step = state.steps.at(-1);
  return { ...state, steps: state.steps.with(-1, { ...step, ...change(step) }) };
}

// The state after typing: words alone are the first step, and are no step without a text.
export function withText(state, text) {
  const step = state.steps.at(-1) ?? newStep();
  const isEmpty = !imagesOf(step).length && !step.edits.length && !text.trim();
  return { ...state, steps: [...state.steps.slice(0, -1), ...(isEmpty ? [] : [{ ...step, text }])] };
}

// The state with an image more in its last step: its first, or one to be like as well.
export function withImage(state, image) {
  const isFirst = !imagesOf(state.steps.at(-1)).length;
  return withLastStep(state, ({ extraImages }) => (isFirst ? image : { extraImages: [...extraImages, image] }));
}

// The state without an upload that cannot be read; words alone stay.
export function withoutUpload(state, key) {
  const step = state.steps.at(-1);
  const [image, ...extraImages] = imagesOf(step).filter(({ upload }) => upload !== key);
  const words = { edits: step.edits, text: step.text };
  const isEmpty = !image && !textsOf(step).length;
  const rest = isEmpty ? [] : [{ ...newStep(image), ...words, extraImages }];
  return { ...state, steps: [...state.steps.slice(0, -1), ...rest] };
}

// The state that avoids what a word says as well.
export function withNegativeText(state, word) {
  const texts = [...state.negativeText.split(","), word].map((part) => part.trim()).filter(Boolean);
  return { ...state, negativeText: texts.join(", ") };
}

// The state with a known word in place of the one that was typed, where that still stands.
export function withCorrection(state, { word, nearest }) {
  const plain = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const corrected = (typed) => typed.replace(new RegExp(`(?<![\\p{L}\\p{N}])${plain}(?![\\p{L}\\p{N}])`, "giu"), nearest);
  const next = withLastStep(state, ({ text, edits }) => ({ text: corrected(text), edits: edits.map(corrected) }));
  return { ...next, negativeText: corrected(state.negativeText) };
}

// The state with one step more; its image is no negative image any more.
export function withStep(state, step) {
  return { ...state, steps: [...state.steps, step], negativeIds: state.negativeIds.filter((id) => id !== step.id) };
}

export function withFilter(state, column, value, selected) {
  const { [column]: before = [], ...where } = state.where;
  const values = before.filter((other) => other !== value).concat(selected ? [value] : []);
  return { ...state, where: values.length ? { ...where, [column]: values } : where };
}
