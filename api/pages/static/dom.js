// Elements made of values: whatever comes from a stranger is text, never markup.

export function make(tag, attributes = {}, ...children) {
  // attributes: by name; a function is a listener, true is present, false and null are left out.
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      element.addEventListener(name, value);
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

const SIGNS = { pass: "\u2713", caution: "!", fail: "\u2715", skipped: "\u2022" };

export function mark(kind, word) {
  const sign = make("span", { "aria-hidden": "true" }, SIGNS[kind]);
  return make("span", { class: `mark ${kind}` }, sign, ` ${word}`);
}

const JOB_MARKS = { succeeded: "pass", failed: "fail", cancelled: "caution" };
const ASSET_MARKS = { ready: "pass", rejected: "fail", validating: "skipped" };

export const jobMark = (status) => mark(JOB_MARKS[status] ?? "skipped", status);
export const assetMark = (status) =>
  mark(ASSET_MARKS[status], status === "validating" ? "being checked" : status);

export function say(element, text, kind = "") {
  // Put a sentence where a reader and a screen reader find it; empty takes it away.
  element.textContent = text;
  element.hidden = text === "";
  element.className = `said ${kind}`;
}
