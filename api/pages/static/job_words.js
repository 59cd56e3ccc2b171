// Jobs in words: what they are called, what they are of, how long they took.

import { get } from "./api.js";
import { make } from "./dom.js";
import { lasting } from "./words.js";

const TITLES = JSON.parse(document.body.dataset.kinds);
const names = new Map(); // by link: what a data set or model is called, once it was asked for

export const jobTitle = ({ kind }) => TITLES[kind] ?? kind;

export const calledBy = ({ kind, links, request }) =>
  // What whoever asked for it has called it; a model that was made is named beside it.
  typeof request.name === "string" && !(kind === "train" && links.model)
    ? make("bdi", {}, ` \u201c${request.name}\u201d`)
    : null;

function nameOf(link) {
  if (!names.has(link)) {
    names.set(
      link,
      get(link).then(
        ({ name }) => name,
        () => null,
      ),
    );
  }
  return names.get(link);
}

export function named(link) {
  // A data set or model by its name; its id where it is gone. Nothing where there is no link.
  if (link === undefined) {
    return null;
  }
  const shown = make("bdi", {}, "\u2026");
  const anchor = make("a", { class: "of", href: link }, shown);
  nameOf(link).then((name) => {
    if (name === null) {
      anchor.replaceWith(make("span", { class: "of muted" }, "(removed)"));
    } else {
      shown.textContent = name;
    }
  });
  return anchor;
}

export function took({ started_at: started, finished_at: finished }) {
  if (started === null) {
    return "";
  }
  const until = finished === null ? Date.now() : Date.parse(finished);
  return lasting(Math.max(0, (until - Date.parse(started)) / 1000));
}

export function whyFailed({ error }) {
  // The first reason of several, in one sentence; null where it did not fail.
  if (error === null) {
    return null;
  }
  const [first, ...others] = error.message.split("; ");
  return others.length ? `${first} (and ${others.length} more: see its page)` : first;
}
