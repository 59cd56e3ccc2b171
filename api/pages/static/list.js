// A list that the address describes: its filters, its order, its page. Reloading changes nothing.

import { get } from "./api.js";
import { byId, say } from "./dom.js";

export function showList({ path, row, empty, limit = 20 }) {
  // path: of the API. row: the cells of an item, as a <tr>. empty: what is said where there is none.
  const form = document.querySelector("form.filters");
  const table = byId("list");
  const body = table.tBodies[0];
  const said = byId("list-said");
  const [before, next] = [byId("before"), byId("next")];
  const fields = [...form.elements].filter((field) => field.name);
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  let asked = 0;
  let cursor = null;

  function read() {
    const query = new URLSearchParams(location.search);
    for (const field of fields) {
      field.value = query.get(field.name) ?? field.querySelector?.("option")?.value ?? "";
    }
    return query;
  }

  async function load() {
    const query = read();
    const turn = ++asked;
    query.set("limit", limit);
    table.setAttribute("aria-busy", "true");
    try {
      const page = await get(`${path}?${query}`);
      if (turn !== asked) {
        return; // a later question was faster
      }
      body.replaceChildren(...page.data.map(row));
      for (const cells of [...body.rows].map((one) => [...one.cells])) {
        cells.forEach((cell, at) => (cell.dataset.head = heads[at])); // shown on narrow screens
      }
      const filtered = fields.some((field) => field.value && field.name !== "sort");
      say(said, page.data.length ? "" : filtered ? "Nothing fits these filters." : empty);
      table.hidden = page.data.length === 0;
      cursor = page.next_cursor;
      next.disabled = !page.has_more;
      before.disabled = !query.has("after");
      before.parentElement.hidden = next.disabled && before.disabled;
    } catch (problem) {
      say(said, problem.detail ?? String(problem), "fail");
    }
    table.removeAttribute("aria-busy");
  }

  function go(change) {
    const query = new URLSearchParams(location.search);
    change(query);
    history.pushState(null, "", query.size ? `?${query}` : location.pathname);
    load();
  }

  function filter() {
    go((query) => {
      query.delete("after");
      for (const field of fields) {
        const standard = field.querySelector?.("option")?.value ?? "";
        field.value && field.value !== standard
          ? query.set(field.name, field.value)
          : query.delete(field.name);
      }
    });
  }

  let typing;
  form.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(filter, 250);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(typing);
    filter();
  });
  next.addEventListener("click", () => go((query) => query.set("after", cursor)));
  before.addEventListener("click", () => history.back());
  addEventListener("popstate", load);
  load();
  return load;
}
