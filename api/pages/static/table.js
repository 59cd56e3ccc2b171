// Tables that are wholly there: sorted by a head, searched, and shown a page at a time.

import { make } from "./dom.js";
import { ofAll } from "./gallery.js";

const PAGE = 25;

function compare(a, b) {
  const [x, y] = [Number(a), Number(b)];
  return a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y) ? x - y : a.localeCompare(b);
}

function enhance(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  let shown = rows;
  let first = 0;
  const search = make("input", { type: "search", autocomplete: "off", id: "find" });
  const total = make("p", { role: "status" });
  const before = make("button", { type: "button", class: "second", click: () => turn(-PAGE) }, "Previous");
  const next = make("button", { type: "button", class: "second", click: () => turn(PAGE) }, "Next");
  const pages = make("div", { class: "actions" }, before, next);

  function draw() {
    body.replaceChildren(...shown.slice(first, first + PAGE));
    total.textContent = ofAll(shown.length, rows.length, "rows");
    before.disabled = first === 0;
    next.disabled = first + PAGE >= shown.length;
    pages.hidden = shown.length <= PAGE;
  }

  function turn(by) {
    first += by;
    draw();
  }

  function find() {
    const words = search.value.toLowerCase();
    shown = rows.filter((row) => row.textContent.toLowerCase().includes(words));
    first = 0;
    draw();
  }

  for (const head of table.tHead.rows[0].cells) {
    const sort = () => {
      const falling = head.ariaSort === "ascending";
      [...head.parentElement.cells].forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const value = (row) => row.cells[head.cellIndex].dataset.value;
      rows.sort((a, b) => (falling ? -1 : 1) * compare(value(a), value(b)));
      find();
    };
    head.replaceChildren(make("button", { type: "button", class: "head", click: sort }, ...head.childNodes));
  }
  search.addEventListener("input", find);
  const label = make("p", {}, make("label", { for: "find" }, "Rows that have"), search);
  table.before(make("div", { class: "above" }, make("div", { class: "filters" }, label), total));
  table.after(pages);
  draw();
}

document.querySelectorAll("table.sortable").forEach(enhance);
