// The images of a data set.

import { byId, make } from "./dom.js";
import { closer, gallery, labelsOf, ofAll, picture } from "./gallery.js";
import { count } from "./words.js";

const { path, side, examples } = byId("grid").dataset;

function cell(item) {
  const about = `${item.example_id}, ${item.labels.join(", ")}: look closer`;
  const look = () =>
    closer(item, side, [
      ["Classes", item.labels.join(", ") || "none"],
      ["Split", item.split],
      ["Group", item.group],
      ["Cluster", item.cluster],
      ["Number", count(item.index)],
    ]);
  return [
    make("button", { type: "button", class: "thumb", "aria-label": about, click: look }, picture(item, side)),
    make("p", { class: "caption" }, make("bdi", {}, item.example_id)),
    make("p", { class: "caption labels" }, labelsOf(item)),
  ];
}

gallery({
  path,
  cell,
  empty: "No image fits these filters.",
  words: ({ total }) => ofAll(total, Number(examples), "images"),
});
