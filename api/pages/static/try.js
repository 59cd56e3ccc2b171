// One image, scored by a model, its place among images that the model has scored before, and how
// little moves it out of the first of them.

import { get, send } from "./api.js";
import { byId, make, say } from "./dom.js";
import { picture } from "./gallery.js";
import { count, when } from "./words.js";

const said = byId("said");
const [among, positive, resize, file] = ["among", "positive", "resize", "file"].map(byId);
const standings = new Map(); // by the address of its places: the job
let model = null;
let chosen = null; // the file, as it was dropped
let asked = null; // what is to be scored or was, until another choice is made
let scored = null; // what came of it, where it was ranked among others
const short = (value) => String(Number(value.toPrecision(5)));

// Scores of several classes are no one ranking; those behind a pipeline are of other pixels than these.
const alike = ({ task, pipeline }) => !task?.each && !pipeline?.length;
const taskOf = (job) => job.request.task?.positive ?? null;

async function choose(modelId) {
  model = await get(`/v1/models/${modelId}`);
  const { input, output } = model.manifest;
  byId("model-name").replaceChildren(
    make("a", { href: `/v1/models/${model.id}` }, make("bdi", {}, model.name)),
  );
  byId("model-words").textContent =
    `Drop one image in, and see where it would stand. The model takes ${input.width} \u00D7 ${input.height} pixels.`;
  positive.replaceChildren(
    ...(output.classes ?? []).map((name) => make("option", { value: name }, name)),
  );
  standings.clear();
  const options = [among.options[0]];
  for (const kind of ["rank", "audit"]) {
    const { data } = await get(
      `/v1/jobs?kind=${kind}&status=succeeded&model_id=${model.id}&limit=50`,
    );
    for (const job of data.filter(({ links, request }) => links.images && alike(request))) {
      const where = job.links.images.replace(/images$/, "place");
      standings.set(where, job);
      options.push(make("option", { value: where }, await words(job)));
    }
  }
  among.replaceChildren(...options);
  among.selectedIndex = options.length > 1 ? 1 : 0;
  side();
  forget();
}

async function words(job) {
  const what = job.kind === "rank" ? "the ranking" : "the audit, clean,";
  const { name } = await get(job.links.dataset).catch(() => ({ name: "a data set that is gone" }));
  const first = taskOf(job);
  const called = job.request.name ? `\u201c${job.request.name}\u201d, ` : "";
  const sampled = job.request.sample ? `, a sample of ${count(job.request.sample)}` : "";
  return `${called}${what} of ${name}${first ? `, ${first.join(" and ")} first` : ""}${sampled}, ${when(job.created_at)}`;
}

function side() {
  // What is ranked first is the ranking's to say; a model with one logit has no choice.
  const job = standings.get(among.value);
  const needed = model?.manifest.output.classes && !(job && taskOf(job));
  byId("positive-field").hidden = !needed;
}

function forget() {
  // What was said holds for other choices than those that the form shows now.
  asked = null;
  byId("result").hidden = true;
  say(said, "");
  offerChange(null);
}

function take(one) {
  chosen = one;
  const source = URL.createObjectURL(one);
  const free = () => URL.revokeObjectURL(source);
  byId("preview").replaceChildren(
    make("img", { src: source, alt: "The image that was chosen", load: free, error: free }),
  );
  forget();
}

function neighbour(item, side) {
  if (item === null) {
    return make("p", { class: "muted" }, side === "before" ? "Nothing stands before it." : "Nothing stands behind it.");
  }
  const words = `#${count(item.rank)} ${item.labels.join(", ")}`;
  const image = picture(item, 0);
  image.alt = `${side} it: ${item.example_id}`;
  return make("figure", {}, image, make("figcaption", {}, `Right ${side} it: `, make("bdi", {}, words)));
}

function tell(score, place) {
  const shown = short(score);
  byId("result").hidden = false;
  if (place === null) {
    byId("place").textContent = `Its score is ${shown}.`;
    byId("neighbours").replaceChildren();
    return;
  }
  const found = place.positives_before;
  const of = found === null ? "" : `; ${count(found)} of ${count(place.positives)} positives stand before it`;
  byId("place").textContent =
    `Rank ${count(place.rank)} among ${count(place.examples)} images, with a score of ${shown}${of}.`;
  byId("neighbours").replaceChildren(neighbour(place.before, "before"), neighbour(place.behind, "behind"));
}

function choices() {
  const job = standings.get(among.value);
  return {
    modelId: model.id,
    image: chosen,
    where: among.value,
    resize: resize.value,
    first: model.manifest.output.classes ? ((job && taskOf(job)) ?? [positive.value]) : [],
  };
}

function formOf(field, { image, resize, first }) {
  // The image, under the name that a route has for it, and what its score is to be of.
  const form = new FormData();
  form.append(field, image, image.name);
  if (resize !== "") {
    form.append("resize", resize);
  }
  for (const name of first) {
    form.append("positive", name);
  }
  return form;
}

function offerChange(found) {
  // Only where there is a ranking whose first it may leave.
  scored = found;
  byId("change").hidden = found === null;
  byId("pictures").replaceChildren();
  say(byId("found"), "");
  if (found === null) {
    return;
  }
  const { cut, examples } = found.place;
  byId("cut").max = examples;
  byId("cut").value = cut ?? Math.min(10, examples);
  byId("cut-help").textContent =
    `of ${count(examples)} images${cut === null ? "" : `, ${count(cut)} of which are positive`}`;
}

function painted(base64, words) {
  const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
  const source = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  const free = () => URL.revokeObjectURL(source);
  return make(
    "figure",
    {},
    make("img", { class: "pixels", src: source, alt: words, load: free, error: free }),
    make("figcaption", {}, words),
  );
}

async function search() {
  const about = scored;
  const { of, score: before, place } = about;
  const tellOf = (words, kind) => scored === about && say(byId("found"), words, kind);
  const [cut, button] = [Number(byId("cut").value), byId("search").querySelector("button")];
  byId("pictures").replaceChildren();
  if (place.rank > cut) {
    tellOf(`It is not among the first ${count(cut)}: its rank is ${count(place.rank)}.`, "fail");
    return;
  }
  tellOf("Looking for it \u2026");
  button.disabled = true;
  try {
    const { boundary } = await get(`${of.where}?score=${before}&cut=${cut}`);
    const form = formOf("image", of);
    form.append("below", boundary);
    const change = await send(`/v1/models/${of.modelId}/smallest-change`, form, () => {}).answer;
    if (change.size === null) {
      tellOf(`In ${count(change.steps)} gradients of the model no change was found that moves it out. That proves nothing: where the gradient is 0 the search is blind, and an audit looks at that.`, "fail");
      return;
    }
    const now = await get(`${of.where}?score=${change.score}`);
    if (scored !== about) {
      return;
    }
    const size = `${(255 * change.size).toPrecision(3)}/255 (${change.size.toPrecision(3)})`;
    tellOf(`A change of at most ${size} in any pixel takes it from rank ${count(place.rank)} to ${count(now.rank)}, its score from ${short(before)} to ${short(change.score)}. It is the smallest that was found; a smaller one may exist.`);
    byId("pictures").replaceChildren(
      painted(change.original, "As the model is given it"),
      painted(change.changed, "Changed"),
      painted(change.difference, `The difference, ${count(Math.round(change.magnified))} times`),
    );
  } catch (problem) {
    tellOf(problem.detail ?? String(problem), "fail");
  } finally {
    button.disabled = false;
  }
}

async function score() {
  if (model === null) {
    return say(said, "Choose a model first.", "fail");
  }
  if (chosen === null) {
    return say(said, "Choose an image first, or drop one above.", "fail");
  }
  say(said, "Scoring it \u2026");
  offerChange(null);
  const of = choices();
  asked = of;
  try {
    const form = formOf("images", of);
    const { scores } = await send(`/v1/models/${of.modelId}/scores`, form, () => {}).answer;
    const place = of.where ? await get(`${of.where}?score=${scores[0].score}`) : null;
    if (asked !== of) {
      return;
    }
    say(said, "");
    tell(scores[0].score, place);
    offerChange(place && { of, score: scores[0].score, place });
  } catch (problem) {
    if (asked === of) {
      byId("result").hidden = true;
      say(said, problem.detail ?? String(problem), "fail");
    }
  }
}

byId("try").addEventListener("submit", (event) => {
  event.preventDefault();
  score();
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
file.addEventListener("change", () => file.files.length && take(file.files[0]));
among.addEventListener("change", side);
for (const choice of [among, positive, resize]) {
  choice.addEventListener("change", forget);
}
const zone = byId("drop");
zone.addEventListener("dragover", (event) => event.preventDefault());
zone.addEventListener("drop", (event) => {
  event.preventDefault();
  const [one] = event.dataTransfer.files;
  if (one !== undefined) {
    take(one);
  }
});

async function start() {
  const modelId = new URLSearchParams(location.search).get("model_id");
  if (modelId !== null) {
    await choose(modelId);
    return;
  }
  const { data } = await get("/v1/models?status=ready&limit=100");
  const select = byId("model");
  select.append(...data.map(({ id, name }) => make("option", { value: id }, name)));
  byId("model-field").hidden = false;
  select.addEventListener("change", () => select.value && choose(select.value));
}

start().catch((problem) => say(said, problem.detail ?? String(problem), "fail"));
