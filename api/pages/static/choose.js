// What a request is of: a model, a data set, and the classes to rank first.

import { get } from "./api.js";
import { byId, make, say } from "./dom.js";
import { control, NotRead } from "./fields.js";

export async function picker(path, label, kind) {
  // A field that chooses a data set or model that is ready; the address may name one.
  const name = path.at(-1);
  const page = await get(`/v1/${kind}?status=ready&limit=100`);
  const wanted = new URLSearchParams(location.search).get(name);
  const rows = page.data;
  if (wanted !== null && !rows.some(({ id }) => id === wanted)) {
    rows.unshift(await get(`/v1/${kind}/${wanted}`).catch(() => ({ id: "", name: "(removed)" })));
  }
  const input = make(
    "select",
    { required: true },
    make("option", { value: "" }, rows.length ? "choose one" : "there is none yet"),
    rows.map(({ id, name: shown }) => make("option", { value: id, selected: id === wanted }, shown)),
  );
  const help = page.has_more ? "The newest hundred; open another by its page." : "";
  const made = control(path, label, input, help, () => input.value || undefined);
  const chosen = () => rows.find(({ id }) => id === input.value) ?? null;
  return { ...made, input, chosen };
}

export function positives(dataset, usual = () => null, { each: eachToo = true } = {}) {
  // Which classes are ranked first: as usual, each of them, or some. dataset: the chosen one.
  // usual: what "as usual" is, in words; null where a choice is needed.
  const boxes = make("div", { class: "classes" });
  const wrong = make("p", { class: "wrong", hidden: true });
  const radio = (value, words) => {
    const input = make("input", { type: "radio", name: "task", value });
    return [input, make("label", { class: "tick" }, input, words)];
  };
  const usualWords = make("span", {});
  const [standard, standardLabel] = radio("usual", usualWords);
  const [some, someLabel] = radio("some", "these classes, before all others:");
  const [each, eachLabel] = radio("each", "each class in turn, and their mean");
  some.checked = true;
  const element = make(
    "fieldset",
    { class: "field" },
    make("legend", {}, "What is ranked first"),
    standardLabel,
    someLabel,
    boxes,
    eachToo ? eachLabel : null,
    wrong,
  );
  const ticked = () => [...boxes.querySelectorAll("input:checked")].map((box) => box.value);
  const read = () => {
    if (each.checked) {
      return { each: true };
    }
    if (some.checked && dataset() !== null && ticked().length === 0) {
      throw new NotRead(["task"], "at least one class ticked", "none");
    }
    return some.checked && ticked().length > 0 ? { positive: ticked() } : undefined;
  };
  let chosen = false; // by whoever looks at it
  element.addEventListener("change", () => (chosen = true));
  const set = () => {
    const words = usual();
    usualWords.textContent = words ?? "";
    standardLabel.hidden = words === null;
    if (words === null && standard.checked) {
      some.checked = true;
    } else if (words !== null && !chosen) {
      standard.checked = true;
    }
    const of = dataset();
    const before = ticked().length ? ticked() : ((words === null && of?.positive) || []);
    const none = make("p", { class: "help" }, "Its classes are shown once a data set is chosen.");
    boxes.replaceChildren(
      of === null ? none : "",
      ...classesOf(of).map((value) => {
        const box = make("input", {
          type: "checkbox",
          name: "task.positive",
          value,
          checked: before.includes(value),
        });
        return make("label", { class: "tick" }, box, make("bdi", {}, value));
      }),
    );
  };
  boxes.addEventListener("change", () => (some.checked = ticked().length > 0 || some.checked));
  return { element, read, hint: () => {}, faults: [[["task"], (text) => say(wrong, text, "fail"), some]], set };
}

const classesOf = (dataset) => Object.keys(dataset?.summary?.classes ?? {});

export function usualTask(model) {
  // What a model ranks first by itself, in words; null where it does not say.
  const first = model?.manifest.positive;
  return first?.length ? `${first.join(" and ")}, as the model says` : null;
}

export function fill(id, fields) {
  byId(id).replaceChildren(...fields.map(({ element }) => element));
}
