// The form for a new audit.

import { ask, flags } from "./ask.js";
import { fill, picker, positives, usualTask } from "./choose.js";
import { fieldsOf } from "./fields.js";

const NAMED = {
  model_id: "--model",
  dataset_id: "--dataset",
  "task.positive": "--positive",
  split: "--split",
  "threat.norm": "--norm",
  "threat.epsilon": "--epsilon",
  preset: "--preset",
  attacks: "--attack",
  "surrogate.model_id": "--surrogate",
  thresholds: "--require",
  sample: "--sample",
  seed: "--seed",
};

const model = await picker(["model_id"], "Model", "models");
const dataset = await picker(["dataset_id"], "Data set", "datasets");
const task = positives(dataset.chosen, () => usualTask(model.chosen()));
const { threat, preset, sample, thresholds, ...more } = await fieldsOf("AuditRequest", {
  without: ["model_id", "dataset_id", "task"],
  labels: {
    threat: "What an attacker may change",
    preset: "Attacks",
    sample: "Try only so many images",
    thresholds: "What the model must keep",
    attacks: "These attacks instead",
    surrogate: "The attacker's own model",
    operating: "Operating point",
    certify: "Certified floor",
  },
  helps: {
    preset:
      "quick: PGD and APGD in ten steps, for a first look. standard: more steps, restarts, random squares, a transfer attack where there is a surrogate, and every check of the audit itself. paper: as in its tables",
    sample: "Drawn at random, each side in its share; all of them where it is left empty",
    thresholds: "For example worst_case_ap >= 0.4, or trust >= caution; the audit says whether it does",
  },
});
fill("main-fields", [model, dataset, task, preset, threat, sample, thresholds]);
fill("more-fields", Object.values(more));

const all = [model, dataset, task, threat, preset, sample, thresholds, ...Object.values(more)];
function read() {
  const parts = { model_id: model, dataset_id: dataset, task, preset, threat, sample, thresholds };
  const entries = Object.entries({ ...parts, ...more }).map(([name, one]) => [name, one.read()]);
  return Object.fromEntries(entries.filter(([, value]) => value !== undefined));
}

[model, dataset].forEach(({ input }) => input.addEventListener("change", task.set));
task.set();
ask({
  path: "/v1/audits",
  estimate: "/v1/audits/estimate",
  complete: (request) => "model_id" in request && "dataset_id" in request,
  fields: all,
  read,
  tools: { command: (request) => `audit ${flags(request, NAMED)}`, method: "audit" },
  leads: ({ links }) => links.self,
});
