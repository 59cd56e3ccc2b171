// Fields of a form, made of a JSON schema of the OpenAPI. Each part of a form, here called a field,
// has an `element`; `read`, which gives its value, or undefined where it is left as it is; `faults`,
// a list of [path, what to call with a sentence]; and `hint`, which shows what "left as it is" means.

import { get } from "./api.js";
import { make } from "./dom.js";

let asked;
const schemas = () => (asked ??= get("/openapi.json").then((all) => all.components.schemas));

export class NotRead extends Error {
  // What was typed is no value of the field at this path.
  constructor(path, expected, got) {
    super(`expected ${expected}, got ${got}`);
    this.path = path;
  }
}

const FRACTION = /^\d+(\.\d+)?\s*\/\s*\d+(\.\d+)?$/;

export function figure(value, levelsOfPixels = false) {
  // A number as people write it, of pixels as 8/255 instead of sixteen digits.
  const levels = value * 255;
  if (levelsOfPixels && value > 0 && value < 1 && Math.abs(levels - Math.round(levels)) < 1e-9) {
    return `${Math.round(levels)}/255`;
  }
  return String(Number(value.toPrecision(4)));
}

function shown(value, levelsOfPixels = false) {
  if (value === null || value === undefined) {
    return "";
  }
  if (typeof value === "number") {
    return figure(value, levelsOfPixels);
  }
  return Array.isArray(value)
    ? value.map((one) => shown(one, levelsOfPixels)).join(", ")
    : String(value);
}

const WORDS = { lr: "Learning rate", fpr: "False positive rate", std: "Deviation", k: "k" };

const words = (name) => {
  if (name in WORDS) {
    return WORDS[name];
  }
  const text = name.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
};

const VALUES = {
  linf: "each pixel by itself (L-inf)",
  l2: "all pixels together (L2)",
  " ": "a space",
  ",": ", (comma)",
  ";": "; (semicolon)",
  "|": "| (bar)",
  "/": "/ (slash)",
  none: "none: each text is one label",
};
const valueWords = (value) => VALUES[value] ?? value;

function sentence(text) {
  // A description as a sentence for people.
  const plain = text.replace(/`/g, "").replace(/,? ?see GET \S+/g, "").trim();
  const capital = plain.charAt(0).toUpperCase() + plain.slice(1);
  return plain === "" || /[.:]$/.test(plain) ? capital : `${capital}.`;
}

let ids = 0;

export function control(path, label, input, help, read, hint = () => {}) {
  // A labelled input with its help and a place for what is wrong with it.
  const id = `field-${++ids}`;
  const wrong = make("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
  const about = help && sentence(help) ? make("p", { class: "help", id: `${id}-help` }, sentence(help)) : null;
  input.id = id;
  input.name = path.join(".");
  input.setAttribute("aria-describedby", `${id}-wrong${about ? ` ${id}-help` : ""}`);
  const say = (fault) => {
    wrong.textContent = fault;
    wrong.hidden = fault === "";
    input.removeAttribute("aria-invalid");
    if (fault !== "") {
      input.setAttribute("aria-invalid", "true");
      for (let at = input.closest("details"); at; at = at.parentElement.closest("details")) {
        at.open = true;
      }
    }
  };
  const box = input.type === "checkbox";
  const element = make(
    "div",
    { class: box ? "field tick" : "field" },
    box ? [input, make("label", { for: id }, label)] : [make("label", { for: id }, label), input],
    wrong,
    about,
  );
  return { element, read, hint, faults: [[path, say, input]] };
}

function number(text, path, whole) {
  const value = Number(text.replace(/(?<=\d),(?=\d{3}\b)/g, ""));
  if (!Number.isFinite(value) || (whole && !Number.isInteger(value))) {
    throw new NotRead(path, whole ? "a whole number" : "a number", `\u201c${text}\u201d`);
  }
  return value;
}

function numeric(path, label, schema, { whole, fraction }) {
  const input = make("input", { type: "text", inputmode: fraction ? "text" : "decimal", autocomplete: "off" });
  const help = [schema.description, fraction && !schema.description?.includes("8/255") ? "8/255 may be written" : ""]
    .filter(Boolean)
    .join("; ");
  const read = () => {
    const text = input.value.trim();
    if (text === "") {
      return undefined;
    }
    return fraction && FRACTION.test(text) ? text.replace(/\s/g, "") : number(text, path, whole);
  };
  const hint = (value) => (input.placeholder = shown(value ?? schema.default, fraction));
  hint();
  return control(path, label, input, help, read, hint);
}

function list(path, label, schema, item) {
  const input = make("input", { type: "text", autocomplete: "off" });
  const help = [schema.description, "Several with a comma between them."].filter(Boolean).join(". ");
  const numbers = ["number", "integer"].includes(item.type) || item.anyOf !== undefined;
  const read = () => {
    const parts = input.value.split(",").map((part) => part.trim()).filter(Boolean);
    if (parts.length === 0) {
      return undefined;
    }
    return parts.map((part) =>
      !numbers || FRACTION.test(part) ? part : number(part, path, item.type === "integer"),
    );
  };
  const hint = (value) => (input.placeholder = shown(value ?? schema.default));
  hint();
  return control(path, label, input, help, read, hint);
}

export function choice(path, label, schema, values) {
  const none = make("option", { value: "" });
  const input = make("select", {}, none, values.map((value) => make("option", { value }, valueWords(value))));
  const hint = (value = schema.default) => {
    none.textContent = value === undefined || value === null ? "not set" : `as usual: ${valueWords(value)}`;
  };
  hint();
  return control(path, label, input, schema.description, () => input.value || undefined, hint);
}

function tick(path, label, schema) {
  const input = make("input", { type: "checkbox" });
  let standard = schema.default ?? false;
  const hint = (value) => {
    standard = value ?? schema.default ?? false;
    input.checked = standard;
  };
  hint();
  const read = () => (input.checked === standard ? undefined : input.checked);
  return control(path, label, input, schema.description, read, hint);
}

function text(path, label, schema) {
  const input = make("input", { type: "text", autocomplete: "off", maxlength: schema.maxLength });
  const hint = (value) => (input.placeholder = shown(value ?? schema.default));
  hint();
  return control(path, label, input, schema.description, () => input.value.trim() || undefined, hint);
}

function group(path, label, schema, all) {
  // An object: its fields below one heading.
  const parts = Object.entries(schema.properties).map(([name, inner]) => [
    name,
    field([...path, name], inner, all),
  ]);
  const element = make("fieldset", {}, make("legend", {}, label), parts.map(([, part]) => part.element));
  const read = () => {
    const entries = parts.map(([name, part]) => [name, part.read()]);
    const said = entries.filter(([, value]) => value !== undefined);
    return said.length ? Object.fromEntries(said) : undefined;
  };
  const hint = (value) => {
    const usual = { ...schema.default, ...value };
    parts.forEach(([name, part]) => part.hint(usual[name]));
  };
  hint();
  return { element, read, hint, faults: parts.flatMap(([, part]) => part.faults) };
}

function ticked(path, label, schema, all) {
  // An object that is left out unless it is asked for: nothing of it counts until its box is ticked.
  const whole = group(path, "", schema, all);
  const box = make("input", { type: "checkbox" });
  const read = () => (box.checked ? (whole.read() ?? {}) : undefined);
  const made = control(path, `${label}: none unless this is ticked`, box, schema.description, read);
  const show = () => (whole.element.hidden = !box.checked);
  box.addEventListener("change", show);
  show();
  made.element.append(whole.element);
  return { ...made, faults: [...made.faults, ...whole.faults] };
}

function oneOf(path, label, schema, all) {
  // One of several objects, told apart by a property such as `name`.
  const { propertyName, mapping } = schema.discriminator;
  const parts = Object.keys(mapping).map((name) => {
    const { properties, description } = resolve({ $ref: mapping[name] }, all);
    const { [propertyName]: _, ...others } = properties;
    return [name, description, group([...path], "", { properties: others }, all)];
  });
  const input = make("select", {}, make("option", { value: "" }, "as usual"));
  input.append(...parts.map(([value]) => make("option", { value }, value)));
  const about = make("p", { class: "help" });
  const inner = make("div", {});
  const chosen = () => parts.find(([name]) => name === input.value);
  const read = () => {
    const part = chosen();
    return part && { [propertyName]: input.value, ...part[2].read() };
  };
  const hint = (value = schema.default) => {
    input.options[0].textContent = value ? `as usual: ${value[propertyName] ?? value}` : "as usual";
  };
  hint();
  const made = control(path, label, input, schema.description, read, hint);
  const show = () => {
    const part = chosen();
    about.textContent = part ? part[1] : "";
    inner.replaceChildren(part?.[2].faults.length ? part[2].element : "");
  };
  input.addEventListener("change", show);
  made.element.append(about, inner);
  return { ...made, faults: [...made.faults, ...parts.flatMap(([, , part]) => part.faults)], shows: show };
}

function several(path, label, schema, item, all) {
  // A list of objects told apart by `name`: boxes to tick. Where names alone are taken each has its
  // defaults; else the fields of what is ticked are asked for, and it counts in the order of ticks.
  const bare = schema.items.anyOf !== undefined;
  const { mapping, propertyName } = item.discriminator;
  const order = [];
  const parts = Object.keys(mapping).map((name) => {
    const box = make("input", { type: "checkbox", name: [...path, name].join("."), value: name });
    const { [propertyName]: _, ...properties } = resolve({ $ref: mapping[name] }, all).properties;
    const inner = bare ? null : group([...path, name], "", { properties }, all);
    const show = () => {
      order.splice(0, order.length, ...order.filter((one) => one !== name), ...(box.checked ? [name] : []));
      inner?.element.toggleAttribute("hidden", !box.checked);
    };
    box.addEventListener("change", show);
    show();
    return { name, box, inner, shown: make("label", { class: "tick" }, box, name) };
  });
  const wrong = make("p", { class: "wrong", hidden: true });
  const element = make(
    "fieldset",
    { class: "field" },
    make("legend", {}, label),
    parts.flatMap(({ shown, inner }) => [shown, inner?.element]),
    wrong,
    schema.description ? make("p", { class: "help" }, sentence(schema.description)) : null,
  );
  const read = () => {
    const ticked = order.map((name) => parts.find((one) => one.name === name));
    return ticked.length
      ? ticked.map(({ name, inner }) => (inner ? { [propertyName]: name, ...inner.read() } : name))
      : undefined;
  };
  const say = (fault) => {
    wrong.textContent = fault;
    wrong.hidden = fault === "";
  };
  const within = ({ name, inner }) =>
    (inner?.faults ?? []).map(([at, ...rest]) => [at.filter((one) => one !== name), ...rest]);
  return { element, read, hint: () => {}, faults: [[path, say, parts[0].box], ...parts.flatMap(within)] };
}

function resolve(schema, all) {
  // The schema that is meant: references followed, null and bare names beside objects left out.
  let { description } = schema;
  let found = schema;
  for (;;) {
    if (found.$ref) {
      const { $ref, ...beside } = found;
      found = { ...all[$ref.split("/").pop()], ...beside };
      description = schema.description;
    } else if (found.anyOf && !found.discriminator) {
      const { anyOf, ...beside } = found;
      const kinds = anyOf.filter((one) => one.type !== "null");
      const object = kinds.find((one) => one.discriminator);
      if (object === undefined && kinds.length > 1) {
        return { ...beside, ...kinds[0], fraction: kinds.some((one) => one.pattern?.includes("/")) };
      }
      found = { ...(object ?? kinds[0]), ...beside };
    } else {
      return { ...found, description };
    }
  }
}

const KINDS = { model_id: "models", dataset_id: "datasets", train_on: "datasets" };

function named(path, label, schema) {
  // A data set or model that is ready, by its name.
  const input = make("select", {}, make("option", { value: "" }, "none"));
  get(`/v1/${KINDS[path.at(-1)]}?status=ready&limit=100`).then(({ data }) =>
    input.append(...data.map(({ id, name }) => make("option", { value: id }, name))),
  );
  return control(path, label, input, schema.description, () => input.value || undefined);
}

export function field(path, schema, all, label = words(path.at(-1))) {
  // A field of any schema that the requests have.
  const found = resolve(schema, all);
  if (found.discriminator) {
    return oneOf(path, label, found, all);
  }
  if (path.at(-1) in KINDS) {
    return named(path, label.replace(/ id$/, ""), found);
  }
  if (found.enum) {
    return choice(path, label, found, found.enum);
  }
  switch (found.type) {
    case "boolean":
      return tick(path, label, found);
    case "integer":
    case "number":
      return numeric(path, label, found, { whole: found.type === "integer", fraction: found.fraction });
    case "array": {
      const item = resolve(found.items, all);
      return item.discriminator ? several(path, label, found, item, all) : list(path, label, found, item);
    }
    case "object": {
      const optional = schema.anyOf?.some((one) => one.type === "null") ?? false;
      const filled = Object.values(found.properties).some((one) => (one.default ?? null) !== null);
      return (optional && filled ? ticked : group)(path, label, found, all);
    }
    default:
      return text(path, label, found);
  }
}

export async function fieldsOf(name, { only, without = [], labels = {}, helps = {} } = {}) {
  // The fields of a schema of the OpenAPI, by name: those of `only` in its order, or all but some.
  const all = await schemas();
  const { properties } = all[name];
  const wanted = only ?? Object.keys(properties).filter((one) => !without.includes(one));
  return Object.fromEntries(
    wanted.map((one) => {
      const schema = one in helps ? { ...properties[one], description: helps[one] } : properties[one];
      return [one, field([one], schema, all, labels[one])];
    }),
  );
}

export function place(fields, pointer, fault) {
  // Say what is wrong next to the field that a JSON pointer leads to, or to the first below it.
  // The input of that field, null where there is none.
  const parts = pointer.split("/").slice(2);
  const within = (inner, outer) => {
    let at = -1;
    return inner.every((part) => (at = outer.indexOf(part, at + 1)) >= 0);
  };
  const all = fields.flatMap((one) => one.faults).filter(([, , input]) => input.isConnected);
  const above = all.filter(([path]) => within(path, parts)).sort(([a], [b]) => b.length - a.length);
  const below = all.filter(([path]) => parts.length > 0 && within(parts, path));
  const meant = below.filter(([path]) => new RegExp(`\\b${path.at(-1)}\\b`).test(fault));
  const [found] = [...above, ...meant, ...below];
  found?.[1](fault);
  return found?.[2] ?? null;
}

export function clear(fields) {
  fields.flatMap((one) => one.faults).forEach(([, say]) => say(""));
}

export async function objectOf(name, path, label) {
  // The fields of a schema of the OpenAPI below one heading.
  const all = await schemas();
  return group(path, label, resolve({ $ref: `/${name}` }, all), all);
}
