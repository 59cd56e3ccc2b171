// Home: what runs and waits, what ended and how, and whether anybody works on it.

import { ENDED, follow, get } from "./api.js";
import { byId, jobMark, make, say } from "./dom.js";
import { calledBy, jobTitle, named, took, whyFailed } from "./job_words.js";
import { ap, plural, progressSentence, queueSentence, when } from "./words.js";

const FOLLOWED = 3; // lines that are kept open: a browser has six for a service
const EVERY_MS = 5000;
const followed = new Map(); // by job: what stops following it

function title(job) {
  const of = [named(job.links.model), named(job.links.dataset)].filter(Boolean);
  const joined = of.flatMap((one, at) => [at ? " on " : " of ", one]);
  return make(
    "span",
    {},
    make("a", { href: job.links.self }, jobTitle(job).replace(/ of a .*/, ""), calledBy(job)),
    ...joined,
  );
}

function liveItem(job) {
  const sentence = make("p", {});
  const bar = make("progress", { "aria-label": "how far it is" });
  const show = (state) => {
    const moves = state.status !== "queued" && state.progress !== null;
    sentence.textContent =
      state.status === "queued"
        ? queueSentence({ ...job, ...state })
        : moves
          ? progressSentence(state.progress)
          : "It begins.";
    bar.hidden = !moves;
    if (moves) {
      bar.max = state.progress.total || 1;
      bar.value = state.progress.completed;
    }
  };
  show(job);
  const line = make("div", { class: "line" }, title(job), jobMark(job.status));
  return [make("li", {}, line, sentence, bar), show];
}

function figures({ kind, result }) {
  const { clean_ap: clean, worst_case_ap: worst } = result?.summary ?? {};
  if (kind !== "audit" || typeof clean !== "number" || typeof worst !== "number") {
    return null;
  }
  return `Clean AP ${ap(clean)}, worst-case AP ${ap(worst)}.`;
}

function endedItem(job) {
  const why = whyFailed(job) ?? figures(job);
  const report = job.links.report
    ? make("a", { href: job.links.report }, "The report")
    : null;
  return make(
    "li",
    {},
    make("div", { class: "line" }, title(job), jobMark(job.status)),
    why || report ? make("p", {}, why ?? "", " ", report) : null,
    make("p", { class: "help" }, `${when(job.finished_at)}, took ${took(job) || "no time"}`),
  );
}

async function showJobs() {
  const [running, cancelling, queued, newest] = await Promise.all([
    get("/v1/jobs?status=running&limit=20"),
    get("/v1/jobs?status=cancelling&limit=20"),
    get("/v1/jobs?status=queued&sort=oldest&limit=20"),
    get("/v1/jobs?limit=20"),
  ]);
  const live = [...running.data, ...cancelling.data, ...queued.data];
  const ids = new Set(live.map(({ id }) => id));
  for (const [id, stop] of followed) {
    if (!ids.has(id)) {
      stop();
      followed.delete(id);
    }
  }
  const items = live.map((job) => {
    const [item, show] = liveItem(job);
    shows.set(job.id, show);
    if (job.status === "running" && !followed.has(job.id) && followed.size < FOLLOWED) {
      followed.set(
        job.id,
        follow(job.links.events, (state) => {
          shows.get(job.id)?.(state);
          if (ENDED.includes(state.status)) {
            followed.delete(job.id);
            refresh();
          }
        }),
      );
    }
    return item;
  });
  byId("live").replaceChildren(...items);
  say(byId("idle"), live.length ? "" : "Nothing runs and nothing waits.");
  byId("idle").className = "";
  const ended = newest.data.filter(({ done }) => done).slice(0, 10);
  byId("ended").replaceChildren(...ended.map(endedItem));
  byId("before").hidden = ended.length === 0;
  if (newest.data.length === 0) {
    const [datasets, models] = await Promise.all([
      get("/v1/datasets?limit=1"),
      get("/v1/models?limit=1"),
    ]);
    byId("begin").hidden = datasets.data.length + models.data.length > 0;
  } else if (!byId("demo").disabled) {
    byId("begin").hidden = true;
  }
}
const shows = new Map(); // by job: what shows its state

async function showState() {
  const { workers, problems } = await get("/readyz");
  const alive = new Set(workers.map(({ id }) => id)).size;
  byId("state").textContent = problems.length
    ? `Look at this: ${problems.join("; ")}.`
    : `All is well: ${plural(alive, "worker")} at work.`;
}

let turn = 0;

async function refresh() {
  const mine = ++turn;
  try {
    await Promise.all([showJobs(), showState()]);
  } catch (problem) {
    byId("state").textContent = problem.detail ?? String(problem);
  }
  setTimeout(() => mine === turn && !document.hidden && refresh(), EVERY_MS);
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
byId("demo").addEventListener("click", async ({ target }) => {
  target.disabled = true;
  const { demonstrate } = await import("./demo.js");
  const said = byId("demo-said");
  try {
    await demonstrate((sentence) => {
      say(said, sentence);
      refresh();
    });
  } catch (problem) {
    say(said, problem.detail ?? problem.message, "fail");
    target.disabled = false;
  }
});
refresh();
