// The fields of a training, for one and for a sweep of many.

import { get } from "./api.js";
import { fill, picker, positives } from "./choose.js";
import { make } from "./dom.js";
import { choice, fieldsOf } from "./fields.js";

const LABELS = {
  name: "Name of the model",
  preset: "Preset",
  method: "Method",
  architecture: "Architecture",
  attack: "The attack in training",
  sample: "Try it on only so many images",
  ema: "Average of the weights (EMA)",
  warm_start: "Model to start from",
};

const HELPS = {
  preset: "Values of all that is left empty here",
  method: "How it learns; each is described once it is chosen",
  name: "What lists call it",
  sample: "Drawn at random, each class in its share; all of them where it is left empty",
};

export async function trainingFields(path = []) {
  const dataset = await picker([...path, "dataset_id"], "Data set", "datasets");
  const task = positives(dataset.chosen);
  const made = await fieldsOf("TrainingRequest", {
    without: ["dataset_id", "task", "architecture"],
    labels: LABELS,
    helps: HELPS,
  });
  const architectures = await get("/v1/architectures");
  made.architecture = choice(
    ["architecture"],
    LABELS.architecture,
    { default: "small_cnn", description: "The network; each is described once it is chosen" },
    architectures.map(({ name: value }) => value),
  );
  const network = made.architecture.faults[0][2];
  const about = make("p", { class: "help" });
  made.architecture.element.append(about);
  network.addEventListener("change", () => {
    about.textContent = architectures.find((one) => one.name === network.value)?.description ?? "";
  });
  const { preset, method, architecture, epochs, sample, name, ...more } = made;
  fill("main-fields", [dataset, task, preset, method, architecture, epochs, sample, name]);
  fill("more-fields", Object.values(more));
  const presets = await get("/v1/presets");
  const choose = preset.faults[0][2];
  choose.addEventListener("change", () => {
    const filled = presets.find((one) => one.name === choose.value)?.parameters ?? {};
    Object.entries(made).forEach(([field, one]) => one.hint(filled[field]));
  });
  dataset.input.addEventListener("change", task.set);
  task.set();
  const parts = { dataset_id: dataset, task, ...made };
  return {
    fields: Object.values(parts),
    read: () => {
      const entries = Object.entries(parts).map(([field, one]) => [field, one.read()]);
      return Object.fromEntries(entries.filter(([, value]) => value !== undefined));
    },
  };
}

export const NAMED = {
  dataset_id: "--dataset",
  "task.positive": "--positive",
  "method.name": "--method",
  preset: "--preset",
  architecture: "--architecture",
  epochs: "--epochs",
  sample: "--sample",
  name: "--name",
  seed: "--seed",
};
