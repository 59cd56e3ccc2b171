// What a request is of: a model, a data set, and the classes to rank first.

import { get } from "./api.js";
import { byId, make, say } from "./dom.js";
import { control } from "./fields.js";

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

export function positives(chosenClasses, { standard }) {
  // Which classes are ranked first: as usual, each of them, or some. standard: what "as usual" is.
  const boxes = make("div", { class: "classes" });
  const wrong = make("p", { class: "wrong", hidden: true });
  const radio = (value, words) => {
    const input = make("input", { type: "radio", name: "task", value });
    return [input, make("label", { class: "tick" }, input, words)];
  };
  const [usual, usualLabel] = radio("usual", standard);
  const [some, someLabel] = radio("some", "these classes, before all others:");
  const [each, eachLabel] = radio("each", "each class in turn, and their mean");
  usual.checked = true;
  const element = make(
    "fieldset",
    { class: "field" },
    make("legend", {}, "What is ranked first"),
    usualLabel,
    someLabel,
    boxes,
    eachLabel,
    wrong,
  );
  const ticked = () => [...boxes.querySelectorAll("input:checked")].map((box) => box.value);
  const read = () => {
    if (each.checked) {
      return { each: true };
    }
    return some.checked ? { positive: ticked() } : undefined;
  };
  const setClasses = () => {
    const before = ticked();
    boxes.replaceChildren(
      ...chosenClasses().map((value) => {
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
  return { element, read, hint: () => {}, faults: [[["task"], (text) => say(wrong, text, "fail"), some]], setClasses };
}

export const classesOf = (dataset) => Object.keys(dataset?.summary?.classes ?? {});

export function fill(id, fields) {
  byId(id).replaceChildren(...fields.map(({ element }) => element));
}
