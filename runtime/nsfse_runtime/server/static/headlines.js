// What stands above the images: how good the hits are, or why there are none.

import { textOf } from "./state.js";
import { percent, say } from "./strings.js";

export function headlineOf({ hits, has_match: hasMatch, state: { steps, where } }, gallery) {
  if (!gallery.images) return say("emptyGallery");
  if (!hits.length) return say(hasFilters(where) ? "nonePasses" : "noneLeft");
  if (hasMatch === false) return say("nothingMatches");
  const step = steps.at(-1);
  if (!textOf(step)) return say(["likeThis", "likeBoth"][step.extraImages.length] ?? "likeAll");
  // null: there is no confidence
  return hasMatch ? say("matches", { count: hits.filter(({ is_match }) => is_match).length }) : say("nearest");
}

// Why there is no hit, or what makes a hit a match.
export function leadOf({ hits, threshold, state: { where } }, { gallery, writable }) {
  if (!gallery.images) return emptyLead(writable);
  if (!hits.length) return hasFilters(where) ? "" : say("noneLeftMore");
  return threshold === null ? "" : say("cut", { cut: percent(threshold) });
}

// From which hit on there is no match, and what stands before it.
export function divider({ hits, has_match: hasMatch, threshold }) {
  const last = hits.findLastIndex(({ is_match }) => is_match);
  if (hasMatch === false) return { divideAt: 0, dividerText: say("nearestThere") };
  if (last < 0 || last === hits.length - 1) return {};
  const dividerText = threshold === null ? say("weaker") : say("underCut", { cut: percent(threshold) });
  return { divideAt: last + 1, dividerText };
}

export const hasFilters = (where) => Object.keys(where).length > 0;
export const emptyLead = (writable) => say(writable ? "emptyWritableMore" : "emptyGalleryMore");
