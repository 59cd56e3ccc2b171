// The form for a new ranking.

import { ask, flags } from "./ask.js";
import { fill, picker, positives, usualTask } from "./choose.js";
import { fieldsOf } from "./fields.js";

const NAMED = {
  model_id: "--model",
  dataset_id: "--dataset",
  "task.positive": "--positive",
  split: "--split",
};

const model = await picker(["model_id"], "Model", "models");
const dataset = await picker(["dataset_id"], "Data set", "datasets");
const unmarked = (chosen) =>
  chosen && !chosen.manifest.output.classes ? "as the model does; no class is marked as positive" : null;
const task = positives(dataset.chosen, () => usualTask(model.chosen()) ?? unmarked(model.chosen()), {
  each: false,
});
const { split, ...more } = await fieldsOf("RankingRequest", {
  without: ["model_id", "dataset_id", "task"],
});
fill("main-fields", [model, dataset, task, split]);
fill("more-fields", Object.values(more));

const parts = { model_id: model, dataset_id: dataset, task, split, ...more };
function read() {
  const entries = Object.entries(parts).map(([name, one]) => [name, one.read()]);
  return Object.fromEntries(entries.filter(([, value]) => value !== undefined));
}

[model, dataset].forEach(({ input }) => input.addEventListener("change", task.set));
task.set();
ask({
  path: "/v1/rankings",
  fields: Object.values(parts),
  read,
  tools: { command: (request) => `rank ${flags(request, NAMED)}`, method: "rank" },
  leads: ({ links }) => links.self,
});
