// A form that asks for a job: what it sends, the same for other tools, and what is refused, in place.

import { call, csrf } from "./api.js";
import { byId, make, say } from "./dom.js";
import { clear, NotRead, place } from "./fields.js";
import { count, lasting } from "./words.js";

export const quoted = (text) =>
  /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;

function python(value, indent = "") {
  // A JSON value as Python writes it.
  const deeper = `${indent}    `;
  if (Array.isArray(value)) {
    return `[${value.map((one) => python(one, deeper)).join(", ")}]`;
  }
  if (value !== null && typeof value === "object") {
    const lines = Object.entries(value).map(
      ([name, one]) => `${deeper}${JSON.stringify(name)}: ${python(one, deeper)},\n`,
    );
    return `{\n${lines.join("")}${indent}}`;
  }
  return { true: "True", false: "False", null: "None" }[String(value)] ?? JSON.stringify(value);
}

export function flags(request, named) {
  // The request as options of the command: those that `named` knows by name, others by --set.
  const line = [];
  const walk = (value, path) => {
    const flag = named[path];
    if (flag) {
      [value].flat().forEach((one) => line.push(flag, quoted(String(one))));
    } else if (value !== null && typeof value === "object" && (path === "" || Object.keys(value).length > 0) && !Array.isArray(value)) {
      Object.entries(value).forEach(([name, inner]) => walk(inner, path ? `${path}.${name}` : name));
    } else {
      const text = typeof value === "string" ? value : JSON.stringify(value);
      line.push("--set", quoted(`${path}=${text}`));
    }
  };
  walk(request, "");
  return line.join(" ");
}

export function equivalents(path, request, { command, method }) {
  // The same request for a shell, for the command `adap` and for Python.
  const key = csrf() === null ? "" : '-H "Authorization: Bearer $ADAP_API_KEY" ';
  const body = quoted(JSON.stringify(request));
  return [
    ["The command", `adap ${command(request)} --watch`],
    ["curl", `curl ${key}-H "Content-Type: application/json" -d ${body} ${location.origin}${path}`],
    ["Python", `client.${method}(${python(request)})`],
  ];
}

export function remember(form) {
  // Keep what is typed over a reload, until it was sent.
  const key = `typed:${location.pathname}`;
  const inputs = () => [...form.elements].filter((one) => one.name && one.type !== "file");
  const keep = () =>
    sessionStorage.setItem(
      key,
      JSON.stringify(
        inputs().map((one) => [one.name, one.value, one.checked ?? null]),
      ),
    );
  const restore = () => {
    for (const [name, value, checked] of JSON.parse(sessionStorage.getItem(key) ?? "[]")) {
      const ticks = (one) => one.type === "checkbox" || one.type === "radio";
      const found = inputs().find(
        (one) => one.name === name && (!ticks(one) || one.value === value),
      );
      if (found && ticks(found)) {
        found.checked = checked;
      } else if (found) {
        found.value = value;
      }
      found?.dispatchEvent(new Event("change", { bubbles: true }));
    }
  };
  form.addEventListener("input", keep);
  form.addEventListener("change", (event) => event.isTrusted && keep());
  return { restore, forget: () => sessionStorage.removeItem(key) };
}

export function refused(problem, fields, said) {
  // Say what was refused: next to its field where it has one, else next to the button.
  const inDetail = problem.detail?.match(/^(\/body\S*): /);
  const items = problem.errors?.length
    ? problem.errors
    : inDetail
      ? [{ pointer: inDetail[1], detail: problem.detail.slice(inDetail[0].length) }]
      : [];
  let first = null;
  const left = [];
  for (const { pointer, detail } of items) {
    const input = place(fields, pointer, detail);
    first ??= input;
    if (input === null) {
      left.push(`${pointer.split("/").slice(2).join(" ") || "The request"}: ${detail}`);
    }
  }
  const sentence = items.length ? left.join(" ") : (problem.detail ?? String(problem));
  say(said, sentence || "Nothing was started: see what is marked above.", "fail");
  (first ?? said).focus?.();
}

const LATER_MS = 500; // after the last sign that was typed

function cost({ images, attacks, trials, seconds, most_seconds: most, warnings }) {
  const models = trials === null ? "" : `${count(trials)} models would be trained, each on `;
  const by = attacks.length ? `, by ${attacks.join(" and ")}` : "";
  const time =
    seconds === null
      ? "How long it takes is not known yet: nothing like it was run here."
      : `It should take one worker about ${lasting(seconds)}${most === null ? "" : `, up to ${lasting(most)}`}.`;
  return [`${models}${count(images)} images${by}. ${time}`, ...warnings].join(" ");
}

function estimating(path, read, complete) {
  // Say what the request would cost, when it can be told.
  const place = byId("extent");
  let turn = 0;
  let later;
  const tell = async () => {
    const mine = ++turn;
    let sentence = "";
    try {
      const request = read();
      if (complete(request)) {
        sentence = cost(await call("POST", path, { json: request }));
      }
    } catch {
      // it is refused: the button says why
    }
    if (mine === turn) {
      say(place, sentence);
    }
  };
  return () => {
    clearTimeout(later);
    later = setTimeout(tell, LATER_MS);
  };
}

export function ask({ path, fields, read, tools, leads, estimate = null, complete = null }) {
  // fields: all of them. read: the request that they stand for. leads: where an answer leads to.
  // estimate: where to ask what it would cost, once it is complete.
  const form = byId("ask");
  const said = byId("said");
  const button = form.querySelector('button[type="submit"]');
  const typed = remember(form);
  const same = byId("same");

  function show() {
    try {
      const lines = equivalents(path, read(), tools);
      same.replaceChildren(
        ...lines.flatMap(([title, line]) => [
          make("p", {}, title),
          make("pre", { class: "command", tabindex: "0" }, make("code", {}, line)),
        ]),
      );
    } catch (problem) {
      if (!(problem instanceof NotRead)) {
        throw problem;
      }
    }
  }

  const tellCost = estimate === null ? () => {} : estimating(estimate, read, complete);

  function changed() {
    show();
    tellCost();
  }

  form.addEventListener("input", changed);
  form.addEventListener("change", changed);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    clear(fields);
    say(said, "");
    let request;
    try {
      request = read();
    } catch (problem) {
      if (!(problem instanceof NotRead)) {
        throw problem;
      }
      refused({ errors: [{ pointer: `/body/${problem.path.join("/")}`, detail: problem.message }] }, fields, said);
      return;
    }
    button.disabled = true;
    try {
      const answer = await call("POST", path, {
        json: request,
        headers: { "Idempotency-Key": crypto.randomUUID?.() ?? String(Math.random()) },
      });
      typed.forget();
      location.assign(leads(answer));
    } catch (problem) {
      refused(problem, fields, said);
    }
    button.disabled = false;
  });
  typed.restore();
  changed();
  button.disabled = false; // until here a press would have sent the form as browsers do
}
