// A file on its way: dropped or chosen, sent, watched while it is read, and what came of it in place.

import { get, send, untilEnded } from "./api.js";
import { refused, remember } from "./ask.js";
import { byId, make, say } from "./dom.js";
import { clear, NotRead, place } from "./fields.js";
import { PART_BYTES, sendInParts } from "./parts.js";
import { bytes, progressSentence, queueSentence } from "./words.js";
import { dropped } from "./zip.js";

export function toForm(parts) {
  // What fields say, as a form; objects as JSON.
  const form = new FormData();
  for (const [name, one] of Object.entries(parts)) {
    const value = one.read();
    if (value !== undefined) {
      form.set(name, typeof value === "object" ? JSON.stringify(value) : String(value));
    }
  }
  return form;
}

export function upload({ path, fields, form: read, what }) {
  // read: the FormData beside the file. what: the words for the thing.
  const form = byId("upload");
  const [zone, input, chosen] = [byId("drop"), byId("file"), byId("chosen")];
  const [said, reasons, bar, words] = ["said", "reasons", "bar", "bar-words"].map(byId);
  const [button, stop] = [form.querySelector('[type="submit"]'), byId("stop")];
  const typed = remember(form);
  let file = null;

  function take(one) {
    file = one;
    say(chosen, file === null ? "" : `${file.name}, ${bytes(file.size)}`);
    say(said, "");
  }

  input.addEventListener("change", () => take(input.files[0] ?? null));
  for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
    zone.addEventListener(type, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", type === "dragenter" || type === "dragover");
    });
  }
  zone.addEventListener("drop", async (event) => {
    try {
      say(chosen, "It is being packed.");
      take(await dropped(event.dataTransfer));
    } catch (problem) {
      take(null);
      say(said, `This folder cannot be packed here: ${problem.message}.`, "fail");
    }
  });

  function show(sentence, value, total) {
    say(words, sentence);
    bar.hidden = sentence === "";
    if (total) {
      bar.max = total;
      bar.value = value;
    } else {
      bar.removeAttribute("value");
    }
  }

  function busy(yes) {
    button.disabled = yes;
    stop.hidden = !yes;
    form.setAttribute("aria-busy", String(yes));
  }

  async function watch({ job_id: job, id }) {
    // Until it was read: on to its page, or the reasons here, with what was typed still there.
    const { error } = await untilEnded(job, (state) => {
      if (state.status === "queued") {
        show(`It is kept, and waits to be read. ${queueSentence(state)}`);
      } else if (state.progress) {
        show(progressSentence(state.progress), state.progress.completed, state.progress.total);
      } else {
        show("It is being read.");
      }
    });
    const made = await get(`${path}/${id}`);
    if (made.status === "ready") {
      typed.forget();
      location.assign(`${path}/${id}`);
      return;
    }
    const why = made.reasons.length ? made.reasons : [error?.message ?? "The check was cancelled."];
    say(said, `This ${what} cannot be used as it is. Mend it by the reasons, then send it again:`, "fail");
    reasons.replaceChildren(...why.map((reason) => make("li", {}, make("bdi", {}, reason))));
    for (const named of new Set(why.join(" ").match(/--[a-z][a-z-]+|`[a-z_]+`/g))) {
      const name = named.replace(/^--|`/g, "").replaceAll("-", "_");
      place(fields, `/body/${FLAGS[name] ?? name}`, `The reasons above are about this; ${named.startsWith("--") ? "the command calls" : "programs call"} it ${named}.`);
    }
    show("");
    said.focus();
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    clear(fields);
    say(said, "");
    reasons.replaceChildren();
    if (file === null) {
      say(said, "Choose a file first, or drop one above.", "fail");
      input.focus();
      return;
    }
    let sent;
    try {
      sent = read();
    } catch (problem) {
      if (!(problem instanceof NotRead)) {
        throw problem;
      }
      const item = { pointer: `/body/${problem.path.join("/")}`, detail: problem.message };
      refused({ errors: [item] }, fields, said);
      return;
    }
    busy(true);
    try {
      if (file.size > PART_BYTES) {
        const { answer, abort } = sendInParts(file, show);
        stop.onclick = abort;
        sent.set("upload_id", await answer);
        if (!sent.has("name")) {
          sent.set("name", file.name);
        }
      } else {
        sent.set("file", file, file.name);
      }
      const { answer, abort } = send(path, sent, (done, total) =>
        show(done < total ? `Sent: ${bytes(done)} of ${bytes(total)}` : "Sent; it is being kept.", done, total),
      );
      stop.onclick = abort;
      const made = await answer;
      stop.hidden = true;
      await watch(made);
    } catch (problem) {
      show("");
      refused(problem, fields, said);
    }
    busy(false);
  });
  typed.restore();
  button.disabled = false; // until here a press would have sent the form as browsers do
}

// what the command calls otherwise
const FLAGS = { size: "input/height", imagenet: "input/mean", pixels: "input/value_range", classes: "output/classes" };
