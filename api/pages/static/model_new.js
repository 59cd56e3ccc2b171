// The form that uploads a model. It asks what no file can tell: what the network's input is.

import { get } from "./api.js";
import { fill } from "./choose.js";
import { byId, make } from "./dom.js";
import { control, fieldsOf, objectOf } from "./fields.js";
import { toForm, upload } from "./upload.js";

const USUAL = {
  // by what people know: mean, deviation
  "from 0 to 1, as they are": [[0], [1]],
  "from -1 to 1": [[0.5], [0.5]],
  "by ImageNet's mean and deviation": [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]],
};

const { name, positive, weights } = await fieldsOf("ModelForm", {
  only: ["name", "positive", "weights"],
  labels: { positive: "Ranks first", weights: "Which weights" },
  helps: {
    name: "By default the file's name",
    positive: "Of a network with one output: the class that it ranks first, several with commas between them",
    weights: "Of a checkpoint with several sets of them, such as model_ema",
  },
});

const known = await get("/v1/architectures");
const listed = make("datalist", { id: "architectures" }, known.map(({ name: value }) => make("option", { value })));
const typed = make("input", { type: "text", list: "architectures", autocomplete: "off", placeholder: "told by the file" });
const architecture = control(
  ["architecture"],
  "Architecture",
  typed,
  "Only where the file does not tell it, as ONNX and usual networks do: " +
    `${known.map((one) => one.name).join(", ")}, torchvision/NAME or timm/NAME`,
  () => typed.value.trim() || undefined,
);

const input = await objectOf("InputSpec", ["input"], "What the network takes");
const output = await objectOf("OutputSpec", ["output"], "What the network answers");
const select = make(
  "select",
  {},
  make("option", { value: "" }, "as typed below"),
  Object.keys(USUAL).map((value) => make("option", { value }, value)),
);
const usual = control(
  ["usual"],
  "Pixels come",
  select,
  "Fills in the mean and the deviation below",
  () => undefined,
);
const box = (...path) => input.faults.find(([at]) => at.join() === ["input", ...path].join())[2];
select.addEventListener("change", () => {
  const found = USUAL[select.value];
  if (found) {
    const channels = Number(box("channels").value) || found[0].length;
    const filled = (values) => (values.length === channels ? values : Array(channels).fill(values[0]));
    box("mean").value = filled(found[0]).join(", ");
    box("std").value = filled(found[1]).join(", ");
    box("mean").dispatchEvent(new Event("input", { bubbles: true }));
  }
});
input.element.children[0].after(
  make("p", { class: "help wide" }, "Leave it empty for a file that this service has written: it tells all of this."),
);
input.element.insertBefore(usual.element, input.element.children[5]);

fill("main-fields", [name, architecture, positive, input]);
byId("main-fields").append(listed);
fill("more-fields", [output, weights]);

const parts = { name, architecture, positive, input, output, weights };
upload({
  path: "/v1/models",
  what: "model",
  fields: Object.values(parts),
  form: () => toForm(parts),
});
