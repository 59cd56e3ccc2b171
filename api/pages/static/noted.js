// The name and the note of a data set or a model, changed on its page.

import { call } from "./api.js";
import { byId, say } from "./dom.js";

const form = byId("change");
const said = byId("change-said");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const [name, note] = [form.elements.name.value.trim(), form.elements.note.value];
  try {
    await call("PATCH", form.dataset.asset, { json: { name, note } });
    location.reload();
  } catch (problem) {
    const items = problem.errors?.length ? problem.errors : [{ detail: problem.detail ?? String(problem) }];
    say(said, items.map(({ pointer = "", detail }) => `${pointer.split("/").at(-1)} ${detail}`.trim()).join("; "), "fail");
    said.focus();
  }
});
form.querySelector("button").disabled = false;
