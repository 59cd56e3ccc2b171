// The list of sweeps.

import { jobMark, make } from "./dom.js";
import { named } from "./job_words.js";
import { showList } from "./list.js";
import { count, when } from "./words.js";

const DONE = ["succeeded", "failed", "cancelled"];
const ended = (counts) => DONE.reduce((all, status) => all + (counts[status] ?? 0), 0);

showList({
  path: "/v1/sweeps",
  empty: "There is no sweep yet.",
  row: ({ id, name, status, created_at: at, counts, planned, dataset_id: dataset }) =>
    make(
      "tr",
      {},
      make(
        "th",
        { scope: "row" },
        make("a", { href: `/v1/sweeps/${id}` }, make("bdi", {}, name ?? "A sweep without a name")),
      ),
      make("td", {}, jobMark(status)),
      make("td", {}, `${count(ended(counts))} of ${count(planned)} ended`),
      make("td", {}, named(`/v1/datasets/${dataset}`)),
      make("td", {}, when(at)),
    ),
});
