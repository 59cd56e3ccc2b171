// The form for a new sweep: a training, and the settings in which its trials differ.

import { ask, flags, quoted } from "./ask.js";
import { byId, make } from "./dom.js";
import { control, fieldsOf, NotRead } from "./fields.js";
import { trainingFields } from "./training_fields.js";

const USUAL = ["method.lambda", "optimizer.lr", "attack.steps", "epochs", "batch_size", "seed", "method.name"];
const LINES = 3;

const { fields, read: training } = await trainingFields(["training"]);
const { name } = await fieldsOf("SweepRequest", { only: ["name"], labels: { name: "Name of the sweep" } });

const trials = make("input", { type: "text", inputmode: "numeric", placeholder: "every combination" });
const search = control(
  ["search", "trials"],
  "Trainings in all",
  trials,
  "Empty trains every combination of the values. A number searches with so many, each chosen by how the ones before went",
  () => trials.value.trim() || undefined,
);

const paths = make("datalist", { id: "paths" }, USUAL.map((value) => make("option", { value })));
const lines = Array.from({ length: LINES }, (_, at) => {
  const path = make("input", { type: "text", list: "paths", autocomplete: "off", placeholder: at ? "" : "method.lambda" });
  const values = make("input", { type: "text", autocomplete: "off", placeholder: at ? "" : "0.1, 1, 10" });
  const setting = control(["search", "path", String(at)], `Setting ${at + 1}`, path, "", () => path.value.trim());
  const its = control(["search", "parameters", String(at)], "Its values", values, "", () => values.value.trim());
  return { setting, its };
});
byId("search").append(
  paths,
  make("p", { class: "help" }, "Values with commas between them; of a search also a range, as 0.1 to 10, of which ratios count where it is above 0."),
  ...lines.map(({ setting, its }) => make("div", { class: "fields spaced" }, setting.element, its.element)),
  make("div", { class: "fields spaced" }, search.element, name.element),
);

const RANGE = /^(\S+)\s+to\s+(\S+)$/;
const value = (text) => {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
};

function parameters(searches) {
  const found = {};
  for (const { setting, its } of lines) {
    const [path, text] = [setting.read(), its.read()];
    if (path === "" && text === "") {
      continue;
    }
    const range = text.match(RANGE);
    if (range && !searches) {
      throw new NotRead(its.faults[0][0], "values with commas between them where all are trained", "a range: say how many trainings, or list the values");
    }
    found[path] = range
      ? { low: value(range[1]), high: value(range[2]), log: value(range[1]) > 0 }
      : text.split(",").map((one) => value(one.trim()));
  }
  return found;
}

function read() {
  const asked = search.read();
  if (asked !== undefined && !/^\d+$/.test(asked)) {
    throw new NotRead(["search", "trials"], "a whole number", `\u201c${asked}\u201d`);
  }
  const searched = asked === undefined ? { kind: "grid" } : { kind: "tpe", trials: Number(asked) };
  const called = name.read();
  return {
    ...(called && { name: called }),
    training: training(),
    search: { ...searched, parameters: parameters(asked !== undefined) },
  };
}

const NAMED = {
  dataset_id: "--dataset",
  "task.positive": "--positive",
  "method.name": "--method",
  preset: "--preset",
  sample: "--sample",
};

function command({ name: called, training: common, search: { parameters: varied, trials: all } }) {
  // The request as the command `adap sweep` takes it.
  const values = (one) =>
    Array.isArray(one) ? JSON.stringify(one) : `${one.low}..${one.high}${one.log ? ":log" : ""}`;
  return [
    "sweep",
    flags(common, NAMED),
    ...Object.entries(varied).map(([path, one]) => `--vary ${quoted(`${path}=${values(one)}`)}`),
    ...(all === undefined ? [] : [`--trials ${all}`]),
    ...(called ? [`--name ${quoted(called)}`] : []),
  ].join(" ");
}

ask({
  path: "/v1/sweeps",
  estimate: "/v1/sweeps/estimate",
  complete: (request) => Object.keys(request.search.parameters).length > 0,
  fields: [...fields, name, search, ...lines.flatMap(({ setting, its }) => [setting, its])],
  read,
  tools: { command, method: "sweep" },
  leads: ({ links }) => links.self,
});
