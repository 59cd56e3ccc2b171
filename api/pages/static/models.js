// The list of models.

import { assetMark, make } from "./dom.js";
import { showList } from "./list.js";
import { when } from "./words.js";

const size = ({ channels, height, width }) =>
  `${width} \u00d7 ${height}, ${channels === 1 ? "grey" : "colour"}`;

showList({
  path: "/v1/models",
  empty: "There is no model yet.",
  row: ({ id, name, status, created_at: at, manifest }) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("a", { href: `/v1/models/${id}` }, make("bdi", {}, name))),
      make("td", {}, assetMark(status)),
      make("td", {}, manifest ? manifest.architecture : ""),
      make("td", {}, manifest ? size(manifest.input) : ""),
      make("td", {}, when(at)),
    ),
});
