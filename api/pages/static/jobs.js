// The list of jobs.

import { jobMark, make } from "./dom.js";
import { calledBy, jobTitle, named, took, whyFailed } from "./job_words.js";
import { showList } from "./list.js";
import { share, when } from "./words.js";

showList({
  path: "/v1/jobs",
  empty: "Nothing was asked for yet.",
  row: (job) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("a", { href: job.links.self }, jobTitle(job), calledBy(job))),
      make(
        "td",
        {},
        jobMark(job.status),
        job.status === "running" && job.progress?.total
          ? make("small", {}, share(job.progress.completed / job.progress.total))
          : null,
        job.error ? make("small", { class: "why" }, whyFailed(job)) : null,
      ),
      make("td", {}, make("div", {}, named(job.links.model), named(job.links.dataset))),
      make("td", {}, when(job.created_at)),
      make("td", {}, took(job)),
    ),
});
