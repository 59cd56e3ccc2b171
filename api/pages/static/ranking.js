// The images of a ranking, or of an audit, in order of score.

import { byId, make } from "./dom.js";
import { closer, gallery, labelsOf, ofAll, picture } from "./gallery.js";
import { count } from "./words.js";

const grid = byId("grid");
const { path, side } = grid.dataset;
const SIDES = { true: "positive", false: "negative" };

function change({ rank, clean_rank: before }) {
  // How many ranks the attack took it down or up.
  if (before === null || before === rank) {
    return null;
  }
  const down = rank > before;
  const ranks = count(Math.abs(rank - before));
  return make(
    "span",
    { class: `moved ${down ? "down" : "up"}`, title: `rank ${count(before)} without the attack` },
    make("span", { "aria-hidden": "true" }, down ? "\u25BC" : "\u25B2"),
    make("span", { class: "unseen" }, down ? "down by " : "up by "),
    ranks,
  );
}

function cell(item) {
  const about = `Rank ${item.rank}, ${item.example_id}: look closer`;
  const look = () =>
    closer(item, side, [
      ["Rank", count(item.rank)],
      ["Before", item.clean_rank === null ? null : `rank ${count(item.clean_rank)} without the attack`],
      ["Score", String(Number(item.score.toPrecision(6)))],
      ["Side", SIDES[item.positive] ?? null],
      ["Classes", item.labels.join(", ") || "none"],
      ["Split", item.split],
      ["Group", item.group],
    ]);
  return [
    make(
      "button",
      { type: "button", class: `thumb ${SIDES[item.positive] ?? ""}`, "aria-label": about, click: look },
      picture(item, side),
    ),
    make(
      "p",
      { class: "caption" },
      make("b", {}, `#${count(item.rank)}`),
      " ",
      make("span", { class: "muted number" }, item.score.toFixed(2)),
      " ",
      change(item),
    ),
    make(
      "p",
      { class: "caption labels" },
      item.positive ? make("span", { class: "plus", title: "positive" }, "+") : null,
      labelsOf(item),
    ),
  ];
}

const labels = byId("show-labels");
const switchLabels = () => grid.classList.toggle("unlabelled", !labels.checked);
labels.addEventListener("change", switchLabels);
switchLabels();

const by = byId("by");
const order = byId("order");
const allowOrder = () => (order.disabled = by.value === "clean"); // then nothing has moved
by?.addEventListener("change", () => {
  order.value = by.value === "clean" ? "" : order.value;
});

gallery({
  path,
  cell,
  empty: "No image fits these filters.",
  words: ({ total, examples, positives, cut }) => {
    if (by !== null) {
      allowOrder();
    }
    const found = positives === null ? "" : `; ${count(positives)} are positive`;
    const first = byId("mistake")?.value && cut !== null ? `; the first ${count(cut)} count as found` : "";
    return ofAll(total, examples, "images") + found + first;
  },
});
