// The list of data sets.

import { assetMark, make } from "./dom.js";
import { showList } from "./list.js";
import { count, when } from "./words.js";

showList({
  path: "/v1/datasets",
  empty: "There is no data set yet.",
  row: ({ id, name, status, created_at: at, summary }) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("a", { href: `/v1/datasets/${id}` }, make("bdi", {}, name))),
      make("td", {}, assetMark(status)),
      make("td", {}, summary ? count(summary.examples) : ""),
      make("td", {}, summary ? count(Object.keys(summary.classes).length) : ""),
      make("td", {}, when(at)),
    ),
});
