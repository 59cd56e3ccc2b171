// A grid of images of which only those in sight are in the page, however many there are.

import { get } from "./api.js";
import { byId, make, say } from "./dom.js";
import { count } from "./words.js";

const PART = 60; // images asked for at a time
const MOST_PARTS = 40; // kept, of those that were asked for
const [GAP, NARROWEST, TEXT] = [12, 120, 68]; // pixels: between images, of their side, below it
const TALLEST = 12_000_000; // pixels that every browser scrolls
const SETTLED_MS = 80; // without scrolling, until images are asked for
const THUMBNAIL = 256; // pixels of its longer side, twice as many as most are shown in

export function picture({ image }, side) {
  // side: pixels of the longer side of the images of this data set, which may be few
  const source = side > THUMBNAIL ? `${image}?size=${THUMBNAIL}` : image;
  const kind = side < 100 ? "coarse" : "fine";
  return make("img", { src: source, alt: "", class: kind, decoding: "async", loading: "lazy" });
}

export function labelsOf({ labels }) {
  return labels.length
    ? labels.map((label) => make("bdi", { class: "label" }, label))
    : [make("span", { class: "label muted" }, "no class")];
}

export function closer(item, side, facts) {
  // Show an image as large as it can be, with what is known of it: [name, value].
  const dialog = byId("closer");
  const kind = side < 100 ? "coarse" : "fine";
  const list = facts
    .filter(([, value]) => value !== null && value !== undefined)
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  dialog.querySelector("div").replaceChildren(
    make("h2", { id: "closer-name" }, make("bdi", {}, item.example_id)),
    make("img", { src: item.image, alt: `The image ${item.example_id}`, class: kind }),
    make("dl", { class: "facts" }, list),
  );
  dialog.showModal();
}

export function gallery({ path, cell, empty, words }) {
  // path: of the list in the API. cell: what stands in the place of an image.
  // empty: said where nothing fits. words: says how many there are, of the whole answer.
  const form = document.querySelector("form.filters");
  const grid = byId("grid");
  const said = byId("grid-said");
  const total = byId("grid-total");
  const jump = byId("jump");
  const fields = [...form.elements].filter((field) => field.name);
  let parts = new Map(); // by number: the images of a part, or null while they come
  let there = new Map(); // by place: the <li> that is in the page
  let shape = { places: 0, columns: 1, side: NARROWEST, row: 1, base: 0 };
  let turn = 0; // of questions: answers to earlier ones come too late
  let settling;

  function query() {
    const asked = new URLSearchParams();
    for (const field of fields) {
      const value = field.type === "checkbox" ? (field.checked ? field.value : "") : field.value;
      if (value !== "") {
        asked.set(field.name, value);
      }
    }
    return asked;
  }

  function fill() {
    // The fields as the address has them.
    const asked = new URLSearchParams(location.search);
    for (const field of fields) {
      const value = asked.get(field.name);
      if (field.type === "checkbox") {
        field.checked = value === field.value;
      } else {
        field.value = value ?? field.querySelector?.("option")?.value ?? "";
      }
    }
    return Number(asked.get("start")) || 0;
  }

  async function ask(part) {
    const mine = turn;
    parts.set(part, null);
    const asked = query();
    asked.set("start", part * PART);
    asked.set("limit", PART);
    try {
      const answer = await get(`${path}?${asked}`);
      if (mine !== turn) {
        return;
      }
      say(said, answer.total ? "" : empty);
      parts.set(part, answer.data);
      for (const old of [...parts.keys()].slice(0, Math.max(0, parts.size - MOST_PARTS))) {
        parts.delete(old); // the one that was asked for first
      }
      total.textContent = words(answer);
      if (answer.total !== shape.places) {
        shape.places = answer.total;
        measure();
      }
      draw();
      return answer;
    } catch (problem) {
      if (mine === turn) {
        parts.delete(part);
        say(said, problem.detail ?? String(problem), "fail");
        total.textContent = "";
      }
    }
  }

  function measure() {
    const width = grid.clientWidth;
    const columns = Math.max(2, Math.floor((width + GAP) / (NARROWEST + GAP)));
    const side = (width - GAP * (columns - 1)) / columns;
    const row = side + TEXT + GAP;
    const rows = Math.ceil(shape.places / columns);
    shape = { ...shape, columns, side, row, rows: Math.min(rows, Math.floor(TALLEST / row)) };
    shape.base = Math.min(shape.base, Math.max(0, rows - shape.rows));
    grid.style.height = `${Math.max(0, shape.rows * row - GAP)}px`;
    there.forEach((item) => item.remove());
    there = new Map();
  }

  function inSight() {
    const above = -grid.getBoundingClientRect().top;
    const margin = innerHeight / 2;
    const first = Math.max(0, Math.floor((above - margin) / shape.row));
    const last = Math.min(shape.rows ?? 0, Math.ceil((above + innerHeight + margin) / shape.row));
    const place = (row) => Math.min(shape.places, (shape.base + row) * shape.columns);
    return [place(first), place(Math.max(first, last))];
  }

  function draw() {
    const [first, end] = inSight();
    for (const [place, item] of there) {
      if ((place < first || place >= end) && !item.contains(document.activeElement)) {
        item.remove();
        there.delete(place);
      }
    }
    for (let place = first; place < end; place += 1) {
      const known = parts.get(Math.floor(place / PART))?.[place % PART];
      let item = there.get(place);
      if (item === undefined) {
        item = make("li", { "aria-setsize": shape.places, "aria-posinset": place + 1 });
        const column = place % shape.columns;
        const row = Math.floor(place / shape.columns) - shape.base;
        item.style.width = `${shape.side}px`;
        item.style.left = `${column * (shape.side + GAP)}px`;
        item.style.top = `${row * shape.row}px`;
        there.set(place, item);
        const next = [...grid.children].find((one) => one.ariaPosInSet > place + 1);
        grid.insertBefore(item, next ?? null); // in order, for whoever goes by keyboard
      }
      if (known !== undefined && !item.hasChildNodes()) {
        item.append(...cell(known));
      }
    }
    clearTimeout(settling);
    settling = setTimeout(settle, SETTLED_MS);
  }

  function settle() {
    const [first, end] = inSight();
    for (let part = Math.floor(first / PART); part * PART < end; part += 1) {
      if (!parts.has(part)) {
        ask(part);
      }
    }
    const top = Math.floor(-grid.getBoundingClientRect().top / shape.row) + shape.base;
    const place = Math.max(0, top) * shape.columns;
    const asked = query();
    if (place > 0) {
      asked.set("start", Math.min(place, shape.places - 1));
    }
    history.replaceState(null, "", asked.size ? `?${asked}` : location.pathname);
  }

  function scrollTo(place) {
    const row = Math.floor(place / shape.columns);
    const rows = Math.ceil(shape.places / shape.columns);
    if (shape.rows < rows) {
      shape.base = Math.max(0, Math.min(row - Math.floor(shape.rows / 2), rows - shape.rows));
      measure();
    }
    const top = grid.getBoundingClientRect().top + scrollY + (row - shape.base) * shape.row;
    window.scrollTo({ top: place ? top - 8 : 0 });
    draw();
  }

  async function show(start = 0) {
    turn += 1;
    parts = new Map();
    grid.setAttribute("aria-busy", "true");
    const answer = await ask(Math.floor(start / PART));
    grid.removeAttribute("aria-busy");
    measure();
    draw();
    if (answer !== undefined && start) {
      scrollTo(Math.min(start, answer.total - 1));
    }
  }

  function choose() {
    const asked = query();
    history.pushState(null, "", asked.size ? `?${asked}` : location.pathname);
    shape.base = 0;
    show();
  }

  form.addEventListener("change", choose);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    choose();
  });
  jump.addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = Number(new FormData(jump).get("place")) - 1;
    scrollTo(Math.max(0, Math.min(wanted, shape.places - 1)));
  });
  let drawing = false;
  addEventListener("scroll", () => {
    if (!drawing) {
      drawing = true;
      requestAnimationFrame(() => {
        drawing = false;
        draw();
      });
    }
  });
  new ResizeObserver(() => {
    measure();
    draw();
  }).observe(grid.parentElement);
  addEventListener("popstate", () => show(fill()));
  show(fill());
}

// So many of all; word: of several of them, which ends in an s.
export const ofAll = (total, all, word) => {
  const words = `${count(all)} ${all === 1 ? word.slice(0, -1) : word}`;
  return total === all ? words : `${count(total)} of ${words}`;
};
